"""The report of a run: what its page says, and that it is whole or not there."""

import argparse
import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from checkpoint import RunError, save_checkpoint, write_metrics
from model import Net

pytest.importorskip("matplotlib")

import plots

import report

PROJECT = Path(__file__).parents[1]
PICTURES = {f"{name}.png" for name in ["curves", "confusion", "digits", "reliability", "mistakes", "filters"]}
WRITTEN = PICTURES | {"report.html"}


class Page(HTMLParser):
    """The elements of a page, each with its attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")

    def images(self) -> list[dict[str, str]]:
        return [{k: v or "" for k, v in attrs.items()} for tag, attrs in self.elements if tag == "img"]


def make_run(folder: Path, part: str = "test", best: int = 2, epochs: int = 3) -> Path:
    """Make a run of an untrained network that had 41, 42, 43 % and so on, but 90 % in epoch ``best``."""
    folder.mkdir()
    torch.manual_seed(0)
    rows = [
        {
            "epoch": epoch,
            "lr": 0.01 / epoch,
            "train_loss": 1 / epoch,
            "train_accuracy": 40.5 + epoch,
            f"{part}_loss": 1.5 / epoch,
            f"{part}_accuracy": 90.0 if epoch == best else 40.0 + epoch,
            "seconds": 1.0,
        }
        for epoch in range(1, epochs + 1)
    ]
    write_metrics(folder / "metrics.csv", rows)
    checkpoint = {
        "model": Net().state_dict(),
        "epoch": best,
        "test_accuracy": 90.0,
        "settings": {"batch_size": 128, "recipe": "<b>&original"},
        "versions": {"torch": "9.8.7"},
    }
    save_checkpoint(folder / "best.pt", checkpoint)
    return folder


def make_test_set(data_path: str, train: bool) -> tuple[Tensor, Tensor]:
    """Stand in for ``load_mnist``: 400 images of noise."""
    assert not train
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (400, 28, 28), dtype=torch.uint8, generator=generator)
    return images, torch.arange(400) % 10


@pytest.fixture
def test_set(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    monkeypatch.setattr(report, "load_mnist", make_test_set)
    monkeypatch.setattr(plots, "DPI", 40)  # faster
    return make_test_set("", train=False)


def run_report(folder: Path) -> int:
    return report.main(argparse.Namespace(run=str(folder), data_path="data"))


def read_page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_holds_its_pictures(tmp_path: Path, test_set: object) -> None:
    folder = make_run(tmp_path / "run")
    assert run_report(folder) == 0
    assert {path.name for path in folder.iterdir()} == WRITTEN | {"best.pt", "metrics.csv"}

    html = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<script|<link", html)
    files = {path.read_bytes() for path in folder.glob("*.png")}
    images = read_page(folder).images()
    assert len(images) == len(PICTURES)
    for image in images:
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        png = base64.b64decode(content, validate=True)
        files.remove(png)  # fails if the page shows another picture than the files, or one twice
        with Image.open(io.BytesIO(png)) as picture:
            picture.load()
            assert picture.size == (int(image["width"]), int(image["height"]))
        assert len(image["alt"]) > 20
    assert not files


def test_the_page_tells_what_independent_counts_find(
    tmp_path: Path, test_set: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run")
    assert run_report(folder) == 0
    model, (images, labels) = Net().eval(), test_set
    model.load_state_dict(torch.load(folder / "best.pt", weights_only=True)["model"])
    said = []
    for image in images:
        with torch.no_grad():
            said.append(int(model(((image / 255 - 0.1307) / 0.3081).view(1, 1, 28, 28)).argmax()))
    right = [answer == label for answer, label in zip(said, labels.tolist(), strict=True)]

    page = read_page(folder)
    assert f"{sum(right) / 4:.2f} %The weights of epoch 2 read {sum(right)} of the 400" in re.sub(
        r"\s*\n\s*", "", page.text
    )
    assert f"What it gets wrong: {400 - sum(right)} of 400" in page.text
    alts = [image["alt"].replace("\N{NO-BREAK SPACE}", " ") for image in page.images()]
    by_digit = [100 * sum(right[digit::10]) / 40 for digit in range(10)]
    assert f"Accuracy by digit: {', '.join(f'{d}: {by_digit[d]:.2f} %' for d in range(10))}." in alts
    assert f"{sum(right)} of 400" in capsys.readouterr().out


def test_a_figure_chosen_on_the_test_set_is_called_optimistic(tmp_path: Path, test_set: object) -> None:
    folder = make_run(tmp_path / "run")
    run_report(folder)
    text = read_page(folder).text
    assert "optimistic" in text
    assert "The last epoch, 3, has 43.00 % on the test set." in text
    assert "held" not in text


def test_the_last_epoch_may_be_the_best(tmp_path: Path, test_set: object) -> None:
    folder = make_run(tmp_path / "run", best=3)
    run_report(folder)
    assert "It is the last epoch too." in read_page(folder).text


def test_a_hold_out_run_is_seen_by_the_test_set_here_first(tmp_path: Path, test_set: object) -> None:
    folder = make_run(tmp_path / "run", part="holdout")
    assert run_report(folder) == 0
    text = read_page(folder).text
    assert "chosen by its accuracy on a held-out part of the training set, 90.00 %" in text
    assert "first seen here" in text
    assert "The last epoch, 3, has 43.00 % on the held-out part." in text
    assert "optimistic" not in text
    assert "Training set and held-out part, from metrics.csv" in text


def test_settings_versions_and_epochs_are_listed(tmp_path: Path, test_set: object) -> None:
    folder = make_run(tmp_path / "<run>")
    run_report(folder)
    text = read_page(folder).text  # only what the browser takes for text: <b> in it was escaped
    for shown in ("batch_size", "128", "<b>&original", "9.8.7", "<run>", "9,798", "42.50"):
        assert shown in text


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, test_set: object) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")
    assert run_report(first) == run_report(second) == 0
    for name in WRITTEN:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def no_metrics(folder: Path) -> None:
    (folder / "metrics.csv").unlink()


def no_epoch(folder: Path) -> None:
    (folder / "metrics.csv").write_bytes(b"")


def other_columns(folder: Path) -> None:
    (folder / "metrics.csv").write_text("epoch,lr\n1,0.1\n")


def no_number(folder: Path) -> None:
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text.replace("43.0", "high"))


def cut_line(folder: Path) -> None:
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text[: text.rindex(",")])


def binary_metrics(folder: Path) -> None:
    (folder / "metrics.csv").write_bytes(b"\xff\x00\xfe" * 99)


def another_runs_metrics(folder: Path) -> None:
    lines = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join(lines[:2]))  # without the epoch of best.pt


def no_weights(folder: Path) -> None:
    (folder / "best.pt").unlink()


def damaged_weights(folder: Path) -> None:
    content = (folder / "best.pt").read_bytes()
    (folder / "best.pt").write_bytes(content[: len(content) // 2])


def no_folder(folder: Path) -> None:
    (folder / "best.pt").unlink()
    (folder / "metrics.csv").unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    "harm",
    [
        no_metrics,
        no_epoch,
        other_columns,
        no_number,
        cut_line,
        binary_metrics,
        another_runs_metrics,
        no_weights,
        damaged_weights,
        no_folder,
    ],
)
def test_a_run_that_cannot_be_used_ends_in_one_line(
    harm: object, tmp_path: Path, test_set: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run")
    assert callable(harm)
    harm(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert run_report(folder) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"report\.py: error: [^\n]*run[^\n]*\n", err)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_failure_while_drawing_leaves_the_folder_alone(
    tmp_path: Path, test_set: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError("out of memory")

    folder = make_run(tmp_path / "run")
    monkeypatch.setattr(plots, "filters", fail)
    assert run_report(folder) == 1
    assert {path.name for path in folder.iterdir()} == {"best.pt", "metrics.csv"}


def test_without_any_run_the_error_is_one_line(
    test_set: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> Path:
        raise RunError("there are no trained weights")

    monkeypatch.setattr(report, "newest_weights", fail)
    assert report.main(argparse.Namespace(run=None, data_path="data")) == 1
    assert capsys.readouterr().err == "report.py: error: there are no trained weights\n"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("right", [0, 1, 400])
def test_extreme_answers_are_drawn(right: int) -> None:
    images, labels = make_test_set("", train=False)
    said = torch.where(torch.arange(400) < right, labels, (labels + 1) % 10)
    figures = report.answer_figures(images, labels, said, torch.ones(400, dtype=torch.float64), "Here.")
    assert [figure.png[:8] for figure in figures] == [b"\x89PNG\r\n\x1a\n"] * 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("loss", "accuracy"), [(1e-9, 100.0), (99.0, 0.0), (float("nan"), 9.8)])
def test_extreme_epochs_are_drawn(loss: float, accuracy: float) -> None:
    row = {"epoch": 1.0, "lr": 0.0, "train_loss": loss, "train_accuracy": accuracy}
    rows = [row | {"test_loss": loss, "test_accuracy": accuracy}]
    assert plots.curves(rows, "test", "test set", 1)[:4] == b"\x89PNG"


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)


def test_importing_leaves_matplotlib_as_it_was() -> None:
    code = """
