"""Demonstrations: rows of `prompt` and `target`, tokenised exactly as rollouts are, drawn in a resumable order.

A demonstration has the fields of a rollout row (prompts, responses, response_mask, ...), so that one loss path serves
both. Its prompt goes through the same token builder as a rollout's, and its response ends at the end-of-sequence token,
because template text behind that token is never emitted by the policy.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from recipe.amft.tasks.environment import IMAGE, begin
from verl_ext.images import model_inputs, prompt_tokens

DRAWING_THREADS = 8


@dataclass(frozen=True)
class Demonstration:
    """Token ids of one demonstration; the response ends with the end-of-sequence token.

    `mask` has a 0 where a token of the response is not learned (what an environment wrote); None learns all.
    `pictures` are those of the prompt, drawn when a batch needs them.
    """

    row_id: str
    prompt: list[int]
    response: list[int]
    mask: list[int] | None = None
    pictures: tuple[Any, ...] = ()


class BadRow(ValueError):
    """A demonstration that cannot be learned from."""


class DemonstrationTokenizer:
    """Turns a row into token ids.

    Args:
        tokenizer: of the policy, with its chat template.
        model_type: Hugging Face `model_type`, which selects the same token builder as in rollouts.
        max_prompt_length, max_response_length: limits in tokens, those of the rollouts.
        processor, processor_kwargs: of a vision-language model, as in rollouts; None for a text model.
    """

    def __init__(
        self,
        tokenizer,
        model_type: str,
        max_prompt_length: int,
        max_response_length: int,
        template_kwargs=None,
        processor=None,
        processor_kwargs: Mapping[str, Any] | None = None,
    ):
        self.tokenizer = tokenizer
        self.processor = processor
        self.builder = create_continuous_token_builder(
            tokenizer,
            hf_model_type=model_type,
            chat_template_kwargs=template_kwargs or {},
            processor=processor,
            mm_processor_kwargs=dict(processor_kwargs or {}),
        )
        self.max_prompt_length = max_prompt_length
        self.max_response_length = max_response_length

    def __call__(self, row: dict[str, Any]) -> Demonstration:
        """BadRow names the row and what is wrong with it."""
        row_id = row_identity(row)
        target = row.get("target")
        if not target or not str(target[0].get("content") or "").strip():
            raise BadRow(f"row {row_id} has no target: a demonstration needs `target=[{{role, content}}]`")
        pictures = self._pictures(row, row_id)
        messages = [dict(message) for message in row["prompt"]]
        try:
            prompt = self._prompt_tokens(messages, pictures)
        except ValueError as error:
            raise BadRow(f"row {row_id}: {error}") from None
        text = self._without_prefilled_start(prompt, target[0]["content"])
        response = self.tokenizer.encode(text, add_special_tokens=False)
        eos = self.tokenizer.eos_token_id
        if eos in response:
            response = response[: response.index(eos)]
        response = [*response, eos]
        self._check_length(row_id, "prompt", len(prompt), self.max_prompt_length, "data.max_prompt_length")
        self._check_length(row_id, "target", len(response), self.max_response_length, "data.max_response_length")
        return Demonstration(row_id, prompt, response, pictures=pictures)

    def _pictures(self, row: dict[str, Any], row_id: str) -> tuple[Any, ...]:
        """The images of a prompt that shows some, from the environment that the row names."""
        if not any(IMAGE in str(message["content"]) for message in row["prompt"]):
            return ()
        if self.processor is None:
            raise BadRow(f"row {row_id} shows images, and the model has no image processor: take a vision model")
        if not (row.get("extra_info") or {}).get("env_id"):
            raise BadRow(f"row {row_id} shows images and names no environment that draws them (extra_info.env_id)")
        return tuple(begin(row)[1]["images"])

    def _prompt_tokens(self, messages: list[dict[str, Any]], pictures: tuple[Any, ...]) -> list[int]:
        if self.processor is None:
            return self.builder.build_initial_tokens(messages)
        return prompt_tokens(self.builder, messages, pictures)

    def _without_prefilled_start(self, prompt: list[int], text: str) -> str:
        """Drop a leading <think> tag that the template's generation prompt has already written."""
        written = self.tokenizer.decode(prompt[-8:])
        for start in ("<think>\n", "<think>"):
            if written.endswith(start) and text.startswith(start):
                return text.removeprefix(start)
        return text

    @staticmethod
    def _check_length(row_id: str, what: str, length: int, limit: int, knob: str) -> None:
        if length > limit:
            raise BadRow(f"row {row_id}: its {what} has {length} tokens, {knob} allows {limit}")


def row_identity(row: dict[str, Any]) -> str:
    """The stable id of a row: `extra_info.id`, else split and index."""
    info = row.get("extra_info") or {}
    return str(info.get("id") or f"{info.get('split', '?')}/{info.get('index', '?')}")


