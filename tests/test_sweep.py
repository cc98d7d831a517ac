"""Sweeps: every point of every table can be composed and passes preflight; shared runs, states, and running points."""

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import open_dict

from recipe.amft import report
from recipe.amft import sweep as command
from recipe.amft.config import AMFTConfig
from recipe.amft.main import compose
from recipe.amft.preflight import read_settings
from recipe.amft.reporting.papers import printed
from recipe.amft.sweeps import execution
from recipe.amft.sweeps.points import CONFIGS, SCALES, Point, expand, load, names, read_yaml
from recipe.amft.sweeps.states import State, is_locked, lock_of, log_of, state_of, taken

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
def test_every_point_composes_and_passes_preflight(scale):
    """No configuration of any table is refused; what a machine may lack (data, models, GPUs, packages) is a finding."""
    for point in all_points(scale):
        try:
            found = command.findings(point)
        except ValueError as error:
            pytest.fail(f"{point.overrides}: {error}")
        unexpected = [text for text in found if not any(lacking in text for lacking in LACKING)]
        assert not unexpected, (point.overrides, unexpected)


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


# ---- states --------------------------------------------------------------------------------------------------------


def test_states_of_a_point(tmp_path):
    """Nothing, some steps, trained without its evaluation, finished; and taken by a process."""
    point = next(iter(load("amft_table4", "paper").points()))
    folder = tmp_path / point.folder
    assert state_of(point, ["math_id"], tmp_path) == State(False, None, ("math_id",), False)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 0, "phase": "start"}\n{"step": 7, "phase": "train"}\n')
    assert str(state_of(point, ["math_id"], tmp_path)) == "stopped after step 7"
    (folder / "FINISHED").write_text("")
    assert str(state_of(point, ["math_id"], tmp_path)) == "trained, to evaluate: math_id"
    assert state_of(point, (), tmp_path).finished
    summary = folder / "evaluation" / "math_id" / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text("{}")
    assert state_of(point, ["math_id"], tmp_path).finished
    with taken(lock_of(point, tmp_path)) as mine, taken(lock_of(point, tmp_path)) as again:
        assert mine is not None
        assert again is None
        assert state_of(point, (), tmp_path).running
    assert not state_of(point, (), tmp_path).running


# ---- running -------------------------------------------------------------------------------------------------------

FIVE_METHODS = ["SFT", "SFT_KL", "RL_GRPO", "LUFFY", "SRFT*"]  # of AMFT Table 2: a point each, and two suites

# Stands for recipe.amft.main and recipe.amft.evaluate: writes what they would write, or waits, or fails.
STAND_IN = """
import json, pathlib, sys, time
values = dict(item.split("=", 1) for item in sys.argv[1:])
folder = pathlib.Path(values.get("amft.run_dir") or values["out"])
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "starts", "a") as file:
    file.write("start\\n")
if "out" in values:
    (folder / "summary.json").write_text("{}")
elif values.get("method") == BREAKS:
    sys.exit(3)
else:
    (folder / "metrics.jsonl").write_text('{"step": 1, "phase": "train"}\\n')
    if values.get("method") == WAITS and len((folder / "starts").read_text().split()) == 1:
        time.sleep(60)
    (folder / "FINISHED").write_text("")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a small script where the modules would run; returns how often each point was started."""

    def install(breaks: str = "", waits: str = "") -> None:
        script = tmp_path / "stand_in.py"
        script.write_text(f"BREAKS, WAITS = {breaks!r}, {waits!r}\n{STAND_IN}")
        original = execution.steps_of

        def steps(point, suites, runs):
            return [[sys.executable, str(script), *line[3:]] for line in original(point, suites, runs)]

        monkeypatch.setattr(execution, "steps_of", steps)

    return install


def starts(runs: Path, point: Point) -> int:
    path = runs / point.folder / "starts"
    return len(path.read_text().split()) if path.exists() else 0


