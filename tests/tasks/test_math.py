"""MathProblem: one answer, graded as the data row says, also inside an event loop; its rewards feed training."""

import asyncio
import pickle
import time

import pytest
from omegaconf import OmegaConf

from recipe.amft.config import from_mapping
from recipe.amft.main import compose
from recipe.amft.tasks.environment import begin, make_environment
from recipe.amft.tasks.graders import shared_pool
from recipe.amft.tasks.math.environment import MathProblem

PROMPT = [{"role": "system", "content": "Think first."}, {"role": "user", "content": "What is 1/4 + 1/4?"}]
OPTIONS = {"prompt": PROMPT, "ground_truth": r"\frac{1}{2}", "target": r"<think>Halves.</think>\boxed{0.5}"}
SLOW = r"\boxed{\prod_{n=1}^{100000} n^{n}}"


def test_right_and_wrong_answers():
    """Reward 1.0 or 0.0, terminated after one answer, and the verdict in info."""
    for answer, reward, verdict in [
        (r"\boxed{0.5}", 1.0, "correct"),
        (r"\boxed{0.4}", 0.0, "wrong"),
        ("", 0.0, "no_answer"),
    ]:
        environment = make_environment("math", {})
        environment.reset(0, OPTIONS)
        _, given, terminated, truncated, info = environment.step(answer)
        assert (given, terminated, truncated) == (reward, True, False)
        assert (info["success"], info["verdict"]) == (reward == 1.0, verdict)
        assert info["num_grader_timeouts"] == info["num_grader_crashes"] == 0


def test_the_prompt_is_the_row_s():
    """`messages` holds the whole chat and `text` its last message; a plain text becomes one user message."""
    environment = MathProblem()
    observation, _ = environment.reset(0, OPTIONS)
    assert observation["messages"] == PROMPT
    assert observation["text"] == PROMPT[1]["content"]
    observation["messages"][0]["content"] = "changed"
    assert environment.reset(1, OPTIONS)[0]["messages"] == PROMPT
    observation, _ = environment.reset(0, {**OPTIONS, "prompt": "2 + 2?"})
    assert observation["messages"] == [{"role": "user", "content": "2 + 2?"}]


def test_thinking_can_be_required():
    """With require_think the same answer counts only after </think>."""
    environment = MathProblem(require_think=True)
    for answer, verdict in [(r"\boxed{0.5}", "no_think"), (r"so</think>\boxed{0.5}", "correct")]:
        environment.reset(0, OPTIONS)
        assert environment.step(answer)[4]["verdict"] == verdict


def test_the_demonstration_is_rewarded():
    """`expert_action` is the row's target, which `step` rewards; a row without one says so."""
    environment = MathProblem(require_think=True, grader="oat")
    environment.reset(0, OPTIONS)
    assert environment.step(environment.expert_action())[1] == 1.0
    environment.reset(0, {"prompt": "2 + 2?", "ground_truth": "4"})
    with pytest.raises(ValueError, match="no demonstration"):
        environment.expert_action()


def test_multiple_choice():
    """Choices come from the environment or the row, and bound what counts as a letter."""
    row = {"prompt": "Which?", "ground_truth": "C"}
    for environment, options in [
        (MathProblem(grader="letter", choices="ABCD"), row),
        (MathProblem(), {**row, "choices": "ABCD"}),
        (MathProblem(grader="oat"), row),
    ]:
        environment.reset(0, options)
        assert environment.step("ANSWER: C")[1] == 1.0
    with pytest.raises(ValueError, match="one of the choices 'ABCD'; got 'E'"):
        MathProblem(choices="ABCD").reset(0, {**row, "ground_truth": "E"})


def test_pickled_episode_goes_on():
    """An environment is picklable within an episode, and its copy grades as it does."""
    environment = MathProblem(grader="oat")
    environment.reset(0, OPTIONS)
    copy = pickle.loads(pickle.dumps(environment))
    assert copy.step(r"\boxed{1/2}")[1] == environment.step(r"\boxed{1/2}")[1] == 1.0


