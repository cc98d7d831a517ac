"""Processors of vision-language models without torchvision, which has no CPU build in the usual package registry.

transformers has image processors that need only Pillow, and takes them when torchvision is missing; but a processor
that also takes videos insists on its video processor, which exists for torchvision alone. Images need none.
"""

import importlib.util


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
