"""Run a recipe, or a grid of settings, over seeds 1 to N as tasks of Ray, and say what comes out.

    python benchmarks/sweep.py --recipe default --seeds 10 --output-dir runs/proof
    python benchmarks/sweep.py --recipe fast --grid "max_lr=0.2,0.4 dropout=0,0.05" --output-dir runs/grid

Every run goes to the end of its schedule, so that nobody chooses the accuracy there. See docs/sweep.md.
"""

import contextlib
import csv
import io
import itertools
import logging
import math
import os
import shutil
import socket
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from config import ORIGINAL, RECIPES, Config, Options, Parser, UsageError, UserError, end_in_one_line, flag
from config import parse_args as parse_settings

SETTINGS = sorted(vars(ORIGINAL).keys() - {"seed", "early_stopping", "target_accuracy"})  # the sweep's own


def parse_args(argv: Sequence[str] | None = None) -> tuple[Namespace, dict[Config, str]]:
    """Return the sweep's own options, and the settings to run, each with its flags in the grid."""
    parser = Parser("sweep.py", "Train with seeds 1 to N. Takes --device and the settings of main.py too.")
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
    if args.address and args.jobs:
        parser.error("argument --jobs: not allowed with argument --address")
    options = parse_settings(rest)[1]
    for name in sorted(options.given - {*SETTINGS, "device"}):
        parser.error(f"argument {flag(name)}: not for a sweep")
    args.device, args.output_dir = options.device, args.output_dir.resolve()
    if args.grid is None:
        return args, {replace(parse_settings(rest)[0], early_stopping=False): ""}
    configs = {}
    for flags in combinations(args.grid):
        config = replace(parse_settings(["--holdout=10000", *rest, *flags])[0], early_stopping=False)
        configs[config] = " ".join(flags)
        if config.holdout == 0:
            parser.error("argument --holdout: must be above 0, as a grid is compared on held-out images")
    return args, configs


def combinations(grid: str) -> Iterator[tuple[str, ...]]:
    """Return the flags of each combination in ``grid``, as in 'max_lr=0.1,0.2 interpolation=nearest,bilinear'."""
    axes: dict[str, list[str]] = {}
    for word in grid.split() or [""]:
        name, _, values = word.partition("=")
        name = name.replace("-", "_")
        if name not in SETTINGS or name in axes or not values:
            raise UsageError(
                f"argument --grid: {word!r} is not a setting and its values, as in max_lr=0.1,0.2"
            )
        switches = {f"{flag(name)}=true": flag(name), f"{flag(name)}=false": flag(f"no_{name}")}
        flags = [f"{flag(name)}={value}" for value in values.split(",")]
        axes[name] = [switches.get(text, text) for text in flags]
    return itertools.product(*axes.values())


def name_of(config: Config) -> str:
    """Return the recipe and what differs from it, but for the seed: the name of the table and the folder."""
    recipe, settings = vars(RECIPES[config.recipe]), vars(config)
    changed = [f"{name}={settings[name]}" for name in SETTINGS if settings[name] != recipe[name]]
    return "-".join([config.recipe, *changed])


if __name__ == "__main__":
    end_in_one_line("sweep.py")
    arguments = parse_args()  # before torch is imported, which takes seconds: mistakes answer at once

import torch
from tqdm import tqdm

import main as experiment
from checkpoint import (
    fcntl,  # type: ignore[attr-defined]  # None on Windows
    load_progress,
    load_trained,
    locked,
    replace_file,
    versions,
)
from test import test
from utils import get_loaders

try:
    from matplotlib.figure import Figure
    from scipy import stats
except ImportError as error:
    raise UserError(f"{error}: pip install matplotlib scipy") from None

Row = dict[str, str]  # a run's line of its table; accuracies are in percent, those by epoch joined by spaces
COLUMNS = [
    *("seed", "split", "target", "epoch_reached", "seconds_to_target", "best", "last", "best_on_test"),
    *("seconds", "device", "python", "torch", "torchvision", "machine", "accuracy_by_epoch", "error"),
]


