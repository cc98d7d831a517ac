"""Sweeps: every point of every table can be composed and passes preflight; what is shared; wrong requests."""

import re
import shlex
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from omegaconf import open_dict

from recipe.amft import report
from recipe.amft import sweep as command
from recipe.amft.config import AMFTConfig
from recipe.amft.main import compose
from recipe.amft.preflight import read_settings
from recipe.amft.reporting.papers import printed
from recipe.amft.sweeps.points import CONFIGS, SCALES, Point, expand, load, names, read_yaml

DOCUMENTATION = CONFIGS.parent / "docs" / "reproduce.md"
PAPERS = [
    *(f"amft_table{number}" for number in (2, 3, 4, 5, 11, 12)),
    *(f"amft_figure{number}" for number in (2, 3, 6, 7)),
    *(f"dft_table{number}" for number in range(1, 9)),
    *(f"dft_figure{number}" for number in (1, 2)),
]


def test_every_table_and_figure_has_a_sweep():
    assert set(names()) == set(PAPERS)


# ---- every point ---------------------------------------------------------------------------------------------------


def all_points(scale: str) -> list[Point]:
    """Of all sweeps at one seed: another seed differs in one number.

    On a single node, whose configurations differ from the paper's in the hardware, one for each of them and method.
    """
    points = list(command.together([load(name, scale, seeds=[0]) for name in names()]))
    if scale == "single_node":
        points = list({(point.overrides[0], point.method): point for point in points}.values())
    return points


@pytest.mark.parametrize("scale", SCALES)
def test_every_point_composes_and_passes_preflight(scale, tmp_path):
    """No configuration of any table is refused; what a machine may lack (data, models, GPUs, packages) is a finding."""
    points = all_points(scale)
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        for point, found in [(point, pool.submit(command.findings, point, tmp_path)) for point in points]:
            assert found.exception() is None, (point.overrides, found.exception())
            unexpected = [text for text in found.result() if not any(lacking in text for lacking in LACKING)]
            assert not unexpected, (point.overrides, unexpected)


def test_a_finished_run_is_neither_lacking_nor_touched(tmp_path):
    """`--check` finds the same before and after a point has run."""
    point = next(iter(load("amft_table4", "micro", seeds=[0]).points()))
    before = command.findings(point, tmp_path)
    folder = tmp_path / point.folder
    folder.mkdir(parents=True)
    for name in ("run.json", "FINISHED"):
        (folder / name).write_text("{}")
    assert command.findings(point, tmp_path) == before
    assert (folder / "FINISHED").exists()


LACKING = ("does not exist", "shows no GPU", "this machine shows", "flash-attn", "HF_HUB_OFFLINE", "starts Ray on this")


@pytest.mark.parametrize("scale", SCALES)
def test_what_cannot_be_run_says_why(scale):
    """Every cell has runs or a reason, and every row and column of the paper's table is in the sweep."""
    for name in names():
        sweep, paper = load(name, scale), printed(name)
        for cell in sweep.cells:
            assert bool(cell.points) != bool(cell.missing), (name, cell.row, cell.column)
        assert set(paper.rows) <= set(sweep.rows), name
        assert set(paper.columns) <= set(sweep.columns), name
        assert not paper.rows or {cell.beside for cell in sweep.cells} <= set(paper.rows), name


def test_the_papers_scale_is_the_papers_experiment():
    """scale=paper/math with AMFT as printed is experiment=math_amft, but for where it writes and how often it looks."""
    ours, theirs = compose(["scale=paper/math", "method=amft_literal"]), compose(["experiment=math_amft"])
    with open_dict(ours):
        del ours["seed"]
    for config in (ours, theirs):
        config.amft.run_dir, config.trainer.test_freq, config.data.seed = "", 0, 0
        config.amft.demonstrations.seed = config.amft.rollout_seed = 0
        config.presets = []
    assert ours == theirs


def test_the_seed_reaches_everything_that_is_drawn():
    for scale in SCALES:
        for domain in read_yaml(CONFIGS / "scale" / "settings.yaml")[scale].values():
            if "config" in domain:
                config = compose([f"scale={domain['config']}", "seed=7"])
                settings = read_settings(config)
                assert (config.data.seed, settings.demonstrations.seed, settings.rollout_seed) == (7, 7, 7)


def test_a_method_wins_over_a_scale():
    """LUFFY's 7 rollouts and the ablation without a warm-up are not undone by the scale's 8 and 50."""
    assert compose(["scale=paper/math", "method=luffy"]).actor_rollout_ref.rollout.n == 7
    assert compose(["scale=paper/math", "method=amft_no_warmup"]).amft.warm_up.steps == 0


