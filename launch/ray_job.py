"""One run as a job of a Ray cluster that is there: `ray job submit`, with overrides quoted and the exit status kept.

    python launch/ray_job.py --address http://HEAD:8265 trainer.nnodes=2 amft.run_dir=/shared/runs/math ...

Everything but `--address` is passed to `python -m recipe.amft.main`, which runs on the head (it needs GPUs as every
node does) and joins the cluster. The repository is uploaded as the working directory, without what .gitignore names;
the nodes' Python needs the packages of requirements/. `amft.run_dir`, data and model lie on a file system that all
nodes see. Interrupting this program stops the job; the same command goes on from the last checkpoint.
"""

import argparse
import asyncio
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

REPOSITORY = Path(__file__).parents[1]
PASSED_ON = ("AMFT_", "HF_", "NCCL_", "WANDB_")  # beginnings of the variables that the driver gets from here


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the module; 130 when this program was interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    parser.add_argument("--address", default=default, help="of the dashboard (RAY_API_SERVER_ADDRESS, %(default)s)")
    options, overrides = parser.parse_known_args(arguments)
    entrypoint = command(overrides)
    client = JobSubmissionClient(options.address)
    job = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_environment())
    print(f"job {job}: {entrypoint}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asyncio.run(follow(client, job))
    except KeyboardInterrupt:
        client.stop_job(job)
        print(f"job {job} stopped", flush=True)
        return 130
    while not client.get_job_status(job).is_terminal():
        time.sleep(1)
    info = client.get_job_info(job)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    print(f"job {job} {info.status}: {info.message}", file=sys.stderr)
    return info.driver_exit_code or 1


def command(overrides: Sequence[str]) -> str:
    """The driver's command line; exits when the run folder would lie in the working directory, which Ray deletes."""
    folders = [item.partition("=")[2] for item in overrides if item.startswith("amft.run_dir=")]
    if not folders or not Path(folders[-1]).is_absolute():
        sys.exit(
            f"error: amft.run_dir={folders[-1] if folders else None!r} would be a folder of the job's working "
            "directory, which Ray deletes; give an absolute path on a file system that all nodes see."
        )
    cache = f"amft.cache_dir={Path(folders[-1]).parent / 'cache'}"  # before the overrides: theirs wins
    return shlex.join(["python", "-m", "recipe.amft.main", cache, *overrides])


def runtime_environment() -> dict:
    """The repository, and this shell's variables that concern a run."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    # The run brings variables of its own for its workers, which Ray would otherwise refuse to merge.
    variables |= {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
    return {"working_dir": str(REPOSITORY), "excludes": [".git"], "env_vars": variables}


async def follow(client: JobSubmissionClient, job: str) -> None:
    """Print what the job prints, until it ends."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
