"""The command line of a sweep, and the names of its settings."""

import argparse
import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from config import ORIGINAL, RECIPES, Config, Options, add_flags, flag, setting
from config import parse_args as parse_settings
from datasets import choose_path
from runtime.arguments import Parser
from runtime.errors import UsageError

SETTINGS = sorted(vars(ORIGINAL).keys() - {"seed", "target_accuracy"})  # those that a sweep can set

LONGEST_NAME = 150  # characters; file systems allow 255, with a suffix


@dataclass(frozen=True)
class Sweep(Options):
    """The options of a sweep: its own, and those of main.py. Its runs use ``device`` and ``data_path``."""

    output_dir: str = setting("runs/sweep", "folder for table, plot and runs")
    seeds: int = setting(10, "number of seeds")
    target: float = setting(99.4, "accuracy in percent that counts as reached")
    grid: str = setting("", "settings to compare on held-out images, such as 'lr=0.1,0.2 dropout=0,0.05'")
    jobs: int = setting(0, "runs at a time; 0: one on each core; 1: without Ray")
    address: str = setting("", "HOST:PORT of a Ray cluster to run on")
    runs_per_gpu: int = setting(1, "runs that share a GPU; Ray distributes them")
    configs: dict[str, Config] = field(default_factory=dict)  # the settings to run, by name

    def __post_init__(self) -> None:
        for name, least in {"seeds": 1, "runs_per_gpu": 1, "jobs": 0}.items():
            if getattr(self, name) < least:
                raise UsageError(f"argument {flag(name)}: must be at least {least}")
        if self.address and not re.fullmatch(r".+:\d+", self.address):
            raise UsageError(f"argument --address: must be HOST:PORT, not {self.address}")


def combinations(grid: str) -> list[tuple[str, ...]]:
    """Return the flags of each combination in ``grid``, such as 'lr=0.1,0.2 dropout=0,0.05'."""
    axes: dict[str, list[str]] = {}
    for word in grid.split() or [""]:
        name, _, values = word.partition("=")
        # All runs are compared on the same images.
        if name.replace("-", "_") not in {*SETTINGS} - {"dataset", "holdout", *axes}:
            raise UsageError(f"argument --grid: {name!r} is not a setting that can vary, as in lr=0.1,0.2")
        axes[name.replace("-", "_")] = [f"{flag(name)}={value}" for value in values.split(",")]
    return list(itertools.product(*axes.values()))


def parse_sweep(argv: Sequence[str] | None = None) -> Sweep:
    """Read the command line of a sweep: its own flags, and those of ``main.py`` for the runs."""
    parser = Parser("python -m benchmarks.sweep", "Train seeds 1 to N. Takes most flags of main.py too.")
    parser.argument_default = argparse.SUPPRESS
    add_flags(parser, Sweep(), ["output_dir", "seeds", "target", "grid", "runs_per_gpu"])
    add_flags(parser.add_mutually_exclusive_group(), Sweep(), ["jobs", "address"])
    args, rest = parser.parse_known_args(argv)
    sweep = Sweep(**vars(args))
    common = ["--holdout=10000", *rest] if sweep.grid else rest
    parsed = [
        parse_settings([*common, *flags]) for flags in (combinations(sweep.grid) if sweep.grid else [()])
    ]
    config, options = parsed[-1]  # all have the same data and options
    for name in sorted(options.given - {*SETTINGS, "device", "data_path"}):
        parser.error(f"argument {flag(name)}: not allowed in a sweep")
    if sweep.grid and not config.holdout:
        parser.error("argument --holdout: must be above 0, as a grid is compared on held-out images")
    data_path = choose_path(options.data_path, config.dataset, "data")
    configs = {sweep_name(each, data_path): replace(each, target_accuracy=0.0) for each, _ in parsed}
    given = options.given | vars(config).keys()  # a run that is resumed must have the same settings
    return replace(sweep, configs=configs, device=options.device, data_path=data_path, given=given)


def list_settings(config: Config, recipe: Config = ORIGINAL) -> list[str]:
    """Return as 'name=value' all settings of a sweep that differ from those of ``recipe``."""
    values = vars(config)
    return [f"{name}={values[name]}" for name in SETTINGS if values[name] != getattr(recipe, name)]


def sweep_name(config: Config, data_path: str) -> str:
    """Return a file name for all settings but the seed: the recipe, and the differences from it.

    A hash stands for the path of a folder of pictures, and for the end of a long name.
    """
    name = "-".join([config.recipe, *list_settings(config, RECIPES[config.recipe])])
    # Other data sets have the same images, wherever their files are.
    path = os.fsencode(data_path) if config.dataset == "folder" else b""
    if not path and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode() + path).hexdigest()[:10]}"
