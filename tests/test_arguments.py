"""The command line of the sweep, and the names of its tables."""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.arguments import parse_sweep, sweep_name
from config import DEFAULT, FAST
from runtime.errors import UsageError


def test_grid_is_every_combination_on_held_out_images(tmp_path: Path) -> None:
    flags = ["--output-dir", str(tmp_path), "--recipe", "fast", "--epochs", "3"]
    (parsed,) = parse_sweep([*flags, "--grid", "max_lr=0.25,0.3,0.30 interpolation=bilinear,nearest"])
    configs = parsed.configs
    assert [(c.max_lr, c.interpolation) for c in configs] == [
        *((0.25, "bilinear"), (0.25, "nearest"), (0.3, "bilinear"), (0.3, "nearest"))
    ]
    assert {(c.recipe, c.epochs, c.holdout, c.early_stopping) for c in configs} == {
        ("fast", 3, 10_000, False)
    }
    assert list(configs.values())[1] == "--max-lr=0.25 --interpolation=nearest"
    names = [sweep_name(config, "/data") for config in [*configs, DEFAULT, FAST]]
    assert len(set(names)) == 6 and names[0] == "fast-epochs=3-holdout=10000-max_lr=0.25"
    (needing,) = parse_sweep([*flags, "--lr", "0.5", "--grid", "max_lr=1,2"])  # above the recipe's --max-lr
    assert [config.max_lr for config in needing.configs] == [1, 2]
    (parsed,) = parse_sweep([*flags, "--grid", "dropout=0.1", "--holdout", "500"])
    assert [config.holdout for config in parsed.configs] == [500]


def test_names_fit_any_file_system_and_differ(tmp_path: Path) -> None:
    pictures = replace(DEFAULT, dataset="folder")
    paths = ["/a", "/七", "/" + "七" * 80, "/" + "七" * 81, os.fsdecode(b"/\xff")]
    configs = [(pictures, path) for path in paths]
    for dataset, deterministic in itertools.product(("mnist", "folder"), (False, True)):
        config = replace(DEFAULT, dataset=dataset, use_deterministic_algorithms=deterministic)
        for name in (name for name, value in vars(config).items() if type(value) is float):
            object.__setattr__(config, name, 0.123456789)  # within range or not
        configs.append((config, "/a"))
    names = [sweep_name(config, path) for config, path in configs]
    mnist = next(config for config, _ in configs if config.dataset == "mnist")
    assert sweep_name(mnist, "/b") in names  # of whatever folder the command is started in
    for number in range(2):
        (tmp_path / "teacher.pt").write_text(str(number))
        names.append(sweep_name(replace(DEFAULT, teacher=str(tmp_path / "teacher.pt")), "/a"))
    assert len(set(names)) == len(names)
    assert all(name.isascii() and len(name) < 200 and "/" not in name for name in names)


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--grid max_lr=0.1 --holdout 0", "--holdout"),
        ("--grid holdout=200,100", "holdout can't vary"),
        ("--grid speed=1,2", "speed"),
        ("--grid seed=1,2", "seed"),
        ("--grid max_lr", "max_lr"),
        ("--grid max_lr=fast", "--max-lr"),
        ("--grid dropout=0.1,2", "--dropout"),
        ("--grid=", "--grid"),
        ("--seeds 0", "--seeds"),
        ("--jobs 0", "--jobs"),
        ("--jobs 2 --address 127.0.0.1:1", "--jobs"),
        ("--address somehost", "--address: must be HOST:PORT, not somehost"),
        ("--address 127.0.0.1:x", "--address: must be HOST:PORT, not 127.0.0.1:x"),
        ("--grid batch_size=64,128 --batch-size 128", "--batch-size: not allowed, as --grid"),
        ("--runs-per-gpu 0", "--runs-per-gpu"),
        ("--runs-per-gpu 2 --jobs 1", "--runs-per-gpu"),
        ("--runs-per-gpu 2 --device cpu", "--runs-per-gpu"),
        ("--output-dir FILE", "--output-dir: .* is a file; name a folder"),
        ("--seed 3", "--seed"),
        ("--early-stopping", "--early-stopping"),
        ("--target-accuracy 99", "--target-accuracy"),
        ("--target 150", "--target"),
        ("--target nan", "--target"),
        ("--resume runs/a", "--resume"),
        ("--recipe Best", "--recipe"),
        ("--data-path pictures", "--data-path"),  # without --dataset, it is MNIST
        ("--epoch 3", "--epoch"),
    ],
)
def test_refused(flags: str, named: str, tmp_path: Path) -> None:
    parts = [part.replace("FILE", __file__) for part in flags.split()]
    with pytest.raises(UsageError, match=named):
        parse_sweep(["--output-dir", str(tmp_path), *parts])
