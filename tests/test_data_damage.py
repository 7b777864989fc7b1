"""What can be wrong with MNIST's files and their download: each ends in one line that says what to do."""

import functools
import gzip
import hashlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torchvision import datasets

import main
import utils
from arguments import parse_args
from utils import FILES, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, DataError, MnistFile

Damage = Callable[[Path, MnistFile], None]


def rewrite(change: Callable[[bytes], bytes]) -> Damage:
    """Damage a file by what ``change`` makes of its bytes."""

    def damage(path: Path, file: MnistFile) -> None:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(change(content))

    return damage


def other_file(path: Path, file: MnistFile) -> None:
    other = FILES[(FILES.index(file) + 2) % 4]
    path.unlink()
    shutil.copy(path.with_name(other.name), path)


def folder(path: Path, file: MnistFile) -> None:
    path.unlink()
    path.mkdir()


def forbidden(path: Path, file: MnistFile) -> None:
    rewrite(bytes)(path, file)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root may read everything")


def dangling(path: Path, file: MnistFile) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def loop(path: Path, file: MnistFile) -> None:
    path.unlink()
    path.symlink_to(path.name)


def another_dataset(content: bytes) -> bytes:
    """The header of MNIST's file, as FashionMNIST's has too, and other pixels or labels."""
    return content[:16] + bytes(reversed(content[16:]))


