"""Demonstrations are learned as the policy would have written them, and drawn in an order that resumes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from recipe.amft.data.demonstrations import (
    BadRow,
    Demonstration,
    DemonstrationStream,
    DemonstrationTokenizer,
    collate,
    load_demonstrations,
)
from recipe.amft.data.tiny_model import CHAT_TEMPLATE, make_tokenizer

QUESTION = "Cards: 9 3 5 Target: 24"
ANSWER = json.dumps({"formula": "3*5+9=24"})
EOS = "<|im_end|>"
# A template whose generation prompt opens the reasoning, as those of reasoning models do.
THINK_TEMPLATE = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
# One that adds a system turn of its own, as Qwen2.5's does.
SYSTEM_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nBe {{ manner | default('brief') }}.<|im_end|>\n"
    "{% endif %}" + CHAT_TEMPLATE
)


def make_row(target: str | None = ANSWER, identity: str = "hand-1") -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": QUESTION}],
        "target": None if target is None else [{"role": "assistant", "content": target}],
        "extra_info": {"id": identity, "split": "train", "index": 3},
    }


def make_tokenize(
    template: str = CHAT_TEMPLATE, prompt: int = 64, response: int = 64, template_kwargs: dict[str, Any] | None = None
) -> DemonstrationTokenizer:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return DemonstrationTokenizer(tokenizer, "qwen2", prompt, response, template_kwargs)


def rollout_prompt(tokenizer, messages: list[dict[str, str]], template_kwargs: dict[str, Any]) -> list[int]:
    """The prompt as `AgentLoopBase.ct_build_initial_tokens` builds it for every agent loop; that needs no engine."""
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"prompt_length": 64, "response_length": 64}}})
    data = OmegaConf.create({"apply_chat_template_kwargs": template_kwargs})

    async def build() -> list[int]:
        loop = SingleTurnAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=None,
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=None,
            data_config=DictConfigWrap(data),
            hf_model_type="qwen2",
        )
        return await loop.ct_build_initial_tokens(messages)

    return asyncio.run(build())


@pytest.mark.parametrize(
    ("template", "kwargs"),
    [(CHAT_TEMPLATE, {}), (THINK_TEMPLATE, {}), (SYSTEM_TEMPLATE, {}), (SYSTEM_TEMPLATE, {"manner": "verbose"})],
    ids=["plain", "think", "system", "template kwargs"],
)
def test_prompts_tokenise_exactly_as_rollout_prompts_do(template, kwargs):
    """A demonstration's prompt is, token by token, the prompt that the agent loop sends for the same row."""
    tokenize = make_tokenize(template, template_kwargs=kwargs)
    prompt = tokenize(make_row()).prompt
    assert prompt == rollout_prompt(tokenize.tokenizer, make_row()["prompt"], kwargs)
    text = tokenize.tokenizer.decode(prompt)
    assert f"user\n{QUESTION}{EOS}\n<|im_start|>assistant\n" in text
    assert ("verbose" in text) == bool(kwargs)


