"""Which policy is the reference."""

import pytest
from simulation import PRESETS, method_of, settings_of

from recipe.amft.methods import make_method
from recipe.amft.trainer import AMFTTrainer


def test_dpos_reference_is_the_policy_that_sampled() -> None:
    """The warmed one, from which the samples come; of other methods the loss decides."""
    assert method_of("dpo").reference == "warmed"
    assert {make_method(settings_of(f"method={name}")).reference for name in PRESETS if name != "dpo"} == {None}


@pytest.mark.parametrize(
    ("overrides", "reference"),
    [
        (["method=sft"], None),
        (["method=iw_sft"], "given"),
        (["method=iw_sft", "amft.warm_up.loss=sft"], "warmed"),
        (["method=sft_kl", "amft.warm_up.loss=dft"], "warmed"),
        (["method=sft_kl", "amft.warm_up.loss=iw_sft"], "given"),
        (["method=sft_kl", "amft.warm_up.steps=0", "amft.warm_up.loss=sft"], "given"),
        (["method=dpo", "amft.warm_up.loss=sft"], "warmed"),
        (["method=grpo", "amft.warm_up.loss=sft"], None),
    ],
)
def test_a_loss_compares_with_what_its_own_training_began_from(overrides, reference) -> None:
    """The warmed policy when the warm-up had a loss without a reference, else the model that the run was given."""
    trainer = object.__new__(AMFTTrainer)
    trainer.settings = settings_of(*overrides)
    trainer.method = make_method(trainer.settings)
    assert trainer.reference == reference


def test_the_warm_up_has_the_methods_loss_unless_it_is_told() -> None:
    trainer = object.__new__(AMFTTrainer)
    for overrides, loss in ((["method=dft"], "dft"), (["method=dft", "amft.warm_up.loss=sft"], "sft")):
        trainer.settings = settings_of(*overrides)
        assert trainer.warm_up_loss.name == loss
