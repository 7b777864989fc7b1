"""Run a recipe, or a grid of settings, over seeds 1 to N as tasks of Ray, and say what comes out.

    python benchmarks/sweep.py --recipe default --seeds 10 --output-dir runs/proof
    python benchmarks/sweep.py --recipe fast --grid "max_lr=0.2,0.4 dropout=0,0.05" --output-dir runs/grid

Every run goes to the end of its schedule, so that nobody chooses the accuracy there: docs/sweep.md.
"""

import contextlib
import csv
import itertools
import logging
import os
import shutil
import socket
import sys
import time
import traceback
from argparse import Namespace
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
from benchmarks.arguments import name_of
from benchmarks.summary import COLUMNS, Row, figures, markdown, plot
from checkpoint import load_run, load_trained, versions
from config import Config, Options
from datasets import load
from runtime.errors import UsageError, UserError, end_in_one_line
from runtime.files import locked, read_table, write_table
from test import test
from utils import get_test_loader

ROOT = Path(__file__).resolve().parent.parent


def new_row(config: Config, args: Namespace, error: Exception | None = None) -> Row:
    """Begin the row of a run; it is the whole of it where the run failed by ``error``."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}" if error else ""
    known = {"seed": str(config.seed), "target": f"{args.target:g}", "error": text}
    return dict.fromkeys(COLUMNS, "") | known | versions()


def train_run(folder: Path, config: Config, args: Namespace) -> Row:
    """Train as main.py does, in this process and on one thread, from where ``folder`` stands; return the row.

    The row of a run that fails by itself says why. What is printed goes to a log beside ``folder``.
    """
    torch.set_num_threads(1)
    row = new_row(config, args)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "a") as log, contextlib.redirect_stdout(log):
        with contextlib.suppress(ImportError):  # on Windows; elsewhere, wait for a worker of a killed sweep
            import fcntl

            fcntl.flock(log, fcntl.LOCK_EX)
        try:
            where = Options(device=args.device, data_path=args.data_path)
            options = replace(where, resume=str(folder), given=frozenset(vars(config)))
            if not (folder / "last.pt").exists():
                shutil.rmtree(folder, ignore_errors=True)
                options = replace(where, output_dir=str(folder))
            experiment.main(config, options)
            progress, _ = load_run(folder)
            if config.holdout and args.grid is None:
                best, device = load_trained(folder / "best.pt"), torch.device("cpu")
                loader = get_test_loader(best.dataset, args.data_path, device)
                row["best_on_test"] = f"{test(best.model, device, loader)[1]:g}"
        except UsageError:  # of the sweep, not of this run
            raise
        except Exception as error:
            traceback.print_exc(file=log)
            return new_row(config, args, error)
    accuracies, seconds = zip(*((line.eval_accuracy, line.seconds) for line in progress.metrics), strict=True)
    reached = next((i for i, accuracy in enumerate(accuracies, 1) if accuracy >= args.target), None)
    names = {"cpu": f"CPU with {torch.backends.cpu.get_cpu_capability()}, 1 of {os.cpu_count()} cores"}
    if progress.device.startswith("cuda"):
        names[progress.device] = torch.cuda.get_device_name(progress.device)
    row |= progress.versions | {"device": names.get(progress.device, progress.device)}
    row["split"], row["seconds"] = progress.metrics[0].split, f"{sum(seconds):.2f}"
    row["epoch_reached"] = str(reached or "")
    row["seconds_to_target"] = f"{sum(seconds[:reached]):.2f}" if reached else ""
    row["best"], row["last"] = f"{max(accuracies):g}", f"{accuracies[-1]:g}"
    return row | {"accuracy_by_epoch": " ".join(f"{accuracy:g}" for accuracy in accuracies)}


def on_ray(runs: dict[Path, Config], args: Namespace) -> Iterator[dict[Path, Row]]:
    """Train ``runs`` in workers of Ray; yield, each second, those that have ended. Raises ``UserError``."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        import ray

        # Where connecting fails, Ray tries for minutes.
        with socket.create_server(("127.0.0.1", 0)) as server:
            host, port = args.address.rsplit(":", 1) if args.address else server.getsockname()
            socket.create_connection((host, int(port)), timeout=10).close()
        if not args.address:
            options |= {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
            options |= {"num_cpus": args.jobs, "object_store_memory": 100 << 20}
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(args.address or "local", runtime_env=environment, **options)
        end_in_one_line("sweep.py")  # Ray has put its own handler of SIGTERM in its place
        gpu = args.device != "cpu" and "GPU" in ray.cluster_resources()  # type: ignore[no-untyped-call]
        # A lost worker or node is not the run's fault: its task is done again elsewhere. But not without end.
        again = {"max_retries": 9, "retry_exceptions": False, "num_gpus": gpu / args.runs_per_gpu}
        task = ray.remote(max_calls=1)(train_run).options(**again)
        pending = {task.remote(folder, config, args): folder for folder, config in runs.items()}
        while pending:
            done, _ = ray.wait(list(pending), timeout=1)
            ended: dict[Path, Row] = {}
            for reference in done:
                folder = pending.pop(reference)
                try:
                    ended[folder] = ray.get(reference)
                except ray.exceptions.WorkerCrashedError as error:
                    ended[folder] = new_row(runs[folder], args, error)
            yield ended
    except UsageError as error:  # in a worker: Ray adds its traceback to it
        raise getattr(error, "cause", error) from None
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"Ray: {reason} (pip install ray; or --jobs 1, which does without)") from None


