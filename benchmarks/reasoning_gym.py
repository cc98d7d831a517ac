"""Every data set of reasoning-gym as a task: its own answer, through JSON and the scoring process, gets full marks.

    python -m benchmarks.reasoning_gym [--only NAME ...]

Prints what is wrong, and the slow ones. Exits with status 1 when an entry changes on its way through JSON, when an own
answer does not score 1.0, or when other data sets than WITHOUT_ANSWERS give none. The tests do this for some of them.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.reasoning_gym.entries import (
    COMPILED,
    REFUSED,
    entry_at,
    from_json,
    is_stand_in,
    known_datasets,
    to_json,
)

WITHOUT_ANSWERS = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}  # docs/add-a-task.md
SCORE_SECONDS = 60.0  # for one answer, on a busy machine
SLOW_SECONDS = 2.0


def usable_datasets() -> list[str]:
    """The names that are neither refused nor in need of a package that is not installed."""
    missing = {name for name, package in COMPILED.items() if is_stand_in(package)}
    return sorted(set(known_datasets()) - set(REFUSED) - missing)


def problem_of(name: str) -> str:
    """What is wrong with the first entry of a data set as a task; empty where nothing is."""
    entry = entry_at(name, {}, 0, 100, 0)
    stored = json.loads(json.dumps(to_json(entry)))
    if from_json(stored) != entry:
        return "its entry is another one after JSON"
    environment = make_environment("reasoning_gym", {"dataset": name, "seconds": SCORE_SECONDS})
    observation, info = environment.reset(0, {"entry": stored})
    if not observation["text"].startswith(entry["question"]):
        return "its prompt does not begin with its question"
    if info["has_answer"] == (name in WITHOUT_ANSWERS):
        return f"has_answer is {info['has_answer']}"
    if not info["has_answer"]:
        return ""
    _, reward, terminated, truncated, info = environment.step(environment.expert_action())
    right = (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    return "" if right else f"its own answer scores {reward} ({info['problem'] or 'scored'}: {info['reason']})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reasoning_gym")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    names = parser.parse_args(arguments).only or usable_datasets()
    problems, started = {}, time.monotonic()
    for name in names:
        start = time.monotonic()
        problem = problem_of(name)
        seconds = time.monotonic() - start
        if problem:
            problems[name] = problem
            print(f"{name}: {problem}", flush=True)
        elif seconds > SLOW_SECONDS:
            print(f"{name}: {seconds:.1f} s", flush=True)
    print(f"{len(names) - len(problems)} of {len(names)} data sets, {time.monotonic() - started:.0f} s")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
