"""A question with one right answer: the model answers once and a grader says whether it is right."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipe.amft.tasks.environment import Observation
from recipe.amft.tasks.graders import Verdict, check_task, shared_pool
from recipe.amft.tasks.graders.pool import DEFAULT_SECONDS
from recipe.amft.tasks.graders.verdicts import REFUSED

RESET_OPTIONS = ("prompt", "ground_truth", "target", "choices")


@dataclass(kw_only=True)
class MathProblem:
    """Ends after one answer: reward 1.0 if it is right, else 0.0.

    All environments of a process share its GraderPool, which starts at the first answer. In asyncio use `step_async`:
    `step` blocks the event loop for as long as the grader works.
    """

    grader: str = "math_verify"  # math_verify | oat | letter
    require_think: bool = False  # only what follows </think> counts, and the tag must be there
    seconds: float = DEFAULT_SECONDS  # limit for grading one answer; over it, the answer is wrong
    choices: str = ""  # multiple choice: its letters ("ABCD"); options["choices"] overrides it

    _messages: list[dict[str, str]] = field(default_factory=list, init=False)
    _ground_truth: str = field(default="", init=False)
    _target: str = field(default="", init=False)
    _choices: str = field(default="", init=False)
    _open: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.require_think, bool):
            raise ValueError(f"require_think must be true or false; got {self.require_think!r}")
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, int | float) or not self.seconds > 0:
            raise ValueError(f"seconds must be a number above 0; got {self.seconds!r}")
        if self.grader != "letter":
            check_task("0", self.grader)
        elif not isinstance(self.choices, str):
            raise ValueError(f"choices must be a string such as 'ABCD'; got {self.choices!r}")

    def reset(self, seed: int, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Poses the question of `options`; `seed` draws nothing.

        Options: "prompt" (a list of {role, content}, or a text for one user message), "ground_truth", and optionally
        "target" (the demonstration) and "choices".
        """
        options = options or {}
        unknown = sorted(set(options) - set(RESET_OPTIONS))
        missing = sorted({"prompt", "ground_truth"} - set(options))
        if unknown or missing:
            raise ValueError(
                f"reset options: missing {missing}, unknown {unknown}; allowed: {', '.join(RESET_OPTIONS)}, "
                "of which prompt and ground_truth are required"
            )
        choices = options.get("choices") or self.choices
        check_task(options["ground_truth"], self.grader, choices)
        self._messages = _messages(options["prompt"])
        self._ground_truth, self._choices = options["ground_truth"], choices
        self._target = options.get("target") or ""
        self._open = True
        text = self._messages[-1]["content"]
        messages = [dict(message) for message in self._messages]
        observation: Observation = {"text": text, "images": [], "reset_context": False, "messages": messages}
        return observation, {"ground_truth": self._ground_truth}

    def step(self, text: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Grades the answer.

        info: success, verdict (one of REASONS), extracted, and num_grader_timeouts, num_grader_crashes and
        num_refused_answers (not parsed because beyond the caps), each 0 or 1.
        """
        self._close_episode()
        return _outcome(shared_pool().grade(text, self._ground_truth, self.grader, **self._grading()))

    async def step_async(self, text: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """`step`, while other coroutines go on."""
        self._close_episode()
        return _outcome(await shared_pool().grade_async(text, self._ground_truth, self.grader, **self._grading()))

    def expert_action(self) -> str:
        """The demonstration of the data row."""
        if not self._target:
            raise ValueError("this question has no demonstration: give options['target'] to reset()")
        return self._target

    def _grading(self) -> dict[str, Any]:
        return {"require_think": self.require_think, "choices": self._choices, "seconds": self.seconds}

    def _close_episode(self) -> None:
        if not self._open:
            raise RuntimeError("step() without an open episode: call reset() first")
        self._open = False


def _outcome(verdict: Verdict) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
    info = {
        "success": verdict.correct,
        "verdict": verdict.reason,
        "extracted": verdict.extracted,
        "num_grader_timeouts": int(verdict.reason == "timeout"),
        "num_grader_crashes": int(verdict.reason == "crashed"),
        "num_refused_answers": int(verdict.reason in REFUSED),
    }
    end: Observation = {"text": "", "images": [], "reset_context": False}
    return end, float(verdict.correct), True, False, info


def _messages(prompt: Any) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages = [dict(message) if isinstance(message, Mapping) else {} for message in prompt]
    if not messages or not all(
        isinstance(message.get("role"), str) and isinstance(message.get("content"), str) for message in messages
    ):
        raise ValueError(
            "options['prompt'] must be a text or a list of messages {role, content} with text content; "
            f"got {prompt!r:.200}"
        )
    return [{"role": message["role"], "content": message["content"]} for message in messages]