def load_demonstrations(
    files: Sequence[str], tokenize: DemonstrationTokenizer, on_bad_row: str = "refuse"
) -> tuple[list[Demonstration], list[str]]:
    """All demonstrations of `files` and the reasons of the rows left out.

    ValueError (with the first reasons) for a bad row when `on_bad_row` is "refuse", and when nothing is left.
    """
    demonstrations, reasons = [], []
    for file in files:
        table = pq.read_table(file)
        missing = {"prompt", "target"} - set(table.column_names)
        if missing:
            raise ValueError(
                f"{file} has no column {', '.join(sorted(missing))}; demonstrations need `prompt` and `target` "
                f"(columns found: {', '.join(table.column_names)})."
            )
        columns = [name for name in ("prompt", "target", "extra_info") if name in table.column_names]
        for row in table.select(columns).to_pylist():
            try:
                demonstrations.append(tokenize(row))
            except BadRow as reason:
                reasons.append(str(reason))
    if reasons and on_bad_row == "refuse":
        raise ValueError(
            f"{len(reasons)} of {len(reasons) + len(demonstrations)} demonstrations cannot be used: "
            f"{'; '.join(reasons[:3])}. Mend the data or the limit, or leave them out with "
            "amft.demonstrations.on_bad_row=drop."
        )
    if not demonstrations:
        raise ValueError(f"no usable demonstration in {', '.join(files)} ({len(reasons)} rows left out).")
    return demonstrations, reasons


class DemonstrationStream:
    """Endless batches of demonstrations; epoch e is a permutation seeded by (seed, e), so the state is two integers."""

    def __init__(self, demonstrations: Sequence[Demonstration], batch_size: int, seed: int):
        if batch_size > len(demonstrations):
            raise ValueError(
                f"amft.demonstrations.batch_size={batch_size}, but there are only {len(demonstrations)} "
                "demonstrations; choose a batch that they can fill."
            )
        self.demonstrations = demonstrations
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.position = 0

    def next(self) -> list[Demonstration]:
        """The next batch; a remainder that does not fill a batch is left for another epoch's order."""
        if self.position + self.batch_size > len(self.demonstrations):
            self.epoch += 1
            self.position = 0
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.demonstrations))
        chosen = order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        return [self.demonstrations[index] for index in chosen]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


def collate(
    demonstrations: Sequence[Demonstration],
    weights: Sequence[float] | None = None,
    num_padding: int = 0,
    order: Sequence[int] | None = None,
    processor: Any = None,
    processor_kwargs: Mapping[str, Any] | None = None,
) -> TensorDict:
    """B demonstrations as the fields of a rollout row: jagged (B, j) tensors; `response_mask` is 1 on the response.

    `weights` (B,) become the field `advantages`, repeated over the response's tokens. `num_padding` rows without a
    learned token are appended; `order` permutes all rows. With the `processor` of a vision-language model every row has
    position ids (4, j) and its images' `multi_modal_inputs`, as rollout rows have.
    """
    filler = Demonstration("padding", demonstrations[0].prompt[:1], demonstrations[0].response[-1:])
    if processor is not None:
        filler = demonstrations[0]  # with an image, for every micro-batch runs the vision tower
    rows = [*demonstrations, *[filler] * num_padding]
    learned = [True] * len(demonstrations) + [False] * num_padding
    factors = [*(weights if weights is not None else [1.0] * len(demonstrations)), *[0.0] * num_padding]
    order = range(len(rows)) if order is None else order
    prompts = [torch.tensor(rows[index].prompt) for index in order]
    responses = [torch.tensor(rows[index].response) for index in order]
    sequences = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    masks = [
        torch.tensor(rows[index].mask or [1] * len(response)) * int(learned[index])
        for index, response in zip(order, responses, strict=True)
    ]
    fields = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": sequences,
        "position_ids": [torch.arange(len(sequence)) for sequence in sequences],
        "response_mask": masks,
        "loss_mask": [mask.clone() for mask in masks],
    }
    if weights is not None:
        fields["advantages"] = [
            torch.full((len(response),), factors[index]) for index, response in zip(order, responses, strict=True)
        ]
    tensors: dict[str, Any] = {}
    if processor is not None:
        with ThreadPoolExecutor(DRAWING_THREADS) as pool:
            pairs = zip([rows[index].pictures for index in order], sequences, strict=True)
            made = list(pool.map(lambda pair: model_inputs(processor, *pair, processor_kwargs or {}), pairs))
        tensors["multi_modal_inputs"] = [inputs for inputs, _ in made]
        del fields["position_ids"]
        tensors["position_ids"] = tu.nested_tensor_from_tensor_list([ids for _, ids in made], ragged_idx=2)
    tensors |= {name: torch.nested.as_nested_tensor(values, layout=torch.jagged) for name, values in fields.items()}
    return tu.get_tensordict(
        tensors,
        non_tensor_dict={
            "temperature": 1.0,
            "calculate_entropy": True,
            "global_batch_size": len(demonstrations),
            "num_sequences": len(demonstrations),
        },
    )
