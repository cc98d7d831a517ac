"""The multi-turn agent loop, driven by a script in place of the engine: tokens, masks, reward, counts and time."""

import asyncio
import json
from collections import Counter
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
import yaml

from recipe.amft.data.tiny_model import make_tokenizer
from recipe.amft.main import CONFIGS, compose
from recipe.amft.step_metrics import grader_warning
from recipe.amft.tasks.environment import make_environment
from verl_ext.agent_loop import EnvironmentClock

GAME = {"num_cards": 3, "ranks": 10, "verify_iter": 3, "prompt_style": "compact"}
HAND = ("general_points", GAME, {"cards": [3, 5, 8], "target": 16})
RIGHT, WRONG = json.dumps({"formula": "3+5+8=16"}), json.dumps({"formula": "3+5-8=16"})


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


class Engine:
    """Answers with `texts` in turn, each cut at the tokens that are left; `asked` has (prompt, max_tokens)."""

    def __init__(self, tokenizer, *texts):
        self.tokenizer, self.texts, self.asked, self.said = tokenizer, texts, [], []

    async def generate(self, request_id, prompt_ids, sampling_params, **kwargs):
        text = self.texts[min(len(self.asked), len(self.texts) - 1)]
        tokens = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]
        tokens = tokens[: sampling_params["max_tokens"]]
        self.asked.append((list(prompt_ids), sampling_params["max_tokens"]))
        self.said.append(tokens)
        return SimpleNamespace(
            token_ids=tokens, log_probs=[-1.0] * len(tokens), extra_fields={}, stop_reason="completed", num_preempted=0
        )


@lru_cache
def composed(response_length):
    return compose([f"data.max_response_length={response_length}"])


def play(engine, tokenizer, env_id, env_kwargs, options, seed=0, response_length=400):
    """The outputs of one episode, as verl's agent-loop worker would get them."""
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap
    from verl.utils.import_utils import load_class_from_fqn

    config = composed(response_length)
    entry = yaml.safe_load((CONFIGS / "agent_loops.yaml").read_text())[0]
    arguments = {name: value for name, value in entry.items() if name not in ("name", "_target_")}
    extra = {"id": "row", "env_id": env_id, "env_kwargs": json.dumps(env_kwargs), "seed": seed}
    row = {
        "extra_info": extra | {"options": json.dumps(options)},
        "raw_prompt": [],
        "index": 0,
        "global_steps": 1,
        "session_id": 0,
    }

    async def run():
        wrapped = DictConfigWrap(config), engine, tokenizer, None, None, DictConfigWrap(config.data)
        loop = load_class_from_fqn(entry["_target_"], "agent loop")(*wrapped, hf_model_type="qwen2", **arguments)
        outputs = await loop.run({"temperature": 1.0}, **row)
        return outputs if isinstance(outputs, list) else [outputs]

    return asyncio.run(run())


def walk(context="per_location"):
    """A walk through a small city, and what the expert says on it."""
    kwargs = {"city": {"size": 4}, "prompt_style": "compact", "context": context, "straight_points": 2}
    environment = make_environment("virl", kwargs)
    environment.reset(3, {})
    texts, done = [], False
    while not done:
        texts.append(environment.expert_action())
        _, _, done, _, _ = environment.step(texts[-1])
    return ("virl", kwargs, {}), texts


EPISODES = {
    "right at once": (HAND, [RIGHT], 400),
    "right at the third attempt": (HAND, [WRONG, WRONG, RIGHT], 400),
    "no attempt left": (HAND, [WRONG], 400),
    "no room for another attempt": (HAND, [WRONG], 48),
    "cut in the middle of an answer": (HAND, [RIGHT], 5),
    "a chat that grows over a walk": (*walk("concat"), 1500),
    "a chat at each location": (*walk(), 400),
}


@pytest.fixture(scope="module", params=EPISODES)
def played(request, tokenizer):
    """One of EPISODES: (the engine that was asked, the rows that came back, whether the answers solve it)."""
    task, texts, response_length = EPISODES[request.param]
    engine = Engine(tokenizer, *texts)
    outputs = play(engine, tokenizer, *task, seed=3, response_length=response_length)
    return engine, outputs, texts[-1] != WRONG and response_length > 5


