r"""Grade every benchmark answer against itself and against answers of other rows; count exceptions; measure the speed.

    python -m benchmarks.graders [--data FOLDER] [--workers 2]

FOLDER holds the parquet files with the benchmark rows (default: `../shared/data/benchmarks` beside the repository, or
`$AMFT_SHARED_DATA/benchmarks`). Exits with status 1 when a grader rejects more than 1% of the right answers, accepts a
wrong one outside KNOWN_EQUAL, or needs more than 60 s for 1,000 answers.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from recipe.amft.tasks.graders import GraderPool
from recipe.amft.tasks.graders.normalise import normalise, same_when_normalised

REPOSITORY = Path(__file__).resolve().parents[1]
MULTIPLE_CHOICE = ("arc_c",)
SECONDS_PER_THOUSAND = 60.0
SHARE_OF_EXCEPTIONS = 0.01
WRONG_ANSWERS_PER_ROW = 2
DERIVATION = "Let $x$ be the number of cases; then $\\frac{x}{2} + 3 = 23$ gives\n\\[ x = 2 (23 - 3) = 40. \\]\n" * 20
KNOWN_EQUAL = [{"6m", "6"}]  # normalised: Math-Verify takes the m for metres


@dataclass(frozen=True)
class Row:
    """One distinct benchmark question."""

    source: str
    ground_truth: str

    @property
    def is_choice(self) -> bool:
        return self.source in MULTIPLE_CHOICE

    @property
    def graders(self) -> tuple[str, ...]:
        return ("math_verify", "oat", "letter") if self.is_choice else ("math_verify", "oat")

    def responses(self, grader: str) -> dict[str, str]:
        r"""Right answers: in a box; in a box in a sentence; and, for graders that read one, in a sentence alone."""
        plain = self.ground_truth.strip("$. ") if self.is_single_formula else self.ground_truth
        forms = {
            "boxed": rf"\boxed{{{self.ground_truth}}}",
            "boxed in a sentence": rf"{DERIVATION}So the answer is $\boxed{{{plain}}}$, as 12 of 40 fail.",
        }
        if grader == "math_verify" and not self.is_choice:
            forms["sentence"] = f"{DERIVATION}Of 40 cases 12 fail.\nThe final answer is ${plain}$."
        if grader == "letter":
            forms["sentence"] = f"Options A and B contradict the text. The answer is {plain}."
        return forms

    @property
    def is_single_formula(self) -> bool:
        r"""`$...$` as a whole, not several formulas or words between them."""
        return self.ground_truth.count("$") == 2 and not self.ground_truth.count(r"\$")


def data_folder() -> Path:
    """Where the benchmark rows are; the folder may be absent."""
    shared = os.environ.get("AMFT_SHARED_DATA")
    return (Path(shared) if shared else REPOSITORY.parent / "shared" / "data") / "benchmarks"


def load_rows(folder: Path) -> list[Row]:
    """The distinct rows (source, prompt, ground truth): the files repeat AMC and AIME 32 times for avg@32."""
    seen: dict[tuple[str, str, str], Row] = {}
    for path in sorted(folder.glob("*.parquet")):
        frame = pd.read_parquet(path)
        for source, prompt, reward_model in zip(frame.data_source, frame.prompt, frame.reward_model, strict=True):
            key = (source, prompt[-1]["content"], reward_model["ground_truth"])
            seen.setdefault(key, Row(source, reward_model["ground_truth"]))
    if not seen:
        raise FileNotFoundError(f"no parquet files in {folder}; give --data, or set AMFT_SHARED_DATA")
    return list(seen.values())


def wrong_answers(row: Row, rows: Sequence[Row], rng: random.Random) -> list[str]:
    """Answers of other rows of the same source whose normalised value differs."""
    others = [other.ground_truth for other in rows if other.source == row.source]
    value = normalise(row.ground_truth)
    wrong: list[str] = []
    for other in rng.sample(others, min(len(others), 20)):
        if not same_when_normalised(normalise(other), value) and {normalise(other), value} not in KNOWN_EQUAL:
            wrong.append(other)
    return wrong[:WRONG_ANSWERS_PER_ROW]


def right_cases(rows: Sequence[Row], grader: str) -> list[tuple[Row, str, str]]:
    """(row, form, response) for every form of every right answer."""
    return [
        (row, form, response)
        for row in rows
        if grader in row.graders
        for form, response in row.responses(grader).items()
    ]


def wrong_cases(rows: Sequence[Row], grader: str, seed: int = 0) -> list[tuple[Row, str, str]]:
    """(row, wrong answer, response)."""
    rng = random.Random(seed)
    return [
        (row, wrong, rf"The answer is $\boxed{{{wrong}}}$.")
        for row in rows
        if grader in row.graders
        for wrong in wrong_answers(row, rows, rng)
    ]


def grade_cases(pool: GraderPool, cases: Sequence[tuple[Row, str, str]], grader: str) -> list[bool]:
    """Whether each case's response was found right."""
    verdicts = pool.grade_many([(response, row.ground_truth) for row, _, response in cases], grader)
    return [verdict.correct for verdict in verdicts]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graders")
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    rows = load_rows(options.data)
    print(f"{len(rows)} distinct rows, {options.workers} workers")
    failed = False
    with GraderPool(options.workers) as pool:
        pool.grade_many([(r"\boxed{1}", "1")] * options.workers)  # the workers' start is not timed
        for grader in ("math_verify", "oat", "letter"):
            failed |= _report_right(pool, rows, grader)
            failed |= _report_wrong(pool, rows, grader)
        print(f"counters: {pool.counters}")
    return int(failed)


def _report_right(pool: GraderPool, rows: Sequence[Row], grader: str) -> bool:
    cases = right_cases(rows, grader)
    start = time.monotonic()
    found = grade_cases(pool, cases, grader)
    seconds = 1000 * (time.monotonic() - start) / len(cases)
    failed = seconds > SECONDS_PER_THOUSAND
    print(f"\n{grader}: {len(cases)} right answers, {seconds:.1f} s per 1,000 answers")
    for form in dict.fromkeys(form for _, form, _ in cases):
        total = sum(other == form for _, other, _ in cases)
        rejected = [row for (row, other, _), right in zip(cases, found, strict=True) if other == form and not right]
        failed |= len(rejected) > SHARE_OF_EXCEPTIONS * total
        print(f"  {form}: {total - len(rejected)} of {total} right")
        for row in rejected:
            print(f"    rejected: {row.source}: {row.ground_truth}")
    return failed


def _report_wrong(pool: GraderPool, rows: Sequence[Row], grader: str) -> bool:
    cases = wrong_cases(rows, grader)
    start = time.monotonic()
    accepted = [case for case, right in zip(cases, grade_cases(pool, cases, grader), strict=True) if right]
    seconds = 1000 * (time.monotonic() - start) / len(cases)
    print(f"  wrong answers: {len(cases) - len(accepted)} of {len(cases)} wrong, {seconds:.1f} s per 1,000 answers")
    for row, wrong, _ in accepted:
        print(f"    accepted: {row.source}: {wrong!r} for {row.ground_truth!r}")
    return bool(accepted) or seconds > SECONDS_PER_THOUSAND


if __name__ == "__main__":
    sys.exit(main())
