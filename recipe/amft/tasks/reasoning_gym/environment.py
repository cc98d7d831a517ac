"""Any data set of reasoning-gym as a task of one turn: its question, the model's answer, its own score."""

from dataclasses import dataclass, field
from typing import Any

from recipe.amft.tasks.environment import Observation
from recipe.amft.tasks.reasoning_gym.entries import Entry, entry_at, from_json, load_dataset, to_json
from recipe.amft.tasks.reasoning_gym.scorer import shared_scorer

SIZE = 10_000  # entries that reset() without options draws from
ROUNDING = 1e-9  # some scorers add up shares
RESET_OPTIONS = ("entry", "index", "size", "seed")
CHOICES = {"answer_format": ("tags", "plain"), "reward": ("score", "success")}
OPEN, CLOSE = "<answer>", "</answer>"
INSTRUCTION = f"Write your final answer, and nothing else, between {OPEN} and {CLOSE}."


@dataclass(kw_only=True)
class ReasoningGym:
    """One question, one answer. An answer that is too long, or whose scoring fails or takes too long, scores 0."""

    blocking = True  # scoring waits for another process: the agent loop steps it in a thread

    dataset: str  # a name of reasoning-gym, such as basic_arithmetic
    config: dict[str, Any] = field(default_factory=dict)  # of that data set, without seed and size
    answer_format: str = "tags"  # the answer stands in the last <answer>...</answer>; or `plain`: it is the whole text
    reward: str = "score"  # the data set's score in [0, 1]; or `success`: 1.0 from `threshold` on, else 0.0
    threshold: float = 1.0  # the score that counts as success
    seconds: float = 5.0  # limit for scoring one answer

    _entry: Entry | None = field(default=None, init=False)
    _entry_json: Any = field(default=None, init=False)
    _ended: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be a score above 0, up to 1; got {self.threshold!r}")
        if not self.seconds > 0:
            raise ValueError(f"seconds must be above 0; got {self.seconds!r}")
        load_dataset(self.dataset, self.config, seed=0, size=1)

    def reset(self, seed: int, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Poses the entry that `options` name: `entry` itself (entries.to_json), or `index` of the data set with
        `size` entries and `seed`; without options, one of SIZE entries by `seed`.
        """
        options = dict(options or {})
        unknown = set(options) - set(RESET_OPTIONS)
        if unknown or ("entry" in options and len(options) > 1):
            raise ValueError(f"reset options {sorted(options)}: give entry alone, or index, size and seed")
        index = None
        if "entry" in options:
            self._entry_json = options["entry"]
            self._entry = _checked(from_json(self._entry_json))
        else:
            size = options.get("size", SIZE)
            index = options.get("index", seed % size)
            if not 0 <= index < size:
                raise ValueError(f"options['index'] must be 0 to size - 1 = {size - 1}; got {index!r}")
            self._entry = entry_at(self.dataset, self.config, options.get("seed", 0), size, index)
            self._entry_json = to_json(self._entry)
        self._ended = False
        info = {"has_answer": self._entry["answer"] is not None, "index": index}
        return _observation(self._prompt(self._entry["question"])), info

    def step(self, text: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Scores the answer in `text`.

        info: success, score, answer, problem and its reason, and num_grader_timeouts and num_grader_crashes (0 or 1).
        """
        if self._ended:
            raise RuntimeError("step() without an open episode: call reset() first")
        self._ended = True
        answer = self._answer(text)
        task = {"dataset": self.dataset, "config": self.config, "entry": self._entry_json}
        score = shared_scorer().score(task, answer, self.seconds)
        success = score.value >= self.threshold - ROUNDING
        reward = score.value if self.reward == "score" else float(success)
        info = {
            "success": success,
            "score": score.value,
            "answer": answer,
            "problem": score.problem,
            "reason": score.reason,
            "num_grader_timeouts": int(score.problem == "timeout"),
            "num_grader_crashes": int(score.problem == "crashed"),
        }
        return _observation(""), reward, success, not success, info

    def expert_action(self) -> str:
        """The data set's own answer in the answer format; ValueError for a data set that gives none."""
        if self._entry is None:
            raise RuntimeError("expert_action() without an entry: call reset() first")
        answer = self._entry["answer"]
        if answer is None:
            raise ValueError(
                f"dataset {self.dataset!r} scores answers but gives none, so that it has no demonstrations; take those "
                "of another data set (amft.demonstrations.files)"
            )
        return f"{OPEN}{answer}{CLOSE}" if self.answer_format == "tags" else answer

    def _prompt(self, question: str) -> str:
        return f"{question}\n\n{INSTRUCTION}" if self.answer_format == "tags" else question

    def _answer(self, text: str) -> str | None:
        if self.answer_format == "plain":
            return text.strip()
        end = text.rfind(CLOSE)
        start = text.rfind(OPEN, 0, max(end, 0))
        return text[start + len(OPEN) : end].strip() if start >= 0 else None


def _checked(entry: Any) -> Entry:
    is_entry = isinstance(entry, dict) and isinstance(entry.get("question"), str) and "answer" in entry
    if not is_entry or not isinstance(entry.get("metadata"), dict):
        raise ValueError(f"options['entry'] must hold question, answer and metadata; got {str(entry)[:200]}")
    return entry


def _observation(text: str) -> Observation:
    return {"text": text, "images": [], "reset_context": False}
