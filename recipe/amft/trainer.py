"""The driver of AMFT: `train_step` reads like Algorithm 2.

One training step t, with mu chosen before the policy update:

    generate rollouts (and, every K steps, validation rollouts in the same wave)
    meta-update: <grad U(theta_t), d theta_t / d mu>
    the method chooses rollouts and demonstrations
    old log-probabilities, advantages, critic update                                 (verl's own)
    per mini-batch: grad L_SFT, grad L_RL -> mu (once a step) -> (1 - mu) g_RL + mu g_SFT -> clip -> optimiser

Which method runs is never asked: `recipe.amft.methods` answers the four questions of methods/base.py.
"""

import json
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from recipe.amft.algorithm.advantages import leave_one_out
from recipe.amft.algorithm.mixture import MixtureState, update_scales
from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.config import AMFTConfig
from recipe.amft.data.demonstrations import Demonstration, DemonstrationStream, row_identity
from recipe.amft.methods import Choice, Measurements, Mix, Stage, StepPlan, Sum, make_method
from recipe.amft.run_folder import RunFolder
from recipe.amft.step_data import StepData, StepDataTrainer
from recipe.amft.worker import BATCH_ENTROPY, MEASURES_UTILITY, AMFTWorker, MixturePlan
from verl_ext.trainer import add_field, write_atomically
from verl_ext.watchdog import Watchdog

STATE_FILE = "amft.json"
STREAMS_FILE = "amft_streams.pt"
STEP_SHARES = ("per_step_accuracy", "recognition_accuracy")  # beside success, where the environment gives them
BEST, REFERENCE = "best_step_", "reference"  # folders of weights beside the checkpoints


@dataclass(frozen=True)
class Best:
    """The best validation of a stage so far: its step, and `val/success`."""

    step: int
    success: float


