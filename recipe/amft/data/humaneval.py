"""Problems in HumanEval's format as rows for evaluation.

    python -m recipe.amft.data.prepare humaneval --source HumanEval.jsonl.gz --out data/humaneval
    python -m recipe.amft.data.prepare humaneval --source HumanEvalPlus-OriginFmt.jsonl.gz --name humaneval_plus \\
        --out data/humaneval_plus

Records have task_id, prompt, entry_point, test and canonical_solution. Each problem's own solution must pass its tests,
and a function that does nothing must not, in the sandbox that judges the model; a problem for which that does not hold
is refused, or left out with --on-bad-row drop.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from recipe.amft.data.command_line import Parser, folder_to_write
from recipe.amft.data.general_points import write_parquet
from recipe.amft.data.records import open_source
from recipe.amft.data.rows import BadRow
from recipe.amft.tasks.code.answer import stub_of
from recipe.amft.tasks.environment import make_environment

ENV_ID = "code"
FIELDS = ("task_id", "prompt", "entry_point", "test", "canonical_solution")
HUBS = {"humaneval": "openai/openai_humaneval", "humaneval_plus": "evalplus/humanevalplus"}
DOWNLOAD = (
    "HumanEval.jsonl.gz is in the repository openai/human-eval, HumanEvalPlus-OriginFmt.jsonl.gz among the releases of "
    "evalplus/humanevalplus_release; on the hub they are openai/openai_humaneval and evalplus/humanevalplus."
)
NAMED = 3  # bad problems that an error names

Row = dict[str, Any]


def read_problems(source: str, name: str) -> Iterator[Mapping[str, str]]:
    """The problems of a file, a folder or the hub; ValueError names the record that is none."""
    (split,) = open_source(source, {"test": "test"}, HUBS.get(name, ""), DOWNLOAD).values()
    for place, values in split:
        if isinstance(values, BadRow):
            raise ValueError(f"{place}: {values}; fetch the file again.")
        missing = [field for field in FIELDS if not isinstance(values.get(field), str)]
        if missing:
            own = " This is EvalPlus's own format." if "plus_input" in values else ""
            raise ValueError(
                f"{place} has no text under {', '.join(missing)}, only {', '.join(values)}; HumanEval's format is "
                f"needed.{own} {DOWNLOAD}"
            )
        yield {field: values[field] for field in FIELDS}


def row_of(problem: Mapping[str, str], name: str, index: int, env_kwargs: Mapping[str, Any]) -> Row:
    """A row in the schema of docs/data.md, whose demonstration is the problem's own solution."""
    options = {key: problem[key] for key in ("prompt", "entry_point", "test")}
    environment = make_environment(ENV_ID, dict(env_kwargs))
    observation, _ = environment.reset(0, options | {"solution": problem["canonical_solution"]})
    return {
        "data_source": name,
        "prompt": [{"role": "user", "content": observation["text"]}],
        "target": [{"role": "assistant", "content": environment.expert_action()}],
        "ability": "code",
        "reward_model": {"style": "rule", "ground_truth": problem["canonical_solution"]},
        "extra_info": {
            "id": f"{name}/{problem['task_id']}",
            "env_id": ENV_ID,
            "env_kwargs": json.dumps(dict(env_kwargs)),
            "seed": 0,
            "options": json.dumps(options),
            "split": "test",
            "index": index,
        },
    }


def rows_of(source: str, name: str, env_kwargs: Mapping[str, Any], on_bad_row: str, workers: int) -> list[Row]:
    """The rows of a source, checked; ValueError for problems whose tests say nothing, unless they are dropped."""
    problems = list(read_problems(source, name))
    if not problems:
        raise ValueError(f"{source} has no problems.")
    with ThreadPoolExecutor(workers) as threads:
        wrong = list(threads.map(lambda problem: what_is_wrong(problem, env_kwargs), problems))
    bad = [f"{problem['task_id']}: {reason}" for problem, reason in zip(problems, wrong, strict=True) if reason]
    for line in bad:
        print(f"left out: {line}" if on_bad_row == "drop" else line, file=sys.stderr)
    if bad and on_bad_row != "drop":
        raise ValueError(
            f"{len(bad)} of {len(problems)} problems cannot be used ({'; '.join(bad[:NAMED])}); give more time or "
            "memory (--seconds, --memory-gib), or leave them out with --on-bad-row drop."
        )
    good = [problem for problem, reason in zip(problems, wrong, strict=True) if reason is None]
    return [row_of(problem, name, index, env_kwargs) for index, problem in enumerate(good)]


def what_is_wrong(problem: Mapping[str, str], env_kwargs: Mapping[str, Any]) -> str | None:
    """Why a problem cannot judge a model; None where it can."""
    options = {key: problem[key] for key in ("prompt", "entry_point", "test")}
    environment = make_environment(ENV_ID, dict(env_kwargs))
    try:
        environment.reset(0, options | {"solution": problem["canonical_solution"]})
    except ValueError as error:
        return str(error)
    *_, info = environment.step(environment.expert_action())
    if not info["success"]:
        return f"its own solution does not pass ({info['verdict']}: {info['reason']})"
    environment.reset(0, options)
    *_, info = environment.step(f"```python\n{stub_of(problem['prompt'])}\n```")
    return "a function that does nothing passes" if info["success"] else None


def _parser() -> Parser:
    parser = Parser(
        prog="python -m recipe.amft.data.prepare humaneval", description="Write problems in HumanEval's format as rows."
    )
    parser.add_argument("--source", required=True, help="file (.jsonl, .jsonl.gz, .parquet), folder, or hub")
    parser.add_argument("--out", type=folder_to_write, required=True, metavar="DIR")
    parser.add_argument("--name", default="humaneval", help="data_source of the rows (default: humaneval)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for a program and its tests together")
    parser.add_argument("--memory-gib", type=float, default=1.0, help="how far a program may grow")
    parser.add_argument("--on-bad-row", default="refuse", choices=("refuse", "drop"))
    parser.add_argument("--workers", type=int, default=2, help="programs that run at a time in the check")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see the top of this file."""
    parser = _parser()
    given = parser.parse_args(arguments)
    env_kwargs = {"seconds": given.seconds, "memory_gib": given.memory_gib}
    try:
        rows = rows_of(given.source, given.name, env_kwargs, given.on_bad_row, given.workers)
    except ValueError as error:
        parser.error(str(error))
    write_parquet(rows, given.out / "test.parquet")
    print(f"{given.out / 'test.parquet'}: {len(rows)} problems, whose own solutions pass their tests")


if __name__ == "__main__":
    main()
