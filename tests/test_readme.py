import re
import subprocess
from pathlib import Path

import pytest
from arguments import build_parser
from recipes import DEFAULT_RECIPE, RECIPES

ROOT = Path(__file__).parent.parent
FIGURES = ("curves", "confusion", "digits", "reliability", "mistakes", "filters")
README = (ROOT / "README.md").read_text()


def test_both_commands_stand_first_and_name_what_there_is() -> None:
    train, test = re.findall(r"```bash\n(.*?)\n```", README, flags=re.S)[:2]
    for command in (train, test):
        assert "\n" not in command
        install = (
            r"python3 -m venv --without-pip .venv && python3 -m pip --python .venv/bin/python install -r "
        )
        requirements = re.match(re.escape(install) + r"(\S+) && ", command)
        assert requirements and (ROOT / requirements[1]).is_file()
    assert train.endswith(" && .venv/bin/python main.py")
    assert test.endswith(" && .venv/bin/python -m pytest")


def test_ci_runs_the_readmes_test_command() -> None:
    """CI cuts the command out of the README; so does this, with the script's own sed."""
    script = (ROOT / ".ci" / "run").read_text()
    cut = re.search(r"test_command=\$\((.*?)\)\n", script)
    assert cut
    out = subprocess.run(["bash", "-c", cut[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == re.findall(r"```bash\n(.*?)\n```", README, flags=re.S)[1]


def test_main_needs_no_more_than_requirements_txt() -> None:
    lines = (ROOT / "requirements.txt").read_text().split()
    assert sorted(re.split("[>=<]", line)[0] for line in lines) == [
        "torch",
        "torchsummary",
        "torchvision",
        "tqdm",
    ]


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"`([\w/.-]+\.(?:py|txt|md|csv|png|json|html|pt|log))`", README):
        base = [ROOT, ROOT / "tests"]
        made_by_a_run = {"best.pt", "last.pt", "metrics.csv", "report.html", "net.html"}
        made_by_a_run |= {f"{figure}.png" for figure in FIGURES}
        assert Path(name).name in made_by_a_run or any((folder / name).exists() for folder in base), name


def test_every_flag_that_the_readme_names_exists() -> None:
    known = {"--without-pip", "--python", "--logdir"}  # of venv, pip and tensorboard
    for source in [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py")]:
        known |= set(re.findall(r'"(--[a-z][\w-]*)"', source.read_text()))
    for action in build_parser(DEFAULT_RECIPE)._actions:
        known |= set(action.option_strings)
    assert set(re.findall(r"(?<![\w-])(--[a-z][\w-]*)", README)) <= known


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_recipes_name_the_same_hyperparameters(recipe: str) -> None:
    assert RECIPES[recipe].keys() == RECIPES["original"].keys()
    assert DEFAULT_RECIPE in RECIPES


def test_the_original_recipe_is_the_published_one() -> None:
    original = RECIPES["original"]
    published: dict[str, object] = {
        "epochs": 19,
        "batch_size": 128,
        "lr": 0.015,
        "max_lr": 0.015,
        "momentum": 0.9,
    }
    published |= {"weight_decay": 1e-4, "pct_start": 0.2, "div_factor": 10, "final_div_factor": 100}
    published |= {"rotation": 7, "interpolation": "nearest", "dropout": 0.05, "target_accuracy": 99.4}
    published |= {"schedule_interval": "epoch", "base_momentum": 0.85, "max_momentum": 0.95}
    off = {"nesterov": False, "translation": 0, "label_smoothing": 0, "model_ema_decay": 0}
    assert original == published | off


def test_the_default_stays_inside_what_the_project_promises() -> None:
    default, original = RECIPES[DEFAULT_RECIPE], RECIPES["original"]
    for name in ("batch_size", "lr", "momentum", "weight_decay", "target_accuracy", "translation"):
        assert default[name] == original[name]
    assert default["epochs"] <= 19 and default["max_lr"] / default["div_factor"] == default["lr"]


def test_the_fast_recipe_has_no_early_stop() -> None:
    assert RECIPES["fast"]["target_accuracy"] == 100
