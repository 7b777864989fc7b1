"""Train a recipe, or each combination of a grid of settings, with seeds 1 to N, and summarise the results.

Each run goes to the end of its schedule, so the reported accuracy is not cherry-picked. See docs/sweep.md.
"""

import csv
import logging
import os
import shlex
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch.backends.cpu import get_cpu_capability

from benchmarks.arguments import Sweep, list_settings, parse_sweep
from benchmarks.summary import Results, Row, plot, print_results
from checkpoint import EpochMetrics, versions
from config import ORIGINAL, Config
from datasets import load
from main import train_run
from runtime.errors import DivergedError, UsageError, UserError, end_in_one_line, run_command
from runtime.files import locked, write_table

ROOT = Path(__file__).resolve().parent.parent
Key = tuple[str, int]  # the name and the seed of a run
NUMBERS = [
    "epoch_reached",
    "seconds_to_target",
    "best",
    "last",
    "seconds",
    "accuracy_by_epoch",
    "seconds_by_epoch",
]
COLUMNS = ["name", "seed", "split", "target", *NUMBERS, "device", "python", "torch", "torchvision", "machine"]
COLUMNS += ["data_path", "error", "settings"]
CONTINUE = "the same command continues from here"


def complete_table(
    path: Path, configs: Mapping[str, Config], sweep: Sweep, train: Callable[[list[Key]], Iterable[Row]]
) -> Results:
    """Add to the table at ``path`` the runs of ``configs``, by name, that it lacks; return the rows of all.

    ``train`` trains runs, and yields each one's row when it has ended. Then the table is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    seeds = range(1, sweep.seeds + 1)
    with locked(path.parent):
        table = load_table(path, configs, sweep.target)
        # In turn, so a slow hour affects all of them.
        runs = [(name, seed) for seed in seeds for name in [*configs][:: 1 if seed % 2 else -1]]
        missing = [run for run in runs if run not in table]
        try:
            for number, row in enumerate(train(missing) if missing else (), 1):
                name, seed = row["name"], int(row["seed"])
                table[name, seed] = row
                write_table(path, [table[run] for run in sorted(table)])
                result = row["error"] or f"{row['last']} % at the end, best {row['best']} %"
                print(f"{name} seed-{seed}: {result} ({number} of {len(missing)} runs)", flush=True)
        except KeyboardInterrupt as stop:
            raise type(stop)(CONTINUE) from None
    print(f"The rows are in {path}", flush=True)
    return {name: [table[name, seed] for seed in seeds] for name in configs}


def load_table(path: Path, configs: Mapping[str, Config], target: float) -> dict[Key, Row]:
    """Read the table at ``path``. The rows of ``configs`` must have their settings, and ``target``.

    Their names don't ensure that: a recipe may have changed since. Rows of other names stay in the table.
    """
    if not path.exists():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
        if not {*COLUMNS} <= {*(reader.fieldnames or ())} or any(
            None in (*row, *row.values()) for row in rows
        ):
            raise ValueError("a row lacks a column, or has too many")
        for column in NUMBERS:
            [float(value) for row in rows for value in row[column].split()]  # raises for what is no number
        table = {(row["name"], int(row["seed"])): row for row in rows}
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path} is damaged, or of another version: {error}") from None
    for (name, _), row in table.items():
        settings = " ".join(list_settings(configs.get(name, ORIGINAL)))
        if name in configs and (row["target"], row["settings"]) != (f"{target:g}", settings):
            raise UserError(f"{path} has another target or settings of {name}: choose another --output-dir")
    return table


def make_row(
    name: str, config: Config, target: float, metrics: Sequence[EpochMetrics] = (), device: str = ""
) -> Row:
    """Return the row of a run whose schedule is complete; or, without ``metrics``, of one that diverged."""
    row = dict.fromkeys(COLUMNS, "") | versions() | {"name": name, "seed": str(config.seed)}
    row |= {"target": f"{target:g}", "settings": " ".join(list_settings(config))}
    if not metrics:
        return row
    if device == "cpu":
        device = f"CPU with {get_cpu_capability()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    elif device.startswith("cuda"):
        device = torch.cuda.get_device_name(device)
    seconds = [f"{total:.2f}" for total in accumulate(epoch.seconds for epoch in metrics)]
    accuracies = [f"{epoch.eval_accuracy:g}" for epoch in metrics]
    row |= {"device": device, "split": metrics[0].split, "best": max(accuracies, key=float)}
    row |= {"last": accuracies[-1], "accuracy_by_epoch": " ".join(accuracies)}
    row |= {"seconds": seconds[-1], "seconds_by_epoch": " ".join(seconds)}
    reached = [epoch.epoch for epoch in metrics if epoch.eval_accuracy >= target]
    if reached:
        row |= {"epoch_reached": str(reached[0]), "seconds_to_target": seconds[reached[0] - 1]}
    return row


def train_seed(folder: Path, config: Config, sweep: Sweep) -> Row:
    """Train like main.py, on one thread, and return the run's row. A stopped run in ``folder`` is resumed.

    If the run diverges, its row has the error. Any other error ends the sweep; the next sweep tries this run
    again. ``folder``.log has the output.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        pass  # a worker of a killed sweep has ended
    resume = str(folder) if (folder / "last.pt").exists() else ""
    options, name = replace(sweep, output_dir=str(folder), resume=resume), folder.parent.name
    with open(f"{folder}.log", "a", encoding="utf-8", errors="backslashreplace") as log, redirect_stdout(log):
        try:
            run = train_run(config, options)
            row = make_row(name, config, sweep.target, run.metrics, run.device)
        except DivergedError as error:
            row = make_row(name, config, sweep.target) | {"error": str(error)}
        except UsageError as error:  # a mistake in the sweep's own arguments, or a folder of other settings
            raise UsageError(f"{folder}: {error}" if resume else str(error)) from None
        except Exception as error:
            traceback.print_exc(file=log)
            raise UserError(f"{folder}: {describe(error)}; {folder}.log has more; {CONTINUE}") from None
    # A path can have bytes that are not text.
    return row | {"data_path": os.fsencode(options.data_path).decode(errors="backslashreplace")}


