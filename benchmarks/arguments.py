"""The command line of a sweep, and the names of its settings."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from config import ORIGINAL, RECIPES, Config, Options, add_flags, flag, setting
from config import parse_args as parse_settings
from datasets import choose_path
from runtime.arguments import Parser
from runtime.errors import UsageError

SETTINGS = sorted(vars(ORIGINAL).keys() - {"seed", "target_accuracy"})  # those that a sweep can set


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
        if min(self.seeds, self.runs_per_gpu) < 1:
            raise UsageError("arguments --seeds, --runs-per-gpu: must be at least 1")


def combinations(grid: str) -> list[tuple[str, ...]]:
    """Return the flags of each combination in ``grid``, such as 'lr=0.1,0.2 dropout=0,0.05'."""
    axes = []
    for word in grid.split():
        name, _, values = word.partition("=")
        # All runs are compared on the same images.
        if name.replace("-", "_") not in {*SETTINGS} - {"dataset", "holdout"}:
            raise UsageError(f"argument --grid: {name!r} is not a setting that can vary, as in lr=0.1,0.2")
        axes.append([f"{flag(name)}={value}" for value in values.split(",")])
    return list(itertools.product(*axes))


def parse_sweep(argv: Sequence[str] | None = None) -> Sweep:
    """Read the command line of a sweep: its own flags, and those of ``main.py`` for the runs."""
    parser = Parser("python -m benchmarks.sweep", "Train seeds 1 to N. Takes most flags of main.py too.")
    add_flags(parser, Sweep(), ["output_dir", "seeds", "target", "grid", "runs_per_gpu"])
    add_flags(parser.add_mutually_exclusive_group(), Sweep(), ["jobs", "address"])
    args, rest = parser.parse_known_args(argv)
    sweep = Sweep(**{name: value for name, value in vars(args).items() if value is not None})
    common = ["--holdout=10000", *rest] if sweep.grid else rest
    parsed = [parse_settings([*common, *flags]) for flags in combinations(sweep.grid)]
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
    """Return a file name for all settings but the seed: the recipe, and the differences from it."""
    parts = [config.recipe, *list_settings(config, RECIPES[config.recipe])]
    if config.dataset == "folder":  # other data sets have the same images, wherever their files are
        parts.append(hashlib.sha256(os.fsencode(data_path)).hexdigest()[:10])
    return "-".join(parts)