def test_finished_points_are_skipped_and_broken_ones_go_on(tmp_path, stand_in, capsys):
    """A failing point does not stop the others; the next call runs only what is left."""
    request = [
        "amft_table2",
        "scale=paper",
        "--seeds",
        "0",
        "--runs",
        str(tmp_path),
        "--submit",
        "local",
        "--jobs",
        "2",
    ]
    request += ["--rows", *FIVE_METHODS]
    stand_in(breaks="luffy")
    with pytest.raises(SystemExit) as ended:
        command.main(request)
    assert ended.value.code == 1
    assert "luffy" in capsys.readouterr().out.split("failed")[0].splitlines()[-1]
    points = load("amft_table2", "paper", seeds=[0], rows=FIVE_METHODS).points()
    assert {point.method: starts(tmp_path, point) for point in points} == dict.fromkeys(
        (point.method for point in points), 1
    )
    assert sum(state_of(point, suites, tmp_path).finished for point, suites in points.items()) == len(points) - 1
    stand_in()
    with pytest.raises(SystemExit) as ended:
        command.main(request)
    assert ended.value.code == 0
    assert {point.method: starts(tmp_path, point) for point in points} == {
        point.method: 2 if point.method == "luffy" else 1 for point in points
    }
    assert all(state_of(point, suites, tmp_path).finished for point, suites in points.items())
    evaluated = [tmp_path / point.folder / "evaluation" / suite for point, suites in points.items() for suite in suites]
    assert len(evaluated) == 2 * len(points)
    assert all((folder / "summary.json").exists() for folder in evaluated)
    log = log_of(next(iter(points)), tmp_path).read_text()
    assert log.startswith("$ ")


def test_points_with_the_same_workers_train_together(tmp_path, monkeypatch, capsys):
    """One process for those that share workers; a failing point costs nobody else, and evaluations are each point's."""
    calls: list[list[str]] = []

    def call(runner, command, log, locks):
        module, *arguments = command[2:]
        if module != "recipe.amft.sweeps.shared_workers":
            calls.append([module])
            folder = Path(next(item for item in arguments if item.startswith(("amft.run_dir=", "out="))).split("=")[1])
            (folder / "summary.json" if "evaluate" in module else folder / "FINISHED").write_text("{}")
            return 0
        plan = json.loads(Path(arguments[0]).read_text())
        methods = [next(item.split("=")[1] for item in overrides if item.startswith("method=")) for overrides in plan]
        calls.append(methods)
        for method, overrides in zip(methods, plan, strict=True):
            if method == "amft_no_meta":
                return 1
            folder = Path(overrides[-1].removeprefix("amft.run_dir="))
            folder.mkdir(parents=True)
            (folder / "FINISHED").write_text("")
        return 0

    monkeypatch.setattr(execution.LocalRunner, "call", call)
    request = ["amft_table4", "scale=micro", "--seeds", "0", "--runs", str(tmp_path), "--submit", "local"]
    with pytest.raises(SystemExit) as ended:
        command.main([*request, "--share-workers"])
    assert ended.value.code == 1
    rows = [point.method for point in load("amft_table4", "micro", seeds=[0]).points()]
    failing = rows.index("amft_no_meta")
    assert calls[0] == rows
    assert calls[1:] == ([rows[failing + 1 :]] if len(rows) - failing > 2 else [["recipe.amft.main"]])
    assert "amft_no_meta" in capsys.readouterr().out.split("failed")[0].splitlines()[-1]
    states = [
        state_of(point, suites, tmp_path) for point, suites in load("amft_table4", "micro", seeds=[0]).points().items()
    ]
    assert [state.finished for state in states] == [row != "amft_no_meta" for row in rows]


def test_points_whose_workers_do_not_start_fail_at_once(tmp_path, monkeypatch, capsys):
    """What keeps the workers from starting would keep them from it for every point."""
    calls: list[list[str]] = []

    def call(runner, command, log, locks):
        calls.append(command[2:3])
        return execution.NO_WORKERS

    monkeypatch.setattr(execution.LocalRunner, "call", call)
    request = ["amft_table4", "scale=micro", "--seeds", "0", "--runs", str(tmp_path), "--submit", "local"]
    with pytest.raises(SystemExit) as ended:
        command.main([*request, "--share-workers"])
    assert ended.value.code == 1
    assert calls == [["recipe.amft.sweeps.shared_workers"]]
    assert capsys.readouterr().out.count("failed (exit status 3)") == len(
        load("amft_table4", "micro", seeds=[0]).points()
    )


