"""The command python -m report: its page, and that a failure changes nothing."""

import base64
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import report
import report.__main__ as command
from checkpoint import EpochMetrics, Run, save_run
from config import DEFAULT
from datasets import MNIST, Dataset
from model import Net
from report import scores
from runtime.errors import UsageError, UserError

pytest.importorskip("matplotlib")

import matplotlib

from report import figures

ROOT = Path(__file__).parents[1]
NAMES = ["curves", "confusion", "accuracy_by_class", "calibration", "mistakes", "filters"]
WRITTEN = {"report.html", *(f"{name}.png" for name in NAMES)}
PLOT = figures.Plot(bytes(24), "alt")


class Page(HTMLParser):
    """The attributes of a page's images, and its text, as a browser takes it: with single spaces."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.images: list[dict[str, str]] = []
        self.text = ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("th", "td"):
            self.text += " "
        if tag == "img":
            self.images.append({name: value or "" for name, value in attrs})

    def handle_data(self, data: str) -> None:
        self.text += data


def make_metrics(split: str, best: int) -> list[EpochMetrics]:
    """Return three epochs of a run that had 41, 42 and 43 %, but 90 % in epoch ``best``."""
    return [
        EpochMetrics(i, 0.01 / i, 1 / i, 40.5 + i, split, 1.5 / i, 90.0 if i == best else 40.0 + i, 1.0)
        for i in (1, 2, 3)
    ]


def make_run(folder: Path, dataset: Dataset = MNIST) -> Path:
    """Make a run of an untrained network, whose best epoch was the second."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = Net(num_classes=len(dataset.classes)).state_dict()
    run = Run(folder, DEFAULT, dataset, "cpu", {"torch": "<b>&9.8.7"}, make_metrics("test", 2), model)
    save_run(run, {})
    for name in ("last.pt", "metrics.csv"):  # a report needs only best.pt
        (folder / name).unlink()
    return folder


def write_report(*arguments: object) -> None:
    """Run the command with these arguments, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["report", *map(str, arguments)])
        command.main()


def test_matplotlibs_settings_stay_as_they_were(reported: Path, tmp_path: Path) -> None:
    with matplotlib.rc_context({"lines.linewidth": 7.0}):
        before = {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
        write_report(reported, "--output-dir", tmp_path)
        assert {name: matplotlib.rcParams[name] for name in before} == before


def make_test_set(*_: object) -> tuple[Tensor, Tensor]:
    """Stand in for ``load_test``: 50 images of noise."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (50, 28, 28), dtype=torch.uint8, generator=generator)
    return images, torch.arange(50) % 10


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "load_test", make_test_set)
        patch.setattr(figures, "DPI", 20)
        yield


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory, quick: None) -> Path:
    """The folder of a run with its report."""
    folder = make_run(tmp_path_factory.mktemp("report") / "<run>")
    write_report(folder)
    return folder


