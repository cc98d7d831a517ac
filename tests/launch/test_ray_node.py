"""launch/ray_node.sh with a program in Ray's place that comes up, fails or never comes up, as Ray may."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

NODE = Path(__file__).parents[2] / "launch" / "ray_node.sh"
PROGRAM = """#!/bin/bash
echo start >>"$STARTS"
mkdir -p "$AMFT_RAY_TEMP/session_latest/logs"
echo text >"$AMFT_RAY_TEMP/session_latest/logs/worker-1.err"
case $BEHAVIOUR in
    runs) echo "Ray runtime started."; trap 'exit 0' TERM; while :; do sleep 0.1; done ;;
    dies) echo "Ray runtime started."; exit 7 ;;
    never) echo "timed out"; exit 7 ;;
esac
"""


@pytest.mark.parametrize(
    ("behaviour", "failed", "status", "starts", "keeps_logs"),
    [
        ("runs", False, 0, 1, False),
        ("runs", True, 0, 1, True),
        ("dies", False, 7, 1, True),
        ("never", False, 7, 3, True),
    ],
    ids=["stopped", "stopped-after-a-failure", "died", "never-came-up"],
)
def test_a_node_cleans_up_after_itself(tmp_path, until, behaviour, failed, status, starts, keeps_logs):
    """Ray's folder is gone at the end; logs are kept after a failure; only a node that never was up is tried again."""
    program, logs, temp = tmp_path / "python", tmp_path / "logs", tmp_path / "ray"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    logs.mkdir()
    variables = os.environ | {
        "AMFT_PYTHON": str(program),
        "AMFT_RAY_TEMP": str(temp),
        "AMFT_RAY_LOGS": str(logs),
        "STARTS": str(tmp_path / "starts"),
        "BEHAVIOUR": behaviour,
    }
    node = subprocess.Popen([NODE, "head", "127.0.0.1:1"], env=variables, stdout=subprocess.DEVNULL)
    until((tmp_path / "starts").exists, 20, "the program was not started")
    until(
        lambda: (temp / "session_latest" / "logs" / "worker-1.err").exists() or node.poll() is not None, 20, "no logs"
    )
    if failed:
        (logs / "failed").touch()
    if behaviour == "runs":
        node.send_signal(signal.SIGTERM)
    assert node.wait(timeout=20) == status
    assert len((tmp_path / "starts").read_text().split()) == starts
    assert list(tmp_path.glob("ray*")) == []
    assert bool(list(logs.glob("*/worker-1.err"))) == keeps_logs


def test_a_role_that_is_none_is_refused():
    """The error names what was given and what there is."""
    finished = subprocess.run([NODE, "master", "127.0.0.1:1"], capture_output=True, text=True)
    assert finished.returncode == 2
    assert "'master' is no role" in finished.stderr
