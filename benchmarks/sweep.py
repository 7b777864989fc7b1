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
import os
import shutil
import socket
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import mean, median, stdev, variance

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from config import ORIGINAL, RECIPES, Config, Options, Parser, UsageError, UserError, end_in_one_line, flag
from config import parse_args as parse_settings

SETTINGS = vars(ORIGINAL).keys() - {"seed", "early_stopping", "target_accuracy"}  # those are the sweep's own


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
    for name in sorted(options.given - SETTINGS - {"device"}):
        parser.error(f"argument {flag(name)}: not for a sweep")
    args.device, args.output_dir, configs = options.device, args.output_dir.resolve(), {}
    for flags in [()] if args.grid is None else combinations(args.grid):
        holdout = [] if args.grid is None else ["--holdout=10000"]
        config = replace(parse_settings([*holdout, *rest, *flags])[0], early_stopping=False)
        if holdout and not config.holdout:
            parser.error("argument --holdout: must be above 0: a grid is compared on held-out images")
        configs[config] = " ".join(flags)
    return args, configs


def combinations(grid: str) -> Iterator[tuple[str, ...]]:
    """Return the flags of each combination in ``grid``, as in 'max_lr=0.1,0.2 nesterov=true,false'."""
    axes: dict[str, list[str]] = {}
    for word in grid.split() or [""]:
        name, _, values = word.partition("=")
        name = name.replace("-", "_")
        if name not in SETTINGS or name in axes or not values:
            raise UsageError(
                f"argument --grid: {word!r} is not a setting and its values, as in max_lr=0.1,0.2"
            )
        switch = (
            {"true": flag(name), "false": flag(f"no_{name}")} if vars(ORIGINAL)[name] in (True, False) else {}
        )
        axes[name] = [switch.get(value, f"{flag(name)}={value}") for value in values.split(",")]
    return itertools.product(*axes.values())


if __name__ == "__main__":
    end_in_one_line("sweep.py")
    arguments = parse_args()  # before torch is imported, which takes seconds: mistakes answer at once

import torch
from tqdm import tqdm

import main as experiment
from checkpoint import load_progress, load_trained, locked, replace_file, versions
from test import test
from utils import get_loaders

Row = dict[str, str]  # of a table, a line a run: accuracies in percent, those by epoch joined by spaces
COLUMNS = """seed split target epoch_reached seconds_to_target best last best_on_test seconds device python torch
torchvision machine accuracy_by_epoch error""".split()


