"""The command line of ``main.py``. Imports nothing heavy, so that ``--help`` and mistakes answer at once."""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

from recipes import DEFAULT_RECIPE, RECIPES

# The flags beside the hyperparameters, and what they are when they aren't given.
RUN_DEFAULTS: dict[str, Any] = {
    "recipe": DEFAULT_RECIPE,
    "data_path": "data",
    "output_dir": None,
    "resume": None,
    "device": "auto",
    "seed": 1,
    "use_deterministic_algorithms": False,
    "limit_train_batches": None,
    "holdout": 0,
    "tensorboard": False,
    "dry_run": False,
}
FREE = {
    "resume",
    "output_dir",
    "data_path",
    "device",
    "tensorboard",
}  # may change when a run is resumed: the results don't


class UsageError(Exception):
    """The command line asks for what can't be had; the message names the flag."""


def number(
    low: float, high: float, *, whole: bool = False, above: bool = False, below: bool = False
) -> Callable[[str], float]:
    """Make an argparse type that takes a number from ``low`` to ``high``.

    ``whole`` takes integers only; ``above`` and ``below`` leave out the bound itself.
    The type raises ``argparse.ArgumentTypeError`` with the range in words; NaN is in no range.
    """
    words = f"{'an integer' if whole else 'a number'} {'above' if above else 'from'} {low:,}"
    words += f" {'and below' if below else 'to'} {high:,}" if math.isfinite(high) else " up"

    def parse(text: str) -> float:
        try:
            value: float = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        inside = (low < value if above else low <= value) and (value < high if below else value <= high)
        if not inside:
            raise argparse.ArgumentTypeError(f"must be {words}, not {text!r}")
        return value

    return parse


def device_name(text: str) -> str:
    """Take 'auto', or 'cpu', 'cuda' or 'mps' with an optional index, as an argparse type."""
    kind, _, index = text.partition(":")
    if text == "auto" or (kind in ("cpu", "cuda", "mps") and (index.isdecimal() or text == kind)):
        return text
    raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda, cuda:N or mps, not {text!r}")


def path_name(text: str) -> str:
    """Take the name of a file or folder, as an argparse type."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be the name of a folder, not {text!r}")
    return text


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what to run, on what and where to."""
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--recipe",
        choices=list(RECIPES),
        help=f"named set of hyperparameters; flags given beside it override it (default: {DEFAULT_RECIPE})",
    )
    run.add_argument(
        "--data-path",
        type=path_name,
        metavar="DIR",
        help="where MNIST lies in torchvision's layout, or is downloaded to (default: data)",
    )
    run.add_argument(
        "--output-dir",
        type=path_name,
        metavar="DIR",
        help="new or empty folder for best.pt, last.pt and metrics.csv (default: a new one under runs/)",
    )
    run.add_argument(
        "--resume",
        type=path_name,
        metavar="DIR",
        help="go on with the run in DIR, with its settings, where it was stopped",
    )
    run.add_argument(
        "--device",
        type=device_name,
        help="cpu, cuda, cuda:N or mps (default: auto, the first there is of cuda, mps, cpu)",
    )
    run.add_argument(
        "--seed",
        type=number(0, 2**63 - 1, whole=True),
        metavar="N",
        help="determines the whole run (default: 1)",
    )
    run.add_argument(
        "--use-deterministic-algorithms",
        action="store_true",
        help="make --seed determine a run on CUDA as well, at some cost in time; a CPU's always is",
    )
    run.add_argument(
        "--limit-train-batches",
        type=number(1, 10**6, whole=True),
        metavar="N",
        help="train on the first N batches of each epoch only (default: all)",
    )
    run.add_argument(
        "--holdout",
        type=number(0, 50_000, whole=True),
        metavar="N",
        help="hold N images out of the training set and evaluate on them, not on the test set (default: 0)",
    )
    run.add_argument("--tensorboard", action="store_true", help="write the curves for TensorBoard as well")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="one epoch of a few batches, nothing kept: a check that everything works",
    )


