"""States of the points of a sweep, and running them: here, by Slurm, by Ray."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipe.amft import sweep as command
from recipe.amft.sweeps import execution
from recipe.amft.sweeps.measured import MEASURED
from recipe.amft.sweeps.points import CONFIGS, Point, load
from recipe.amft.sweeps.states import State, is_locked, lock_of, log_of, state_of, taken

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
    took = {point.method for point in points if (tmp_path / point.folder / MEASURED).exists()}
    assert took == {point.method for point in points} - {"luffy"}, "what a training took stands beside it"
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

    def call(runner, command, log, locks, folder=None):
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

    def call(runner, command, log, locks, folder=None):
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