def train_run(folder: Path, config: Config, args: Namespace) -> Row:
    """Train as main.py does, in this process and on one thread, from where ``folder`` stands; return the row.

    The row of a run that fails by itself says why. What is printed goes to a log beside ``folder``.
    """
    torch.set_num_threads(1)
    row = dict.fromkeys(COLUMNS, "") | {"seed": str(config.seed), "target": f"{args.target:g}"}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "a") as log, contextlib.redirect_stdout(log):
        try:
            train_or_go_on(folder, config, args.device)
            progress = load_progress(folder)
            if config.holdout and args.grid is None:
                best, device = load_trained(folder / "best.pt").model, torch.device("cpu")
                row["best_on_test"] = f"{test(best, device, get_loaders(device)[1])[1]:g}"
        except Exception as error:
            traceback.print_exc(file=log)
            return row | {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    accuracies = [epoch.eval_accuracy for epoch in progress.metrics]
    seconds = [epoch.seconds for epoch in progress.metrics]
    reached = next((i for i, accuracy in enumerate(accuracies, 1) if accuracy >= args.target), None)
    cpu = f"CPU with {torch.backends.cpu.get_cpu_capability()}, 1 of {os.cpu_count()} cores"
    row |= versions() | {"best": f"{max(accuracies):g}", "last": f"{accuracies[-1]:g}"}
    row["device"] = torch.cuda.get_device_name() if progress.device.startswith("cuda") else cpu
    row["split"], row["seconds"] = progress.metrics[0].split, f"{sum(seconds):.2f}"
    row["epoch_reached"] = str(reached or "none")
    row["seconds_to_target"] = f"{sum(seconds[:reached]):.2f}" if reached else "none"
    return row | {"accuracy_by_epoch": " ".join(f"{accuracy:g}" for accuracy in accuracies)}


def train_or_go_on(folder: Path, config: Config, device: str) -> None:
    """Call main.py's main; wait where a worker of a sweep that was killed is still in ``folder``."""
    while True:
        options = Options(resume=str(folder), device=device, given=frozenset(vars(config)))
        if not (folder / "last.pt").exists():
            shutil.rmtree(folder, ignore_errors=True)
            options = replace(options, resume=None, output_dir=str(folder))
        try:
            return experiment.main(config, options)
        except UserError as error:
            if "in use by another process" not in str(error):
                raise
            time.sleep(1)


def name_of(config: Config) -> str:
    """Return the recipe and what differs from it, but for the seed."""
    recipe, names = RECIPES[config.recipe], sorted(SETTINGS)
    changed = [
        f"{name}={getattr(config, name)}" for name in names if getattr(config, name) != getattr(recipe, name)
    ]
    return "-".join([config.recipe, *changed])


def in_turn(runs: dict[Path, Config], args: Namespace) -> Iterator[dict[Path, Row]]:
    """Train ``runs`` in this process; yield each with its row."""
    for folder, config in runs.items():
        yield {folder: train_run(folder, config, args)}


def on_ray(runs: dict[Path, Config], args: Namespace) -> Iterator[dict[Path, Row]]:
    """Train ``runs`` in workers of Ray; yield, each second, those that have ended. Raises ``UserError``."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    where = {"address": args.address}
    try:
        import ray

        from benchmarks.sweep import train_run  # under the name by which a worker can import it

        if not args.address:
            with socket.create_server(("127.0.0.1", 0)) as server:  # where this fails, Ray tries for minutes
                socket.create_connection(server.getsockname(), timeout=2).close()
            where = {"address": "local", "_node_ip_address": "127.0.0.1", "num_cpus": args.jobs}
            where |= {"object_store_memory": 100 << 20, "include_dashboard": False}
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment, **where)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"Ray doesn't start ({reason}): pip install ray, or --jobs 1, without Ray") from None
    end_in_one_line("sweep.py")  # Ray has put its own handler of SIGTERM in its place
    gpus = args.device.startswith("cuda") or (args.device == "auto" and "GPU" in ray.cluster_resources())  # type: ignore[no-untyped-call]
    # A worker or node that is lost is not the run's fault: its task goes on elsewhere, as often as it takes.
    task = ray.remote(
        num_cpus=1,
        num_gpus=gpus / args.runs_per_gpu,
        max_retries=-1,
        retry_exceptions=False,
        max_calls=1,
    )(train_run)
    pending = {task.remote(folder, config, args): folder for folder, config in runs.items()}
    while pending:
        done, _ = ray.wait(list(pending), timeout=1)
        try:
            yield {pending.pop(reference): ray.get(reference) for reference in done}
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"Ray lost a run ({reason}); the same command goes on from here") from None


def progress_of(runs: dict[Path, Config], begin: float) -> tuple[int, str]:
    """Return the epochs that ``runs`` have behind them, and how far those are that changed since ``begin``."""
    epochs, going = 0, []
    for folder, config in runs.items():
        with contextlib.suppress(OSError), open(folder / "metrics.csv") as file:
            metrics = list(csv.DictReader(file))
            epochs += len(metrics)
            if os.fstat(file.fileno()).st_mtime >= begin and len(metrics) < config.epochs:
                accuracy = f" {float(metrics[-1]['eval_accuracy']):.2f} %" if metrics else ""
                going.append(f"{folder.name} {len(metrics)}/{config.epochs}{accuracy}")
    return epochs, ", ".join(going)


def carry_out(runs: dict[Path, Config], args: Namespace, tables: dict[Path, dict[int, Row]]) -> None:
    """Train ``runs``, add their rows to ``tables`` and these to the disk, and show the progress."""
    begin, total, out = time.time(), sum(config.epochs for config in runs.values()), sys.stdout
    start, count = progress_of(runs, begin)[0], 0
    with tqdm(total=total, initial=start, unit="epoch", file=out, disable=not out.isatty()) as bar:
        for ended in (in_turn if args.jobs == 1 else on_ray)(runs, args):
            bar.n, going = progress_of(runs, begin)
            count += len(ended)
            left = (time.time() - begin) * (total - bar.n) / max(bar.n - start, 1)
            for folder, row in ended.items():
                tables[folder.parent][int(row["seed"])] = row
                write_rows(Path(f"{folder.parent}.csv"), tables[folder.parent])
                end = (
                    f"failed: {row['error']}"
                    if row["error"]
                    else f"last {row['last']} %, best {row['best']} %"
                )
                bar.write(f"{folder.parent.name} {folder.name}: {end}", file=out)
            if ended and bar.disable:
                print(
                    f"{count} of {len(runs)} runs, {timedelta(seconds=int(left))} left; {going}", flush=True
                )
            bar.set_description(f"{count} of {len(runs)} runs", refresh=False)
            bar.set_postfix_str(going)


def read_rows(path: Path, target: float) -> dict[int, Row]:
    """Read the rows of ``path``, if it is there, by seed, leaving out those made for another target."""
    with contextlib.suppress(FileNotFoundError), open(path, newline="") as file:
        return {int(row["seed"]): row for row in csv.DictReader(file) if row.get("target") == f"{target:g}"}
    return {}


def write_rows(path: Path, rows: dict[int, Row]) -> None:
    """Write the table, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[seed] for seed in sorted(rows))
    replace_file(path, text.getvalue().encode())


