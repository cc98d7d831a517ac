"""One small reader per source: a record as the source publishes it becomes a Problem.

A record that already is a row (`prompt` and `reward_model`, as in the OpenR1 and benchmark parquet files) is read the
same way for every source; the rows of a file that holds several sources are told apart by `data_source`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recipe.amft.data.choices import label_position, parse_choices
from recipe.amft.data.rows import BadRow, Problem
from recipe.amft.tasks.graders.answers import last_box

Values = Mapping[str, Any]

_CALCULATOR = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Source:
    """What is known about a source.

    Attributes:
        read: (values, style) -> Problem; None: it exists only as rows.
        columns: for each needed value the names it may have (any case).
        hub: the hub id that publishes it in this form, with `:config`.
        splits: our split -> the source's; the first is what a single file holds.
        aliases: its names in the column `data_source` of files with several sources.
        has_targets: whether every row must have a demonstration.
        merge_folders: whether its sub-folders are subjects, to be read together.
    """

    read: Callable[[Values, str], Problem] | None
    columns: tuple[tuple[str, ...], ...]
    hub: str
    splits: Mapping[str, str] = field(default_factory=lambda: {"test": "test"})
    aliases: tuple[str, ...] = ()
    has_targets: bool = False
    multiple_choice: bool = False
    merge_folders: bool = False


# ---- records that are rows -------------------------------------------------------------------------------------------


def is_row(values: Values) -> bool:
    return "prompt" in values and "reward_model" in values


def read_row(values: Values, multiple_choice: bool) -> Problem:
    """A row in the OpenR1 or benchmark schema; options at the end of a multiple-choice question are taken apart."""
    messages = _chat(values["prompt"])
    reward = values["reward_model"]
    answer = _text(reward.get("ground_truth")) if isinstance(reward, Mapping) else ""
    target = values.get("target")
    target = _chat(target)[-1]["content"] if target else ""
    system = "\n".join(message["content"] for message in messages if message["role"] == "system")
    messages = tuple(message for message in messages if message["role"] != "system")
    choices: tuple[str, ...] = ()
    if multiple_choice and messages:
        parsed = parse_choices(messages[-1]["content"])
        if parsed is None:
            raise BadRow("bad_choices", "its question does not end in lines A) ..., B) ..., one per option")
        messages = (*messages[:-1], {"role": "user", "content": parsed[0]})
        choices = parsed[1]
    return Problem(messages, answer, target, system or None, choices=choices, correct=label_position(answer))


def _chat(value: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in value):
        raise BadRow("no_question", "its prompt or target is not a list of messages {role, content}")
    return tuple({"role": str(message["role"]), "content": _text(message["content"])} for message in value)


# ---- open answers ----------------------------------------------------------------------------------------------------


def read_gsm8k(values: Values, style: str) -> Problem:
    """`answer` is the worked solution with calculator annotations <<48/2=24>>, then `#### 72`."""
    solution, mark, answer = _get(values, "answer").rpartition("####")
    if not mark:
        raise BadRow("no_answer", "its answer has no line #### with the final number")
    solution = _CALCULATOR.sub("", solution).strip()
    if "<<" in solution or ">>" in solution:
        raise BadRow("bad_annotation", "its solution has a calculator annotation << >> that is not closed")
    answer = answer.strip().replace(",", "")
    return Problem(_question(values), answer, demonstration(solution, answer, style))


def read_math(values: Values, style: str) -> Problem:
    """MATH and MATH-500: the answer is `answer` where there is one, else the solution's last \\boxed{}."""
    solution = _get(values, "solution")
    boxed = last_box(solution)
    answer = _get(values, "answer") or (boxed[2] if boxed else "")
    if not answer:
        raise BadRow("no_answer", "it has no answer, and its solution no \\boxed{} with balanced braces")
    target = demonstration(solution, answer, style) if solution else ""
    return Problem(_question(values), answer, target, own_id=_get(values, "unique_id"))


def read_open(values: Values, style: str) -> Problem:
    """Question and final answer (AIME, AMC, Minerva, OlympiadBench); several final answers are joined by commas."""
    answer = first_value(values, "answer", "final_answer")
    if isinstance(answer, list):
        answer = ", ".join(_text(part).strip().strip("$") for part in answer)
    answer = _text(answer).strip().strip("$")
    if "\n" in answer:
        raise BadRow("no_answer", "its answer has several lines, as a worked solution has, and no final answer")
    return Problem(_question(values), answer)


# ---- multiple choice -------------------------------------------------------------------------------------------------


def read_arc(values: Values, style: str) -> Problem:
    """`choices` is {text: [...], label: [...]}; `answerKey` one of the labels."""
    choices = values.get("choices")
    if not isinstance(choices, Mapping) or not all(isinstance(choices.get(key), list) for key in ("text", "label")):
        raise BadRow("bad_choices", "its choices are not {text: [...], label: [...]}")
    labels = [_text(label) for label in choices["label"]]
    key = _get(values, "answerKey")
    correct = labels.index(key) if key in labels else -1
    texts = tuple(_text(text) for text in choices["text"])
    return Problem(_question(values), own_id=_get(values, "id"), choices=texts, correct=correct)


