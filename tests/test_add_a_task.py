"""docs/add-a-task.md works as it stands: its files are written to an empty folder, run and checked."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from recipe.amft.main import compose
from recipe.amft.preflight import preflight
from recipe.amft.tasks.environment import make_environment

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-a-task.md").read_text()
BLOCKS = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^ {4}python -m (\S+)(.*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's files, and what its commands write, in a folder of their own."""
    folder = tmp_path_factory.mktemp("own-task")
    for name, code in BLOCKS.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    for module in [module for module, _ in COMMANDS if module.startswith("my_tasks.")]:
        command = [sys.executable, "-m", module]
        finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
    assert "all checks passed" in finished.stdout
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    """As a user in that folder, with it on PYTHONPATH."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_the_page_holds_three_files_and_the_environment_is_short():
    """About 40 lines make an environment; the page's commands run its other two files."""
    assert list(BLOCKS) == ["my_tasks/coins.py", "my_tasks/coins_data.py", "my_tasks/check_coins.py"]
    assert sum(1 for line in BLOCKS["my_tasks/coins.py"].splitlines() if line.strip()) <= 45
    assert {"my_tasks.coins_data", "my_tasks.check_coins"} <= {module for module, _ in COMMANDS}


def test_the_environment_judges_exactly(inside):
    """Greedy is not enough; attempts end; the three problems are told apart."""
    environment = make_environment("my_tasks.coins:Coins", {"coins": [1, 5, 12]})
    observation, _ = environment.reset(0, {"amount": 16})
    assert observation["text"] == "Coins 1 5 12. Pay 16."
    answers = {"12 1 1 1 1": "Wrong: fewer are enough.", "5 5": "Wrong: that is 10.", "16": "Wrong: write coins"}
    for attempt, (answer, said) in enumerate(answers.items(), start=1):
        observation, reward, terminated, truncated, _ = environment.step(answer)
        assert observation["text"].startswith(said)
        assert (reward, terminated, truncated) == (0.0, False, attempt == 3)
    environment.reset(0, {"amount": 16})
    assert environment.step("1 5 5 5")[1:4] == (1.0, True, False)
    first, second = (environment.reset(seed)[0]["text"] for seed in (1, 1))
    assert first == second


def test_rows_are_in_the_schema_and_demonstrations_are_right(inside):
    """The columns that training reads, and full reward for every demonstration."""
    rows = pd.read_parquet("data/coins/train.parquet").to_dict("records")
    assert len(rows) == 200
    assert set(rows[0]) == {"data_source", "prompt", "target", "ability", "reward_model", "extra_info"}
    for row in rows:
        task = row["extra_info"]
        assert set(task) == {"id", "env_id", "env_kwargs", "seed", "options", "split", "index"}
        environment = make_environment(task["env_id"], json.loads(task["env_kwargs"]))
        environment.reset(task["seed"], json.loads(task["options"]))
        assert environment.step(row["target"][0]["content"])[1] == 1.0


def test_a_typing_error_in_a_row_names_what_there_is(inside):
    """The wrong class or argument is named with the right ones."""
    with pytest.raises(ValueError, match="it has: Coins"):
        make_environment("my_tasks.coins:Coin", {})
    with pytest.raises(ValueError, match="unknown key 'attemps'; allowed: attempts"):
        make_environment("my_tasks.coins:Coins", {"attemps": 2})


def test_the_training_command_passes_every_check(inside, monkeypatch, tmp_path):
    """`dry_run=true` behind the page's command has no finding, and the plan counts the page's rows."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (overrides,) = [arguments for module, arguments in COMMANDS if module == "recipe.amft.main"]
    small = ["hardware=cpu", "dry_run=true", f"amft.cache_dir={tmp_path}", "amft.model.options.pretraining.steps=0"]
    _, run_folder, plan = preflight(compose([*shlex.split(overrides), *small]))
    assert plan.findings == ()
    assert Path(run_folder.path).name == "coins"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command[0].startswith("recipe.amft.data.")])
def test_data_commands_of_the_page_are_accepted(command, tmp_path):
    """The options exist, and the commands write what they say."""
    module, arguments = command
    finished = subprocess.run(
        [sys.executable, "-m", module, *shlex.split(arguments)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert list(tmp_path.rglob("train.parquet"))