def summarise(rows: list[Row], target: float) -> str:
    """Say in plain lines what ``rows`` come to; a run that failed counts as one that didn't reach the target."""
    from scipy import stats

    ended = [row for row in rows if not row["error"]]
    reached = [row for row in ended if row["epoch_reached"] != "none"]
    share = stats.binomtest(len(reached), len(rows)).proportion_ci(method="wilson")
    where = " and ".join(sorted({f"{row['device']}, torch {row['torch']}" for row in ended}))
    split = " ".join({row["split"] for row in ended})
    lines = [f"runs                    {len(rows)} (seeds 1 to {len(rows)}), {where}"]
    lines += [f"failed                  seed {row['seed']}: {row['error']}" for row in rows if row["error"]]
    lines.append(
        f"reached {target:g} % ({split})".ljust(24) + f"{len(reached)} of {len(rows)} = "
        f"{len(reached) / len(rows):.0%}, 95 % interval {share.low:.0%} to {share.high:.0%} (Wilson)"
    )
    for name, column in ((f"last epoch ({split})", "last"), ("best epoch, on test set", "best_on_test")):
        values = [float(row[column]) for row in ended if row[column]]
        if len(set(values)) > 1:
            low, high = stats.ttest_1samp(values, target).confidence_interval()
            p = stats.ttest_1samp(values, target, alternative="greater").pvalue
            lines.append(
                f"{name:24s}mean {mean(values):.3f} %, standard deviation {stdev(values):.3f}, 95 % interval "
                f"{low:.3f} to {high:.3f} % (Student); p = {p:.2g} for a mean of {target:g} % or less (t-test)"
            )
    if reached:
        epoch, seconds = (
            median(float(row[column]) for row in reached) for column in ("epoch_reached", "seconds_to_target")
        )
        lines.append(f"to the target           median epoch {epoch:g}, {seconds:.1f} s, where it was reached")
    if ended:
        total = median(float(row["seconds"]) for row in ended)
        lines.append(f"whole schedule          median {total:.1f} s of training and evaluation")
    return "\n".join(lines)


