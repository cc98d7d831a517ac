"""A tiny Qwen2-architecture policy with its tokenizer and chat template, made locally: no download, no accelerator.

The tokenizer has bytes, and one task's own phrases as whole tokens (tiny_vocabularies.py), so that a hand of General
Points is about a dozen tokens and any other text still round-trips byte by byte. The base model may be pretrained on
chats about arithmetic (arithmetic_chats.py), as a real base model knows arithmetic. That takes minutes, so the weights
of some bases come with the code, in bases/; `python -m recipe.amft.data.tiny_model` pretrains the quickstart's again.
"""

import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from recipe.amft.data.arithmetic_chats import Message, chats, equations, held_out_hands
from recipe.amft.data.tiny_vocabularies import VOCABULARIES

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BASES = Path(__file__).parent / "bases"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Pretraining:
    """Supervised steps on arithmetic chats; 0 steps leave the model random.

    `held_out` are the options of the task whose validation and test hands must not occur in the chats.
    """

    steps: int = 0
    batch_size: int = 64  # chats of about four questions
    learning_rate: float = 4e-3
    largest: int = 10
    counts: tuple[int, ...] = (2, 3)
    largest_value: int = 24
    held_out: Mapping[str, Any] | None = None


def make(options: Mapping[str, Any], folder: Path) -> None:
    """Write a model folder that `transformers` and vLLM load.

    Options: those of `make_model`, `vocabulary` of `make_tokenizer`, and `pretraining` (the fields of Pretraining). A
    pretrained base that comes with the code is loaded, another one is trained.
    """
    tokenizer, model, pretraining, seed = _untrained(options)
    if pretraining.steps:
        shipped = shipped_base(tokenizer, model, pretraining, seed)
        if shipped.exists():
            load_model(model, shipped)
        else:
            pretrain(model, tokenizer, pretraining, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def ship(options: Mapping[str, Any]) -> Path:
    """Pretrain the base of `options` and write its weights, in half precision, to where `make` finds them."""
    tokenizer, model, pretraining, seed = _untrained(options)
    pretrain(model, tokenizer, pretraining, seed)
    path = shipped_base(tokenizer, model, pretraining, seed)
    path.parent.mkdir(exist_ok=True)
    save_model(model.half(), str(path))
    return path


def shipped_base(
    tokenizer: PreTrainedTokenizerFast, model: Qwen2ForCausalLM, pretraining: Pretraining, seed: int
) -> Path:
    """The file of a base's weights, named by all that they belong to, so that none is loaded by mistake."""
    identity = [
        sorted(tokenizer.get_vocab().items()),
        tokenizer.chat_template,
        [[name, list(tensor.shape)] for name, tensor in model.state_dict().items()],
        dataclasses.asdict(pretraining),
        seed,
    ]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return BASES / f"{digest}.safetensors"


def _untrained(options: Mapping[str, Any]) -> tuple[PreTrainedTokenizerFast, Qwen2ForCausalLM, Pretraining, int]:
    """Tokenizer, random model, what to pretrain it on, and the seed of both."""
    options = dict(options)
    pretraining = Pretraining(**(options.pop("pretraining", None) or {}))
    tokenizer = make_tokenizer(options.pop("vocabulary", "general_points"))
    return tokenizer, make_model(tokenizer, **options), pretraining, options.get("seed", 0)


def make_tokenizer(vocabulary: str = "general_points") -> PreTrainedTokenizerFast:
    """Bytes, plus the whole tokens of a key of VOCABULARIES.

    The phrases are added tokens, which every tokenizer class matches before it splits: `AutoTokenizer` rebuilds the
    tokenizer of a Qwen2 model with Qwen's own splitting rule, and merges learned under another rule would be lost.
    """
    if vocabulary not in VOCABULARIES:
        raise ValueError(f"vocabulary={vocabulary!r} is unknown; choose from {', '.join(VOCABULARIES)}")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=base, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens(VOCABULARIES[vocabulary]())
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4096
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int = 96,
    intermediate_size: int = 256,
    num_layers: int = 2,
    num_heads: int = 4,
    max_position_embeddings: int = 512,
    seed: int = 0,
) -> Qwen2ForCausalLM:
    """A randomly initialised model; its vocabulary is exactly the tokenizer's (else vLLM masks the tail)."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def pretrain(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, config: Pretraining, seed: int) -> None:
    """Next-token loss on the assistant's tokens of arithmetic chats; AdamW, linear warm-up and cosine decay."""
    excluded = held_out_hands(config.held_out) if config.held_out else set()
    source = equations(config.largest, config.counts, config.largest_value, excluded)
    encode = ChatEncoder(tokenizer)
    stream = map(encode, chats(source, seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    model.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(min(os.cpu_count() or 1, 8))  # nothing else runs yet
    bar = tqdm(range(config.steps), desc="pretraining the base on arithmetic", unit="step", disable=None, leave=False)
    for step in bar:
        tokens, mask = pad(list(islice(stream, config.batch_size)), tokenizer.pad_token_id)
        rate = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * max(rate, 0.02)
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        losses = cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        loss = (losses * mask[:, 1:]).sum() / mask[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
    torch.set_num_threads(threads)
    print(f"pretrained on arithmetic chats: {config.steps} steps, loss {loss.item():.3f}", file=sys.stderr)


class ChatEncoder:
    """Chats to (token ids, mask), mask 1 on the assistant's tokens and its end of turn; messages are encoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.newline = tokenizer.encode("\n", add_special_tokens=False)
        self.cache: dict[tuple[str, str], tuple[list[int], list[int]]] = {}

    def __call__(self, chat: list[Message]) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        mask: list[int] = []
        for message in chat:
            turn, turn_mask = self._turn(message["role"], message["content"])
            tokens += turn
            mask += turn_mask
        return tokens, mask

    def _turn(self, role: str, content: str) -> tuple[list[int], list[int]]:
        key = (role, content)
        if key not in self.cache:
            text = f"<|im_start|>{role}\n" if role == "assistant" else f"<|im_start|>{role}\n{content}"
            head = self.tokenizer.encode(text, add_special_tokens=False)
            body = self.tokenizer.encode(content, add_special_tokens=False) if role == "assistant" else []
            end = [self.tokenizer.eos_token_id]
            learned = len(body) + 1 if role == "assistant" else 0
            tokens = [*head, *body, *end, *self.newline]
            mask = [0] * len(tokens)
            for index in range(len(head), len(head) + learned):
                mask[index] = 1
            self.cache[key] = tokens, mask
        return self.cache[key]


def pad(rows: list[tuple[list[int], list[int]]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded (B, T) token ids and float mask."""
    longest = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([row + [pad_id] * (longest - len(row)) for row, _ in rows])
    mask = torch.tensor([row + [0] * (longest - len(row)) for _, row in rows], dtype=torch.float32)
    return tokens, mask


def main() -> None:
    """Pretrain the base of a configuration (Hydra overrides; none: the quickstart) and write its file to bases/."""
    from recipe.amft.main import compose

    print(ship(OmegaConf.to_container(compose(sys.argv[1:]).amft.model.options, resolve=True)))


if __name__ == "__main__":
    main()
