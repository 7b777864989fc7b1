import os
import runpy
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

ENDINGS = [  # what is raised; how the process ends
    ("UserError('no such thing')", 1, "program: error: no such thing"),
    ("UsageError('argument --x: no')", 2, "program: error: argument --x: no"),
    ("FileNotFoundError(2, 'No such file', 'a.pt')", 1, "program: error: a.pt: No such file"),
    ("MemoryError()", 1, "program: error: not enough memory; in training, try a smaller --batch-size"),
    (
        "RuntimeError('[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can\\'t allocate memory')",
        *(1, "program: error: not enough memory; in training, try a smaller --batch-size"),
    ),
    (
        "RuntimeError('MPS backend out of memory (MPS allocated: 17.5 GB)')",
        *(1, "program: error: not enough memory; in training, try a smaller --batch-size"),
    ),
    ("KeyboardInterrupt('saved')", 130, "program: stopped by Ctrl-C: saved"),
    ("Terminated()", 143, "program: stopped by SIGTERM"),
    ("RuntimeError('CUDA error: an illegal memory access was encountered')", 1, None),
    ("RuntimeError('Unsupported memory format')", 1, None),
    ("ValueError('the list is out of memory slots')", 1, None),  # from a bug: only torch's errors are trusted
    ("KeyError('CPUAllocator')", 1, None),
    (
        "OSError('net.h can\\'t be written: No space left')",
        1,
        "program: error: net.h can't be written: No space left",
    ),
    ("ModuleNotFoundError('No onnx', name='onnx')", 1, "program: error: No onnx: pip install onnx"),
    ("BrokenPipeError(32, 'Broken pipe')", 1, "program: error: standard output: Broken pipe"),
    ("ZeroDivisionError()", 1, None),
]


@pytest.mark.parametrize("error, status, line", ENDINGS)
def test_what_a_user_can_cause_is_one_line_and_the_rest_a_traceback(
    error: str, status: int, line: str | None
) -> None:
    code = f"from runtime.errors import *; end_in_one_line('program'); raise {error}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr.startswith("Traceback") if line is None else done.stderr == line + "\n"


@pytest.mark.parametrize("error, status, line", [ending for ending in ENDINGS if ending[2]])
def test_the_traceback_can_be_had(error: str, status: int, line: str) -> None:
    """It comes before the line, for everything that ends in one."""
    code = f"from runtime.errors import *; end_in_one_line('program'); raise {error}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"TRACEBACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    traceback, _, last = done.stderr.rstrip("\n").rpartition("\n")
    assert done.returncode == status and last == line
    assert (
        traceback.startswith("Traceback (most recent call last):\n") and error.partition("(")[0] in traceback
    )


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
COMMAND = """
import sys
from runtime.errors import run_command
sys.argv = ["some/where/program"]
run_command(lambda: print("七\\udc80") or print("七", file=sys.stderr))
"""
MISTAKE = """
import sys
from runtime.errors import UsageError, run_command
sys.argv = ["program/__main__.py"]
def main():
    print("Device: cpu")
    raise UsageError("argument --x: no")
run_command(main)
"""


@pytest.mark.parametrize("redirection", ["", ">&-", ">/dev/full", ">/dev/null"])
@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell redirects")
def test_a_mistake_is_named_whatever_becomes_of_the_output(redirection: str) -> None:
    """Also where something was printed before."""
    done = subprocess.run(
        f'"$PYTHON" -c "$CODE" {redirection}',
        shell=True,
        cwd=ROOT,
        env=BUFFERED | {"PYTHON": sys.executable, "CODE": MISTAKE},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "program: error: argument --x: no\n")


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell redirects")
def test_help_that_nobody_takes_is_one_line() -> None:
    code = "import argparse, sys; from runtime.errors import *; sys.argv = ['program', '--help']; "
    code += "run_command(lambda: argparse.ArgumentParser().parse_args())"
    for redirection, status, error in (("", 0, ""), (">/dev/full", 1, "No space left on device")):
        done = subprocess.run(
            f'"$PYTHON" -c "$CODE" {redirection}',
            shell=True,
            cwd=ROOT,
            env=BUFFERED | {"PYTHON": sys.executable, "CODE": code},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status and done.stderr.count("\n") == bool(error) and error in done.stderr


@pytest.mark.parametrize(
    "redirection, status, out, err",
    [
        ("", 0, "\\u4e03\\udc80\n", "\\u4e03\n"),
        (">&-", 1, "", "\\u4e03\nprogram: error: standard output: Bad file descriptor\n"),
        ("2>&-", 0, "\\u4e03\\udc80\n", ""),
        (">&- 2>&-", 1, "", ""),
        (">/dev/full", 1, "", "\\u4e03\nprogram: error: standard output: No space left on device\n"),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell redirects")
@pytest.mark.usefixtures("unicode_names")
def test_output_that_cannot_be_encoded_or_written(redirection: str, status: int, out: str, err: str) -> None:
    done = subprocess.run(
        f'"$PYTHON" -c "$CODE" {redirection}',
        shell=True,
        cwd=ROOT,
        env=BUFFERED | {"PYTHON": sys.executable, "CODE": COMMAND, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


def test_an_old_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "runtime" / "__init__.py"))
    assert ended.value.code == "error: Python 3.10 or later is needed, not 3.9"


@pytest.mark.usefixtures("unicode_names")
def test_a_message_is_one_line_whatever_a_name_holds() -> None:
    code = "from runtime.errors import *; end_in_one_line('program'); raise UserError('a\\nb\\x1b[31m七')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == "program: error: a\\nb\\x1b[31m七\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_sigterm_ends_like_ctrl_c() -> None:
    code = "import os, time; from runtime.errors import *; end_in_one_line('program'); "
    code += f"os.kill(os.getpid(), {int(signal.SIGTERM)}); time.sleep(9)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "program: stopped by SIGTERM\n")