def plot(rows: list[Row], target: float, path: Path) -> None:
    """Draw accuracy by epoch to ``path``, a PNG: a thin line a seed, the median thick."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print("No plot: matplotlib is not installed (pip install matplotlib)")
    curves = [
        [float(value) for value in row["accuracy_by_epoch"].split()] for row in rows if not row["error"]
    ]
    middle = [median(values) for values in zip(*curves, strict=True)]
    epochs = range(1, len(middle) + 1)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(epochs, list(zip(*curves, strict=True)), color="tab:blue", linewidth=0.7, alpha=0.5)
    axes.plot(epochs, middle, color="tab:blue", linewidth=3, label=f"median of {len(curves)} seeds")
    axes.axhline(target, color="tab:orange", linewidth=1, label=f"{target:g} %")
    axes.set(xlabel="epoch", ylabel="accuracy, %", ylim=(middle[-1] - 1, middle[-1] + 0.3))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def compare(results: dict[str, list[Row]]) -> str:
    """Make a Markdown table of ``results``, each under its flags, from the highest mean to the lowest."""
    ends = {flags: [float(row["last"]) for row in rows if row["last"]] for flags, rows in results.items()}
    order = sorted((flags for flags in ends if ends[flags]), key=lambda flags: -mean(ends[flags]))
    lines = [
        "| flags | n | mean, % | standard deviation | less than the first row, ± standard error | each, % |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for flags in order:
        first, values, deviation, less = ends[order[0]], ends[flags], "–", "–"
        if len(values) > 1:
            deviation = f"{stdev(values):.3f}"
        if len(values) > 1 and len(first) > 1 and flags != order[0]:
            error = (variance(first) / len(first) + variance(values) / len(values)) ** 0.5
            less = f"{mean(first) - mean(values):.3f} ± {error:.3f}"
        each = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| `{flags}` | {len(values)} | {mean(values):.3f} | {deviation} | {less} | {each} |")
    failed = [
        f"\n`{flags}`, seed {row['seed']}, failed: {row['error']}"
        for flags, rows in results.items()
        for row in rows
        if row["error"]
    ]
    return "\n".join(lines + failed)


def main(args: Namespace, configs: dict[Config, str]) -> None:
    """Carry out the sweep. Raises ``UserError``, ``OSError`` and ``KeyboardInterrupt``."""
    try:
        import scipy  # noqa: F401  # now, not after hours
    except ImportError:
        raise UserError("scipy is not installed: pip install scipy") from None
    args.output_dir.mkdir(parents=True, exist_ok=True)
    folders = {args.output_dir / name_of(config): config for config in configs}
    seeds = range(1, args.seeds + 1)
    with locked(args.output_dir):
        tables = {folder: read_rows(Path(f"{folder}.csv"), args.target) for folder in folders}
        wanted = [(folder, seed) for seed in seeds for folder in folders if seed not in tables[folder]]
        runs = {folder / f"seed-{seed}": replace(folders[folder], seed=seed) for folder, seed in wanted}
        try:
            if runs:
                carry_out(runs, args, tables)
        except KeyboardInterrupt as stop:
            raise type(stop)("the same command goes on from here") from None
    results = {
        configs[config]: [tables[folder][seed] for seed in seeds] for folder, config in folders.items()
    }
    if args.grid is not None:
        print(compare(results))
    else:
        (rows,), (folder,) = results.values(), folders
        print(summarise(rows, args.target))
        plot(rows, args.target, Path(f"{folder}.png"))
    failed = sum(row["error"] != "" for rows in results.values() for row in rows)
    if failed:
        raise UserError(f"{failed} runs failed: see the column error in {args.output_dir}")


if __name__ == "__main__":
    main(*arguments)
