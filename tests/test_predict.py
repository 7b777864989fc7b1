import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import predict
from model import Net
from utils import load_mnist

ROOT = Path(__file__).parent.parent
DATA = sorted(str(path) for path in (ROOT / "tests" / "data").iterdir())
SEVEN = str(ROOT / "tests" / "data" / "7-crossed-palette.png")
THREE = str(ROOT / "tests" / "data" / "3-small.png")
with open(ROOT / "weights" / "metrics.csv") as metrics:
    BEST = max(float(row["test_accuracy"]) for row in csv.DictReader(metrics))
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no runs/ here: the weights are the project's own


def call(*flags: str) -> int:
    return predict.main(predict.parse_args(flags))


def shell(command: str) -> "subprocess.CompletedProcess[str]":
    """Run ``command``, in which predict stands for ``python predict.py``."""
    command = command.replace("predict ", f'"{sys.executable}" "{ROOT / "predict.py"}" ')
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=False)


def test_drawn_digits(capsys: Capture) -> None:
    assert call("--json", *DATA) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["file"] for answer in answers] == DATA
    labels = [int(Path(name).name[0]) for name in DATA]
    assert sorted(labels) == sorted(2 * list(range(10)))
    right = [answer["digit"] == label for answer, label in zip(answers, labels, strict=True)]
    assert sum(right) >= 18, [name for name, good in zip(DATA, right, strict=True) if not good]


def test_lines(capsys: Capture) -> None:
    assert call(SEVEN, THREE) == 0
    out, err = capsys.readouterr()
    assert err.startswith("weights: ") and err.endswith(f"best.pt ({BEST:.2f}% in its run)\n")
    first, second = out.splitlines()
    assert first.startswith(f"{SEVEN}: 7 (")
    assert second.startswith(f"{THREE}: 3 (")


def test_probabilities_are_the_networks(capsys: Capture, tmp_path: Path) -> None:
    image = load_mnist(str(ROOT / "data"), train=False)[0][0]
    seven = tmp_path / "seven.png"
    Image.fromarray(image.numpy()).save(seven)
    assert call("--json", "--weights", str(ROOT / "weights" / "best.pt"), str(seven)) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert (answer["file"], answer["digit"]) == (str(seven), 7)
    assert 0.9 < answer["probability"] <= 1
    assert answer["runner_up"] in set(range(10)) - {7}
    assert 0 <= answer["runner_up_probability"] <= 1 - answer["probability"] + 1e-6


def test_several_files_are_one_batch(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    sizes = []
    forward = Net.forward

    def counted(net: Net, x: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(x.shape))
        return forward(net, x)

    monkeypatch.setattr(Net, "forward", counted)
    assert call(SEVEN, THREE, SEVEN) == 0
    assert sizes == [(3, 1, 28, 28)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[2] != lines[1]


def test_newest_run_is_the_default(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "best.pt").write_bytes((ROOT / "weights" / "best.pt").read_bytes())
    assert call(SEVEN) == 0
    assert capsys.readouterr().err == (
        f"weights: {Path('runs', 'one', 'best.pt')} ({BEST:.2f}% in its run)\n"
    )


def test_bad_files_do_not_stop_the_good(tmp_path: Path, capsys: Capture) -> None:
    Image.new("L", (50, 50), 77).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("seven\n")
    (tmp_path / "cut.png").write_bytes(Path(SEVEN).read_bytes()[:500])
    (tmp_path / "folder").mkdir()
    (tmp_path / "line\nbreak.png").touch()
    bad = ["blank.png", "text.png", "missing.png", "cut.png", "folder", "line\nbreak.png"]
    assert call(bad[0], SEVEN, *bad[1:], THREE) == 1
    out, err = capsys.readouterr()
    assert [line.split(": ")[1][0] for line in out.splitlines()] == ["7", "3"]
    reasons = ["blank", "not a picture", "No such file", "damaged", "directory", "not a picture"]
    lines = err.splitlines()[1:]
    assert len(lines) == len(bad)
    for line, name, reason in zip(lines, bad, reasons, strict=True):
        shown = name if name.isprintable() else ascii(name)
        assert line.startswith(f"predict.py: error: {shown}: ")
        assert reason in line


def test_nothing_but_bad_files(capsys: Capture) -> None:
    assert call("missing.png") == 1
    assert capsys.readouterr().out == ""
    assert call("--json", "missing.png") == 1
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("content", [None, b"", b"no weights\n", b"PK\x03\x04"])
def test_bad_weights(content: bytes | None, tmp_path: Path, capsys: Capture) -> None:
    weights = tmp_path / "weights.pt"
    if content is not None:
        weights.write_bytes(content)
    assert call("--weights", str(weights), SEVEN) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"predict.py: error: {weights} ")
    assert err.count("\n") == 1


def test_weights_of_another_network(tmp_path: Path, capsys: Capture) -> None:
    torch.save({"model": {"layer": torch.zeros(3)}}, tmp_path / "other.pt")
    assert call("--weights", "other.pt", SEVEN) == 1
    assert "another network" in capsys.readouterr().err


def test_arguments(capsys: Capture) -> None:
    for flags in [[], ["--js", SEVEN], ["--weights"]]:
        with pytest.raises(SystemExit) as caught:
            predict.parse_args(flags)
        assert caught.value.code == 2
        assert "predict.py: error: " in capsys.readouterr().err


def test_standard_input() -> None:
    piped = shell(f'cat "{THREE}" | predict -')
    assert (piped.returncode, piped.stdout[:4]) == (0, "-: 3")
    closed = shell(f'predict - "{THREE}" <&-')
    assert closed.returncode == 1
    assert closed.stdout.startswith(f"{THREE}: 3")
    assert closed.stderr.splitlines()[1].startswith("predict.py: error: -: ")
    assert closed.stderr.count("\n") == 2


def test_full_disk_is_one_line() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    done = shell(f'predict "{SEVEN}" >/dev/full')
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == ["predict.py: error: standard output: No space left on device"]


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['predict.py', '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    sys.exit(end.code or 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--weights" in done.stdout