def describe(error: BaseException) -> str:
    """Return the first line of ``error``, and its type, unless it was written for the user."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{str(error).strip()}".splitlines()[0]


def start_ray(sweep: Sweep) -> Any:
    """Start Ray on this machine, or connect to the cluster at ``sweep.address``; return the module."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    options["runtime_env"] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    try:
        import ray

        if sweep.address:
            host, _, port = sweep.address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray would try for minutes
        else:
            options |= {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
            options |= {"num_cpus": sweep.jobs or None, "object_store_memory": 100 << 20}
            if " " in sys.executable:  # Ray starts its workers by a shell
                options["runtime_env"]["py_executable"] = shlex.quote(sys.executable)
        ray.init(sweep.address or "local", **options)
    except Exception as error:
        solution = "start the cluster first" if sweep.address else "add --jobs 1, which needs no Ray"
        if isinstance(error, ImportError):
            solution = f"pip install ray, or {solution}"
        raise UserError(f"Ray: {describe(error)}: {solution}") from None
    end_in_one_line("sweep.py")  # Ray has replaced the handler of SIGTERM
    return ray


def train_on_ray(runs: Mapping[Path, Config], sweep: Sweep) -> Iterator[Row]:
    """Train ``runs`` in workers of Ray; yield the row of each one that has ended."""
    ray = start_ray(sweep)
    gpus = 1 / sweep.runs_per_gpu if sweep.device != "cpu" and "GPU" in ray.cluster_resources() else 0
    # If a worker or a node is lost, Ray starts its task elsewhere, nine times at most.
    task = ray.remote(max_calls=1, max_retries=9, retry_exceptions=False, num_gpus=gpus)(train_seed)
    pending = {task.remote(folder, config, sweep): folder for folder, config in runs.items()}
    while pending:
        (reference,), _ = ray.wait(list(pending))
        folder = pending.pop(reference)
        try:
            yield ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)  # what train_seed raised; Ray adds its traceback to it
            if isinstance(cause, UserError):
                raise cause from None
            raise UserError(f"{folder}: {describe(cause or error)}; {CONTINUE}") from None


def main() -> None:
    """Carry out the command line."""
    sweep = parse_sweep()
    folder, configs = Path(sweep.output_dir).resolve(), sweep.configs

    def train(keys: list[Key]) -> Iterable[Row]:
        runs = {folder / name / f"seed-{seed}": replace(configs[name], seed=seed) for name, seed in keys}
        load(next(iter(runs.values())).dataset, sweep.data_path)  # download it once, before all runs do
        in_turn = (train_seed(folder, config, sweep) for folder, config in runs.items())
        return in_turn if sweep.jobs == 1 else train_on_ray(runs, sweep)

    results = complete_table(folder / "sweep.csv", configs, sweep, train)
    print_results(results, sweep.target)
    if not sweep.grid:
        (name,) = configs
        plot(results, folder / f"{name}.png")


if __name__ == "__main__":
    run_command(main)
