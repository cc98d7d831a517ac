"""The episode loop, driven by scripts: tokens and masks are those of training, and every end is told apart."""

import asyncio
import json
from types import SimpleNamespace

import pytest
import yaml

from recipe.amft.evaluation.episodes import Generation, Limits, run_episode
from recipe.amft.evaluation.tasks import Task
from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.general_points.prompts import feedback
from recipe.amft.tasks.general_points.verifier import Verdict

RIGHT, WRONG = json.dumps({"formula": "3+5+8=16"}), json.dumps({"formula": "3+5-8=16"})
WIDE = Limits(max_tokens=400, max_model_len=2000, max_turns=50)
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


class Script:
    """A policy that says what it is told; `calls` has (prompt, max_tokens, turn) of each answer."""

    def __init__(self, tokenizer, *texts, cut=False):
        self.tokenizer, self.texts, self.cut, self.calls = tokenizer, texts, cut, []

    async def __call__(self, prompt, max_tokens, turn, images):
        self.calls.append((list(prompt), max_tokens, turn))
        tokens = self.tokenizer.encode(self.texts[min(turn, len(self.texts) - 1)], add_special_tokens=False)
        tokens = tokens if self.cut else [*tokens, self.tokenizer.eos_token_id]
        return Generation(tokens[:max_tokens], self.cut or len(tokens) > max_tokens)


def play(task, chat, policy, limits=WIDE, **options):
    return asyncio.run(run_episode(task, chat, policy, limits, **options))


def echo(behaviour="", name="Echo"):
    return Task("echo", "echo/1", f"misbehaving:{name}", {"behaviour": behaviour}, 0, {})


def test_a_second_attempt_sees_the_verifiers_reason_and_masks_mark_the_models_tokens(hand, chat, tokenizer):
    """Mask 1 exactly on what the policy wrote; the whole conversation is the chat template's text."""
    policy = Script(tokenizer, WRONG, RIGHT)
    episode = play(hand, chat, policy)
    assert (episode.success, episode.reward, episode.stop_reason) == (True, 1.0, "terminated")
    assert episode.texts == [WRONG, RIGHT]
    (context,) = episode.contexts
    reason = feedback(Verdict("wrong_value", 0.0, ""), "compact")
    assert episode.observations == [reason]
    asked = TEMPLATE.format("Cards: 3 5 8 Target: 16")
    answered = f"{WRONG}<|im_end|>\n{TEMPLATE.format(reason)}{RIGHT}<|im_end|>"
    assert tokenizer.decode(context.prompt) == asked
    assert tokenizer.decode(context.tokens) == asked + answered
    assert tokenizer.encode(asked + answered, add_special_tokens=False) == context.tokens
    assert len(context.mask) == len(context.tokens) - context.num_prompt_tokens
    assert tokenizer.decode(episode.token_ids) == f"{WRONG}<|im_end|>{RIGHT}<|im_end|>"
    assert sum(context.mask) == sum(episode.turn_lengths) == len(episode.token_ids)
    assert policy.calls[1][0] == context.tokens[: len(policy.calls[1][0])]


def test_evaluation_and_training_see_the_same_tokens(hand, chat, tokenizer):
    """The training agent loop, given the same answers, ends with the same prompt, response, mask and reward."""
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap
    from verl.utils.import_utils import load_class_from_fqn

    from recipe.amft.main import CONFIGS, compose

    config = compose(["data.max_response_length=400"])
    entry = yaml.safe_load((CONFIGS / "agent_loops.yaml").read_text())[0]
    arguments = {name: value for name, value in entry.items() if name not in ("name", "_target_")}
    script, answers = Script(tokenizer, WRONG, WRONG, RIGHT), iter(range(3))

    class Server:
        async def generate(self, request_id, prompt_ids, sampling_params, **kwargs):
            answer = await script(prompt_ids, sampling_params["max_tokens"], next(answers), [])
            logprobs = [0.0] * len(answer.token_ids)
            return SimpleNamespace(
                token_ids=answer.token_ids,
                log_probs=logprobs,
                extra_fields={},
                stop_reason="completed",
                num_preempted=0,
            )

    row = {
        "extra_info": {
            "id": hand.row_id,
            "env_id": hand.env_id,
            "env_kwargs": json.dumps(hand.env_kwargs),
            "seed": hand.seed,
            "options": json.dumps(hand.options),
        },
        "raw_prompt": [{"role": "user", "content": "Cards: 3 5 8 Target: 16"}],
        "index": 0,
        "global_steps": 1,
        "session_id": 0,
        "validate": True,
    }

    async def train():
        wrapped = DictConfigWrap(config), Server(), tokenizer, None, None, DictConfigWrap(config.data)
        loop = load_class_from_fqn(entry["_target_"], "agent loop")(*wrapped, hf_model_type="qwen2", **arguments)
        return await loop.run({"temperature": 1.0}, **row)

    trained = asyncio.run(train())
    trained = trained[-1] if isinstance(trained, list) else trained
    episode = play(hand, chat, Script(tokenizer, WRONG, WRONG, RIGHT))
    (context,) = episode.contexts
    assert trained.prompt_ids == context.prompt
    assert trained.response_ids == context.tokens[context.num_prompt_tokens :]
    assert trained.response_mask == context.mask
    assert trained.reward_score == episode.reward == 1.0


