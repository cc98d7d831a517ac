"""Start what a run consists of, train, and stop all of it again.

The driver is this process: Ray holds the workers (actor, rollout, critic, reward, agent loops) and nothing of ours.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import ray
from omegaconf import OmegaConf, open_dict

from recipe.amft.config import AMFTConfig
from recipe.amft.process import process_variables
from recipe.amft.run_folder import RunFolder
from recipe.amft.shape import Shape
from verl_ext.session import ray_session
from verl_ext.watchdog import Watchdog

FORWARDED = ("VERL_PLATFORM", "VERL_USE_EXTERNAL_MODULES")


def train(config, settings: AMFTConfig, folder: RunFolder, body: Callable | None = None) -> None:
    """One run from start (or its last checkpoint) to the finished folder.

    `body(trainer)` is what happens once all workers stand; by default `AMFTTrainer.fit`.
    """
    started = process_start()
    folder.open(config)
    variables = {
        name: os.environ[name]
        for name in (*process_variables(has_gpu=config.trainer.device != "cpu"), *FORWARDED)
        if name in os.environ
    }
    os.environ.setdefault("TENSORBOARD_DIR", str(folder.path / "tensorboard"))
    os.environ.setdefault("WANDB_DIR", str(folder.path))
    os.environ.setdefault("VERL_FILE_LOGGER_PATH", str(folder.path / "tracking.jsonl"))
    with open_dict(config):
        config.transfer_queue.enable = True
    OmegaConf.resolve(config)
    cluster = joined_cluster(config)
    ray_is = f"joining Ray at {cluster}, then" if cluster else "starting Ray and"
    folder.say(f"run folder {folder.path}; {ray_is} the workers")
    signal.signal(signal.SIGTERM, stop)
    try:
        with folder.quiet_console(), ray_session(config, variables, folder.logs):
            if cluster:
                wait_for_nodes(Shape.from_config(config), settings.limits.cluster_seconds)
            fit(config, settings, folder, started, body)
    except BaseException as error:
        where = "Ray's session folder on each node" if cluster else folder.logs
        folder.say(f"failed ({type(error).__name__}); the workers' logs are in {where}")
        raise
    folder.finish()
    folder.say(f"finished in {time.time() - started:.0f} s: {folder.path}")


def joined_cluster(config) -> str | None:
    """The address of the Ray cluster that the run joins; None when it starts its own."""
    address = config.ray_kwargs.ray_init.get("address")
    return None if address in (None, "local") else address


def wait_for_nodes(shape: Shape, limit_seconds: float) -> None:
    """Return when the cluster has the nodes that the run needs; exit with what it has instead after the limit."""
    deadline = time.monotonic() + limit_seconds
    while True:
        alive = [node for node in ray.nodes() if node["Alive"]]
        slots = sorted((node["NodeManagerHostname"], int(node["Resources"].get("GPU", 0))) for node in alive)
        if sum(found >= shape.gpus_per_node for _, found in slots) >= shape.num_nodes:
            return
        if time.monotonic() > deadline:
            there = ", ".join(f"{name} with {found}" for name, found in slots)
            sys.exit(
                f"error: trainer.nnodes={shape.num_nodes} x trainer.n_gpus_per_node={shape.gpus_per_node} needs "
                f"{shape.num_nodes} Ray nodes with {shape.gpus_per_node} GPU slots each; after {limit_seconds:.0f} s "
                f"(amft.limits.cluster_seconds) the cluster has {there}. Start Ray on the others, or ask for less."
            )
        time.sleep(1)


def stop(number: int, frame) -> None:
    """End by an exception, so that Ray is shut down; further signals do not interrupt that."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def process_start() -> float:
    """When this process was started, in seconds since the epoch: imports count too."""
    return psutil.Process().create_time()


def fit(config, settings: AMFTConfig, folder: RunFolder, started: float, body: Callable | None) -> None:
    """Build the trainer on the running Ray session, and train."""
    import transfer_queue as tq

    with ThreadPoolExecutor(1) as pool:  # TransferQueue's processes start while this one imports
        queue = pool.submit(tq.init, config.transfer_queue)
        from verl.utils.tracking import Tracking

        from recipe.amft.trainer import AMFTTrainer
        from verl_ext.llm_servers import import_server

        import_server(config.actor_rollout_ref.rollout.name)
        queue.result()
    tracking = None
    succeeded = False
    try:
        trainer = AMFTTrainer(config, settings, folder, Watchdog(settings.limits.phase_seconds))
        trainer.init()
        if trainer.needs.rollouts:
            trainer.start_rollout_engine()
        backends = list(config.trainer.logger)
        if backends:
            tracking = Tracking(
                project_name=config.trainer.project_name,
                experiment_name=config.trainer.experiment_name,
                default_backend=backends,
                config=OmegaConf.to_container(config, resolve=True),
            )
            folder.tracking = tracking.log
        folder.say(f"workers ready after {time.time() - started:.0f} s")
        (body or AMFTTrainer.fit)(trainer)
        succeeded = True
    finally:
        folder.close()
        if tracking is not None:
            tracking.finish(exit_code=0 if succeeded else 1)
        tq.close()
