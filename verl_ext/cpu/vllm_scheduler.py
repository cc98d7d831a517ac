"""vLLM's own scheduler, for vision-language models on CPU: named by the configuration for what its import does.

vLLM's engine process imports no module of ours but this one (`scheduler_cls`), and it loads the model's processor.
"""

from vllm.v1.core.sched.scheduler import Scheduler

from verl_ext.cpu.processors import allow_images_without_torchvision, register_vllm_models

__all__ = ["Scheduler"]

allow_images_without_torchvision()
register_vllm_models()
