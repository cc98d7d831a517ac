"""A Ray session for one run: its own temporary folder, quiet, and gone afterwards."""

import logging
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray
from omegaconf import OmegaConf

log = logging.getLogger(__name__)


def runtime_environment(config, variables: dict[str, str]) -> dict:
    """verl's runtime environment with ours on top."""
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    environment = get_ppo_ray_runtime_env(config)
    environment.setdefault("env_vars", {}).update({"TRANSFER_QUEUE_ENABLE": "1", **variables})
    extra = OmegaConf.to_container(config.ray_kwargs.ray_init.get("runtime_env", {}), resolve=True) or {}
    environment["env_vars"].update(extra.pop("env_vars", None) or {})
    return environment | {key: value for key, value in extra.items() if value is not None}


@contextmanager
def ray_session(config, variables: dict[str, str], logs: Path):
    """Start (or join) Ray as `ray_kwargs.ray_init` says; on the way out shut down what was started here.

    Without an `address` the cluster is this run's own, in a fresh temporary folder, so that two runs on a machine do
    not meet; the logs of its workers are copied to `logs` when the run fails, and none of its processes outlives it.
    With an address nothing is stopped.
    """
    arguments = OmegaConf.to_container(config.ray_kwargs.ray_init, resolve=True)
    arguments.pop("runtime_env", None)
    arguments["runtime_env"] = runtime_environment(config, variables)
    own = arguments.get("address") in (None, "local")
    folder = None
    if own:
        os.environ.pop("RAY_ADDRESS", None)
        arguments["address"] = "local"
        folder = tempfile.mkdtemp(prefix="amft-")
        arguments["_temp_dir"] = folder
    else:
        for name in ("num_cpus", "num_gpus", "object_store_memory", "include_dashboard"):
            arguments.pop(name, None)
    others = set(psutil.Process().children())
    ray.init(logging_level=logging.ERROR, **arguments)
    roots = set(psutil.Process().children()) - others if own else set()
    try:
        yield
    except BaseException:
        if folder is not None:
            keep_logs(Path(folder), logs)
        raise
    finally:
        processes = family(roots)
        ray.shutdown()
        end(processes)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def family(roots: set[psutil.Process]) -> set[psutil.Process]:
    """Those of `roots` that live, with all their descendants."""
    found = set()
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            found |= {root, *root.children(recursive=True)}
    return found


def end(processes: set[psutil.Process], seconds: float = 5) -> None:
    """Kill those that have not ended by themselves after `seconds`.

    Ray gives its raylet one second to end the workers and kills it then; a worker that is busy (a vLLM server that is
    failing, on a machine with few cores) may miss both, and would hold its memory for good.
    """
    _, left = psutil.wait_procs(processes, timeout=seconds)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                log.warning("killed process %s (%s), which Ray had left behind", process.pid, process.name())
                process.kill()
    psutil.wait_procs(left, timeout=seconds)


def keep_logs(session_folder: Path, logs: Path) -> None:
    """Copy the workers' own output of a Ray session to `logs`."""
    logs.mkdir(parents=True, exist_ok=True)
    for source in session_folder.glob("session_latest/logs/worker-*.*"):
        if source.stat().st_size:
            shutil.copy(source, logs / source.name)
