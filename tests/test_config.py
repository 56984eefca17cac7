"""The configuration: flags over a file, everything that is wrong at once, and nothing that a hostile file can do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from prunus.config import RunConfig, load_config
from prunus.errors import ConfigError

GOOD = {"model": "resnet20", "data": "digits", "macs": "0.5"}
SPARSITY = {"method": "channel-sparsity"}


def problems(flags: dict[str, object], path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, flags)
    return str(caught.value)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "model: resnet20\ndata: digits\nsize: 0.64MB\nepochs: 7\nseed: 3\nlearning_rate: 1e-3\n")
    config = load_config(path, {"seed": "5", "epochs": None})
    assert (config.epochs, config.seed, config.learning_rate, config.batch_size) == (7, 5, 0.001, 128)
    assert config.budgets == {"size": "0.64MB"}


@pytest.mark.parametrize(
    ("typed", "kept"),
    [("0.5", 0.5), ("200000", 200000), ("40%", "40%"), ("0.64MB", "0.64MB"), (0.5, 0.5), ("20M", "20M")],
)
def test_budgets_stay_as_typed_with_numbers_as_numbers(typed: object, kept: object) -> None:
    key = "size" if str(typed).endswith("B") else "macs"
    config = load_config(flags={"model": "resnet20", "data": "digits", key: typed})
    assert config.budgets == {key: kept}
    assert type(config.budgets[key]) is type(kept)


def test_a_configuration_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    config = load_config(
        flags=GOOD
        | {
            "method": "layer-fusion",
            "variance": "data-free",
            "out": str(tmp_path),
            "validation": "5000",
            "flip": False,
            "cutout": "8",
        }
    )
    assert load_config(write(tmp_path, config.to_yaml())) == config
    assert config.validation == 5000 and isinstance(config.validation, int)


def test_a_configuration_cannot_be_changed() -> None:
    config = load_config(flags=GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        config.epochs = 3  # type: ignore[misc]


def test_all_errors_come_at_once_with_what_to_type() -> None:
    message = problems({"modle": "resnet20", "epochs": "ten", "method": "layer-fusin", "lam": "x", "device": "gpu"})
    assert message.splitlines() == [
        "The configuration has 8 errors:",
        "  - model is missing: type --model resnet20",
        "  - data is missing: type --data digits",
        "  - --method: 'layer-fusin' is none of refit-error, channel-sparsity, layer-fusion; did you mean layer-fusion?"
        "; type e.g. --method layer-fusion",
        "  - --epochs: 'ten' is not a whole number; type e.g. --epochs 30",
        "  - --lam: 'x' is not a number; type e.g. --lam 1.0",
        "  - --device: 'gpu' is none of the names it may have; type e.g. --device cpu",
        "  - modle is no option; did you mean model?",
        "  - no budget is given: add one of --size 0.64MB, --macs 0.5, --params 0.4, --latency 0.5, "
        "--pruning-ratio 0.3",
    ]


def test_errors_of_a_file_name_the_file_and_its_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "model: resnet20\ndata: digits\nmacs: 0.5\nepocs: 3\nbatch-size: 64\nallocation: globl\n")
    message = problems({}, path)
    assert f"epocs (in {path}) is no option; did you mean epochs?" in message
    assert f"batch-size (in {path}) is no option; did you mean batch_size?" in message
    assert (
        f"allocation (in {path}): 'globl' is none of global, local, search; did you mean global?; type e.g. "
        "allocation: search" in message
    )


def test_one_error_is_one_sentence() -> None:
    assert problems(GOOD | {"epochs": "0"}) == (
        "The configuration cannot be used: --epochs: '0' should be greater than or equal to 1; type e.g. --epochs 30."
    )


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("epochs", "1e400", "not a whole number"),
        ("epochs", "2.5", "not a whole number"),
        ("epochs", True, "True is not a number"),
        ("epochs", None, ""),
        ("epochs", [3], "not a whole number"),
        ("learning_rate", "nan", "finite"),
        ("learning_rate", "inf", "finite"),
        ("learning_rate", 0, "greater than 0"),
        ("validation", "0", "greater than 0"),
        ("validation", "nan", "finite"),
        ("label_smoothing", "1", "less than 1"),
        ("norm", "3", "none of 1, 2"),
        ("distill", "1.1", "less than or equal to 1"),
        ("temperature", "0", "greater than 0"),
        ("ema", "1", "less than 1"),
        ("calibration_images", "1", "greater than or equal to 2"),
        ("device", "cuda:x", "none of the names"),
        ("seed", "-1", "greater than or equal to 0"),
        ("skip_bad_images", "perhaps", "neither true nor false"),
        ("model", 3, "not text"),
        ("out", 3, "not text"),
        ("macs", True, "True is not a number"),
        ("macs", {"a": 1}, "is not"),
        ("macs", "nan", "--macs: 'nan'"),
        ("macs", "0", "--macs: 0; a budget is from 1"),
        ("macs", "0.5MB", "unknown unit 'mb'"),
        ("size", "0,64MB", "Write the decimal point as a point"),
        ("pruning_ratio", "1", "at least 0 and below 1"),
    ],
)
def test_wrong_types_and_ranges_are_refused(key: str, value: object, says: str) -> None:
    if value is None:
        assert load_config(flags=GOOD | {key: value}).epochs == 30  # a flag that was not given
        return
    assert says in problems(GOOD | {key: value})


def test_an_option_that_would_do_nothing_is_refused() -> None:
    message = problems(GOOD | {"method": "layer-fusion", "lam": "0.5", "rounds": "5", "schedule": "iterative"})
    assert (
        "--lam 0.5 does nothing here: it is for criterion channel_sparsity, and this is criterion delivered_energy"
        in message
    )
    assert "--schedule iterative does nothing here: it is for method refit-error or channel-sparsity" in message
    assert "--rounds" not in message
    assert "--rounds 5 does nothing here" in problems(GOOD | {"rounds": "5"})
    assert "--search-minutes 2.0 does nothing here: it is for allocation search, and this is allocation global" in (
        problems(GOOD | {"search_minutes": "2"})
    )
    for other in ({"method": "layer-fusion"}, {"schedule": "iterative"}):
        assert "--allocation search does nothing here" in problems(GOOD | {"allocation": "search", **other})
    assert "--degree hoyer does nothing here" in problems(GOOD | {"criterion": "l1_norm", "degree": "hoyer"})
    assert problems(GOOD | {"lam": "0.5"}).endswith(
        "and this is criterion refit_error; leave it out, or type --criterion channel_sparsity."
    )
    for method in ("refit-error", "channel-sparsity"):
        assert load_config(flags=GOOD | {"method": method, "schedule": "iterative", "sparse_epochs": "2"})


@pytest.mark.parametrize(
    ("typed", "kept", "steps"),
    [
        (None, "reconstruct", ("reconstruct",)),
        ("recalibrate, compensate", "compensate,recalibrate", ("compensate", "recalibrate")),
        ("reconstruct,reconstruct", "reconstruct", ("reconstruct",)),
        ("none", "none", ()),
    ],
)
def test_recovery_steps_are_put_in_their_order(
    tmp_path: Path, typed: str | None, kept: str, steps: tuple[str, ...]
) -> None:
    config = load_config(flags=GOOD | {"recover": typed})
    assert (config.recover, config.recovery_steps) == (kept, steps)
    assert load_config(write(tmp_path, config.to_yaml())) == config


def test_the_configuration_knows_the_steps_that_there_are() -> None:
    from prunus.config.fields import RECOVERY_STEPS
    from prunus.recovery import STEPS

    assert RECOVERY_STEPS == STEPS


def test_a_wrong_recovery_step_is_refused() -> None:
    assert (
        "--recover: 'reconstuct,none' is none and something: leave one of the two out; type e.g. --recover reconstruct"
        in problems(GOOD | {"recover": "reconstuct,none"})
    )
    assert (
        "--recover: 'reconstuct' names 'reconstuct', which is none of compensate, reconstruct, recalibrate, none; "
        "did you mean reconstruct?" in problems(GOOD | {"recover": "reconstuct"})
    )
    assert "--recover: 3 is not text" in problems(GOOD | {"recover": 3})
    assert "names ''" in problems(GOOD | {"recover": ""})


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"temperature": "2"}, "--temperature 2.0 does nothing here: it is for --distill, which is 0"),
        (
            {"distill": "0.5", "finetune_epochs": "0"},
            "--distill 0.5 does nothing here: it is for the training after the removal, and --finetune-epochs is 0",
        ),
        (
            {"ema": "0.99", "finetune_epochs": "0", "checkpoint": "a.safetensors"},
            "--ema 0.99 does nothing here: there is a --checkpoint, and --finetune-epochs is 0",
        ),
        (
            SPARSITY | {"recover": "none", "calibration_images": "64"},
            "--calibration-images 64 does nothing here: --recover is none, and the criterion looks at weights alone",
        ),
    ],
)
def test_training_and_recovery_options_that_would_do_nothing_are_refused(flags: dict[str, object], says: str) -> None:
    assert problems(GOOD | flags) == f"The configuration cannot be used: {says}."


@pytest.mark.parametrize(
    "flags",
    [
        {"distill": "1", "temperature": "2"},
        {"ema": "0.99", "finetune_epochs": "0"},
        {"recover": "none", "calibration_images": "64", "criterion": "hrank"},
        {"recover": "none", "calibration_images": "64"},
        SPARSITY | {"recover": "none", "calibration_images": "64", "degree": "activation"},
        {"recover": "recalibrate", "calibration_images": "64"},
    ],
)
def test_options_that_do_something_pass(flags: dict[str, object]) -> None:
    assert load_config(flags=GOOD | flags)


def test_options_of_sparse_training_and_calibrated_ones_are_refused_where_they_are_idle() -> None:
    message = problems(GOOD | {"rho": "0.1", "penalty": "bn_scale", "rho_schedule": "cubic"})
    for given in ("--rho 0.1", "--penalty bn_scale", "--rho-schedule cubic"):
        assert (
            f"{given} does nothing here: it is for sparse training, and there is none; add --sparse-epochs" in message
        )
    fusion = GOOD | {"method": "layer-fusion"}
    assert "--sparse-epochs 5 does nothing here: it is for method" in problems(fusion | {"sparse_epochs": "5"})
    assert "--calibrate-options True does nothing here: it is for criterion channel_sparsity" in problems(
        fusion | {"calibrate_options": True}
    )
    calibrated = GOOD | SPARSITY | {"calibrate_options": True}
    assert "--lam 0.5 does nothing here: --calibrate-options chooses it" in problems(calibrated | {"lam": "0.5"})
    assert load_config(flags=calibrated | {"lam": "0.5", "sparse_epochs": "5"}).calibrate_options


def test_options_of_the_criterion_are_those_it_takes() -> None:
    config = load_config(flags=GOOD | SPARSITY | {"lam": "0"})
    assert (config.criterion_name, config.criterion_options["lam"]) == ("channel_sparsity", 0.0)
    assert config.criterion_options == {"degree": "weight", "t": 0.1, "lam": 0.0}
    config = load_config(flags=GOOD)
    assert (config.criterion_name, config.criterion_options) == ("refit_error", {})
    fusion = load_config(flags=GOOD | {"method": "layer-fusion", "variance": "data-free"})
    assert (fusion.criterion_name, fusion.criterion_options) == ("delivered_energy", {"variance": "data-free"})
    fusion = load_config(flags=GOOD | {"method": "layer-fusion", "criterion": "fused_conv_bn", "constant": True})
    assert (fusion.criterion_name, fusion.criterion_options) == ("fused_conv_bn", {"norm": 2, "constant": True})
    assert load_config(flags=GOOD | {"criterion": "random"}).criterion_options == {}


def test_the_run_folder_has_a_name_of_its_own() -> None:
    config = load_config(
        flags={"model": "resnet20", "data": "../x/cifar10-jpeg.tar.xz", "size": "0.64MB", "macs": "40%"}
    )
    assert config.run_dir == Path("runs/resnet20_cifar10-jpeg_refit-error_size-0.64MB_macs-40pc_seed-0")
    assert load_config(flags=GOOD | {"out": "a/b"}).run_dir == Path("a/b")


def test_differences_leave_out_where_a_run_happens() -> None:
    here = load_config(flags=GOOD | {"epochs": "20", "threads": "2", "out": "a"})
    there = load_config(flags=GOOD | {"epochs": "30", "threads": "1", "out": "b"})
    assert here.differences(there) == ["epochs: 30 there, 20 here"]


def bomb() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]" for last, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (bomb(), "anchors and aliases"),
        ("model: &x [*x]", "anchors and aliases"),
        ("model: !!python/object/apply:os.system ['touch owned']", "the tag"),
        ("model: !!python/name:os.system", "the tag"),
        ("epochs: !!int '3'", "the tag"),
        ("!!map {model: a}", "the tag"),
        ("model: [" * 3000, "nested more than"),
        ("- " * 3000, "nested more than"),
        ("model: resnet20\nmodel: vgg16_bn", "line 2: the key 'model' is given twice"),
        ("model: a\n---\nmodel: b", "second document"),
        ("model: 'resnet20", "not valid YAML"),
        ("model: [resnet20", "not valid YAML"),
        ("model: a: b", "not valid YAML"),
        ("model:\tx\n\ty: 2", "not valid YAML"),
        ("- resnet20", "holds a list"),
        ("resnet20", "holds a str"),
        ("3: x", "the key 3 is not text"),
        ("? [a, b]\n: c", "not valid YAML"),
        ("epochs: " + "9" * 9000, "cannot be read"),
        ("x" * 200_000, "larger than"),
        (b"\xff\xfe\x00\x01", "not UTF-8"),
        (b"model: a\x00b", "not valid YAML"),
    ],
)
def test_a_hostile_or_broken_file_is_one_clear_error(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = write(tmp_path, text)
    started = time.perf_counter()
    message = problems({}, path)
    assert time.perf_counter() - started < 2
    assert says in message
    assert str(path) in message
    assert not (tmp_path / "owned").exists()


def test_every_truncation_of_a_file_is_read_or_refused(tmp_path: Path) -> None:
    text = load_config(flags=GOOD | {"out": "a: 'b'"}).to_yaml().encode()
    for end in range(0, len(text), 7):
        try:
            load_config(write(tmp_path, text[:end]))
        except ConfigError:
            continue


def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    assert "There is no configuration file" in problems({}, tmp_path / "none.yaml")
    assert "Cannot read" in problems({}, tmp_path)


def test_an_empty_file_says_what_is_missing(tmp_path: Path) -> None:
    assert "model is missing" in problems({}, write(tmp_path, "# nothing yet\n"))


def test_dates_and_switches_are_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path, "model: resnet20\ndata: 2026-11-22\nmacs: 0.5\nflip: off\n")
    config = load_config(path)
    assert config.data == "2026-11-22"
    assert config.flip is False


def test_every_field_says_how_it_is_typed() -> None:
    for name, field in RunConfig.model_fields.items():
        assert field.description and field.description.endswith((".", "]")), name
        assert field.examples, name
        example = field.examples[0]
        sparse, fusion = {"sparse_epochs": "5"}, {"method": "layer-fusion"}
        needed = {
            "penalty": sparse,
            "rho": sparse,
            "rho_schedule": sparse,
            "rounds": {"schedule": "iterative"},
            "search_minutes": {"allocation": "search"},
            "runtime": {"latency": "0.5"},
            "variance": {"criterion": "delivered_energy"},
            **dict.fromkeys(("search_epochs", "from_scratch", "remove_after"), fusion),
            **{key: {"criterion": "fused_conv_bn"} for key in ("norm", "constant")},
            **dict.fromkeys(("degree", "threshold", "lam", "calibrate_options"), SPARSITY),
        }
        load_config(flags=GOOD | needed.get(name, {}) | {name: example})
