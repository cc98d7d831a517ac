"""Names that a configuration gives to vLLM so that its processes import this module, which lets them take images.

vLLM's engine process imports `scheduler_cls` and loads the model's processor; its worker process imports
`worker_extension_cls` and loads the model. Nothing else of ours is imported there. In training the worker's extension
is that of verl_ext/cpu/vllm_worker.py, which does the same.
"""

from vllm.v1.core.sched.scheduler import Scheduler

from verl_ext.cpu.processors import allow_images_without_torchvision, register_vllm_models

__all__ = ["Scheduler", "WorkerExtension"]

allow_images_without_torchvision()
register_vllm_models()


class WorkerExtension:
    """Adds nothing to vLLM's worker."""