def test_attempts_that_run_out_are_truncated(hand, chat, tokenizer):
    """Three wrong answers of three: not solved, and no fourth call."""
    policy = Script(tokenizer, WRONG)
    episode = play(hand, chat, policy)
    assert (episode.success, episode.stop_reason, len(policy.calls)) == (False, "truncated", 3)
    assert episode.info["verdict"] == "wrong_value"


def test_the_room_of_an_answer_is_what_is_left_of_the_budget(hand, chat, tokenizer):
    """max_tokens counts everything behind the prompt; an answer that fills it ends the episode as cut."""
    policy = Script(tokenizer, WRONG, RIGHT)
    whole = play(hand, chat, policy)
    used = [call[1] for call in policy.calls]
    second_prompt = len(policy.calls[1][0])
    assert used == [400, 400 - (second_prompt - whole.contexts[0].num_prompt_tokens)]
    tight = Limits(second_prompt - whole.contexts[0].num_prompt_tokens + 1, 2000, 50)
    episode = play(hand, chat, Script(tokenizer, WRONG, RIGHT), tight)
    assert (episode.success, episode.stop_reason, episode.turn_lengths[-1]) == (False, "length", 1)


def test_an_episode_without_room_for_an_answer_ends_on_the_models_token(hand, chat, tokenizer):
    """As in training: a message that would fill the budget is not shown."""
    policy = Script(tokenizer, WRONG)
    first = len(policy.tokenizer.encode(WRONG, add_special_tokens=False)) + 1
    episode = play(hand, chat, policy, Limits(first + 3, 2000, 50))
    assert (episode.success, episode.stop_reason, len(episode.texts)) == (False, "context", 1)
    assert episode.contexts[0].mask == [1] * first
    assert episode.observations == []


def test_a_first_answer_that_is_cut_is_told_apart(hand, chat, tokenizer):
    """An answer that the limit cuts, and that is wrong, stops for its length."""
    episode = play(hand, chat, Script(tokenizer, WRONG), Limits(3, 2000, 50))
    assert (episode.stop_reason, episode.turn_lengths) == ("length", [3])


def test_the_models_context_bounds_an_answer_too(hand, chat, tokenizer):
    """The engine is never asked for more tokens than its context holds."""
    policy = Script(tokenizer, RIGHT)
    prompt = len(chat.open([{"role": "user", "content": "Cards: 3 5 8 Target: 16"}]).tokens)
    play(hand, chat, policy, Limits(400, prompt + 5, 50))
    assert policy.calls[0][1] == 5


def test_an_environment_that_never_ends_is_stopped(chat, tokenizer):
    """max_turns answers, then the reason says so."""
    episode = play(echo(), chat, Script(tokenizer, "no"), Limits(400, 2000, 4))
    assert (episode.stop_reason, len(episode.texts), episode.success) == ("turns", 4, False)


def navigation(**kwargs):
    city = {"style": "grid", "names": "train", "seed": 3, "size": 4}
    return Task(
        "walks", "walk/1", "virl", {"city": city, "prompt_style": "compact", "straight_points": 2, **kwargs}, 5, {}
    )


def expert_texts(task):
    environment = make_environment(task.env_id, dict(task.env_kwargs))
    environment.reset(task.seed)
    texts, done = [], False
    while not done:
        texts.append(environment.expert_action())
        _, _, terminated, truncated, _ = environment.step(texts[-1])
        done = terminated or truncated
    return texts


