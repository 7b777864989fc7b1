import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import checkpoint
from checkpoint import RunError, load_checkpoint, load_net, load_progress, replace_file, save_checkpoint
from model import Net


def good() -> dict[str, Any]:
    return {"model": Net().state_dict(), "epoch": 1, "test_accuracy": 10.0}


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    return buffer.getvalue()


class Hostile:
    """Unpickled carelessly, it makes the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    content = good()
    change(content["model"])
    return saved(content)


def altered(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def first_weight(content: bytes) -> int:
    """Where in the archive the weights of the first layer lie."""
    weight = Net().state_dict()["layers.0.0.weight"]
    model = torch.load(io.BytesIO(content), weights_only=True)["model"]["layers.0.0.weight"]
    assert model.shape == weight.shape
    return content.index(model.numpy().tobytes())


def with_text(model: dict[str, Any]) -> None:
    model["layers.0.0.weight"] = "weights"


WEIGHT = "layers.0.0.weight"
DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"P",
    "text": lambda: b"these are not weights\n",
    "zeros": lambda: bytes(10_000),
    "without its end": lambda: saved(good())[:-1],
    "half": lambda: saved(good())[: len(saved(good())) // 2],
    "without its start": lambda: saved(good())[100:],
    "one bit of a weight": lambda: (lambda c: altered(c, first_weight(c) + 2))(saved(good())),
    "a plain pickle": lambda: pickle.dumps(good()),
    "the old format": lambda: saved(good(), _use_new_zipfile_serialization=False),
    "an empty archive": lambda: b"PK\x05\x06" + bytes(18),
    "another archive": lambda: archive({"notes.txt": b"these are not weights"}),
    "a list": lambda: saved([1, 2, 3]),
    "a tensor": lambda: saved(torch.zeros(3)),
    "no network": lambda: saved({"epoch": 1}),
    "a number for a network": lambda: saved({"model": 3}),
    "another network": lambda: saved({"model": torch.nn.Linear(2, 2).state_dict()}),
    "a layer missing": lambda: changed(lambda m: m.pop(WEIGHT)),
    "a layer too many": lambda: changed(lambda m: m.update(more=torch.zeros(1))),
    "another shape": lambda: changed(lambda m: m.update({WEIGHT: torch.zeros(10, 1, 5, 5)})),
    "float64": lambda: changed(lambda m: m.update({WEIGHT: m[WEIGHT].double()})),
    "integers": lambda: changed(lambda m: m.update({WEIGHT: m[WEIGHT].long()})),
    "a sparse layer": lambda: changed(lambda m: m.update({WEIGHT: m[WEIGHT].to_sparse()})),
    "a layer without numbers": lambda: changed(lambda m: m.update({WEIGHT: m[WEIGHT].to("meta")})),
    "text for a layer": lambda: changed(with_text),
    "NaN": lambda: changed(lambda m: m[WEIGHT].view(-1)[4:5].fill_(float("nan"))),
    "infinity": lambda: changed(lambda m: m["layers.0.1.running_var"][3:4].fill_(float("inf"))),
}


def refused(path: Path) -> str:
    with pytest.raises(RunError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(DAMAGED[name]())
    refused(path)
    assert capfd.readouterr() == ("", "") and not recwarn.list


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": x}, lambda x: good() | {"settings": x}])
@pytest.mark.parametrize("form", [saved, pickle.dumps])
def test_a_checkpoint_never_runs_code(
    wrap: Callable[[Any], Any], form: Callable[[Any], bytes], tmp_path: Path
) -> None:
    made, path = tmp_path / "made", tmp_path / "best.pt"
    path.write_bytes(form(wrap(Hostile(made))))
    refused(path)
    assert not made.exists()
    if form is pickle.dumps:  # the trap does work
        pickle.loads(path.read_bytes())
        assert made.exists()


def test_a_folder_a_missing_file_and_a_loop_of_links(tmp_path: Path) -> None:
    assert "directory" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "none.pt")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop")


def test_a_good_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    content = good()
    save_checkpoint(tmp_path / "best.pt", content)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model, found = load_net(tmp_path / "best.pt")
    assert torch.equal(torch.get_rng_state(), before) and not model.training
    assert found["epoch"] == 1
    assert all(torch.equal(model.state_dict()[name], value) for name, value in content["model"].items())


GOOD = saved(good())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=2000))
@example(content=b"PK\x05\x06" + bytes(18))
def test_no_bytes_give_anything_but_a_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(content)
    refused(tmp_path / "best.pt")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_one_altered_bit_changes_no_weight_unnoticed(at: int, bit: int, tmp_path: Path) -> None:
    content = bytearray(GOOD)
    content[at] ^= 1 << bit
    (tmp_path / "best.pt").write_bytes(content)
    try:
        found = load_checkpoint(tmp_path / "best.pt")
    except RunError as error:
        assert "\n" not in str(error)
    else:  # it lay between the entries
        whole = torch.load(io.BytesIO(GOOD), weights_only=True)
        assert all(torch.equal(found["model"][name], value) for name, value in whole["model"].items())


ANYTHING = st.one_of(
    *(st.none(), st.booleans(), st.text(), st.floats(), st.lists(st.integers())),
    st.dictionaries(st.text(), st.text()),
)
NAMES = ["settings", "device", "epoch", "best", "rows", "finished", "model"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(NAMES), value=ANYTHING)
def test_progress_of_any_kind_is_read_or_refused(name: str, value: Any, tmp_path: Path) -> None:
    progress = {
        "settings": {"given": {}},
        "device": "cpu",
        "epoch": 1,
        "best": 1.0,
        "rows": [],
        "finished": False,
    }
    save_checkpoint(tmp_path / "last.pt", {**good(), **progress, name: value})
    try:
        load_progress(tmp_path)
    except RunError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(value, type((good() | progress)[name]))


def test_replace_file_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder can't be written: Is a directory"):
        replace_file(tmp_path / "folder", b"new")
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="file/x can't be written: Not a directory"):
        replace_file(tmp_path / "file" / "x", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 2


def test_only_one_process_is_in_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    (tmp_path / ".best.pt.123.tmp").write_bytes(b"half")
    with checkpoint.locked(tmp_path):
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(RunError, match="in use"), checkpoint.locked(tmp_path):
            pass
    with checkpoint.locked(tmp_path):
        pass