def test_masks_are_1_exactly_on_what_the_model_wrote(played):
    """Row by row the tokens under mask 1 are the engine's own, in order, with their log-probabilities; no other is."""
    engine, outputs, _ = played
    own = [
        token
        for output in outputs
        for token, mask in zip(output.response_ids, output.response_mask, strict=True)
        if mask
    ]
    assert own == [token for tokens in engine.said for token in tokens]
    for output in outputs:
        assert set(output.response_mask) <= {0, 1}
        assert [value != 0 for value in output.response_logprobs] == [bool(mask) for mask in output.response_mask]


def test_ids_tokenise_again_to_themselves_and_join_to_the_chat(played, tokenizer):
    """Encoding the text of a row gives its ids; every prompt that the engine got is a beginning of some row."""
    engine, outputs, _ = played
    rows = [output.prompt_ids + output.response_ids for output in outputs]
    for row in rows:
        assert tokenizer.encode(tokenizer.decode(row), add_special_tokens=False) == row
    for prompt, _ in engine.asked:
        assert any(row[: len(prompt)] == prompt for row in rows)


def test_the_reward_is_on_the_last_model_token(played):
    """A row ends on a token of the model, there and nowhere else verl puts the reward; all rows of an episode agree."""
    _, outputs, solved = played
    for output in outputs:
        assert output.response_mask[-1] == 1
        assert output.reward_score == solved
        scores = output.as_dict()["rm_scores"]
        assert scores[-1] == solved
        assert scores[:-1].eq(0).all()


def test_a_walk_with_a_chat_at_each_location_is_one_row_each(tokenizer):
    """As many rows as locations, the same walk in one growing chat is one row with the same answers."""
    task, texts = walk()
    separate = play(Engine(tokenizer, *texts), tokenizer, *task, seed=3)
    growing = play(Engine(tokenizer, *texts), tokenizer, *walk("concat")[0], seed=3, response_length=1500)
    assert len(separate) == len(texts) > 3
    assert len(growing) == 1
    assert sum(sum(output.response_mask) for output in separate) == sum(growing[0].response_mask)


def test_what_an_environment_counts_is_summed_over_the_turns(tokenizer, monkeypatch):
    """Time-outs of three answers are three, beside the environment's time; where nothing is counted, nothing stands."""
    from recipe.amft.tasks.general_points.environment import GeneralPoints

    plain = play(Engine(tokenizer, WRONG), tokenizer, *HAND)[0].extra_fields
    assert set(plain["environment"]) == {"seconds"}
    assert plain["environment"]["seconds"] > 0
    step = GeneralPoints.step

    def slow_grader(self, text):
        *outcome, info = step(self, text)
        return *outcome, info | {"num_grader_timeouts": 1, "num_grader_crashes": 0}

    monkeypatch.setattr(GeneralPoints, "step", slow_grader)
    fields = play(Engine(tokenizer, WRONG), tokenizer, *HAND)[0].extra_fields
    assert fields["environment"]["num_grader_timeouts"] == fields["reward_extra_info"]["num_grader_timeouts"] == 3
    assert fields["environment"]["num_grader_crashes"] == 0


def test_a_refused_answer_is_counted(tokenizer):
    """An answer beyond the grader's caps is wrong, and told from other wrong ones."""
    question = ("math", {}, {"prompt": "2^2?", "ground_truth": "4"})
    deep = r"\boxed{" + "(" * 40 + "4" + ")" * 40 + "}"
    fields = play(Engine(tokenizer, deep), tokenizer, *question)[0].extra_fields
    assert fields["environment"] | {"seconds": 0} == {
        "seconds": 0, "num_grader_timeouts": 0, "num_grader_crashes": 0, "num_refused_answers": 1,
    }  # fmt: skip


def test_overlapping_calls_are_timed_once():
    """Calls at [0, 4], [1, 3] and [9, 10] were at work for 5 seconds: what they are given adds up to that."""
    now = 0.0
    clock, first, second, third = EnvironmentClock(lambda: now), Counter(), Counter(), Counter()
    with clock.running(first):
        now = 1.0
        with clock.running(second):
            now = 3.0
        now = 4.0
    now = 9.0
    with clock.running(third):
        now = 10.0
    assert (first["seconds"], second["seconds"], third["seconds"]) == (1, 3, 1)


