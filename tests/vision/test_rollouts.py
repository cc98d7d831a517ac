"""Images through the agent loop, driven by a script in place of the engine: tokens, images and stored inputs agree."""

import asyncio
import json
import os
from types import SimpleNamespace

import pytest
import torch
import yaml
from verl.workers.rollout.utils import qwen2_5_vl_dedup_image_tokens

from recipe.amft.evaluation.conversation import Chat
from recipe.amft.evaluation.episodes import Generation, Limits, opening, pose, run_episode
from recipe.amft.evaluation.tasks import Task
from recipe.amft.main import CONFIGS, compose
from recipe.amft.tasks.environment import begin, make_environment
from verl_ext.images import draw, mend_position_ids, model_inputs, prompt_tokens, with_images

GAME = {"modality": "image", "image_size": 112, "num_cards": 2, "prompt_style": "compact", "verify_iter": 2}
HAND = {"cards": [4, 6], "target": 24}
WALK = {"modality": "image", "view_size": 60, "prompt_style": "compact", "city": {"size": 4}, "straight_points": 2}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def model(request, tmp_path_factory):
    """Folder, tokenizer and processor of a tiny vision model of each family."""
    os.environ.setdefault("VERL_PLATFORM", "cpu")
    os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "verl_ext.register")
    from verl.utils import hf_processor, hf_tokenizer

    from recipe.amft.data.tiny_vlm import make
    from verl_ext.cpu.processors import allow_images_without_torchvision

    allow_images_without_torchvision()
    folder = tmp_path_factory.mktemp("tiny_vlm")
    make({"family": request.param, "vision_layers": 1, "num_layers": 1}, folder)
    return SimpleNamespace(
        folder=folder, tokenizer=hf_tokenizer(str(folder)), processor=hf_processor(str(folder)), type=request.param
    )


@pytest.fixture(scope="module")
def builder(model):
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    return create_continuous_token_builder(
        model.tokenizer, hf_model_type=model.type, processor=model.processor, mm_processor_kwargs={}
    )


class Engine:
    """Answers with `texts` in turn; `asked` has (prompt, images)."""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts, self.asked = tokenizer, list(texts), []

    async def generate(self, request_id, prompt_ids, sampling_params, image_data=None, **kwargs):
        text = self.texts[len(self.asked)]
        tokens = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]
        self.asked.append((list(prompt_ids), image_data or []))
        return SimpleNamespace(token_ids=tokens, log_probs=[-1.0] * len(tokens), extra_fields={}, num_preempted=0)


def play(model, texts, env_id, env_kwargs, options, seed=0):
    """(engine, outputs) of one episode, as verl's agent-loop worker would get them; and the row that was played."""
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap
    from verl.utils.import_utils import load_class_from_fqn

    config = compose(["data.max_response_length=400", "data.max_prompt_length=1200"])
    entry = yaml.safe_load((CONFIGS / "agent_loops.yaml").read_text())[0]
    arguments = {name: value for name, value in entry.items() if name not in ("name", "_target_")}
    extra = {"id": "row", "env_id": env_id, "env_kwargs": json.dumps(env_kwargs), "seed": seed, "split": "train"}
    row = {"extra_info": extra | {"options": json.dumps(options)}, "index": 0, "global_steps": 1, "session_id": 0}
    engine = Engine(model.tokenizer, texts)

    async def run():
        wrapped = DictConfigWrap(config), engine, model.tokenizer, model.processor, None, DictConfigWrap(config.data)
        loop = load_class_from_fqn(entry["_target_"], "agent loop")(*wrapped, hf_model_type=model.type, **arguments)
        outputs = await loop.run({"temperature": 1.0}, **row)
        return outputs if isinstance(outputs, list) else [outputs]

    return engine, asyncio.run(run()), row


def count_images(model, tokens) -> int:
    """Runs of image tokens."""
    pad = model.processor.image_token_id
    return sum(token == pad and before != pad for before, token in zip([0, *tokens], tokens, strict=False))


