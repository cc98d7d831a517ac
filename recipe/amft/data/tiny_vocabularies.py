"""What the tiny model's tokenizer has whole beside bytes: the words of a task's texts, so that they fit and train fast.

A word is one token wherever it stands, in a question or in an answer, and names of places are a few syllables.
"""

from collections.abc import Callable

from tokenizers import AddedToken

from recipe.amft.tasks.general_points.prompts import feedback as hand_feedback
from recipe.amft.tasks.general_points.verifier import Verdict as HandVerdict
from recipe.amft.tasks.virl.instructions import RELATIONS, TURN_LABELS
from recipe.amft.tasks.virl.names import KINDS, syllables
from recipe.amft.tasks.virl.prompts import feedback as walk_feedback
from recipe.amft.tasks.virl.routes import COMPASS
from recipe.amft.tasks.virl.verifier import verdict as walk_verdict

LARGEST_NUMBER = 100


def general_points() -> list[AddedToken]:
    """The turns of the compact game and of the arithmetic chats, and numbers from 10 to 100."""
    feedbacks = [
        hand_feedback(HandVerdict(name, 0.0, ""), "compact")
        for name in ("wrong_value", "wrong_numbers", "illegal", "partial", "truncated")
    ]
    users = ["Cards: ", "Numbers: ", "Make ", "Another.", *feedbacks]
    phrases = ["assistant\n", *(f"user\n{text}" for text in users), " Target: ", " Make ", '{"formula": "', '"}']
    numbers = [AddedToken(str(number), single_word=True, normalized=False) for number in range(10, LARGEST_NUMBER + 1)]
    return [*_whole(phrases), *numbers]


def virl() -> list[AddedToken]:
    """The compact walks: instructions, observations, actions, and the syllables and kinds of shops of all names."""
    feedbacks = [walk_feedback(walk_verdict(name, ""), "compact") for name in ("wrong_action", "misread")]
    turns = [f"{start} {label} to " for label in TURN_LABELS for start in ("user\nTurn", ", turn")]
    places = [", go to ", "end ", "none", "crossing", *(f" {relation}" for relation in RELATIONS)]
    actions = ['{"action": "', "turn_direction(", "forward", "stop", "()", '"}', *COMPASS, *TURN_LABELS[2:], " >"]
    shops = [f" {kind}" for kinds in KINDS.values() for kind in kinds]
    chat = ["assistant\n", *(f"user\n{text}" for text in feedbacks)]
    return _whole(dict.fromkeys([*chat, *turns, *places, *actions, *shops, *syllables()]))


VOCABULARIES: dict[str, Callable[[], list[AddedToken]]] = {"general_points": general_points, "virl": virl}


def _whole(phrases) -> list[AddedToken]:
    return [AddedToken(phrase, normalized=False) for phrase in phrases]
