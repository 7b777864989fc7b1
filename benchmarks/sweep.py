"""Train a recipe, or each combination of a grid of settings, with seeds 1 to N, and summarise the results.

Each run goes to the end of its schedule, so the reported accuracy is not cherry-picked. See docs/sweep.md.
"""

import contextlib
import logging
import os
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch.backends.cpu import get_cpu_capability
from tqdm import tqdm

from benchmarks import summary
from benchmarks.arguments import Sweep, list_settings, parse_sweep, sweep_name
from benchmarks.summary import Curve, Row
from checkpoint import Run, versions
from config import Config
from datasets import load, load_test
from main import train_run
from runtime.errors import DivergedError, UsageError, UserError, end_in_one_line, run_command
from runtime.files import locked, write_table
from runtime.tables import read_table
from test import test
from trained import load_trained
from utils import get_eval_loader

ROOT = Path(__file__).resolve().parent.parent
Table = dict[int, Row]  # rows by seed
COLUMNS = [
    *("seed", "split", "target", "epoch_reached", "seconds_to_target", "best", "last", "best_on_test"),
    *("seconds", "device", "python", "torch", "torchvision", "machine", "data_path", "accuracy_by_epoch"),
    *("error", "settings"),
]
CONTINUE = "the same command continues from here"


def train_seed(folder: Path, config: Config, sweep: Sweep) -> Row:
    """Train like main.py, on one thread, and return the run's row. A stopped run in ``folder`` is resumed.

    If the run diverges, its row has the error. Any other error ends the sweep; the next sweep tries this run
    again. ``folder``.log has the output.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        pass  # a worker of a killed sweep has ended
    options = replace(sweep.options, data_path=sweep.data_paths[config.dataset])
    if (folder / "last.pt").exists():
        options = replace(options, resume=str(folder), given=options.given | vars(config).keys())
    else:
        options = replace(options, output_dir=str(folder))
    log = open(f"{folder}.log", "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    with log, contextlib.redirect_stdout(log):
        try:
            row = make_row(config, sweep, train_run(config, options))
            if config.holdout and not sweep.grid:
                best = load_trained(folder)
                loader = get_eval_loader(best.dataset, load_test(best.dataset), "cpu")
                row["best_on_test"] = f"{test(best.model, 'cpu', loader)[1]:g}"
            return row
        except DivergedError as error:
            return make_row(config, sweep) | {"error": str(error)}
        except UsageError:  # a mistake in the sweep's own arguments
            raise
        except Exception as error:
            traceback.print_exc(file=log)
            raise UserError(f"{folder}: {describe(error)}; {folder}.log has more; {CONTINUE}") from None


def describe(error: BaseException) -> str:
    """Return the first line of ``error``, and its type, unless it was written for the user."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{str(error).strip()}".splitlines()[0]


def make_row(config: Config, sweep: Sweep, run: Run | None = None) -> Row:
    """Return the row of ``run``, whose schedule is complete; or, without it, that of a run that diverged."""
    row = dict.fromkeys(COLUMNS, "") | versions() | {"seed": str(config.seed), "target": f"{sweep.target:g}"}
    row["settings"] = " ".join(list_settings(config))
    # A path can have bytes that are not text.
    row["data_path"] = os.fsencode(sweep.data_paths[config.dataset]).decode(errors="backslashreplace")
    if run is None:
        return row
    seconds = [epoch.seconds for epoch in run.metrics]
    accuracies = [epoch.eval_accuracy for epoch in run.metrics]
    device = run.device
    if device == "cpu":
        device = f"CPU with {get_cpu_capability()}, 1 of {os.cpu_count()} cores"
    elif device.startswith("cuda"):
        device = torch.cuda.get_device_name(device)
    row |= {"device": device, "split": run.metrics[0].split, "seconds": f"{sum(seconds):.2f}"}
    for epoch, accuracy in enumerate(accuracies, 1):
        if accuracy >= sweep.target:
            row |= {"epoch_reached": str(epoch), "seconds_to_target": f"{sum(seconds[:epoch]):.2f}"}
            break
    row |= {"best": f"{max(accuracies):g}", "last": f"{accuracies[-1]:g}"}
    return row | {"accuracy_by_epoch": " ".join(f"{accuracy:g}" for accuracy in accuracies)}


