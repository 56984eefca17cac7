"""The digits that Prunus carries along: 1,797 handwritten digits of 8×8 pixels (attribution in digits.md)."""

from __future__ import annotations

from pathlib import Path

from prunus.data.dataset import ImageData, make_image_data
from prunus.files import load_tensors

_FILE = Path(__file__).with_name("digits.safetensors")


def load_digits() -> ImageData:
    """Load the UCI digits: 1,437 training and 360 test images, grey, uint8 (N, 1, 8, 8).

    E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, doi:10.24432/C50P49, CC BY 4.0.
    """
    tensors, _ = load_tensors(_FILE, what="digits file")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return make_image_data(
        "UCI digits",
        tuple("0123456789"),
        (arrays["train_images"], arrays["train_labels"]),
        (arrays["test_images"], arrays["test_labels"]),
    )
