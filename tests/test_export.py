"""python -m export: what it writes, prints and refuses."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from exported import ROOT, WEIGHTS, needs_cc, noise
from PIL import Image
from torch import nn

from checkpoint import Progress, save_best
from config import ORIGINAL
from datasets import load_mnist, load_train
from export import c_code, c_int8, command, onnx_file
from export.__main__ import FILES, parse_args
from model import Net
from runtime.errors import Terminated, UsageError, UserError
from trained import EpochMetrics, load_trained


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile without the slow optimisations: -O3 takes ten times longer than the rest of a test."""
    monkeypatch.setattr(c_code, "FAST", ("-O1",))


@pytest.fixture
def short_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test set of 500 images, and as few for calibration, for tests that need no more."""
    images, labels = load_mnist(train=False)
    monkeypatch.setattr(command, "load_test", lambda *_: (images[:500], labels[:500]))
    monkeypatch.setattr(c_int8, "load", lambda name, data_path, train: ((images[500:600], None), None))
    monkeypatch.setattr(c_int8, "CALIBRATION", 100)


def run_command(*arguments: str) -> int:
    return command.main(*parse_args([*arguments, "--weights", str(WEIGHTS)]))


@needs_cc
@pytest.mark.slow
def test_command_writes_each_file_and_says_how_good_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert run_command("--output-dir", str(tmp_path / "new")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(FILES.values())
    trained = load_trained(WEIGHTS)
    assert out.startswith(f"Weights: {trained}\n") and trained.metrics is not None
    accuracies = [float(text) for text in re.findall(r"accuracy ([\d.]+)%", out)]
    assert accuracies == pytest.approx([trained.metrics.eval_accuracy] * 3, abs=0.05)
    assert out.count("10,000 of 10,000 predictions equal PyTorch's; log-probabilities differ by up to ") == 2
    for path in (tmp_path / "new").iterdir():
        assert f"{path}: {path.stat().st_size:,} bytes\n" in out


@pytest.mark.usefixtures("short_set")
@pytest.mark.parametrize(
    "name", ["onnx", pytest.param("c", marks=needs_cc), pytest.param("c-int8", marks=needs_cc)]
)
def test_wrong_file_is_an_error_and_replaces_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    module: Any = {"onnx": onnx_file, "c": c_code, "c-int8": c_int8}[name]
    write = module.write

    def write_wrong(model: Net, *arguments: object) -> bytes:
        wrong = load_trained(WEIGHTS).model
        wrong.conv1.weight.data[0] *= 1.01 if name != "c-int8" else -9
        content: bytes = write(wrong, *arguments)
        return content

    monkeypatch.setattr(module, "write", write_wrong)
    older = tmp_path / FILES[name]
    older.write_text("older")
    assert run_command(name, "--output-dir", str(tmp_path)) == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"export: error: {older}: not written")


@pytest.mark.arithmetic
@pytest.mark.usefixtures("short_set")
def test_files_are_compared_with_pytorch_in_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 rounds otherwise on another machine."""
    compared: list[torch.Tensor] = []
    monkeypatch.setattr(command, "load", lambda *_: lambda images: images)
    monkeypatch.setattr(command, "compare", lambda result, expected, *_, **__: compared.append(expected))
    assert run_command("c", "--output-dir", str(tmp_path)) == 0
    inputs = (load_mnist(train=False)[0][:500, None].double() / 255 - 0.1307) / 0.3081
    with torch.inference_mode():
        expected = load_trained(WEIGHTS).model.double()(inputs)
    torch.testing.assert_close(compared[0], expected, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("short_set")
def test_a_stopped_command_says_how_far_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_int8, "write", Mock(side_effect=Terminated))
    with pytest.raises(Terminated, match="1 of 3 formats were done"):
        run_command("web", "c-int8", "web", "c", "--output-dir", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["net.html"]


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
        (no_compiler, "no C compiler"),
        pytest.param(
            failing_compiler, "cc failed: xcrun: error: invalid active developer path", marks=needs_cc
        ),
        pytest.param(
            folder_without_programs, "failed to map segment from shared object.* set TMPDIR", marks=needs_cc
        ),
    ],
)
def test_c_that_cannot_be_run_is_written_and_called_unchecked(
    cause: Any, reason: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    cause(monkeypatch, tmp_path / "bin")
    assert run_command("c", "c-int8", "--output-dir", str(tmp_path)) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) == 5
    for name, (size, check) in zip(("net.h", "net_int8.h"), (lines[1:3], lines[3:]), strict=True):
        assert size == f"{tmp_path / name}: {(tmp_path / name).stat().st_size:,} bytes"
        assert re.match(f"    not checked: .*{reason}", check)