def test_a_silent_grader_is_called_out():
    """Nothing rewarded and any time-out or crash is a warning; a reward, or failure without trouble, is none."""
    timeouts, crashes = {"data/grader_timeouts": 3.0}, {"data/grader_timeouts": 0.0, "data/grader_crashes": 1.0}
    nothing, something = torch.zeros(8), torch.tensor([0.0, 0.0, 1.0])
    assert "all 8 rollouts have reward 0" in grader_warning(7, nothing, timeouts)
    assert "3 answers" in grader_warning(7, nothing, timeouts)
    assert "crashed on 1" in grader_warning(7, nothing, crashes)
    assert grader_warning(7, something, timeouts) is None
    assert grader_warning(7, nothing, {"data/grader_timeouts": 0.0}) is None
    assert grader_warning(7, nothing, {}) is None


def test_a_crash_costs_its_own_rollout_only(monkeypatch):
    """One of a prompt's four sessions raises: verl lets the others end, and its buffer hands out what they left."""
    from verl.trainer.ppo.v1 import agent_loop_tq, replay_buffer

    from verl_ext.replay_buffer import BoundedReplayBuffer

    stored = {}

    async def put(key, partition_id, tag):
        stored.setdefault(key, {"is_prompt": True, "global_steps": 1}).update(tag)

    async def session(sampling_params, *, session_id, uid, **prompt):
        await asyncio.sleep(0.01 * session_id)
        if session_id == 1:
            raise RuntimeError("the environment is broken")
        stored[f"{uid}_{session_id}_0"] = {"status": "success", "global_steps": 1}

    worker = SimpleNamespace(config=composed(400), _run_agent_loop=session)
    monkeypatch.setattr(agent_loop_tq.tq, "async_kv_put", put)
    prompt = {"uid": "train-000000-00000", "__rollout_n__": 4}
    run_prompt = agent_loop_tq.AgentLoopWorkerTQ._run_prompt.__func__  # of the class behind Ray's actor
    asyncio.run(run_prompt(worker, prompt, {}, {"validate": False}))

    monkeypatch.setattr(replay_buffer.tq, "kv_list", lambda: {"train": stored})
    monkeypatch.setattr(replay_buffer.tq, "kv_clear", lambda **arguments: None)
    sampler = composed(400).trainer.v1.sampler
    buffer = BoundedReplayBuffer(
        trainer_mode="sync",
        trainer_config=composed(400).trainer.v1.sync,
        max_off_policy_threshold=sampler.max_off_policy_threshold,
        max_off_policy_strategy=sampler.max_off_policy_strategy,
        sampler_kwargs=sampler.sampler_kwargs,
        poll_interval=0.01,
        timeout_seconds=5.0,
    )
    batch, _ = buffer.sample(global_steps=1, partition_id="train", batch_size=1)
    assert sorted(batch.keys) == [f"train-000000-00000_{session}_0" for session in (0, 2, 3)]


def test_the_metrics_count_an_episode_once():
    """An episode of three rows and one of one row: 4 s of environments on two processes in 10 s are a share of 20%."""
    from tensordict import NonTensorStack, TensorDict

    from recipe.amft.step_data import StepDataTrainer

    walked = {"environment": {"seconds": 1.0, "num_grader_timeouts": 2.0}, "other": 7}
    graded = {"environment": {"seconds": 3.0, "num_grader_timeouts": 1.0, "num_refused_answers": 1.0}}
    rows = {"a_0_0": walked, "a_0_1": walked, "a_0_2": walked, "a_1_0": graded, "b_0_0": {}}

    def fetch(batch, *names):
        return TensorDict(
            {"extra_fields": NonTensorStack(*(rows[key] for key in batch.keys))}, batch_size=len(batch.keys)
        )

    agent = SimpleNamespace(num_workers=2)
    config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(agent=agent)))
    driver = SimpleNamespace(fetch=fetch, config=config)
    training, validation = SimpleNamespace(keys=list(rows)[:3]), SimpleNamespace(keys=list(rows)[3:])
    assert StepDataTrainer.episode_metrics(driver, 10.0, training, validation) == {
        "time/environment": 2.0,
        "time/environment_share": 0.2,
        "data/grader_timeouts": 3.0,
        "data/refused_answers": 1.0,
    }
    assert StepDataTrainer.episode_metrics(driver, 10.0, None, None) == {}