def train_run(folder: Path, config: Config, args: Namespace) -> Row:
    """Train as main.py does, in this process and on one thread, from where ``folder`` stands; return the row.

    The row of a run that fails by itself says why. What is printed goes to a log beside ``folder``.
    """
    torch.set_num_threads(1)
    row = dict.fromkeys(COLUMNS, "") | {"seed": str(config.seed), "target": f"{args.target:g}"} | versions()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "a") as log, contextlib.redirect_stdout(log):
        if fcntl is not None:  # a worker of a sweep that was killed may still be ending
            fcntl.flock(log, fcntl.LOCK_EX)
        try:
            options = Options(resume=str(folder), device=args.device, given=frozenset(vars(config)))
            if not (folder / "last.pt").exists():
                shutil.rmtree(folder, ignore_errors=True)
                options = Options(output_dir=str(folder), device=args.device)
            experiment.main(config, options)
            progress = load_progress(folder)
            if config.holdout and args.grid is None:
                best, device = load_trained(folder / "best.pt").model, torch.device("cpu")
                row["best_on_test"] = f"{test(best, device, get_loaders(device)[1])[1]:g}"
        except UsageError:  # of the sweep, not of this run
            raise
        except Exception as error:
            traceback.print_exc(file=log)
            return row | {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    accuracies, seconds = zip(*((line.eval_accuracy, line.seconds) for line in progress.metrics), strict=True)
    reached = next((i for i, accuracy in enumerate(accuracies, 1) if accuracy >= args.target), None)
    cpu = f"CPU with {torch.backends.cpu.get_cpu_capability()}, 1 of {os.cpu_count()} cores"
    row["device"] = torch.cuda.get_device_name() if progress.device.startswith("cuda") else cpu
    row["split"], row["seconds"] = progress.metrics[0].split, f"{sum(seconds):.2f}"
    row["epoch_reached"] = str(reached or "")
    row["seconds_to_target"] = f"{sum(seconds[:reached]):.2f}" if reached else ""
    row["best"], row["last"] = f"{max(accuracies):g}", f"{accuracies[-1]:g}"
    return row | {"accuracy_by_epoch": " ".join(f"{accuracy:g}" for accuracy in accuracies)}


def on_ray(runs: dict[Path, Config], args: Namespace) -> Iterator[dict[Path, Row]]:
    """Train ``runs`` in workers of Ray; yield, each second, those that have ended. Raises ``UserError``."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    local = {"include_dashboard": False, "num_cpus": args.jobs, "object_store_memory": 100 << 20}
    try:
        import ray

        from benchmarks.sweep import train_run  # under the name by which a worker can import it

        if not args.address:
            with socket.create_server(("127.0.0.1", 0)) as server:  # where this fails, Ray tries for minutes
                socket.create_connection(server.getsockname(), timeout=2).close()
        where = {"address": args.address} if args.address else {"_node_ip_address": "127.0.0.1"} | local
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment, **where)
        end_in_one_line("sweep.py")  # Ray has put its own handler of SIGTERM in its place
        gpu = args.device != "cpu" and "GPU" in ray.cluster_resources()  # type: ignore[no-untyped-call]
        # A worker or node that is lost is not the run's fault: the task goes on elsewhere, as often as needed.
        lost = ray.remote(
            max_retries=-1, retry_exceptions=False, max_calls=1, num_gpus=gpu / args.runs_per_gpu
        )
        pending = {lost(train_run).remote(folder, config, args): folder for folder, config in runs.items()}
        while pending:
            done, _ = ray.wait(list(pending), timeout=1)
            yield {pending.pop(reference): ray.get(reference) for reference in done}
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"Ray: {reason} (pip install ray; or --jobs 1, which does without)") from None


def progress_of(runs: dict[Path, Config], begin: float) -> tuple[int, str]:
    """Return how many epochs ``runs`` have behind them, and how far those are that moved since ``begin``."""
    epochs, going = 0, []
    for folder, config in runs.items():
        with contextlib.suppress(OSError), open(folder / "metrics.csv") as file:
            accuracies = [f"{float(row['eval_accuracy']):.2f} %" for row in csv.DictReader(file)]
            epochs += len(accuracies)
            if os.fstat(file.fileno()).st_mtime >= begin and len(accuracies) < config.epochs:
                state = [folder.name, f"{len(accuracies)}/{config.epochs}", *accuracies[-1:]]
                going.append(" ".join(state))
    return epochs, ", ".join(going)


def carry_out(runs: dict[Path, Config], args: Namespace, tables: dict[Path, dict[int, Row]]) -> None:
    """Train ``runs``, put their rows into ``tables`` and these onto the disk, and show the progress."""
    in_turn = ({folder: train_run(folder, config, args)} for folder, config in runs.items())
    begin, out, count, total = time.time(), sys.stdout, 0, sum(config.epochs for config in runs.values())
    before, _ = progress_of(runs, begin)
    with tqdm(total=total, initial=before, unit="epoch", file=out, disable=not out.isatty()) as bar:
        for ended in in_turn if args.jobs == 1 else on_ray(runs, args):
            bar.n, going = progress_of(runs, begin)
            left = (time.time() - begin) / max(bar.n - before, 1) * (total - bar.n) / 60
            for folder, row in ended.items():
                count += 1
                tables[folder.parent][int(row["seed"])] = row
                write_table(folder.parent, tables[folder.parent])
                end = row["error"] or f"{row['last']} % at the end, best {row['best']} %"
                done = f"{count} of {len(runs)} runs, {left:.0f} min left"
                bar.write(f"{folder.parent.name} {folder.name}: {end} ({done})", file=out)
                out.flush()
            bar.set_description(f"{count} of {len(runs)} runs", refresh=False)
            bar.set_postfix_str(going)


def read_table(folder: Path, target: float) -> dict[int, Row]:
    """Read the rows of the runs in ``folder``, by seed, but those that were made for another target."""
    with contextlib.suppress(FileNotFoundError), open(f"{folder}.csv", newline="") as file:
        return {int(row["seed"]): row for row in csv.DictReader(file) if row.get("target") == f"{target:g}"}
    return {}


def write_table(folder: Path, rows: dict[int, Row]) -> None:
    """Write the rows of the runs in ``folder``, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[seed] for seed in sorted(rows))
    replace_file(Path(f"{folder}.csv"), text.getvalue().encode())


