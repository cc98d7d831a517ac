"""Running points: here, as Slurm job arrays, or as one job of a Ray cluster.

A point is `python -m recipe.amft.main` with its overrides, then `python -m recipe.amft.evaluate` for each suite that a
table reads. Both go on from where they were stopped, so a broken point is simply started again.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from recipe.amft.sweeps.measured import Watch
from recipe.amft.sweeps.points import Point
from recipe.amft.sweeps.states import EVALUATION, LOGS, lock_of, log_of, state_of, taken

REPOSITORY = Path(__file__).parents[3]
BATCH_SCRIPT = Path("launch/slurm.sbatch")
TOKEN_PROBABILITIES = "token_probabilities"  # an evaluation that is no suite of configs/suite
NO_WORKERS = 3  # of recipe.amft.sweeps.shared_workers: none of its runs has begun
STOPPED = 143  # exit status after SIGTERM, as a shell reports it


def training(point: Point, runs: Path) -> list[str]:
    """Arguments of recipe.amft.main."""
    return [*point.overrides, f"amft.run_dir={runs / point.folder}"]


def evaluation(point: Point, suite: str, runs: Path) -> list[str]:
    """Module and arguments; a base model is the one of the point's configuration."""
    folder = runs / point.folder
    if suite == TOKEN_PROBABILITIES:
        module = "recipe.amft.evaluation.token_probabilities"
        return [module, "--run", str(folder), "--out", str(folder / EVALUATION / suite)]
    model = str(folder)
    if point.method is None:
        from recipe.amft.main import compose

        model = compose(list(point.overrides)).actor_rollout_ref.model.path
    out = f"out={folder / EVALUATION / suite}"
    return ["recipe.amft.evaluate", f"model={model}", f"suite={suite}", out, f"seed={point.seed}"]


def steps_of(point: Point, suites: Sequence[str], runs: Path) -> list[list[str]]:
    """The commands that are left of a point."""
    state = state_of(point, suites, runs)
    python = [sys.executable, "-m"]
    train = [] if state.trained else [[*python, "recipe.amft.main", *training(point, runs)]]
    return train + [[*python, *evaluation(point, suite, runs)] for suite in state.suites]


def same_workers(points: Iterable[Point]) -> list[list[Point]]:
    """Points grouped by what their workers are built from, in order; base models, which have none, alone."""
    from recipe.amft.sweeps.shared_workers import workers_of

    groups: dict[Any, list[Point]] = {}
    for point in points:
        key = point if point.method is None else workers_of(point.overrides)
        groups.setdefault(key, []).append(point)
    return list(groups.values())


# ---- here ------------------------------------------------------------------------------------------------------------