import json, sys, matplotlib
def settings():  # asking for the backend would choose one
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
before = settings()
import report
print(json.dumps([settings() == before, "matplotlib.pyplot" in sys.modules]))
"""
    assert json.loads(run_code(code).stdout) == [True, False]


AS_COMMAND = "import runpy, sys; sys.argv = ['report.py', *{}]; sys.modules['{}'] = None; "
AS_COMMAND += "runpy.run_path('report.py', run_name='__main__')"


def test_without_matplotlib_the_way_to_get_it_is_named() -> None:
    done = run_code(AS_COMMAND.format("[]", "matplotlib"))
    assert done.returncode == 1
    assert re.fullmatch(r"report\.py: error: [^\n]*pip install matplotlib[^\n]*\n", done.stderr)


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["--no-such-flag"], 2), (["a", "b"], 2)])
def test_the_command_line_is_read_before_torch_is_imported(arguments: list[str], status: int) -> None:
    assert run_code(AS_COMMAND.format(arguments, "torch")).returncode == status


def test_the_command_on_mnist(tmp_path: Path) -> None:
    if not (PROJECT / "data" / "MNIST").is_dir():
        pytest.skip("MNIST is not in data/")
    folder = make_run(tmp_path / "run")
    command = [sys.executable, "report.py", str(folder)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # on it, matplotlib may say that it builds its font cache
    assert re.search(r"report\.html: [\d,]+ of 10,000 test images right, epoch 2\n$", done.stdout)
    assert {path.name for path in folder.iterdir()} == WRITTEN | {"best.pt", "metrics.csv"}
    assert "of the 10,000 test images right" in read_page(folder).text
