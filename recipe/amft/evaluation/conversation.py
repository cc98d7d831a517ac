"""The tokens and images of a conversation, as in training: verl's continuous tokens (verl_ext/agent_loop.py).

The model's own tokens are kept as it wrote them and never tokenised again; they carry mask 1. What the chat template
and the environment add carries mask 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from verl_ext.images import prompt_tokens, with_images

Message = dict[str, Any]


@dataclass
class Context:
    """A conversation since its first message, or since the environment last reset it.

    `tokens` are prompt and response; `mask` has one entry per token of the response; `images` are all that it shows.
    """

    messages: list[Message]
    tokens: list[int]
    num_prompt_tokens: int
    mask: list[int] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)

    @property
    def prompt(self) -> list[int]:
        return self.tokens[: self.num_prompt_tokens]


class Chat:
    """Writes conversations as token ids.

    Args:
        tokenizer: of the model, with its chat template.
        model_type: Hugging Face `model_type`, which selects verl's token builder as in training.
        template_kwargs: of the chat template; in training `data.apply_chat_template_kwargs`.
        processor: of a vision-language model; None for a text model, which is shown no image.
    """

    def __init__(
        self,
        tokenizer: Any,
        model_type: str,
        template_kwargs: Mapping[str, Any] | None = None,
        processor: Any = None,
    ):
        from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

        self.tokenizer = tokenizer
        self.processor = processor
        self.builder = create_continuous_token_builder(
            tokenizer,
            hf_model_type=model_type,
            chat_template_kwargs=dict(template_kwargs or {}),
            processor=processor,
            mm_processor_kwargs={},
        )

    def open(self, messages: Sequence[Mapping[str, Any]], images: Sequence[Any] = ()) -> Context:
        """A fresh context, ready for the model's first answer; `images` are drawn, and marked in the messages."""
        opening = with_images(messages, images)
        tokens = self.builder.build_initial_tokens([dict(message) for message in opening], images=list(images) or None)
        return Context(opening, tokens, len(tokens), images=list(images))

    def check_images(self, pictures: Sequence[Any]) -> None:
        """ValueError for pictures that the model cannot see."""
        if pictures and self.processor is None:
            raise ValueError("the observation has images, and the model has no image processor; take a vision model")

    def prompt_length(self, messages: Sequence[Mapping[str, Any]], pictures: Sequence[Any]) -> int:
        """The tokens of `open`, from the sizes of the pictures: none is drawn."""
        self.check_images(pictures)
        if self.processor is not None:
            return len(prompt_tokens(self.builder, messages, pictures))
        return len(self.open(messages).tokens)

    def answer(self, context: Context, token_ids: Sequence[int]) -> str:
        """Appends the model's answer; returns its text, as the environment reads it."""
        merged = self.builder.merge_assistant_tokens(context.tokens, list(token_ids))
        context.mask, _ = self.builder.align_response_metadata(merged, context.mask)
        context.tokens = merged.token_ids
        text = str(self.tokenizer.decode(token_ids, skip_special_tokens=True))
        context.messages.append({"role": "assistant", "content": text})
        return text

    def tell(self, context: Context, text: str, max_tokens: int, images: Sequence[Any] = ()) -> bool:
        """Appends the environment's message; False, and nothing is appended, where that leaves no room for an answer.

        `max_tokens` is the room of the whole response, as `data.max_response_length` in training.
        """
        updated = [*context.messages, *with_images([{"role": "user", "content": text}], images)]
        merged = self.builder.merge_context_tokens(context.messages, updated, context.tokens)
        mask, _ = self.builder.align_response_metadata(merged, context.mask)
        if len(mask) >= max_tokens:
            return False
        context.messages, context.tokens, context.mask = updated, merged.token_ids, mask
        context.images = [*context.images, *images]
        return True

    def one_token_for_each_image(self, token_ids: Sequence[int]) -> list[int]:
        """Without the repetitions of the image token, which vLLM writes itself."""
        if self.processor is None:
            return list(token_ids)
        image = self.processor.image_token_id
        repeated = [before == after == image for before, after in pairwise([None, *token_ids])]
        return [token for token, again in zip(token_ids, repeated, strict=True) if not again]

    def show(self, token_ids: Sequence[int]) -> str:
        """The text with the template's special tokens; an image is one of them."""
        return str(self.tokenizer.decode(self.one_token_for_each_image(token_ids), skip_special_tokens=False))
