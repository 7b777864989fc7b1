import os
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


COMMAND = """
import sys, types
from runtime.errors import run_command
module = types.ModuleType("work")
module.main = lambda: print("七\\udc80") or print("七", file=sys.stderr)
sys.modules["work"] = module
run_command("program", lambda: (), "work")
"""


@pytest.mark.parametrize(
    "redirection, status, out, err",
    [
        ("", 0, "\\u4e03\\udc80\n", "\\u4e03\n"),
        (">&-", 1, "", "program: error: standard output: Bad file descriptor\n"),
        ("2>&-", 0, "\\u4e03\\udc80\n", ""),
        (">&- 2>&-", 1, "", ""),
        (">/dev/full", 1, "", "\\u4e03\nprogram: error: No space left on device\n"),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell redirects")
def test_output_that_cannot_be_encoded_or_written(redirection: str, status: int, out: str, err: str) -> None:
    done = subprocess.run(
        f'"$PYTHON" -c "$CODE" {redirection}',
        shell=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        | {"PYTHON": sys.executable, "CODE": COMMAND, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


def test_an_old_python_is_named() -> None:
    code = "import sys; sys.version_info = (3, 9, 18); import main"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (
        done.stderr == "error: this is Python 3.9; Python 3.10 or later is needed\n" and done.returncode == 1
    )


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


def test_a_python_without_the_packages_is_one_line() -> None:
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['main.py']; "
    code += "import runpy; runpy.run_path('main.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"main.py: error: torch is not installed for {sys.executable}: use .venv")
