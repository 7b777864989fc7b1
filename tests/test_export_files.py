"""The files of python -m export against PyTorch, by programs of their own: not by the checker that it has."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from checkpoint import load_trained
from export import c_code, onnx_file
from model import Net
from utils import load_mnist

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "weights" / "best.pt"
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
    model = load_trained(WEIGHTS).model
    pictures, labels = load_mnist(train=False)
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
    """Return the answers (N,) and log-probabilities (N, 10) that the header ``content`` gives."""
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


@pytest.mark.slow
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


@pytest.mark.slow
@needs_cc
def test_c_gives_pytorchs_answers_on_the_test_set(trained: Set, tmp_path: Path) -> None:
    model, pictures, _, expected = trained
    answers, found = run_c(c_code.write(model), pictures, tmp_path)
    np.testing.assert_array_equal(answers, expected.argmax(1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
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