def test_the_micro_grid_has_the_papers_factors():
    """Table 11 at micro scale: 0.5, 1, 2 times amft's meta rate, and 0.2, 1, 2 times its entropy rate."""
    controller = AMFTConfig().controller
    centre = {"meta": controller.meta.learning_rate, "entropy": controller.entropy.learning_rate}
    factors = {"meta": set(), "entropy": set()}
    for point in load("amft_table11", "micro").points():
        values = dict(item.split("=", 1) for item in point.overrides)
        for kind, seen in factors.items():
            rate = float(values.get(f"amft.controller.{kind}.learning_rate", centre[kind]))
            seen.add(round(rate / centre[kind], 6))
    assert factors == {"meta": {0.5, 1.0, 2.0}, "entropy": {0.2, 1.0, 2.0}}


def test_the_documentation_counts_the_runs():
    """docs/reproduce.md has a line for every sweep, with its training runs at the paper's and at the micro scale."""
    lines = [line.split("|") for line in DOCUMENTATION.read_text().splitlines()]
    counted = {}
    for cells in lines:
        if len(cells) == 7 and "_" in cells[1]:
            for name in re.findall(r"`(\w+)`", cells[1]):
                counted[name] = tuple(int((re.findall(r"^ *(\d+)", cell) or ["0"])[0]) for cell in cells[3:5])
    expected = {
        name: tuple(
            sum(point.method is not None for point in load(name, scale).points()) for scale in ("paper", "micro")
        )
        for name in names()
    }
    assert counted == expected


COMMANDS = re.findall(
    r"^ {4}python -m recipe\.amft\.(sweep|report) ([^#&\n]+)", DOCUMENTATION.read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("module", "line"), sorted(set(COMMANDS)))
def test_documented_commands_are_understood(module, line):
    """Every sweep and report that docs/reproduce.md shows names tables, scales and options that there are."""
    words = [word.replace("NAME", "amft_table2").replace("SCALE", "micro") for word in shlex.split(line)]
    parser = command.make_parser() if module == "sweep" else report.make_parser()
    given = parser.parse_intermixed_args(words)
    asked = given.names if module == "sweep" else given.words
    if asked[0] == "run":
        return
    asked = asked[1:] if asked[0] == "sweep" else asked
    if not any(word.startswith("scale=") for word in asked):
        assert module == "report"  # takes the scale that the runs have
        asked = [*asked, "scale=micro"]
    assert command.read_request(asked)


# ---- points and folders --------------------------------------------------------------------------------------------


def test_sweeps_expand_as_multirun_does():
    """The product of commas is that of Hydra's own sweeper, in its order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = ("method=sft,grpo", "a.b=1e-4,2e-4", "c=[1,2]", "seed=0,1,2")
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    assert list(expand(overrides)) == BasicSweeper.split_arguments(parsed, None)[0]


def test_a_run_that_two_tables_ask_for_is_one_point():
    """Tables 2, 4, 11, 12 and the figures share AMFT's runs; the grid's centre is the main run."""
    amft = {point.folder for point in load("amft_table4", "micro").points() if point.method == "amft"}
    for name in ("amft_table2", "amft_table11", "amft_table12", "amft_figure2", "amft_figure3"):
        assert amft <= {point.folder for point in load(name, "micro").points()}, name
    shared = command.together([load("amft_table2", "micro"), load("amft_figure2", "micro")])
    assert len({point.folder for point in shared}) == len(shared)


def test_the_folder_follows_what_is_computed():
    """Another override or scale is another folder; one that only says how fast or where is the same."""
    first = next(iter(load("amft_table4", "micro").points()))
    longer = next(iter(load("amft_table4", "micro", ["trainer.total_training_steps=40"]).points()))
    elsewhere = next(iter(load("amft_table4", "micro", ["amft.cache_dir=/other", "trainer.logger=[wandb]"]).points()))
    assert first.folder != longer.folder
    assert first.folder == elsewhere.folder
    assert "amft.cache_dir=/other" in elsewhere.overrides
    assert first.folder.startswith("micro/general_points/amft-")
    assert first.folder.endswith("-s0")


def test_no_two_points_share_a_folder():
    """Whatever the table and scale: one folder, one set of overrides."""
    for scale in SCALES:
        points = command.together([load(name, scale) for name in names()])
        assert len({point.folder for point in points}) == len(points)


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["amft_table1", "scale=micro"], ["amft_table1", "amft_table2"]),
        (["amft_table2"], ["scale=", "micro"]),
        (["amft_table2", "scale=tiny"], ["scale=tiny", "single_node"]),
        (["scale=micro"], ["all", "dft_table8"]),
        (["amft_table2", "scale=micro", "seed=1"], ["seed=1", "--seeds"]),
        (["amft_table2", "scale=micro", "amft.run_dir=x"], ["amft.run_dir=x", "--runs"]),
    ],
)
def test_a_wrong_request_is_named(words, fragments):
    with pytest.raises(ValueError) as error:
        command.read_request(words)
    assert all(fragment in str(error.value) for fragment in fragments)
