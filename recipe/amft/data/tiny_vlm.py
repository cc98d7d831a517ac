"""A tiny policy of the Qwen2.5-VL or Qwen3-VL architecture with its processor, made locally: no download.

Language model and tokenizer are those of tiny_model.py, with the vision tokens; the vision tower is random.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from recipe.amft.data.model_files import write_json
from recipe.amft.data.tiny_model import make_tokenizer

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PHRASES = ("user\n", "Target: ", '{"cards": ["', '"], "formula": "', '", "')
MERGE = 2  # patches per side of a token
PATCH = {"qwen2_5_vl": 14, "qwen3_vl": 16}  # pixels per side of a patch
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(options: Mapping[str, Any], folder: Path) -> None:
    """Write a model folder that `transformers`, verl and vLLM load; options: those of `make_model`, and the limits.

    `min_pixels` and `max_pixels` are the image processor's; an image becomes (width / 28) x (height / 28) tokens, of
    Qwen3-VL (width / 32) x (height / 32).
    """
    options = dict(options)
    family = options.get("family", "qwen2_5_vl")
    if family not in PATCH:
        raise ValueError(f"family={family!r} is unknown; choose from {', '.join(PATCH)}")
    limits = {name: options.pop(name, default) for name, default in (("min_pixels", 56**2), ("max_pixels", 448**2))}
    tokenizer = make_vision_tokenizer()
    make_model(tokenizer, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    write_json(folder / "preprocessor_config.json", processor_settings(family, **limits))


def make_vision_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with the vision tokens and the phrases of an answer that names cards."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(VISION_TOKENS)})
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in PHRASES])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def processor_settings(family: str, min_pixels: int, max_pixels: int) -> dict[str, Any]:
    """preprocessor_config.json of the family: pixels scaled to [-1, 1]."""
    return {
        "processor_class": {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}[family],
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": min_pixels, "longest_edge": max_pixels},
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "patch_size": PATCH[family],
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def make_model(
    tokenizer: PreTrainedTokenizerFast,
    family: str = "qwen2_5_vl",
    hidden_size: int = 96,
    intermediate_size: int = 256,
    num_layers: int = 2,
    num_heads: int = 3,
    vision_hidden_size: int = 64,
    vision_layers: int = 2,
    vision_heads: int = 2,
    max_position_embeddings: int = 512,
    seed: int = 0,
) -> Qwen2_5_VLForConditionalGeneration | Qwen3VLForConditionalGeneration:
    """A randomly initialised model; its vocabulary is exactly the tokenizer's (else vLLM masks the tail)."""
    torch.manual_seed(seed)
    head_dim = hidden_size // num_heads
    quarter = head_dim // 8  # of the rotary frequencies: time gets one, height and width the rest
    sections = [quarter, *[(head_dim // 2 - quarter) // 2] * 2]
    if sum(sections) * 2 != head_dim:
        raise ValueError(
            f"hidden_size={hidden_size} and num_heads={num_heads} give heads of {head_dim}, which M-RoPE cannot split "
            "into three sections; choose heads of a multiple of 32"
        )
    is_third = family == "qwen3_vl"
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    # vLLM builds Qwen3-VL's language model by its name.
    own_text = {"head_dim": head_dim, "architectures": ["Qwen3ForCausalLM"]} if is_third else {}
    own_vision: dict[str, Any] = {
        "spatial_patch_size": PATCH[family],
        "window_size": PATCH[family] * MERGE * 4,
        "fullatt_block_indexes": [vision_layers - 1],
    }
    if is_third:
        rope["mrope_interleaved"] = True
        own_vision = {"num_position_embeddings": 16**2, "deepstack_visual_indexes": [0]}
    start, end, image, video = (tokenizer.convert_tokens_to_ids(token) for token in VISION_TOKENS)
    config_class = Qwen3VLConfig if is_third else Qwen2_5_VLConfig
    config = config_class(
        text_config={
            **own_text,
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_heads,
            "max_position_embeddings": max_position_embeddings,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": rope,
        },
        vision_config={
            **own_vision,
            "depth": vision_layers,
            "hidden_size": vision_hidden_size,
            "intermediate_size": 2 * vision_hidden_size,
            "num_heads": vision_heads,
            "out_hidden_size": hidden_size,
            "patch_size": PATCH[family],
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
        tie_word_embeddings=True,
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3VLForConditionalGeneration(config) if is_third else Qwen2_5_VLForConditionalGeneration(config)
