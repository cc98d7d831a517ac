"""Scripts that start ranks on this machine, for tests: on the CPU, without Ray, ended with all of their processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "verl_ext.register",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
}


def run_script(script: Path, *arguments: str, log: Path, seconds: float) -> None:
    """Run a script to its end; a failure, or more than `seconds`, fails the test with the end of its output."""
    environment = os.environ | ENVIRONMENT
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "ignore", str(script), *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if status != 0:
        how = f"did not finish in {seconds} s" if status is None else f"ended with status {status}"
        name = " ".join([script.name, *arguments])
        pytest.fail(f"{name} {how}:\n{log.read_text()[-6000:]}", pytrace=False)
