import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT

from config import DEFAULT, FAST, ORIGINAL, RECIPES, Config, parse_args
from runtime.errors import UsageError

REFUSED = [  # flags; the start of the message
    ("--epochs 0", "argument --epochs: must be from 1 to 10,000, not 0"),
    ("--epochs 1.5", "argument --epochs: invalid int value: '1.5'"),
    ("--epochs", "argument --epochs: expected one argument"),
    ("--batch-size=-128", "argument --batch-size: must be from 1 to 4,096, not -128"),
    ("--batch-size 4097", "argument --batch-size: must be from 1 to 4,096, not 4097"),
    ("--batch-size 60000", "argument --batch-size: must be from 1 to 4,096, not 60000"),
    ("--seed 4294967296", "argument --seed: must be from 0"),
    ("--limit-train-batches -1", "argument --limit-train-batches: must be from 0 to 1,000,000, not -1"),
    ("--holdout 50001", "argument --holdout: must be from 0 to 50,000, not 50001"),
    ("--lr nan", "argument --lr: must be from 1e-09 to 100, not nan"),
    ("--lr inf", "argument --lr: must be from"),
    ("--dropout 1", "argument --dropout: must be from 0 to 0.99, not 1.0"),
    ("--target-accuracy 101", "argument --target-accuracy: must be from 0 to 100, not 101.0"),
    ("--interpolation bicubic", "argument --interpolation: "),
    ("--recipe Original", "argument --recipe: "),
    ("--recipe", "argument --recipe: expected one argument"),
    ("--weights best.pt", "argument --weights: only allowed with argument --test-only"),
    ("--dataset cifar", "argument --dataset: "),
    ("--dataset folder", "argument --dataset: folder needs --data-path"),
    ("--resume runs/x --output-dir runs/y", "argument --output-dir: not allowed with"),
    ("--dry-run --output-dir runs/y", "argument --output-dir: not allowed with argument --dry-run"),
    ("--dry-run --resume runs/y", "argument --resume: not allowed with argument --dry-run"),
    ("--test-only --resume runs/x", "argument --resume: not allowed with argument --test-only"),
    ("--test-only --epochs 3", "argument --epochs: not allowed with argument --test-only"),
    ("--test-only --dataset kmnist", "argument --dataset: not allowed with argument --test-only"),
    ("--output-dir=", "argument --output-dir: must not be empty"),
    ("--epoch 3", "unrecognized arguments: --epoch 3"),
    ("extra", "unrecognized arguments: extra"),
]


@pytest.mark.parametrize("flags, message", REFUSED)
def test_a_mistake_on_the_command_line_is_named(flags: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_args(flags.split())
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_has_every_flag_and_the_recipes_defaults(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_args(["--recipe", recipe, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert f"learning rate at the peak of the schedule (default: {RECIPES[recipe].lr})" in text
    assert all(f" --{name.replace('_', '-')} " in text for name in vars(DEFAULT))


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell redirects")
@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["", ">&-", ">/dev/null"])
def test_a_wrong_flag_is_a_usage_error_whatever_becomes_of_the_output(redirection: str) -> None:
    command = f'"{sys.executable}" main.py --bogus {redirection}'
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "main.py: error: unrecognized arguments: --bogus\n"


def test_a_setting_is_checked_without_a_command_line_too() -> None:
    with pytest.raises(UsageError, match="argument --epochs: must be from 1 to 10,000, not 0"):
        replace(ORIGINAL, epochs=0)
    with pytest.raises(AttributeError):
        ORIGINAL.epochs = 3  # type: ignore[misc]


def test_flags_override_the_recipe() -> None:
    config, options = parse_args([])
    assert config == DEFAULT and options.device == "auto" and not options.given
    for flags in ("--recipe fast --epochs=3 --device cpu", "--device cpu --epochs 3 --recipe=fast"):
        config, options = parse_args(flags.split())
        assert config == replace(FAST, epochs=3)
        assert options.given == {"recipe", "epochs", "device"} and options.device == "cpu"
    assert parse_args(["--target-accuracy", "0"])[0] == replace(DEFAULT, target_accuracy=0)


@pytest.mark.parametrize("flags", ["", "--epochs 10000", "--limit-train-batches 9", "--recipe best"])
def test_a_dry_run_is_one_epoch_of_three_batches(flags: str) -> None:
    config, options = parse_args(["--dry-run", *flags.split()])
    assert (config.epochs, config.limit_train_batches, options.dry_run) == (1, 3, True)


def test_the_original_recipe_is_the_published_one() -> None:
    """Against what the notebook passes to SGD and OneCycleLR, some of which replaces other values."""
    assert Config() == ORIGINAL and {recipe.recipe for recipe in RECIPES.values()} == set(RECIPES)
    assert (ORIGINAL.epochs, ORIGINAL.batch_size, ORIGINAL.weight_decay) == (19, 128, 1e-4)
    assert (ORIGINAL.lr, ORIGINAL.div_factor, ORIGINAL.opt) == (0.015, 10, "sgd")
    assert (ORIGINAL.rotation, ORIGINAL.interpolation, ORIGINAL.dropout) == (7, "nearest", 0.05)
    assert (ORIGINAL.schedule_interval, ORIGINAL.target_accuracy, ORIGINAL.seed) == ("epoch", 99.4, 1)
    assert ORIGINAL.translation == ORIGINAL.scale == 0 and ORIGINAL.train_crop_size == 28
    assert ORIGINAL.label_smoothing == ORIGINAL.model_ema_decay == 0


def test_the_default_differs_from_the_original_in_what_the_readme_names() -> None:
    different = {name for name, value in vars(DEFAULT).items() if value != getattr(ORIGINAL, name)}
    assert different == {
        "recipe",
        "schedule_interval",
        "lr",
        "div_factor",
        "interpolation",
        "model_ema_decay",
    }
    assert DEFAULT.lr / DEFAULT.div_factor == 0.015  # which the notebook asks SGD to start at