def progress_of(runs: dict[Path, Config], begin: float) -> tuple[int, str]:
    """Return how many epochs ``runs`` have behind them, and how far those are that moved since ``begin``."""
    epochs, going = 0, []
    for folder, config in runs.items():
        with contextlib.suppress(OSError), open(folder / "metrics.csv", encoding="utf-8") as file:
            accuracies = [f"{float(row['eval_accuracy']):.2f} %" for row in csv.DictReader(file)]
            epochs += len(accuracies)
            if os.fstat(file.fileno()).st_mtime >= begin and len(accuracies) < config.epochs:
                going.append(" ".join([folder.name, f"{len(accuracies)}/{config.epochs}", *accuracies[-1:]]))
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
                table = tables[folder.parent]
                table[int(row["seed"])] = row
                write_table(Path(f"{folder.parent}.csv"), [table[seed] for seed in sorted(table)])
                end = row["error"] or f"{row['last']} % at the end, best {row['best']} %"
                done = f"{count} of {len(runs)} runs, {left:.0f} min left"
                bar.write(f"{folder.parent.name} {folder.name}: {end} ({done})", file=out)
                out.flush()
            bar.set_description(f"{count} of {len(runs)} runs", refresh=False)
            bar.set_postfix_str(going)


def main(args: Namespace, configs: dict[Config, str]) -> None:
    """Carry out the sweep. Raises ``UserError``, ``OSError`` and ``KeyboardInterrupt``."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    seeds = range(1, args.seeds + 1)
    folders = {args.output_dir / name_of(config, args.data_path): config for config in configs}
    tables: dict[Path, dict[int, Row]] = {}
    with locked(args.output_dir):
        for folder in folders:
            tables[folder] = {int(row["seed"]): row for row in read_table(Path(f"{folder}.csv"), COLUMNS)}
            for row in tables[folder].values():
                epochs = len(row.get("accuracy_by_epoch", "").split()) or folders[folder].epochs
                if (row.get("target"), epochs) != (f"{args.target:g}", folders[folder].epochs):
                    raise UserError(
                        f"{folder}.csv is of another target or schedule: take another --output-dir"
                    )
        missing = [(folder, seed) for seed in seeds for folder in folders if seed not in tables[folder]]
        runs = {folder / f"seed-{seed}": replace(folders[folder], seed=seed) for folder, seed in missing}
        try:
            for name in {config.dataset for config in runs.values()}:
                load(name, args.data_path, train=True)  # what can't be had is no run's fault
            if runs:
                carry_out(runs, args, tables)
        except KeyboardInterrupt as stop:
            raise type(stop)("the same command goes on from here") from None
    results = {configs[folders[folder]]: [tables[folder][seed] for seed in seeds] for folder in folders}
    every = list(itertools.chain(*results.values()))
    where = {f"{row['device']}, torch {row['torch']}, {row['split']} images" for row in every if row["last"]}
    print(f"`{args.settings}`, seeds 1 to {args.seeds}; {' and '.join(sorted(where))}\n")
    if args.grid is not None:
        print(markdown(results, args.target), flush=True)
    else:
        for column in ("last", "best_on_test")[: 1 + any(row["best_on_test"] for row in every)]:
            found = figures(every, args.target, column)
            lines = [f"{column}:", *(f"  {name:34s}{text}" for name, text in found.items())]
            print("\n".join(lines), flush=True)
        plot(every, args.target, Path(f"{next(iter(folders))}.png"))
    failed = [f"seed {row['seed']}: {row['error']}" for row in every if row["error"]]
    if failed:
        raise UserError(f"{len(failed)} of {len(every)} runs failed, {failed[0]} (the others: column error)")