def answers(env_id, env_kwargs, options, seed=0) -> list[str]:
    """What the expert says, to the end of the episode."""
    environment, said, ended = make_environment(env_id, env_kwargs), [], False
    environment.reset(seed, options)
    while not ended:
        said.append(environment.expert_action())
        _, _, terminated, truncated, _ = environment.step(said[-1])
        ended = terminated or truncated
    return said


def test_a_second_turn_sees_the_image_of_the_first(model):
    """The feedback has no image; the request of every turn carries the one there is; model tokens alone are learned."""
    (right,) = answers("general_points", GAME, HAND)
    engine, (output,), _ = play(model, ['{"formula": "1"}', right], "general_points", GAME, HAND)
    assert [len(images) for _, images in engine.asked] == [1, 1]
    assert engine.asked[0][1][0] is engine.asked[1][1][0]
    assert [count_images(model, prompt) for prompt, _ in engine.asked] == [1, 1]
    assert len(output.multi_modal_data["images"]) == 1
    assert output.reward_score == 1.0
    learned = [token for token, mask in zip(output.response_ids, output.response_mask, strict=True) if mask]
    assert model.tokenizer.decode(learned, skip_special_tokens=True) == '{"formula": "1"}' + right
    assert output.extra_fields["reward_extra_info"]["recognition_accuracy"] == 0.5


def test_a_walk_in_fresh_contexts_has_an_image_for_each(model):
    kwargs = WALK | {"context": "per_location"}
    said = answers("virl", kwargs, {})
    _, outputs, _ = play(model, said, "virl", kwargs, {})
    assert len(outputs) == len(said) > 2
    for output in outputs:
        assert len(output.multi_modal_data["images"]) == count_images(model, output.prompt_ids) == 1


def test_a_walk_in_one_chat_gathers_images(model):
    """Turn k is asked with k images, in the tokens as in the request."""
    kwargs = WALK | {"context": "concat"}
    said = answers("virl", kwargs, {})
    engine, (output,), _ = play(model, said, "virl", kwargs, {})
    for turn, (prompt, images) in enumerate(engine.asked, 1):
        assert count_images(model, prompt) == len(images) == turn
    assert count_images(model, [*output.prompt_ids, *output.response_ids]) == len(output.multi_modal_data["images"])