def test_a_tracking_service_gets_no_shared_runs(tmp_path):
    """One process reports as one run; so runs that report do not share workers."""
    from recipe.amft.sweeps.shared_workers import train_together

    with pytest.raises(ValueError, match=r"trainer.logger=\['console'\].*--share-workers"):
        train_together([["scale=micro/general_points", "method=sft", "trainer.logger=[console]"]], tmp_path)


def test_a_stopped_sweep_stops_its_runs_and_goes_on(tmp_path):
    """SIGTERM to the command ends the run it is at, starts no other, and exits with 143."""
    script = tmp_path / "driver.py"
    script.write_text(
        "import sys\nfrom recipe.amft import sweep\nfrom recipe.amft.sweeps import execution\n"
        f"stand_in = {str(tmp_path / 'stand_in.py')!r}\noriginal = execution.steps_of\n"
        "execution.steps_of = lambda *given: [[sys.executable, stand_in, *line[3:]] for line in original(*given)]\n"
        "sweep.main(sys.argv[1:])\n"
    )
    (tmp_path / "stand_in.py").write_text(f"BREAKS, WAITS = '', 'amft'\n{STAND_IN}")
    runs = tmp_path / "runs"
    request = ["amft_table4", "scale=micro", "--seeds", "0", "--runs", str(runs), "--submit", "local"]
    process = subprocess.Popen(
        [sys.executable, str(script), *request], stdout=subprocess.PIPE, text=True, cwd=CONFIGS.parent,
        env={**os.environ, "PYTHONPATH": str(CONFIGS.parent)},
    )  # fmt: skip
    points = list(load("amft_table4", "micro", seeds=[0]).points())
    first = runs / points[0].folder / "metrics.jsonl"
    for _ in range(600):
        if first.exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "goes on from here" in output
    assert [starts(runs, point) for point in points] == [1, 0, 0, 0, 0]
    assert str(state_of(points[0], (), runs)) == "stopped after step 1"
    again = subprocess.run(
        [sys.executable, str(script), *request], cwd=CONFIGS.parent, timeout=120,
        env={**os.environ, "PYTHONPATH": str(CONFIGS.parent)},
    )  # fmt: skip
    assert again.returncode == 0
    assert all(state_of(point, (), runs).finished for point in points)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """An `sbatch` and a `ray` that note their arguments; the batch script has two options."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, answer in (("sbatch", "77"), ("ray", "submitted")):
        path = folder / name
        path.write_text(
            f"#!{sys.executable}\nimport json, sys\nopen({str(tmp_path / name)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"  # noqa: E501
            f"print({answer!r})\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    script = tmp_path / "slurm.sbatch"
    script.write_text("#!/bin/bash\n# text\n#SBATCH --nodes=1\n#SBATCH --signal=B:USR1@600\necho\n")
    monkeypatch.setattr(execution, "BATCH_SCRIPT", script)

    def calls(name: str) -> list[list[str]]:
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    return calls


def test_slurm_gets_an_array_of_runs_and_one_of_evaluations(tmp_path, programs):
    """Trained points are only evaluated; each evaluation waits for its run; the options of the batch script hold."""
    runs = tmp_path / "runs"
    points = list(load("amft_table2", "paper", seeds=[0], rows=FIVE_METHODS).points())
    (runs / points[1].folder).mkdir(parents=True)
    (runs / points[1].folder / "FINISHED").write_text("")
    request = ["amft_table2", "scale=paper", "--seeds", "0", "--runs", str(runs), "--submit", "slurm", "--jobs", "2"]
    request += ["--rows", *FIVE_METHODS]
    with pytest.raises(SystemExit) as ended:
        command.main([*request, "--options=--partition=gpu --nodes=8"])
    assert ended.value.code == 0
    train, after, ready = programs("sbatch")
    assert "--array=0,2,3,4%2" in train
    assert [item for item in train if item.startswith("--nodes")] == ["--nodes=1", "--nodes=8"]
    assert {"--signal=B:USR1@600", "--partition=gpu"} <= set(train)
    assert {"--array=0,2,3,4%2", "--dependency=aftercorr:77"} <= set(after)
    assert "--array=1%2" in ready
    assert not any(item.startswith("--dependency") for item in ready)
    plan = Path(train[-1].split()[-1])
    tasks = json.loads(plan.read_text())
    assert tasks[0]["train"] == [*points[0].overrides, f"amft.run_dir={runs / points[0].folder}"]
    assert [[item for item in arguments if item.startswith("suite=")] for arguments in tasks[1]["evaluate"]] == [
        ["suite=math_id"], ["suite=math_ood"],
    ]  # fmt: skip


def test_a_training_task_becomes_the_batch_script(tmp_path):
    """The array's index picks the overrides; the script is the process that Slurm signals, and has the point's lock."""
    plan, lock = tmp_path / "plan.json", tmp_path / "point.lock"
    tasks = [{"train": overrides, "lock": str(lock)} for overrides in (["a=1"], ["method=sft", "seed=2"])]
    plan.write_text(json.dumps(tasks))
    (tmp_path / "slurm.sbatch").write_text('#!/bin/bash\necho "$$ $*"\nread -r\n')
    code = (
        "import pathlib\nfrom recipe.amft.sweeps import execution\n"
        f"execution.BATCH_SCRIPT = pathlib.Path({str(tmp_path / 'slurm.sbatch')!r})\n"
        f"execution.run_task('train', pathlib.Path({str(plan)!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CONFIGS.parent,
        env={**os.environ, "PYTHONPATH": str(CONFIGS.parent), "SLURM_ARRAY_TASK_ID": "1"},
    )  # fmt: skip
    assert process.stdout.readline().split() == [str(process.pid), "method=sft", "seed=2"]
    assert is_locked(lock)
    process.communicate("end\n", timeout=60)
    assert not is_locked(lock)


def test_ray_gets_one_job_that_goes_through_the_points(tmp_path, programs):
    """The job is this command with --submit local, on the same points, joining the cluster."""
    request = ["amft_table4", "scale=single_node", "--seeds", "0", "--runs", str(tmp_path), "--submit", "ray"]
    with pytest.raises(SystemExit):
        command.main([*request, "--options=--address=http://head:8265"])
    (arguments,) = programs("ray")
    assert arguments[:4] == ["job", "submit", "--no-wait", "--address=http://head:8265"]
    inner = arguments[arguments.index("recipe.amft.sweep") + 1 :]
    assert arguments[arguments.index("--") + 1 : -len(inner) - 3] == [
        "env", "-C", str(CONFIGS.parent), f"PYTHONPATH={CONFIGS.parent}", "RAY_OVERRIDE_JOB_RUNTIME_ENV=1",
    ]  # fmt: skip
    given = command.make_parser().parse_intermixed_args(inner)
    assert (given.submit, given.seeds, given.runs) == ("local", [0], tmp_path)
    asked = command.together(command.read_request(given.names, given.seeds))
    assert {point.folder for point in asked} == {
        point.folder for point in load("amft_table4", "single_node", seeds=[0]).points()
    }


def test_a_refusal_of_slurm_is_shown(tmp_path, programs, monkeypatch):
    """What sbatch says on its standard error is the error of the command."""
    path = tmp_path / "bin" / "sbatch"
    path.write_text("#!/bin/sh\necho invalid partition >&2\nexit 1\n")
    with pytest.raises(SystemExit) as ended:
        command.main(["amft_table4", "scale=paper", "--runs", str(tmp_path / "runs"), "--submit", "slurm"])
    assert "invalid partition" in str(ended.value)
