"""Images of a conversation: in its messages, in its tokens, and as the model's inputs; the same for all who need them.

A message shows images where its text says `<image>`, in order (verl's and LLaVA's convention). An image is a PIL image,
or a picture that is drawn when it is needed: it has `size` (width, height) and `draw()`, which gives a PIL image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

IMAGE = "<image>"

Message = Mapping[str, Any]


def draw(pictures: Sequence[Any]) -> list[Any]:
    """PIL images, RGB."""
    images = [picture.draw() if hasattr(picture, "draw") else picture for picture in pictures]
    return [image if image.mode == "RGB" else image.convert("RGB") for image in images]


def with_images(messages: Sequence[Message], images: Sequence[Any]) -> list[dict[str, Any]]:
    """The messages as lists of text and image blocks; unchanged where there are no images.

    ValueError when the texts say `<image>` more or less often than there are images.
    """
    if not images:
        return [dict(message) for message in messages]
    waiting = list(images)
    marked = sum(str(message["content"]).count(IMAGE) for message in messages)
    if marked != len(waiting):
        raise ValueError(
            f"the messages say {IMAGE} {marked} times and there are {len(waiting)} images; the environment's "
            "observation needs one mark for each image"
        )
    return [{**message, "content": _blocks(str(message["content"]), waiting)} for message in messages]


def _blocks(text: str, waiting: list[Any]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for index, part in enumerate(text.split(IMAGE)):
        if index:
            blocks.append({"type": "image", "image": waiting.pop(0)})
        if part:
            blocks.append({"type": "text", "text": part})
    return blocks


def prompt_tokens(builder: Any, messages: Sequence[Message], pictures: Sequence[Any]) -> list[int]:
    """What `builder.build_initial_tokens` gives for these images, from their sizes alone: nothing is drawn.

    `builder` is verl's continuous-token builder of a vision-language model (it holds processor and settings).
    """
    from verl.utils.tokenizer.chat_template import apply_chat_template
    from verl.utils.tokenizer.tokenizer import normalize_token_ids

    processor = builder.processor
    blocks = with_images(messages, pictures) if pictures else [_as_text(message) for message in messages]
    text = apply_chat_template(
        processor, blocks, tokenize=False, add_generation_prompt=True, **dict(builder.chat_template_kwargs)
    )
    parts = text.split(processor.image_token)
    if len(parts) != len(pictures) + 1:
        raise ValueError(f"the chat template wrote {len(parts) - 1} image tokens for {len(pictures)} images")
    merged = processor.image_processor.merge_size**2
    whole = parts[0]
    for picture, part in zip(pictures, parts[1:], strict=True):
        width, height = picture.size
        patches = processor.image_processor.get_number_of_image_patches(
            height, width, dict(builder.mm_processor_kwargs or {})
        )
        whole += processor.image_token * (patches // merged) + part
    return normalize_token_ids(processor.tokenizer([whole])["input_ids"])


def _as_text(message: Message) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def model_inputs(
    processor: Any, pictures: Sequence[Any], input_ids: torch.Tensor, mm_processor_kwargs: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What verl's agent loop stores with a rollout row: multi_modal_inputs, and position ids (4, T).

    The rows of the position ids: the text position, then time, height and width of M-RoPE.
    """
    inputs: dict[str, torch.Tensor] = {}
    if pictures:
        inputs = dict(processor.image_processor(images=draw(pictures), return_tensors="pt", **mm_processor_kwargs))
        grid = inputs["image_grid_thw"]
        inputs["images_seqlens"] = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
    text_position = torch.arange(len(input_ids))
    vision_position, _ = processor.get_rope_index(
        input_ids=input_ids[None],
        attention_mask=torch.ones_like(input_ids)[None],
        image_grid_thw=inputs.get("image_grid_thw"),
        video_grid_thw=None,
        mm_token_type_ids=(input_ids == processor.image_token_id).long()[None],
    )
    return inputs, torch.cat([text_position[None], vision_position[:, 0]])


# ---- what verl 0.9.1 lacks -------------------------------------------------------------------------------------------


def mend_position_ids(data: Any) -> None:
    """Make `data["position_ids"]` ragged along the tokens.

    Rows (4, T) become a nested tensor that is ragged in T; but when all T are equal, torch makes it ragged in the 4,
    with values (4 B, T), and verl's own `maybe_fix_3d_position_ids` only renames the axis.
    """
    if "position_ids" not in data:  # a TensorDict: membership of a key
        return
    nested = data["position_ids"]
    if nested.dim() != 3 or not nested.is_nested:
        return
    values, offsets, num_rows = nested.values(), nested.offsets(), len(nested.offsets()) - 1
    if values.shape[-1] == int(offsets[-1]):
        nested._ragged_idx = 2
        return
    length = values.shape[-1]
    values = values.view(num_rows, -1, length).transpose(0, 1).reshape(-1, num_rows * length).contiguous()
    offsets = torch.arange(num_rows + 1, device=offsets.device, dtype=offsets.dtype) * length
    data["position_ids"] = torch.nested.nested_tensor_from_jagged(
        values, offsets, jagged_dim=2, min_seqlen=length, max_seqlen=length
    )


def mend_verl() -> None:
    """Replace two functions of verl: the one above, and the embedding of a micro-batch without any image.

    Such a micro-batch (padding rows, say) runs a blank image through the vision tower, so that every rank takes part;
    with transformers 5 verl takes the mean of the tower's output object there, which has none.
    """
    import verl.models.transformers.qwen2_vl as qwen2_vl
    import verl.workers.engine.base as engine_base
    import verl.workers.engine_workers as engine_workers

    engine_base.maybe_fix_3d_position_ids = mend_position_ids
    engine_workers.maybe_fix_3d_position_ids = mend_position_ids
    embed = qwen2_vl._get_input_embeds
    if getattr(embed, "is_mended", False):
        return

    def embed_any(
        model, input_ids, attention_mask=None, pixel_values=None, pixel_values_videos=None, image_grid_thw=None,
        video_grid_thw=None,
    ):  # fmt: skip
        if pixel_values is not None or pixel_values_videos is not None:
            given = (pixel_values, pixel_values_videos, image_grid_thw, video_grid_thw)
            return embed(model, input_ids, attention_mask, *given)
        embeddings = model.get_input_embeddings()(input_ids)
        vision = model.config.vision_config
        size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        blank = torch.zeros((16, size), dtype=embeddings.dtype, device=embeddings.device)
        grid = torch.tensor([[1, 4, 4]], device=embeddings.device)
        seen, _ = qwen2_vl.unpack_visual_output(model.visual(blank, grid_thw=grid))
        return embeddings + 0.0 * seen.mean(), attention_mask

    embed_any.is_mended = True
    qwen2_vl._get_input_embeds = embed_any
