"""The event file, read back by TensorBoard's own reader."""

import subprocess
import sys
from pathlib import Path

import pytest

from curves import EVENTS, require_tensorboard, write_tensorboard

pytest.importorskip("tensorboard")

Row = dict[str, float]


def make_rows(epochs: int, part: str = "test") -> list[Row]:
    return [
        {
            "epoch": epoch,
            "lr": 0.01 / epoch,
            "train_loss": 1 / epoch,
            "train_accuracy": 90 + epoch,
            f"{part}_loss": 0.5 / epoch,
            f"{part}_accuracy": 91 + epoch,
            "seconds": 2.5,
        }
        for epoch in range(1, epochs + 1)
    ]


def read_back(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Return (step, value, time) of each event by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value, event.wall_time) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


TAGS = {
    "lr": "lr",
    "train_loss": "loss/train",
    "train_accuracy": "accuracy/train",
    "test_loss": "loss/test",
    "test_accuracy": "accuracy/test",
}


def check(folder: Path, rows: list[Row]) -> None:
    found = read_back(folder)
    assert set(found) == set(TAGS.values())
    for column, tag in TAGS.items():
        assert [step for step, _, _ in found[tag]] == [row["epoch"] for row in rows]
        assert [value for _, value, _ in found[tag]] == pytest.approx([row[column] for row in rows])
        assert [time for _, _, time in found[tag]] == [2.5 * row["epoch"] for row in rows]


def test_each_curve_is_read_back(tmp_path: Path) -> None:
    write_tensorboard(tmp_path, make_rows(3))
    check(tmp_path, make_rows(3))


def test_a_hold_out_runs_curves_bear_its_name(tmp_path: Path) -> None:
    write_tensorboard(tmp_path, make_rows(2, "holdout"))
    assert set(read_back(tmp_path)) == {
        "lr",
        "loss/train",
        "accuracy/train",
        "loss/holdout",
        "accuracy/holdout",
    }


def test_writing_after_each_epoch_doubles_nothing(tmp_path: Path) -> None:
    for epochs in range(4):
        write_tensorboard(tmp_path, make_rows(epochs))
        assert [path.name for path in tmp_path.iterdir()] == [EVENTS]
    write_tensorboard(tmp_path, make_rows(3))
    check(tmp_path, make_rows(3))


def test_a_reader_that_watches_sees_the_new_epochs(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_tensorboard(tmp_path, make_rows(1))
    events = EventAccumulator(str(tmp_path))
    for epochs in range(1, 4):
        write_tensorboard(tmp_path, make_rows(epochs))
        events.Reload()
        assert [event.step for event in events.Scalars("lr")] == list(range(1, epochs + 1))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_write_that_broke_off_is_completed(tmp_path: Path, share: float) -> None:
    write_tensorboard(tmp_path, make_rows(3))
    whole = (tmp_path / EVENTS).read_bytes()
    (tmp_path / EVENTS).write_bytes(whole[: int(share * len(whole))])
    write_tensorboard(tmp_path, make_rows(3))
    assert (tmp_path / EVENTS).read_bytes() == whole


@pytest.mark.parametrize("there", [b"something else", b"\x00" * 10_000])
def test_another_files_content_is_replaced(tmp_path: Path, there: bytes) -> None:
    (tmp_path / EVENTS).write_bytes(there)
    write_tensorboard(tmp_path, make_rows(2))
    check(tmp_path, make_rows(2))


def test_resumed_earlier_than_it_was_written(tmp_path: Path) -> None:
    write_tensorboard(tmp_path, make_rows(3))
    write_tensorboard(tmp_path, make_rows(2))
    check(tmp_path, make_rows(2))


def test_without_the_package_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "tensorboard.summary.writer.record_writer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Exception, match="pip install tensorboard") as caught:
        require_tensorboard()
    assert type(caught.value).__name__ == "RunError"
    assert "\n" not in str(caught.value)


def test_importing_it_needs_no_tensorboard() -> None:
    code = "import sys; sys.modules['tensorboard'] = None; import curves"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
