"""What a step learns from: prompts, rollouts by prompt, demonstrations, and how all of it is cut into mini-batches."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from recipe.amft.collected import CollectedRollouts
from recipe.amft.config import AMFTConfig
from recipe.amft.data.demonstrations import (
    Demonstration,
    DemonstrationStream,
    DemonstrationTokenizer,
    collate,
    load_demonstrations,
    row_identity,
)
from recipe.amft.methods import Choice, Groups, Method, StepPlan
from recipe.amft.needs import Needs, everything_asked
from recipe.amft.tasks.environment import begin
from verl_ext.prompts import PromptStream
from verl_ext.trainer import RecipeTrainer, balanced_partitions

# Counts of verl_ext/agent_loop.py by the names of metrics.
GRADER_COUNTS = {
    "num_grader_timeouts": "data/grader_timeouts",
    "num_grader_crashes": "data/grader_crashes",
    "num_refused_answers": "data/refused_answers",
}

WeightedDemonstrations = list[tuple[Demonstration, float]]


@dataclass
class StepData:
    """The rollouts and demonstrations of one step, with the counts that a method may ask for.

    `entropy` is the policy's mean over the rollouts' tokens, once it is measured.
    """

    rollouts: KVBatchMeta | None
    demonstrations: WeightedDemonstrations
    in_pairs: bool = False  # better and worse answers in turn
    num_tokens: dict[str, int] = field(default_factory=dict)
    num_sequences: dict[str, int] = field(default_factory=dict)
    entropy: float | None = None


class StepDataTrainer(RecipeTrainer):
    """The data side of the driver."""

    settings: AMFTConfig
    method: Method
    collected: CollectedRollouts

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        settings, config = self.settings, self.config
        self.demonstration_rewards: dict[str, float] = {}
        self.num_steps = settings.warm_up.steps + self.total_training_steps
        self.num_mini_batches = config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size
        self.prompts = PromptStream(self.train_dataloader, "train")
        self.utility_prompts = None
        if settings.utility.files:
            loader = self.make_prompt_loader(list(settings.utility.files), settings.utility.num_prompts)
            self.utility_prompts = PromptStream(loader, "utility")
        tokenize = DemonstrationTokenizer(
            self.tokenizer,
            self.hf_model_type,
            max_prompt_length=config.data.max_prompt_length,
            max_response_length=config.data.max_response_length,
            template_kwargs=dict(config.data.apply_chat_template_kwargs),
            processor=self.processor,
            processor_kwargs=self.processor_kwargs(),
        )
        rows, self.reasons_left_out = [], []
        if self.needs.expert:
            files = settings.demonstrations.files or list(config.data.train_files)
            rows, self.reasons_left_out = load_demonstrations(files, tokenize, settings.demonstrations.on_bad_row)
        self.demonstration_of = {row.row_id: row for row in rows}
        if len(self.demonstration_of) < len(rows) and self.method.plan(0, self.method.initial_state()).paired:
            raise ValueError(
                f"{len(rows)} demonstrations have only {len(self.demonstration_of)} different ids (extra_info.id, or "
                f"split and index), by which method={settings.method.name} finds demonstrations; make them unique."
            )
        self.show_demonstrations()
        batch_size = settings.demonstrations.batch_size if self.needs.expert_batches else len(rows)
        self.demonstrations = DemonstrationStream(rows, batch_size, settings.demonstrations.seed)

    @property
    def needs(self) -> Needs:
        return everything_asked(self.method, self.settings)

    def demonstration(self, row_id: str) -> Demonstration:
        """The demonstration of a training row; RuntimeError where a method needs one that is not there."""
        if row_id not in self.demonstration_of:
            raise RuntimeError(
                f"method={self.settings.method.name} learns the demonstrations of its own prompts, and row {row_id!r} "
                "of data.train_files has none among the demonstrations: leave amft.demonstrations.files empty, give "
                "every row a target within the limits, and keep amft.demonstrations.on_bad_row=refuse."
            )
        return self.demonstration_of[row_id]

    def show_demonstrations(self) -> None:
        """Tell the method the demonstrations' texts, if it reads them."""
        if self.method.reads_demonstrations:
            decode = partial(self.tokenizer.decode, skip_special_tokens=True)
            rows = self.demonstration_of.items()
            self.method.read_demonstrations(
                {row_id: decode(row.prompt) for row_id, row in rows},
                {row_id: decode(row.response) for row_id, row in rows},
            )
        check_guidance(self.method, self.demonstration_of, self.tokenizer, self.config.data.max_prompt_length)

    # ---- rollouts ----------------------------------------------------------------------------------------------

    def groups(self, batch: KVBatchMeta) -> tuple[Groups, dict[str, float]]:
        """The step's rollouts by prompt, and their metrics. An episode of several rows counts once, by its last."""
        fields = self.fetch(batch, "rm_scores", "response_mask")
        scores = fields["rm_scores"].to_padded_tensor(0.0).sum(-1).double()
        self.num_learned_tokens = dict(
            zip(batch.keys, fields["response_mask"].to_padded_tensor(0).sum(-1).tolist(), strict=True)
        )
        last_row = {key.rsplit("_", 1)[0]: row for row, key in enumerate(batch.keys)}
        self.rollout_of_row = torch.tensor([list(last_row).index(key.rsplit("_", 1)[0]) for key in batch.keys])
        prompts = torch.tensor([int(rollout.split("_")[0].rsplit("-", 1)[1]) for rollout in last_row])
        rewards = scores[list(last_row.values())]
        expected = self.config.data.train_batch_size * self.config.actor_rollout_ref.rollout.n
        metrics = {
            "rl/reward": rewards.mean().item(),
            "rl/response_length": sum(tag["response_len"] for tag in batch.tags) / len(batch),
            "data/failed_rollouts": float(expected - len(rewards)),
        }
        row_ids = [row_identity(row) for row in self.prompts.rows]
        demonstration_rewards = None
        if self.method.scores_demonstrations:
            demonstration_rewards = torch.tensor(
                [self.demonstration_reward(row) for row in self.prompts.rows], dtype=torch.float64
            )
        return Groups(prompts, rewards, row_ids, demonstration_rewards), metrics

    def comparable(self, batch: KVBatchMeta) -> tuple[KVBatchMeta, torch.Tensor]:
        """The rollouts that have another one of their prompt beside them, N, and the prompt of each, (N,) int64.

        RuntimeError when there are none.
        """
        prompts = [key.split("_")[0] for key in batch.keys]
        num_rollouts = Counter(prompts)
        kept = [key for key, prompt in zip(batch.keys, prompts, strict=True) if num_rollouts[prompt] > 1]
        if not kept:
            raise RuntimeError(f"no validation prompt has two rollouts at step {self.global_steps}: U has no gradient.")
        names = sorted(num_rollouts)
        group_ids = torch.tensor([names.index(key.split("_")[0]) for key in kept])
        return batch if len(kept) == len(batch) else batch.select_keys(kept), group_ids

    def episode_metrics(self, seconds: float, *batches: KVBatchMeta | None) -> dict[str, float]:
        """What the agent loops saw of the environments in `seconds` of generation; counts only where there are graders.

        The time is that of one agent-loop process on average: its environments share one event loop.
        """
        total: Counter[str] = Counter()
        for batch in batches:
            if batch is None:
                continue
            fields = self.fetch(batch, "extra_fields").pop("extra_fields").tolist()
            last_row = {key.rsplit("_", 1)[0]: row for row, key in enumerate(batch.keys)}
            for row in last_row.values():
                total.update(fields[row].get("environment", {}))  # other agent loops report none
        if not total:
            return {}
        busy = total["seconds"] / self.config.actor_rollout_ref.rollout.agent.num_workers
        counts = {name: float(total[key]) for key, name in GRADER_COUNTS.items() if key in total}
        return {"time/environment": busy, "time/environment_share": busy / seconds, **counts}

    def keep(self, batch: KVBatchMeta, choice: Choice) -> KVBatchMeta | None:
        """The rollouts that the method keeps, with its advantages; the others are deleted. None when none is left."""
        if choice.advantages is not None:
            self.put_per_sequence(batch, "advantages", choice.advantages.float()[self.rollout_of_row])
        if choice.keep is None or bool(choice.keep.all()):
            return batch
        kept = choice.keep[self.rollout_of_row].tolist()
        self.clear(batch.select_keys([key for key, keep in zip(batch.keys, kept, strict=True) if not keep]))
        if not any(kept):
            return None
        return batch.select_keys([key for key, keep in zip(batch.keys, kept, strict=True) if keep])

    def demonstration_reward(self, row: Mapping) -> float:
        """What the environment gives for a row's demonstration, from the same verifier as for rollouts; asked once."""
        row_id = row_identity(row)
        if row_id not in self.demonstration_rewards:
            environment, _ = begin(row, self.settings.task.get("environment"))
            _, reward, _, _, _ = environment.step(row["target"][0]["content"])
            self.demonstration_rewards[row_id] = float(reward)
        return self.demonstration_rewards[row_id]

    # ---- demonstrations ----------------------------------------------------------------------------------------

    def step_data(
        self, plan: StepPlan, choice: Choice, row_ids: Sequence[str], rollouts: KVBatchMeta | None
    ) -> StepData:
        """The chosen demonstrations beside the rollouts, counted."""
        demonstrations: WeightedDemonstrations = []
        if plan.demonstrations and plan.paired:
            weights = choice.demonstration_weights
            given = [1.0] * len(choice.demonstrated) if weights is None else weights.tolist()
            pairs = zip(choice.demonstrated, given, strict=True)
            demonstrations = [(self.demonstration(row_ids[prompt]), weight) for prompt, weight in pairs]
        elif plan.demonstrations and plan.collected:
            demonstrations = [(row, 1.0) for row in self.collected.next(in_pairs=plan.preferences)]
        elif plan.demonstrations:
            demonstrations = [(row, 1.0) for row in self.demonstrations.next()]
        data = StepData(rollouts, demonstrations, in_pairs=plan.preferences)
        data.num_tokens["demonstration"] = sum(len(row.response) for row, _ in demonstrations)
        data.num_sequences["demonstration"] = len(demonstrations)
        data.num_tokens["rollout"] = sum(self.num_learned_tokens[key] for key in rollouts.keys) if rollouts else 0
        data.num_sequences["rollout"] = len(rollouts) if rollouts else 0
        return data

    def mini_batches_of(self, data: StepData) -> list[tuple[WeightedDemonstrations, KVBatchMeta | None]]:
        """Cut both halves into the step's mini-batches; those without anything to learn from are left out."""
        count = self.num_mini_batches
        rollouts: list[KVBatchMeta | None] = [None] * count
        if data.rollouts is not None:
            rollouts = [part if has_tokens(part) else None for part in self.mini_batches(data.rollouts, count)]
        parts = zip(self.cut(data.demonstrations, unit=2 if data.in_pairs else 1), rollouts, strict=True)
        return [(part, batch) for part, batch in parts if part or batch is not None]

    def cut(self, demonstrations: WeightedDemonstrations, unit: int = 1) -> list[WeightedDemonstrations]:
        """The step's mini-batches of demonstrations: parts of whole units in order, as equal as can be."""
        share, longer = divmod(len(demonstrations) // unit, self.num_mini_batches)
        starts = [unit * (index * share + min(index, longer)) for index in range(self.num_mini_batches + 1)]
        return [demonstrations[start:end] for start, end in itertools.pairwise(starts)]

    # ---- collected rollouts ------------------------------------------------------------------------------------

    def collect_rollouts(self, batch: KVBatchMeta, choice: Choice, groups: Groups) -> None:
        """Keep the chosen rollouts as demonstrations, with their rewards; of a longer episode every row."""
        if choice.collect is None:
            return
        fields = self.fetch(batch, "prompts", "responses", "response_mask")
        columns = zip(*(fields[name].unbind() for name in ("prompts", "responses", "response_mask")), strict=True)
        for (prompt, response, mask), rollout in zip(columns, self.rollout_of_row.tolist(), strict=True):
            if choice.collect[rollout]:
                row_id = groups.row_ids[int(groups.prompts[rollout])]
                row = Demonstration(row_id, prompt.tolist(), response.tolist(), mask.tolist())
                self.collected.add(row, float(groups.rewards[rollout]))

    def weigh_pairs(self, rows: WeightedDemonstrations) -> WeightedDemonstrations:
        """Better and worse answers in turn, with the method's weights for the policy as it is now."""
        batch, order = self.to_batch(rows), self.row_order(rows)
        sums = self.actor_rollout_wg.sequence_log_probs(batch)
        place = torch.tensor([order.index(index) for index in range(len(rows))])
        weights = self.method.pair_weights(sums["policy"][place], sums["reference"][place])
        return [(row, weight) for (row, _), weight in zip(rows, weights.tolist(), strict=True)]

    def stream_batches(self) -> list[WeightedDemonstrations]:
        """The next batch of the demonstrations' own stream, cut into mini-batches."""
        return self.cut([(row, 1.0) for row in self.demonstrations.next()])

    def peek(self, num_batches: int) -> Iterator[TensorDict]:
        """Batches of demonstrations in an order of their own: the stream of training stays where it is."""
        stream = DemonstrationStream(
            self.demonstrations.demonstrations, self.demonstrations.batch_size, self.settings.demonstrations.seed + 1
        )
        for _ in range(num_batches):
            yield self.to_batch([(row, 1.0) for row in stream.next()])

    def to_batch(self, rows: WeightedDemonstrations) -> TensorDict:
        """Demonstrations as a batch whose rows are spread over the ranks by length; no-op rows fill the last rank."""
        demonstrations, weights = zip(*rows, strict=True)
        order = self.row_order(rows)
        return collate(
            demonstrations,
            weights,
            num_padding=len(order) - len(rows),
            order=order,
            processor=self.processor,
            processor_kwargs=self.processor_kwargs(),
        )

    def processor_kwargs(self) -> dict:
        """Settings of a vision-language model's processor, the same in rollouts and in training."""
        return dict(self.config.data.get("mm_processor_kwargs") or {})

    def row_order(self, rows: WeightedDemonstrations) -> list[int]:
        """Indices of the rows, and of those that fill up, rank by rank."""
        num_ranks = self.data_parallel_size()
        lengths = [len(row.prompt) + len(row.response) for row, _ in rows] + [2] * (-len(rows) % num_ranks)
        return [index for part in balanced_partitions(torch.tensor(lengths), num_ranks) for index in part]

    # ---- where the data stands ---------------------------------------------------------------------------------

    def data_state(self) -> dict[str, Any]:
        """The position of every stream, and what was collected."""
        return {
            "prompts": self.prompts.state_dict(),
            "utility_prompts": self.utility_prompts.state_dict() if self.utility_prompts else None,
            "demonstrations": self.demonstrations.state_dict(),
            **self.collected.state_dict(),
        }

    def load_data_state(self, state: dict[str, Any]) -> None:
        self.prompts.load_state_dict(state["prompts"])
        if self.utility_prompts:
            self.utility_prompts.load_state_dict(state["utility_prompts"])
        self.demonstrations.load_state_dict(state["demonstrations"])
        self.collected.load_state_dict(state)

    def stream_metrics(self) -> dict[str, float]:
        return {
            "data/prompt_epoch": float(self.prompts.epoch),
            "data/demonstration_epoch": float(self.demonstrations.epoch),
            "data/utility_epoch": float(self.utility_prompts.epoch if self.utility_prompts else 0),
            "data/demonstrations_left_out": float(len(self.reasons_left_out)),
        }


def check_guidance(method: Method, rows: Mapping[str, Demonstration], tokenizer, max_prompt_length: int) -> None:
    """ValueError when a prompt and a text that the method puts before it are longer than `max_prompt_length` tokens.

    verl would cut the prompt off on the left. Two line breaks stand between them (verl_ext/agent_loop.py).
    """
    texts = dict(zip(rows, method.guidance(0, list(rows)) or (), strict=False))
    different = sorted({text for guidance in texts.values() for text in guidance})
    if not different:
        return
    encoded = tokenizer([f"{text}\n\n" for text in different], add_special_tokens=False)["input_ids"]
    num_tokens = dict(zip(different, map(len, encoded), strict=True))
    lengths = {
        row_id: len(rows[row_id].prompt) + max((num_tokens[text] for text in guidance), default=0)
        for row_id, guidance in texts.items()
    }
    too_long = [row_id for row_id, length in lengths.items() if length > max_prompt_length]
    if too_long:
        name, options = method.config.method.name, dict(method.config.method.options)
        raise ValueError(
            f"{len(too_long)} of {len(rows)} prompts are longer than data.max_prompt_length={max_prompt_length} tokens "
            f"with the guidance of method={name} before them (the first is row {too_long[0]}); give at least "
            f"data.max_prompt_length={max(lengths.values())}, or shorter guidance (amft.method.options={options})."
        )


def has_tokens(batch: KVBatchMeta) -> bool:
    """Whether any row is more than padding."""
    return any(not tag.get("is_padding", False) for tag in batch.tags)
