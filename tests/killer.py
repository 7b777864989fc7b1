"""Train, kill the training, resume it, again and again: ``python tests/killer.py FOLDER RUNS``.

Each training is a process of its own that runs ``main.main`` and gets a real SIGKILL. They are forked
from this one, which has imported torch and started no thread, so a kill costs a second and no import.
Leaves FOLDER/whole-0 and -1, which were never interrupted, and FOLDER/0, 1, ..., each killed twice.
"""

import contextlib
import functools
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch._dynamo  # noqa: E402  # the first optimizer of each process would import it, for seconds

import datasets  # noqa: E402
import main  # noqa: E402

# Both have every state that there is: dropout, momentum; the second a running average and a moving schedule.
RECIPES = (
    ["--recipe", "original", "--lr", "0.3"],
    ["--recipe", "default", "--model-ema-decay", "0.9", "--translation", "1"],
)
SHORT = ["--epochs", "4", "--limit-train-batches", "4", "--batch-size", "64", "--holdout", "500"]


def fork(flags: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Start ``main.py`` with ``flags`` in a process of its own, its output into ``log``; return its id."""
    child = os.fork()
    if child:
        return child
    with contextlib.suppress(BaseException):
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        prepare()
        sys.argv = ["main.py", *flags]
        main.main()
        os._exit(0)
    os._exit(99)


def wait(child: int) -> int:
    """Return how the process ended: its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(count: int) -> Callable[[], None]:
    """Make a preparation that kills the process right before its ``count``-th fsync, rename or gradient."""
    left = itertools.count(count, -1)

    def deadly(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **more)

        return run

    def prepare() -> None:
        os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
        torch.Tensor.backward = deadly(torch.Tensor.backward)  # type: ignore[method-assign]

    return prepare


def flags_for(folder: Path, flags: list[str]) -> list[str]:
    """Return the flags that resume the run in ``folder``, or those that begin it."""
    if (folder / "last.pt").exists():
        return ["--resume", str(folder)]
    if folder.exists():
        shutil.rmtree(folder)
    return [*flags, *SHORT, "--device", "cpu", "--output-dir", str(folder)]


def kill_and_resume(base: Path, runs: int) -> None:
    """Kill each of ``runs`` in its training, and again in the next, and let the third come to its end."""
    for number, flags in enumerate(RECIPES):
        whole = base / f"whole-{number}"
        assert wait(fork(flags_for(whole, flags), base / "log")) == 0, (base / "log").read_text()
    for number in range(runs):
        folder, flags = base / str(number), RECIPES[number % len(RECIPES)]
        for count in (3 * (number // 2) + number % 2, number % 7):
            assert wait(fork(flags_for(folder, flags), base / "log", kill_at(count))) == -signal.SIGKILL
        assert wait(fork(flags_for(folder, flags), base / "log")) == 0, (base / "log").read_text()[-2000:]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main.print_summary = lambda model: None  # it takes longer than most of the trainings
    datasets.load_mnist = functools.cache(datasets.load_mnist)
    datasets.load_mnist(True), datasets.load_mnist(False)  # once, here: reading takes longest
    kill_and_resume(Path(sys.argv[1]), int(sys.argv[2]))
