"""The fields of a run's configuration that say whether the small network becomes 8-bit integers as well."""

from __future__ import annotations

from pydantic import BaseModel

from prunus.config.fields import Whole, flag

INT8_EPOCHS = 5


class Int8Fields(BaseModel):
    """Whether and how the small network becomes a file with 8-bit integers."""

    int8: bool = flag(
        False,
        "8-bit integers",
        "",
        "Write model.int8.onnx as well, and where rounding to 8 bits costs more than 0.5 points of accuracy on the "
        "held-out images, train it back.",
        "true",
    )
    int8_epochs: Whole = flag(
        INT8_EPOCHS,
        "8-bit integers",
        "N",
        "Epochs of that training, with the rounding simulated, at a 25th of the fine-tuning's rate; 0 for none.",
        "5",
        ge=0,
        le=100_000,
    )
