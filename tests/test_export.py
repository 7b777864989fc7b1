"""The exported files against PyTorch, by programs of their own: not by the checker that export.py has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import export
from checkpoint import load_net
from exports import ExportError, c_code, onnx_file
from model import Net
from utils import load_mnist

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "weights" / "best.pt"
DATA = str(ROOT / "data")
CC = ["cc", "-Wall", "-Wextra", "-Werror", "-std=c99", "-pedantic", "-O2"]
C_FORMATS = {"c": False, "c-int8": True}
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

# Pictures come in on stdin; the answers and the logits of each go out on stdout.
PROGRAM = """
#include <stdio.h>
#include "net.h"

int main(void)
{
    unsigned char picture[784];
    float line[11];

    while (fread(picture, 1, 784, stdin) == 784) {
        line[0] = (float)predict(picture, line + 1);
        if (fwrite(line, sizeof *line, 11, stdout) != 11)
            return 1;
    }
    return 0;
}
"""

Set = tuple[Net, Tensor, Tensor, np.ndarray[Any, Any]]


def reference(model: Net, pictures: Tensor) -> np.ndarray[Any, Any]:
    """Return PyTorch's log-probabilities (N, 10) of pictures, uint8 (N, 28, 28)."""
    with torch.inference_mode():
        inputs = (pictures[:, None].float() / 255 - 0.1307) / 0.3081
        parts = [model(part) for part in torch.split(inputs, 500)]
    return torch.cat(parts).double().numpy()


@pytest.fixture(scope="module")
def trained() -> Set:
    """The trained network, the test set's pictures and labels, and PyTorch's log-probabilities."""
    model, _ = load_net(WEIGHTS)
    pictures, labels = load_mnist(DATA, train=False)
    return model, pictures, labels, reference(model, pictures)


def wild_net() -> Net:
    """A network with what training rarely makes: negative and zero factors, a channel without weights."""
    torch.manual_seed(3)
    model = Net().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.01, 4)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.zeros_(module.weight[2:3])
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.bias)  # type: ignore[arg-type]
            nn.init.zeros_(module.weight[1])
    return model


