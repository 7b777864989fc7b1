import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image


@pytest.mark.slow
def test_digits_are_read_as_predict_reads_files(tmp_path: Path) -> None:
    """The same pictures, written by Pillow from scikit-learn's numbers, one by one, and read as files."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    digits, files = load_digits(), []
    for i, numbers in enumerate(digits.data):
        picture = Image.new("L", (8, 8), 255)
        picture.putdata([round(255 - number * 255 / 16) for number in numbers])
        picture.save(tmp_path / f"{i}.png")
        files.append(f"{i}.png")
    weights = str(ROOT / "weights" / "best.pt")
    command = [sys.executable, "-m", "predict", "--json", "--weights", weights, *files]
    environment = {"PYTHONPATH": str(ROOT)}
    predicted = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    predictions = [entry["prediction"] for entry in json.loads(predicted.stdout)]
    right = [one == label for one, label in zip(predictions, digits.target.tolist(), strict=True)]
    assert len(right) == 1797 and sum(right) > 1600

    command = [sys.executable, str(ROOT / "benchmarks" / "writers.py"), weights]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, last = sum(right[:898]), sum(right[898:])
    assert f": tuned on {first} of 898; held out {last} of 899, {100 * last / 899:.2f} %\n" in done.stdout