def test_a_reset_context_starts_a_fresh_conversation(chat, tokenizer):
    """V-IRL, a context per location: the expert's walk succeeds, each prompt is one message, budgets start anew."""
    task = navigation()
    texts = expert_texts(task)
    assert len(texts) > 2
    policy = Script(tokenizer, *texts)
    episode = play(task, chat, policy, Limits(200, 4000, 200))
    assert (episode.success, episode.stop_reason, len(episode.contexts)) == (True, "terminated", len(texts))
    assert episode.info["per_step_accuracy"] == 1.0
    shown = [episode.contexts[0].messages[0]["content"], *episode.observations]
    for context, message, text, call in zip(episode.contexts, shown, texts, policy.calls, strict=True):
        assert tokenizer.decode(context.prompt) == TEMPLATE.format(message)
        assert call[:2] == (context.prompt, 200)
        assert tokenizer.decode(context.tokens[context.num_prompt_tokens :]) == f"{text}<|im_end|>"
        assert set(context.mask) == {1}


def test_one_growing_conversation_stays_one(chat, tokenizer):
    """The same walk with context=concat: one context, whose model tokens are the expert's texts."""
    task = navigation(context="concat")
    texts = expert_texts(task)
    episode = play(task, chat, Script(tokenizer, *texts), Limits(4000, 8000, 200))
    assert (episode.success, len(episode.contexts)) == (True, 1)
    assert tokenizer.decode(episode.token_ids) == "".join(f"{text}<|im_end|>" for text in texts)


def test_messages_open_the_conversation_and_step_async_is_preferred(chat, tokenizer):
    """A system message stands in the prompt; the blocking `step` is never called; time-outs are counted."""
    episode = play(echo(name="Asynchronous"), chat, Script(tokenizer, "yes"))
    assert episode.success
    assert tokenizer.decode(episode.contexts[0].prompt).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert play(echo(name="Asynchronous"), chat, Script(tokenizer, "no")).num_timeouts == 1


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("reset raises", "RuntimeError: no such problem"),
        ("step raises", "RuntimeError: the checker broke"),
        ("stop iteration", "StopIteration"),
        ("no success", "has no `success`"),
        ("images", "take a vision model"),
        ("images later", "take a vision model"),
    ],
)
def test_what_an_environment_raises_ends_its_episode_only(behaviour, said, chat, tokenizer):
    """The episode comes back as failed, with the reason; nothing is raised, nothing waits for ever."""
    episode = play(echo(behaviour), chat, Script(tokenizer, "maybe"))
    assert (episode.stop_reason, episode.success, episode.reward) == ("error", False, 0.0)
    assert said in episode.error


def test_an_engine_that_fails_ends_the_evaluation(hand, chat):
    """What the policy raises is not the environment's: it is passed on."""

    async def broken(prompt, max_tokens, turn, images):
        raise RuntimeError("the engine died")

    with pytest.raises(RuntimeError, match="the engine died"):
        play(hand, chat, broken)


def test_a_second_judge_reads_the_same_answers(chat, tokenizer):
    """The answer is right for both graders, or for the one that does not ask for the thinking's end."""
    kwargs = {"grader": "math_verify", "require_think": True}
    task = Task("math", "math/1", "math", kwargs, 0, {"prompt": "What is 6 x 7?", "ground_truth": "42"})
    judges = {"oat": {"grader": "oat"}, "lenient": {"require_think": False}}
    closed = play(task, chat, Script(tokenizer, r"</think> \boxed{42}"), judge_again=judges)
    assert closed.success
    assert {name: verdict[0] for name, verdict in closed.verdicts.items()} == {"oat": True, "lenient": True}
    unclosed = play(task, chat, Script(tokenizer, r"\boxed{42}"), judge_again=judges)
    assert not unclosed.success
    assert unclosed.verdicts == {"oat": (False, "no_think"), "lenient": (True, "correct")}


def test_a_judge_that_fails_costs_only_its_own_verdict(hand, chat, tokenizer):
    """A bad argument of a second judge leaves the first verdict standing."""
    episode = play(hand, chat, Script(tokenizer, RIGHT), judge_again={"bad": {"mode": "unknown"}})
    assert episode.success
    right, verdict = episode.verdicts["bad"]
    assert not right
    assert "mode must be one of" in verdict


def test_episodes_leave_their_task_as_it_was(hand, chat, tokenizer):
    """Samples of one row share it: nothing that an environment does to its options shows in the next sample."""
    before = json.dumps([dict(hand.env_kwargs), dict(hand.options)])
    first = play(hand, chat, Script(tokenizer, WRONG, RIGHT))
    assert json.dumps([dict(hand.env_kwargs), dict(hand.options)]) == before
    assert play(hand, chat, Script(tokenizer, WRONG, RIGHT)).token_ids == first.token_ids