class AMFTTrainer(StepDataTrainer):
    """Trains with any method of `recipe.amft.methods` on verl's worker groups.

    Args:
        config: the composed Hydra configuration (verl's nodes).
        settings: its `amft:` node, checked.
        folder: where metrics, samples, checkpoints and the final model go.
    """

    def __init__(self, config, settings: AMFTConfig, folder: RunFolder, watchdog: Watchdog):
        self.folder = folder
        self.begin(settings)
        self.learning_rate = float(config.actor_rollout_ref.actor.optim.lr)
        self.timings: dict[str, float] = {}
        super().__init__(
            config,
            actor_worker_class=AMFTWorker,
            watchdog=watchdog,
            rollout_seconds=settings.limits.rollout_seconds,
            poll_seconds=settings.limits.poll_seconds,
        )

    def begin(self, settings: AMFTConfig) -> None:
        """What a run starts with: its method, and nothing remembered."""
        self.settings = settings
        self.method = make_method(settings)
        self.method_state = self.method.initial_state()
        self.mixture_state = MixtureState()
        self.stage, self.stage_name = Stage(), Stage().name
        self.best: Best | None = None  # of this stage
        self.configured: tuple | None = None  # losses that the workers know

    # ---- the loop ----------------------------------------------------------------------------------------------

    def fit(self, agent_loop_manager) -> None:
        """Warm-up, H*, main loop; from wherever the last checkpoint stopped."""
        self.agent_loop_manager = agent_loop_manager
        self.folder.start_training(self.num_steps, self.global_steps)
        if self.global_steps == 0 and self.config.trainer.val_before_train:
            self.folder.log(0, self.validate(), phase="start")
        if self.global_steps == 0 and self.settings.warm_up.steps == 0:
            self.finish_warm_up({})
        while self.global_steps < self.num_steps:
            self.global_steps += 1
            self.timings = {}
            with self.timed("step"):
                metrics, phase = self.one_step()
            if self.is_due(self.config.trainer.test_freq):
                with self.timed("validation"):
                    metrics |= self.validate()
                self.keep_best(metrics["val/success"])
            if self.is_due(self.config.trainer.save_freq):  # after the validation, for it remembers the best one
                with self.timed("checkpoint"):
                    self.save_checkpoint(keep=self.settings.keep_checkpoints)
                    self.delete_unused_best()
            metrics |= {f"time/{name}": seconds for name, seconds in self.timings.items()}
            self.folder.log(self.global_steps, metrics, phase=phase)
        self.export_model()

    def one_step(self) -> tuple[dict[str, float], str]:
        warm_up_steps = self.settings.warm_up.steps
        if self.global_steps > warm_up_steps:
            return self.train_step(self.global_steps - warm_up_steps - 1), "train"
        metrics = self.warm_up_step()
        if self.global_steps == warm_up_steps:
            metrics |= self.finish_warm_up(metrics)
            if self.config.trainer.test_freq > 0 and not self.is_due(self.config.trainer.test_freq):
                metrics |= self.validate()
        return metrics, "warm-up"

    def warm_up_step(self) -> dict[str, float]:
        """Phase 1: one supervised step on as many mini-batches as a training step has."""
        learning_rate = self.settings.warm_up.learning_rate or float(self.config.actor_rollout_ref.actor.optim.lr)
        self.configure((self.warm_up_loss, None))
        self.sleep_rollout_engine()
        metrics = []
        for batch in self.stream_batches():
            sft = self.backward_demonstrations(batch)
            step = self.apply_mixture(MixturePlan(weight=1.0, learning_rate=learning_rate))
            metrics.append(sft | step)
        return mean_metrics(metrics)

    @property
    def warm_up_loss(self) -> LossSpec:
        """The configured loss on demonstrations; a method's own may need what a warm-up does not have."""
        return LossSpec(self.settings.demonstrations.loss, self.settings.demonstrations.loss_options)

    def configure(self, losses: tuple[LossSpec, LossSpec | None]) -> None:
        """Tell the workers the losses of the next updates, when they have changed."""
        if losses != self.configured:
            entropy_coefficient = float(self.config.actor_rollout_ref.actor.entropy_coeff)
            self.actor_rollout_wg.configure(*losses, self.settings.controller.meta, entropy_coefficient)
            self.configured = losses

    def finish_warm_up(self, last_step: dict[str, float]) -> dict[str, float]:
        """H*: the warmed policy's mean entropy on demonstrations (Algorithm 2, line 11), where a run draws any.

        A method whose reference is the warmed policy has its weights kept, and written beside the checkpoints.
        """
        measured = self.entropy_on_demonstrations() if self.needs.expert_batches else {}
        if "sft/norm" in last_step:
            measured["sft_norm"] = last_step["sft/norm"]
        self.method_state = self.method.after_warm_up(self.method_state, measured)
        if self.method.reference == "warmed":
            with self.watchdog.phase("checkpoint"):
                self.actor_rollout_wg.save_weights(str(self.checkpoint_root() / REFERENCE / "actor"))
            self.actor_rollout_wg.keep_reference()
        return {"controller/entropy": measured["entropy"]} if "entropy" in measured else {}

    def entropy_on_demonstrations(self) -> dict[str, float]:
        """The policy's mean over a few batches, in an order that leaves the stream of training alone."""
        peek = DemonstrationStream(
            self.demonstrations.demonstrations, self.demonstrations.batch_size, self.settings.demonstrations.seed + 1
        )
        entropies = [
            metrics_of(self.actor_rollout_wg.demonstration_entropy(self.to_batch(rows)))["entropy"]
            for rows in ([(row, 1.0) for row in peek.next()] for _ in range(self.settings.warm_up.entropy_batches))
        ]
        return {"entropy": sum(entropies) / len(entropies)}

    def train_step(self, step: int) -> dict[str, float]:
        """Phase 2, Algorithm 2 lines 15-34, for training step t = `step`."""
        self.enter_stage(self.method.stage(step))
        plan = self.method.plan(step, self.method_state)
        self.configure((self.method.demonstration_loss, self.method.rollout_loss))
        with self.timed("generation"):
            rollouts, utility_rollouts = self.generate(plan, step)
        metrics = self.episode_metrics(self.timings["generation"], rollouts, utility_rollouts)
        entropy, utility = {}, None
        if utility_rollouts is not None:
            with self.timed("meta_gradient"):
                utility, utility_metrics = self.measure_utility(utility_rollouts)
            metrics |= utility_metrics
        choice, row_ids = Choice(), []
        if rollouts is not None:
            groups, rollout_metrics = self.groups(rollouts)
            warning = grader_warning(self.global_steps, groups.rewards, metrics)
            if warning:
                self.folder.say(warning)
            self.method_state, choice = self.method.choose(self.method_state, step, groups)
            self.collect_rollouts(rollouts, choice, groups)
            if not plan.learns:
                self.clear(rollouts)
                return metrics | rollout_metrics | choice.metrics | self.stream_metrics()
            rollouts = self.keep(rollouts, choice)
            metrics |= rollout_metrics | choice.metrics
            row_ids = groups.row_ids
        data = self.step_data(plan, choice, row_ids, rollouts)
        if rollouts is not None:
            data.rollouts, rollout_metrics = self.evaluate_rollouts(rollouts, choice)
            metrics |= rollout_metrics
            data.entropy = entropy["rollout"] = rollout_metrics["rl/entropy"]
        updates, method_metrics = self.update(step, plan, data, entropy, utility)
        if choice.rehearsed:
            updates |= self.rehearse(choice.rehearsed)
        if data.rollouts is not None:
            self.clear(data.rollouts)
        metrics |= updates | method_metrics | self.stream_metrics()
        self.method_state = self.method.observe(self.method_state, step, metrics)
        return metrics

    # ---- stages ------------------------------------------------------------------------------------------------

    def enter_stage(self, stage: Stage) -> None:
        """Nothing within a stage; at its first step, go back to the best weights of the one before if it says so."""
        if stage == self.stage:
            return
        is_first_step = stage.name != self.stage_name
        self.stage, self.stage_name = stage, stage.name
        if is_first_step and stage.from_best and self.best is not None:
            with self.watchdog.phase("checkpoint"):
                self.actor_rollout_wg.load_weights(str(self.best_folder(self.best.step) / "actor"))
            self.weights_changed()
        if is_first_step:
            self.best = None

    def keep_best(self, success: float) -> None:
        """The weights of the best validation of a stage that keeps them, outside of the rotation of checkpoints.

        Each best has a folder of its own, so that the one that the last checkpoint remembers is there whenever this
        run is killed.
        """
        if self.stage.keeps_best and (self.best is None or success > self.best.success):
            with self.watchdog.phase("checkpoint"):
                self.actor_rollout_wg.save_weights(str(self.best_folder(self.global_steps) / "actor"))
            self.best = Best(self.global_steps, success)
            self.delete_unused_best()

    def best_folder(self, step: int) -> Path:
        return self.checkpoint_root() / f"{BEST}{step}"

    def delete_unused_best(self) -> None:
        """Of the best weights, keep those that this run or a checkpoint may go back to; if none, what there is."""
        states = [json.loads(path.read_text()) for path in self.checkpoint_root().glob(f"global_step_*/{STATE_FILE}")]
        used = {state["best"]["step"] for state in states if state["best"]}
        if self.best is not None:
            used.add(self.best.step)
        for folder in self.checkpoint_root().glob(f"{BEST}*"):
            if used and int(folder.name.removeprefix(BEST)) not in used:
                shutil.rmtree(folder)

    # ---- the parts of a step -----------------------------------------------------------------------------------

    def generate(self, plan: StepPlan, step: int) -> tuple[KVBatchMeta | None, KVBatchMeta | None]:
        """Rollouts of the training prompts and, on meta steps, of validation prompts: one wave, one engine sleep."""
        if not plan.rollouts:
            self.sleep_rollout_engine()
            return None, None
        self.wake_rollout_engine()
        rollouts_per_prompt = self.config.actor_rollout_ref.rollout.n
        prompts = self.prompts.next(self.global_steps, rollouts_per_prompt)
        guidance = self.method.guidance(step, [row_identity(row) for row in self.prompts.rows])
        if guidance is not None:
            add_field(prompts, "guidance", guidance)
        waves = [self.submit(prompts)]
        if plan.utility:
            prompts = self.utility_prompts.next(self.global_steps, self.settings.utility.rollouts_per_prompt)
            waves.append(self.submit(prompts))
        batches = self.collect(*waves)
        self.sleep_rollout_engine()
        return batches[0], batches[1] if plan.utility else None

    def measure_utility(self, batch: KVBatchMeta) -> tuple[dict[str, float], dict[str, float]]:
        """The validation worker's answer: <grad U(theta_t), d theta_t / d mu> and the two norms (Eq. 25).

        The baseline of a rollout is the mean of the others of its prompt; prompts with a single surviving rollout
        have none and are left out, counted in `data/lonely_rollouts`.
        """
        groups = [key.split("_")[0] for key in batch.keys]
        lonely = {key for key, group in zip(batch.keys, groups, strict=True) if groups.count(group) == 1}
        if len(lonely) == len(batch):
            raise RuntimeError(f"no validation prompt has two rollouts at step {self.global_steps}: U has no gradient.")
        kept = batch.select_keys([key for key in batch.keys if key not in lonely]) if lonely else batch
        names = sorted(set(groups))
        group_ids = torch.tensor([names.index(key.split("_")[0]) for key in kept.keys])
        rewards = self.fetch(kept, "rm_scores")["rm_scores"].to_padded_tensor(0.0).sum(-1)
        self.put_per_sequence(kept, "advantages", leave_one_out(rewards, group_ids))
        padded = self.balance(kept, self.data_parallel_size())
        padded.extra_info.update(self.loss_inputs(num_sequences=len(group_ids)))
        measured = metrics_of(self.actor_rollout_wg.validation_gradient(padded))
        self.clear(padded)
        return measured, {"meta/utility": rewards.mean().item(), "data/lonely_rollouts": float(len(lonely))}

    def evaluate_rollouts(self, batch: KVBatchMeta, choice: Choice) -> tuple[KVBatchMeta, dict[str, float]]:
        """Old log-probabilities, [reference], [values], advantages and [critic update], all by verl.

        Advantages that the method chose itself were stored with the rollouts and stay.
        """
        num_ranks = self.data_parallel_size()
        multiple = math.lcm(self._get_required_batch_multiple(num_ranks), num_ranks * self.num_mini_batches)
        batch = self.balance(batch, multiple)
        batch.extra_info["temperature"] = self.config.actor_rollout_ref.rollout.temperature
        metrics: dict[str, float] = {}
        with self.timed("log_probs"):
            batch = self._compute_old_log_prob(batch, metrics)
            if self.use_reference_policy:
                batch = self._compute_ref_log_prob(batch, metrics)
            if self.use_critic:
                batch = self._compute_values(batch, metrics)
        if choice.advantages is None:
            batch = self._compute_advantage(batch, metrics)
        if self.use_critic:
            with self.timed("critic"):
                batch = self._update_critic(batch, metrics)
        metrics["rl/entropy"] = metrics.pop("actor/entropy")
        return batch, metrics

    def update(
        self, step: int, plan: StepPlan, data: StepData, entropy: dict[str, float], utility: dict[str, float] | None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """One optimiser step per mini-batch that has anything to learn from: (update metrics, method's metrics)."""
        mini_batches = self.mini_batches_of(data)
        combination: Mix | Sum | None = None
        updates: list[dict[str, float]] = []
        method_metrics: dict[str, float] = {}
        with self.timed("update"):
            for index, (demonstrations, rollouts) in enumerate(mini_batches):
                if data.in_pairs:
                    demonstrations = self.weigh_pairs(demonstrations)
                sft = self.backward_demonstrations(demonstrations) if demonstrations else {}
                measures = plan.rollout_utility and combination is None
                rl = self.backward_rollouts(rollouts, data, measures) if rollouts is not None else {}
                if combination is None:
                    if measures and rl:
                        utility = {name: rl.pop(f"rl/{name}") for name in ("dot", "utility_norm", "tangent_norm")}
                    entropy |= {"demonstration": sft["sft/entropy"]} if sft else {}
                    measured = Measurements(entropy, utility, self.learning_rate, data.num_tokens, data.num_sequences)
                    self.method_state, combination, method_metrics = self.method.combine(
                        self.method_state, step, measured
                    )
                    if isinstance(combination, Mix):
                        method_metrics = method_metrics | {"controller/mu": combination.mu}
                mixture = self.mixture_plan(combination, sft, rl, plan, index, len(mini_batches))
                updates.append(sft | rl | self.apply_mixture(mixture))
        return mean_metrics(updates) | {"data/updates": float(len(updates))}, method_metrics

    def rehearse(self, row_ids: Sequence[str]) -> dict[str, float]:
        """The method's further supervised update, on the demonstrations of these rows."""
        rehearsal = self.method.rehearsal
        rows = [(self.demonstration(row_id), 1.0) for row_id in row_ids]
        sft = self.backward_demonstrations(rows)
        scheduled = self.learning_rate
        plan = MixturePlan(weight=1.0, learning_rate=rehearsal.learning_rate, optimizer=rehearsal.optimizer)
        step = self.apply_mixture(plan)
        self.learning_rate = scheduled
        return {f"rehearsal/{name.split('/')[1]}": value for name, value in (sft | step).items()}

    def backward_demonstrations(self, rows: Sequence[tuple[Demonstration, float]]) -> dict[str, float]:
        measured = metrics_of(self.actor_rollout_wg.backward_demonstrations(self.to_batch(rows)))
        return {f"sft/{name}": value for name, value in measured.items()}

    def backward_rollouts(self, batch: KVBatchMeta, data: StepData, measures_utility: bool) -> dict[str, float]:
        num_sequences = data.num_sequences["rollout"] / self.num_mini_batches
        if measures_utility:
            batch.extra_info[MEASURES_UTILITY] = True
        batch.extra_info.update(self.loss_inputs(num_sequences=num_sequences))
        if self.configured is not None and self.configured[1] is not None:
            batch.extra_info["calculate_entropy"] = True
            if self.configured[1].needs_batch_entropy:
                batch.extra_info[BATCH_ENTROPY] = data.entropy
        measured = metrics_of(self.actor_rollout_wg.backward_rollouts(batch))
        return {f"rl/{name.removeprefix('actor/')}": value for name, value in measured.items()}

    def mixture_plan(
        self, combination: Mix | Sum, sft: dict, rl: dict, plan: StepPlan, index: int, num_mini_batches: int
    ) -> MixturePlan:
        if isinstance(combination, Sum):
            weight, scales, skip_above = None, (combination.sft, combination.rl), combination.skip_above
        else:
            weight, scales, skip_above = combination.mu, (1.0, 1.0), None
            if sft and rl:
                self.mixture_state, *scales = update_scales(
                    self.mixture_state, sft["sft/norm"], rl["rl/norm"], self.settings.mixture
                )
        return MixturePlan(
            weight=weight,
            sft_scale=scales[0],
            rl_scale=scales[1],
            starts_step=index == 0,
            ends_step=index == num_mini_batches - 1,
            track_tangent=plan.track_tangent,
            skip_above=skip_above,
            learning_rate=self.stage.learning_rate,
            optimizer=self.stage.optimizer,
        )

    def apply_mixture(self, plan: MixturePlan) -> dict[str, float]:
        step = self.actor_rollout_wg.apply_mixture(plan)[0]
        self.weights_changed()
        self.learning_rate = step["lr"]
        return {
            "actor/grad_norm": step["grad_norm"],
            "actor/lr": step["lr"],
            "actor/skipped_steps": step["skipped"],
            "mixture/sft_scale": plan.sft_scale,
            "mixture/rl_scale": plan.rl_scale,
        }

    def validate(self) -> dict[str, float]:
        """verl's validation on `data.val_files`; `val/success` is the mean over data sources of mean accuracy."""
        self.wake_rollout_engine()
        with self.watchdog.phase("validation"):
            metrics = self._validate()
        by_source = {
            name.split("/")[1]: value
            for name, value in metrics.items()
            if name.startswith("val-core/") and "/acc/mean@" in name
        }
        extras = {
            f"val/{name.split('/')[1]}/{name.split('/')[2]}": value
            for name, value in metrics.items()
            if name.startswith("val-aux/") and name.split("/")[2] in STEP_SHARES and "/mean@" in name
        }
        return {
            "val/success": sum(by_source.values()) / len(by_source),
            **{f"val/{source}/success": value for source, value in by_source.items()},
            **extras,
            "val/num_turns": float(metrics["val-aux/num_turns/mean"]),
        }

    def export_model(self) -> None:
        """The final policy as a Hugging Face folder."""
        path = self.folder.model_path()
        with self.watchdog.phase("export"):
            self.actor_rollout_wg.export_model(str(path))
        (self.processor or self.tokenizer).save_pretrained(path)

    # ---- state -------------------------------------------------------------------------------------------------

    def before_loading(self, folder: Path | None = None) -> None:
        """Keep the reference policy, where one is needed, whatever checkpoint the run goes on from.

        It is the model that the run was given; for a method that wants the warmed policy only until the warm-up's end,
        whose weights lie beside the checkpoints.
        """
        if self.config.actor_rollout_ref.actor.freeze_vision_tower:
            self.actor_rollout_wg.freeze_vision_tower()
        losses = (self.warm_up_loss, self.method.demonstration_loss)
        warmed = folder is not None and int(folder.name.rsplit("_", 1)[1]) >= self.settings.warm_up.steps
        if self.method.reference == "warmed" and warmed:
            self.actor_rollout_wg.load_weights(str(folder.parent / REFERENCE / "actor"))
            self.actor_rollout_wg.keep_reference()
        elif self.method.reference == "given" or any(loss.needs_reference for loss in losses):
            self.actor_rollout_wg.keep_reference()

    def save_recipe_state(self, folder: Path) -> None:
        """Everything beyond weights and optimiser that the next step depends on."""
        self.actor_rollout_wg.save_state(str(folder / "workers"))
        streams = {
            "prompts": self.prompts.state_dict(),
            "utility_prompts": self.utility_prompts.state_dict() if self.utility_prompts else None,
            "demonstrations": self.demonstrations.state_dict(),
            "collected": [(vars(row), reward) for row, reward in self.collected],
            "collected_position": self.collected_position,
        }
        torch.save(streams, folder / STREAMS_FILE)
        state = {
            "method": self.settings.method.name,
            "method_state": self.method.state_to_dict(self.method_state),
            "mixture_state": vars(self.mixture_state),
            "stage": self.stage_name,
            "best": None if self.best is None else vars(self.best),
            "learning_rate": self.learning_rate,
        }
        write_atomically(folder / STATE_FILE, json.dumps(state, indent=1))

    def load_recipe_state(self, folder: Path) -> None:
        state = json.loads((folder / STATE_FILE).read_text())
        if state["method"] != self.settings.method.name:
            raise ValueError(
                f"{folder} was written by method={state['method']}, this run is method={self.settings.method.name}; "
                "give the new method its own amft.run_dir."
            )
        self.method_state = self.method.state_from_dict(state["method_state"])
        self.mixture_state = MixtureState(**state["mixture_state"])
        self.learning_rate = state["learning_rate"]
        self.stage_name = state["stage"]
        self.best = None if state["best"] is None else Best(**state["best"])
        streams = torch.load(folder / STREAMS_FILE, weights_only=False)
        self.prompts.load_state_dict(streams["prompts"])
        if self.utility_prompts:
            self.utility_prompts.load_state_dict(streams["utility_prompts"])
        self.demonstrations.load_state_dict(streams["demonstrations"])
        self.forget_collected()
        self.collected = [(Demonstration(**row), reward) for row, reward in streams["collected"]]
        self.collected_position = streams["collected_position"]
        self.actor_rollout_wg.load_state(str(folder / "workers"))

    # ---- small helpers -----------------------------------------------------------------------------------------

    def is_due(self, every: int) -> bool:
        """Every `every` steps and at the end; never when `every` is not positive."""
        return every > 0 and (self.global_steps % every == 0 or self.global_steps == self.num_steps)

    @contextmanager
    def timed(self, name: str):
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start


def metrics_of(output: TensorDict) -> dict[str, float]:
    """The scalars that a worker call returned."""
    return output["metrics"]


def mean_metrics(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over the mini-batches that have it, name by name."""
    names = dict.fromkeys(name for row in rows for name in row)
    having = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in having.items()}


def grader_warning(step: int, rewards: torch.Tensor, metrics: dict[str, float]) -> str | None:
    """What to say of rewards (B,) that are all 0 while graders had trouble: it looks like a policy that fails."""
    timeouts, crashes = metrics.get("data/grader_timeouts", 0.0), metrics.get("data/grader_crashes", 0.0)
    if timeouts + crashes == 0 or bool(rewards.any()):
        return None
    return (
        f"warning: step {step}: all {len(rewards)} rollouts have reward 0, and graders ran out of time on "
        f"{timeouts:.0f} answers and crashed on {crashes:.0f}; the grader may be at fault, not the policy "
        "(docs/graders.md)"
    )
