"""The sweep: figures against ones worked out by hand, and runs against main.py's own, killed and not."""

import csv
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from benchmarks import summary, sweep
from config import DEFAULT, FAST, Config, Options
from runtime.errors import UsageError, UserError

ROOT = Path(__file__).parent.parent
SHORT = "--recipe original --epochs 6 --limit-train-batches 6 --holdout 500 --device cpu".split()  # noqa: SIM905
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def row(seed: int, *accuracies: float, best_on_test: str = "") -> summary.Row:
    reached = next((i for i, accuracy in enumerate(accuracies, 1) if accuracy >= 99.4), None)
    made = {"seed": str(seed), "epoch_reached": str(reached or ""), "last": str(accuracies[-1])}
    made |= {"seconds_to_target": str(10 * reached) if reached else "", "seconds": "30"}
    return dict.fromkeys(summary.COLUMNS, "") | made | {"best_on_test": best_on_test}


def failed(seed: int) -> summary.Row:
    return dict.fromkeys(summary.COLUMNS, "") | {"seed": str(seed), "error": "UserError: the loss became nan"}


def test_figures_by_hand() -> None:
    rows = [row(1, 99.3, 99.41, 99.39), row(2, 99.2, 99.3, 99.35), row(3, 99.1, 99.39, 99.46), failed(4)]
    found = summary.figures(rows, 99.4)
    # mean 99.4, deviation sqrt((0.01² + 0.05² + 0.06²) / 2) = 0.0557, half-width 4.303 · 0.0557 / √3 = 0.138
    assert (found["n"], found["mean, %"], found["standard deviation"]) == ("3", "99.400", "0.056")
    assert found["95 % interval (Student)"] == "99.262 to 99.538"
    assert found["p of a mean <= 99.4 (t-test)"] == "0.5"  # it is the mean itself
    # Wilson, z = 1.96: (0.5 + z²/8 ± z √(0.25/4 + z²/64)) / (1 + z²/4)
    assert found["reached 99.4 % (Wilson)"] == "2 of 4, 15% to 85%"
    medians = [text for name, text in found.items() if name.startswith("median ")]
    assert medians == ["2.5", "25.0", "30.0"]
    # (99.4 - 99.3) / (0.0557 / √3) = 3.11; Student with 2 degrees: 0.5 - 3.11 / (2 √(2 + 3.11²)) = 0.045
    assert summary.figures(rows, 99.3)["p of a mean <= 99.3 (t-test)"] == "0.045"


def test_markdown_is_sorted_and_compares_with_the_first() -> None:
    low, high = [row(1, 99.1), row(2, 99.3)], [row(1, 99.4), row(2, 99.6), row(3, 99.5)]
    lines = summary.markdown({"--a=1": [failed(1)], "--a=2": low, "--a=3": high}, 99.4).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| `--a=3`", "| `--a=2`", "| `--a=1`"]
    # 99.5 - 99.2 ± √(0.1² / 3 + 0.1414² / 2)
    assert "0.300 ± 0.115" in lines[3] and "±" not in lines[2] and "nan" not in lines[4]
    assert len({line.count("|") for line in lines}) == 1


def test_grid_is_every_combination_on_held_out_images(tmp_path: Path) -> None:
    flags = ["--output-dir", str(tmp_path), "--recipe", "fast", "--epochs", "3"]
    _, configs = parse_sweep([*flags, "--grid", "max_lr=0.25,0.3,0.30 interpolation=bilinear,nearest"])
    assert [(c.max_lr, c.interpolation) for c in configs] == [
        *((0.25, "bilinear"), (0.25, "nearest"), (0.3, "bilinear"), (0.3, "nearest"))
    ]
    assert {(c.recipe, c.epochs, c.holdout, c.early_stopping) for c in configs} == {
        ("fast", 3, 10_000, False)
    }
    assert list(configs.values())[1] == "--max-lr=0.25 --interpolation=nearest"
    names = [name_of(config, "/data") for config in [*configs, DEFAULT, FAST]]
    assert len(set(names)) == 6 and names[0] == "fast-epochs=3-holdout=10000-max_lr=0.25"
    _, (config,) = parse_sweep([*flags, "--grid", "dropout=0.1", "--holdout", "500"])
    assert config.holdout == 500


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--grid max_lr=0.1 --holdout 0", "--holdout"),
        ("--grid holdout=0,100", "--holdout"),
        ("--grid speed=1,2", "speed"),
        ("--grid seed=1,2", "seed"),
        ("--grid max_lr", "max_lr"),
        ("--grid max_lr=fast", "--max-lr"),
        ("--grid dropout=0.1,2", "--dropout"),
        ("--grid=", "--grid"),
        ("--seeds 0", "--seeds"),
        ("--jobs 0", "--jobs"),
        ("--jobs 2 --address 127.0.0.1:1", "--jobs"),
        ("--runs-per-gpu 0", "--runs-per-gpu"),
        ("--seed 3", "--seed"),
        ("--early-stopping", "--early-stopping"),
        ("--target-accuracy 99", "--target-accuracy"),
        ("--target 150", "--target"),
        ("--target nan", "--target"),
        ("--resume runs/a", "--resume"),
        ("--recipe Best", "--recipe"),
        ("--epoch 3", "--epoch"),
    ],
)
def test_refused(flags: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=named):
        parse_sweep(["--output-dir", str(tmp_path), *flags.split()])


