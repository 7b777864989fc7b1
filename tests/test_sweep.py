"""A sweep in one process: its command line, its runs against those of main.py, its rows, and any path."""

import contextlib
import importlib
import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from PIL import Image
from runs import read_table

pytest.importorskip("matplotlib")

from benchmarks import sweep
from benchmarks.arguments import parse_sweep, sweep_name
from benchmarks.summary import Row
from config import BEST, DEFAULT, ORIGINAL, RECIPES, Config, Options, parse_args
from main import train_run
from runtime.errors import DivergedError, UsageError, UserError

SHORT = "--recipe original --epochs 6 --limit-train-batches 6 --holdout 500 --device cpu".split()  # noqa: SIM905
SHORTER = [*SHORT, "--epochs", "2", "--limit-train-batches", "3"]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def sweep_in(folder: Path, *flags: str) -> None:
    """Do in this process what the command does; without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", lambda count: None)
        patch.setattr(sys, "argv", ["sweep.py", "--output-dir", str(folder), "--jobs", "1", *flags])
        sweep.main()


def run_sweep(folder: Path, *flags: str, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.sweep", "--output-dir", str(folder), *flags]
    return subprocess.Popen(
        command,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_mistakes_answer_in_one_line(tmp_path: Path) -> None:
    out, err = (process := run_sweep(tmp_path, "--grid", "lr=0.1", "--holdout", "0")).communicate(timeout=60)
    assert process.returncode == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("sweep.py: error: ")


def test_grid_is_every_combination_on_held_out_images(tmp_path: Path) -> None:
    flags = ["--output-dir", str(tmp_path), "--recipe", "fast", "--epochs", "3"]
    configs = parse_sweep([*flags, "--grid", "lr=0.25,0.3,0.30 interpolation=bilinear,nearest"]).configs
    assert [(c.lr, c.interpolation) for c in configs.values()] == [
        *((0.25, "bilinear"), (0.25, "nearest"), (0.3, "bilinear"), (0.3, "nearest"))
    ]
    shared = {(c.recipe, c.epochs, c.holdout, c.target_accuracy) for c in configs.values()}
    assert shared == {("fast", 3, 10_000, 0)}
    assert list(configs)[:2] == [
        "fast-epochs=3-holdout=10000-lr=0.25",
        "fast-epochs=3-holdout=10000-interpolation=nearest-lr=0.25",
    ]
    (config,) = parse_sweep([*flags, "--grid", "dropout=0.1", "--holdout", "500"]).configs.values()
    assert config.holdout == 500


@pytest.mark.usefixtures("unicode_names")
def test_names_are_short_and_differ() -> None:
    """Other settings have another name; so has another folder of pictures, but not another path of MNIST."""
    pictures = replace(DEFAULT, dataset="folder")
    paths = ["/a", "/七", "/" + "七" * 80, "/" + "七" * 81, os.fsdecode(b"/\xff")]
    names = [sweep_name(pictures, path) for path in paths]
    names += [sweep_name(replace(pictures, lr=0.1), "/a"), sweep_name(replace(DEFAULT, lr=0.1), "/a")]
    assert sweep_name(replace(DEFAULT, lr=0.1), "/b") == names[-1]
    assert len(set(names)) == len(names)
    many = replace(BEST, recipe="original", lr=0.123456789, limit_train_batches=9999)
    names += [sweep_name(replace(many, weight_decay=decay), "/a") for decay in (0.1, 0.2)]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and len(name) < 200 and "/" not in name for name in names)


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--grid lr=0.1 --holdout 0", "--holdout"),
        ("--grid holdout=200,100", "holdout"),
        ("--grid speed=1,2", "speed"),
        ("--grid seed=1,2", "seed"),
        ("--grid lr", "lr"),
        ("--grid lr=fast", "--lr"),
        ("--grid dropout=0.1,2", "--dropout"),
        ("--grid dataset=mnist,kmnist", "dataset"),
        ("--grid=", "--grid"),
        ("--grid lr=0.1 --grid lr=0.1\u00a0lr=0.2", "lr"),
        ("--seeds 0", "argument --seeds: must be at least 1"),
        ("--jobs -1", "argument --jobs: must be at least 0"),
        ("--address somehost", "--address: must be HOST:PORT, not somehost"),
        ("--jobs 2 --address 127.0.0.1:1", "--jobs|--address"),
        ("--seed 3", "--seed"),
        ("--target-accuracy 99", "--target-accuracy"),
        ("--resume runs/a", "--resume"),
        ("--recipe Best", "--recipe"),
        ("--epoch 3", "--epoch"),
    ],
)
def test_refused(flags: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=named):
        parse_sweep(["--output-dir", str(tmp_path), *flags.split()])


def weights(folder: Path) -> list[torch.Tensor]:
    return list(torch.load(folder / "last.pt", weights_only=True)["training"]["model"].values())


def rows_of(folder: Path) -> list[Row]:
    return read_table(folder / "sweep.csv")


def check_against_main(folder: Path, flags: list[str], alone: Path, seeds: list[int]) -> None:
    """Compare the runs with ``seeds`` in ``folder`` with main.py's, bit for bit."""
    for row in rows_of(folder):
        assert row["error"] == "" and row["split"] == "holdout"
        if int(row["seed"]) not in seeds:
            continue
        single = alone / row["seed"]
        train_run(
            *parse_args([*flags, "--seed", row["seed"], "--target-accuracy=0", "--output-dir", str(single)])
        )
        run = folder / row["name"] / f"seed-{row['seed']}"
        pairs = zip(weights(run), weights(single), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
        accuracies = [f"{float(line['eval_accuracy']):g}" for line in read_table(single / "metrics.csv")]
        assert row["accuracy_by_epoch"].split() == accuracies and row["last"] == accuracies[-1]
        seconds = [float(line["seconds"]) for line in read_table(run / "metrics.csv")]
        assert [float(text) for text in row["seconds_by_epoch"].split()] == pytest.approx(
            [sum(seconds[:epoch]) for epoch in range(1, len(seconds) + 1)]
        )
        assert row["seconds"] == row["seconds_by_epoch"].split()[-1]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two seeds, one after the other; stdout is in the file "out"."""
    folder = tmp_path_factory.mktemp("swept")
    with open(folder / "out", "w", encoding="utf-8") as out, contextlib.redirect_stdout(out):
        sweep_in(folder, *SHORTER, "--seeds", "2")
    return folder


def test_runs_without_ray_are_those_of_main(swept: Path, tmp_path: Path) -> None:
    """The second run, which the first one's random numbers would change if they were not independent."""
    check_against_main(swept, SHORTER, tmp_path, seeds=[2])
    out = (swept / "out").read_text(encoding="utf-8")
    assert "seed-1: " in out and "(1 of 2 runs" in out and "(2 of 2 runs" in out
    assert "--seeds 2`; CPU with " in out and "\nmean, % " in out
    assert [row["seed"] for row in rows_of(swept)] == ["1", "2"]
    (plot,) = swept.glob("*.png")
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stem == rows_of(swept)[0]["name"]


@pytest.mark.parametrize("recipe, target", [(ORIGINAL, "99"), (replace(ORIGINAL, rotation=9.0), "99.4")])
def test_rows_of_other_settings_stay_and_do_not_count(
    recipe: Config, target: str, swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target may differ, and so may the settings of an earlier version's recipe of the same name."""
    shutil.copy(swept / "sweep.csv", tmp_path)
    monkeypatch.setitem(RECIPES, "original", recipe)
    with pytest.raises(UserError, match="has another target or settings of original"):
        sweep_in(tmp_path, *SHORTER, "--target", target, "--seeds", "2")
    assert rows_of(tmp_path) == rows_of(swept)


@pytest.mark.parametrize(
    "old, new",
    [
        (",9", ",9,"),  # a column more
        ("last", "first"),  # no column "last"
        (",99.4,", ",99.4,x"),  # no number
        ("seed", "epoch"),  # another table
        ("\noriginal", "\n\xff"),  # not text: written as Latin-1
    ],
)
def test_a_damaged_table_is_one_line(old: str, new: str, swept: Path, tmp_path: Path) -> None:
    table = tmp_path / "sweep.csv"
    damaged = (swept / "sweep.csv").read_text(encoding="utf-8").replace(old, new, 1).encode("latin-1")
    table.write_bytes(damaged)
    with pytest.raises(UserError, match="is damaged") as caught:
        sweep_in(tmp_path, *SHORTER, "--seeds", "2")
    assert str(table) in str(caught.value) and "\n" not in str(caught.value)
    assert table.read_bytes() == damaged


def test_a_run_that_diverges_is_a_row_and_not_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real divergence: each step at a rate of 100 multiplies the weights by -99."""
    flags = "--recipe original --schedule-interval batch --div-factor 1 --weight-decay 1".split()  # noqa: SIM905
    flags += "--batch-size 16 --epochs 1 --limit-train-batches 26 --holdout 100".split()  # noqa: SIM905
    flags += ["--device", "cpu", "--seeds", "1"]
    for printed in ("(2 of 2 runs", "| – (1 of 1 diverged) |"):
        with pytest.raises(UserError, match="1 of 2 runs diverged, seed 1: the loss became nan"):
            sweep_in(tmp_path, *flags, "--grid", "lr=0.02,100")
        assert printed in capsys.readouterr().out
        for path in tmp_path.glob("*/seed-1"):
            shutil.rmtree(path)  # it would be trained again without a row
    assert sorted(row["error"][:19] for row in rows_of(tmp_path)) == ["", "the loss became nan"]
    assert not list(tmp_path.glob("*/seed-1"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "last.pt"),
        UserError("metrics.csv can't be written: stale file handle"),
        RuntimeError("CUDA error: device-side assert triggered\nCompile with"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_other_error_ends_the_sweep_and_leaves_no_row(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def train_run(config: Config, options: Options) -> None:
        tried.append(config.seed)
        if config.seed == 2 and len(tried) < 3:
            raise error
        raise DivergedError("the loss became nan")

    monkeypatch.setattr(sweep, "train_run", train_run)
    with pytest.raises(UserError, match=re.escape(str(error).partition("\n")[0]) or "MemoryError") as caught:
        sweep_in(tmp_path, "--seeds", "3")
    assert "\n" not in str(caught.value) and "the same command continues" in str(caught.value)
    assert [row["seed"] for row in rows_of(tmp_path)] == ["1"]
    assert "Traceback" in (tmp_path / "default" / "seed-2.log").read_text()
    with pytest.raises(UserError, match="3 of 3 runs diverged"):
        sweep_in(tmp_path, "--seeds", "3")
    assert tried == [1, 2, 2, 3]


def test_a_run_is_resumed_with_the_sweeps_device_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[frozenset[str]] = []

    def train_run(config: Config, options: Options) -> None:
        given.append(options.given)
        raise DivergedError("the loss became nan")

    monkeypatch.setattr(sweep, "train_run", train_run)
    for name in ("seed-1/last.pt", "seed-2/of-the-user.txt"):
        (tmp_path / "default" / name).parent.mkdir(parents=True)
        (tmp_path / "default" / name).touch()
    with pytest.raises(UserError, match="2 of 2 runs diverged"):
        sweep_in(tmp_path, "--seeds", "2", "--device", "cpu")
    assert {"device", "recipe"} <= given[0] and "data_path" not in given[0]
    assert {path.name for path in tmp_path.glob("default/*/*")} - {".lock"} == {"last.pt", "of-the-user.txt"}


def test_a_folder_of_the_user_is_not_deleted(tmp_path: Path) -> None:
    """A start that was killed has left a lock at most, and a half-written file, which counts for nothing."""
    for seed, name in (("1", ".last.pt.123.tmp"), ("2", "best.pt")):
        (tmp_path / "original-epochs=1-holdout=500-limit_train_batches=1" / f"seed-{seed}").mkdir(
            parents=True
        )
        next(tmp_path.glob(f"*/seed-{seed}")).joinpath(name).write_text("kept")
    with pytest.raises(UsageError, match=r"--output-dir: .*seed-2 is not empty"):
        sweep_in(tmp_path, *SHORT, "--epochs=1", "--limit-train-batches=1", "--seeds=2")
    assert [row["seed"] for row in rows_of(tmp_path)] == ["1"]
    assert next(tmp_path.glob("*/seed-2")).joinpath("best.pt").read_text() == "kept"


def make_pictures(folder: Path) -> None:
    for split, name in itertools.product(("train", "test"), ("a", "b")):
        (folder / split / name).mkdir(parents=True)
        Image.new("L", (28, 28), ord(name)).save(folder / split / name / "1.png")


PICTURES = "--dataset=folder --epochs=1 --batch-size=2 --seeds=1 --device=cpu --data-path".split()  # noqa: SIM905


def test_data_that_cannot_be_had_is_no_runs_result(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        sweep_in(tmp_path / "sweep", *PICTURES, str(tmp_path / "wrong"))
    assert not list((tmp_path / "sweep").glob("*.csv"))


@pytest.mark.usefixtures("unicode_names")
@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow text only in a path")
def test_pictures_may_lie_at_any_path(tmp_path: Path) -> None:
    """Each path has rows of its own, in which it stands."""
    paths = [
        tmp_path / "of" / "one",
        tmp_path / "of_one",
        tmp_path / ("七" * 80),
        tmp_path / os.fsdecode(b"\xff"),
    ]
    for path in paths:
        make_pictures(path)
        sweep_in(tmp_path / "sweep", *PICTURES, str(path))
        sweep_in(tmp_path / "sweep", *PICTURES, str(path))  # and the row is found again
    rows = rows_of(tmp_path / "sweep")
    assert [row["error"] for row in rows] == [""] * len(paths)
    expected = {str(path) for path in paths[:3]} | {f"{tmp_path}/\\xff"}
    assert {row["data_path"] for row in rows} == expected


@pytest.mark.slow
def test_output_that_cannot_be_encoded_is_escaped(tmp_path: Path) -> None:
    """A real start, where stdout and the run's log are ASCII by default."""
    make_pictures(tmp_path / "七")
    encoding = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = run_sweep(tmp_path, *PICTURES, str(tmp_path / "七"), "--jobs", "1", **encoding)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert re.search(r"data-path .*\\u(4e03|dce4)", out)  # dce4: not even the argument could be decoded
    assert re.search(r"standard deviation +\\u2013\n", out)


def test_a_log_takes_any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_run(config: Config, options: Options) -> None:
        print("七", os.fsdecode(b"\xff"))
        raise DivergedError("the loss became nan")

    monkeypatch.setattr(sweep, "train_run", train_run)
    with pytest.raises(UserError, match="1 of 1 runs diverged"):
        sweep_in(tmp_path, "--seeds", "1")
    assert (tmp_path / "default" / "seed-1.log").read_text(encoding="utf-8") == "七 \\udcff\n"


def test_missing_packages_are_named_before_any_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    for name in ("summary", "sweep"):
        monkeypatch.delitem(sys.modules, f"benchmarks.{name}")
        monkeypatch.delattr(f"benchmarks.{name}")
    with pytest.raises(SystemExit, match=r"^error: .*scipy.*: pip install scipy$"):
        importlib.import_module("benchmarks.sweep")
