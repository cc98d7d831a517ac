"""docs/add-a-method.md works as it stands: its files are registered and driven; docs/methods.md is complete."""

import ast
import importlib.util
import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf

from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.config import AMFTConfig, from_mapping
from recipe.amft.config_checks import Run, check_every_key_is_read
from recipe.amft.main import CONFIGS, compose
from recipe.amft.methods import METHODS, Groups, Measurements, StepPlan, Sum, make_method
from recipe.amft.shape import Shape

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-a-method.md").read_text()
PRESETS = sorted(path.stem for path in Path(CONFIGS, "method").glob("*.yaml"))
NAME = "sft_on_failures"
METHOD_FILE, TEST_FILE = f"recipe/amft/methods/{NAME}.py", f"tests/test_{NAME}.py"
PRESET_FILE = f"configs/method/{NAME}.yaml"


def blocks(language: str) -> dict[str, str]:
    """The page's blocks of a language by the name in their first line."""
    return dict(re.findall(rf"^```{language}\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


PYTHON = blocks("python")


def load(name: str, code: str, folder: Path) -> ModuleType:
    """`code` as the module `name`."""
    path = folder / f"{name.rsplit('.', 1)[-1]}.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def patched(text: str, difference: str) -> str:
    """`text` with the `+` lines of a difference inserted behind the lines that stand before them in it."""
    lines, place = text.splitlines(), -1
    for line in difference.splitlines():
        if line.startswith("+"):
            place += 1
            lines.insert(place, line[1:])
        else:
            place = lines.index(line[1:], place + 1)
    return "\n".join(lines)


@pytest.fixture
def registered(monkeypatch, tmp_path):
    """The page's method under its name, as its difference to `METHODS` says."""
    module_name = f"recipe.amft.methods.{NAME}"
    monkeypatch.setitem(sys.modules, module_name, ModuleType(module_name))  # so that it is gone afterwards
    load(module_name, PYTHON[METHOD_FILE], tmp_path)
    ((file, difference),) = blocks("diff").items()
    namespace: dict = {"__name__": "recipe.amft.methods"}
    exec(compile(patched((ROOT / file).read_text(), difference), file, "exec"), namespace)
    added = set(namespace["METHODS"]) - set(METHODS)
    assert added == {NAME}
    monkeypatch.setitem(METHODS, NAME, namespace["METHODS"][NAME])
    return METHODS[NAME]


@pytest.fixture
def composed(registered, tmp_path):
    """The composed configuration of the page's preset and further overrides."""
    preset = tmp_path / "configs" / "method" / f"{NAME}.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text(blocks("yaml")[PRESET_FILE])
    search = f"hydra.searchpath=[pkg://verl.trainer.config,file://{preset.parents[1]}]"
    return lambda *overrides: compose([search, f"method={NAME}", *overrides])


def settings_of(config) -> AMFTConfig:
    return from_mapping(OmegaConf.to_container(config.amft, resolve=True))


def test_the_page_holds_the_files_it_promises():
    """One method file that is short, one preset, one entry, one test."""
    assert list(PYTHON) == [METHOD_FILE, TEST_FILE, "variation"]
    assert list(blocks("yaml")) == [PRESET_FILE]
    assert list(blocks("diff")) == ["recipe/amft/methods/__init__.py"]
    assert len(PYTHON[METHOD_FILE].splitlines()) < 80


def test_the_page_names_no_method_that_exists():
    """It adds something: once the method is in the repository, the page needs another one."""
    assert NAME not in METHODS
    assert NAME not in PRESETS


def test_the_pages_own_test_passes(registered, tmp_path):
    """Every test function of the block holds for the registered method."""
    module = load("page_test", PYTHON[TEST_FILE], tmp_path)
    tests = [getattr(module, name) for name in dir(module) if name.startswith("test_")]
    assert len(tests) == len(re.findall(r"^def test_", PYTHON[TEST_FILE], re.MULTILINE)) >= 3
    for test in tests:
        test()


def test_the_preset_composes_and_spells_the_defaults(registered, composed):
    """verl's node is changed, the options are those of the dataclass, every key is read, and each can be overridden."""
    config = composed()
    assert config.algorithm.norm_adv_by_std_in_grpo is False
    settings = settings_of(config)
    method = make_method(settings)
    assert isinstance(method, registered)
    assert method.options == registered.Options()
    assert set(settings.method.options) == {item.name for item in fields(registered.Options)}
    check_every_key_is_read(Run(config, settings, Shape.from_config(config), StepPlan()))
    assert make_method(settings_of(composed("amft.method.options.weight=0.3"))).options.weight == 0.3


def test_it_takes_the_sft_loss_of_the_configuration(composed):
    """`sft_loss=dft` reaches the method, as the page's last command says."""
    assert make_method(settings_of(composed("sft_loss=dft"))).demonstration_loss == LossSpec("dft")


def test_slips_in_its_options_are_refused(registered):
    """Unknown keys with the known ones, values with the range."""
    for options, expected in (
        ({"wieght": 1.0}, "did you mean weight"),
        ({"decay": 1.0}, r"decay=1\.0 is out of range"),
    ):
        with pytest.raises(ValueError, match=expected):
            make_method(from_mapping({"method": {"name": NAME, "options": options}}))


def groups_of(step: int, num_prompts: int = 5, group_size: int = 4) -> Groups:
    """Prompts of every kind; in some steps one without any rollout."""
    generator = torch.Generator().manual_seed(step)
    chances = torch.rand(num_prompts, generator=generator).round(decimals=1)
    rewards = (torch.rand(num_prompts, group_size, generator=generator) < chances.unsqueeze(-1)).double().flatten()
    prompts = torch.arange(num_prompts).repeat_interleave(group_size)
    survives = prompts != step % (2 * num_prompts)
    return Groups(prompts[survives], rewards[survives], [f"row-{index}" for index in range(num_prompts)])


def drive(method, state, steps: range) -> tuple[object, list]:
    """The driver's questions in its order; what was decided at each step."""
    decisions = []
    for step in steps:
        assert method.plan(step, state) == StepPlan(paired=True)
        groups = groups_of(step)
        state, choice = method.choose(state, step, groups)
        state, combination, metrics = method.combine(state, step, Measurements(entropy={"rollout": 0.5}))
        decisions.append((list(choice.demonstrated), combination, metrics, dict(choice.metrics)))
        state = method.observe(state, step, {"rl/reward": float(groups.rewards.mean())})
    return state, decisions


def test_the_four_questions_over_many_steps(composed):
    """Failed prompts are imitated, exactly as long as the running reward is below `until`; resuming changes nothing."""
    settings = settings_of(composed("amft.method.options.until=0.4"))
    method = make_method(settings)
    end, decisions = drive(method, method.initial_state(), range(40))
    running, imitated = 0.0, []
    for step, (demonstrated, combination, metrics, chosen) in enumerate(decisions):
        groups = groups_of(step)
        failed = [
            prompt
            for prompt in range(groups.num_prompts)
            if not any(reward > 0 for reward in groups.rewards[groups.prompts == prompt].tolist())
        ]
        assert demonstrated == (failed if running < 0.4 else [])
        assert combination == Sum(sft=1.0, rl=1.0)
        assert metrics == {"method/running_reward": pytest.approx(running, abs=1e-12)}
        assert chosen == {"method/failed_prompts": pytest.approx(len(failed) / groups.num_prompts)}
        running = 0.9 * running + 0.1 * float(groups.rewards.mean())
        imitated.append(bool(demonstrated))
    assert any(imitated)
    assert not all(imitated)
    for cut in (0, 1, 17):
        state, before = drive(method, method.initial_state(), range(cut))
        resumed = make_method(settings)
        state = resumed.state_from_dict(json.loads(json.dumps(method.state_to_dict(state))))
        resumed_end, after = drive(resumed, state, range(cut, 40))
        assert before + after == decisions
        assert resumed_end == end


def test_the_variation_has_its_own_loss_and_two_stages(registered, tmp_path, monkeypatch):
    """The loss is DFT; from step 100 on the stage is another one, with moments and a rate of its own."""
    variation = load("variation", PYTHON["variation"], tmp_path)
    monkeypatch.setitem(METHODS, "variation", variation.DftOnFailures)
    method = make_method(from_mapping({"method": {"name": "variation"}}))
    assert method.demonstration_loss == LossSpec("dft")
    first, second = method.stage(99), method.stage(100)
    assert (first.name, first.keeps_best, first.from_best) == ("first", True, False)
    assert (second.name, second.from_best, second.learning_rate) == ("second", True, 1e-7)
    assert first.optimizer != second.optimizer


def test_the_table_of_further_hooks_is_complete():
    """What `Method` has beyond questions and state stands in the page, and nothing stands there that is gone."""
    source = ast.parse((ROOT / "recipe" / "amft" / "methods" / "base.py").read_text())
    (base,) = [node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "Method"]
    named = {node.name for node in base.body if isinstance(node, ast.FunctionDef)} - {"__init__"}
    for node in base.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            assert isinstance(target, ast.Name)
            named.add(target.id)
    assert sorted(name for name in named if not re.search(rf"\b{name}\b", PAGE)) == []
    table = PAGE.partition("## What else a method may say")[2]
    listed = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)", row)}
    assert listed
    assert listed <= named


@pytest.mark.parametrize("preset", PRESETS)
def test_every_method_is_in_the_tables(preset):
    """docs/methods.md has a row and says more in a section; the README's table has the name."""
    table, _, sections = (ROOT / "docs" / "methods.md").read_text().partition("## What holds for all")
    assert len(re.findall(rf"^\| `{preset}` \|", table, re.MULTILINE)) == 1
    assert re.search(rf"`{preset}`|method={preset}\s", sections)
    assert f"`{preset}`" in (ROOT / "README.md").read_text()


def same(text: str, default: object) -> bool:
    """Whether a default in the page is that of the code."""
    if default is None or isinstance(default, bool):
        return text == {None: "null", True: "true", False: "false"}[default]
    return text == default if isinstance(default, str) else float(text) == default


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.Options is not type(None)])
def test_every_option_is_explained(name):
    """Each field of a method's Options stands in docs/methods.md with its default."""
    page = (ROOT / "docs" / "methods.md").read_text()
    for item in fields(METHODS[name].Options):
        found = re.findall(rf"^\| `{item.name}` \| `([^`]+)` \|", page, re.MULTILINE)
        assert any(same(text, item.default) for text in found), (item.name, item.default, found)
