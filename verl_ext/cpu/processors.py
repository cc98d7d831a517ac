"""Vision-language models without torchvision, which has no CPU build in the usual package registry.

transformers has image processors that need only Pillow, and takes them when torchvision is missing. Three things are in
the way: a processor that also takes videos insists on its video processor, which exists for torchvision alone; vLLM's
model files import a function from the module of the torchvision processor, and look at it in a process of their own;
and vLLM's Qwen3-VL asks for the video processor's sizes. Images need none of that.
"""

import importlib
import importlib.util
import sys
from types import SimpleNamespace

# A module that needs torchvision, and the one with the same functions that does not.
FOLDER = "transformers.models.qwen2_vl."
SAME_FUNCTIONS = {FOLDER + "image_processing_qwen2_vl": FOLDER + "image_processing_pil_qwen2_vl"}
VLLM_MODELS = {
    "Qwen2_5_VLForConditionalGeneration": "vllm.model_executor.models.qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "vllm.model_executor.models.qwen3_vl",
}


def allow_images_without_torchvision() -> None:
    """Make processors leave their video part out; nothing where torchvision is installed. Videos are refused then."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    from transformers.processing_utils import ProcessorMixin

    if getattr(ProcessorMixin, "leaves_out_videos", False):
        return
    parts = ProcessorMixin.get_attributes.__func__

    def parts_without_videos(cls) -> list[str]:
        return [part for part in parts(cls) if part != "video_processor"]

    ProcessorMixin.get_attributes = classmethod(parts_without_videos)
    ProcessorMixin.leaves_out_videos = True


def register_vllm_models() -> None:
    """Give vLLM the model classes themselves; a class that it has need not be looked at in another process."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    from vllm.model_executor.models.registry import ModelRegistry

    for missing, present in SAME_FUNCTIONS.items():
        sys.modules.setdefault(missing, importlib.import_module(present))
    for name, module in VLLM_MODELS.items():
        ModelRegistry.register_model(name, getattr(importlib.import_module(module), name))
    from vllm.model_executor.models.qwen3_vl import Qwen3VLProcessingInfo

    Qwen3VLProcessingInfo.get_video_processor = sizes_of_images


def sizes_of_images(info, **kwargs) -> SimpleNamespace:
    """What vLLM asks Qwen3-VL's video processor for while it sizes its buffers, although no video is allowed."""
    return SimpleNamespace(size=info.get_image_processor(**kwargs).size, temporal_patch_size=2)
