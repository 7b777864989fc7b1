"""Ctrl-C and SIGTERM, sent to real processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHORT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="these are POSIX's signals")

LONG_STEP = """
import interrupt
interrupt.watch("main.py")
import torch, main
from arguments import parse_args
def train(*rest):
    print("inside", flush=True)
    a = torch.rand(8000, 8000, dtype=torch.float64)
    a @ a  # half a minute and more on one core, all of it in C++
    print("outside", flush=True)
main.train = train
main.main(parse_args({flags!r}))
"""


def interrupted(argv: list[str], number: int, wait_for: str, cwd: Path) -> tuple[int, str, str]:
    """Start ``argv``, send the signal once its output holds ``wait_for``; return status, stdout, stderr."""
    with open(cwd / "out", "w") as out, open(cwd / "err", "w") as err:
        process = subprocess.Popen(
            [sys.executable, *argv],
            stdout=out,
            stderr=err,
            cwd=cwd,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
    try:
        while wait_for not in (cwd / "out").read_text() + (cwd / "err").read_text():
            assert process.poll() is None, (cwd / "err").read_text()
            time.sleep(0.02)
        process.send_signal(number)
        process.wait(timeout=60)
    finally:
        process.kill()
    return process.returncode, (cwd / "out").read_text(), (cwd / "err").read_text()


@pytest.mark.parametrize(
    "number, status, name", [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_signal_in_training(number: int, status: int, name: str, data_path: str, tmp_path: Path) -> None:
    flags = [*SHORT, "--epochs", "9999", "--data-path", data_path]
    code, _, err = interrupted([str(ROOT / "main.py"), *flags], number, "Epoch 3/", tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    last = err.splitlines()[-1]
    epoch = torch.load(folder / "last.pt", weights_only=True)["epoch"]
    assert code == status and "Traceback" not in err and epoch >= 2
    said = re.fullmatch(
        rf"main.py: stopped by {name}: saved up to epoch (\d+); to go on: python main.py --resume (runs/.+)",
        last,
    )
    assert said and int(said[1]) in (epoch - 1, epoch) and tmp_path / said[2] == folder
    assert not list(folder.glob(".*"))


def test_a_signal_in_a_long_step(data_path: str, tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(LONG_STEP.format(flags=[*SHORT, "--data-path", data_path]))
    code, out, err = interrupted(["long.py"], signal.SIGINT, "inside", tmp_path)
    assert code == 130 and "outside" not in out and "Traceback" not in err
    assert re.search(
        r"^main.py: stopped by Ctrl-C: no epoch was complete; to go on: .*\n\Z", err, re.MULTILINE
    )


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_torch_is_imported(number: int, status: int, tmp_path: Path) -> None:
    code, out, err = interrupted(
        ["-X", "importtime", str(ROOT / "main.py")], number, "torch._utils_internal", tmp_path
    )
    lines = [line for line in err.splitlines() if line and not line.startswith("import time:")]
    assert code == status and out == "" and not list(tmp_path.glob("runs"))
    assert (
        len(lines) == 1
        and lines[0].endswith("nothing was saved")
        and lines[0].startswith("main.py: stopped by")
    )
