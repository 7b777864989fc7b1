"""net.h against PyTorch, by a program of its own; and beside net_int8.h, in C and C++."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import log_softmax, needs_cc, noise, reference, run_c, trained_net, wild_net

from datasets import MNIST, load_mnist
from export import c_code, c_int8
from model import Net

pytestmark = pytest.mark.arithmetic

# Reads images from stdin, and writes the predictions of both headers, two bytes an image, to stdout.
BOTH = """
#include "net_int8.h"
#include "net.h"
#include "net_int8.h"
#include "net.h"
#include <stdio.h>

int main(void)
{
    static struct net_scratch scratch;
    static struct net_int8_scratch int8_scratch;
    unsigned char image[784];
    float logits[10];
    int int8_logits[10];

    while (fread(image, 1, 784, stdin) == 784) {
        putchar(net_predict(image, logits, &scratch));
        putchar(net_int8_predict(image, int8_logits, &int8_scratch));
    }
    return 0;
}
"""


@needs_cc
def test_predicts_as_pytorch(tmp_path: Path) -> None:
    model, images = trained_net(), load_mnist(train=False)[0][:100]
    log_probs, expected = log_softmax(run_c(c_code.write(model), images, tmp_path)), reference(model, images)
    np.testing.assert_array_equal(log_probs.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(log_probs, expected, rtol=0, atol=1e-4)


@needs_cc
def test_computes_any_network_within_its_memory(tmp_path: Path) -> None:
    model, images = wild_net(), torch.cat([load_mnist(train=False)[0][:50], noise(50)])
    expected = reference(model, images)
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    log_probs = log_softmax(run_c(c_code.write(model), images, tmp_path, *flags))
    np.testing.assert_allclose(log_probs, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


NAMES = ("*/", "/*", "/*/*/", "a\nb", "{{arrays}}", "??/", "\\", '"', "\udcff\u202e", "猫", "")


@needs_cc
@pytest.mark.parametrize("count", [2, 26])  # fewer and more than the 16 outputs of the other layers
def test_any_number_of_classes_of_any_names(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_code, "FAST", ("-O1",))  # compiles faster
    torch.manual_seed(2)
    model, images = Net(num_classes=count).eval(), noise(20)
    classes = (*NAMES, *map(str, range(26)))[:count]
    dataset = replace(MNIST, name="folder", classes=classes, mean=0.6, std=0.25)
    with torch.inference_mode():
        expected = model((images[:, None].float() / 255 - 0.6) / 0.25)
    header = c_code.write(model, dataset)
    assert header.isascii() and header.count(b"{{arrays}}") == (count > 4)
    torch.testing.assert_close(c_code.run(header, "net", count, images), expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def headers() -> dict[str, bytes]:
    return {"net.h": c_code.write(trained_net()), "net_int8.h": c_int8.write(trained_net())}


@needs_cc
@pytest.mark.parametrize(
    ("compiler", "standard"),
    [("cc", "c99"), ("c++", "c++11"), ("clang", "c99"), ("clang++", "c++11")],
)
def test_both_headers_fit_one_program(
    headers: dict[str, bytes], compiler: str, standard: str, tmp_path: Path
) -> None:
    """Each is included twice, and by a second file that calls nothing; no compiler warns."""
    if shutil.which(compiler) is None:
        pytest.skip(f"needs the compiler {compiler}")
    for name, header in headers.items():
        (tmp_path / name).write_bytes(header)
    suffix = "cpp" if "++" in compiler else "c"
    (tmp_path / f"main.{suffix}").write_text(BOTH)
    (tmp_path / f"other.{suffix}").write_text('#include "net.h"\n#include "net_int8.h"\n')
    flags = [f"-std={standard}", "-pedantic", "-Wall", "-Wextra", "-Werror"]
    files = [f"main.{suffix}", f"other.{suffix}", "-o", "main"]
    subprocess.run([compiler, *flags, *files], cwd=tmp_path, check=True)
    images = load_mnist(train=False)[0][:20]
    done = subprocess.run(
        [tmp_path / "main"], input=images.numpy().tobytes(), capture_output=True, check=True
    )
    predictions = np.frombuffer(done.stdout, dtype=np.uint8).reshape(20, 2)
    expected = reference(trained_net(), images).argmax(1)
    np.testing.assert_array_equal(predictions, np.stack([expected, expected], axis=1))
