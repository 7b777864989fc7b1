"""Every setting once: its default, range and help; the recipes; and the command line made from them.

Imports nothing heavy, so that ``--help`` and mistakes answer at once.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin, get_type_hints

from errors import UsageError

if TYPE_CHECKING:
    import torch


# Data sets by their names here, and torchvision's classes for them, which are made like its MNIST.
TORCHVISION = {"fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}


def setting(default: Any, text: str, low: float = 0, high: float = 0, choices: Sequence[str] = ()) -> Any:
    """Make a dataclass field with its help, and for a number its range, both ends included."""
    return field(default=default, metadata={"help": text, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Config:
    """What determines a run's result.

    The defaults here are the published notebook's, number by number; those of the command line are DEFAULT's.

    Raises ``UsageError`` where a value is not of its type or out of its range.
    """

    recipe: str = setting(
        "original",
        "named set of the settings below; a flag beside it overrides it",
        choices=("default", "best", "fast", "original"),
    )
    dataset: str = setting("mnist", "what to learn", choices=("mnist", *TORCHVISION, "folder"))
    epochs: int = setting(19, "passes over the training set", 1, 10_000)
    batch_size: int = setting(128, "images in a training step", 1, 60_000)
    opt: str = setting("sgd", "optimizer; muon: Muon for the convolutions' weights", choices=("sgd", "muon"))
    # The notebook gives SGD lr=0.015 and momentum=0.9. OneCycleLR replaces both before the first step, by
    # max_lr / div_factor = 0.015 / 10 and by its cycle of the momentum; these are the values that act.
    lr: float = setting(0.0015, "learning rate at the start of the schedule", 1e-9, 100)
    max_lr: float = setting(0.015, "learning rate at the peak of the schedule", 1e-9, 100)
    muon_lr: float = setting(0.1, "with --opt muon, its learning rate at the peak of the schedule", 1e-9, 100)
    final_div_factor: float = setting(100.0, "learning rate at the start over that at the end", 1, 1e9)
    pct_start: float = setting(0.2, "share of the schedule before the peak", 0, 1)
    momentum: float | None = setting(
        None, "constant momentum (default: moves from max to base momentum and back)", 0, 0.9999
    )
    base_momentum: float = setting(0.85, "momentum at the peak of the learning rate", 0, 0.9999)
    max_momentum: float = setting(0.95, "momentum at the start and the end", 0, 0.9999)
    weight_decay: float = setting(1e-4, "L2 penalty", 0, 1)
    # The notebook moves the schedule after each epoch, by an epoch's steps at once.
    schedule_interval: str = setting("epoch", "when the learning rate moves", choices=("batch", "epoch"))
    rotation: float = setting(7.0, "largest angle of an image in degrees, either way", 0, 180)
    interpolation: str = setting("nearest", "how it is sampled", choices=("nearest", "bilinear"))
    translation: float = setting(0.0, "largest shift of an image in pixels, each way", 0, 28)
    scale: float = setting(0.0, "largest change of its width and height, each by itself, as a share", 0, 0.9)
    shear: float = setting(0.0, "largest shear to either side, as a share of the height", 0, 2)
    dropout: float = setting(0.05, "share of the activations that are dropped", 0, 0.99)
    label_smoothing: float = setting(0.0, "share of each target that is spread over all classes", 0, 1)
    model_ema_decay: float = setting(
        0.0, "share of itself that a running average of the weights keeps at each step; 0: none", 0, 0.999999
    )
    target_accuracy: float = setting(99.4, "accuracy in percent at which a run stops early", 0, 100)
    early_stopping: bool = setting(
        True, "stop at the first epoch that reaches the target; without this flag, on MNIST alone"
    )
    seed: int = setting(1, "determines the whole run", 0, 2**32 - 1)
    holdout: int = setting(
        0, "hold so many training images out and evaluate on them, not on the test set", 0, 50_000
    )
    limit_train_batches: int | None = setting(
        None, "train on the first so many batches of each epoch (default: all)", 1, 10**6
    )
    use_deterministic_algorithms: bool = setting(
        False, "make the seed determine a run on CUDA too, at some cost in time"
    )

    def __post_init__(self) -> None:
        for entry in fields(self):
            check(entry.name, getattr(self, entry.name))
        if self.lr > self.max_lr:
            raise UsageError(f"argument --max-lr: must be at least --lr, {self.lr}, not {self.max_lr}")
        if self.base_momentum > self.max_momentum:
            raise UsageError(f"argument --base-momentum: must be at most --max-momentum, {self.max_momentum}")


def flag(name: str) -> str:
    """Return the flag of the setting ``name``."""
    return "--" + name.replace("_", "-")


def value_type(settings: type, name: str) -> type:
    """Return the type of the dataclass's field ``name``; of one that may be None, the other type."""
    hint = get_type_hints(settings)[name]
    if get_origin(hint) is UnionType:
        hint = get_args(hint)[0]
    kind: type = get_origin(hint) or hint
    return kind


def check(name: str, value: object) -> None:
    """Raise ``UsageError`` where ``value`` can't be that of the setting ``name``."""
    entry = Config.__dataclass_fields__[name]
    kind, low, high = value_type(Config, name), entry.metadata["low"], entry.metadata["high"]
    if (value is None and entry.default is None) or (kind is bool and isinstance(value, bool)):
        return
    if kind is str:
        good, wanted = value in entry.metadata["choices"], f"one of {', '.join(entry.metadata['choices'])}"
    elif isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        good, wanted = False, f"of type {kind.__name__}"
    else:
        good, wanted = low <= value <= high, f"from {low:,} to {high:,}"  # NaN is not in between
    if not good:
        raise UsageError(f"argument {flag(name)}: must be {wanted}, not {value!r}")


