"""verl's synchronous v1 trainer, opened up: rollouts, weight sync and checkpoints as calls that a recipe's loop makes.

A recipe subclasses `RecipeTrainer`, names its actor worker class and writes its own loop. Nothing of verl is copied:
log-probabilities, advantages, critic updates, validation and checkpoint formats are the parent's methods.
"""

import json
import math
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta
from verl.checkpoint_engine import CheckpointEngineManager
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.utils import Role, create_rl_dataset, create_rl_sampler
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, trainer_base
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions
from verl.workers.config import HFModelConfig
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.utils.padding import response_to_nested

from verl_ext.llm_servers import OnlyReplicaClient, Servers
from verl_ext.replay_buffer import BoundedReplayBuffer
from verl_ext.watchdog import Watchdog

COMPLETE = "COMPLETE"


class NoRolloutEngine:
    """Stands for verl's LLMServerManager as long as there is no engine."""

    @classmethod
    def create(cls, **kwargs) -> "NoRolloutEngine":
        return cls()

    def get_replicas(self) -> list:
        return []


class RecipeTrainer(PPOTrainerSync):
    """The services that a recipe's training loop is written with.

    Args:
        config: verl's composed configuration.
        actor_worker_class: the recipe's subclass of `ActorRolloutRefWorker`.
        watchdog: ends the run when a phase does not come back.
        rollout_seconds: longest wait for one wave of rollouts.
        poll_seconds: pause between two looks at the replay buffer.
    """

    def __init__(self, config, *, actor_worker_class, watchdog: Watchdog, rollout_seconds: float, poll_seconds: float):
        self.actor_worker_class = actor_worker_class
        self.watchdog = watchdog
        self.rollout_seconds = rollout_seconds
        self.poll_seconds = poll_seconds
        self.agent_loop_manager: AgentLoopManagerTQ | None = None
        self._replicas_awake = False
        self._weights_synced = False
        self.timings: dict[str, float] = {}
        super().__init__(config)

    # ---- construction ------------------------------------------------------------------------------------------

    def _setup(self) -> None:
        """verl's, but for the rollout engine, which `start_rollout_engine` starts."""
        with patch.object(trainer_base, "LLMServerManager", NoRolloutEngine):
            super()._setup()

    def _build_replay_buffer(self) -> BoundedReplayBuffer:
        sampler = self.config.trainer.v1.sampler
        return BoundedReplayBuffer(
            trainer_mode=self.trainer_mode,
            trainer_config=self.config.trainer.v1.sync,
            max_off_policy_threshold=sampler.max_off_policy_threshold,
            max_off_policy_strategy=sampler.max_off_policy_strategy,
            sampler_kwargs=sampler.sampler_kwargs,
            poll_interval=self.poll_seconds,
            timeout_seconds=self.rollout_seconds,
        )

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        self.role_worker_mapping[self._actor_role()] = ray.remote(self.actor_worker_class)

    def _actor_role(self) -> Role:
        """The role of the workers that hold the policy: verl's name for them says whether a reference is among them."""
        has_reference = Role.ActorRolloutRef in self.role_worker_mapping
        return Role.ActorRolloutRef if has_reference else Role.ActorRollout

    def _init_tokenizer(self) -> None:
        model: HFModelConfig = omega_conf_to_dataclass(self.config.actor_rollout_ref.model)
        self.tokenizer, self.processor = model.tokenizer, model.processor
        self.hf_model_type: str = model.hf_config.model_type

    def on_init_end(self) -> None:
        """There is no rollout engine yet (verl would sync its weights here)."""

    def make_prompt_loader(self, files: list[str], batch_size: int) -> StatefulDataLoader:
        """A loader of `files` with verl's data set, sampler and collation."""
        dataset = create_rl_dataset(files, self.config.data, self.tokenizer, self.processor, is_train=True)
        return StatefulDataLoader(
            dataset=dataset,
            batch_size=batch_size,
            num_workers=self.config.data.dataloader_num_workers,
            drop_last=True,
            collate_fn=collate_fn,
            sampler=create_rl_sampler(self.config.data, dataset),
        )

    def data_parallel_size(self) -> int:
        """Number of data-parallel ranks of the actor."""
        if "actor" not in self.actor_rollout_wg._dispatch_info:
            self.actor_rollout_wg._dispatch_info["actor"] = self.actor_rollout_wg._query_dispatch_info("actor")
        return max(self.actor_rollout_wg._dispatch_info["actor"]) + 1

    def _validate(self) -> dict[str, float]:
        """verl's validation; it fails inside TransferQueue when not one rollout has survived, which is said here."""
        try:
            return super()._validate()
        except ValueError as error:
            if "empty list as keys" not in str(error):
                raise
            raise RuntimeError(
                f"all validation rollouts failed at step {self.global_steps}: the rollout engine is dead, or the "
                "environment raised for every row. The logs of vLLM and of the agent-loop worker name the cause."
            ) from None

    # ---- weights and rollouts ----------------------------------------------------------------------------------

    def weights_changed(self) -> None:
        """Call after an optimiser step: the rollout engine's copy is out of date."""
        self._weights_synced = False

    def save_weights(self, folder: Path) -> None:
        """Write the policy's weights alone, beside the checkpoints."""
        with self.watchdog.phase("checkpoint"):
            self.actor_rollout_wg.save_weights(str(folder / "actor"))

    def load_weights(self, folder: Path) -> None:
        """Go back to what `save_weights` wrote."""
        with self.watchdog.phase("checkpoint"):
            self.actor_rollout_wg.load_weights(str(folder / "actor"))
        self.weights_changed()

    def export_model(self, folder: Path) -> None:
        """The policy with its tokenizer or processor, as Hugging Face reads it."""
        with self.watchdog.phase("export"):
            self.actor_rollout_wg.export_model(str(folder))
        (self.processor or self.tokenizer).save_pretrained(folder)

    def start_rollout_engine(self) -> None:
        """Start the rollout engine, asleep, and the agent loops that use it, unless they run.

        A run that generates does so before its first step, so that what is wrong with them is known then. Others do
        with their first validation: until then the engine takes neither time nor memory.
        """
        if self.agent_loop_manager is not None:
            return
        self.actor_rollout_wg.release_cached_memory()  # the engine measures what is free
        rollout = self.config.actor_rollout_ref.rollout
        ranks = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
        only_replica = self.actor_rollout_wg.world_size == ranks
        if only_replica:
            self._start_agent_loops(OnlyReplicaClient(self.config))
        self.llm_server_manager = Servers.create(
            config=self.config,
            worker_group=self.actor_rollout_wg,
            rollout_resource_pool=self.resource_pool_manager.get_resource_pool(self._actor_role()),
        )
        engine = omega_conf_to_dataclass(rollout.checkpoint_engine)
        engine.backend = "naive"
        self.checkpoint_manager = CheckpointEngineManager(
            config=engine, actor_wg=self.actor_rollout_wg, replicas=self.llm_server_manager.get_replicas()
        )
        self.checkpoint_manager.sleep_replicas()
        if not only_replica:
            self._start_agent_loops(self.get_llm_client())

    def _start_agent_loops(self, client: LLMServerClient) -> None:
        """Their processes take as long to start as the engine's own."""
        self.agent_loop_manager = AgentLoopManagerTQ.create(
            config=self.config,
            llm_client=client,
            teacher_client=self.get_teacher_client(),
            reward_loop_worker_handles=self.get_reward_handles(),
        )

    def wake_rollout_engine(self) -> None:
        """Bring the rollout engine up with the current weights; free of cost when it already has them."""
        self.start_rollout_engine()
        if self._weights_synced and self._replicas_awake:
            return
        with self.watchdog.phase("weight sync"):
            if self._replicas_awake:
                self.checkpoint_manager.sleep_replicas()
            self.checkpoint_manager.update_weights(self.global_steps)
        self._replicas_awake = self._weights_synced = True

    def sleep_rollout_engine(self) -> None:
        """Give the engine's memory back to training. Its weights are gone with it where sleeping frees them."""
        if self._replicas_awake:
            self.checkpoint_manager.sleep_replicas()
            self._replicas_awake = False

    def submit(self, prompts: TensorDict) -> list[str]:
        """Start generating for `prompts`; returns their ids. Several waves may be in flight together."""
        ids = list(prompts["uid"])
        tags = [{"is_prompt": True, "status": "pending", "global_steps": self.global_steps} for _ in ids]
        tq.kv_batch_put(keys=ids, partition_id="train", tags=tags)
        self.agent_loop_manager.generate_sequences(prompts)
        return ids

    def collect(self, *waves: list[str]) -> list[KVBatchMeta]:
        """Wait for all submitted prompts; one batch per wave, rows in a fixed order.

        Rollouts that failed are missing from their batch; a wave without a single row raises RuntimeError.
        """
        batch, _ = self.replay_buffer.sample(
            global_steps=self.global_steps, partition_id="train", batch_size=sum(len(wave) for wave in waves)
        )
        batches = []
        for wave in waves:
            members = set(wave)
            keys = sorted(
                (key for key in batch.keys if key.split("_")[0] in members),
                key=lambda key: (key.split("_")[0], *map(int, key.split("_")[1:])),
            )
            if not keys:
                raise RuntimeError(
                    f"all rollouts of {len(wave)} prompts failed at step {self.global_steps}: the environment or the "
                    "agent loop raised for every one of them; the agent-loop worker's log has the first traceback."
                )
            batches.append(batch.select_keys(keys))
        return batches

    def balance(self, batch: KVBatchMeta, multiple: int) -> KVBatchMeta:
        """Pad with no-op rows to a multiple of `multiple` (itself one of the number of ranks), even out tokens.

        The rows come in the order that verl's dispatch expects: rank 0's first. Padding rows have an empty response
        mask and the tag `is_padding`.
        """
        batch = upsample_batch_to_divisible_size(batch, multiple, self.tokenizer.eos_token_id)
        lengths = torch.tensor([tag["seq_len"] for tag in batch.tags], dtype=torch.int64)
        batch.reorder([row for part in balanced_partitions(lengths, self.data_parallel_size()) for row in part])
        return batch

    def mini_batches(self, batch: KVBatchMeta, count: int) -> list[KVBatchMeta]:
        """Cut a balanced batch into `count` mini-batches with equally many rows of every rank."""
        num_ranks = self.data_parallel_size()
        rows = torch.arange(len(batch)).view(num_ranks, count, -1)
        return [batch.select_keys([batch.keys[row] for row in rows[:, index].flatten()]) for index in range(count)]

    def fetch(self, batch: KVBatchMeta, *fields: str) -> TensorDict:
        return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(fields))

    def put_per_sequence(self, batch: KVBatchMeta, name: str, values: torch.Tensor) -> None:
        """Store one number per row, (B,), repeated over the row's response tokens as verl stores advantages."""
        mask = self.fetch(batch, "response_mask")["response_mask"]
        longest = int(mask.offsets().diff().max())
        field = response_to_nested(values.unsqueeze(-1).expand(-1, longest), mask)
        fields = TensorDict({name: field}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def clear(self, batch: KVBatchMeta) -> None:
        tq.kv_clear(keys=batch.keys, partition_id=batch.partition_id)

    # ---- a training step ---------------------------------------------------------------------------------------

    def evaluate_rollouts(
        self, batch: KVBatchMeta, num_mini_batches: int, has_advantages: bool
    ) -> tuple[KVBatchMeta, dict[str, float]]:
        """Old log-probabilities, [reference], [values], advantages and [critic update], all by verl, with its metrics.

        Args:
            num_mini_batches: that the batch must divide into; no-op rows fill it up.
            has_advantages: they are stored with the batch already, and stay.
        """
        num_ranks = self.data_parallel_size()
        multiple = math.lcm(self._get_required_batch_multiple(num_ranks), num_ranks * num_mini_batches)
        batch = self.balance(batch, multiple)
        batch.extra_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
        metrics: dict[str, float] = {}
        with self.timed("log_probs"):
            batch = self._compute_old_log_prob(batch, metrics)
            if self.use_reference_policy:
                batch = self._compute_ref_log_prob(batch, metrics)
            if self.use_critic:
                batch = self._compute_values(batch, metrics)
        if not has_advantages:
            batch = self._compute_advantage(batch, metrics)
        if self.use_critic:
            with self.timed("critic"):
                batch = self._update_critic(batch, metrics)
        return batch, metrics

    def loss_inputs(self, **extra) -> dict:
        """Non-tensor inputs that verl's engine and policy loss read from a batch."""
        actor, rollout = self.config.actor_rollout_ref.actor, self.config.actor_rollout_ref.rollout
        return {
            "temperature": rollout.temperature,
            "calculate_entropy": actor.calculate_entropy or actor.entropy_coeff != 0,
            "global_batch_size": actor.ppo_mini_batch_size * rollout.n,
            "distillation_use_topk": False,
            "distillation_only": False,
            "compute_loss": True,
        } | extra

    @contextmanager
    def timed(self, name: str):
        """Add the seconds of the block to `timings[name]`."""
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def checkpoint_root(self) -> Path:
        return Path(self.config.trainer.default_local_dir).absolute()

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end, whatever happened after it."""
        complete = [path.parent for path in self.checkpoint_root().glob(f"global_step_*/{COMPLETE}")]
        return max(complete, key=lambda path: int(path.name.rsplit("_", 1)[1]), default=None)

    def save_recipe_state(self, folder: Path) -> None:
        """Hook: write what the recipe remembers into `folder`, before verl writes its tracker file."""

    def load_recipe_state(self, folder: Path) -> None:
        """Hook: read what `save_recipe_state` wrote."""

    def save_checkpoint(self, keep: int | None) -> Path:
        """Write a checkpoint, mark it complete as the very last thing, then delete all but the newest `keep`."""
        folder = self.checkpoint_root() / f"global_step_{self.global_steps}"
        with self.watchdog.phase("checkpoint"):
            (folder / COMPLETE).unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            self.save_recipe_state(folder)
            super()._save_checkpoint()
        write_atomically(folder / COMPLETE, json.dumps({"step": self.global_steps}))
        if keep is not None:
            self._delete_old_checkpoints(keep)
        return folder

    def _delete_old_checkpoints(self, keep: int) -> None:
        folders = sorted(
            self.checkpoint_root().glob("global_step_*"), key=lambda path: int(path.name.rsplit("_", 1)[1])
        )
        for folder in folders[:-keep]:
            (folder / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(folder)

    def before_loading(self, folder: Path | None = None) -> None:
        """Hook: the workers hold the model they were given; the checkpoint `folder`, if any, is loaded next."""

    def _load_checkpoint(self) -> None:
        """verl's loader, pointed at the newest complete checkpoint instead of at the tracker file."""
        trainer = self.config.trainer
        if trainer.resume_mode == "auto":
            latest = self.latest_checkpoint()
            trainer.resume_mode = "disable" if latest is None else "resume_path"
            trainer.resume_from_path = None if latest is None else str(latest)
        path = trainer.resume_from_path if trainer.resume_mode == "resume_path" else None
        folder = Path(path).absolute() if path else None
        self.before_loading(folder)
        super()._load_checkpoint()
        if folder is not None:
            self.load_recipe_state(folder)


def balanced_partitions(lengths: torch.Tensor, num_ranks: int) -> list[list[int]]:
    """Row indices per rank, equally many, with about equal work for sequences of these lengths (B,)."""
    return get_seqlen_balanced_partitions(calculate_workload(lengths), k_partitions=num_ranks, equal_size=True)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old or the new content and nothing between."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
