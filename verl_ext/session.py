"""A Ray session for one run: its own temporary folder, quiet, and gone afterwards."""

import logging
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import ray
from omegaconf import OmegaConf


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
    not meet; the logs of its workers are copied to `logs` when the run fails. With an address nothing is stopped.
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
    ray.init(logging_level=logging.ERROR, **arguments)
    try:
        yield
    except BaseException:
        if folder is not None:
            keep_logs(Path(folder), logs)
        raise
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def keep_logs(session_folder: Path, logs: Path) -> None:
    """Copy the workers' own output of a Ray session to `logs`."""
    logs.mkdir(parents=True, exist_ok=True)
    for source in session_folder.glob("session_latest/logs/worker-*.*"):
        if source.stat().st_size:
            shutil.copy(source, logs / source.name)
