"""What a machine or a person does to a run: kills, signals, full disks. Nothing is lost; one line says so."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from runs import SHORT, assert_same_run, call

from runtime.files import replace_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="signals, fork and mount are POSIX's"),
]


def test_killed_and_resumed_is_as_if_never_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "killer.py", tmp_path, "24"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for number in range(24):
        assert_same_run(tmp_path / str(number), tmp_path / f"whole-{number % 2}")


def interrupted(argv: list[str], number: int, wait_for: str, cwd: Path) -> tuple[int, str]:
    """Start ``argv``, send the signal once its output holds ``wait_for``; return the status and stderr."""
    with open(cwd / "out", "w") as out, open(cwd / "err", "w") as err:
        # A shell starts a command in the background with Ctrl-C ignored, and a test would inherit that.
        reset = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen([sys.executable, *argv], stdout=out, stderr=err, cwd=cwd, preexec_fn=reset)
    try:
        while wait_for not in (cwd / "out").read_text() + (cwd / "err").read_text():
            assert process.poll() is None, (cwd / "err").read_text()
            time.sleep(0.02)
        process.send_signal(number)
        process.wait(timeout=60)
    finally:
        process.kill()
    return process.returncode, (cwd / "err").read_text()


@pytest.mark.parametrize(
    "number, status, name", [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_signal_in_training_says_how_the_run_goes_on(
    number: int, status: int, name: str, tmp_path: Path
) -> None:
    flags = [*SHORT, "--epochs", "9999"]
    code, err = interrupted([str(ROOT / "main.py"), *flags], number, "Epoch 3/", tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    epoch = len(torch.load(folder / "last.pt", weights_only=True)["metrics"])
    assert code == status and "Traceback" not in err and epoch >= 2
    line = rf"main.py: stopped by {name}: to continue: python main.py --resume (.+)"
    said = re.fullmatch(line, err.splitlines()[-1])
    assert said and tmp_path / said[1] == folder
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with 200 kB of space."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("a small tmpfs can't be mounted here")
    except FileNotFoundError:
        pytest.skip("no mount here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_what_was_saved(full_disk: Path) -> None:
    # There is room for last.pt at first; best.pt and a second last.pt beside the first are too much.
    with pytest.raises(OSError, match=r"(best|last)\.pt can't be written: No space left on device"):
        call(*SHORT, "--output-dir", str(full_disk / "run"))
    metrics = torch.load(full_disk / "run" / "last.pt", weights_only=True)["metrics"]
    lines = (full_disk / "run" / "metrics.csv").read_text().splitlines()
    assert len(lines) in (0, len(metrics) + 1, len(metrics) + 2)
    assert not list((full_disk / "run").glob(".*.tmp"))


def test_a_file_stays_whole_on_a_full_disk(full_disk: Path) -> None:
    replace_file(full_disk / "file", bytes(150_000))
    for size in (198_000, 300_000, 10**6):
        with pytest.raises(OSError, match="file can't be written: No space left on device"):
            replace_file(full_disk / "file", bytes(size))
        assert (full_disk / "file").stat().st_size == 150_000
        assert [file.name for file in full_disk.iterdir()] == ["file"]


def test_a_read_only_folder_is_named(full_disk: Path) -> None:
    (full_disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    for folder in (full_disk / "run", full_disk / "new"):
        command = [sys.executable, str(ROOT / "main.py"), *SHORT, "--output-dir", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        line = rf"main\.py: error: {re.escape(str(folder))}.*: Read-only file system: name a folder for the "
        line += r"results by --output-dir\n"
        assert re.fullmatch(line, done.stderr)


@pytest.mark.parametrize("flags", [SHORT, ["--test-only", "--weights", str(ROOT / "weights" / "best.pt")]])
def test_output_that_nobody_takes_is_one_line(flags: list[str], tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        command = [sys.executable, str(ROOT / "main.py"), *flags]
        done = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "main.py: error: standard output: No space left on device\n"
