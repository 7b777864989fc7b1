"""python -m export: what it writes, prints and refuses."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from exported import ROOT, WEIGHTS, needs_cc, noise
from PIL import Image

from checkpoint import EpochMetrics, Run, save_run
from config import ORIGINAL
from datasets import load, load_mnist
from export import __main__ as command
from export import c_code, c_int8
from export.__main__ import FILES
from model import Net
from runtime.errors import UsageError, UserError
from trained import load_trained

Export = Callable[..., int]
CHECKED = [pytest.param(name, marks=needs_cc) for name in ("c", "c-int8")]


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile without the slow optimisations: -O3 takes ten times longer than the rest of a test."""
    monkeypatch.setattr(c_code, "FAST", ("-O1",))


@pytest.fixture
def short_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test set of 500 images, and as few for calibration, for tests that need no more."""
    images, labels = load_mnist(train=False)
    monkeypatch.setattr(command, "load_test", lambda *_: (images[:500], labels[:500]))
    monkeypatch.setattr(c_int8, "read", lambda *_, **__: ((images[500:600], None), None))
    monkeypatch.setattr(c_int8, "CALIBRATION", 100)


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> Export:
    """Run the command with the given arguments, in this process."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        return command.main()

    return run


@needs_cc
@pytest.mark.slow
def test_command_writes_each_file_and_says_how_good_it_is(
    export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert export("--output-dir", tmp_path / "new") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(FILES.values())
    trained = load_trained()
    assert out.startswith(f"Weights: {trained}\n") and trained.run and trained.run.best
    accuracies = [float(text) for text in re.findall(r"accuracy ([\d.]+)%", out)]
    assert accuracies == pytest.approx([trained.run.best.eval_accuracy] * 3, abs=0.05)
    assert out.count("10,000 of 10,000 predictions equal PyTorch's; log-probabilities differ by up to ") == 2
    for path in (tmp_path / "new").iterdir():
        assert f"{path}: {path.stat().st_size:,} bytes\n" in out


@pytest.mark.usefixtures("short_set")
@pytest.mark.parametrize("name", ["onnx", *CHECKED])
def test_wrong_file_is_an_error_and_replaces_nothing(
    name: str, export: Export, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    write = command.WRITE[name]

    def write_wrong(_: Net, *arguments: Any) -> bytes:
        wrong = load_trained(WEIGHTS).model
        wrong.conv1.weight.data[0] *= 1.01 if name != "c-int8" else -9
        return write(wrong, *arguments)

    monkeypatch.setitem(command.WRITE, name, write_wrong)
    older = tmp_path / FILES[name]
    older.write_text("older")
    assert export(name, "--output-dir", tmp_path) == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"export: error: {older.name}: not written: it differs from PyTorch: accuracy ")


@pytest.mark.usefixtures("short_set")
@pytest.mark.parametrize("name", CHECKED)
def test_header_that_does_not_compile_is_an_error_and_replaces_nothing(
    name: str, export: Export, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template lacks a semicolon."""
    read_text = Path.read_text

    def read_damaged(path: Path, **options: Any) -> str:
        text = read_text(path, **options)
        return text.replace("return best;", "return best") if path.name.endswith(".h.in") else text

    monkeypatch.setattr(Path, "read_text", read_damaged)
    older = tmp_path / FILES[name]
    older.write_text("older")
    assert export(name, "web", "--output-dir", tmp_path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"export: error: {older.name}: not written: cc fails: .*error: expected .*;", line)
    assert older.read_text() == "older" and (tmp_path / "net.html").exists()


@pytest.mark.arithmetic
@pytest.mark.usefixtures("short_set")
def test_files_are_compared_with_pytorch_in_float64(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 rounds otherwise on another machine."""
    checked: list[torch.Tensor] = []
    monkeypatch.setattr(command, "check", lambda *arguments: checked.append(arguments[-1]))
    assert export("c", "--output-dir", tmp_path) == 0
    inputs = (load_mnist(train=False)[0][:500, None].double() / 255 - 0.1307) / 0.3081
    with torch.inference_mode():
        expected = load_trained(WEIGHTS).model.double()(inputs)
    torch.testing.assert_close(checked[0], expected, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("short_set")
def test_file_that_cannot_be_written_is_named_once(export: Export, tmp_path: Path, capsys: Any) -> None:
    """As in a read-only clone; root may write to any folder, so a folder has the name of the file."""
    shutil.copy(WEIGHTS, tmp_path)
    (tmp_path / "net.html").mkdir()
    assert export("web", "--weights", tmp_path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"export: error: net.html: not written: {tmp_path / 'net.html'} can't be written")


def test_compare_draws_the_line() -> None:
    labels = torch.arange(10_000) % 10
    expected = torch.full((10_000, 10), -5.0)
    expected[torch.arange(10_000), labels] = -0.1
    assert "10,000 of 10,000 predictions" in command.compare(expected + 5e-4, expected, labels, int8=False)
    with pytest.raises(UserError):
        command.compare(expected + 2e-3, expected, labels, int8=False)
    assert "accuracy 100.00%, PyTorch's 100.00%; " in command.compare(
        expected + 2e-3, expected, labels, int8=True
    )
    tie = torch.tensor([[-0.6931, -0.6932]])
    assert "0 of 1 predictions" in command.compare(tie.flip(1), tie, labels[:1], int8=False)
    worse = expected.clone()
    worse[:10] = expected[:10].roll(1, dims=1)
    assert "accuracy 99.90%, PyTorch's 100.00%; 9,990 of 10,000" in command.compare(
        worse, expected, labels, int8=True
    )
    worse[10] = expected[10].roll(1)
    with pytest.raises(UserError):
        command.compare(worse, expected, labels, int8=True)
    # A test set of ten images may lose one, not two.
    ten = expected[:10].roll(1, dims=1)[:1], expected[1:10]
    assert "accuracy 90.00%" in command.compare(torch.cat(ten), expected[:10], labels[:10], int8=True)
    with pytest.raises(UserError):
        command.compare(worse[[0, 1, *range(20, 28)]], expected[:10], labels[:10], int8=True)
    for int8 in (False, True):
        with pytest.raises(UserError):
            command.compare(
                expected.clone().index_fill_(0, torch.tensor([5]), torch.nan), expected, labels, int8
            )


def no_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", str(folder))


def failing_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As on macOS without its developer tools."""
    (folder / "cc").write_text("#!/bin/sh\necho 'xcrun: error: invalid active developer path' >&2; exit 1")
    (folder / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def folder_without_programs(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As where the temporary folder is mounted with noexec."""
    error = OSError("program.so: failed to map segment from shared object")
    monkeypatch.setattr(ctypes, "CDLL", Mock(side_effect=error))


@pytest.mark.usefixtures("short_set")
@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (no_compiler, "No such file or directory: 'cc'"),
        pytest.param(failing_compiler, "cc fails: xcrun: error: invalid active developer", marks=needs_cc),
        pytest.param(folder_without_programs, "program.so: failed to map segment", marks=needs_cc),
    ],
)
def test_c_that_cannot_be_run_is_written_and_called_unchecked(
    cause: Any, reason: str, export: Export, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    cause(monkeypatch, tmp_path / "bin")
    assert export("c", "c-int8", "--output-dir", tmp_path) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) == 5
    for name, (size, check) in zip(("net.h", "net_int8.h"), (lines[1:3], lines[3:]), strict=True):
        assert size == f"{tmp_path / name}: {(tmp_path / name).stat().st_size:,} bytes"
        assert re.match(f"    not checked: .*{reason}", check)


@pytest.mark.usefixtures("short_set")
def test_onnx_without_onnxruntime_is_written(
    export: Export, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export("onnx", "--output-dir", tmp_path) == 0
    out, err = capsys.readouterr()
    assert err == "" and "\n    not checked: pip install onnxruntime" in out
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.usefixtures("short_set")
def test_onnx_without_onnx_is_an_error(
    export: Export, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export("onnx", "web", "web", "--output-dir", tmp_path) == 1
    out, err = capsys.readouterr()
    assert err == "export: error: net.onnx: not written: pip install onnx\n"
    assert [path.name for path in tmp_path.iterdir()] == ["net.html"] and out.count("net.html") == 1


@pytest.fixture
def things(tmp_path: Path, unicode_names: None) -> Path:
    """A folder with pictures of three classes, and best.pt with random weights for them."""
    noises = np.random.default_rng(1).integers(0, 256, (3, 5, 28, 28), dtype=np.uint8)
    for name, images in zip(("a cat", "dög*", "{{mean}}"), noises, strict=True):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image // 2).save(tmp_path / "pictures" / name / f"{i}.png")
    config = replace(ORIGINAL, dataset="folder")
    dataset, *_ = load("folder", str(tmp_path / "pictures"))
    torch.manual_seed(1)
    row = EpochMetrics(1, 0.1, 1.0, 50.0, "test", 1.0, 50.0, 1.0)
    save_run(Run(tmp_path, config, dataset, "cpu", {}, [row], Net(num_classes=3).state_dict()), {})
    return tmp_path


@needs_cc
def test_another_data_set_takes_its_own_classes_mean_and_deviation(
    export: Export, things: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert export("--weights", things / "best.pt") == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("3 of 3 predictions equal PyTorch's") >= 2
    assert {path.name for path in things.glob("net*")} == {"net.onnx", "net.h", "net_int8.h"}

    trained, images = load_trained(things / "best.pt"), noise(50)
    assert trained.dataset.mean > 0.2  # not MNIST's
    with torch.inference_mode():
        inputs = (images[:, None].float() / 255 - trained.dataset.mean) / trained.dataset.std
        expected = trained.model(inputs)
    session = onnxruntime.InferenceSession(things / "net.onnx", providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == ["N", 3]
    log_probs = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-4)
    for prefix, tolerance in (("net", 1e-4), ("net_int8", 0.05)):
        header = (things / f"{prefix}.h").read_bytes()
        assert b" *     0 'a cat'\n *     1 'd\\xf6g*'\n *     2 '{{mean}}'\n */" in header
        log_probs = c_code.run(header, prefix, 3, images)
        torch.testing.assert_close(log_probs, expected, rtol=0, atol=tolerance)


def test_web_page_is_refused_for_another_data_set(export: Export, things: Path) -> None:
    with pytest.raises(UsageError, match="FORMAT: must be of onnx, c, c-int8 for folder, not web"):
        export("web", "--weights", things, "--data-path", things / "pictures")
    assert not (things / "net.html").exists()


@pytest.mark.slow  # four processes
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["c", "pdf"], 2, "argument FORMAT: must be of onnx, c, c-int8, web for mnist, not pdf"),
        (["--weight=x"], 2, "unrecognized arguments: --weight=x"),
        (["--weights", __file__], 1, f"{__file__} is refused"),
        (["--help"], 0, ""),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], status: int, message: str) -> None:
    command_line = [sys.executable, "-m", "export", *arguments]
    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr.count("\n") == (status > 0)
    assert not status or done.stderr.startswith(f"export: error: {message}")
