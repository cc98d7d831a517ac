"""On a real Slurm of two nodes: launch/slurm.sbatch, with Ray across them, every way to end, and going on afterwards;
launch/ray_job.py on one of them. One file, because there is one such cluster at a time."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

REPOSITORY = Path(__file__).parents[2]
SMALL = runpy.run_path(str(REPOSITORY / "tests" / "e2e" / "conftest.py"))["SMALL"]
LONG = [
    "+amft.task.options.env_id=parity:Parity",
    "trainer.total_training_steps=4",
    "trainer.save_freq=1",
    "amft.utility.every=2",
]
IMPORTABLE = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
SAME = ("controller/mu", "controller/entropy", "sft/loss", "rl/loss", "rl/reward", "actor/grad_norm", "meta/dot")
# Starts a head, submits what comes as arguments, prints the exit status.
RAY_SESSION = """
export RAY_AUTH_MODE=disabled RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 PATH=$(dirname "$PYTHON"):$PATH
"$PYTHON" -m ray.scripts.scripts start --head --block --num-cpus=4 --num-gpus=1 --object-store-memory=100000000 \
    --include-dashboard=true --disable-usage-stats --temp-dir="$TMPDIR/job" >"$LOG" 2>&1 &
ray=$!
until (exec 3<>/dev/tcp/127.0.0.1/8265) 2>/dev/null; do kill -0 $ray || exit 9; sleep 0.5; done
for overrides in "$@"; do
    eval "set -- $overrides"
    "$PYTHON" launch/ray_job.py "$@"
    echo "status $?"
done
kill -TERM $ray
wait $ray
exit 0
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def overrides(tmp_path, cache):
    """The overrides of a small run in `tmp_path / "run"`; later ones win."""

    def build(*more: str) -> list[str]:
        given = [f"amft.run_dir={tmp_path / 'run'}", f"amft.cache_dir={cache}", *SMALL, *more]
        return list({item.split("=", 1)[0]: item for item in given}.values())

    return build


@pytest.fixture
def submit(slurm, tmp_path):
    """Submit the batch script with overrides; its job number. The job is cancelled at the end of the test."""
    numbers = []
    variables = {
        "AMFT_PYTHON": sys.executable,
        "AMFT_LOGS": str(tmp_path),
        "AMFT_OBJECT_STORE_BYTES": str(2**28),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": IMPORTABLE,
    }

    def start(overrides: list[str], *options: str) -> str:
        options = ("--parsable", "--nodes=2", "--gpus-per-node=1", f"--output={tmp_path / '%j.out'}", *options)
        command = ["sbatch", *options, "launch/slurm.sbatch", *overrides]
        numbers.append(slurm.slurm(*command, cwd=REPOSITORY, **variables).strip())
        return numbers[-1]

    yield start
    for number in numbers:
        slurm.slurm("scancel", number)
        slurm.wait(number, 60)


@pytest.fixture
def until_step(until, tmp_path, slurm):
    """Wait until a step of the job's run is in the metrics."""

    def wait(number: str, step: int) -> None:
        metrics = tmp_path / "run" / "metrics.jsonl"

        def there() -> bool:
            state = slurm.job(number)["JobState"]
            assert state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED"), output(tmp_path, number)
            return metrics.exists() and f'"step": {step},' in metrics.read_text()

        until(there, 500, f"the run did not reach step {step}")

    return wait


def output(folder: Path, number: str) -> str:
    """What the job printed."""
    path = folder / f"{number}.out"
    return path.read_text() if path.exists() else ""


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_nodes_with_a_requeue_are_one_node_with_two_ranks(slurm, submit, until_step, overrides, tmp_path):
    """USR1 in the middle: requeued, resumed, completed; mu, losses and rewards of every step are the one node's."""
    number = submit(overrides(*LONG))
    until_step(number, 3)
    slurm.slurm("scancel", "--signal=USR1", "--batch", number)
    job = slurm.wait(number, 600)
    text = output(tmp_path, number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1"), text
    assert "resumed after step" in text
    assert (tmp_path / "run" / "FINISHED").exists()
    assert slurm.left() == []
    assert not (tmp_path / f"slurm-{number}").exists()  # token and logs are gone

    command = [sys.executable, "-m", "recipe.amft.main", *overrides(*LONG, f"amft.run_dir={tmp_path / 'one'}")]
    variables = {**os.environ, "PYTHONPATH": IMPORTABLE, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "trainer.n_gpus_per_node=2"], cwd=REPOSITORY, env=variables, check=True, timeout=500)
    found, expected = rows(tmp_path / "run"), rows(tmp_path / "one")
    assert [row["step"] for row in found] == [row["step"] for row in expected] == [1, 2, 3, 4, 5]
    assert any(0 < row.get("rl/reward", 0) < 1 for row in found)  # there was something to reinforce
    for got, wanted in zip(found, expected, strict=True):
        for name in (name for name in SAME if name in wanted):
            assert got[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-6), (name, got["step"])


