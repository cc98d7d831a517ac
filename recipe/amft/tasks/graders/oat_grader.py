r"""The OAT-style grader: the last \boxed{}, equal after string normalisation, else by sympy; choice match for letters.

Like the grader that R1-style evaluations report beside Math-Verify, it counts the final boxed answer only. Call it in a
worker process only (pool.py): the symbolic comparison has no time limit of its own.
"""

from recipe.amft.tasks.graders import letters
from recipe.amft.tasks.graders.answers import beyond_caps, last_box
from recipe.amft.tasks.graders.math_verify_grader import equal_expressions
from recipe.amft.tasks.graders.normalise import normalise, same_when_normalised
from recipe.amft.tasks.graders.verdicts import Verdict, judged, not_judged


def grade_oat(answer: str, ground_truth: str, choices: str = "") -> Verdict:
    """Right if the last box holds the ground truth; outside a box only a letter A to J counts."""
    if choices or letters.ground_truth_letter(ground_truth):
        return letters.grade_letter(answer, ground_truth, choices)
    box = last_box(answer)
    if box is None or not box[2]:
        return not_judged("no_answer")
    content = box[2]
    if reason := beyond_caps(content):
        return not_judged(reason, content)
    correct = same_when_normalised(normalise(content), normalise(ground_truth))
    return judged(correct or equal_expressions(content, ground_truth), content)
