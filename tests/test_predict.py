"""The command python -m predict: its predictions, and one line for each thing that can't be used."""

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

import predict.command as command
from checkpoint import Trained, load_trained, newest_trained, save_checkpoint
from datasets import MNIST, Dataset, load_mnist
from model import Net
from runtime.errors import UserError

ROOT = Path(__file__).parents[1]
WEIGHTS = str(ROOT / "weights" / "best.pt")
DRAWN = sorted(str(path) for path in (ROOT / "tests" / "data").iterdir())
SEVEN, THREE = (str(ROOT / "tests" / "data" / name) for name in ("7-crossed-palette.png", "3-small.png"))
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no runs/ here: the weights are the project's own


def run(*flags: str, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run ``python -m predict`` with ``flags``, as a user does."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-m", "predict", *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    return done


def test_drawn_digits(capsys: Capture) -> None:
    assert command.main(DRAWN, None, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["file"] for entry in found] == DRAWN
    labels = [int(Path(name).name[0]) for name in DRAWN]
    assert sorted(labels) == sorted(2 * list(range(10)))
    assert sum(entry["prediction"] == label for entry, label in zip(found, labels, strict=True)) >= 18


def test_weights_and_their_accuracy_come_first_on_stderr(capsys: Capture) -> None:
    assert command.main([SEVEN, THREE], None, as_json=False) == 0
    out, err = capsys.readouterr()
    assert err == f"Weights: {newest_trained()}\n"
    with open(ROOT / "weights" / "metrics.csv") as file:
        best = max(float(row["eval_accuracy"]) for row in csv.DictReader(file))
    assert err.endswith(f": {best:.2f}% on the test set)\n")
    seven, three = out.splitlines()
    assert seven.startswith(f"{SEVEN}: 7 (")
    assert three.startswith(f"{THREE}: 3 (")


def test_confidence_is_the_softmax(capsys: Capture, tmp_path: Path) -> None:
    Image.fromarray(load_mnist(train=False)[0][0].numpy()).save(tmp_path / "seven.png")
    assert command.main(["seven.png"], WEIGHTS, as_json=True) == 0
    (found,) = json.loads(capsys.readouterr().out)
    net = load_trained(Path(WEIGHTS)).model
    logits: list[torch.Tensor] = []
    net.gap.register_forward_hook(lambda module, inputs, output: logits.append(output.flatten()))
    prepared = command.read_image("seven.png")
    assert prepared is not None
    tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    with torch.no_grad():
        net(tensor(prepared.numpy()).unsqueeze(0))
    expected = sorted(enumerate(F.softmax(logits[0], dim=0).tolist()), key=lambda pair: -pair[1])[:2]
    assert list(found) == ["file", "prediction", "confidence", "runner_up", "runner_up_confidence"]
    assert (found["prediction"], found["runner_up"]) == (expected[0][0], expected[1][0])
    assert found["prediction"] == 7
    assert found["confidence"] == pytest.approx(expected[0][1], rel=1e-4)
    assert found["runner_up_confidence"] == pytest.approx(expected[1][1], rel=1e-3)


THINGS = Dataset("folder", ("circle", "odd\nname", "square"), 0.25, 0.5, True, False, None)


@pytest.mark.parametrize("light_on_dark", [False, True])
def test_what_is_no_digit_is_scaled_whole_and_answered_by_name(
    light_on_dark: bool, tmp_path: Path, capsys: Capture
) -> None:
    """Against Pillow's own scaling, and the log-probabilities of the image normalised by hand."""
    ramp = torch.arange(60).repeat(60, 1).mul(2).byte()
    light = Image.fromarray((200 - ramp).numpy())  # its border is light, its darkest side on the right
    light.save("light.png")
    dataset = replace(THINGS, light_on_dark=light_on_dark)
    torch.manual_seed(0)
    net = Net(num_classes=3).eval()
    about = {name: torch.load(WEIGHTS, weights_only=True)[name] for name in ("metrics", "config", "versions")}
    save_checkpoint(tmp_path / "best.pt", about | {"model": net.state_dict(), "dataset": asdict(dataset)})
    image = command.read_image("light.png", dataset)
    assert image is not None
    expected = torch.from_numpy(np.array(light.resize((28, 28), Image.Resampling.BICUBIC))).int()
    assert ((255 - expected if light_on_dark else expected) - image).abs().max() <= 1

    assert command.main(["light.png"], "best.pt", as_json=True) == 0
    (found,) = json.loads(capsys.readouterr().out)
    probabilities = net(((image / 255 - 0.25) / 0.5)[None, None]).exp()[0]
    order = probabilities.argsort(descending=True).tolist()
    assert [found["prediction"], found["runner_up"]] == [THINGS.classes[i] for i in order[:2]]
    assert found["confidence"] == pytest.approx(probabilities[order[0]].item(), rel=1e-4)
    assert command.main(["light.png"], "best.pt", as_json=False) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and found["prediction"].replace("\n", "\\n") in out


def test_a_data_set_of_mnists_form_has_its_pictures_prepared_like_digits() -> None:
    """So a folder of digits gets from a picture of one what MNIST gets."""
    digits = replace(THINGS, digit_like=True)
    ours, theirs = command.read_image(SEVEN, MNIST), command.read_image(SEVEN, digits)
    assert ours is not None and theirs is not None and torch.equal(ours, theirs)


def test_files_are_predicted_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    forward = Net.forward

    def counted(net: Net, x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return forward(net, x)

    monkeypatch.setattr(Net, "forward", counted)
    names = [str(i) for i in range(260)]
    found = command.predict(
        Trained(Path("net.pt"), Net().eval()), names, torch.zeros(260, 28, 28, dtype=torch.uint8)
    )
    assert [entry.file for entry in found] == names
    assert sum(sizes) == 260
    assert max(sizes) == 250  # so that many files need no more memory than these


def test_bad_files_do_not_stop_the_good(tmp_path: Path, capsys: Capture) -> None:
    Image.new("L", (50, 50), 77).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("seven\n")
    (tmp_path / "cut.png").write_bytes(Path(SEVEN).read_bytes()[:500])
    (tmp_path / "folder").mkdir()
    (tmp_path / "line\nbreak.png").touch()
    bad = ["blank.png", "text.png", "missing.png", "cut.png", "folder", "line\nbreak.png"]
    assert command.main([bad[0], SEVEN, *bad[1:], THREE], WEIGHTS, as_json=False) == 1
    out, err = capsys.readouterr()
    assert [line.split(": ")[1][0] for line in out.splitlines()] == ["7", "3"]
    reasons = ["blank", "not a picture", "No such file", "damaged", "directory", "not a picture"]
    lines = err.splitlines()[1:]
    assert len(lines) == len(bad)
    for line, name, reason in zip(lines, bad, reasons, strict=True):
        assert line.startswith(f"predict: error: {name if name.isprintable() else ascii(name)}: ")
        assert reason in line


def test_nothing_but_bad_files(capsys: Capture) -> None:
    assert command.main(["missing.png"], None, as_json=False) == 1
    assert capsys.readouterr().out == ""
    assert command.main(["missing.png"], None, as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == []


def test_weights_that_cannot_be_used(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "text.pt").write_text("no weights\n")
    with pytest.raises(UserError, match=r"text\.pt is damaged"):
        command.main([SEVEN], "text.pt", as_json=False)
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:'predict.__main__' found in sys.modules")
def test_the_whole_command_on_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", "-", "missing.png", "--weights", WEIGHTS, "--json"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # to be put back
    handler, stdin = signal.getsignal(signal.SIGTERM), os.dup(0)
    try:
        with open(THREE, "rb") as file:
            os.dup2(file.fileno(), 0)
        with pytest.raises(SystemExit) as end:
            runpy.run_module("predict", run_name="__main__")
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
        signal.signal(signal.SIGTERM, handler)
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert [(entry["file"], entry["prediction"]) for entry in json.loads(out)] == [("-", 3)]
    weights, missing = err.splitlines()
    assert weights.startswith(f"Weights: {WEIGHTS} (epoch ")
    assert missing == "predict: error: missing.png: No such file or directory"


@pytest.mark.parametrize("flags", [["--help"], [], ["--js", SEVEN], ["--weights"]])
def test_the_command_line_is_read_before_torch_is_imported(flags: list[str]) -> None:
    code = f"import runpy, sys; sys.argv[1:] = {flags}; sys.modules['torch'] = None; "
    code += "runpy.run_module('predict', run_name='__main__', alter_sys=True)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if flags == ["--help"]:
        assert (done.returncode, done.stderr) == (0, "")
        assert "--weights" in done.stdout
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("predict: error: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_closed_input_full_disk_and_missing_weights_are_one_line_each() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w") as full:
        done = run(SEVEN, stdout=full)
    assert done.returncode == 1
    assert [line[:16] for line in done.stderr.splitlines()[1:]] == ["predict: error: "]
    done = run("-", THREE, stdin=None, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(0))
    assert done.returncode == 1
    assert done.stdout.startswith(f"{THREE}: 3")
    assert [line[:18] for line in done.stderr.splitlines()[1:]] == ["predict: error: -:"]
    done = run("--weights", "missing.pt", SEVEN, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "predict: error: missing.pt: No such file or directory\n"
