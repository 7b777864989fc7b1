import os
from dataclasses import replace

import pytest
from conftest import Command

from config import DEFAULT, FAST, ORIGINAL, RECIPES, Config, flag, parse_args
from runtime.errors import UsageError

REFUSED = [  # flags; what the message says of them
    (["--epochs", "0"], "argument --epochs: must be from 1 to 10,000, not 0"),
    (["--epochs", "1.5"], "argument --epochs: invalid int value: '1.5'"),
    (["--epochs"], "argument --epochs: expected one argument"),
    (["--batch-size=-128"], "argument --batch-size: must be from 1 to 60,000, not -128"),
    (["--seed", "4294967296"], "argument --seed: must be from 0"),
    (["--limit-train-batches", "0"], "argument --limit-train-batches: must be from 1"),
    (["--holdout", "50001"], "argument --holdout: must be from 0 to 50,000, not 50001"),
    (["--lr", "nan"], "argument --lr: must be from 1e-09 to 100, not nan"),
    (["--max-lr", "0.01"], "argument --max-lr: 0.01 is below --lr, 0.015"),
    (["--max-lr", "inf"], "argument --max-lr: must be from"),
    (["--momentum", "1"], "argument --momentum: must be from 0 to 0.9999, not 1.0"),
    (["--base-momentum", "0.9", "--max-momentum", "0.8"], "argument --base-momentum: must be at most"),
    (["--dropout", "1"], "argument --dropout: must be from 0 to 0.99, not 1.0"),
    (["--momentum", "0.9", "--base-momentum", "0.8"], "argument --base-momentum: not allowed with argument"),
    (["--target-accuracy", "99", "--no-early-stopping"], "argument --target-accuracy: not allowed with"),
    (["--target-accuracy", "0.994"], "argument --target-accuracy: must be from 1 to 100, not 0.994"),
    (["--muon-lr", "0.1"], "argument --muon-lr: only allowed with argument --opt muon"),
    (["--recipe", "best", "--label-smoothing", "0.1"], "argument --label-smoothing: must be 0 with argument"),
    (["--interpolation", "bicubic"], "argument --interpolation: must be one of nearest, bilinear"),
    (["--recipe", "Original"], "argument --recipe: must be one of default, best, fast, original"),
    (["--recipe"], "argument --recipe: expected one argument"),
    (["--weights", "best.pt"], "argument --weights: only allowed with argument --test-only"),
    (["--dataset", "cifar"], "argument --dataset: must be one of mnist, fashion-mnist, kmnist, folder, not"),
    (["--dataset", "folder"], "argument --dataset: folder needs --data-path"),
    (["--resume", "runs/x", "--output-dir", "runs/y"], "argument --output-dir: not allowed with"),
    (["--test-only", "--resume", "runs/x"], "argument --resume: not allowed with argument --test-only"),
    (["--test-only", "--epochs", "3"], "argument --epochs: not allowed with argument --test-only"),
    (["--test-only", "--target-accuracy", "99"], "argument --target-accuracy: not allowed with argument"),
    (["--output-dir", ""], "argument --output-dir: must not be empty"),
    (["--dry-run", "--tensorboard"], "argument --tensorboard: not allowed with argument --dry-run"),
    (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
    (["extra"], "unrecognized arguments: extra"),
]


@pytest.mark.parametrize("argv, message", REFUSED, ids=lambda value: " ".join(value))
def test_a_mistake_on_the_command_line_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_args(argv)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("argv", [["--help"], ["--epochs", "0"], ["--recipe"]])
def test_help_and_mistakes_answer_before_torch_is_imported(argv: list[str], command: Command) -> None:
    done = command(*argv, env=os.environ | {"PYTHONPROFILEIMPORTTIME": "1"})
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert "argparse" in done.stderr and "torch" not in done.stderr
    if argv == ["--help"]:
        assert done.returncode == 0 and lines == []
        assert "learning rate at the peak of the schedule (default: 0.3)" in " ".join(done.stdout.split())
    else:
        assert done.returncode == 2 and done.stdout == "" and len(lines) == 1
        assert lines[0].startswith(f"main.py: error: argument {argv[0]}: ")


def test_a_setting_is_checked_without_a_command_line_too() -> None:
    for changes in (
        {"early_stopping": 0},
        {"epochs": True},
        {"epochs": 0},
        {"epochs": "3"},
        {"dropout": "0.1"},
        {"early_stopping": 1},
        {"seed": 1.0},
    ):
        with pytest.raises(UsageError, match=f"argument {flag(next(iter(changes)))}: must be "):
            replace(ORIGINAL, **changes)
    assert replace(ORIGINAL, rotation=10).rotation == 10
    with pytest.raises(AttributeError):
        ORIGINAL.epochs = 3  # type: ignore[misc]


def test_flags_override_the_recipe() -> None:
    config, options = parse_args([])
    assert config == DEFAULT and options.device == "auto" and not options.given
    config, options = parse_args(["--recipe", "fast", "--early-stopping", "--epochs=3", "--device", "cpu"])
    assert config == replace(FAST, early_stopping=True, epochs=3)
    assert options.given == {"recipe", "early_stopping", "epochs", "device"}
    for recipe in RECIPES:  # a target that did nothing would be a silent mistake
        config, _ = parse_args(["--recipe", recipe, "--target-accuracy", "99.5"])
        assert config.early_stopping and config.target_accuracy == 99.5
    assert parse_args(["--no-early-stopping"])[0] == replace(DEFAULT, early_stopping=False)


def test_a_dry_run_is_short_but_what_is_given_holds() -> None:
    config, _ = parse_args(["--dry-run"])
    assert (config.epochs, config.limit_train_batches) == (1, 3)
    config, _ = parse_args(["--dry-run", "--epochs", "5"])
    assert (config.epochs, config.limit_train_batches) == (5, 3)


def test_the_original_recipe_is_the_published_one() -> None:
    """Against what the notebook passes to SGD and OneCycleLR, of which some replaces other."""
    assert Config() == ORIGINAL and {recipe.recipe for recipe in RECIPES.values()} == set(RECIPES)
    assert (ORIGINAL.epochs, ORIGINAL.batch_size, ORIGINAL.weight_decay) == (19, 128, 1e-4)
    assert (ORIGINAL.max_lr, ORIGINAL.lr) == (0.015, 0.015 / 10)  # div_factor
    assert (ORIGINAL.final_div_factor, ORIGINAL.pct_start) == (100, 0.2)
    assert (ORIGINAL.momentum, ORIGINAL.base_momentum, ORIGINAL.max_momentum) == (None, 0.85, 0.95)
    assert (ORIGINAL.rotation, ORIGINAL.interpolation, ORIGINAL.dropout) == (7, "nearest", 0.05)
    assert (ORIGINAL.schedule_interval, ORIGINAL.target_accuracy, ORIGINAL.seed) == ("epoch", 99.4, 1)
    assert ORIGINAL.translation == ORIGINAL.scale == ORIGINAL.shear == 0
    assert ORIGINAL.label_smoothing == ORIGINAL.model_ema_decay == 0


def test_the_default_differs_from_the_original_in_what_the_readme_names() -> None:
    different = {name for name, value in vars(DEFAULT).items() if value != getattr(ORIGINAL, name)}
    assert different == {"recipe", "schedule_interval", "lr", "max_lr", "interpolation", "model_ema_decay"}
    assert DEFAULT.lr == 0.015  # which the notebook asks SGD to start at
