"""The command python -m predict: its predictions, and one line for each thing that can't be used."""

import csv
import difflib
import io
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draw_digits import draw, draw_page, pens
from PIL import Image
from torchvision import transforms

from datasets import MNIST, Dataset, load_mnist
from model import Net
from pictures import colors, decode
from predict import __main__ as command
from predict.prepare import read_digits
from runtime.errors import UsageError, UserError
from trained import load_trained

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
    assert command.answer_all(DRAWN, as_json=True) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["file"] for entry in entries] == DRAWN
    labels = [int(Path(name).name[0]) for name in DRAWN]
    assert sorted(labels) == sorted(2 * list(range(10)))
    assert sum(entry["prediction"] == label for entry, label in zip(entries, labels, strict=True)) >= 18


def test_weights_and_their_accuracy_come_first_on_stderr(capsys: Capture) -> None:
    assert command.answer_all([SEVEN, THREE]) == 0
    out, err = capsys.readouterr()
    assert err == f"Weights: {load_trained()}\n"
    with open(ROOT / "weights" / "metrics.csv") as file:
        best = max(float(row["eval_accuracy"]) for row in csv.DictReader(file))
    assert err.endswith(f": {best:.2f}% on the test set)\n")
    seven, three = out.splitlines()
    assert seven.startswith(f"{SEVEN}: 7 (")
    assert three.startswith(f"{THREE}: 3 (")


def test_confidence_is_the_softmax(capsys: Capture, tmp_path: Path) -> None:
    Image.fromarray(load_mnist(train=False)[0][0].numpy()).save(tmp_path / "seven.png")
    assert command.answer_all(["seven.png"], WEIGHTS, as_json=True) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    net = load_trained(Path(WEIGHTS)).model
    logits: list[torch.Tensor] = []
    net.gap.register_forward_hook(lambda module, inputs, output: logits.append(output.flatten()))
    prepared = command.read_image("seven.png", MNIST)[2][0][0].image
    tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    with torch.no_grad():
        net(tensor(prepared).unsqueeze(0))
    expected = sorted(enumerate(F.softmax(logits[0], dim=0).tolist()), key=lambda pair: -pair[1])[:2]
    assert list(entry)[:5] == ["file", "prediction", "confidence", "runner_up", "runner_up_confidence"]
    assert entry["unsure"] is False
    assert (entry["prediction"], entry["runner_up"]) == (expected[0][0], expected[1][0])
    assert entry["prediction"] == 7
    assert entry["confidence"] == pytest.approx(expected[0][1], rel=1e-4)
    assert entry["runner_up_confidence"] == pytest.approx(expected[1][1], rel=1e-3)


THINGS = Dataset("folder", ("circle", "odd\nname", "square"), 0.25, 0.5, light_on_dark=True, digit_like=False)


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
    content = torch.load(WEIGHTS, weights_only=True)
    torch.save(content | {"best_weights": net.state_dict(), "dataset": asdict(dataset)}, tmp_path / "best.pt")
    image = torch.from_numpy(command.read_image("light.png", dataset)[2][0][0].image)
    expected = torch.from_numpy(np.array(light.resize((28, 28), Image.Resampling.BICUBIC))).int()
    assert ((255 - expected if light_on_dark else expected) - image).abs().max() <= 1

    assert command.answer_all(["light.png"], "best.pt", as_json=True) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    probabilities = net(((image / 255 - 0.25) / 0.5)[None, None]).exp()[0]
    order = probabilities.argsort(descending=True).tolist()
    assert [entry["prediction"], entry["runner_up"]] == [THINGS.classes[i] for i in order[:2]]
    assert entry["confidence"] == pytest.approx(probabilities[order[0]].item(), rel=1e-4)
    assert command.answer_all(["light.png"], "best.pt") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and entry["prediction"].replace("\n", "\\n") in out


def test_a_data_set_of_mnists_form_has_its_pictures_prepared_like_digits() -> None:
    """So a folder of digits gets from a picture of one what MNIST gets."""
    digits = replace(THINGS, digit_like=True)
    ((ours,),), ((theirs,),) = (command.read_image(SEVEN, each)[2] for each in (MNIST, digits))
    assert np.array_equal(ours.image, theirs.image)


def number(*names: str) -> None:
    """Write number.png, 1,200 pixels wide: some of the drawn digits beside each other."""
    page = Image.new("L", (1200, 400), 255)
    for i, name in enumerate(names):
        ink = draw(name, (300, 300), (50, 50, 200, 200), 18)
        page.paste(Image.fromarray((255 - 255 * ink).astype(np.uint8)), (300 * i, 50))
    page.save("number.png")


