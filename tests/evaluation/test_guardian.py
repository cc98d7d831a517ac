"""Processes of an evaluation that is killed do not stay behind; those of one that ends are left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
# A parent whose child has a child of its own, which ignores polite signals, as vLLM's engine has a worker.
TREE = """
import psutil, subprocess, sys, time
from recipe.amft.evaluation.guardian import guarded
CHILD = (
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)']); time.sleep(120)"
)
with guarded():
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.DEVNULL)
    time.sleep(5)  # several looks of the guardian
    print("ready", flush=True)
    if sys.argv[1] == "stay":
        time.sleep(120)
print(child.poll())
for process in psutil.Process().children(recursive=True):
    process.kill()
"""


def start(what):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, "-c", TREE, what], env=environment, stdout=subprocess.PIPE, text=True)


def test_a_killed_evaluation_leaves_no_process():
    """SIGKILL of the parent: child, grandchild and the guardian itself end within seconds."""
    parent = start("stay")
    assert parent.stdout.readline() == "ready\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) == 3
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, left = psutil.wait_procs(family, timeout=20)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
    parent.stdout.close()


def test_an_evaluation_that_ends_takes_its_guardian_along():
    """The guardian goes first and kills nothing: the child still runs when the guarded block is left."""
    parent = start("go")
    output, _ = parent.communicate(timeout=60)
    assert output == "ready\nNone\n"
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert [str(parent.pid)] not in [command[-1:] for command in commands if "guardian.py" in " ".join(command)]
