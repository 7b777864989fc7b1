import re

import pytest
from conftest import Command

from arguments import UsageError, parse_args, resume_args

NUMBERS = {  # flag: values that are out of its range, beside those that are no numbers
    "--epochs": ["0", "-1", "10001", "1e9", "1.5"],
    "--batch-size": ["0", "-128", "60001", "1" * 30],
    "--seed": ["-1", "9223372036854775808", "0.5", "1e3"],
    "--limit-train-batches": ["0", "-3", "1000001"],
    "--holdout": ["-1", "50001", "0.5"],
    "--lr": ["0", "-0.1", "101", "1e300"],
    "--max-lr": ["0", "-0.015", "1e9"],
    "--momentum": ["-0.1", "1", "2"],
    "--weight-decay": ["-1e-4", "1.1"],
    "--pct-start": ["-0.2", "1.01"],
    "--div-factor": ["0", "0.5", "-10", "1e7"],
    "--final-div-factor": ["0", "-1", "1e10"],
    "--base-momentum": ["-0.85", "1"],
    "--max-momentum": ["-0.95", "1", "1.5"],
    "--rotation": ["-7", "181"],
    "--translation": ["-1", "29"],
    "--dropout": ["-0.05", "1", "5"],
    "--label-smoothing": ["-0.1", "1.1"],
    "--model-ema-decay": ["-0.5", "1", "1.0001"],
    "--target-accuracy": ["0", "-99", "100.1"],
}
WORDS = {
    "--recipe": ["", "unknown", "Original"],
    "--schedule-interval": ["", "step"],
    "--interpolation": ["", "bicubic"],
    "--device": ["", "gpu", "cuda:", "cuda:x", "cpu:-1", "tpu"],
    "--data-path": ["", "a\0b"],
    "--output-dir": ["", "\0"],
    "--resume": [""],
}
BAD = [[flag, value] for flag, values in {**NUMBERS, **WORDS}.items() for value in values]
BAD += [[flag, value] for flag in NUMBERS for value in ("nan", "inf", "-inf", "", "abc", "1,5", "0x1")]
BAD += [[flag] for flag in {**NUMBERS, **WORDS}]  # no value at all
TOGETHER = [
    ["--lr", "0.01", "--div-factor", "5"],
    ["--lr", "0.5", "--max-lr", "0.1"],
    ["--momentum", "0.9", "--base-momentum", "0.8"],
    ["--momentum", "0.9", "--max-momentum", "0.95"],
    ["--base-momentum", "0.9", "--max-momentum", "0.8"],
    ["--resume", "runs/x", "--output-dir", "runs/y"],
]
UNKNOWN = [
    ["--epoch", "3"],
    ["--Epochs", "3"],
    ["-e"],
    ["extra"],
    ["--no-dry-run"],
    ["--dry-run=1"],
    ["--nesterov=1"],
]


@pytest.mark.parametrize("argv", BAD + TOGETHER, ids=" ".join)
def test_a_bad_value_is_named(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args([f"{argv[0]}={argv[1]}"] if len(argv) == 2 else argv)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    last = err.splitlines()[-1]
    assert err.startswith("usage: main.py ") and last.startswith("main.py: error: argument --")
    assert any(flag in last for flag in argv if flag.startswith("--"))
    if len(argv) == 2 and argv[0] in NUMBERS:
        assert re.search(r"must be (an integer|a number) (from|above) .*, not ", last), last


@pytest.mark.parametrize("argv", UNKNOWN, ids=" ".join)
def test_an_unknown_flag_is_named(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(argv)
    assert caught.value.code == 2
    assert argv[0].split("=")[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("argv", [["--epochs", "0"], ["--lr", "nan"], ["--device", "gpu"], ["--seed"]])
def test_the_command_ends_before_it_loads_anything(argv: list[str], command: Command) -> None:
    # A data path at which reading would fail differently, and no import of torch.
    done = command("--data-path", "/dev/null", *argv, env={"PYTHONPROFILEIMPORTTIME": "1", "PATH": ""})
    assert done.returncode == 2 and done.stdout == ""
    assert f"main.py: error: argument {argv[0]}: " in done.stderr
    assert "argparse" in done.stderr and "torch" not in done.stderr


def test_the_bounds_themselves_are_taken() -> None:
    argv = [
        "--seed=9223372036854775807",
        "--dropout=0",
        "--epochs=10000",
        "--target-accuracy=100",
        "--max-lr=1e2",
    ]
    args = parse_args(argv)
    assert (args.seed, args.dropout, args.epochs) == (2**63 - 1, 0.0, 10_000)
    assert (args.target_accuracy, args.max_lr) == (100.0, 100.0)


RUN = [
    "--recipe",
    "original",
    "--epochs",
    "4",
    "--lr",
    "0.01",
    "--no-nesterov",
    "--seed",
    "3",
    "--device",
    "cpu",
]


@pytest.mark.parametrize(
    "flags", [[], RUN, ["--seed", "3", "--epochs", "4"], ["--data-path", "/x", "--device", "cuda"]]
)
def test_a_resumed_run_has_its_own_settings(flags: list[str]) -> None:
    stored = vars(parse_args(RUN))
    resumed = vars(resume_args(parse_args(["--resume", "runs/x", *flags]), stored))
    free = {"resume", "given", "data_path", "device"}
    assert {k: v for k, v in resumed.items() if k not in free} == {
        k: v for k, v in stored.items() if k not in free
    }
    if "/x" in flags:
        assert (resumed["data_path"], resumed["device"]) == ("/x", "cuda")


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--epochs", "5"], ["--epochs 4, not 5"]),
        (["--seed", "4", "--nesterov"], ["--seed 3, not 4", "--nesterov False, not True"]),
        (["--recipe", "reliable"], ["--recipe original, not reliable"]),
        (["--lr", "0.015"], ["--lr 0.01, not 0.015"]),
        (["--holdout", "9", "--dry-run"], ["--holdout 0, not 9", "--dry-run False, not True"]),
        (["--use-deterministic-algorithms"], ["--use-deterministic-algorithms False, not True"]),
    ],
)
def test_flags_that_contradict_the_run_are_named(flags: list[str], named: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        resume_args(parse_args(["--resume", "runs/x", *flags]), vars(parse_args(RUN)))
    for text in named:
        assert text in str(caught.value)


def test_stored_settings_are_read_as_strictly_as_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ({"epochs": "many"}, {"epochs": -1}, {"no such flag": 1}, {"seed": [1]}, {"dry_run": "x"}):
        with pytest.raises(SystemExit):
            resume_args(parse_args(["--resume", "runs/x"]), vars(parse_args([])) | {"given": given})
        assert "main.py: error: " in capsys.readouterr().err