def test_a_number_has_an_answer_and_a_box_for_each_digit(capsys: Capture) -> None:
    number("4a", "0a", "7a")
    assert command.answer_all(["number.png"], WEIGHTS, as_json=True) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["prediction"], entry["runner_up"], entry["unsure"]) == ("407", None, False)
    digits = entry["digits"]
    assert [digit["prediction"] for digit in digits] == [4, 0, 7]
    assert entry["confidence"] == pytest.approx(np.prod([digit["confidence"] for digit in digits]))
    for i, (digit, name) in enumerate(zip(digits, ("4a", "0a", "7a"), strict=True)):
        ink = draw(name, (300, 300), (50, 50, 200, 200), 18) > 0.5
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        expected = [columns[0] + 300 * i, rows[0] + 50, columns[-1] + 300 * i, rows[-1] + 50]
        assert np.abs(np.subtract(digit["box"], expected)).max() < 14  # specks of 1 % may be outside
    assert command.answer_all(["number.png"], WEIGHTS) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(r"number\.png: 407 \(4 [\d.]+%, 0 [\d.]+%, 7 [\d.]+%\)\n", out)


def test_pages_of_several_digits() -> None:
    """Twenty pages, of MNIST's test digits and of drawn ones: at least 95 % of the digits are right."""
    images, labels = load_mnist(train=False)
    cropped = []
    for image, digit in zip(images[:2000].numpy(), labels.tolist(), strict=False):
        rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
        cropped.append((digit, image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / 255))
    trained, drawn, right, total = load_trained(WEIGHTS), pens(), 0, 0
    for seed in range(20):
        page, texts = draw_page(seed, cropped if seed % 2 else drawn)
        answer, _ = command.predict(trained, read_digits(colors(decode(page))))
        predicted, expected = str(answer.prediction), " ".join(texts)
        blocks = difflib.SequenceMatcher(None, predicted, expected, autojunk=False).get_matching_blocks()
        right, total = right + sum(block.size for block in blocks), total + max(len(predicted), len(expected))
    assert total > 100
    assert right >= 0.95 * total


def test_unsure_is_said_in_words_and_in_json(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "UNSURE", 0.0)
    assert command.answer_all([SEVEN], WEIGHTS) == 0
    plain = capsys.readouterr().out
    assert "unsure" not in plain
    runner_up = plain.split("runner-up ")[1][0]
    monkeypatch.setattr(command, "UNSURE", 1.1)
    assert command.answer_all([SEVEN], WEIGHTS) == 0
    assert capsys.readouterr().out == f"{plain[:-1]}; unsure: 7 or {runner_up}\n"
    number("4a", "0a")
    assert command.answer_all(["number.png"], WEIGHTS) == 0
    assert re.search(r"\); unsure of digit 1: 4 or \d; unsure of digit 2: 0 or \d$", capsys.readouterr().out)
    assert command.answer_all(["number.png"], WEIGHTS, as_json=True) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert [entry["unsure"], *(digit["unsure"] for digit in entry["digits"])] == [True] * 3


def test_parts_far_apart_are_unsure() -> None:
    """A stroke beside a digit, in one box; but not a five in two pieces."""
    image = command.read_image(THREE, MNIST)[2][0][0].image
    assert not command.is_doubtful(image)
    beside = image.copy()
    beside[:, :2] = 255
    assert command.is_doubtful(beside)
    torn = np.zeros((28, 28), dtype=np.uint8)
    torn[4:24, 10:14] = 255
    for gap, doubtful in ((4, False), (5, True)):
        two = torn.copy()
        two[12 : 12 + gap] = 0
        assert command.is_doubtful(two) is doubtful


def test_something_else_is_mostly_unsure() -> None:
    generator = np.random.default_rng(1)
    coarse = generator.integers(0, 256, (10, 8, 8), dtype=np.uint8)
    pictures = [Image.fromarray(each).resize((200, 200)) for each in coarse]
    pictures += [Image.fromarray(each) for each in generator.integers(0, 256, (10, 90, 90), dtype=np.uint8)]
    pictures += [Image.fromarray(np.pad(np.full((side, side), 255, dtype=np.uint8), 30)) for side in (40, 90)]
    trained = load_trained(WEIGHTS)
    unsure = [command.predict(trained, read_digits(colors(decode(each))))[0].unsure for each in pictures]
    assert sum(unsure[:10]) >= 7 and all(unsure[10:])


def test_a_folder_stands_for_its_pictures(tmp_path: Path, capsys: Capture) -> None:
    for name in ("b.PNG", "a.png", ".hidden.png"):
        shutil.copy(SEVEN, tmp_path / name)
    for name in ("labels.csv", "scan.pdf"):  # Pillow only writes PDF
        (tmp_path / name).write_text("a.png,7\n")
    (tmp_path / "more").mkdir()
    # In a new process, as Pillow registers its formats late, and other tests have let it.
    done = run(str(tmp_path), THREE, "--weights", WEIGHTS, stdout=subprocess.PIPE)
    named = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert named == [str(tmp_path / "a.png"), str(tmp_path / "b.PNG"), THREE] and done.returncode == 0
    assert command.answer_all(["more"], WEIGHTS) == 1
    assert "more: there is no picture in this folder" in capsys.readouterr().err


