"""The sweep in workers of Ray: killed or not, the runs are main.py's; and errors of Ray are one line."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_sweep import SHORT, check_against_main, run_sweep

from benchmarks import sweep
from runtime.errors import UserError


def start(folder: Path, *flags: str) -> None:
    """Do in this process what the command does; with Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sweep.py", "--output-dir", str(folder), *flags])
        sweep.main()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="--device cuda is no mistake here")
def test_an_error_in_a_worker_is_the_same_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    run = tmp_path / "default-epochs=1" / "seed-1"
    run.mkdir(parents=True)
    (run / "last.pt").write_bytes(b"damaged")
    for flags, start in (
        (["--device", "cuda"], "argument --device"),
        (["--epochs", "1"], f"{run}: {run}/last.pt is refused: damaged"),
    ):
        lines = []
        for jobs in ("1", "2"):
            process = run_sweep(tmp_path, "--seeds", "1", "--jobs", jobs, *flags)
            lines.append(process.communicate(timeout=300)[1])
        assert lines[0] == lines[1] and lines[0].startswith(f"sweep.py: error: {start}")
        assert lines[0].count("\n") == 1 and not list(tmp_path.glob("*.csv"))


def test_without_ray_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install ray.*--jobs 1"):
        start(tmp_path)


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"^Ray: .*refused: start the cluster first$"):
        start(tmp_path, "--address", "127.0.0.1:1")


def wait_for(condition: Callable[[], bool], seconds: float = 200) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.1)


def epochs(folder: Path) -> list[int]:
    """Return how many epochs each run in ``folder`` has completed."""
    return [path.read_text().count("holdout") for path in folder.glob("*/*/metrics.csv")]


def resumed(log: str) -> bool:
    return log.count("Device: ") == 2 and log.count("Epoch 1/") == 1


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
    check_against_main(tmp_path / "sweep", SHORT, tmp_path / "alone", seeds=[1, 2])
    logs = [path.read_text() for path in (tmp_path / "sweep").glob("*/seed-*.log")]
    assert any(resumed(log) for log in logs)


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
    check_against_main(tmp_path / "sweep", SHORT, tmp_path / "alone", seeds=[1, 2])
    logs = [path.read_text() for path in (tmp_path / "sweep").glob("*/seed-*.log")]
    assert sum(resumed(log) for log in logs) == 1
