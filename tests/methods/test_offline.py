"""DPO's reference policy."""

from simulation import PRESETS, method_of, settings_of

from recipe.amft.methods import make_method


def test_dpos_reference_is_the_policy_that_sampled() -> None:
    """The warmed one, from which the samples come; losses that compare with the base model keep the given one."""
    assert method_of("dpo").reference == "warmed"
    assert {make_method(settings_of(f"method={name}")).reference for name in PRESETS if name != "dpo"} == {None}