def run_c(
    content: bytes, pictures: Tensor, folder: Path
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the answers (N,) and log-probabilities (N, 10) that a program with the header ``content`` gives."""
    (folder / "net.h").write_bytes(content)
    (folder / "main.c").write_text(PROGRAM)
    subprocess.run([*CC, "main.c", "-o", "main"], cwd=folder, check=True)
    done = subprocess.run(
        [folder / "main"], input=pictures.numpy().tobytes(), capture_output=True, check=True
    )
    lines = np.frombuffer(done.stdout, dtype=np.float32).reshape(len(pictures), 11).astype(np.float64)
    scores = lines[:, 1:] - lines[:, 1:].max(axis=1, keepdims=True)
    return lines[:, 0], scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def run_onnx(content: bytes, pictures: Tensor) -> np.ndarray[Any, Any]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.type, given.shape[1:], result.shape[1:]) == ("tensor(uint8)", [28, 28], [10])
    (log_probs,) = session.run(None, {given.name: pictures.numpy()})
    assert log_probs.shape == (len(pictures), 10)
    return np.asarray(log_probs)


def test_onnx_gives_pytorchs_answers_on_the_test_set(trained: Set) -> None:
    pytest.importorskip("onnx")
    model, pictures, _, expected = trained
    found = run_onnx(onnx_file.write(model), pictures)
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_onnx_takes_any_number_of_pictures(trained: Set) -> None:
    pytest.importorskip("onnx")
    model, pictures, _, expected = trained
    content = onnx_file.write(model)
    for count in (1, 7, 100):
        found = run_onnx(content, pictures[:count])
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-4)


def test_onnx_is_one_file_of_standard_operators(trained: Set) -> None:
    onnx = pytest.importorskip("onnx")
    file = onnx.load_from_string(onnx_file.write(trained[0]))
    assert {node.domain for node in file.graph.node} == {""}
    assert all(not number.external_data for number in file.graph.initializer)
    weights = sum(np.prod(n.dims) for n in file.graph.initializer if len(n.dims) == 4)
    assert weights == sum(p.numel() for p in trained[0].parameters() if p.dim() == 4)


@needs_cc
def test_c_gives_pytorchs_answers_on_the_test_set(trained: Set, tmp_path: Path) -> None:
    model, pictures, _, expected = trained
    answers, found = run_c(c_code.write(model), pictures, tmp_path)
    np.testing.assert_array_equal(answers, expected.argmax(1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@needs_cc
def test_c_with_8_bit_weights_keeps_the_accuracy(trained: Set, tmp_path: Path) -> None:
    model, pictures, labels, expected = trained
    answers, found = run_c(c_code.write(model, int8=True), pictures, tmp_path)
    np.testing.assert_array_equal(answers, found.argmax(1))
    lost = (expected.argmax(1) == labels.numpy()).sum() - (answers == labels.numpy()).sum()
    assert lost <= 10
    assert not np.allclose(found, expected, atol=1e-4), "the weights were not rounded"


@needs_cc
def test_files_compute_any_network(trained: Set, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model, noise = wild_net(), torch.randint(0, 256, (50, 28, 28), dtype=torch.uint8)
    pictures = torch.cat([trained[1][:50], noise])
    expected = reference(model, pictures)
    scale = np.abs(expected).max()
    _, by_c = run_c(c_code.write(model), pictures, tmp_path)
    np.testing.assert_allclose(by_c, expected, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(
        run_onnx(onnx_file.write(model), pictures), expected, rtol=0, atol=1e-5 * scale
    )


@needs_cc
def test_c_with_8_bit_weights_is_the_network_with_rounded_weights(trained: Set, tmp_path: Path) -> None:
    model = wild_net()
    content = c_code.write(model, int8=True)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            for channel in module.weight.data:
                step = channel.abs().max() / 127
                channel.copy_((channel / step).round() * step if step > 0 else channel)
    pictures = trained[1][:100]
    expected = reference(model, pictures)
    _, found = run_c(content, pictures, tmp_path)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@needs_cc
@pytest.mark.parametrize("name", C_FORMATS)
@pytest.mark.parametrize("optimise", ["-Os", "-O2"])
def test_c_needs_little_memory_and_no_library(name: str, optimise: str, trained: Set, tmp_path: Path) -> None:
    (tmp_path / "net.h").write_bytes(c_code.write(trained[0], C_FORMATS[name]))
    (tmp_path / "one.c").write_text(
        '#include "net.h"\nint one(const unsigned char *picture, float *logits);\n'
        "int one(const unsigned char *picture, float *logits) { return predict(picture, logits); }\n"
    )
    command = [*CC[:-1], optimise, "-fstack-usage", "-c", "one.c"]
    subprocess.run(command, cwd=tmp_path, check=True)

    def ask(*tool: str) -> list[list[str]]:
        done = subprocess.run([*tool, "one.o"], cwd=tmp_path, capture_output=True, text=True, check=True)
        return [line.split() for line in done.stdout.splitlines() if line]

    assert {line[-1] for line in ask("nm", "-u")} <= {"memcpy", "memset"}
    sizes = {line[0]: int(line[1]) for line in ask("size", "-A", "-d") if line[0].startswith(".")}
    constants = sum(size for section, size in sizes.items() if section.startswith(".rodata"))
    stack = sum(int(line.split("\t")[1]) for line in (tmp_path / "one.su").read_text().splitlines())
    static = sum(size for section, size in sizes.items() if section.startswith((".data", ".bss")))
    assert 9_498 < constants < (12_000 if C_FORMATS[name] else 41_000)
    assert 16_000 < static + stack < 64_000
    assert stack < 2_000


@needs_cc
def test_c_compiles_without_a_warning_when_most_are_asked_for(trained: Set, tmp_path: Path) -> None:
    for int8 in (False, True):
        (tmp_path / "net.h").write_bytes(c_code.write(trained[0], int8))
        (tmp_path / "main.c").write_text(PROGRAM)
        more = [
            "-Wconversion",
            "-Wshadow",
            "-Wdouble-promotion",
            "-Wmissing-prototypes",
            "-Wundef",
            "-Wcast-qual",
        ]
        subprocess.run([*CC, *more, "-c", "main.c"], cwd=tmp_path, check=True)


@pytest.fixture
def short_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test set of 500, where it need not be all of it."""
    pictures, labels = load_mnist(DATA, train=False)
    monkeypatch.setattr(export, "load_mnist", lambda *_, **__: (pictures[:500], labels[:500]))


def run_command(*arguments: str) -> int:
    return export.main(export.parse_args([*arguments, "--weights", str(WEIGHTS), "--data-path", DATA]))


@needs_cc
def test_command_writes_each_file_and_says_how_good_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: Set
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert run_command("onnx", "c", "c-int8", "--output-dir", str(tmp_path / "new")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"net.onnx", "net.h", "net_int8.h"}
    _, _, labels, expected = trained
    accuracy = f"accuracy {(expected.argmax(1) == labels.numpy()).mean():.2%}, "
    assert out.count(accuracy + "10,000 of 10,000 answers as PyTorch's, log-probabilities within ") == 2
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
@pytest.mark.parametrize("name", C_FORMATS)
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