def test_a_lost_node_fails_clearly_and_the_same_command_goes_on(slurm, submit, until_step, overrides, tmp_path, until):
    """Ray killed on n2: the job fails and says so. Submitted again it resumes, and again when its time limit has put it
    back into the queue; scancel then leaves no process."""
    arguments = overrides(*LONG, "trainer.total_training_steps=200")
    number = submit(arguments)
    until_step(number, 2)
    victims = [process for process in slurm.on_node("n2") if "raylet" in process.name()]
    assert victims
    for victim in victims:
        victim.kill()
    job = slurm.wait(number, 200)
    assert job["JobState"] == "FAILED"
    assert job["ExitCode"] != "0:0"
    text = output(tmp_path, number)
    assert "failed (" in text or "Ray on node n2 ended" in text, text
    assert "the nodes' logs are in" in text
    assert list((tmp_path / f"slurm-{number}" / "n1").glob("worker-*.err"))
    assert not (tmp_path / "run" / "FINISHED").exists()
    assert slurm.left() == []

    number = submit(arguments, "--signal=B:USR1@60")
    until(lambda: "resumed after step" in output(tmp_path, number), 500, "the run was not resumed")
    minutes = int(slurm.job(number)["RunTime"].split(":")[-2]) + 2
    slurm.slurm("scontrol", "update", f"JobId={number}", f"TimeLimit={minutes}")
    until(lambda: slurm.job(number)["Restarts"] == "1", 200, "the time limit did not put the job back into the queue")
    assert "USR1: back into the queue" in output(tmp_path, number)
    slurm.slurm("scontrol", "update", f"JobId={number}", "TimeLimit=60")
    until(lambda: output(tmp_path, number).count("resumed after step") == 2, 500, "the run was not resumed again")
    assert slurm.job(number)["Restarts"] == "1"
    slurm.slurm("scancel", number)
    assert slurm.wait(number, 60)["JobState"] == "CANCELLED"
    assert slurm.left() == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["trainer.save_freq=0", "data.train_batch_size=0"], ["error: data.train_batch_size"]),
        (
            ["trainer.nnodes=4", "amft.limits.cluster_seconds=3"],
            ["needs 4 Ray nodes with 1 GPU slots each", "n1 with 1, n2 with 1"],
        ),
    ],
    ids=["refused", "a node that never joins"],
)
def test_what_cannot_run_is_the_jobs_failure(slurm, submit, overrides, tmp_path, asked, said):
    """The module's error is in the job's output and its exit status is the job's; a node that never joins is waited for
    until the limit, and the error says what there is."""
    number = submit(overrides(*asked))
    job = slurm.wait(number, 200)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "1:0")
    assert all(text in output(tmp_path, number) for text in said), output(tmp_path, number)
    assert slurm.left() == []


def test_a_job_carries_overrides_and_exit_status(slurm, tmp_path):
    """A plan is printed and ends with 0; a refusal with the module's 1; an override with spaces arrives as one."""
    run_dir = tmp_path / "a run"
    good = f"'amft.run_dir={run_dir}' dry_run=true amft.model.options.pretraining.steps=0 trainer.logger=[tensorboard]"
    bad = f"amft.run_dir={tmp_path / 'b'} data.train_batch_size=0"
    variables = {"PYTHON": sys.executable, "LOG": str(tmp_path / "ray.log"), "PYTHONPATH": str(REPOSITORY)}
    command = ["srun", "--nodes=1", "--cpus-per-task=4", "bash", "-c", RAY_SESSION, "session", good, bad]
    finished = subprocess.run(
        command, env=slurm.environment | variables, cwd=REPOSITORY, capture_output=True, text=True, timeout=400
    )
    assert finished.returncode == 0, finished.stderr
    first, second = finished.stdout.split("status 0\n")
    assert f"Plan of {run_dir}" in first
    assert "error: data.train_batch_size" in second
    assert second.rstrip().endswith("status 1")
    assert slurm.left() == []