class LocalRunner:
    """Runs points in processes of this machine, `jobs` at a time; stops them all, in order, on SIGTERM and Ctrl-C.

    With `share_workers`, points whose workers are configured alike train one after the other on one set of them.
    """

    def __init__(self, runs: Path, jobs: int, share_workers: bool = False, say: Callable[[str], None] = print):
        self.runs, self.jobs, self.share_workers, self.say = runs, jobs, share_workers, say
        self.stopping = threading.Event()
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()

    def run(self, points: Mapping[Point, Sequence[str]]) -> int:
        """Exit status: 0, 1 when a point failed, 143 when stopped."""
        handlers = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        groups = same_workers(points) if self.share_workers else [[point] for point in points]
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                succeeded = list(pool.map(lambda group: self.run_group(group, points), groups))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.stopping.is_set():
            self.say("stopped; the same command goes on from here")
            return STOPPED
        return 0 if all(succeeded) else 1

    def stop(self, number: int, frame: Any) -> None:
        self.stopping.set()
        with self.lock:
            for process in self.processes:
                process.send_signal(signal.SIGTERM)

    def run_group(self, group: Sequence[Point], suites: Mapping[Point, Sequence[str]]) -> bool:
        """Train the points of a group together, where there are several, then do what is left of each."""
        with ExitStack() as held:
            locks = {}
            for point in group:
                if self.stopping.is_set():
                    return False
                lock = held.enter_context(taken(lock_of(point, self.runs)))
                if lock is None:
                    self.say(f"{point.folder}: another sweep is at it")
                else:
                    locks[point] = lock
            failed = self.train_together(locks)
            succeeded = [self.run_point(point, suites[point], locks[point]) for point in locks if point not in failed]
        return all(succeeded) and not failed

    def train_together(self, locks: Mapping[Point, int]) -> set[Point]:
        """Train the untrained among several points on the same workers; the points that failed."""
        left = [point for point in locks if not state_of(point, (), self.runs).trained]
        failed: set[Point] = set()
        while len(left) > 1 and not self.stopping.is_set():
            digest = hashlib.sha256(repr(left).encode()).hexdigest()[:8]
            plan = self.runs / LOGS / f"together-{digest}.json"
            plan.write_text(json.dumps([training(point, self.runs) for point in left]))
            log = plan.with_suffix(".log")
            command = [sys.executable, "-m", "recipe.amft.sweeps.shared_workers", str(plan)]
            self.say(f"{len(left)} points on one set of workers; their steps are in {log}")
            status = self.call(command, log, list(locks.values()))
            left = [point for point in left if not state_of(point, (), self.runs).trained]
            if status and not self.stopping.is_set():  # they go in order and end with the first that fails
                broken = left if status == NO_WORKERS else left[:1]
                for point in broken:
                    self.say(f"{point.folder}: failed (exit status {status}); see {log}")
                failed.update(broken)
                left = left[len(broken) :]
        return failed

    def run_point(self, point: Point, suites: Sequence[str], lock: int) -> bool:
        started, steps = time.monotonic(), steps_of(point, suites, self.runs)
        for command in steps:
            if self.stopping.is_set():
                return False
            trained = state_of(point, (), self.runs).trained
            folder = None if trained else self.runs / point.folder
            status = self.call(command, log_of(point, self.runs), [lock], folder)
            if status and not self.stopping.is_set():
                self.say(f"{point.folder}: failed (exit status {status}); see {log_of(point, self.runs)}")
            if status:
                return False
        self.say(f"{point.folder}: finished" + (f" in {time.monotonic() - started:.0f} s" if steps else ""))
        return True

    def call(self, command: list[str], log: Path, locks: Sequence[int], folder: Path | None = None) -> int:
        """Exit status; what a successful command took is written to `folder`."""
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), environment.get("PYTHONPATH")]))
        with log.open("a") as file:
            file.write(f"$ {shlex.join(command)}\n")
            file.flush()
            with self.lock:
                if self.stopping.is_set():
                    return STOPPED
                # A group of its own, so that Ctrl-C reaches it once, through us.
                process = subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, env=environment, process_group=0, pass_fds=locks
                )
                self.processes.add(process)
            watch = Watch(psutil.Process(process.pid)) if folder else None
            status = process.wait()
            if watch and folder:
                watch.stop()
                if status == 0:
                    watch.write(folder)
        with self.lock:
            self.processes.discard(process)
        return status


# ---- Slurm -----------------------------------------------------------------------------------------------------------


def directives(script: Path) -> list[str]:
    """The `#SBATCH` options of a batch script: a wrapped command has none of its own."""
    lines = script.read_text().splitlines()
    return [shlex.split(line.removeprefix("#SBATCH "))[0] for line in lines if line.startswith("#SBATCH ")]