def run_sweep(folder: Path, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "benchmarks" / "sweep.py"), "--output-dir", str(folder), *flags]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )


def test_mistakes_answer_in_one_line(tmp_path: Path) -> None:
    done = run_sweep(tmp_path, "--grid", "max_lr=0.1", "--holdout", "0")
    out, err = done.communicate(timeout=60)
    assert done.returncode == 2 and out == "" and err.count("\n") == 1 and err.startswith("sweep.py: error: ")


def weights(folder: Path) -> list[torch.Tensor]:
    return list(torch.load(folder / "last.pt", weights_only=True)["model"].values())


def rows_of(folder: Path) -> tuple[list[summary.Row], Path]:
    (table,) = folder.glob("*.csv")
    with open(table, newline="") as file:
        return list(csv.DictReader(file)), table.with_name(table.name.removesuffix(".csv"))


def check_against_main(folder: Path, alone: Path, seeds: int) -> None:
    """Compare every run in ``folder`` with main.py's of its seed, bit for bit."""
    rows, runs = rows_of(folder)
    assert [row["seed"] for row in rows] == [str(seed) for seed in range(1, seeds + 1)]
    for row in rows:
        single = alone / row["seed"]
        flags = ["--seed", row["seed"], "--no-early-stopping", "--output-dir", str(single)]
        command = [sys.executable, str(ROOT / "main.py"), *SHORT, *flags]
        subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
        pairs = zip(weights(runs / f"seed-{row['seed']}"), weights(single), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
        with open(single / "metrics.csv") as file:
            accuracies = [f"{float(line['eval_accuracy']):g}" for line in csv.DictReader(file)]
        assert row["accuracy_by_epoch"].split() == accuracies and row["last"] == accuracies[-1]
        assert row["error"] == "" and row["split"] == "holdout" and float(row["best_on_test"]) > 10


def test_runs_without_ray_are_those_of_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweep").mkdir()
    monkeypatch.setattr(
        sys.modules[__name__], "SHORT", [*SHORT, "--epochs", "2", "--limit-train-batches", "3"]
    )
    done = run_sweep(tmp_path / "sweep", *SHORT, "--seeds", "1", "--jobs", "1")
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    assert "seed-1: " in out and "(1 of 1 runs" in out and "median seconds" in out
    check_against_main(tmp_path / "sweep", tmp_path / "alone", seeds=1)
    rows, runs = rows_of(tmp_path / "sweep")
    assert Path(f"{runs}.png").read_bytes().startswith(b"\x89PNG")
    for flags in (["--target", "99"], ["--epochs", "3"]):  # rows of other settings stay, and don't count
        shutil.copy(f"{runs}.csv", f"{runs}.csv".replace("epochs=2", f"epochs={flags[-1]}"))
        done = run_sweep(tmp_path / "sweep", *SHORT, *flags, "--seeds", "2", "--jobs", "1")
        assert "is of another target or schedule" in done.communicate(timeout=300)[1] and done.returncode == 1
    with open(f"{runs}.csv", newline="") as file:
        assert list(csv.DictReader(file)) == rows


def test_a_run_that_fails_is_a_row_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[float] = []

    def main(config: Config, options: Options) -> None:
        tried.append(config.max_lr)
        raise UserError("the loss became nan") if config.max_lr > 1 else MemoryError("no\nmemory")

    monkeypatch.setattr("main.main", main)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for _ in range(2):
        flags = ["--grid", "max_lr=0.3,9", "--seeds", "2", "--jobs", "1", "--output-dir", str(tmp_path)]
        with pytest.raises(UserError, match="4 of 4 runs failed"):
            sweep.main(*parse_sweep(flags))
    assert tried == [0.3, 9, 0.3, 9]
    errors = {read["error"] for path in tmp_path.glob("*.csv") for read in csv.DictReader(path.open())}
    assert errors == {"UserError: the loss became nan", "MemoryError: no memory"}
    assert "Traceback" in next(tmp_path.glob("*/seed-1.log")).read_text()


def test_data_that_cannot_be_had_is_no_runs_result(tmp_path: Path) -> None:
    for split, name in itertools.product(("train", "test"), ("a", "b")):
        (tmp_path / "one" / split / name).mkdir(parents=True)
        Image.new("L", (28, 28), ord(name)).save(tmp_path / "one" / split / name / "1.png")
    shutil.copytree(tmp_path / "one", tmp_path / "of_one")
    (tmp_path / "of").mkdir()
    flags = ["--dataset=folder", "--epochs=1", "--batch-size=2", "--jobs=1", "--seeds=1", "--output-dir"]
    flags += [str(tmp_path / "sweep"), "--data-path"]
    with pytest.raises(UserError, match="No such file"):
        sweep.main(*parse_sweep([*flags, str(tmp_path / "wrong")]))
    (tmp_path / "one").rename(tmp_path / "of" / "one")
    for name in ("of/one", "of_one"):  # each has a table of its own
        sweep.main(*parse_sweep([*flags, str(tmp_path / name)]))
    tables = [list(csv.DictReader(path.open())) for path in (tmp_path / "sweep").glob("*.csv")]
    assert [[row["error"] for row in table] for table in tables] == [[""], [""]]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="--device cuda is no mistake here")