def read_gpqa(values: Values, style: str) -> Problem:
    """The correct answer and three incorrect ones, in columns of their own: they have no order until one is drawn."""
    names = ("Correct Answer", *(f"Incorrect Answer {number}" for number in (1, 2, 3)))
    texts = tuple(_get(values, name) for name in names)
    return Problem(_question(values), own_id=_get(values, "Record ID"), choices=texts, correct=0, has_order=False)


def read_mmlu_pro(values: Values, style: str) -> Problem:
    """Up to ten `options`; `answer` is a letter. `N/A` fills up rows with fewer."""
    options = values.get("options")
    if not isinstance(options, list):
        raise BadRow("bad_choices", "its options are not a list")
    texts = tuple(text for option in options if (text := _text(option).strip()) != "N/A")
    correct = label_position(_get(values, "answer"))
    return Problem(_question(values), own_id=_get(values, "question_id"), choices=texts, correct=correct)


# ---- parts -----------------------------------------------------------------------------------------------------------


def demonstration(solution: str, answer: str, style: str) -> str:
    """A worked solution as the assistant's text, with the answer boxed at its end."""
    final = f"The answer is \\boxed{{{answer}}}."
    if style == "think":
        return f"<think>\n{solution}\n</think>\n\n{final}"
    return f"{solution}\n{final}"


def _question(values: Values) -> tuple[dict[str, str], ...]:
    question = first_value(values, *QUESTION)
    if isinstance(question, list | Mapping):
        raise BadRow("no_question", "its question is not a text; a row with a chat needs prompt and reward_model")
    return ({"role": "user", "content": _text(question).strip()},)


def first_value(values: Values, *names: str) -> Any:
    """The first of `names` that has a value; case does not count."""
    by_name = {str(name).casefold(): value for name, value in values.items()}
    found = (by_name.get(name.casefold()) for name in names)
    return next((value for value in found if value is not None), None)


def _get(values: Values, *names: str) -> str:
    return _text(first_value(values, *names)).strip()


def _text(value: Any) -> str:
    """Text as it is; a whole number that a table stored as a float without its ".0"; None and NaN as ""."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


QUESTION = ("problem", "question", "prompt")
_OPEN = (QUESTION, ("answer", "final_answer"))
_TRAINING = {"train": "train", "test": "test", "validation": "validation"}

SOURCES = {
    "openr1": Source(
        None, (("prompt",), ("target",), ("reward_model",)), "Elliott/Openr1-Math-46k-8192", _TRAINING, has_targets=True
    ),
    "gsm8k": Source(read_gsm8k, (QUESTION, ("answer",)), "openai/gsm8k:main", _TRAINING, has_targets=True),
    "math": Source(
        read_math,
        (QUESTION, ("solution",)),
        "nlile/hendrycks-MATH-benchmark",
        _TRAINING,
        has_targets=True,
        merge_folders=True,
    ),
    "aime24": Source(read_open, _OPEN, "HuggingFaceH4/aime_2024", {"test": "train"}, ("aime", "aime24")),
    "aime25": Source(read_open, _OPEN, "math-ai/aime25", aliases=("aime25",)),
    "amc": Source(read_open, _OPEN, "AI-MO/aimo-validation-amc", {"test": "train"}, ("amc",)),
    "math500": Source(
        read_math, (QUESTION, ("answer", "solution")), "HuggingFaceH4/MATH-500", aliases=("math", "math500")
    ),
    "minerva": Source(read_open, _OPEN, "math-ai/minervamath", aliases=("minerva",)),
    "olympiad_bench": Source(
        read_open, _OPEN, "Hothan/OlympiadBench:OE_TO_maths_en_COMP", {"test": "train"}, ("olympiad_bench",)
    ),
    "arc_c": Source(
        read_arc,
        (QUESTION, ("choices",), ("answerKey",)),
        "allenai/ai2_arc:ARC-Challenge",
        aliases=("arc_c",),
        multiple_choice=True,
    ),
    "gpqa": Source(
        read_gpqa,
        (QUESTION, ("Correct Answer",), ("Incorrect Answer 1",)),
        "Idavidrein/gpqa:gpqa_diamond",
        {"test": "train"},
        ("gpqa", "gpqa_diamond"),
        multiple_choice=True,
    ),
    "mmlu_pro": Source(
        read_mmlu_pro,
        (QUESTION, ("options",), ("answer",)),
        "TIGER-Lab/MMLU-Pro",
        aliases=("mmlu_pro",),
        multiple_choice=True,
    ),
    "benchmarks": Source(None, (("data_source",), ("prompt",), ("reward_model",)), ""),
}
BENCHMARKS = {alias: name for name, source in SOURCES.items() for alias in source.aliases}


def how_to_get(name: str) -> str:
    """A sentence for errors: where the data set is published, and how to pass it on."""
    hub = SOURCES[name].hub
    if not hub:
        return "Give a parquet file with the rows of several benchmarks (columns data_source, prompt, reward_model)."
    repository = hub.partition(":")[0]
    return (
        f"On a machine that reaches the hub: hf download --repo-type dataset {repository} --local-dir FOLDER; then "
        "give that folder, or one of its files, as the source."
    )
