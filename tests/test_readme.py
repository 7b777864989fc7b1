import csv
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev

import pytest
from conftest import ROOT

from config import RECIPES, Config, Options, flag

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_fits_a_screen() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 120


@pytest.mark.skipif(sys.platform == "win32", reason="CI's script is for bash")
def test_both_commands_stand_first_and_ci_runs_the_second() -> None:
    train, test = re.findall(r"```bash\n(.*?)\n```", README, flags=re.S)[:2]
    for command, end in ((train, "main.py"), (test, "-m pytest -n auto")):
        install = re.fullmatch(
            rf"python3 -m venv \.venv && \.venv/bin/pip install -r (\S+) && \.venv/bin/python {end}", command
        )
        assert install and (ROOT / install[1]).is_file()
    # CI cuts the command out of the README; so does this, with the script's own sed.
    cut = re.search(r"test_command=\$\((.*?)\)\n", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert cut
    out = subprocess.run(["bash", "-c", cut[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == test


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_the_readmes_figures_are_those_of_the_rows(recipe: str) -> None:
    with open(ROOT / "benchmarks" / "results" / f"{recipe}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    ends = [float(row["last"]) for row in rows]
    reached = sum(row["epoch_reached"].isdecimal() for row in rows)
    (line,) = re.findall(rf"^\| `{recipe}`, .*", README, flags=re.M)
    assert f", {RECIPES[recipe].epochs} epochs |" in line
    assert f"{mean(ends):.3f} ± {stdev(ends):.3f} %" in line and f"(n = {len(rows)}) |" in line
    assert f"| {reached} of {len(rows)} |" in line
    assert all(len(row["accuracy_by_epoch"].split()) == RECIPES[recipe].epochs for row in rows)


def test_requirements_txt_is_short() -> None:
    lines = (ROOT / "requirements.txt").read_text().split()
    assert sorted(re.split("[>=<]", line)[0] for line in lines) == [
        *("pillow", "scipy", "torch", "torchsummary", "torchvision", "tqdm")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"`([\w/.-]+(?:\.(?:py|txt)|/))`", README):
        assert (ROOT / name).exists(), name


def test_flags_of_main_that_are_named_exist() -> None:
    known = {flag(entry.name) for kind in (Config, Options) for entry in fields(kind)} | {"--help"}
    for page in PAGES:
        for command in re.findall(r"python main\.py( [^`\n]*)", page.read_text(encoding="utf-8")):
            assert set(re.findall(r"--[a-z][\w-]*", command)) <= known, (page, command)