@pytest.mark.parametrize(
    ("env_id", "kwargs", "options"),
    [
        ("general_points", GAME, HAND),
        ("general_points", GAME | {"prompt_style": "paper", "image_size": 300}, HAND),
        ("virl", WALK, {}),
        ("virl", WALK | {"context": "concat"}, {"location": 2}),
    ],
    ids=["compact", "paper", "walk", "chat"],
)
def test_a_demonstration_has_the_tokens_and_inputs_of_a_rollout(model, builder, env_id, kwargs, options):
    """Its prompt is tokenised from the picture's size alone, and equals the rollout's to the token; what is stored with
    a row equals what verl's agent-loop worker stores, to the bit."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker

    from recipe.amft.data.demonstrations import DemonstrationTokenizer

    said = answers(env_id, kwargs, options)
    _, (output, *_), row = play(model, said, env_id, kwargs, options)
    environment, observation = begin(row)
    messages = observation.get("messages") or [{"role": "user", "content": observation["text"]}]
    target = [{"role": "assistant", "content": environment.expert_action()}]
    tokenize = DemonstrationTokenizer(model.tokenizer, model.type, 1200, 400, processor=model.processor)
    demonstration = tokenize(row | {"prompt": messages, "target": target})
    assert demonstration.prompt == output.prompt_ids
    assert demonstration.response == output.response_ids[: len(demonstration.response)]
    worker = SimpleNamespace(
        processor=model.processor, tokenizer=model.tokenizer, _get_mm_processor_kwargs=lambda audios: {}
    )
    tokens = torch.tensor([*output.prompt_ids, *output.response_ids])
    stored = AgentLoopWorker._compute_multi_modal_inputs(worker, output, tokens)
    places = AgentLoopWorker._compute_position_ids(worker, tokens[None], torch.ones_like(tokens)[None], stored)[0]
    images = output.multi_modal_data["images"]
    inputs, positions = model_inputs(model.processor, images, tokens, {})
    assert inputs.keys() == stored.keys()
    assert all(torch.equal(inputs[name], stored[name]) for name in inputs)
    assert torch.equal(positions, places)


@pytest.mark.parametrize(
    ("env_id", "kwargs", "options", "said"),
    [
        ("general_points", GAME, HAND, ['{"formula": "1"}']),
        ("virl", WALK | {"context": "per_location"}, {}, []),
        ("virl", WALK | {"context": "concat"}, {}, []),
    ],
    ids=["second attempt", "walk", "chat"],
)
def test_an_evaluation_shows_what_a_rollout_shows(model, env_id, kwargs, options, said):
    """Tokens, masks and pixels of every context; the engine is asked with one token for each image."""
    said = [*said, *answers(env_id, kwargs, options)]
    engine, outputs, _ = play(model, said, env_id, kwargs, options)
    chat = Chat(model.tokenizer, model.type, processor=model.processor)
    task = Task("test", "row", env_id, kwargs, 0, options)
    asked = []

    async def policy(prompt, max_tokens, turn, images):
        asked.append((prompt, images))
        tokens = model.tokenizer.encode(said[turn], add_special_tokens=False)
        return Generation([*tokens, model.tokenizer.eos_token_id], False)

    episode = asyncio.run(run_episode(task, chat, policy, Limits(400, 2000, 50)))
    assert (episode.error, episode.success) == ("", True)
    assert len(episode.contexts) == len(outputs)
    for context, output in zip(episode.contexts, outputs, strict=True):
        assert context.prompt == output.prompt_ids
        assert context.tokens == [*output.prompt_ids, *output.response_ids]
        assert context.mask == output.response_mask
        theirs = [image.tobytes() for image in output.multi_modal_data["images"]]
        assert [image.tobytes() for image in context.images] == theirs
    pad = model.processor.image_token_id
    for (prompt, images), (tokens, seen) in zip(asked, engine.asked, strict=True):
        assert prompt == qwen2_5_vl_dedup_image_tokens(tokens, model.processor)
        assert prompt.count(pad) == len(images) == len(seen)
    observation = pose(task)[1]
    assert chat.prompt_length(opening(observation), observation["images"]) == len(outputs[0].prompt_ids)


def test_prompts_without_images_are_tokenised_alike(builder):
    messages = [{"role": "user", "content": "Target: 24"}]
    assert prompt_tokens(builder, messages, []) == builder.build_initial_tokens(messages)


def test_marks_and_images_must_agree():
    (image,) = draw(make_environment("general_points", GAME).reset(0)[0]["images"])
    messages = [{"role": "user", "content": "a<image>b"}]
    assert [part["type"] for part in with_images(messages, [image])[0]["content"]] == ["text", "image", "text"]
    with pytest.raises(ValueError, match="1 times and there are 2"):
        with_images(messages, [image, image])
    assert with_images(messages, []) == messages


@pytest.mark.parametrize("lengths", [[5, 5, 5], [3, 7, 4], [6]])
def test_position_ids_are_ragged_along_the_tokens(lengths):
    """As torch nests rows (4, T), and after verl has renamed the axis."""
    from tensordict import TensorDict

    rows = [torch.arange(4 * length).view(4, length) for length in lengths]
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    data = TensorDict({"position_ids": nested}, batch_size=len(rows))
    mend_position_ids(data)
    mend_position_ids(data)
    mended = data["position_ids"]
    assert mended.offsets().diff().tolist() == lengths
    assert mended.values().shape == (4, sum(lengths))
    for row, known in zip(torch.split(mended.values(), lengths, dim=1), rows, strict=True):
        assert torch.equal(row, known)