def test_answers_appear_as_they_come(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = command.read_image, []

    def watched(name: str, dataset: Dataset) -> object:
        seen.append(capsys.readouterr().out)
        return read(name, dataset)

    monkeypatch.setattr(command, "read_image", watched)
    command.answer_all([SEVEN, THREE], WEIGHTS)
    assert seen[0] == "" and seen[1].startswith(f"{SEVEN}: 7")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_progress_bar_is_for_a_terminal_only(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stderr)
    assert command.answer_all([SEVEN, THREE], WEIGHTS) == 0
    assert ("/2 [" in stderr.getvalue()) is terminal


def test_save_shows_what_the_network_was_shown(tmp_path: Path) -> None:
    number("4a", "0a", "7a")
    assert command.answer_all(["number.png", "missing.png", SEVEN], WEIGHTS, save=Path("seen/here")) == 1
    files = sorted(path.name for path in Path("seen/here").iterdir())
    assert files == ["1-number.png", "3-7-crossed-palette.png"]
    with Image.open("seen/here/3-7-crossed-palette.png") as sheet:
        shown = np.asarray(sheet.convert("L"))
    image = command.read_image(SEVEN, MNIST)[2][0][0].image
    assert np.array_equal(shown[464:574:4, 2:112:4], image)
    with Image.open("seen/here/1-number.png") as sheet:
        red = np.all(np.asarray(sheet.convert("RGB")) == (220, 30, 60), axis=2)[:, :448]
    assert (red.sum(axis=0) > 40).sum() == 6  # left and right sides of three boxes


def test_json_is_whole_if_save_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(command, "replace_file", fail)
    with pytest.raises(OSError, match="the disk is full"):
        command.answer_all([SEVEN, THREE], WEIGHTS, as_json=True, save=Path("seen"))
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["prediction"] == 7


def test_save_overwrites_nothing(tmp_path: Path) -> None:
    for name in ("a.png", "1-a.png"):
        shutil.copy(SEVEN, name)
    with pytest.raises(UsageError, match=r"--save: \. is not empty"):
        command.answer_all(["a.png", "1-a.png"], WEIGHTS, save=Path("."))
    assert Path("1-a.png").read_bytes() == Path(SEVEN).read_bytes()


@pytest.mark.slow
def test_names_that_the_terminal_cannot_encode_are_escaped(tmp_path: Path) -> None:
    shutil.copy(SEVEN, tmp_path / "七.png")
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "OMP_NUM_THREADS": "1"}
    done = run("--weights", WEIGHTS, str(tmp_path / "七.png"), THREE, stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert "\\u4e03.png: 7 (" in first and second.startswith(THREE)


def test_bad_files_do_not_stop_the_good(tmp_path: Path, capsys: Capture) -> None:
    Image.new("L", (50, 50), 77).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("seven\n")
    (tmp_path / "cut.png").write_bytes(Path(SEVEN).read_bytes()[:500])
    (tmp_path / "folder").mkdir()
    (tmp_path / "line\nbreak.png").touch()
    bad = ["blank.png", "text.png", "missing.png", "cut.png", "folder", "line\nbreak.png", "a" * 300]
    assert command.answer_all([bad[0], SEVEN, *bad[1:], THREE], WEIGHTS) == 1
    out, err = capsys.readouterr()
    assert [line.split(": ")[1][0] for line in out.splitlines()] == ["7", "3"]
    reasons = [
        "blank",
        "not a picture",
        "No such file",
        "can't be read",
        "no picture in this folder",
        "not a picture",
        "File name too long",
    ]
    lines = err.splitlines()[1:]
    assert len(lines) == len(bad)
    for line, name, reason in zip(lines, bad, reasons, strict=True):
        assert line.startswith(f"predict: error: {name.replace(chr(10), chr(92) + 'n')}: ")
        assert reason in line


def test_nothing_but_bad_files(capsys: Capture) -> None:
    assert command.answer_all(["missing.png"]) == 1
    assert capsys.readouterr().out == ""
    assert command.answer_all(["missing.png"], as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == []


def test_weights_that_cannot_be_used(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "text.pt").write_text("no weights\n")
    with pytest.raises(UserError, match=r"text\.pt"):
        command.answer_all([SEVEN], "text.pt")
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
    assert (
        done.stderr
        == "predict: error: missing.pt is missing: name a file of weights, or the folder of a run\n"
    )
