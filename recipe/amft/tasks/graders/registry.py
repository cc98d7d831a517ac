"""The graders by name, and the one function that grades a response with one of them."""

from collections.abc import Callable

from recipe.amft.tasks.graders.answers import answer_part, beyond_caps, last_box
from recipe.amft.tasks.graders.letters import grade_letter
from recipe.amft.tasks.graders.math_verify_grader import grade_math_verify
from recipe.amft.tasks.graders.normalise import normalise, same_when_normalised
from recipe.amft.tasks.graders.oat_grader import grade_oat
from recipe.amft.tasks.graders.verdicts import Verdict, judged, not_judged

# (answer part, ground truth, choices or "") -> Verdict
GRADERS: dict[str, Callable[[str, str, str], Verdict]] = {
    "math_verify": grade_math_verify,
    "oat": grade_oat,
    "letter": grade_letter,
}
MAX_GROUND_TRUTH_CHARACTERS = 2000


def grade(
    response: str, ground_truth: str, grader: str = "math_verify", require_think: bool = False, choices: str = ""
) -> Verdict:
    """Grades one response; pure, and without a time limit: on a model's text call it in a worker (GraderPool) only.

    Args:
        response: the model's whole text.
        ground_truth: the expected answer, LaTeX or plain, with or without `$`.
        grader: a key of GRADERS.
        require_think: only what follows `</think>` counts, and the tag must be there.
        choices: the letters or digits of a multiple choice ("ABCD"); makes every grader a choice match.
    """
    check_task(ground_truth, grader, choices)
    answer, reason = answer_part(response, require_think)
    return not_judged(reason) if reason else grade_answer(answer, ground_truth, grader, choices)


def grade_answer(answer: str, ground_truth: str, grader: str, choices: str = "") -> Verdict:
    """`grade` for an answer part: the thinking is gone and the length within the cap."""
    if grader != "letter" and not choices and beyond_caps(ground_truth):  # too much to parse: compared as a string
        box = last_box(answer)
        content = box[2] if box else answer.strip()
        return judged(same_when_normalised(normalise(content), normalise(ground_truth)), content)
    return GRADERS[grader](answer, ground_truth, choices)


def check_task(ground_truth: str, grader: str, choices: str = "") -> None:
    """Raises ValueError for a task that no answer can solve: unknown grader, empty or unfit ground truth."""
    if grader not in GRADERS:
        raise ValueError(f"grader must be one of {', '.join(GRADERS)}; got {grader!r}")
    if not isinstance(ground_truth, str) or not 0 < len(ground_truth.strip()) <= MAX_GROUND_TRUTH_CHARACTERS:
        raise ValueError(
            f"ground_truth must be a string of 1 to {MAX_GROUND_TRUTH_CHARACTERS} characters; got {ground_truth!r:.80}"
        )
    if not isinstance(choices, str) or not all(choice.isascii() and choice.isalnum() for choice in choices):
        raise ValueError(f"choices must be a string of letters or digits such as 'ABCD'; got {choices!r}")
    if grader == "letter" or choices:
        grade_letter("", ground_truth, choices)  # raises if the ground truth is not one of the choices