def test_the_response_is_the_target_and_one_end_of_sequence_token():
    """The policy is taught to write the target and to stop there."""
    tokenize = make_tokenize()
    response = tokenize(make_row()).response
    assert tokenize.tokenizer.decode(response) == ANSWER + EOS
    assert response.count(tokenize.tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("tail", [EOS, f"{EOS}\n", f"{EOS}\n<|im_start|>user\nmore{EOS}"])
def test_nothing_behind_the_end_of_sequence_is_learned(tail):
    """Template text in a target is never emitted by the policy: it is cut off at the first end-of-sequence token."""
    tokenize = make_tokenize()
    assert tokenize(make_row(ANSWER + tail)) == tokenize(make_row())


def test_a_prefilled_think_tag_is_not_written_twice():
    """Where the generation prompt ends with `<think>`, prompt and response join to the text of the target."""
    tokenize = make_tokenize(THINK_TEMPLATE)
    demonstration = tokenize(make_row(f"<think>\n3*5 is 15\n</think>{ANSWER}"))
    text = tokenize.tokenizer.decode([*demonstration.prompt, *demonstration.response])
    assert text.count("<think>") == 1
    assert text.endswith(f"assistant\n<think>\n3*5 is 15\n</think>{ANSWER}{EOS}")


def test_a_think_tag_that_the_prompt_does_not_have_is_learned():
    """With a plain template the model writes the tag itself, and so does its demonstration."""
    tokenize = make_tokenize()
    target = f"<think>\n3*5 is 15\n</think>{ANSWER}"
    assert tokenize.tokenizer.decode(tokenize(make_row(target)).response) == target + EOS


def test_collate_marks_exactly_the_response():
    """`response_mask` and `loss_mask` are 1 on every response token; sequences are prompt + response, unpadded."""
    rows = [Demonstration("a", [5, 6, 7], [8, 2]), Demonstration("b", [9], [10, 11, 12, 2])]
    batch = collate(rows)
    for index, row in enumerate(rows):
        assert batch["input_ids"][index].tolist() == row.prompt + row.response
        assert batch["prompts"][index].tolist() == row.prompt
        assert batch["responses"][index].tolist() == row.response
        assert batch["position_ids"][index].tolist() == list(range(len(row.prompt) + len(row.response)))
        assert batch["response_mask"][index].tolist() == [1] * len(row.response)
    assert int(batch["response_mask"].sum()) == int(batch["loss_mask"].sum()) == 6
    batch["loss_mask"].values()[:] = 0
    assert int(batch["response_mask"].sum()) == 6, "the two masks must not share memory"
    assert (batch["temperature"], batch["global_batch_size"]) == (1.0, 2)
    assert batch["input_ids"].layout == torch.jagged


# --- The stream -------------------------------------------------------------------------------------------------------


def stream(count: int = 10, batch_size: int = 3, seed: int = 0) -> DemonstrationStream:
    rows = [Demonstration(str(index), [1], [2]) for index in range(count)]
    return DemonstrationStream(rows, batch_size, seed)


def draw(source: DemonstrationStream, count: int) -> list[list[str]]:
    return [[row.row_id for row in source.next()] for _ in range(count)]


@pytest.mark.parametrize("drawn", [0, 1, 2, 3, 4, 7])
def test_a_resumed_stream_continues_where_the_first_stopped(drawn):
    """Two integers, through JSON, restore the position within an epoch and every later epoch."""
    first, resumed = stream(), stream()
    draw(first, drawn)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert draw(resumed, 9) == draw(first, 9)


def test_an_epoch_draws_without_replacement_and_epochs_differ():
    """Three batches of 3 of 10 rows are nine different rows; the next epoch and another seed have another order."""
    source = stream()
    first, second = draw(source, 3), draw(source, 3)
    assert len({row for batch in first for row in batch}) == 9
    assert (source.epoch, source.position) == (1, 9)
    assert first != second
    assert first == draw(stream(), 3)
    assert first != draw(stream(seed=1), 3)


def test_a_batch_larger_than_the_data_is_refused():
    """The message names the knob and both sizes."""
    with pytest.raises(ValueError, match=r"amft.demonstrations.batch_size=11, but there are only 10"):
        stream(batch_size=11)


# --- Bad data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, "", "  \n"])
def test_a_row_without_a_target_says_so(target):
    """A missing or blank target is a bad row, named by its id."""
    with pytest.raises(BadRow, match=r"row hand-1 has no target"):
        make_tokenize()(make_row(target))


def test_an_empty_list_of_targets_says_so():
    """An empty list is no target either; without an id a row is named by split and index."""
    row = make_row() | {"target": [], "extra_info": {"split": "train", "index": 3}}
    with pytest.raises(BadRow, match=r"row train/3 has no target"):
        make_tokenize()(row)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"prompt": 4}, r"row hand-1: its prompt has \d+ tokens, data.max_prompt_length allows 4"),
        ({"response": 3}, r"row hand-1: its target has \d+ tokens, data.max_response_length allows 3"),
    ],
)
def test_an_over_long_row_names_its_length_and_the_knob(limits, message):
    """Nothing is truncated: a cut answer would teach the policy to stop in the middle."""
    with pytest.raises(BadRow, match=message):
        make_tokenize(**limits)(make_row())


def test_a_row_that_just_fits_is_kept():
    """The limits are inclusive and the end-of-sequence token counts."""
    row = make_tokenize()(make_row())
    assert make_tokenize(prompt=len(row.prompt), response=len(row.response))(make_row()) == row


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_files_are_read_in_order(tmp_path):
    """All rows of all files, in the order of the files."""
    files = [write(tmp_path / f"{name}.parquet", [make_row(identity=f"{name}{i}") for i in range(2)]) for name in "ba"]
    rows, reasons = load_demonstrations(files, make_tokenize())
    assert [row.row_id for row in rows] == ["b0", "b1", "a0", "a1"]
    assert reasons == []


def test_bad_rows_are_refused_with_their_reasons(tmp_path):
    """refuse: the count, the first reasons and both ways out."""
    file = write(tmp_path / "rows.parquet", [make_row(), make_row("", "empty"), make_row(ANSWER * 20, "long")])
    with pytest.raises(ValueError, match="2 of 3 demonstrations cannot be used") as error:
        load_demonstrations([file], make_tokenize())
    for part in ("row empty has no target", "row long: its target has", "amft.demonstrations.on_bad_row=drop"):
        assert part in str(error.value)


def test_bad_rows_are_dropped_and_counted(tmp_path):
    """drop: the good rows, and one reason per row left out."""
    file = write(tmp_path / "rows.parquet", [make_row("", "empty"), make_row(), make_row(ANSWER * 20, "long")])
    rows, reasons = load_demonstrations([file], make_tokenize(), on_bad_row="drop")
    assert [row.row_id for row in rows] == ["hand-1"]
    assert [reason.split()[1].rstrip(":") for reason in reasons] == ["empty", "long"]


def test_nothing_left_is_an_error_even_when_dropping(tmp_path):
    """Training without a demonstration would silently be another method."""
    file = write(tmp_path / "rows.parquet", [make_row("", "empty"), make_row(" ", "blank")])
    with pytest.raises(ValueError, match=r"no usable demonstration in .*rows.parquet \(2 rows left out\)"):
        load_demonstrations([file], make_tokenize(), on_bad_row="drop")


@pytest.mark.parametrize("on_bad_row", ["refuse", "drop"])
def test_a_missing_column_is_an_error(tmp_path, on_bad_row):
    """A file that has no targets at all is a mistake, not a file of bad rows: never dropped."""
    rows = [{"prompt": make_row()["prompt"], "reward_model": "x"}]
    file = write(tmp_path / "rows.parquet", rows)
    message = r"rows.parquet has no column target; .*columns found: prompt, reward_model"
    with pytest.raises(ValueError, match=message):
        load_demonstrations([file], make_tokenize(), on_bad_row)
