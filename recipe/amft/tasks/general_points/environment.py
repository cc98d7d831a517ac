"""General Points in text (GP-L) or with an image of the cards (GP-VL): a hand, a target, and a verifier that says why
an answer failed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from recipe.amft.tasks.environment import Observation
from recipe.amft.tasks.general_points import prompts, solver
from recipe.amft.tasks.general_points.cards import (
    FIRST_FACE_RANK,
    MAX_RANK,
    RANK_NAMES,
    FaceRule,
    card_value,
    draw_ranks,
)
from recipe.amft.tasks.general_points.prompts import Modality, PromptStyle
from recipe.amft.tasks.general_points.verifier import REWARDS, Mode, Verdict, misread, recognized, verify
from recipe.amft.tasks.rendering.cards import COLOURS, IMAGE_SIZE, HandPicture

MAX_DRAWS = 10_000
RESET_OPTIONS = ("cards", "target", "require_face")
# (name, least, most), None for no limit
INTEGERS = (("num_cards", 2, 5), ("ranks", 1, MAX_RANK), ("verify_iter", 1, None), ("image_size", 64, 4096))
CHOICES = {
    "face_rule": get_args(FaceRule),
    "mode": get_args(Mode),
    "reward": ("success", "shaped"),
    "prompt_style": get_args(PromptStyle),
    "modality": get_args(Modality),
    "colours": tuple(COLOURS),
}


@dataclass(kw_only=True)
class GeneralPoints:
    """Ends at the first correct answer, else is truncated after `verify_iter` attempts.

    In mode `upstream` the answer after those is not read: reward -1, truncated. In mode `paper` the last attempt keeps
    its own verdict, which is never milder than that -1.
    """

    num_cards: int = 4  # 2 to 5
    target: int = 24
    ranks: int = 13  # highest rank in the deck; 11 to 13 are J, Q, K
    face_rule: FaceRule = "ten"  # J, Q, K count as 10 (in distribution) or as 11, 12, 13 (`value`: rule shift)
    require_face: bool = False  # at least one J, Q or K in each drawn hand (rule shift)
    verify_iter: int = 5  # attempts
    mode: Mode = "paper"
    reward: str = "success"  # 1.0 for a correct answer, else 0.0; or `shaped`: the verdict's reward
    prompt_style: PromptStyle = "paper"
    modality: Modality = "text"  # or `image`: the cards are shown in a picture, and an answer has to name them
    colours: str = "black"  # of the suits in the picture (in distribution), `red` (visual shift) or `mixed`
    image_size: int = IMAGE_SIZE  # pixels per side

    _hand: tuple[int, ...] = field(default=(), init=False)  # ranks as shown
    _hand_target: int = field(default=0, init=False)
    _solution: str = field(default="", init=False)
    _suits: tuple[str, ...] = field(default=(), init=False)
    _attempts: int = field(default=0, init=False)
    _recognized: int = field(default=0, init=False)  # attempts that named the cards
    _ended: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        for name, low, high in INTEGERS:
            value = getattr(self, name)
            if not _is_integer(value) or value < low or (high is not None and value > high):
                allowed = f"{low} or more" if high is None else f"{low} to {high}"
                raise ValueError(f"{name} must be an integer, {allowed}; got {value!r}")
        if not _is_integer(self.target):
            raise ValueError(f"target must be an integer; got {self.target!r}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        self._check_faces(self.require_face)

    def reset(self, seed: int, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Draws a solvable hand from `seed`, or takes options["cards"] (ranks 1..13) as it stands.

        Other options: "target" and "require_face", in place of the parameters. For one explicit hand, consecutive seeds
        give distinct demonstrations until all its solutions have been shown.
        """
        options = options or {}
        unknown = set(options) - set(RESET_OPTIONS)
        if unknown:
            raise ValueError(f"unknown reset options {sorted(unknown)}; allowed: {', '.join(RESET_OPTIONS)}")
        target = options.get("target", self.target)
        if not _is_integer(target):
            raise ValueError(f"options['target'] must be an integer; got {target!r}")
        if "cards" in options:
            hand = self._checked_hand(options["cards"], target)
        else:
            hand = self._draw_hand(random.Random(seed), target, options.get("require_face", self.require_face))
        solutions = solver.formulas(self._values(hand), target)
        self._hand, self._hand_target = hand, target
        self._solution = solutions[seed % len(solutions)]
        self._attempts, self._recognized, self._ended = 0, 0, False
        suits = random.Random(f"suits/{seed}")
        self._suits = tuple(suits.choice(COLOURS[self.colours]) for _ in hand)
        text = prompts.prompt(hand, target, self.face_rule, self.prompt_style, self.modality)
        observation = _observation(text)
        if self.modality == "image":
            observation["images"] = [HandPicture(tuple(zip(hand, self._suits, strict=True)), self.image_size)]
        return observation, {"cards": list(hand), "target": target, "num_solutions": len(solutions)}

    def step(self, text: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Judges one answer; info: verdict, reason, success, attempts, formula, right_side_differs.

        With modality `image` also recognition_accuracy: the share of the attempts so far that named the shown cards.
        """
        if self._ended:
            raise RuntimeError("step() without an open episode: call reset() first")
        self._attempts += 1
        if self._attempts > self.verify_iter:  # mode `upstream` only
            verdict = Verdict("truncated", REWARDS["truncated"], "truncated")
        else:
            verdict = self._judge(text)
        last_attempt = self.verify_iter if self.mode == "paper" else self.verify_iter + 1
        terminated = verdict.success
        truncated = not terminated and self._attempts == last_attempt
        self._ended = terminated or truncated
        reward = verdict.reward if self.reward == "shaped" else float(verdict.success)
        info = {
            "verdict": verdict.name,
            "reason": verdict.reason,
            "success": verdict.success,
            "attempts": self._attempts,
            "formula": verdict.formula,
            "right_side_differs": verdict.right_side_differs,
        }
        if self.modality == "image":
            info["recognition_accuracy"] = self._recognized / min(self._attempts, self.verify_iter)
        message = "" if self._ended else prompts.feedback(verdict, self.prompt_style)
        return _observation(message), reward, terminated, truncated, info

    def expert_action(self) -> str:
        """A solution of the hand in the answer format; which one of the distinct ones, the seed says."""
        return self.answer(self._solution)

    def answer(self, formula: str) -> str:
        """`formula` in the answer format, with the hand's cards and target."""
        if not self._hand:
            raise RuntimeError("expert_action() without a hand: call reset() first")
        rule, style = self.face_rule, self.prompt_style
        return prompts.demonstration(self._hand, self._hand_target, rule, style, formula, self.modality, self.mode)

    def _judge(self, text: str) -> Verdict:
        if self.modality == "image":
            if not recognized(text, [RANK_NAMES[rank] for rank in self._hand], self.mode):
                return misread()
            self._recognized += 1
        return verify(text, self._values(self._hand), self._hand_target, self.mode)

    def _values(self, hand: Sequence[int]) -> list[int]:
        return [card_value(rank, self.face_rule) for rank in hand]

    def _check_faces(self, require_face: bool) -> None:
        if not isinstance(require_face, bool):
            raise ValueError(f"require_face must be true or false; got {require_face!r}")
        if require_face and self.ranks < FIRST_FACE_RANK:
            raise ValueError(f"require_face needs ranks of {FIRST_FACE_RANK} to {MAX_RANK}; got ranks={self.ranks}")

    def _draw_hand(self, rng: random.Random, target: int, require_face: bool) -> tuple[int, ...]:
        self._check_faces(require_face)
        for _ in range(MAX_DRAWS):
            hand = draw_ranks(rng, self.num_cards, self.ranks, require_face)
            if solver.solvable(self._values(hand), target):
                return tuple(hand)
        raise ValueError(
            f"no solvable hand in {MAX_DRAWS} draws for num_cards={self.num_cards}, ranks={self.ranks}, "
            f"target={target}; choose another target, more cards or more ranks"
        )

    def _checked_hand(self, cards: Sequence[int], target: int) -> tuple[int, ...]:
        hand = tuple(cards)
        if len(hand) != self.num_cards or not all(_is_integer(rank) and 1 <= rank <= self.ranks for rank in hand):
            raise ValueError(f"options['cards'] must be {self.num_cards} ranks of 1 to {self.ranks}; got {cards!r}")
        if not solver.solvable(self._values(hand), target):
            raise ValueError(f"options['cards']: {cards!r} cannot make {target}; choose a solvable hand")
        return hand


def _observation(text: str) -> Observation:
    return {"text": text, "images": [], "reset_context": False}


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