def numbers(rows: list[Row], column: str) -> list[float]:
    """Return what ``column`` holds, or NaN alone where it holds nothing."""
    return [float(row[column]) for row in rows if row[column]] or [math.nan]


def figures(rows: list[Row], target: float, first: list[Row], column: str = "last") -> dict[str, str]:
    """Say what ``rows`` come to, and how far below ``first``. Runs that failed count as short of ``target``."""
    values, top = numbers(rows, column), numbers(first, column)
    error, top_error = (stats.sem(those) if len(those) > 1 else math.nan for those in (values, top))
    half = stats.t.ppf(0.975, len(values) - 1) * error
    p = stats.t.sf((mean(values) - target) / (error or 1e-9), len(values) - 1)
    reached = sum(row["epoch_reached"] != "" for row in rows)
    low, high = stats.binomtest(reached, len(rows)).proportion_ci(method="wilson")
    below = f"{mean(top) - mean(values):.3f} ± {math.hypot(error, top_error):.3f}"
    found = {
        "n": str(sum(row[column] != "" for row in rows)),
        "mean, %": f"{mean(values):.3f}",
        "standard deviation": f"{error * math.sqrt(len(values)):.3f}",
        "95 % interval (Student)": f"{mean(values) - half:.3f} to {mean(values) + half:.3f}",
        f"p of a mean ≤ {target:g} (t-test)": f"{p:.2g}",
        "below the first, ± standard error": "–" if first is rows else below,
        f"reached {target:g} % (Wilson)": f"{reached} of {len(rows)}, {low:.0%} to {high:.0%}",
        "median epoch": f"{median(numbers(rows, 'epoch_reached')):g}",
        "median seconds": f"{median(numbers(rows, 'seconds_to_target')):.1f}",
        "in all": f"{median(numbers(rows, 'seconds')):.1f}",
    }
    return {name: text.replace("nan", "–") for name, text in found.items()}


def markdown(results: dict[str, list[Row]], target: float) -> str:
    """Make a table of ``results``, by their flags, from the highest mean to the lowest."""
    # max(0, NaN) is 0: settings whose runs all failed come last.
    order = sorted(results, key=lambda flags: max(0.0, mean(numbers(results[flags], "last"))), reverse=True)
    lines = [{"flags": f"`{flags}`"} | figures(results[flags], target, results[order[0]]) for flags in order]
    cells = [lines[0], ["---"] * len(lines[0]), *(line.values() for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def plot(rows: list[Row], target: float, path: Path) -> None:
    """Draw accuracy by epoch to ``path``, a PNG: a thin line a seed, the median thick."""
    curves = [[float(value) for value in row["accuracy_by_epoch"].split()] for row in rows if row["last"]]
    by_epoch = list(zip(*curves, strict=True))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(by_epoch) + 1), by_epoch, color="tab:blue", linewidth=0.7, alpha=0.5)
    axes.plot(range(1, len(by_epoch) + 1), [*map(median, by_epoch)], color="tab:blue", linewidth=3)
    axes.axhline(target, color="tab:orange")
    axes.set(
        title="seeds, and their median", xlabel="epoch", ylabel="accuracy, %", ylim=(target - 1, target + 0.3)
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main(args: Namespace, configs: dict[Config, str]) -> None:
    """Carry out the sweep. Raises ``UserError``, ``OSError`` and ``KeyboardInterrupt``."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    seeds = range(1, args.seeds + 1)
    folders = {args.output_dir / name_of(config): config for config in configs}
    with locked(args.output_dir):
        tables = {folder: read_table(folder, args.target) for folder in folders}
        missing = [(folder, seed) for seed in seeds for folder in folders if seed not in tables[folder]]
        runs = {folder / f"seed-{seed}": replace(folders[folder], seed=seed) for folder, seed in missing}
        try:
            if runs:
                carry_out(runs, args, tables)
        except KeyboardInterrupt as stop:
            raise type(stop)("the same command goes on from here") from None
    results = {configs[folders[folder]]: [tables[folder][seed] for seed in seeds] for folder in folders}
    every = list(itertools.chain(*results.values()))
    where = {
        f"{row['device']}, torch {row['torch']}, accuracy on {row['split']}" for row in every if row["last"]
    }
    print(f"{' and '.join(map(name_of, configs))}, seeds 1 to {args.seeds}; {' and '.join(sorted(where))}\n")
    if args.grid is not None:
        print(markdown(results, args.target))
    else:
        for column in ("last", "best_on_test")[: 1 + any(row["best_on_test"] for row in every)]:
            found = figures(every, args.target, every, column)
            print("\n".join(f"{name:34s}{text}" for name, text in found.items()), end="\n\n")
        plot(every, args.target, Path(f"{next(iter(folders))}.png"))
    failed = [f"seed {row['seed']}: {row['error']}" for row in every if row["error"]]
    if failed:
        raise UserError(f"{len(failed)} of {len(every)} runs failed, {failed[0]} (the others: column error)")


if __name__ == "__main__":
    main(*arguments)
