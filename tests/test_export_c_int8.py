"""net_int8.h against a second implementation, on this machine and on emulated microcontrollers."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported import (
    CC,
    ROOT,
    Numbers,
    log_softmax,
    needs_cc,
    noise,
    reference,
    run_c,
    trained_net,
    wild_net,
)
from torch import Tensor, nn

from datasets import MNIST, load_mnist
from export import c_code, c_int8
from model import Net
from runtime.errors import UserError

pytestmark = pytest.mark.arithmetic

ARM = "arm-none-eabi-"
BARE = "-O2 -ffreestanding -nostdlib -fno-tree-loop-distribute-patterns"
needs_arm = pytest.mark.skipif(
    shutil.which(f"{ARM}gcc") is None, reason="needs arm-none-eabi-gcc: apt-get install gcc-arm-none-eabi"
)
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-arm") is None, reason="needs QEMU: apt-get install qemu-system-arm"
)


@pytest.fixture(scope="module")
def header() -> bytes:
    return c_int8.write(trained_net())


@pytest.fixture
def calibration(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Few training images, for tests that don't ask for accuracy; ``write`` gets them too."""
    images = load_mnist(train=True)[0][:100]
    monkeypatch.setattr(c_int8, "read", lambda *_, **__: ((images, None), None))
    monkeypatch.setattr(c_code, "FAST", ("-O1",))  # compiles faster
    return images


def simulate(layers: list[c_int8.Quantized], images: Tensor) -> Numbers:
    """Compute the logits from whole maps, in float64, which is exact for these integers."""
    x = images[:, None].double()
    for layer in layers[:-1]:
        if layer.weight.shape[-1] == 3:
            zeros = layer.zero.view(1, -1, 1, 1)
            x = F.pad(x - zeros, (1, 1, 1, 1)) + zeros
        else:
            x = F.max_pool2d(x, 2)
        sums = F.relu(F.conv2d(x, layer.weight, layer.bias)).div(2**layer.sum_shift).floor()
        products = sums * layer.factor.view(-1, 1, 1) + layer.offset.view(-1, 1, 1)
        x = (products / 2**layer.output_shift).floor().clamp(0, 255)
    last = layers[-1]
    return (x.sum(dim=(2, 3)) @ last.weight.flatten(1).T + last.bias).numpy()


@needs_cc
@pytest.mark.parametrize("make", [trained_net, wild_net])
def test_is_the_quantized_network(make: type[Net], calibration: Tensor, tmp_path: Path) -> None:
    model, images = make(), torch.cat([load_mnist(train=False)[0][:60], noise(20)])
    layers, _, bound = c_int8.quantize(model, calibration)
    logits = run_c(c_int8.write(model), images, tmp_path, prefix="net_int8")
    np.testing.assert_array_equal(logits, simulate(layers, images))
    assert np.abs(logits).max() <= bound < 2**31


def test_keeps_negative_factors_and_the_order_of_the_layers(calibration: Tensor) -> None:
    """On a trained network, where factors of batch norm and the weights that follow change their sign."""
    model, images = trained_net(), calibration
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    followers = model.conv2, model.conv1x1_1, model.conv4, model.conv1x1_2, model.conv6, model.conv7
    for norm, convolution in zip(norms, followers, strict=True):
        signs = torch.randint(2, norm.weight.shape, generator=generator) * 2 - 1
        norm.weight.data *= signs
        norm.bias.data *= signs
        convolution.weight.data *= signs.view(-1, 1, 1)
    layers, one, _ = c_int8.quantize(model, calibration)
    expected, log_probs = reference(model, images), log_softmax(simulate(layers, images) / one)
    assert any((layer.factor < 0).any() for layer in layers)
    # 8 bits add some noise: the correlation is 0.9997. With a layer out of order, padding before batch norm,
    # or signs lost, it is below 0.9.
    assert np.corrcoef(expected.ravel(), log_probs.ravel())[0, 1] > 0.99


