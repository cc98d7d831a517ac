"""The tokens of a conversation, built exactly as in training: verl's continuous tokens (verl_ext/agent_loop.py).

The model's own tokens are kept as it wrote them and never tokenised again; they carry mask 1. What the chat template
and the environment add carries mask 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]


@dataclass
class Context:
    """A conversation since its first message, or since the environment last reset it.

    `tokens` are prompt and response; `mask` has one entry per token of the response.
    """

    messages: list[Message]
    tokens: list[int]
    num_prompt_tokens: int
    mask: list[int] = field(default_factory=list)

    @property
    def prompt(self) -> list[int]:
        return self.tokens[: self.num_prompt_tokens]


class Chat:
    """Writes conversations as token ids.

    Args:
        tokenizer: of the model, with its chat template.
        model_type: Hugging Face `model_type`, which selects verl's token builder as in training.
        template_kwargs: of the chat template; in training `data.apply_chat_template_kwargs`.
    """

    def __init__(self, tokenizer: Any, model_type: str, template_kwargs: Mapping[str, Any] | None = None):
        from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

        self.tokenizer = tokenizer
        self.builder = create_continuous_token_builder(
            tokenizer, hf_model_type=model_type, chat_template_kwargs=dict(template_kwargs or {})
        )

    def open(self, messages: Sequence[Mapping[str, str]]) -> Context:
        """A fresh context, ready for the model's first answer."""
        opening = [dict(message) for message in messages]
        tokens = self.builder.build_initial_tokens([dict(message) for message in opening])
        return Context(opening, tokens, len(tokens))

    def answer(self, context: Context, token_ids: Sequence[int]) -> str:
        """Appends the model's answer; returns its text, as the environment reads it."""
        merged = self.builder.merge_assistant_tokens(context.tokens, list(token_ids))
        context.mask, _ = self.builder.align_response_metadata(merged, context.mask)
        context.tokens = merged.token_ids
        text = str(self.tokenizer.decode(token_ids, skip_special_tokens=True))
        context.messages.append({"role": "assistant", "content": text})
        return text

    def tell(self, context: Context, text: str, max_tokens: int) -> bool:
        """Appends the environment's message; False, and nothing is appended, where that leaves no room for an answer.

        `max_tokens` is the room of the whole response, as `data.max_response_length` in training.
        """
        updated = [*context.messages, {"role": "user", "content": text}]
        merged = self.builder.merge_context_tokens(context.messages, updated, context.tokens)
        mask, _ = self.builder.align_response_metadata(merged, context.mask)
        if len(mask) >= max_tokens:
            return False
        context.messages, context.tokens, context.mask = updated, merged.token_ids, mask
        return True

    def show(self, token_ids: Sequence[int]) -> str:
        """The text with the template's special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=False))