def start_ray(sweep: Sweep) -> Any:
    """Start Ray on this machine, or connect to the cluster at ``sweep.address``; return the module."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    options["runtime_env"] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    try:
        import ray

        if sweep.address:
            host, port = sweep.address.rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray would try for minutes
        else:
            options |= {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
            options |= {"num_cpus": sweep.jobs, "object_store_memory": 100 << 20}
        ray.init(sweep.address or "local", **options)
    except Exception as error:
        solution = "start the cluster first" if sweep.address else "add --jobs 1, which needs no Ray"
        if isinstance(error, ImportError):
            solution = f"pip install ray, or {solution}"
        elif "AF_UNIX" in str(error):  # the path of a socket in Ray's temporary folder
            solution = f"set RAY_TMPDIR to a folder with a short path, or {solution}"
        raise UserError(f"Ray: {describe(error)}: {solution}") from None
    end_in_one_line("sweep.py")  # Ray has replaced the handler of SIGTERM
    return ray


def train_on_ray(runs: dict[Path, Config], sweep: Sweep) -> Iterator[tuple[Path, Row]]:
    """Train ``runs`` in workers of Ray; yield the folder and the row of each one that has ended."""
    ray = start_ray(sweep)
    gpu = sweep.options.device != "cpu" and "GPU" in ray.cluster_resources()
    if sweep.runs_per_gpu > 1 and not gpu:
        raise UsageError("argument --runs-per-gpu: the runs use no GPU; leave it out")
    # If a worker or a node is lost, Ray starts its task elsewhere, nine times at most.
    options: dict[str, Any] = {"max_retries": 9, "retry_exceptions": False}
    task = ray.remote(max_calls=1)(train_seed).options(**options, num_gpus=gpu / sweep.runs_per_gpu)
    pending = {task.remote(folder, config, sweep): folder for folder, config in runs.items()}
    while pending:
        (reference,), _ = ray.wait(list(pending))
        folder = pending.pop(reference)
        try:
            yield folder, ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)  # what train_seed raised; Ray adds its traceback to it
            if isinstance(cause, UserError):
                raise cause from None
            raise UserError(f"{folder}: {describe(cause or error)}; {CONTINUE}") from None


def train_all(runs: dict[Path, Config], sweep: Sweep, tables: dict[Path, Table]) -> None:
    """Train ``runs``, add their rows to ``tables``, write these to the disk, and show the progress."""
    in_turn = ((folder, train_seed(folder, config, sweep)) for folder, config in runs.items())
    rows, out = in_turn if sweep.jobs == 1 else train_on_ray(runs, sweep), sys.stdout
    with tqdm(rows, total=len(runs), unit="run", file=out, disable=not out.isatty()) as bar:
        for number, (folder, row) in enumerate(bar, 1):
            table = tables[folder.parent]
            table[int(row["seed"])] = row
            write_table(Path(f"{folder.parent}.csv"), [table[seed] for seed in sorted(table)])
            result = row["error"] or f"{row['last']} % at the end, best {row['best']} %"
            bar.write(f"{folder.parent.name} {folder.name}: {result} ({number} of {len(runs)} runs)", out)
            out.flush()


def load_table(config: Config, folder: Path, target: float) -> Table:
    """Read the table beside ``folder``; its runs must have the settings of ``config``, and ``target``.

    The file's name doesn't ensure that: a recipe may have changed since.
    """
    path = Path(f"{folder}.csv")
    rows = read_table(path, COLUMNS)
    settings = " ".join(list_settings(config))
    if any((row["target"], row["settings"]) != (f"{target:g}", settings) for row in rows):
        raise UserError(f"{path} has another target, or other settings: choose another --output-dir")
    return {int(row["seed"]): row for row in rows}


def print_results(results: dict[str, list[Row]], sweep: Sweep) -> None:
    """Print a summary of ``results``, the rows by their flags in the grid."""
    rows = [row for group in results.values() for row in group]
    sources = {f"{row['device']}, torch {row['torch']}, {row['split']} images" for row in rows if row["last"]}
    print(f"`{sweep.common_flags}`, seeds 1 to {sweep.seeds}; {' and '.join(sorted(sources))}\n")
    if sweep.grid:
        print(summary.markdown(results, sweep.target), flush=True)
    else:
        figures = summary.figures(rows, sweep.target)
        print("\n".join(f"{name:38s}{value}" for name, value in figures.items()), flush=True)
    errors = [f"seed {row['seed']}: {row['error']}" for row in rows if row["error"]]
    if errors:
        raise UserError(f"{len(errors)} of {len(rows)} runs diverged, {errors[0]} (all: column error)")


def main() -> None:
    """Carry out the command line."""
    sweep = parse_sweep()
    sweep.output_dir.mkdir(parents=True, exist_ok=True)
    folders = {
        config: sweep.output_dir / sweep_name(config, sweep.data_paths[config.dataset])
        for config in sweep.configs
    }
    seeds = range(1, sweep.seeds + 1)
    with locked(sweep.output_dir):
        tables = {folder: load_table(config, folder, sweep.target) for config, folder in folders.items()}
        runs = {
            folder / f"seed-{seed}": replace(config, seed=seed)
            for seed in seeds
            for config, folder in folders.items()
            if seed not in tables[folder]
        }
        try:
            for name in {config.dataset for config in runs.values()}:
                load(name, sweep.data_paths[name])  # download it once, before all runs do
            if runs:
                train_all(runs, sweep, tables)
        except KeyboardInterrupt as stop:
            raise type(stop)(CONTINUE) from None
    tables_by_flags = {flags: tables[folders[config]] for config, flags in sweep.configs.items()}
    results = {flags: [table[seed] for seed in seeds] for flags, table in tables_by_flags.items()}
    if not sweep.grid:
        (folder,) = tables
        accuracies = [row["accuracy_by_epoch"].split() for row in results[""] if row["last"]]
        curves: list[Curve] = [[*enumerate(map(float, values), 1)] for values in accuracies]
        if curves:
            summary.plot({folder.name: curves}, "epoch", Path(f"{folder}.png"))
    print_results(results, sweep)


if __name__ == "__main__":
    run_command(main)