ORIGINAL = Config()

# The original, number by number, but for four things: the schedule moves with each batch, as PyTorch
# documents it; it peaks twenty times higher; rotated images are sampled between pixels; and what is tested is
# the running average of the weights. docs/results.md says what was measured of them.
DEFAULT = replace(
    ORIGINAL,
    recipe="default",
    schedule_interval="batch",
    lr=0.015,
    max_lr=0.3,
    interpolation="bilinear",
    model_ema_decay=0.998,
)

# Of the short schedules tried, the best on held-out images for its time (benchmarks/results/tries.md). Label
# smoothing makes its probabilities too low.
FAST = replace(
    DEFAULT,
    recipe="fast",
    epochs=6,
    batch_size=64,
    lr=0.02,
    max_lr=0.2,
    rotation=10.0,
    dropout=0.0,
    label_smoothing=0.05,
    early_stopping=False,
)

# The most distortion, and label smoothing, which on held-out images is what counts among its settings
# (benchmarks/results/tries.md). On the test set its mean is not distinguishable from the default's.
BEST = replace(
    DEFAULT,
    recipe="best",
    epochs=20,
    batch_size=64,
    lr=0.01,
    max_lr=0.2,
    rotation=15.0,
    translation=1.0,
    scale=0.1,
    dropout=0.0,
    label_smoothing=0.05,
    early_stopping=False,
)

RECIPES = {config.recipe: config for config in (DEFAULT, BEST, FAST, ORIGINAL)}


@dataclass(frozen=True)
class Options:
    """How a run is carried out, which may change when it is resumed."""

    output_dir: str | None = setting(None, "new or empty folder for the run (default: a new one under runs/)")
    resume: str | None = setting(None, "folder of a run that was stopped, to go on with its settings")
    data_path: str = setting(
        "data", "where the data set lies, or is downloaded to; MNIST came with the project"
    )
    device: str = setting("auto", "cpu, cuda, cuda:N or mps; auto: the first of cuda, mps, cpu")
    test_only: bool = setting(False, "evaluate trained weights on the test set, and train nothing")
    weights: str | None = setting(
        None, "with --test-only: file of the weights (default: the newest run's, else the project's own)"
    )
    tensorboard: bool = setting(False, "write the curves for TensorBoard as well")
    dry_run: bool = setting(False, "one epoch of three batches, nothing kept: whether everything works")
    given: frozenset[str] = frozenset()  # the names of all the settings that the command line sets


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ``UsageError``; it takes no abbreviations of flags."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(program, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def add_flags(group: argparse._ArgumentGroup, settings: Config | Options) -> None:
    """Add a flag for each of ``settings``, which are the defaults that its help shows."""
    for entry in fields(settings):
        if not entry.metadata:
            continue
        kind, default = value_type(type(settings), entry.name), getattr(settings, entry.name)
        text = entry.metadata["help"] + ("" if default is None else f" (default: {default})")
        if kind is bool:
            action = argparse.BooleanOptionalAction if isinstance(settings, Config) else "store_true"
            group.add_argument(flag(entry.name), action=action, help=text)
        else:
            choices = entry.metadata["choices"]
            metavar = "{" + ",".join(choices) + "}" if choices else {int: "N", float: "X", str: "NAME"}[kind]
            group.add_argument(flag(entry.name), type=kind, metavar=metavar, help=text)


def parse_args(argv: Sequence[str] | None = None) -> tuple[Config, Options]:
    """Read the command line of ``main.py``; what it leaves out comes from the recipe.

    Raises ``UsageError`` where it can't be used.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="?")
    recipe = RECIPES.get(first.parse_known_args(argv)[0].recipe, DEFAULT)
    parser = Parser("main.py", "Train the network of 9,798 parameters on MNIST, or on another data set.")
    parser.argument_default = argparse.SUPPRESS
    add_flags(parser.add_argument_group("the run"), Options())
    add_flags(parser.add_argument_group(f"settings (defaults: --recipe {recipe.recipe})"), recipe)
    given = vars(parser.parse_args(argv))
    refused = [("output_dir", "dry_run"), ("output_dir", "resume"), ("resume", "dry_run")]
    tested = {"test_only", "weights", "dataset", "data_path", "device"}
    refused += [(name, "test_only") for name in sorted(given.keys() - tested)]
    for name, because in refused:
        if name in given and because in given:
            parser.error(f"argument {flag(name)}: not allowed with argument {flag(because)}")
    if "weights" in given and "test_only" not in given:
        parser.error("argument --weights: only allowed with argument --test-only")
    if "tensorboard" in given and importlib.util.find_spec("tensorboard") is None:
        parser.error("argument --tensorboard: pip install tensorboard")
    if given.get("dataset") == "folder" and "data_path" not in given:
        parser.error("argument --dataset: folder needs --data-path, the folder of the pictures")
    options = {entry.name: given.pop(entry.name) for entry in fields(Options) if entry.name in given}
    short = {"epochs": 1, "limit_train_batches": 3} if "dry_run" in options else {}
    return replace(recipe, **short | given), Options(**options, given=frozenset(options | given))


def select_device(name: str) -> "torch.device":
    """Return the device called ``name``; 'auto' is the first that works of cuda, mps and cpu.

    Raises ``UsageError`` when this machine can't use it.
    """
    import torch

    if name == "auto":
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        return torch.device(next(kind for kind in there if there[kind]))
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, ImportError) as error:  # as this torch was built without it
        reason = str(error).partition("\n")[0]
        raise UsageError(f"argument --device: {name} can't be used here: {reason}") from None
