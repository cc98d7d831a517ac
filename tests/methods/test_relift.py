"""ReLIFT: GRPO, and further supervised updates on what failed."""

import json

import torch
from simulation import World, assert_same_learning, decided, groups_of, method_of, mixed

from recipe.amft.methods import Groups, Method, Sum


def rehearsed_by(method: Method, failures: list[list[int]], num_prompts: int = 4) -> list[list[str]]:
    """What each step rehearses when exactly the given rows fail in it; other rows succeed."""
    state, found = method.initial_state(), []
    for step, rows in enumerate(failures):
        good = [f"good-{step}-{index}" for index in range(num_prompts - len(rows))]
        ids = [*(f"row-{row}" for row in rows), *good]
        rewards = torch.tensor([0.0] * len(rows) + [1.0] * len(good)).double()
        groups = Groups(torch.arange(len(ids)), rewards, ids)
        state, choice = method.choose(state, step, groups)
        assert choice.metrics["relift/buffer"] == len(state) + len(choice.rehearsed)
        assert choice.metrics["relift/rehearsed"] == len(choice.rehearsed)
        found.append([row_id.removeprefix("row-") for row_id in choice.rehearsed])
        state = method.state_from_dict(json.loads(json.dumps(method.state_to_dict(state))))
    return found


def test_relifts_buffer_is_newest_first() -> None:
    """Three in a row of two, one and three failures: the newest three are rehearsed, the older ones wait, then go."""
    method = method_of("relift", buffer_size=3)
    assert rehearsed_by(method, [[1, 2], [], [3], [4, 5, 6], [7, 8, 9]]) == [
        [],
        [],
        ["3", "1", "2"],
        ["4", "5", "6"],
        ["7", "8", "9"],
    ]


def test_relifts_older_failures_wait_for_their_turn() -> None:
    """What does not fit stays in the buffer, in order."""
    method = method_of("relift", buffer_size=3)
    assert rehearsed_by(method, [[1, 2], [3, 4, 5, 6], [], [7]]) == [[], ["3", "4", "5"], ["6", "1", "2"], []]


def test_relifts_buffer_holds_no_prompt_twice() -> None:
    """A prompt that fails again moves to the front, also when one batch holds it twice."""
    method = method_of("relift", buffer_size=3)
    assert rehearsed_by(method, [[1, 2], [1], [2, 3]]) == [[], [], ["2", "3", "1"]]
    assert rehearsed_by(method, [[1, 1], [2], [3]]) == [[], [], ["3", "2", "1"]]


def test_relifts_fixed_interval() -> None:
    """AMFT's text: every so many steps whatever failed since; nothing when nothing failed."""
    method = method_of("relift", trigger="every", every=2)
    assert rehearsed_by(method, [[1], [2, 3], [], [], [4], []]) == [[], ["2", "3", "1"], [], [], [], ["4"]]


def test_relift_is_grpo_beside_its_rehearsals() -> None:
    """All rollouts with verl's advantages; the further update has its own rate and its own moments."""
    method = method_of("relift", learning_rate=3e-6)
    choice, combination = decided(method, groups_of([0.0, 0.0], [1.0, 0.0]))
    assert choice.keep is None
    assert choice.advantages is None
    assert combination == Sum(sft=1.0, rl=1.0)
    assert method.rehearsal is not None
    assert method.rehearsal.learning_rate == 3e-6
    assert method.rehearsal.optimizer != "main"


def test_relift_without_failures_is_grpo() -> None:
    """Nothing enters the buffer."""
    assert_same_learning(method_of("relift", buffer_size=1), method_of("grpo"), World(mixed))
