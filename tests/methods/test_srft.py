"""SRFT: signs, variants and entropies of its four terms."""

import math

import pytest
from simulation import decided, groups_of, losses_of, method_of

from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.methods import Sum


def test_srfts_signs() -> None:
    """+1 on correct rollouts, -1 on the others; (r - mean) / std for the demonstration, with itself in the group."""
    choice, combination = decided(method_of("srft"), groups_of([1.0, 0.0, 0.0], [1.0, 1.0, 1.0], demonstrations=[1, 1]))
    assert choice.advantages is not None
    assert choice.advantages.tolist() == [1, -1, -1, 1, 1, 1]
    assert choice.demonstration_weights is not None
    unit = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert choice.demonstration_weights.tolist() == pytest.approx([unit, 0.0], rel=1e-14)
    assert combination == Sum(sft=1.0, rl=1.0)
    assert choice.metrics["srft/positive_share"] == pytest.approx(4 / 6)


def test_srfts_variants() -> None:
    """AMFT's description has neither the RL term on demonstrations nor the negative rollouts; `code` flips exp(-H)."""
    described, paper = method_of("srft", variant="amft_description"), method_of("srft")
    choice, _ = decided(described, groups_of([1.0, 0.0], demonstrations=[1.0]))
    assert choice.demonstration_weights is not None
    assert choice.demonstration_weights.tolist() == [0.0]
    scope, sft = {"entropy_scope": "batch"}, {"sft_loss": "sft", "sft_options": {}}
    assert losses_of(paper) == (
        LossSpec("srft_demonstration", {"coefficient": 0.5, "sign": -1.0} | scope | sft),
        LossSpec("srft_rollout", {"coefficient": 0.1, "negatives": 1.0} | scope),
    )
    assert described.rollout_loss == LossSpec("srft_rollout", {"coefficient": 0.1, "negatives": 0.0} | scope)
    assert method_of("srft", sft_sign="code").demonstration_loss.options["sign"] == 1.0


def test_srfts_entropy_is_the_batchs_or_each_sequences() -> None:
    """The paper's by default, which the workers have to measure beforehand; HPT's version needs no such pass."""
    for scope, needed in (("batch", True), ("sequence", False)):
        specs = losses_of(method_of("srft", entropy_scope=scope))
        assert [spec is not None and spec.needs_batch_entropy for spec in specs] == [needed, needed]
    assert method_of("srft").options.entropy_scope == "batch"
