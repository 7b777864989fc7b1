"""The command python -m export: what it writes, prints and refuses."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint import load_trained
from config import UsageError, UserError
from export import __main__ as command
from export import c_code, c_int8, onnx_file
from model import Net
from utils import load_mnist

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "weights" / "best.pt"
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def short_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test set of 500, where it need not be all of it."""
    images, labels = load_mnist(train=False)
    monkeypatch.setattr(command, "load_mnist", lambda train: (images[:500], labels[:500]))
    monkeypatch.setattr(c_int8, "CALIBRATION", 100)


def run_command(*arguments: str) -> int:
    return command.main(**vars(command.parse_args([*arguments, "--weights", str(WEIGHTS)])))


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
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(command.FILES.values())
    trained = load_trained(WEIGHTS)
    assert out.startswith(f"Weights: {trained}\n") and trained.metrics is not None
    accuracies = [float(text) for text in re.findall(r"accuracy ([\d.]+)%", out)]
    assert accuracies == pytest.approx([trained.metrics.eval_accuracy] * 3, abs=0.05)
    assert out.count("10,000 of 10,000 predictions as PyTorch's, log-probabilities within ") == 2
    times = r"PyTorch [\d.]+ ms, net.onnx [\d.]+ ms, net.h [\d.]+ ms, net_int8.h [\d.]+ ms\n$"
    assert re.search("One image, median of 300 in turn on one thread: " + times, out)
    assert f"{(tmp_path / 'new' / 'net.onnx').stat().st_size:,} bytes" in out


@pytest.mark.usefixtures("short_set")
@pytest.mark.parametrize("name", ["onnx", "c", "c-int8"])
def test_wrong_file_is_an_error_and_replaces_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    elif shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    module: Any = {"onnx": onnx_file, "c": c_code, "c-int8": c_int8}[name]
    write = module.write

    def write_wrong(model: Net) -> bytes:
        wrong = load_trained(WEIGHTS).model
        wrong.conv1.weight.data[0] *= 1.01 if name != "c-int8" else -9
        content: bytes = write(wrong)
        return content

    monkeypatch.setattr(module, "write", write_wrong)
    older = tmp_path / command.FILES[name]
    older.write_text("older")
    assert run_command(name, "--output-dir", str(tmp_path)) == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"export: error: {older}: not written")


def test_compare_draws_the_line() -> None:
    labels = torch.arange(10_000) % 10
    expected = torch.full((10_000, 10), -5.0)
    expected[torch.arange(10_000), labels] = -0.1
    assert "10,000 of 10,000 predictions" in command.compare(expected + 5e-5, expected, labels, int8=False)
    with pytest.raises(UserError):
        command.compare(expected + 2e-4, expected, labels, int8=False)
    assert "accuracy 100.00%, PyTorch's 100.00%; " in command.compare(
        expected + 2e-4, expected, labels, int8=True
    )
    worse = expected.clone()
    worse[:10] = expected[:10].roll(1, dims=1)
    assert "accuracy 99.90%, PyTorch's 100.00%; 9,990 of 10,000" in command.compare(
        worse, expected, labels, int8=True
    )
    worse[10] = expected[10].roll(1)
    with pytest.raises(UserError):
        command.compare(worse, expected, labels, int8=True)
    for int8 in (False, True):
        with pytest.raises(UserError):
            command.compare(
                expected.clone().index_fill_(0, torch.tensor([5]), torch.nan), expected, labels, int8
            )


@pytest.mark.usefixtures("short_set")
def test_without_a_c_compiler_the_other_formats_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_command("c", "web", "c-int8", "--output-dir", str(tmp_path)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("needs the program cc" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["net.html"]


@pytest.mark.usefixtures("short_set")
@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_package_is_named(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, package, None)
    assert run_command("onnx", "--output-dir", str(tmp_path)) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.endswith(f"pip install {package}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("short_set")
def test_default_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["web"], output_dir=str(tmp_path)) == 0
    assert re.match(r"Weights: \S*best\.pt \(epoch \d+: \d\d\.\d\d% on the ", capsys.readouterr().out)


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
        command.parse_args(["c", "pdf"])