@needs_cc
def test_another_data_set_has_its_own_mean_deviation_and_classes(
    calibration: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = {("folder", "pictures", True): ((calibration, None), None)}
    monkeypatch.setattr(c_int8, "read", lambda name, path, train: sets[name, path, train])
    trained, model = trained_net().state_dict(), Net(num_classes=26).eval()
    trained |= {name: trained[name][torch.arange(26) % 10] for name in ("conv7.weight", "conv7.bias")}
    model.load_state_dict(trained)
    classes = tuple(map(str, range(26)))
    dataset = replace(MNIST, name="folder", classes=classes, mean=0.3, std=0.2, path="pictures")
    layers, one, _ = c_int8.quantize(model, calibration, dataset)
    assert layers[0].zero.tolist() == [76]  # the mean, as a pixel
    header = c_int8.write(model, dataset)
    log_probs = c_code.run(header, "net_int8", 26, calibration).numpy()
    np.testing.assert_allclose(log_probs, log_softmax(simulate(layers, calibration) / one), rtol=0, atol=1e-4)
    with torch.inference_mode():
        expected = model((calibration[:, None].float() / 255 - 0.3) / 0.2).numpy()
    assert np.corrcoef(expected.ravel(), log_probs.ravel())[0, 1] > 0.995


def test_weights_that_32_bits_cannot_hold_are_refused(calibration: Tensor) -> None:
    model = trained_net()
    model.conv7.weight.data *= 1e9
    with pytest.raises(UserError, match="32 bits"):
        c_int8.quantize(model, calibration)


@needs_cc
@pytest.mark.slow
@pytest.mark.parametrize("make", [trained_net, wild_net])
def test_any_bytes_are_an_image(make: type[Net], tmp_path: Path) -> None:
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    images = torch.cat([load_mnist(train=False)[0][:200], noise(800)])  # with blank areas, and without
    assert len(run_c(c_int8.write(make()), images, tmp_path, *flags, prefix="net_int8")) == 1000


@needs_arm
def test_is_small_and_needs_no_float_no_library_and_no_memory_of_its_own(
    header: bytes, tmp_path: Path
) -> None:
    assert not re.search(r"\b(float|double)\b|#\s*include", header.decode().replace("floating point", ""))
    (tmp_path / "net.h").write_bytes(header)
    call = "int f(const unsigned char *image, int *logits, struct net_int8_scratch *scratch)"
    text = f'#include "net.h"\n{call};\n{call} {{ return net_int8_predict(image, logits, scratch); }}\n'
    (tmp_path / "one.c").write_text(text)
    compiler = [f"{ARM}gcc", *CC[1:], "-mcpu=cortex-m0", "-mthumb", "-O2", "-c", "one.c"]
    subprocess.run(compiler, cwd=tmp_path, check=True)

    def ask(tool: str, *flags: str) -> list[str]:
        command = [f"{ARM}{tool}", *flags, "one.o"]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.split()

    assert set(ask("nm", "-u")) <= {"U", "memcpy", "memmove", "memset"}
    flash, data, bss = map(int, ask("size")[6:9])
    assert flash <= 16 * 1024 and data == bss == 0


@needs_arm
@needs_qemu
@needs_cc
@pytest.mark.slow
@pytest.mark.parametrize(("cpu", "machine", "clock"), [("m0", "microbit", 16), ("m4", "mps2-an386", 25)])
def test_microcontrollers_compute_the_same(
    cpu: str, machine: str, clock: int, header: bytes, tmp_path: Path
) -> None:
    images = torch.cat([load_mnist(train=False)[0][:80], noise(20)])
    expected = run_c(header, images, tmp_path, prefix="net_int8")
    shutil.copytree(ROOT / "examples" / "microcontroller", tmp_path, dirs_exist_ok=True)
    (tmp_path / "net_int8.h").write_bytes(header)
    (tmp_path / "images.bin").write_bytes(images.numpy().tobytes())
    build = f"{ARM}gcc -mcpu=cortex-{cpu} -mthumb {BARE} -DCLOCK={clock} -Wall -Wextra -Werror"
    sources = f"{build} -T link.ld start.c main.c -lgcc -o net.elf"
    subprocess.run(sources.split(), cwd=tmp_path, check=True)
    emulator = f"qemu-system-arm -M {machine} -display none -icount shift=0 -semihosting -kernel net.elf"
    done = subprocess.run(
        emulator.split(), cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=True
    )
    logits = np.fromfile(tmp_path / "logits.bin", dtype="<i4").reshape(-1, 10)
    np.testing.assert_array_equal(logits, expected)
    printed = re.search(
        r"^100 images, each in \d+ microseconds; stack (\d+) bytes, scratch (\d+) bytes",
        done.stderr + done.stdout,
    )
    assert printed, done
    assert int(printed[1]) + int(printed[2]) + 784 <= 6 * 1024