def submit_slurm(
    points: Mapping[Point, Sequence[str]], runs: Path, jobs: int, options: Sequence[str], say: Callable[[str], None]
) -> None:
    """One array of training runs, by launch/slurm.sbatch, and one of evaluations that follow them task by task.

    `options` go to sbatch, for the training runs. At most `jobs` tasks run at a time. ValueError without the script.
    """
    script = REPOSITORY / BATCH_SCRIPT
    if not script.exists():
        raise ValueError(f"{script} does not exist; submit from a whole checkout.")
    states = {point: state_of(point, suites, runs) for point, suites in points.items()}
    left = [point for point, state in states.items() if not state.finished]
    plan = runs / LOGS / f"slurm-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.json"
    plan.parent.mkdir(parents=True, exist_ok=True)
    tasks = [
        {
            "lock": str(lock_of(point, runs)),
            "train": training(point, runs),
            "evaluate": [evaluation(point, suite, runs) for suite in states[point].suites],
        }
        for point in left
    ]
    plan.write_text(json.dumps(tasks, indent=1))
    to_train = [index for index, point in enumerate(left) if not states[point].trained]
    after = [index for index in to_train if states[left[index]].suites]
    ready = [index for index, point in enumerate(left) if states[point].trained]
    python = shlex.join([sys.executable, "-m", "recipe.amft.sweep"])

    def submit(indices: list[int], what: str, given: Sequence[str]) -> str:
        array = f"--array={','.join(map(str, indices))}%{jobs}"
        command = f"exec {python} --task {what} {shlex.quote(str(plan))}"
        output = f"--output={plan.with_suffix('')}-%a-{what}.out"
        arguments = ["sbatch", "--parsable", *given, array, output, f"--chdir={REPOSITORY}", f"--wrap={command}"]
        number = called(arguments).split(";")[0]
        say(f"Slurm job {number}: {len(indices)} x {what}")
        return number

    one_gpu = ["--nodes=1", "--ntasks=1", "--gpus-per-node=1", "--job-name=amft-evaluate", "--requeue"]
    if to_train:
        number = submit(to_train, "train", [*directives(script), *options])
        if after:
            submit(after, "evaluate", [*one_gpu, f"--dependency=aftercorr:{number}", "--kill-on-invalid-dep=yes"])
    if ready:
        submit(ready, "evaluate", one_gpu)


def run_task(what: str, plan: Path) -> None:
    """What a task of such an array does: becomes the batch script (train), or evaluates suite after suite."""
    task = json.loads(plan.read_text())[int(os.environ["SLURM_ARRAY_TASK_ID"])]
    with taken(Path(task["lock"])) as lock:
        if lock is None:
            sys.exit(f"error: another job is at this point ({task['lock']} is locked)")
        if what == "train":
            os.environ.setdefault("AMFT_PYTHON", sys.executable)
            os.set_inheritable(lock, True)
            os.execvp("bash", ["bash", str(REPOSITORY / BATCH_SCRIPT), *task["train"]])
        for arguments in task["evaluate"]:
            status = subprocess.run([sys.executable, "-m", *arguments], cwd=REPOSITORY, pass_fds=(lock,)).returncode
            if status:
                sys.exit(status)


# ---- Ray -------------------------------------------------------------------------------------------------------------


def submit_ray(arguments: Sequence[str], options: Sequence[str], say: Callable[[str], None]) -> None:
    """One job on the cluster that goes through the points one after the other; each run joins the cluster's nodes.

    `options` go to `ray job submit` (`--address`, `--runtime-env-json`, ...). Run folders, data and this checkout are
    on a file system that all nodes see.
    """
    sweep = [sys.executable, "-m", "recipe.amft.sweep", *arguments, "--submit", "local"]
    ray = shutil.which("ray") or str(Path(sys.executable).with_name("ray"))
    # The runs bring variables of their own for their workers, which Ray would otherwise refuse to merge.
    here = ["env", "-C", str(REPOSITORY), f"PYTHONPATH={REPOSITORY}", "RAY_OVERRIDE_JOB_RUNTIME_ENV=1"]
    command = [ray, "job", "submit", "--no-wait", *options, "--", *here, *sweep, "ray_kwargs.ray_init.address=auto"]
    say(called(command))


def called(command: Sequence[str]) -> str:
    """What a submitting program prints; ValueError with its own words when it fails or is not there."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        raise ValueError(
            f"{command[0]} is not on this machine; submit from one that has it, or --submit local."
        ) from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{command[0]} refused (exit status {error.returncode}): {error.stderr.strip()}") from None