def skip_plots(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Don't draw the figures of these ``names``, which takes 0.2 to 0.6 s each."""
    for name in names:
        monkeypatch.setattr(figures, name, lambda *_: PLOT)


def read_page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_holds_its_figures(reported: Path) -> None:
    assert {path.name for path in reported.iterdir()} == WRITTEN | {"best.pt"}
    html = (reported / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<script|<link", html)
    files = {path.read_bytes() for path in reported.glob("*.png")}
    images = read_page(reported).images
    assert len(images) == len(NAMES)
    for image in images:
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        png = base64.b64decode(content, validate=True)
        files.remove(png)  # fails if the page shows another image than the files, or one twice
        with Image.open(io.BytesIO(png)) as picture:
            picture.load()
        assert len(image["alt"]) > 20


def test_another_folder_gets_the_same_bytes(reported: Path, tmp_path: Path) -> None:
    write_report(reported / "best.pt", "--output-dir", tmp_path / "new")
    written = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert written == {name: (reported / name).read_bytes() for name in WRITTEN}


def test_the_page_says_what_independent_counts_find(
    reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(reported, "--output-dir", tmp_path)
    weights, result = capsys.readouterr().out.splitlines()
    model, (images, labels) = Net().eval(), make_test_set()
    model.load_state_dict(torch.load(reported / "best.pt", weights_only=True)["best_weights"])
    with torch.no_grad():
        predictions = model(((images / 255 - 0.1307) / 0.3081).unsqueeze(1)).argmax(dim=1).tolist()
    right = [prediction == label for prediction, label in zip(predictions, labels.tolist(), strict=True)]
    accuracy = f"{sum(right) / 50:.2%}"
    assert weights == f"Weights: {reported / 'best.pt'} (epoch 2: 90.00% on the test set)"
    assert result == f"{tmp_path / 'report.html'}: {sum(right)} of 50 test images right ({accuracy}), epoch 2"

    page = read_page(reported)
    assert f"{accuracy} The weights of epoch 2 predict {sum(right)} of the 50 test images right" in page.text
    assert f"Mistakes: {50 - sum(right)} of 50" in page.text
    by_class = ", ".join(f"{d}: {sum(right[d::10]) / 5:.2%}" for d in range(10))
    assert f"Accuracy by class: {by_class}." in [image["alt"] for image in page.images]
    for digit in range(10):
        assert f" {digit} 5 {sum(right[digit::10])} {sum(right[digit::10]) / 5:.2%} " in page.text
    for expected in (
        "batch_size 128",
        "torch <b>&9.8.7",
        "run <run>",
        "9,798",
        " 2 0.00500 0.5000 0.7500 42.50",
    ):
        assert expected in page.text


def make_classes(*classes: str) -> Dataset:
    return Dataset("folder", classes, 0.25, 0.5, False, False, "/trained/here")


def test_the_page_of_another_data_set_has_its_classes_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on a folder of two classes, normalised by its own mean; it moved to --data-path."""
    classes = ("<cat>", "a dog that has a long name, and $5$")
    images, labels = make_test_set()[0], torch.arange(50) % 2
    loaded: list[str] = []

    def load_test(dataset: Dataset) -> tuple[Tensor, Tensor]:
        loaded.append(dataset.path)
        return images, labels

    monkeypatch.setattr(command, "load_test", load_test)
    skip_plots(monkeypatch, "curves", "calibration", "filters")
    make_run(tmp_path, make_classes(*classes))
    write_report(tmp_path)
    write_report(tmp_path, "--data-path", "/pictures")
    assert loaded == [os.path.abspath("/trained/here"), os.path.abspath("/pictures")]
    assert capsys.readouterr().err == ""
    model = Net(num_classes=2).eval()
    model.load_state_dict(torch.load(tmp_path / "best.pt", weights_only=True)["best_weights"])
    with torch.no_grad():
        predictions = model(((images / 255 - 0.25) / 0.5).unsqueeze(1)).argmax(dim=1)
    page = read_page(tmp_path)
    alts = " ".join(image["alt"] for image in page.images)
    for label, name in enumerate(classes):
        right = int((predictions[labels == label] == label).sum())
        assert f"{name}: {right / 25:.2%}" in alts
        assert alts.count(f"{name} as ") == 25 - right
        assert f" {name} 25 {right} " in page.text
    assert "Accuracy on the test set of folder" in page.text


def test_names_of_any_characters_cost_one_line_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No font has the hieroglyph. The last name is that of a folder in Latin-1, as Python reads it."""
    classes = ("七", "\x1b[31ma\nb\x00", "<script>𓀀", "caf\udce9")
    labels = torch.arange(50) % 4
    monkeypatch.setattr(command, "load_test", lambda *_: (make_test_set()[0], labels))
    skip_plots(monkeypatch, "curves", "calibration", "filters")
    folder = make_run(tmp_path, make_classes(*classes))
    write_report(folder)
    error = capsys.readouterr().err
    assert re.fullmatch(r"warning: no font .* class names: the figures show boxes\n", error)
    for name in ("七", "[31ma b", "<script>𓀀", "caf\\udce9"):
        assert name in read_page(folder).text
    assert figures.shorten(classes) == ["七", r"\x1b[31ma\n…", "<script>𓀀", r"caf\udce9"]


def read_stub_page(split: str, best: int) -> str:
    """Return the text of a page on which 8,999 of 10,000 images are right; the epoch has 90.00 %."""
    metrics = make_metrics(split, best)
    counts = torch.zeros(10, 10, dtype=torch.int64)
    counts[0, 0], counts[1, 7] = 8999, 1001
    run = Run(Path("run"), DEFAULT, MNIST, "cpu", {}, metrics)
    bins = scores.Calibration(0.1234, *torch.ones(3, 15))
    plots = dict.fromkeys(NAMES, PLOT)
    page = Page(command.fill_page(run, counts, parameters=9798, calibration=bins, plots=plots).decode())
    assert " 2 0 0 – " in page.text  # a class without images
    return page.text


@pytest.mark.parametrize("best", [2, 3])
def test_an_accuracy_chosen_on_the_test_set_is_called_optimistic(best: int) -> None:
    text = read_stub_page("test", best)
    assert "8,999 of the 10,000 test images right (95% confidence interval: 89.39% to 90.56%)" in text
    assert "chosen by its accuracy on these same images, so the figure is optimistic." in text
    assert "The training measured 90.00% for this epoch." in text  # not 89.99%
    last = "It is also the last epoch." if best == 3 else "The last epoch, 3, has 43.00% on the test set."
    assert last in text
    assert "held" not in text


def test_the_test_images_had_no_part_in_choosing_a_holdout_runs_epoch() -> None:
    text = read_stub_page("holdout", 2)
    assert "chosen by its accuracy on held-out images of the training set, 90.00%" in text
    assert "the test images had no part in choosing the epoch." in text
    assert "The last epoch, 3, has 43.00% on the held-out images." in text
    assert "optimistic" not in text


def test_the_captions_say_what_the_numbers_are() -> None:
    text = read_stub_page("holdout", 2)
    assert "mean negative log-likelihood without label smoothing, so they can be compared" in text
    assert "Those of the held-out images are of the network after the epoch" in text
    assert "Expected calibration error: 12.34% (Guo" in text
    assert "Mistakes: 1,001 of 10,000" in text
    assert "epoch 2. The 150 of the highest confidence, by descending confidence" in text


def bare_weights(folder: Path) -> None:
    torch.save(Net().state_dict(), folder / "best.pt")


def damaged_weights(folder: Path) -> None:
    (folder / "best.pt").write_bytes((folder / "best.pt").read_bytes()[:5000])


@pytest.mark.parametrize("harm", [bare_weights, damaged_weights])
def test_a_run_that_cannot_be_used_is_left_alone(harm: Callable[[Path], None], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    harm(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises((UserError, OSError)) as caught:
        write_report(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_failure_while_drawing_leaves_the_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no font")

    folder = make_run(tmp_path / "run")
    skip_plots(monkeypatch, "curves", "confusion_matrix", "accuracy_by_class", "calibration", "mistakes")
    monkeypatch.setattr(figures, "filters", fail)  # the last
    with pytest.raises(OSError, match="no font"):
        write_report(folder)
    assert [path.name for path in folder.iterdir()] == ["best.pt"]


def test_a_folder_that_cannot_be_written_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a read-only clone; root may write to any folder, so a folder has the name of a file."""
    folder = make_run(tmp_path / "run")
    (folder / "report.html").mkdir()
    monkeypatch.setattr(command, "make_report", lambda _: ({"report.html": b""}, ""))
    with pytest.raises(OSError) as caught:
        write_report(folder)
    assert str(caught.value).startswith(f"{folder / 'report.html'} can't be written: ")


def test_a_run_is_required() -> None:
    with pytest.raises(UsageError, match="required: RUN"):
        write_report()


def test_without_matplotlib_only_the_command_ends_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delattr(report, "figures")
    monkeypatch.delitem(sys.modules, "report.figures")
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):  # it ends the command in one line
        write_report(folder)
    assert [path.name for path in folder.iterdir()] == ["best.pt"]


@pytest.mark.slow
def test_the_command_on_mnist(tmp_path: Path) -> None:
    shutil.copy(ROOT / "weights" / "best.pt", tmp_path)
    command_line = [sys.executable, "-m", "report", str(tmp_path)]
    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # on it, matplotlib may say that it builds its font cache
    right = re.search(r"report\.html: 9,(\d{3}) of 10,000 test images right", done.stdout)
    accuracy = re.search(r": (\d+\.\d+)% on the test set", done.stdout)
    assert right and accuracy
    # Found in training, perhaps on another machine, which may round one image to the other side.
    assert abs(9000 + int(right[1]) - 100 * float(accuracy[1])) <= 1.01
    assert {path.name for path in tmp_path.iterdir()} == WRITTEN | {"best.pt"}
