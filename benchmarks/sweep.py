"""Train a recipe, or each combination of a grid of settings, with seeds 1 to N, and summarise the results.

Each run goes to the end of its schedule, so the reported accuracy is not cherry-picked. See docs/sweep.md.
"""

import contextlib
import logging
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from benchmarks.arguments import parse_sweep
    from runtime.errors import run_command

    run_command("sweep.py", parse_sweep, "benchmarks.sweep")

import torch
from tqdm import tqdm

import main as experiment
from benchmarks import summary
from benchmarks.arguments import Sweep, list_settings, sweep_name
from benchmarks.summary import Row, read_runs
from checkpoint import Progress, load_run, versions
from config import Config
from datasets import load
from runtime.errors import DivergedError, UsageError, UserError, end_in_one_line
from runtime.files import locked, read_table, write_table
from test import test
from trained import load_teacher, load_trained
from utils import get_test_loader

ROOT = Path(__file__).resolve().parent.parent
Table = dict[int, Row]  # rows by seed
NUMBERS = ["epoch_reached", "seconds_to_target", "best", "last", "best_on_test", "seconds"]
COLUMNS = [
    *("seed", "split", "target", *NUMBERS, "device", "python", "torch", "torchvision", "machine"),
    *("data_path", "accuracy_by_epoch", "error", "settings"),
]
TITLES = {"last": "last, after the last epoch", "best_on_test": "best_on_test, of best.pt on the test set"}
CONTINUE = "the same command continues from here"


