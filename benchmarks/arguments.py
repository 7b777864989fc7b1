"""The command lines of the benchmarks. This module imports nothing slow, like ``config``."""

import argparse
import hashlib
import itertools
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config import ORIGINAL, RECIPES, Config, Options, choose_data_path, flag
from config import parse_args as parse_settings
from runtime.arguments import Parser, folder

NOT_VARIED = {"seed", "early_stopping", "target_accuracy"}  # by a sweep
SETTINGS = sorted(vars(ORIGINAL).keys() - NOT_VARIED)
LONGEST_NAME = 150  # characters; file systems allow 255, with a suffix


def positive_int(text: str) -> int:
    """Read an argument that is a whole number, at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def combinations(grid: str) -> list[tuple[str, ...]]:
    """Return the flags of each combination in ``grid``, such as 'max_lr=0.1,0.2 dropout=0,0.05'."""
    axes: dict[str, list[str]] = {}
    for word in grid.split() or [""]:
        name, _, values = word.partition("=")
        name = name.replace("-", "_")
        if name == "holdout":
            raise argparse.ArgumentTypeError("holdout can't vary: all runs are compared on the same images")
        if name not in SETTINGS or name in axes or not values:
            problem = f"{word!r} is not a setting and its values, such as max_lr=0.1,0.2"
            raise argparse.ArgumentTypeError(problem)
        axes[name] = [f"{flag(name)}={value}" for value in values.split(",")]
    return list(itertools.product(*axes.values()))


@dataclass(frozen=True)
class Sweep:
    """The command line of ``sweep.py``."""

    seeds: int
    output_dir: Path
    grid: list[tuple[str, ...]] | None  # the flags of each combination
    target: float  # accuracy in percent
    jobs: int | None  # runs at a time; None: one on each core; 1: without Ray
    runs_per_gpu: int
    address: str | None  # of a Ray cluster
    options: Options  # the device and the folder of the data
    configs: dict[Config, str]  # the settings to run, each with its flags in the grid
    common_flags: str  # the flags that all runs share


def parse_sweep(argv: Sequence[str] | None = None) -> tuple[Sweep]:
    """Read the command line of ``sweep.py``: its own flags, and those of ``main.py`` for the runs."""
    description = "Train with seeds 1 to N. Takes --device, --data-path and the settings of main.py too."
    parser = Parser("sweep.py", description)
    default = "(default: %(default)s)"
    parser.add_argument(
        "--seeds", type=positive_int, default=10, metavar="N", help=f"number of seeds {default}"
    )
    parser.add_argument(
        "--output-dir", type=folder, required=True, metavar="DIR", help="folder for tables and runs"
    )
    help = "settings to compare on held-out images, such as 'max_lr=0.1,0.2 dropout=0,0.05'"
    parser.add_argument("--grid", type=combinations, help=help)
    parser.add_argument(
        "--target", type=float, default=99.4, metavar="X", help=f"target accuracy in %% {default}"
    )
    parser.add_argument(
        "--jobs", type=positive_int, metavar="N", help="runs at a time (default: all cores); 1: no Ray"
    )
    parser.add_argument(
        "--runs-per-gpu", type=positive_int, default=1, metavar="N", help=f"runs that share a GPU {default}"
    )
    parser.add_argument("--address", metavar="HOST:PORT", help="Ray cluster to run on")
    args, rest = parser.parse_known_args(argv)
    if not 0 <= args.target <= 100:  # true for NaN
        parser.error(f"argument --target: must be from 0 to 100, not {args.target}")
    if args.address is not None and not re.fullmatch(r".+:\d+", args.address):
        parser.error(f"argument --address: must be HOST:PORT, not {args.address}")
    if args.address and args.jobs:
        parser.error("argument --jobs: not allowed with argument --address")
    grid = args.grid or [()]
    # With the first combination, as --lr 0.5 may be valid only with the grid's max_lr.
    options = parse_settings([*rest, *grid[0]])[1]
    if args.runs_per_gpu > 1 and (args.jobs == 1 or options.device == "cpu"):
        parser.error("argument --runs-per-gpu: not allowed with --jobs 1, nor with --device cpu")
    # In reverse, as --target-accuracy also sets early_stopping.
    for name in sorted(options.given - {*SETTINGS, "device", "data_path"}, reverse=True):
        parser.error(f"argument {flag(name)}: not allowed in a sweep")
    for varied in grid[0]:
        if (name := varied.partition("=")[0]) in {word.partition("=")[0] for word in rest}:
            parser.error(f"argument {name}: not allowed, as --grid has it too")
    common_flags = ["--holdout=10000", *rest] if args.grid else rest
    configs = {}
    for flags in grid:
        config = replace(parse_settings([*common_flags, *flags])[0], early_stopping=False)
        configs[config] = " ".join(flags)
        # It refuses --data-path for MNIST.
        choose_data_path(options.given_data_path, config.dataset, options.data_path, new=True)
        if args.grid and config.holdout == 0:
            parser.error("argument --holdout: must be above 0, as a grid is compared on held-out images")
    args.output_dir = args.output_dir.resolve()
    options = Options(
        device=options.device,
        data_path=os.path.abspath(options.data_path),
        given=options.given & {"device", "data_path"},
    )
    return (Sweep(**vars(args), options=options, configs=configs, common_flags=shlex.join(common_flags)),)


def list_settings(config: Config, recipe: Config = ORIGINAL) -> list[str]:
    """Return as 'name=value' all settings but the seed that differ from those of ``recipe``.

    A hash of its content stands for a teacher, unless it is that of ``recipe``.
    """
    settings = dict(vars(config))
    if config.teacher not in ("none", recipe.teacher):
        content = (Path(__file__).parent.parent / config.teacher).read_bytes()
        settings["teacher"] = hashlib.sha256(content).hexdigest()[:10]
    return [f"{name}={settings[name]}" for name in SETTINGS if settings[name] != getattr(recipe, name)]


def sweep_name(config: Config, data_path: str) -> str:
    """Return a file name for all settings but the seed: the recipe, and the differences from it.

    A hash replaces the path of a folder of pictures, and the end of a long name.
    """
    name = "-".join([config.recipe, *list_settings(config, RECIPES[config.recipe])])
    if config.dataset != "folder" and len(name) <= LONGEST_NAME:
        return name
    # Other data sets have the same images, wherever their files are.
    content = f"{name} {data_path}" if config.dataset == "folder" else name
    digest = hashlib.sha256(os.fsencode(content))
    return f"{name[:LONGEST_NAME]}-{digest.hexdigest()[:10]}"
