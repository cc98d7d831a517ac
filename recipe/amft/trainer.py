"""The driver of AMFT: `train_step` reads like Algorithm 2.

One training step t, with mu chosen before the policy update:

    generate rollouts (and, every K steps, validation rollouts in the same wave)
    meta-update: <grad U(theta_t), d theta_t / d mu>
    the method chooses rollouts and demonstrations
    old log-probabilities, advantages, critic update                                 (verl's own)
    per mini-batch: grad L_SFT, grad L_RL -> mu (once a step) -> (1 - mu) g_RL + mu g_SFT -> clip -> optimiser

Which method runs is never asked: `recipe.amft.methods` answers the four questions of methods/base.py.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transfer_queue import KVBatchMeta

from recipe.amft.algorithm.advantages import leave_one_out
from recipe.amft.algorithm.meta_gradient import pooled
from recipe.amft.algorithm.mixture import update_scales
from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.collected import CollectedRollouts
from recipe.amft.config import AMFTConfig
from recipe.amft.data.demonstrations import row_identity
from recipe.amft.methods import Choice, Measurements, Mix, StepPlan, Sum, make_method
from recipe.amft.run_folder import RunFolder
from recipe.amft.run_state import STATE_FILE, RunState, read_state, state_text
from recipe.amft.stages import Stages
from recipe.amft.step_data import StepData, StepDataTrainer, WeightedDemonstrations
from recipe.amft.step_metrics import grader_warning, mean_metrics, metrics_of, validation_metrics
from recipe.amft.worker import BATCH_ENTROPY, MEASURES_UTILITY, MU_NEXT, MU_NOW, AMFTWorker, MixturePlan
from verl_ext.prompts import add_field
from verl_ext.trainer import write_atomically
from verl_ext.watchdog import Watchdog

STREAMS_FILE = "amft_streams.pt"
REFERENCE = "reference"  # the folder of a warmed reference policy, beside the checkpoints


class AMFTTrainer(StepDataTrainer):
    """Trains with any method of `recipe.amft.methods` on verl's worker groups.

    Args:
        config: the composed Hydra configuration (verl's nodes).
        settings: its `amft:` node, checked.
        folder: where metrics, samples, checkpoints and the final model go.
    """

    def __init__(self, config, settings: AMFTConfig, folder: RunFolder, watchdog: Watchdog):
        super().__init__(
            config,
            actor_worker_class=AMFTWorker,
            watchdog=watchdog,
            rollout_seconds=settings.limits.rollout_seconds,
            poll_seconds=settings.limits.poll_seconds,
        )
        self.folder = folder
        self.begin(settings)

    def begin(self, settings: AMFTConfig) -> None:
        """What a run starts with: its method, and nothing remembered."""
        self.settings = settings
        self.method = make_method(settings)
        self.state = RunState(self.method.initial_state(), float(self.config.actor_rollout_ref.actor.optim.lr))
        self.stages = Stages(self.checkpoint_root(), self.save_weights, self.load_weights)
        self.collected = CollectedRollouts(self.method)
        self.configured: tuple[LossSpec, LossSpec | None] | None = None  # the losses that the workers know

    # ---- the loop ----------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Warm-up, H*, main loop; from wherever the last checkpoint stopped."""
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
                self.stages.keep_best(self.state, self.global_steps, metrics["val/success"])
            if self.is_due(self.config.trainer.save_freq):  # after the validation, for it remembers the best one
                with self.timed("checkpoint"):
                    self.save_checkpoint(keep=self.settings.keep_checkpoints)
                    self.stages.delete_unused(self.state.best)
            metrics |= {f"time/{name}": seconds for name, seconds in self.timings.items()}
            self.folder.log(self.global_steps, metrics, phase=phase)
        self.export_model(self.folder.model_path())

    def one_step(self) -> tuple[dict[str, float], str]:
        """The metrics of step `global_steps` (from 1, warm-up counted) and the phase that it belongs to."""
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
        self.configure(self.warm_up_loss, None)
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
        if self.settings.warm_up.loss is not None:
            return LossSpec(self.settings.warm_up.loss)
        return LossSpec(self.settings.demonstrations.loss, self.settings.demonstrations.loss_options)

    def configure(self, demonstrations: LossSpec, rollouts: LossSpec | None) -> None:
        """Tell the workers the losses of the next updates, when they have changed; None is verl's policy loss."""
        if self.configured != (demonstrations, rollouts):
            entropy_coefficient = float(self.config.actor_rollout_ref.actor.entropy_coeff)
            meta = self.settings.controller.meta
            self.actor_rollout_wg.configure(demonstrations, rollouts, meta, entropy_coefficient)
            self.configured = (demonstrations, rollouts)

    def finish_warm_up(self, last_step: dict[str, float]) -> dict[str, float]:
        """H*: the warmed policy's mean entropy on demonstrations (Algorithm 2, line 11), where a run draws any.

        A method whose reference is the warmed policy has its weights kept, and written beside the checkpoints.
        """
        measured = {}
        if self.needs.expert_batches:
            batches = self.peek(self.settings.warm_up.entropy_batches)
            entropies = [metrics_of(self.actor_rollout_wg.demonstration_entropy(batch))["entropy"] for batch in batches]
            measured["entropy"] = sum(entropies) / len(entropies)
        if "sft/norm" in last_step:
            measured["sft_norm"] = last_step["sft/norm"]
        self.state.method = self.method.after_warm_up(self.state.method, measured)
        if self.reference == "warmed":
            self.save_weights(self.checkpoint_root() / REFERENCE)
            self.actor_rollout_wg.keep_reference()
        return {"controller/entropy": measured["entropy"]} if "entropy" in measured else {}

    def train_step(self, step: int) -> dict[str, float]:
        """Phase 2, Algorithm 2 lines 15-34, for training step t = `step`."""
        self.stages.enter(self.state, self.method.stage(step))
        plan = self.method.plan(step, self.state.method)
        self.configure(self.method.demonstration_loss, self.method.rollout_loss)
        with self.timed("generation"):
            rollouts, utility_rollouts = self.generate(plan, step)
        metrics = self.episode_metrics(self.timings["generation"], rollouts, utility_rollouts)
        utility = None
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
            self.state.method, choice = self.method.choose(self.state.method, step, groups)
            self.collect_rollouts(rollouts, choice, groups)
            metrics |= rollout_metrics | choice.metrics
            if not plan.learns:
                self.clear(rollouts)
                return metrics | self.stream_metrics()
            rollouts = self.keep(rollouts, choice)
            row_ids = groups.row_ids
        data = self.step_data(plan, choice, row_ids, rollouts)
        if rollouts is not None:
            has_advantages = choice.advantages is not None
            data.rollouts, rollout_metrics = self.evaluate_rollouts(rollouts, self.num_mini_batches, has_advantages)
            data.entropy = rollout_metrics.pop("actor/entropy")
            metrics |= rollout_metrics | {"rl/entropy": data.entropy}
        metrics |= self.update(step, plan, data, utility)
        if choice.rehearsed:
            metrics |= self.rehearse(choice.rehearsed)
        if data.rollouts is not None:
            self.clear(data.rollouts)
        metrics |= self.stream_metrics()
        self.state.method = self.method.observe(self.state.method, step, metrics)
        return metrics

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
        kept, group_ids = self.comparable(batch)
        num_lonely = len(batch) - len(kept)
        rewards = self.fetch(kept, "rm_scores")["rm_scores"].to_padded_tensor(0.0).sum(-1)
        self.put_per_sequence(kept, "advantages", leave_one_out(rewards, group_ids))
        padded = self.balance(kept, self.data_parallel_size())
        padded.extra_info.update(self.loss_inputs(num_sequences=len(group_ids)))
        measured = metrics_of(self.actor_rollout_wg.validation_gradient(padded))
        self.clear(padded)
        return measured, {"meta/utility": rewards.mean().item(), "data/lonely_rollouts": float(num_lonely)}

    def update(self, step: int, plan: StepPlan, data: StepData, utility: dict[str, float] | None) -> dict[str, float]:
        """One optimiser step per mini-batch that has anything to learn from; mu is decided at the first of them.

        Where the step's own rollouts measure the meta-gradient, those of the first mini-batch and of the ones that came
        after the last decision speak together.
        """
        mini_batches = self.mini_batches_of(data)
        combination: Mix | Sum | None = None
        updates: list[dict[str, float]] = []
        method_metrics: dict[str, float] = {}
        with self.timed("update"):
            for index, (demonstrations, rollouts) in enumerate(mini_batches):
                if data.in_pairs:
                    demonstrations = self.weigh_pairs(demonstrations)
                sft = self.backward_demonstrations(demonstrations) if demonstrations else {}
                measures = None
                if plan.rollout_utility and not (combination is None and utility):
                    measures = MU_NOW if combination is None else MU_NEXT
                rl = self.backward_rollouts(rollouts, data, measures) if rollouts is not None else {}
                if measures and rl:
                    names = ("dot", "utility_norm", "tangent_norm")
                    self.state.utility.append({name: rl.pop(f"rl/{name}") for name in names})
                if combination is None:
                    measured = utility or (pooled(self.state.utility) if self.state.utility else None)
                    self.state.utility = []
                    combination, method_metrics = self.combine(step, data, sft, measured)
                mixture = self.mixture_plan(combination, sft, rl, plan, index, len(mini_batches))
                updates.append(sft | rl | self.apply_mixture(mixture))
        return mean_metrics(updates) | {"data/updates": float(len(updates))} | method_metrics

    def combine(
        self, step: int, data: StepData, sft: dict[str, float], utility: dict[str, float] | None
    ) -> tuple[Mix | Sum, dict[str, float]]:
        """The method's answer, and its metrics."""
        entropy = {} if data.entropy is None else {"rollout": data.entropy}
        entropy |= {"demonstration": sft["sft/entropy"]} if sft else {}
        measured = Measurements(entropy, utility, self.state.learning_rate, data.num_tokens, data.num_sequences)
        self.state.method, combination, metrics = self.method.combine(self.state.method, step, measured)
        return combination, metrics | ({"controller/mu": combination.mu} if isinstance(combination, Mix) else {})

    def rehearse(self, row_ids: Sequence[str]) -> dict[str, float]:
        """The method's further supervised update, on the demonstrations of these rows."""
        rehearsal = self.method.rehearsal
        rows = [(self.demonstration(row_id), 1.0) for row_id in row_ids]
        sft = self.backward_demonstrations(rows)
        scheduled = self.state.learning_rate
        plan = MixturePlan(
            weight=1.0,
            learning_rate=rehearsal.learning_rate,
            optimizer=rehearsal.optimizer,
            clip_grad=rehearsal.clip_grad,
        )
        step = self.apply_mixture(plan)
        self.state.learning_rate = scheduled
        return {f"rehearsal/{name.split('/')[1]}": value for name, value in (sft | step).items()}

    def backward_demonstrations(self, rows: WeightedDemonstrations) -> dict[str, float]:
        """Set the gradient of L_SFT aside in the workers."""
        measured = metrics_of(self.actor_rollout_wg.backward_demonstrations(self.to_batch(rows)))
        return {f"sft/{name}": value for name, value in measured.items()}

    def backward_rollouts(self, batch: KVBatchMeta, data: StepData, measures: str | None) -> dict[str, float]:
        """Set the gradient of L_RL on a mini-batch of `data` aside in the workers."""
        num_sequences = data.num_sequences["rollout"] / self.num_mini_batches
        if measures is not None:
            batch.extra_info[MEASURES_UTILITY] = measures
        batch.extra_info.update(self.loss_inputs(num_sequences=num_sequences))
        loss = self.method.rollout_loss
        if loss is not None:
            batch.extra_info["calculate_entropy"] = True
            if loss.needs_batch_entropy:
                batch.extra_info[BATCH_ENTROPY] = data.entropy
        measured = metrics_of(self.actor_rollout_wg.backward_rollouts(batch))
        return {f"rl/{name.removeprefix('actor/')}": value for name, value in measured.items()}

    def mixture_plan(
        self, combination: Mix | Sum, sft: dict, rl: dict, plan: StepPlan, index: int, num_mini_batches: int
    ) -> MixturePlan:
        """How mini-batch `index` makes its update from the gradients that `sft` and `rl` describe (empty: none)."""
        if isinstance(combination, Sum):
            weight, scales, skip_above = None, (combination.sft, combination.rl), combination.skip_above
        else:
            weight, scales, skip_above = combination.mu, (1.0, 1.0), None
            if sft and rl:
                self.state.mixture, *scales = update_scales(
                    self.state.mixture, sft["sft/norm"], rl["rl/norm"], self.settings.mixture
                )
        return MixturePlan(
            weight=weight,
            sft_scale=scales[0],
            rl_scale=scales[1],
            starts_step=index == 0,
            ends_step=index == num_mini_batches - 1,
            track_tangent=plan.track_tangent,
            skip_above=skip_above,
            learning_rate=self.state.stage.learning_rate,
            optimizer=self.state.stage.optimizer,
        )

    def apply_mixture(self, plan: MixturePlan) -> dict[str, float]:
        """One optimiser step along the gradients that were set aside."""
        step = self.actor_rollout_wg.apply_mixture(plan)[0]
        self.weights_changed()
        self.state.learning_rate = step["lr"]
        return {
            "actor/grad_norm": step["grad_norm"],
            "actor/lr": step["lr"],
            "actor/skipped_steps": step["skipped"],
            "mixture/sft_scale": plan.sft_scale,
            "mixture/rl_scale": plan.rl_scale,
        }

    def validate(self) -> dict[str, float]:
        """verl's validation on `data.val_files`."""
        self.wake_rollout_engine()
        with self.watchdog.phase("validation"):
            return validation_metrics(self._validate())

    # ---- state -------------------------------------------------------------------------------------------------

    @property
    def reference(self) -> str | None:
        """Which policy is the reference: the "given" model, the "warmed" policy, or None where nothing asks for one.

        A loss compares with the model that its own training began from: the warmed policy, if the warm-up had another.
        """
        if self.method.reference is not None or not self.method.demonstration_loss.needs_reference:
            return self.method.reference
        has_own_warm_up = self.settings.warm_up.steps > 0 and not self.warm_up_loss.needs_reference
        return "warmed" if has_own_warm_up else "given"

    def before_loading(self, folder: Path | None = None) -> None:
        """Keep the reference policy, where one is needed, whatever checkpoint the run goes on from.

        The weights of a warmed policy lie beside the checkpoints; until there is one, it is the model that was given.
        """
        if self.config.actor_rollout_ref.actor.freeze_vision_tower:
            self.actor_rollout_wg.freeze_vision_tower()
        warmed = folder is not None and int(folder.name.rsplit("_", 1)[1]) >= self.settings.warm_up.steps
        if self.reference == "warmed" and warmed:
            self.load_weights(folder.parent / REFERENCE)
            self.actor_rollout_wg.keep_reference()
        elif self.reference == "given" or (self.settings.warm_up.steps > 0 and self.warm_up_loss.needs_reference):
            self.actor_rollout_wg.keep_reference()

    def save_recipe_state(self, folder: Path) -> None:
        """Everything beyond weights and optimiser that the next step depends on."""
        self.actor_rollout_wg.save_state(str(folder / "workers"))
        torch.save(self.data_state(), folder / STREAMS_FILE)
        write_atomically(folder / STATE_FILE, state_text(self.state, self.method))

    def load_recipe_state(self, folder: Path) -> None:
        """What `save_recipe_state` wrote."""
        self.state = read_state(folder, self.method)
        self.load_data_state(torch.load(folder / STREAMS_FILE, weights_only=False))
        self.actor_rollout_wg.load_state(str(folder / "workers"))

    # ---- small helpers -----------------------------------------------------------------------------------------

    def is_due(self, every: int) -> bool:
        """Every `every` steps and at the end; never when `every` is not positive."""
        return every > 0 and (self.global_steps % every == 0 or self.global_steps == self.num_steps)
