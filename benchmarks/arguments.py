"""The command line of a sweep, and the names of its files."""

import argparse
import hashlib
import itertools
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config import ORIGINAL, RECIPES, Config, Options, flag
from config import parse_args as parse_settings
from datasets import choose_path
from runtime.arguments import Parser

SETTINGS = sorted(vars(ORIGINAL).keys() - {"seed", "target_accuracy"})  # those that a sweep can set
LONGEST_NAME = 150  # characters; file systems allow 255, with a suffix


@dataclass(frozen=True)
class Sweep:
    """The command line of ``python -m benchmarks.sweep``."""

    output_dir: Path
    seeds: int
    target: float  # accuracy in percent
    grid: list[tuple[str, ...]]  # the flags of each combination; empty: no grid
    jobs: int | None  # runs at a time; None: one on each core; 1: without Ray
    address: str | None  # of a Ray cluster; None: Ray starts on this machine
    runs_per_gpu: int
    configs: dict[Config, str]  # the settings to run, each with its flags in the grid
    common_flags: str  # the flags that all runs share
    options: Options  # the device
    data_paths: dict[str, str]  # the folder of each data set


def positive_int(text: str) -> int:
    """Read an argument that is a whole number, at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def combinations(grid: str) -> list[tuple[str, ...]]:
    """Return the flags of each combination in ``grid``, such as 'lr=0.1,0.2 dropout=0,0.05'."""
    axes: dict[str, list[str]] = {}
    for word in grid.split() or [""]:
        name, _, values = word.partition("=")
        name = name.replace("-", "_")
        # All runs are compared on the same images.
        if name not in SETTINGS or name == "holdout" or name in axes or not values:
            problem = f"{word!r} is not a setting that can vary, and its values, such as lr=0.1,0.2"
            raise argparse.ArgumentTypeError(problem)
        axes[name] = [f"{flag(name)}={value}" for value in values.split(",")]
    return list(itertools.product(*axes.values()))


def parse_sweep(argv: Sequence[str] | None = None) -> Sweep:
    """Read the command line of a sweep: its own flags, and those of ``main.py`` for the runs."""
    description = "Train with seeds 1 to N. Takes --device, --data-path and the settings of main.py too."
    parser = Parser("python -m benchmarks.sweep", description)
    default = "(default: %(default)s)"
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="folder for tables and runs")
    help = f"number of seeds {default}"
    parser.add_argument("--seeds", type=positive_int, default=10, metavar="N", help=help)
    help = f"accuracy in %% that counts as reached {default}"
    parser.add_argument("--target", type=float, default=99.4, metavar="X", help=help)
    help = "settings to compare on held-out images, such as 'lr=0.1,0.2 dropout=0,0.05'"
    parser.add_argument("--grid", type=combinations, default=[], help=help)
    where = parser.add_mutually_exclusive_group()
    help = "runs at a time (default: all cores); 1: no Ray"
    where.add_argument("--jobs", type=positive_int, metavar="N", help=help)
    where.add_argument("--address", metavar="HOST:PORT", help="Ray cluster to run on")
    help = f"runs that share a GPU {default}; Ray distributes them"
    parser.add_argument("--runs-per-gpu", type=positive_int, default=1, metavar="N", help=help)
    args, rest = parser.parse_known_args(argv)
    if args.address and not re.fullmatch(r".+:\d+", args.address):
        parser.error(f"argument --address: must be HOST:PORT, not {args.address}")
    common = ["--holdout=10000", *rest] if args.grid else rest
    configs: dict[Config, str] = {}
    for flags in args.grid or [()]:
        config, options = parse_settings([*common, *flags])
        for name in sorted(options.given - {*SETTINGS, "device", "data_path"}):
            parser.error(f"argument {flag(name)}: not allowed in a sweep")
        if args.grid and not config.holdout:
            parser.error("argument --holdout: must be above 0, as a grid is compared on held-out images")
        configs[replace(config, target_accuracy=0.0)] = " ".join(flags)
    args.output_dir = Path(args.output_dir).resolve()
    datasets = {config.dataset for config in configs}
    return Sweep(
        **vars(args),
        configs=configs,
        common_flags=shlex.join(common),
        options=Options(device=options.device, given=options.given & {"device"}),
        data_paths={name: choose_path(options.data_path, name, "data") for name in datasets},
    )


def list_settings(config: Config, recipe: Config = ORIGINAL) -> list[str]:
    """Return as 'name=value' all settings of a sweep that differ from those of ``recipe``."""
    values = vars(config)
    return [f"{name}={values[name]}" for name in SETTINGS if values[name] != getattr(recipe, name)]


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
