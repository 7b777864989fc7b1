"""Every setting once: its default, range and help; the recipes; and the command line made from them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from datasets import NAMES
from runtime.arguments import Parser
from runtime.errors import UsageError


def setting(default: Any, help: str, low: float = 0, high: float = 0, choices: Sequence[str] = ()) -> Any:
    """Make a dataclass field with its help and, for a number, its range, both ends included."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Config:
    """The settings that determine a run's result.

    The defaults here are the published notebook's; those of the command line are the recipe ``DEFAULT``.
    A value out of its range raises ``UsageError``.
    """

    recipe: str = setting(
        "original",
        "named set of the settings below; other flags override it",
        choices=("default", "best", "fast", "original"),
    )
    dataset: str = setting("mnist", "data set", choices=NAMES)
    epochs: int = setting(19, "passes over the training set", 1, 10_000)
    batch_size: int = setting(128, "images in a training step", 1, 4096)  # which takes 2.5 GB of memory
    opt: str = setting("sgd", "optimizer; muon: for convolutions, sgd for the rest", choices=("sgd", "muon"))
    # The notebook passes lr=0.015 to SGD and OneCycleLR, which begins at lr / div_factor.
    lr: float = setting(0.015, "learning rate at the peak of the schedule", 1e-9, 100)
    div_factor: float = setting(10.0, "learning rate at the peak, divided by that at the start", 1, 1e9)
    weight_decay: float = setting(1e-4, "L2 penalty", 0, 1)
    # The notebook moves the schedule after each epoch only, by the steps of an epoch at once.
    schedule_interval: str = setting("epoch", "when the learning rate changes", choices=("batch", "epoch"))
    rotation: float = setting(7.0, "largest rotation of an image to either side, in degrees", 0, 180)
    interpolation: str = setting("nearest", "of augmented images", choices=("nearest", "bilinear"))
    translation: float = setting(0.0, "largest shift of an image in each direction, in pixels", 0, 28)
    scale: float = setting(0.0, "largest relative change of an image's width, and of its height", 0, 0.9)
    train_crop_size: int = setting(28, "centre crop in the first half of the epochs, in pixels", 8, 28)
    dropout: float = setting(0.05, "probability that an activation is dropped", 0, 0.99)
    label_smoothing: float = setting(0.0, "share of each label that is distributed over all classes", 0, 1)
    model_ema_decay: float = setting(
        0.0, "decay of the running average of the weights, which is evaluated; 0: no average", 0, 0.999999
    )
    target_accuracy: float = setting(
        99.4, "stop after the first epoch that reaches this accuracy, in percent; 0: never", 0, 100
    )
    seed: int = setting(1, "determines all random numbers of the run", 0, 2**32 - 1)
    holdout: int = setting(0, "training images to hold out and evaluate, not the test set", 0, 50_000)
    limit_train_batches: int = setting(0, "batches to train on in each epoch; 0: all", 0, 10**6)
    use_deterministic_algorithms: bool = setting(False, "repeatable results on CUDA; slower")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, low, high = getattr(self, entry.name), entry.metadata["low"], entry.metadata["high"]
            if high and not low <= value <= high:  # true for NaN
                problem = f"must be from {low:,} to {high:,}, not {value!r}"
                raise UsageError(f"argument {flag(entry.name)}: {problem}")


def flag(name: str) -> str:
    """Return the command-line flag of the setting ``name``."""
    return "--" + name.replace("_", "-")


ORIGINAL = Config()

# Four differences from the original (docs/results.md has their effects): the schedule moves with each batch,
# as PyTorch documents it; its peak is 20 times higher; rotation is bilinear; the running average is tested.
DEFAULT = replace(
    ORIGINAL,
    recipe="default",
    schedule_interval="batch",
    lr=0.3,
    div_factor=20.0,
    interpolation="bilinear",
    model_ema_decay=0.998,
)

# A short schedule; benchmarks/results/tries.md says how it was chosen. Nearly all of a digit is in the
# central 20×20 pixels. Label smoothing makes its confidences too low.
FAST = replace(
    DEFAULT,
    recipe="fast",
    epochs=6,
    opt="muon",
    lr=0.1,
    div_factor=10.0,
    rotation=10.0,
    train_crop_size=20,
    dropout=0.0,
    label_smoothing=0.05,
    target_accuracy=0.0,
)