def test_step_async_leaves_the_event_loop_free():
    """Answers of many environments are graded while the loop goes on; a slow one is a counted time-out, reward 0."""

    async def answer(text, seconds):
        environment = MathProblem(seconds=seconds)
        environment.reset(0, OPTIONS)
        return await environment.step_async(text)

    async def run():
        slow = asyncio.ensure_future(answer(SLOW, 0.5))
        fast = [asyncio.ensure_future(answer(rf"\boxed{{{n}/8}}", 60.0)) for n in range(8)]
        longest, last = 0.0, time.monotonic()
        while not slow.done():
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        return await slow, await asyncio.gather(*fast), longest

    shared_pool().grade("1", "1")
    timeouts = shared_pool().counters["timeouts"]
    slow, fast, longest = asyncio.run(run())
    assert slow[1] == 0.0
    assert (slow[4]["verdict"], slow[4]["num_grader_timeouts"]) == ("timeout", 1)
    assert [outcome[1] for outcome in fast] == [float(n == 4) for n in range(8)]
    assert shared_pool().counters["timeouts"] == timeouts + 1
    assert longest < 0.4  # a blocked loop would stand still for the 0.5 s of the slow answer


def test_one_pool_for_a_process():
    """Environments share their graders: however many there are, no more processes than the pool's workers."""
    for _ in range(5):
        environment = MathProblem()
        environment.reset(0, OPTIONS)
        environment.step(r"\boxed{1/2}")
    assert shared_pool() is shared_pool()
    assert 1 <= len(shared_pool().process_ids) <= shared_pool().num_workers


def test_wrong_arguments_are_named():
    """Parameters, reset options and the order of calls: each error names the value and what is allowed."""
    with pytest.raises(ValueError, match="grader must be one of"):
        MathProblem(grader="sympy")
    with pytest.raises(ValueError, match="seconds must be a number above 0; got 0"):
        MathProblem(seconds=0)
    with pytest.raises(ValueError, match="require_think must be true or false; got 'yes'"):
        MathProblem(require_think="yes")
    with pytest.raises(ValueError, match="unknown key 'graders'"):
        make_environment("math", {"graders": "oat"})
    environment = MathProblem()
    with pytest.raises(ValueError, match=r"missing \['ground_truth'\], unknown \['answer'\]"):
        environment.reset(0, {"prompt": "2 + 2?", "answer": "4"})
    with pytest.raises(ValueError, match="a text or a list of messages"):
        environment.reset(0, {"prompt": ["2 + 2?"], "ground_truth": "4"})
    with pytest.raises(RuntimeError, match="call reset"):
        environment.step("4")
    environment.reset(0, OPTIONS)
    environment.step("4")
    with pytest.raises(RuntimeError, match="call reset"):
        environment.step("4")


def test_a_plain_openr1_row_is_posed_by_the_shipped_task():
    """A row as published names no environment: task=openr1_math plays it, with the reasoning that its target has."""
    row = {
        "data_source": "openr1",
        "prompt": [{"role": "system", "content": "Reason first."}, {"role": "user", "content": "What is 6 * 7?"}],
        "target": [{"role": "assistant", "content": "<think>\n6 * 7 = 42\n</think>\n\nIt is $\\boxed{42}$."}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "42"},
        "extra_info": {"split": "default", "index": 17},
    }
    for override in ("task=openr1_math", "experiment=math_amft"):
        settings = from_mapping(OmegaConf.to_container(compose([override]).amft, resolve=True))
        environment, observation = begin(row, settings.task["environment"])
        assert observation["messages"] == row["prompt"]
        assert environment.step(row["target"][0]["content"])[1] == 1.0
        environment, _ = begin(row, settings.task["environment"])
        _, reward, _, _, info = environment.step(r"It is $\boxed{42}$.")
        assert (reward, info["verdict"]) == (0.0, "no_think")
