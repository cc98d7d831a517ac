"""Everything that a run asks for, found out by asking its method before anything is started."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from recipe.amft.config import AMFTConfig
from recipe.amft.methods.base import Method, StepPlan

SAMPLED_STEPS = 1000


@dataclass(frozen=True)
class Needs(StepPlan):
    """What any step asks for (the attributes of `StepPlan`), and what follows from all of them with the warm-up.

    Attributes:
        expert: the demonstrations of the data files are read: learned, scored, or shown to the method.
        expert_batches: they are drawn from their own stream, `amft.demonstrations.batch_size` at a time.
        demonstration_loss: `amft.demonstrations.loss` is the loss of any update.
        policy_gradient: an update learns from rollouts.
        policy_loss: by verl's loss.
        entropy_bonus: by a loss with the actor's entropy bonus, as verl's has.
        advantages: with verl's advantages.
    """

    expert: bool = True
    expert_batches: bool = True
    demonstration_loss: bool = True
    policy_gradient: bool = True
    policy_loss: bool = True
    entropy_bonus: bool = True
    advantages: bool = True


def everything_asked(method: Method, settings: AMFTConfig) -> Needs:
    """What the method asks of any step, from a sample that holds every kind."""
    every, state = settings.utility.every, method.initial_state()
    steps = (*range(SAMPLED_STEPS), every - 1, every)
    plans = {*(method.plan(step, state) for step in steps), *method.kinds}
    warms_up = settings.warm_up.steps > 0
    policy_gradient = any(plan.rollouts and plan.learns for plan in plans)
    rollout_loss = method.rollout_loss
    return Needs(
        **vars(union(plans)),
        expert=warms_up
        or method.reads_demonstrations
        or any((plan.demonstrations and not plan.collected) or plan.rehearsal for plan in plans),
        expert_batches=warms_up
        or any(plan.demonstrations and not plan.paired and not plan.collected for plan in plans),
        # A method whose loss ignores the key would only warm up with another one, which nobody means by it.
        demonstration_loss=reads_the_loss(method, settings)
        and (
            (warms_up and settings.warm_up.loss is None) or any(plan.demonstrations or plan.rehearsal for plan in plans)
        ),
        policy_gradient=policy_gradient,
        policy_loss=policy_gradient and rollout_loss is None,
        entropy_bonus=policy_gradient and (rollout_loss is None or rollout_loss.entropy_bonus),
        advantages=policy_gradient and not method.own_advantages,
    )


def reads_the_loss(method: Method, settings: AMFTConfig) -> bool:
    """Whether `amft.demonstrations.loss` is part of the method's loss of demonstrations."""
    other = "sft" if settings.demonstrations.loss == "dft" else "dft"
    demonstrations = replace(settings.demonstrations, loss=other, loss_options={})
    twin = type(method)(replace(settings, demonstrations=demonstrations))
    return twin.demonstration_loss != method.demonstration_loss


def union(plans: Iterable[StepPlan]) -> StepPlan:
    """Everything that any of the steps needs."""
    plans = list(plans)
    return StepPlan(**{item.name: any(getattr(plan, item.name) for plan in plans) for item in fields(StepPlan)})