# The most augmentation, and the longest schedule (benchmarks/results/tries.md).
BEST = replace(
    DEFAULT,
    recipe="best",
    epochs=30,
    batch_size=64,
    opt="muon",
    lr=0.1,
    div_factor=10.0,
    rotation=15.0,
    translation=1.0,
    scale=0.1,
    dropout=0.0,
    label_smoothing=0.05,
    target_accuracy=0.0,
)

RECIPES = {config.recipe: config for config in (DEFAULT, BEST, FAST, ORIGINAL)}

WEIGHTS_HELP = "file of weights, or folder of a run (default: the included weights/best.pt)"
DATA_PATH_HELP = "folder of the data set, if it has moved since the training; MNIST needs none"


@dataclass(frozen=True)
class Options:
    """The options that are not settings of a run: what to do, where, and with which files."""

    output_dir: str = setting("", "new or empty folder for the results (default: a new one under runs/)")
    resume: str = setting("", "folder of a stopped run; it continues with the same settings")
    dry_run: bool = setting(False, "check that everything works: one epoch of three batches, no results kept")
    test_only: bool = setting(False, "only evaluate trained weights on the test set")
    weights: str = setting("", f"with --test-only: {WEIGHTS_HELP}")
    data_path: str = setting("", "folder of the data set, or for its download (default: data)")
    device: str = setting("auto", "cpu, cuda, cuda:N or mps; auto: the first available of cuda, mps, cpu")
    tensorboard: bool = setting(False, "also write the curves for TensorBoard")
    given: frozenset[str] = frozenset()  # names of the settings and options that were given as flags


def add_flags(group: argparse._ActionsContainer, settings: Config | Options, names: Sequence[str]) -> None:
    """Add a flag for each of ``names`` in ``settings``; their values are the defaults that the help shows."""
    for name in names:
        rule, default = settings.__dataclass_fields__[name].metadata, getattr(settings, name)
        help = rule["help"] + ("" if default is False or default == "" else f" (default: {default})")
        kind, choices = type(default), rule["choices"] or None
        if kind is bool:
            group.add_argument(flag(name), action="store_true", help=help)
        else:
            metavar = None if choices else {int: "N", float: "X", str: "NAME"}[kind]
            group.add_argument(flag(name), type=kind, choices=choices, metavar=metavar, help=help)


def parse_args(argv: Sequence[str] | None = None) -> tuple[Config, Options]:
    """Read the command line of ``main.py``. Settings that it doesn't give come from the recipe."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="?")
    recipe = RECIPES.get(first.parse_known_args(argv)[0].recipe, DEFAULT)
    parser = Parser("main.py", "Train the network of 9,798 parameters on MNIST, or on another data set.")
    parser.argument_default = argparse.SUPPRESS
    group = parser.add_argument_group("the run")
    exclusive = group.add_mutually_exclusive_group()
    add_flags(exclusive, Options(), ["output_dir", "resume", "dry_run", "test_only"])
    add_flags(group, Options(), ["weights", "data_path", "device", "tensorboard"])
    group = parser.add_argument_group(f"settings (defaults: --recipe {recipe.recipe})")
    add_flags(group, recipe, [*vars(recipe)])
    given = vars(parser.parse_args(argv))
    names = frozenset(given)
    for name in sorted(names - {"test_only", "weights", "data_path", "device"}):
        if "test_only" in names:
            parser.error(f"argument {flag(name)}: not allowed with argument --test-only")
    if "weights" in names and "test_only" not in names:
        parser.error("argument --weights: only allowed with argument --test-only")
    if given.get("dataset") == "folder" and not names & {"data_path", "resume"}:
        parser.error("argument --dataset: folder needs --data-path, the folder of the pictures")
    options = {name: given.pop(name) for name in vars(Options()) if name in given}
    if "dry_run" in names:
        given |= {"epochs": 1, "limit_train_batches": 3}
    return replace(recipe, **given), Options(**options, given=names)
