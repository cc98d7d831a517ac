"""What a run leaves, and that one that is killed, or shares its workers, goes on as if nothing had happened.

All of it is compared with one run, `uninterrupted`: hence one file, which is what test processes share out.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

OTHER = ["method=grpo", "amft.warm_up.steps=1", "trainer.total_training_steps=4"]
SAME = (
    "controller/mu",
    "controller/entropy",
    "controller/target_entropy",
    "sft/loss",
    "rl/loss",
    "rl/reward",
    "meta/gradient",
    "meta/dot",
)


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_until_step(command: list[str], environment: dict, metrics: Path, step: int, **streams) -> subprocess.Popen:
    """Start the command; it has logged step `step` when this returns."""
    process = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **streams)
    deadline = time.monotonic() + 300
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run did not reach the step"
        time.sleep(0.1)
    return process


def check_same(found: list[dict], uninterrupted) -> None:
    """Every step once, with the mu, losses and rewards of the run that was also validated: that leaves no trace."""
    assert uninterrupted.status == 0, uninterrupted.output
    expected = uninterrupted.metrics[1:]  # behind the validation before training
    assert [row["step"] for row in found] == [row["step"] for row in expected] == [1, 2, 3, 4, 5, 6]
    for got, wanted in zip(found, expected, strict=True):
        for name in (name for name in SAME if name in wanted):
            assert got[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-6), (name, got["step"])


def test_a_finished_run_is_complete_and_protected(uninterrupted, arguments, environment):
    """Config, identity, metrics, curves, samples, a model that transformers loads; a second run is refused at once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    finished = uninterrupted
    assert finished.status == 0, finished.output
    folder = finished.folder
    rows = finished.metrics
    assert [row["step"] for row in rows] == list(range(7))
    assert all("val/success" in row for row in rows)
    required = {"controller/mu", "controller/entropy", "rl/loss", "sft/loss", "rl/reward"}
    assert all(required <= row.keys() for row in rows if row["phase"] == "train")
    assert "meta/gradient" in rows[-2]

    identity = json.loads((folder / "run.json").read_text())
    assert identity["versions"]["verl"] == "0.9.1"
    assert identity["command"]
    assert "run_dir" in (folder / "config.yaml").read_text()
    assert matplotlib.image.imread(folder / "training.png").std() > 0.01, "an empty picture"
    assert (folder / "samples" / "6.jsonl").stat().st_size > 0
    assert list((folder / "tensorboard").rglob("events*"))
    assert (folder / "tracking.jsonl").exists()
    assert list((folder / "wandb").rglob("*.wandb")), "wandb's offline record"

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Cards: 3 5 7 Target: 12"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert model.generate(**prompt, max_new_tokens=4).shape[1] > prompt["input_ids"].shape[1]
    saved = torch.load(folder / "checkpoints/global_step_6/actor/model_world_size_1_rank_0.pt", weights_only=False)
    for name, weight in model.state_dict().items():
        if name in saved:
            full = saved[name].full_tensor() if hasattr(saved[name], "full_tensor") else saved[name]
            assert torch.equal(full.float(), weight.float()), f"{name} is not the trained weight"

    command = [sys.executable, "-m", "recipe.amft.main", *arguments(folder)]
    again = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120)
    output = again.stdout + again.stderr
    assert again.returncode != 0
    assert "amft.overwrite=true" in output
    assert "Traceback" not in output


def test_a_dead_worker_ends_the_run_and_the_same_command_goes_on(
    run, command, environment, tmp_path, uninterrupted, long
):
    """SIGKILL of the actor worker, with a tangent pending: exit status not 0, not marked finished, no process is left.

    Resumed, every step has the same mu, losses and rewards as in the run that nothing interrupts.
    """
    metrics = tmp_path / "run" / "metrics.jsonl"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = run_until_step(command(*long), environment, metrics, 3, **streams)
    family = psutil.Process(process.pid).children(recursive=True)
    victims = [child for child in family if "WorkerDict" in " ".join(child.cmdline())]
    assert victims
    victims[0].kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "died" in output or "error" in output.lower()
    assert not (tmp_path / "run" / "FINISHED").exists()
    assert not [child for child in psutil.wait_procs(family, timeout=30)[1] if child.is_running()]

    resumed = run(*long)
    assert resumed.status == 0, resumed.output
    assert "resumed after step" in resumed.output
    check_same(resumed.metrics, uninterrupted)


def test_runs_on_shared_workers_equal_a_run_alone(arguments, environment, tmp_path, uninterrupted, long):
    """After another method, its driver killed in the warm-up, and taken up in front of another run on workers that all
    share: as a run alone that nothing interrupts."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    plan, rest = tmp_path / "plan.json", tmp_path / "rest.json"
    plan.write_text(json.dumps([arguments(first, *OTHER), arguments(second, *long)]))
    rest.write_text(json.dumps([arguments(second, *long), arguments(third, *long)]))
    command = [sys.executable, "-m", "recipe.amft.sweeps.shared_workers"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = run_until_step([*command, str(plan)], environment, second / "metrics.jsonl", 1, **silent)
    process.kill()
    process.wait(timeout=30)
    assert (first / "FINISHED").exists()
    assert not (second / "FINISHED").exists()
    finished = subprocess.run([*command, str(rest)], env=environment, text=True, capture_output=True, timeout=400)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "resumed after step" in finished.stdout
    for folder in (second, third):
        check_same(rows_of(folder), uninterrupted)
        assert (folder / "FINISHED").exists()
        assert json.loads((folder / "measured.json").read_text())["gib"] > 0