def add_hyperparameters(parser: argparse.ArgumentParser, recipe: str) -> None:
    """Add a flag for each hyperparameter, its help showing ``recipe``'s value."""
    defaults = RECIPES[recipe]
    group = parser.add_argument_group(f"hyperparameters (defaults: those of --recipe {recipe})")

    def add(name: str, text: str, **options: Any) -> None:
        default = defaults[name]
        group.add_argument(f"--{name.replace('_', '-')}", help=f"{text} (default: {default})", **options)

    rate = {"type": number(0, 100, above=True), "metavar": "X"}
    share = {"type": number(0, 1), "metavar": "X"}
    momentum = {"type": number(0, 1, below=True), "metavar": "X"}
    add("epochs", "passes over the training set", type=number(1, 10_000, whole=True), metavar="N")
    add("batch_size", "images in a training step", type=number(1, 60_000, whole=True), metavar="N")
    add("lr", "SGD's learning rate; given here, OneCycleLR starts at it, else at max-lr / div-factor", **rate)
    add("momentum", "SGD's momentum; given here, it is held, else OneCycleLR cycles it", **momentum)
    add("nesterov", "Nesterov's momentum", action=argparse.BooleanOptionalAction)
    add("weight_decay", "L2 penalty", **share)
    add("max_lr", "peak of OneCycleLR", **rate)
    add("pct_start", "share of the schedule before the peak", **share)
    add("div_factor", "peak over start of the learning rate", type=number(1, 1e6), metavar="X")
    add("final_div_factor", "start over end of the learning rate", type=number(1, 1e9), metavar="X")
    add("base_momentum", "momentum at the peak", **momentum)
    add("max_momentum", "momentum at start and end", **momentum)
    add("schedule_interval", "when the learning rate moves", choices=["batch", "epoch"])
    add("rotation", "largest angle in degrees, either way", type=number(0, 180), metavar="DEG")
    add("interpolation", "how a rotated image is sampled", choices=["nearest", "bilinear"])
    add("translation", "largest shift in pixels, each way", type=number(0, 28), metavar="PX")
    add("dropout", "share of activations dropped", type=number(0, 1, below=True), metavar="X")
    add("label_smoothing", "share of each target spread over all digits", **share)
    add(
        "model_ema_decay",
        "share that each step keeps of a running average of the weights, which is then what counts; 0: none",
        type=number(0, 1, below=True),
        metavar="X",
    )
    add(
        "target_accuracy",
        "stop when this accuracy is reached in evaluation, in percent; 100: go to the end of the schedule",
        type=number(0, 100, above=True),
        metavar="PCT",
    )


def build_parser(recipe: str) -> argparse.ArgumentParser:
    """Make the parser, its help showing ``recipe``'s values; a flag that isn't given sets nothing."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Train the network of 9,798 parameters on MNIST.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add_run_flags(parser)
    add_hyperparameters(parser, recipe)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; what it leaves out comes from the recipe.

    Ends with argparse's message and exit status 2 where a value can't be used.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--recipe", default=DEFAULT_RECIPE)
    try:
        recipe = first.parse_known_args(argv)[0].recipe
    except argparse.ArgumentError:
        recipe = DEFAULT_RECIPE  # --recipe without a value: the full parser says so
    parser = build_parser(recipe if recipe in RECIPES else DEFAULT_RECIPE)
    given = vars(parser.parse_args(argv))
    args = argparse.Namespace(**{**RUN_DEFAULTS, **RECIPES[given.get("recipe", DEFAULT_RECIPE)], **given})
    args.given = {name: value for name, value in given.items() if name != "resume"}

    if args.dry_run and "output_dir" in given:
        parser.error("argument --output-dir: not allowed with argument --dry-run, which keeps nothing")
    if "resume" in given and "output_dir" in given:
        parser.error("argument --output-dir: not allowed with argument --resume")
    # OneCycleLR sets the learning rate and the momentum itself: a flag that names one of them must still act.
    if "lr" in given:
        if "div_factor" in given:
            parser.error("argument --lr: not allowed with argument --div-factor")
        if args.lr > args.max_lr:
            parser.error(f"argument --lr: must be at most --max-lr, {args.max_lr}, not {args.lr}")
        args.div_factor = args.max_lr / args.lr
    if "momentum" in given:
        if "base_momentum" in given or "max_momentum" in given:
            parser.error("argument --momentum: not allowed with --base-momentum or --max-momentum")
        args.base_momentum = args.max_momentum = args.momentum
    if args.base_momentum > args.max_momentum:
        parser.error("argument --base-momentum: must be at most --max-momentum")
    if args.dry_run:
        args.epochs, args.limit_train_batches = 1, args.limit_train_batches or 3
    return args


def resume_args(args: argparse.Namespace, settings: dict[str, Any]) -> argparse.Namespace:
    """Return the ``settings`` that a run was started with, beside those of ``args`` that may change.

    ``settings`` is what ``vars`` made of the run's own arguments; it is read as strictly as a command
    line. Raises ``UsageError`` where ``args``, or a recipe edited since, says anything else than it.
    """
    given = {**settings["given"], **args.given}
    argv = []
    for name, value in given.items():
        flag = name.replace("_", "-")
        argv.append(f"--{'no-' * (value is False)}{flag}" if isinstance(value, bool) else f"--{flag}={value}")
    resumed = parse_args(argv)
    different = [
        f"--{name.replace('_', '-')} {settings[name]}, not {value}"
        for name, value in vars(resumed).items()
        if name in settings and name not in FREE | {"given"} and value != settings[name]
    ]
    if different:
        raise UsageError(f"the run has {'; '.join(different)}: leave that out, or start a new run")
    resumed.resume = args.resume
    return resumed
