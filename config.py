"""Every setting once: its default, range and help; the recipes; and the command line made from them.

This module imports nothing slow, so ``--help`` and wrong arguments are answered at once.
"""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_origin, get_type_hints

from runtime.arguments import Parser
from runtime.errors import UsageError, UserError

# Data sets that torchvision downloads: their name for --dataset, and torchvision's class, like its MNIST.
TORCHVISION = {"fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}


def setting(default: Any, help: str, low: float = 0, high: float = 0, choices: Sequence[str] = ()) -> Any:
    """Make a dataclass field with its help and, for a number, its range, both ends included."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Config:
    """The settings that determine a run's result.

    The defaults here are the published notebook's; those of the command line are the recipe ``DEFAULT``.
    A value of a wrong type or out of its range raises ``UsageError``.
    """

    recipe: str = setting(
        "original",
        "named set of the settings below; other flags override it",
        choices=("default", "best", "fast", "original", "teacher"),
    )
    dataset: str = setting("mnist", "data set", choices=("mnist", *TORCHVISION, "folder"))
    epochs: int = setting(19, "passes over the training set", 1, 10_000)
    batch_size: int = setting(128, "images in a training step", 1, 60_000)
    opt: str = setting("sgd", "optimizer; muon: for convolutions, sgd for the rest", choices=("sgd", "muon"))
    # The notebook passes lr=0.015 and momentum=0.9 to SGD. OneCycleLR replaces both before the first step, by
    # max_lr / div_factor = 0.015 / 10 and by a cycled momentum. These are the values that take effect.
    lr: float = setting(0.0015, "learning rate at the start of the schedule", 1e-9, 100)
    max_lr: float = setting(0.015, "learning rate at the peak of the schedule", 1e-9, 100)
    muon_lr: float = setting(0.1, "learning rate of Muon at the peak of the schedule", 1e-9, 100)
    final_div_factor: float = setting(100.0, "learning rate at the start, divided by that at the end", 1, 1e9)
    pct_start: float = setting(0.2, "share of the schedule before the peak", 0, 1)
    momentum: float | None = setting(
        None, "constant momentum (default: cycled from max to base momentum and back)", 0, 0.9999
    )
    base_momentum: float = setting(0.85, "momentum at the peak of the learning rate", 0, 0.9999)
    max_momentum: float = setting(0.95, "momentum at the start and the end", 0, 0.9999)
    weight_decay: float = setting(1e-4, "L2 penalty", 0, 1)
    # The notebook moves the schedule after each epoch only, by the steps of an epoch at once.
    schedule_interval: str = setting(
        "epoch", "how often the learning rate changes", choices=("batch", "epoch")
    )
    rotation: float = setting(7.0, "largest rotation of an image to either side, in degrees", 0, 180)
    interpolation: str = setting(
        "nearest", "how the pixels of a distorted image are computed", choices=("nearest", "bilinear")
    )
    translation: float = setting(0.0, "largest shift of an image in each direction, in pixels", 0, 28)
    scale: float = setting(0.0, "largest relative change of an image's width, and of its height", 0, 0.9)
    shear: float = setting(0.0, "largest shear of an image to either side, relative to its height", 0, 2)
    train_crop_size: int = setting(28, "centre crop in the first half of the epochs, in pixels", 8, 28)
    width: float = setting(1.0, "multiplies the channels of the hidden layers, and rounds them", 0.1, 8)
    teacher: str = setting(
        "none", "best.pt of a network whose probabilities replace the labels in training; none: the labels"
    )
    dropout: float = setting(0.05, "probability that an activation is dropped", 0, 0.99)
    label_smoothing: float = setting(0.0, "share of each target that is distributed over all classes", 0, 1)
    model_ema_decay: float = setting(
        0.0, "decay of the running average of the weights, which is evaluated; 0: no average", 0, 0.999999
    )
    target_accuracy: float = setting(99.4, "accuracy in percent to stop at; turns early stopping on", 1, 100)
    early_stopping: bool = setting(
        True, "stop after the first epoch that reaches the target; by default only for MNIST"
    )
    seed: int = setting(1, "determines all random numbers of the run", 0, 2**32 - 1)
    holdout: int = setting(
        0, "number of training images to hold out, for evaluation in place of the test set", 0, 50_000
    )
    limit_train_batches: int | None = setting(
        None, "number of batches to train on in each epoch (default: all)", 1, 10**6
    )
    use_deterministic_algorithms: bool = setting(
        False, "use only deterministic algorithms on CUDA, which takes longer"
    )

    def __post_init__(self) -> None:
        for entry in fields(self):
            check(entry.name, getattr(self, entry.name))
        if self.lr > self.max_lr:
            raise UsageError(
                f"argument --max-lr: {self.max_lr} is below --lr, {self.lr}: raise it, or lower --lr"
            )
        if self.base_momentum > self.max_momentum:
            raise UsageError(f"argument --base-momentum: must be at most --max-momentum, {self.max_momentum}")
        if self.teacher != "none" and self.label_smoothing:
            raise UsageError("argument --label-smoothing: must be 0 with argument --teacher")


def flag(name: str) -> str:
    """Return the command-line flag of the setting ``name``."""
    return "--" + name.replace("_", "-")


def value_type(settings: type, name: str) -> type:
    """Return the type of a dataclass's field ``name``, without ``| None`` and type parameters."""
    hint = get_type_hints(settings)[name]
    if type(None) in get_args(hint):
        hint = get_args(hint)[0]
    kind: type = get_origin(hint) or hint
    return kind


def check(name: str, value: object) -> None:
    """Raise ``UsageError`` if ``value`` is not allowed for the setting ``name``."""
    entry = Config.__dataclass_fields__[name]
    kind, low, high = value_type(Config, name), entry.metadata["low"], entry.metadata["high"]
    if value is None and entry.default is None:
        return
    if entry.metadata["choices"]:
        valid, expected = value in entry.metadata["choices"], f"one of {', '.join(entry.metadata['choices'])}"
    elif not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (
        kind is bool
    ):
        valid, expected = False, f"of type {kind.__name__}"
    elif isinstance(value, (int, float)) and kind is not bool:
        valid, expected = low <= value <= high, f"from {low:,} to {high:,}"  # false for NaN
    else:
        return
    if not valid:
        raise UsageError(f"argument {flag(name)}: must be {expected}, not {value!r}")


ORIGINAL = Config()

# Four differences from the original (docs/results.md has their effects): the schedule moves with each batch,
# as PyTorch documents it; its peak is 20 times higher; rotation is bilinear; the running average is tested.
DEFAULT = replace(
    ORIGINAL,
    recipe="default",
    schedule_interval="batch",
    lr=0.015,
    max_lr=0.3,
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
    lr=0.01,
    max_lr=0.1,
    rotation=10.0,
    train_crop_size=20,
    dropout=0.0,
    label_smoothing=0.05,
    early_stopping=False,
)

# The most distortion, and a teacher's probabilities instead of labels (benchmarks/results/tries.md).
BEST = replace(
    DEFAULT,
    recipe="best",
    epochs=20,
    batch_size=64,
    opt="muon",
    lr=0.01,
    max_lr=0.1,
    rotation=15.0,
    translation=1.0,
    scale=0.1,
    teacher="weights/teacher.pt",
    dropout=0.0,
    early_stopping=False,
)

# How the teacher was trained. Held-out images chose its epoch, so it knows nothing of the test set.
TEACHER = replace(
    BEST,
    recipe="teacher",
    epochs=12,
    batch_size=128,
    train_crop_size=20,
    width=3.0,
    teacher="none",
    dropout=0.05,
    label_smoothing=0.05,
    holdout=10_000,
)

RECIPES = {config.recipe: config for config in (DEFAULT, BEST, FAST, ORIGINAL, TEACHER)}

WEIGHTS_HELP = "file of weights, or folder of a run (default: the newest run's, or else the included ones)"
DATA_PATH_HELP = "folder of the data set, if it has moved since the training; MNIST needs none"


@dataclass(frozen=True)
class Options:
    """The options that are not settings of a run: what to do, where, and with which files."""

    output_dir: str | None = setting(
        None, "new or empty folder for the results (default: a new one under runs/)"
    )
    resume: str | None = setting(None, "folder of a stopped run; it continues with the same settings")
    data_path: str = setting(
        "data", "folder of the data set, or for its download; MNIST is included and needs none"
    )
    device: str = setting("auto", "cpu, cuda, cuda:N or mps; auto: the first available of cuda, mps, cpu")
    test_only: bool = setting(False, "only evaluate trained weights on the test set")
    weights: str | None = setting(None, f"with --test-only: {WEIGHTS_HELP}")
    tensorboard: bool = setting(False, "also write the curves for TensorBoard")
    dry_run: bool = setting(False, "check that everything works: one epoch of three batches, no results kept")
    given: frozenset[str] = frozenset()  # names of the settings and options that were given as flags

    @property
    def given_data_path(self) -> str | None:
        return self.data_path if "data_path" in self.given else None


def add_flags(group: argparse._ArgumentGroup, settings: Config | Options) -> None:
    """Add a flag for each of ``settings``; their values are the defaults that the help shows."""
    for entry in fields(settings):
        if not entry.metadata:
            continue
        kind, default = value_type(type(settings), entry.name), getattr(settings, entry.name)
        help = entry.metadata["help"] + ("" if default is None else f" (default: {default})")
        if kind is bool:
            action = argparse.BooleanOptionalAction if isinstance(settings, Config) else "store_true"
            group.add_argument(flag(entry.name), action=action, help=help)
        else:
            choices = entry.metadata["choices"]
            metavar = "{" + ",".join(choices) + "}" if choices else {int: "N", float: "X", str: "NAME"}[kind]
            group.add_argument(flag(entry.name), type=kind, metavar=metavar, help=help)


def parse_args(argv: Sequence[str] | None = None) -> tuple[Config, Options]:
    """Read the command line of ``main.py``. Settings that it doesn't give come from the recipe."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="?")
    recipe = RECIPES.get(first.parse_known_args(argv)[0].recipe, DEFAULT)
    parser = Parser("main.py", "Train the network of 9,798 parameters on MNIST, or on another data set.")
    parser.argument_default = argparse.SUPPRESS
    add_flags(parser.add_argument_group("the run"), Options())
    add_flags(parser.add_argument_group(f"settings (defaults: --recipe {recipe.recipe})"), recipe)
    given = vars(parser.parse_args(argv))
    exclusive = [("output_dir", "dry_run"), ("resume", "dry_run"), ("tensorboard", "dry_run")]
    exclusive += [("output_dir", "resume"), ("base_momentum", "momentum"), ("max_momentum", "momentum")]
    allowed = {"test_only", "weights", "dataset", "data_path", "device"}
    exclusive += [(name, "test_only") for name in sorted(given.keys() - allowed)]
    for name, other in exclusive:
        if name in given and other in given:
            parser.error(f"argument {flag(name)}: not allowed with argument {flag(other)}")
    if "target_accuracy" in given and given.get("early_stopping") is False:
        parser.error("argument --target-accuracy: not allowed with argument --no-early-stopping")
    if "muon_lr" in given and given.get("opt", recipe.opt) != "muon":
        parser.error("argument --muon-lr: only allowed with argument --opt muon")
    if "weights" in given and "test_only" not in given:
        parser.error("argument --weights: only allowed with argument --test-only")
    if "tensorboard" in given and importlib.util.find_spec("tensorboard") is None:
        parser.error("argument --tensorboard: pip install tensorboard")
    if given.get("dataset") == "folder" and not given.keys() & {"data_path", "resume", "test_only"}:
        parser.error("argument --dataset: folder needs --data-path, the folder of the pictures")
    if given.get("teacher", "none") != "none":  # relative to the current folder, a recipe's to the project
        given["teacher"] = os.path.abspath(given["teacher"])
    options = {entry.name: given.pop(entry.name) for entry in fields(Options) if entry.name in given}
    implied = {"epochs": 1, "limit_train_batches": 3} if "dry_run" in options else {}
    implied |= {"early_stopping": True} if "target_accuracy" in given else {}
    return replace(recipe, **implied | given), Options(**options, given=frozenset(options | given))


def choose_data_path(given: str | None, dataset: str, default: str, new: bool = False) -> str:
    """Return the folder of the data set ``dataset``: the ``given`` --data-path, or else ``default``.

    The default must exist, unless the run is ``new``: then the data may be downloaded to it.
    """
    if dataset == "mnist":
        if given is not None:
            solution = "; for other data, add --dataset" if new else ""
            raise UsageError(f"argument --data-path: MNIST needs none, so leave it out{solution}")
        return default
    if given is None and not new and not os.path.exists(default):
        raise UserError(f"the data set is no longer in {default}: add --data-path")
    return os.path.abspath(default if given is None else given)
