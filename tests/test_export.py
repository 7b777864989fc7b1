"""The command export.py: what it writes, prints and refuses."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import ExportError, c_code, onnx_file

import export
from checkpoint import load_net
from model import Net
from utils import load_mnist

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "weights" / "best.pt"
DATA = str(ROOT / "data")
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def short_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test set of 500, where it need not be all of it."""
    pictures, labels = load_mnist(DATA, train=False)
    monkeypatch.setattr(export, "load_mnist", lambda *_, **__: (pictures[:500], labels[:500]))


def run_command(*arguments: str) -> int:
    return export.main(export.parse_args([*arguments, "--weights", str(WEIGHTS), "--data-path", DATA]))


@needs_cc
def test_command_writes_each_file_and_says_how_good_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert run_command("onnx", "c", "c-int8", "--output-dir", str(tmp_path / "new")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"net.onnx", "net.h", "net_int8.h"}
    accuracies = [
        float(text) for text in re.findall(r"accuracy ([\d.]+)%", out)
    ]  # PyTorch's, then the files'
    assert accuracies[0] == accuracies[1] == accuracies[2]
    assert accuracies == pytest.approx([load_net(WEIGHTS)[1]["test_accuracy"]] * 4, abs=0.1)
    assert out.count("10,000 of 10,000 answers as PyTorch's, log-probabilities within ") == 2
    assert out.count("one image ") == out.count("ratio ") == 3
    assert out.count("flash ") == out.count("RAM ") == 2
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
    module: Any = onnx_file if name == "onnx" else c_code
    write = module.write

    def write_wrong(model: Net, *args: Any) -> bytes:
        wrong, _ = load_net(WEIGHTS)
        wrong.layers[0][0].weight.data[0] *= 1.01 if name != "c-int8" else -9  # type: ignore[index]
        content: bytes = write(wrong, *args)
        return content

    monkeypatch.setattr(module, "write", write_wrong)
    assert run_command(name, "--output-dir", str(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []
    older = tmp_path / export.FILES[name]
    older.write_text("older")
    assert run_command(name, "--output-dir", str(tmp_path)) == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"export.py: error: {older}: not written")


def test_compare_draws_the_line() -> None:
    labels = torch.arange(10_000) % 10
    expected = torch.full((10_000, 10), -5.0)
    expected[torch.arange(10_000), labels] = -0.1
    assert "10,000 of 10,000 answers" in export.compare(expected + 5e-5, expected, labels, int8=False)
    with pytest.raises(ExportError):
        export.compare(expected + 2e-4, expected, labels, int8=False)
    assert "accuracy 100.00%" in export.compare(expected + 2e-4, expected, labels, int8=True)
    worse = expected.clone()
    worse[:10] = expected[:10].roll(1, dims=1)
    assert "accuracy 99.90%, 9,990 of 10,000" in export.compare(worse, expected, labels, int8=True)
    worse[10] = expected[10].roll(1)
    with pytest.raises(ExportError):
        export.compare(worse, expected, labels, int8=True)
    for int8 in (False, True):
        with pytest.raises(ExportError):
            export.compare(
                expected.clone().index_fill_(0, torch.tensor([5]), torch.nan), expected, labels, int8
            )


@pytest.mark.usefixtures("short_set")
@pytest.mark.parametrize("name", ["c", "c-int8"])
def test_without_a_c_compiler_no_c_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_command(name, "--output-dir", str(tmp_path)) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "needs a C compiler called cc" in err
    assert list(tmp_path.iterdir()) == []


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


def test_bad_weights_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_text("no weights")
    for name in ("best.pt", "none.pt"):
        command = [sys.executable, "export.py", "c", "--weights", str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"export.py: error: {tmp_path / name}")
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_help_and_mistakes_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for argument, status in (("--help", 0), ("pdf", 2), ("--weight=x", 2)):
        command = [sys.executable, "-c", "import runpy, sys; sys.argv = sys.argv[1:]; "]
        command[-1] += (
            f"sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path('export.py', run_name='__main__')"
        )
        done = subprocess.run(
            [*command, "export.py", argument],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert "torch was imported" not in done.stderr
