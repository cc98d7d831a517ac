"""Runs of the real command on real verl, Ray, FSDP2 and vLLM, with a model and a game small enough for a minute."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    "data.train_batch_size=4",
    "data.max_response_length=40",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "amft.warm_up.steps=1",
    "amft.warm_up.entropy_batches=1",
    "amft.demonstrations.batch_size=8",
    "amft.utility.num_prompts=2",
    "amft.utility.rollouts_per_prompt=4",
    "amft.utility.every=1",
    "amft.model.options.hidden_size=32",
    "amft.model.options.intermediate_size=64",
    "amft.model.options.num_layers=1",
    "amft.model.options.num_heads=1",
    "amft.model.options.pretraining.steps=0",
    "amft.task.options.train=32",
    "amft.task.options.validation=8",
    "amft.task.options.test=8",
    "trainer.total_training_steps=2",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
]

# A run of two warm-up and four training steps with two meta-updates, which leaves a checkpoint after each.
LONG = ["amft.warm_up.steps=2", "trainer.total_training_steps=4", "trainer.save_freq=1", "amft.utility.every=2"]
WATCHED = ["trainer.val_before_train=true", "trainer.test_freq=1", "trainer.logger=[file,tensorboard,wandb]"]

# What some methods of these tests ignore, and would refuse: beginnings of items of SMALL.
UNREAD = {
    "amft.utility.": ("amft_no_meta", "fixed_mu", "scheduled_mu", "ppo", "grpo", "sft"),
    "actor_rollout_ref.rollout.n=": ("sft",),
}


def small_for(method: str) -> list[str]:
    """SMALL without what the method ignores."""
    unread = tuple(start for start, methods in UNREAD.items() if method in methods)
    return [item for item in SMALL if not item.startswith(unread)]


@dataclass(frozen=True)
class Finished:
    """What a run left behind: exit status, console, and its folder."""

    status: int
    output: str
    folder: Path

    @property
    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def arguments(cache):
    """The overrides of a small run in a folder; later ones win, `only` leaves out those of SMALL."""

    def build(folder: Path, *overrides: str, only: bool = False) -> list[str]:
        method = next((item.removeprefix("method=") for item in overrides if item.startswith("method=")), "amft")
        folders = [f"amft.run_dir={folder}", f"amft.cache_dir={cache}"]
        items = [*folders, *([] if only else small_for(method)), *overrides]
        return list({item.split("=", 1)[0].lstrip("+"): item for item in items}.values())

    return build


@pytest.fixture
def command(arguments, tmp_path):
    """The command line of a small run in `tmp_path / "run"`."""

    def build(*overrides: str, only: bool = False) -> list[str]:
        return [sys.executable, "-m", "recipe.amft.main", *arguments(tmp_path / "run", *overrides, only=only)]

    return build


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Overrides of a small run."""
    return SMALL


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The tests' own folder is importable in the workers (environments that misbehave live there)."""
    paths = [str(REPOSITORY), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    variables["WANDB_MODE"] = "offline"
    return variables


@pytest.fixture(scope="session")
def long() -> list[str]:
    """Overrides that make a small run long enough to be killed in the middle."""
    return LONG


@pytest.fixture(scope="session")
def uninterrupted(arguments, environment, tmp_path_factory) -> Finished:
    """The long run that nothing interrupts, with a validation after every step and all trackers."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    command = [sys.executable, "-m", "recipe.amft.main", *arguments(folder, *LONG, *WATCHED)]
    return run_to_end(command, environment, folder, timeout=400)


@pytest.fixture
def run(command, environment, tmp_path):
    """Run the command to its end; afterwards none of its processes is left."""

    def start(*overrides: str, timeout: float = 400, only: bool = False) -> Finished:
        return run_to_end(command(*overrides, only=only), environment, tmp_path / "run", timeout)

    return start


def run_to_end(command: list[str], environment: dict[str, str], folder: Path, timeout: float) -> Finished:
    """What the run in `folder` left behind; none of its processes is."""
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    family = Family(process.pid)
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        left = family.leave()
    assert not left, f"left behind: {[member.cmdline()[:3] for member in left]}"
    return Finished(process.returncode, output, folder)


class Family:
    """The descendants of a process, noted while it lives, so that they are known when it is gone.

    Other runs on the machine are none of its business.
    """

    def __init__(self, pid: int):
        self.root = psutil.Process(pid)
        self.members: set[psutil.Process] = set()
        self.ended = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def leave(self, seconds: float = 30) -> list[psutil.Process]:
        """Those that are still alive after `seconds`."""
        self.ended.set()
        self.watcher.join()
        _, alive = psutil.wait_procs(self.members, timeout=seconds)
        return alive

    def _watch(self) -> None:
        while not self.ended.wait(0.5):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.members.update(self.root.children(recursive=True))