DAMAGE: dict[str, Damage] = {
    "empty": rewrite(lambda c: b""),
    "header only": rewrite(lambda c: c[:16]),
    "part of the header": rewrite(lambda c: c[:7]),
    "half": rewrite(lambda c: c[: len(c) // 2]),
    "without the last byte": rewrite(lambda c: c[:-1]),
    "without the last item": rewrite(lambda c: c[: -784 if len(c) > 10**6 else -1]),
    "a byte too many": rewrite(lambda c: c + b"\0"),
    "twice": rewrite(lambda c: c + c),
    "first bit": rewrite(lambda c: bytes([c[0] ^ 128]) + c[1:]),
    "last bit": rewrite(lambda c: c[:-1] + bytes([c[-1] ^ 1])),
    "a bit in the middle": rewrite(
        lambda c: c[: len(c) // 2] + bytes([c[len(c) // 2] ^ 8]) + c[len(c) // 2 + 1 :]
    ),
    "zeros": rewrite(lambda c: bytes(len(c))),
    "another dataset": rewrite(another_dataset),
    "still compressed": rewrite(lambda c: gzip.compress(c[:100_000], 1)),
    "a web page": rewrite(lambda c: b"<!DOCTYPE html><title>Log in</title>"),
    "swapped": other_file,
    "a folder": folder,
    "forbidden": forbidden,
    "dangling link": dangling,
    "loop of links": loop,
}
CASES = [(file, name) for file in (TEST_IMAGES, TEST_LABELS, TRAIN_LABELS) for name in DAMAGE]
CASES += [(TRAIN_IMAGES, name) for name in ("half", "last bit", "swapped", "a folder", "another dataset")]


@pytest.fixture
def raw(tmp_path: Path, data_path: str) -> Path:
    """MNIST's folder with links to the four files."""
    raw = utils.raw_folder(str(tmp_path))
    raw.mkdir(parents=True)
    for file in FILES:
        (raw / file.name).symlink_to(utils.raw_folder(data_path).resolve() / file.name)
    return raw


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the real mirrors: by default, there is one, at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{free.getsockname()[1]}/"])


@pytest.mark.parametrize("file, name", CASES, ids=lambda value: getattr(value, "name", value))
def test_damaged_data_ends_in_one_line(
    file: MnistFile, name: str, raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    DAMAGE[name](raw / file.name, file)
    if file in (TEST_IMAGES, TEST_LABELS):  # spares the time to check the training set, which is whole
        real = utils.load_mnist
        empty = torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
        monkeypatch.setattr(utils, "load_mnist", lambda path, train: empty if train else real(path, train))
    monkeypatch.chdir(raw.parent)
    assert main.main(parse_args(["--data-path", str(raw.parent.parent), "--device", "cpu"])) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("main.py: error: ") and out == ""
    assert file.name in err
    assert ("delete it" in err) or ("can't be read" in err) or (f"into {raw}" in err)
    if name == "swapped":
        assert "the content of " in err
    assert not Path("runs").exists()  # no run began


def test_a_file_in_place_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "MNIST").write_text("mine")
    assert main.main(parse_args(["--data-path", str(tmp_path), "--device", "cpu"])) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and str(tmp_path / "MNIST") in err and out == ""


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=3000))
@example(content=b"")
@example(content=bytes(10_008))
@example(content=b"\0\0\x08\x01\0\0\x27\x10" + bytes(10_000))
def test_no_bytes_are_taken_for_mnist(content: bytes, tmp_path: Path) -> None:
    (tmp_path / TEST_LABELS.name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        utils.read_verified(TEST_LABELS, tmp_path)
    message = str(caught.value)
    assert TEST_LABELS.name in message and "\n" not in message and "delete it" in message


# The download, from a server of our own


@functools.cache
def archive(data_path: str) -> bytes:
    return gzip.compress((utils.raw_folder(data_path) / TEST_LABELS.name).read_bytes(), mtime=0)


@pytest.fixture
def mirror(data_path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Start a server; what is returned makes it the mirrors /KIND/ and returns the log of requests."""
    whole, requests = archive(data_path), list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind = self.path.split("/")[1]
            requests.append(kind)
            if kind.isdecimal():
                self.send_error(int(kind))
                return
            if kind == "nonsense":
                self.wfile.write(b"\0\1\2 nonsense\r\n\r\n")
                return
            if kind == "hangs-up":
                return
            body = {"half": whole[: len(whole) // 2], "other": whole[::-1], "empty": b""}.get(kind, whole)
            self.send_response(200)
            # "cut" announces all of the file, and breaks off.
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    md5 = hashlib.md5(whole).hexdigest()
    monkeypatch.setattr(datasets.MNIST, "resources", [(f"{TEST_LABELS.name}.gz", md5)])
    url = f"http://127.0.0.1:{server.server_port}"

    def use(*kinds: str) -> list[str]:
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{url}/{kind}/" for kind in kinds])
        return requests

    yield use
    server.shutdown()
    server.server_close()


BAD_MIRRORS = ["403", "404", "500", "503", "half", "other", "empty", "cut", "nonsense", "hangs-up"]


@pytest.mark.parametrize("bad", [None, *BAD_MIRRORS])
def test_the_next_mirror_is_tried(bad: str | None, mirror: Callable[..., list[str]], raw: Path) -> None:
    requests = mirror(*([bad] if bad else []), "good", "good")
    (raw / TEST_LABELS.name).unlink()
    images, labels = utils.load_mnist(str(raw.parent.parent), train=False)
    assert images.shape == (10_000, 28, 28) and labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert list(dict.fromkeys(requests)) == ([bad, "good"] if bad else ["good"])
    assert {path.name for path in raw.iterdir()} == {file.name for file in FILES}


@pytest.mark.parametrize("bad", [*BAD_MIRRORS, "all"])
def test_a_download_that_fails_leaves_nothing(
    bad: str, mirror: Callable[..., list[str]], raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror(*(BAD_MIRRORS if bad == "all" else [bad, bad]))
    (raw / TEST_LABELS.name).unlink()
    assert main.main(parse_args(["--data-path", str(raw.parent.parent), "--device", "cpu"])) == 1
    _, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert last.startswith("main.py: error: MNIST is not complete and could not be downloaded (tried http")
    assert (
        last.endswith(f"into {raw}")
        and "Traceback" not in err
        and f"/{BAD_MIRRORS[0] if bad == 'all' else bad}/" in last
    )
    assert {path.name for path in raw.iterdir()} == {file.name for file in FILES} - {TEST_LABELS.name}


def test_a_server_that_is_down(raw: Path) -> None:
    (raw / TEST_LABELS.name).unlink()
    with pytest.raises(DataError, match="could not be downloaded"):
        utils.load_mnist(str(raw.parent.parent), train=False)
    assert {path.name for path in raw.iterdir()} == {file.name for file in FILES} - {TEST_LABELS.name}
