"""The keys of methods: presets have their defaults, slips are refused, values out of range too."""

import math
from dataclasses import fields

import pytest
from simulation import composed, method_of, settings_of

from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.config_checks import Run, check_every_key_is_read
from recipe.amft.methods import METHODS, make_method
from recipe.amft.needs import everything_asked
from recipe.amft.shape import Shape


def check_keys(*overrides: str) -> None:
    config = composed(*overrides)
    settings = settings_of(*overrides)
    needs = everything_asked(make_method(settings), settings)
    check_every_key_is_read(Run(config, settings, Shape.from_config(config), needs))


@pytest.mark.parametrize("loss", ["sft", "dft", "iw_sft"])
def test_the_sft_loss_is_one_override_of_amft(loss: str) -> None:
    """`sft_loss=dft` is AMFT with DFT; the loss reaches the method, and iw_sft's need of a reference is known."""
    overrides = ("method=amft", f"sft_loss={loss}")
    check_keys(*overrides)
    spec = make_method(settings_of(*overrides)).demonstration_loss
    assert spec == LossSpec(loss)
    assert spec.needs_reference == (loss == "iw_sft")


def test_the_sft_loss_is_srfts_sft_term() -> None:
    """The other terms stay; the loss's options and its need of a reference are known within it too."""
    overrides = ("method=srft", "sft_loss=iw_sft", "+amft.demonstrations.loss_options.tau=2.0")
    check_keys(*overrides)
    spec, plain = (make_method(settings_of(*items)).demonstration_loss for items in (overrides, overrides[:1]))
    assert spec == LossSpec("srft_demonstration", {**plain.options, "sft_loss": "iw_sft", "sft_options": {"tau": 2.0}})
    assert spec.needs_reference
    assert not plain.needs_reference


@pytest.mark.parametrize("name", ["luffy", "dpo"])
def test_the_sft_loss_is_refused_where_the_method_has_its_own(name: str) -> None:
    """It would change the warm-up only, and nobody would notice."""
    check_keys(f"method={name}")
    with pytest.raises(ValueError, match=rf"amft\.demonstrations\.loss='dft' has no effect with method={name}"):
        check_keys(f"method={name}", "sft_loss=dft")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_unknown_options_are_refused_with_the_known_ones(name: str) -> None:
    """An option of another method, or a slip, is not ignored."""
    known = [item.name for item in fields(METHODS[name].Options)] if METHODS[name].Options is not type(None) else []
    with pytest.raises(ValueError, match=r"amft\.method\.options") as error:
        method_of(name, no_such_key=1)
    assert "no_such_key" in str(error.value)
    assert all(option in str(error.value) for option in known) if known else "no options" in str(error.value)


@pytest.mark.parametrize("name", [name for name, method in sorted(METHODS.items()) if method.Options is not type(None)])
def test_presets_spell_the_defaults_of_their_options(name: str) -> None:
    """The numbers in a preset's file are those of the dataclass, so that a method is the same with and without it."""
    assert make_method(settings_of(f"method={name}")).options == METHODS[name].Options()


def test_an_unknown_method_lists_the_known_ones_nearest_first() -> None:
    """One key, one slip, one answer."""
    with pytest.raises(ValueError, match=r"'lufy' is not a known method; choose one of luffy, ") as error:
        method_of("lufy")
    assert all(name in str(error.value) for name in METHODS)


@pytest.mark.parametrize(
    ("name", "options", "fragments"),
    [
        ("hpt", {"gate": -2}, ["gate=-2", "-1"]),
        ("hpt", {"gate": 0.5}, ["gate=0.5", "int"]),
        ("hpt", {"skip_above": 0.0}, ["skip_above=0.0"]),
        ("hpt", {"sft_weight": -1.0}, ["sft_weight=-1.0"]),
        ("relift", {"trigger": "often"}, ["'often'", "buffer, every"]),
        ("relift", {"buffer_size": 0}, ["buffer_size=0", "at least 1"]),
        ("relift", {"learning_rate": 0.0}, ["learning_rate=0.0"]),
        ("relift", {"clip_grad": -1.0}, ["clip_grad=-1.0"]),
        ("srft", {"variant": "own"}, ["'own'", "paper, amft_description"]),
        ("srft", {"sft_sign": "plus"}, ["'plus'", "paper, code"]),
        ("srft", {"sft_coefficient": -0.5}, ["sft_coefficient=-0.5"]),
        ("superrl", {"mode": "both"}, ["'both'", "switch, log_sigma"]),
        ("superrl", {"learning_rate": -0.1}, ["learning_rate=-0.1"]),
        ("superrl", {"mode": "log_sigma", "smallest": 0.5}, ["smallest=0.5", "[-10.0, 0.0]"]),
        ("superrl", {"mode": "log_sigma", "smallest": -math.inf}, ["smallest=-inf"]),
        ("superrl", {"mode": "log_sigma", "smallest": math.nan}, ["smallest=nan"]),
        ("superrl", {"smallest": -1.0}, ["smallest=-1.0 has no effect", "-2.0", "mode=log_sigma"]),
        ("superrl", {"learning_rate": 0.1}, ["learning_rate=0.1 has no effect", "mode=log_sigma"]),
        ("relift", {"every": 10}, ["every=10 has no effect", "50", "trigger=every"]),
        ("relift", {"trigger": "every", "buffer_size": 10}, ["buffer_size=10 has no effect", "trigger=buffer"]),
        ("srft", {"entropy_scope": "token"}, ["'token'", "batch, sequence"]),
        ("luffy", {"gamma": 0.0}, ["gamma=0.0"]),
        ("luffy", {"demonstration_rows": 2}, ["demonstration_rows=2", "1, or 0"]),
        ("luffy", {"demonstration_rows": 0, "gamma": 0.2}, ["gamma=0.2 has no effect", "demonstration_rows=1"]),
        ("luffy", {"clip_on_policy": 1}, ["clip_on_policy=1", "bool"]),
        ("sasr", {"least": 1.5}, ["least=1.5", "[0.0, 1.0]"]),
    ],
)
def test_values_out_of_range_are_refused(name: str, options: dict, fragments: list[str]) -> None:
    """The message has the value received and what is allowed."""
    with pytest.raises(ValueError) as error:
        method_of(name, **options)
    assert all(fragment in str(error.value) for fragment in fragments), error.value