@needs_cc
@pytest.mark.usefixtures("short_set")
def test_c_needs_no_size(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cc").write_text(f'#!/bin/sh\nPATH="{os.environ["PATH"]}" exec "{shutil.which("cc")}" "$@"')
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_command("c-int8", "--output-dir", str(tmp_path)) == 0
    assert "    accuracy " in capsys.readouterr().out


@pytest.mark.usefixtures("short_set")
def test_onnx_without_onnxruntime_is_written(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run_command("onnx", "--output-dir", str(tmp_path)) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.endswith("pip install onnxruntime\n")
    assert "\n    not checked: it needs the package onnxruntime" in out
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.usefixtures("short_set")
def test_onnx_without_onnx_is_an_error(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run_command("onnx", "web", "--output-dir", str(tmp_path)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"export: error: {tmp_path / 'net.onnx'}: it needs the package onnx")
    assert line.endswith("pip install onnx onnxruntime")
    assert [path.name for path in tmp_path.iterdir()] == ["net.html"]


@pytest.mark.usefixtures("short_set")
def test_default_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["web"], None, tmp_path, None) == 0
    assert re.match(r"Weights: .*best\.pt \(epoch \d+: \d\d\.\d\d% on the ", capsys.readouterr().out)


@pytest.fixture
def things(tmp_path: Path) -> Path:
    """A folder with pictures of three classes, and best.pt with random weights for them."""
    noises = np.random.default_rng(1).integers(0, 256, (3, 5, 28, 28), dtype=np.uint8)
    for name, images in zip(("a cat", "dög*", "{{mean}}"), noises, strict=True):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image // 2).save(tmp_path / "pictures" / name / f"{i}.png")
    config = replace(ORIGINAL, dataset="folder")
    dataset, _ = load_train("folder", str(tmp_path / "pictures"))
    torch.manual_seed(1)
    row = EpochMetrics(1, 0.1, 1.0, 50.0, "test", 1.0, 50.0, 1.0)
    model = Net(num_classes=3).state_dict()
    pictures = str(tmp_path / "pictures")
    save_best(tmp_path, Progress(config, "cpu", pictures, dataset, {}, [row], best_model=model))
    return tmp_path


@needs_cc
def test_another_data_set_takes_its_own_classes_mean_and_deviation(
    things: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert command.main(*parse_args(["--weights", str(things / "best.pt")])) == 0
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
        log_probs = c_code.load(header, prefix, 3)(images)
        torch.testing.assert_close(log_probs, expected, rtol=0, atol=tolerance)


def test_web_page_is_refused_for_another_data_set(things: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, data_path = str(things / "best.pt"), str(things / "pictures")
    assert command.main(["web"], weights, None, data_path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"export: error: {things / 'net.html'}: the page is for MNIST's digits")
    assert not (things / "net.html").exists()


@pytest.mark.parametrize(
    ("name", "layer", "named"),
    [
        ("conv1", nn.Conv2d(1, 12, 3, padding=1), "conv1"),
        ("conv8", nn.Conv2d(10, 10, 1), "conv7"),
        ("pool2", nn.Identity(), "conv4"),
    ],
)
@pytest.mark.parametrize("module", [c_code, c_int8])
def test_c_of_another_network_is_refused(module: Any, name: str, layer: nn.Module, named: str) -> None:
    model = Net()
    setattr(model, name, layer)
    with pytest.raises(UserError, match=f"this one has another {named}"):
        module.write(model)


def test_bad_weights_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_text("no weights")
    arguments = [sys.executable, "-m", "export", "c", "--weights", str(tmp_path / "best.pt")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"export: error: {tmp_path / 'best.pt'}")
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_help_and_mistakes_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for argument, status in (("--help", 0), ("--weight=x", 2)):
        arguments = [sys.executable, "-m", "export", argument]
        done = subprocess.run(
            arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        assert "torch was imported" not in done.stderr and "Traceback" not in done.stderr


def test_unknown_format_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"argument FORMAT: must be one of onnx, .* not 'pdf'"):
        parse_args(["c", "pdf"])