def test_a_mistake_that_a_worker_finds_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = run_sweep(tmp_path, "--seeds", "1", "--jobs", "1", "--device", "cuda")
    one = done.communicate(timeout=300)[1]
    done = run_sweep(tmp_path, "--seeds", "1", "--jobs", "2", "--device", "cuda")
    assert done.communicate(timeout=300)[1] == one and one.startswith("sweep.py: error: argument --device")


def test_without_ray_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install ray.*--jobs 1"):
        sweep.main(*parse_sweep(["--output-dir", str(tmp_path)]))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "127.0.0.1:x"])
def test_a_cluster_that_is_not_there(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="--jobs 1"):
        sweep.main(*parse_sweep(["--output-dir", str(tmp_path), "--address", address]))


def wait_for(condition: Callable[[], bool], seconds: float = 200) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.1)


def epochs(folder: Path) -> list[int]:
    """Return how many epochs each run in ``folder`` has behind it."""
    return [path.read_text().count("holdout") for path in folder.glob("*/*/metrics.csv")]


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "sweep").mkdir()
    flags = [*SHORT, "--seeds", "2", "--jobs", "2"]
    first = run_sweep(tmp_path / "sweep", *flags)
    wait_for(lambda: any(count >= 2 for count in epochs(tmp_path / "sweep")))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = run_sweep(tmp_path / "sweep", *flags)
    out, err = second.communicate(timeout=500)
    assert second.returncode == 0, out + err
    check_against_main(tmp_path / "sweep", tmp_path / "alone", seeds=2)
    logs = [path.read_text() for path in (tmp_path / "sweep").glob("*/seed-*.log")]
    assert any("Going on after epoch" in log for log in logs)


@pytest.mark.slow
def test_a_node_that_is_killed_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    (tmp_path / "sweep").mkdir()
    options = {"object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 << 20) for _ in range(2)]
        driver = run_sweep(tmp_path / "sweep", *SHORT, "--seeds", "2", "--address", cluster.address)
        wait_for(lambda: len([count for count in epochs(tmp_path / "sweep") if count >= 2]) >= 2)
        raylet = nodes[0].all_processes["raylet"][0].process.pid
        workers = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
        for process in (raylet, *map(int, workers)):
            os.kill(process, signal.SIGKILL)
        out, err = driver.communicate(timeout=500)
        assert driver.returncode == 0, out + err
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
    check_against_main(tmp_path / "sweep", tmp_path / "alone", seeds=2)
    logs = [path.read_text() for path in (tmp_path / "sweep").glob("*/seed-*.log")]
    assert sum("Going on after epoch" in log for log in logs) == 1
