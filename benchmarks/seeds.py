"""Prove a recipe: run it over seeds 1 to N, then say how often, how well and how fast it got there.

    python benchmarks/seeds.py --recipe reliable --seeds 10 --output-dir runs/proof

Every run goes to the end of its schedule, so that the last epoch's accuracy is chosen by nobody; the
epoch at which the target was first reached is read from its metrics. With ``--holdout`` those accuracies
are of held-out images, and the weights of the epoch that was best there meet the test set at the end.
Rows are kept in the output folder, one a seed; a seed that has its row isn't run again, so proving it
anew takes a new folder.
"""

import argparse
import csv
import math
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from arguments import number  # noqa: E402
from recipes import RECIPES  # noqa: E402

TARGET = 99.4
Row = dict[str, Any]


def student(freedom: int, level: float = 0.975) -> float:
    """Return the quantile of Student's t with ``freedom`` degrees, by integrating its density."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    area, t, step = 0.5, 0.0, 1e-4
    while area < level:
        area += step * scale * (1 + (t + step / 2) ** 2 / freedom) ** (-(freedom + 1) / 2)
        t += step
    return t


def run_seed(args: argparse.Namespace, seed: int) -> Row:
    """Train with ``seed`` in a process of its own and return its row."""
    folder = args.output_dir / args.name / f"seed-{seed}"
    if (folder / "last.pt").exists():  # from a proof that was interrupted
        flags = ["--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        flags = ["--recipe", args.recipe, "--seed", str(seed), "--target-accuracy", "100"]
        flags += ["--holdout", str(args.holdout), "--output-dir", str(folder)]
    flags += ["--device", args.device, "--data-path", args.data_path]
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs))
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *flags],
        env={**os.environ, "OMP_NUM_THREADS": threads},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.splitlines() or ["no message"])[-1]
        raise RuntimeError(f"seed {seed} failed: {reason}")
    with open(folder / "metrics.csv") as file:
        epochs = list(csv.DictReader(file))
    part = "holdout" if args.holdout else "test"
    accuracies = [float(epoch[f"{part}_accuracy"]) for epoch in epochs]
    reached = next((i for i, accuracy in enumerate(accuracies, 1) if accuracy >= TARGET), None)
    seconds = [float(epoch["seconds"]) for epoch in epochs]
    return {
        "seed": str(seed),
        "evaluated_on": part,
        "epoch_reached": str(reached or "none"),
        "seconds_to_target": f"{sum(seconds[:reached]):.2f}" if reached else "none",
        "best": f"{max(accuracies):.2f}",
        "last": f"{accuracies[-1]:.2f}",
        "best_on_test": f"{accuracy_on_test(args, folder):.2f}" if args.holdout else f"{max(accuracies):.2f}",
        "seconds": f"{sum(seconds):.2f}",
        **environment(args, threads),
        "accuracy_by_epoch": " ".join(f"{accuracy:.2f}" for accuracy in accuracies),
    }


def accuracy_on_test(args: argparse.Namespace, folder: Path) -> float:
    """Return the accuracy in percent that the best weights of the run in ``folder`` have on the test set."""
    from checkpoint import load_net
    from scores import answers
    from utils import load_mnist

    images, labels = load_mnist(args.data_path, train=False)
    said, _ = answers(load_net(folder / "best.pt")[0], images)
    return 100 * (said == labels).double().mean().item()


def environment(args: argparse.Namespace, threads: str) -> Row:
    """Return what a row says of where it was made."""
    import torch

    from checkpoint import versions

    cuda = torch.cuda.is_available() and args.device != "cpu"
    cpu = f"CPU with {torch.backends.cpu.get_cpu_capability()}, {threads} of {os.cpu_count()} cores"
    device = torch.cuda.get_device_name() if cuda else cpu
    return {"device": device, **versions()}


def spread(accuracies: list[float]) -> str:
    """Say how two or more accuracies in percent are spread, and where their mean lies."""
    n, mean, deviation = len(accuracies), statistics.mean(accuracies), statistics.stdev(accuracies)
    half = student(n - 1) * deviation / math.sqrt(n)
    return (
        f"mean {mean:.3f} %, standard deviation {deviation:.3f}, "
        f"95 % interval {mean - half:.3f} to {mean + half:.3f} % (Student)"
    )


def summarise(rows: list[Row]) -> str:
    """Say what the rows prove, in plain lines."""
    from torch import tensor

    from scores import wilson

    n, part = len(rows), rows[0]["evaluated_on"]
    reached = [row for row in rows if row["epoch_reached"] != "none"]
    low, high = (float(end) for end in wilson(tensor(len(reached)), tensor(n)))
    lines = [
        f"runs                    {n} (seeds {rows[0]['seed']} to {rows[-1]['seed']}), {rows[0]['device']}, "
        f"torch {rows[0]['torch']}",
        f"reached {TARGET} % ({part})  {len(reached)} of {n} = {100 * len(reached) / n:.0f} %, "
        f"95 % interval {100 * low:.0f} to {100 * high:.0f} % (Wilson)",
    ]
    if n > 1:
        lines.append(f"last epoch ({part})".ljust(24) + spread([float(row["last"]) for row in rows]))
        if part == "holdout":
            chosen = [float(row["best_on_test"]) for row in rows]
            lines.append("best epoch, on test set " + spread(chosen))
    if reached:
        epoch = statistics.median(int(row["epoch_reached"]) for row in reached)
        seconds = statistics.median(float(row["seconds_to_target"]) for row in reached)
        lines.append(
            f"to the target           median epoch {epoch:g}, median {seconds:.1f} s, where it was reached"
        )
    total = statistics.median(float(row["seconds"]) for row in rows)
    lines.append(f"whole schedule          median {total:.1f} s of training and evaluation")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draw accuracy by epoch to ``path``, a PNG: a thin line a seed, the median thick."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("No plot: matplotlib is not installed (pip install matplotlib)")
        return
    curves = [[float(value) for value in row["accuracy_by_epoch"].split()] for row in rows]
    epochs = range(1, len(curves[0]) + 1)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        axes.plot(epochs, curve, color="tab:blue", linewidth=0.7, alpha=0.5)
    median = [statistics.median(values) for values in zip(*curves, strict=True)]
    axes.plot(epochs, median, color="tab:blue", linewidth=3, label=f"median of {len(rows)} seeds")
    axes.axhline(TARGET, color="tab:orange", linewidth=1, label=f"{TARGET} %")
    axes.set_ylim(98.4, 99.7)
    axes.set_xticks(epochs)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{rows[0]['evaluated_on']} accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a recipe over seeds 1 to N and say what that proves.")
    parser.add_argument("--recipe", choices=list(RECIPES), required=True)
    parser.add_argument(
        "--seeds",
        type=number(1, 10_000, whole=True),
        default=10,
        metavar="N",
        help="run seeds 1 to N (default: %(default)s)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the table, the plot and the runs; what it holds already isn't run again",
    )
    parser.add_argument(
        "--jobs",
        type=number(1, 1000, whole=True),
        default=os.cpu_count(),
        metavar="N",
        help="runs at a time (default: one a core)",
    )
    same = "as of main.py (default: %(default)s)"
    parser.add_argument("--holdout", type=number(0, 50_000, whole=True), default=0, metavar="N", help=same)
    parser.add_argument("--device", default="auto", help=same)
    parser.add_argument("--data-path", default=str(ROOT / "data"), metavar="DIR", help=same)
    args = parser.parse_args()
    args.name = args.recipe + (f"-holdout{args.holdout}" if args.holdout else "")
    args.output_dir = args.output_dir.resolve()
    args.data_path = str(Path(args.data_path).resolve())  # main.py runs in the repository, this may not
    table = args.output_dir / f"{args.name}.csv"
    rows: dict[int, Row] = {}
    if table.exists():
        with open(table) as file:
            rows = {int(row["seed"]): row for row in csv.DictReader(file)}
    wanted = [seed for seed in range(1, args.seeds + 1) if seed not in rows]
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(run_seed, args, seed) for seed in wanted]
        for future in as_completed(futures):
            try:
                row = future.result()
            except RuntimeError as error:
                pool.shutdown(cancel_futures=True)
                sys.exit(f"seeds.py: error: {error}")
            rows[int(row["seed"])] = row
            write(table, [rows[seed] for seed in sorted(rows)])
            print(
                f"seed {row['seed']}: reached at epoch {row['epoch_reached']}, best {row['best']}, "
                f"last {row['last']}, {row['seconds']} s ({len(rows)} of {args.seeds})",
                flush=True,
            )
    chosen = [rows[seed] for seed in range(1, args.seeds + 1)]
    print(summarise(chosen))
    plot(chosen, table.with_suffix(".png"))


def write(table: Path, rows: list[Row]) -> None:
    """Write the rows, whole or not at all."""
    from checkpoint import write_metrics

    table.parent.mkdir(parents=True, exist_ok=True)
    write_metrics(table, rows)


if __name__ == "__main__":
    main()