def train_run(folder: Path, config: Config, sweep: Sweep) -> Row:
    """Train like main.py, on one thread, and return the run's row. A stopped run in ``folder`` is resumed.

    If the run diverges, its row has the error. Any other error ends the sweep; the next sweep tries this run
    again. ``folder``.log has the output.
    """
    torch.set_num_threads(1)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = open(f"{folder}.log", "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    with log, contextlib.redirect_stdout(log):
        with contextlib.suppress(ImportError, OSError):  # on Windows, and on file systems without locks
            import fcntl

            fcntl.flock(log, fcntl.LOCK_EX)  # waits for a worker of a killed sweep
        try:
            if (folder / "last.pt").exists():
                check_teacher(folder, config)
                given = sweep.options.given | vars(config).keys()
                options = replace(sweep.options, resume=str(folder), given=given)
            else:
                if not (folder / "best.pt").exists():  # a start that was killed has left nothing of use
                    shutil.rmtree(folder, ignore_errors=True)
                options = replace(sweep.options, output_dir=str(folder))
            experiment.main(config, options)
            row = make_row(load_run(folder)[0], sweep)
            if config.holdout and not sweep.grid:
                best, device = load_trained(folder / "best.pt"), torch.device("cpu")
                loader = get_test_loader(best.dataset, sweep.options.data_path, device)
                row["best_on_test"] = f"{test(best.model, device, loader)[1]:g}"
            return row
        except DivergedError as error:
            return new_row(config, sweep) | {"error": str(error)}
        except UsageError:  # a mistake in the sweep's own arguments
            raise
        except Exception as error:
            traceback.print_exc(file=log)
            raise UserError(f"{folder}: {describe(error)}; {folder}.log has more; {CONTINUE}") from None


def check_teacher(folder: Path, config: Config) -> None:
    """Raise ``UsageError`` if the run in ``folder`` had another teacher than ``config`` names now."""
    if config.teacher == "none":
        return
    progress, states = load_run(folder)
    teacher = load_teacher(config, progress.dataset)
    assert teacher is not None
    pairs = zip(teacher.state_dict().values(), states["teacher"].values(), strict=True)
    if not all(torch.equal(new, old) for new, old in pairs):
        raise UsageError(f"argument --output-dir: {folder} has another {config.teacher}; name a new folder")


def describe(error: BaseException) -> str:
    """Return the first line of ``error``, and its type, unless it was written for the user."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{str(error).strip()}".splitlines()[0]


def new_row(config: Config, sweep: Sweep) -> Row:
    """Return the row of a run that has no result yet."""
    row = dict.fromkeys(COLUMNS, "") | versions() | {"seed": str(config.seed), "target": f"{sweep.target:g}"}
    row["settings"] = " ".join(list_settings(config))
    if config.dataset != "mnist":  # fsencode, as a path can have bytes that are not text
        row["data_path"] = os.fsencode(sweep.options.data_path).decode(errors="backslashreplace")
    return row


def make_row(progress: Progress, sweep: Sweep) -> Row:
    """Return the row of a run that reached the end of its schedule."""
    seconds = [row.seconds for row in progress.metrics]
    accuracies = [row.eval_accuracy for row in progress.metrics]
    device = progress.device
    if device == "cpu":
        device = f"CPU with {torch.backends.cpu.get_cpu_capability()}, 1 of {os.cpu_count()} cores"
    elif device.startswith("cuda"):
        device = torch.cuda.get_device_name(device)
    row = new_row(progress.config, sweep) | progress.versions
    row |= {"device": device, "split": progress.metrics[0].split, "seconds": f"{sum(seconds):.2f}"}
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
    try:
        import ray

        # Ray tries for minutes to connect, so try first.
        with socket.create_server(("127.0.0.1", 0)) as server:
            host, port = sweep.address.rsplit(":", 1) if sweep.address else server.getsockname()
            socket.create_connection((host, int(port)), timeout=10).close()
        if not sweep.address:
            options |= {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
            options |= {"num_cpus": sweep.jobs, "object_store_memory": 100 << 20}
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(sweep.address or "local", runtime_env=environment, **options)
    except Exception as error:
        solution = "start the cluster first" if sweep.address else "add --jobs 1, which needs no Ray"
        if isinstance(error, ImportError):
            solution = f"pip install ray, or {solution}"
        elif "AF_UNIX" in str(error):  # the path of a socket in Ray's temporary folder
            solution = f"set RAY_TMPDIR to a folder with a short path, or {solution}"
        raise UserError(f"Ray: {describe(error)}: {solution}") from None
    end_in_one_line("sweep.py")  # Ray has replaced the handler of SIGTERM
    return ray


def train_on_ray(runs: dict[Path, Config], sweep: Sweep) -> Iterator[dict[Path, Row]]:
    """Train ``runs`` in workers of Ray; each second, yield the rows of those that have ended."""
    ray = start_ray(sweep)
    gpu = sweep.options.device != "cpu" and "GPU" in ray.cluster_resources()
    if sweep.runs_per_gpu > 1 and not gpu:
        raise UsageError("argument --runs-per-gpu: Ray finds no GPU; leave it out")
    # If a worker or a node is lost, Ray starts its task elsewhere, nine times at most.
    options: dict[str, Any] = {"max_retries": 9, "retry_exceptions": False}
    task = ray.remote(max_calls=1)(train_run).options(**options, num_gpus=gpu / sweep.runs_per_gpu)
    pending = {task.remote(folder, config, sweep): folder for folder, config in runs.items()}
    while pending:
        rows: dict[Path, Row] = {}
        for reference in ray.wait(list(pending), timeout=1)[0]:
            folder = pending.pop(reference)
            try:
                rows[folder] = ray.get(reference)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)  # what train_run raised; Ray adds its traceback to it
                if isinstance(cause, UserError):
                    raise cause from None
                raise UserError(f"{folder}: {describe(cause or error)}; {CONTINUE}") from None
        yield rows


def progress_of(runs: dict[Path, Config], begin: float) -> tuple[int, str]:
    """Return how many epochs ``runs`` have completed, and the state of those that moved since ``begin``."""
    epochs, states = 0, []
    for folder, config in runs.items():
        path = folder / "metrics.csv"
        with contextlib.suppress(OSError, UserError, ValueError):  # a file that someone changed ends no sweep
            rows = read_table(path, ["eval_accuracy"])
            accuracies = [f"{float(row['eval_accuracy']):.2f} %" for row in rows]
            epochs += len(rows)
            if path.stat().st_mtime >= begin and len(rows) < config.epochs:
                states.append(" ".join([folder.name, f"{len(rows)}/{config.epochs}", *accuracies[-1:]]))
    return epochs, ", ".join(states)


def train_all(runs: dict[Path, Config], sweep: Sweep, tables: dict[Path, Table]) -> None:
    """Train ``runs``, add their rows to ``tables``, write these to the disk, and show the progress."""
    in_turn = ({folder: train_run(folder, config, sweep)} for folder, config in runs.items())
    begin, out, count, total = time.time(), sys.stdout, 0, sum(config.epochs for config in runs.values())
    before, _ = progress_of(runs, begin)
    with tqdm(total=total, initial=before, unit="epoch", file=out, disable=not out.isatty()) as bar:
        for rows in in_turn if sweep.jobs == 1 else train_on_ray(runs, sweep):
            bar.n, states = progress_of(runs, begin)
            minutes = (time.time() - begin) / max(bar.n - before, 1) * (total - bar.n) / 60
            for folder, row in rows.items():
                count += 1
                table = tables[folder.parent]
                table[int(row["seed"])] = row
                write_table(Path(f"{folder.parent}.csv"), [table[seed] for seed in sorted(table)])
                result = row["error"] or f"{row['last']} % at the end, best {row['best']} %"
                done = f"{count} of {len(runs)} runs, {minutes:.0f} min left"
                bar.write(f"{folder.parent.name} {folder.name}: {result} ({done})", file=out)
                out.flush()
            bar.set_description(f"{count} of {len(runs)} runs", refresh=False)
            bar.set_postfix_str(states)


def load_table(config: Config, folder: Path, target: float) -> Table:
    """Read the table beside ``folder``; its runs must have the settings of ``config``, and ``target``.

    The file's name doesn't ensure that: a recipe, or its teacher, may have changed since.
    """
    path = Path(f"{folder}.csv")
    rows = read_runs(path, COLUMNS, [*NUMBERS, "accuracy_by_epoch"])
    settings = " ".join(list_settings(config))
    if any((row["target"], row["settings"]) != (f"{target:g}", settings) for row in rows):
        raise UserError(f"{path} has another target, or other settings: choose another --output-dir")
    for row in rows:
        if len(row["accuracy_by_epoch"].split()) != (0 if row["error"] else config.epochs):
            raise UserError(f"{path} is damaged: epochs are missing; choose another --output-dir")
    return {int(row["seed"]): row for row in rows}


def main(sweep: Sweep) -> None:
    """Carry out the command line."""
    sweep.output_dir.mkdir(parents=True, exist_ok=True)
    data_path = sweep.options.data_path
    folders = {config: sweep.output_dir / sweep_name(config, data_path) for config in sweep.configs}
    seeds = range(1, sweep.seeds + 1)
    with locked(sweep.output_dir):
        tables = {path: load_table(config, path, sweep.target) for config, path in folders.items()}
        runs = {
            folder / f"seed-{seed}": replace(config, seed=seed)
            for seed in seeds
            for config, folder in folders.items()
            if seed not in tables[folder]
        }
        try:
            for name in {config.dataset for config in runs.values()}:
                load(name, data_path, train=True)  # download it once, before all runs do
            if runs:
                train_all(runs, sweep, tables)
        except KeyboardInterrupt as stop:
            raise type(stop)(CONTINUE) from None
    tables_by_flags = {flags: tables[folders[config]] for config, flags in sweep.configs.items()}
    results = {flags: [table[seed] for seed in seeds] for flags, table in tables_by_flags.items()}
    rows = [row for group in results.values() for row in group]
    sources = {f"{row['device']}, torch {row['torch']}, {row['split']} images" for row in rows if row["last"]}
    print(f"`{sweep.common_flags}`, seeds 1 to {sweep.seeds}; {' and '.join(sorted(sources))}\n")
    if sweep.grid:
        print(summary.markdown(results, sweep.target), flush=True)
    else:
        for column in ("last", "best_on_test")[: 1 + any(row["best_on_test"] for row in rows)]:
            figures = summary.figures(rows, sweep.target, column)
            lines = [f"{TITLES[column]}:", *(f"  {name:34s}{value}" for name, value in figures.items())]
            print("\n".join(lines), flush=True)
        (folder,) = folders.values()
        summary.plot(rows, sweep.target, Path(f"{folder}.png"))
        print(f"\nRows and plot: {folder}.csv, {folder}.png", flush=True)
    errors = [f"seed {row['seed']}: {row['error']}" for row in rows if row["error"]]
    if errors:
        raise UserError(f"{len(errors)} of {len(rows)} runs diverged, {errors[0]} (all: column error)")
