"""The command lines of the benchmarks. Importing torch takes seconds, so these don't."""

import argparse
import itertools
import shlex
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from config import ORIGINAL, RECIPES, WEIGHTS_HELP, Config, Parser, flag
from config import parse_args as parse_settings
from runtime.errors import UsageError

TRAIN_BATCHES = 469  # in an epoch
SETTINGS = sorted(vars(ORIGINAL).keys() - {"seed", "early_stopping", "target_accuracy"})  # the sweep's own


def parse_sweep(argv: Sequence[str] | None = None) -> tuple[Namespace, dict[Config, str]]:
    """Return the sweep's own options, and the settings to run, each with its flags in the grid."""
    parser = Parser(
        "sweep.py", "Train with seeds 1 to N. Takes --device, --data-path and the settings of main.py too."
    )
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="for tables and runs")
    parser.add_argument(
        "--grid", help="settings to compare on held-out images: 'max_lr=0.1,0.2 dropout=0,0.05'"
    )
    parser.add_argument(
        "--target", type=float, default=99.4, metavar="X", help="in %% (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: one a core); 1: no Ray"
    )
    parser.add_argument("--runs-per-gpu", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster to run on")
    args, rest = parser.parse_known_args(argv)
    for name in ("seeds", "jobs", "runs_per_gpu"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"argument {flag(name)}: must be at least 1")
    if not 0 <= args.target <= 100:  # NaN is not in between
        parser.error(f"argument --target: must be from 0 to 100, not {args.target}")
    if args.address and args.jobs:
        parser.error("argument --jobs: not allowed with argument --address")
    options = parse_settings(rest)[1]
    for name in sorted(options.given - {*SETTINGS, "device", "data_path"}):
        parser.error(f"argument {flag(name)}: not for a sweep")
    args.device, args.output_dir = options.device, args.output_dir.resolve()
    args.data_path = str(Path(options.data_path).resolve())
    configs, prefix = {}, [] if args.grid is None else ["--holdout=10000"]
    for flags in [()] if args.grid is None else combinations(args.grid):
        config = replace(parse_settings([*prefix, *rest, *flags])[0], early_stopping=False)
        configs[config] = " ".join(flags)
        if prefix and config.holdout == 0:
            parser.error("argument --holdout: must be above 0, as a grid is compared on held-out images")
    args.settings = shlex.join([*prefix, *rest])
    return args, configs


def combinations(grid: str) -> Iterator[tuple[str, ...]]:
    """Return the flags of each combination in ``grid``, as in 'max_lr=0.1,0.2 dropout=0,0.05'."""
    axes: dict[str, list[str]] = {}
    for word in grid.split() or [""]:
        name, _, values = word.partition("=")
        name = name.replace("-", "_")
        if name not in SETTINGS or name in axes or not values:
            raise UsageError(
                f"argument --grid: {word!r} is not a setting and its values, as in max_lr=0.1,0.2"
            )
        axes[name] = [f"{flag(name)}={value}" for value in values.split(",")]
    return itertools.product(*axes.values())


def name_of(config: Config, data_path: str) -> str:
    """Return the recipe and what differs from it, but for the seed: the name of the table and the folder."""
    recipe, settings = vars(RECIPES[config.recipe]), vars(config)
    changed = [f"{name}={settings[name]}" for name in SETTINGS if settings[name] != recipe[name]]
    if config.dataset == "folder":
        changed.append(quote(data_path, safe=""))
    return "-".join([config.recipe, *changed])


def parse_peers(argv: Sequence[str] | None = None) -> tuple[Namespace]:
    """Read the command line of ``peers.py``."""
    parser = Parser("peers.py", "Train this project's recipes and their peers in turn.")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="for table and picture")
    parser.add_argument("--device", default="auto", help="as for main.py (default: %(default)s)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error("argument --seeds: must be at least 1")
    return (args,)


def parse_pipeline(argv: Sequence[str] | None = None) -> tuple[Namespace]:
    """Read the command line of ``pipeline.py``."""
    parser = Parser("pipeline.py", "Compare the conventional pipeline with this project's.")
    parser.add_argument("--turns", type=int, default=9, help="turns of each pipeline (default: %(default)s)")
    parser.add_argument("--batches", type=int, help="training steps in a turn (default: 20; on CUDA 469)")
    parser.add_argument("--device", default="auto", help="as for main.py (default: %(default)s)")
    parser.add_argument("--output", help="write the results to this file too, as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.turns < 1:
        parser.error("argument --turns: must be at least 1")
    if args.batches is not None and not 1 <= args.batches <= TRAIN_BATCHES:
        parser.error(f"argument --batches: must be from 1 to {TRAIN_BATCHES}, an epoch's")
    return (args,)


def parse_writers(argv: Sequence[str] | None = None) -> tuple[list[str]]:
    """Read the command line of ``writers.py``."""
    parser = Parser("writers.py", "Read digits by other writers than MNIST's.")
    parser.add_argument("weights", nargs="*", metavar="FILE", help=WEIGHTS_HELP)
    return (parser.parse_args(argv).weights,)
