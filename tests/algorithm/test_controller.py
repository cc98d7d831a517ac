"""Eq. 6 as a pure function, and the scaling of the meta-gradient that feeds it."""

import dataclasses
import json
import math

import pytest

from recipe.amft.algorithm.controller import (
    ControllerConfig,
    ControllerState,
    EntropyConfig,
    MetaControllerConfig,
    Signals,
    initial_state,
    update,
)
from recipe.amft.algorithm.meta_gradient import MetaGradientState, meta_gradient


def config(eta_mu: float = 0.1, eta_entropy: float = 0.01, sign: str = "equation") -> ControllerConfig:
    return ControllerConfig(
        mu_init=0.5,
        mu_min=0.05,
        mu_max=0.95,
        space="linear",
        meta=MetaControllerConfig(learning_rate=eta_mu, scale="rms"),
        entropy=EntropyConfig(learning_rate=eta_entropy, sign=sign, target=2.0),
    )


@pytest.mark.parametrize(("sign", "expected_entropy_term"), [("equation", -0.03), ("prose", 0.03)])
def test_update_is_equation_6_with_either_sign(sign: str, expected_entropy_term: float) -> None:
    """With H above H*, Eq. 6 lowers mu and Section 3.2's prose raises it; the meta term is the same in both."""
    settings = config(sign=sign)
    state, terms = update(initial_state(settings), Signals(entropy=5.0, meta_gradient=0.7), settings)
    assert terms["meta"] == pytest.approx(0.07)
    assert terms["entropy"] == pytest.approx(expected_entropy_term)
    assert terms["clip_active"] == 0.0
    assert state.mu == pytest.approx(0.5 + 0.07 + expected_entropy_term)
    assert state.num_meta_updates == 1


@pytest.mark.parametrize(("meta_signal", "bound"), [(100.0, 0.95), (-100.0, 0.05)])
def test_clip_holds_mu_in_its_range(meta_signal: float, bound: float) -> None:
    """Beyond the range mu stands on the bound, and the terms say that the clip was active."""
    settings = config()
    state, terms = update(initial_state(settings), Signals(meta_gradient=meta_signal), settings)
    assert state.mu == bound
    assert terms["clip_active"] == 1.0


@pytest.mark.parametrize(("mu", "slope"), [(0.5, 1.0), (0.1, 0.36), (0.9, 0.36)])
def test_a_small_step_in_logit_space_is_scaled_by_the_slope(mu: float, slope: float) -> None:
    """d mu / d (logit / 4) = 4 mu (1 - mu), for the sum of both terms."""
    settings = dataclasses.replace(config(eta_mu=1e-6, eta_entropy=1e-6), space="logit")
    before = ControllerState(mu=mu, target_entropy=2.0)
    state, terms = update(before, Signals(entropy=5.0, meta_gradient=0.7), settings)
    assert terms["meta"] + terms["entropy"] == pytest.approx(-2.3e-6)
    assert state.mu - mu == pytest.approx(-2.3e-6 * slope, rel=1e-4)


def test_steps_in_logit_space_add_up_and_stop_at_the_range() -> None:
    """Two steps that contradict each other lead back; one of any length leaves mu on the bound."""
    settings = dataclasses.replace(config(), space="logit")
    state = initial_state(settings)
    for signal in (-2.0, 2.0):
        state, _ = update(state, Signals(meta_gradient=signal), settings)
    assert state.mu == pytest.approx(0.5, abs=1e-15)
    for signal, bound in ((1e6, 0.95), (-1e6, 0.05)):
        assert update(state, Signals(meta_gradient=signal), settings)[0].mu == bound


def test_mu_is_constant_when_both_rates_are_zero() -> None:
    """The controller then is fixed_mu, to the bit, whatever it measures, and needs no target."""
    settings = ControllerConfig(
        mu_init=0.3, meta=MetaControllerConfig(learning_rate=0.0), entropy=EntropyConfig(learning_rate=0.0)
    )
    state = initial_state(settings)
    for step in range(20):
        state, _ = update(state, Signals(entropy=0.1 * step, meta_gradient=(-1.0) ** step), settings)
    assert state.mu == 0.3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_signals_that_are_not_finite_leave_mu_alone(bad: float) -> None:
    """One broken batch must not turn mu into NaN or throw it against a bound."""
    settings = config()
    state, terms = update(initial_state(settings), Signals(entropy=bad, meta_gradient=bad), settings)
    assert state.mu == 0.5
    assert (terms["meta"], terms["entropy"]) == (0.0, 0.0)


def test_absent_signals_do_nothing_and_count_nothing() -> None:
    """Between meta-updates and without an entropy the state is unchanged."""
    settings = config()
    state, _ = update(initial_state(settings), Signals(), settings)
    assert state == initial_state(settings)


def test_an_entropy_without_target_is_refused() -> None:
    """A forgotten warm-up must not silently switch the entropy term off."""
    settings = ControllerConfig()
    with pytest.raises(ValueError, match=r"target_entropy=None.*controller\.entropy\.target"):
        update(initial_state(settings), Signals(entropy=1.0), settings)


def trajectory(state: ControllerState, steps: range, settings: ControllerConfig) -> tuple[ControllerState, list[float]]:
    """Mu over `steps` of irrational signals with a meta-update every third step."""
    weights = []
    for step in steps:
        signal = None
        if step % 3 == 0:
            signal, meta = meta_gradient(1e-9 * math.sin(step + 1), 1.0, 1.0, 1e-6, settings.meta, state.meta)
            state = dataclasses.replace(state, meta=meta)
        state, _ = update(state, Signals(entropy=2 + math.cos(step), meta_gradient=signal), settings)
        weights.append(state.mu)
    return state, weights


def test_state_survives_json_in_the_middle_of_a_run() -> None:
    """Saved and restored at any step, the controller continues on the identical trajectory, to the bit."""
    settings = config(eta_mu=0.01)
    final, whole = trajectory(initial_state(settings), range(40), settings)
    assert len(set(whole)) > 30
    for stop in range(1, 40, 6):
        state, first = trajectory(initial_state(settings), range(stop), settings)
        restored = ControllerState.from_dict(json.loads(json.dumps(state.to_dict())))
        assert restored == state
        end, rest = trajectory(restored, range(stop, 40), settings)
        assert first + rest == whole
        assert end == final


def test_configuration_errors_name_the_values() -> None:
    """A wrong key says what was received and what is allowed."""
    with pytest.raises(ValueError, match=r"mu_min=0\.6, mu_init=0\.3.*0 <= mu_min <= mu_init"):
        ControllerConfig(mu_min=0.6)
    with pytest.raises(ValueError, match=r"mu_init=0\.3, mu_max=0\.2"):
        ControllerConfig(mu_max=0.2)
    with pytest.raises(ValueError, match=r"mu_max=1\.2"):
        ControllerConfig(mu_max=1.2)
    with pytest.raises(ValueError, match=r"space='logit' with mu_min=0\.0.*space=linear"):
        ControllerConfig(space="logit", mu_min=0.0)
    with pytest.raises(ValueError, match=r"controller\.space='log'.*linear, logit"):
        ControllerConfig(space="log")
    with pytest.raises(ValueError, match=r"controller\.entropy\.sign='both'.*equation, prose"):
        EntropyConfig(sign="both")
    with pytest.raises(ValueError, match=r"controller\.entropy\.source='base'.*demonstration, rollout"):
        EntropyConfig(source="base")
    with pytest.raises(ValueError, match=r"controller\.meta\.learning_rate=-1"):
        MetaControllerConfig(learning_rate=-1)


def test_meta_scales_in_closed_form() -> None:
    """literal, no_lr and cosine are the dot product over 1, over the learning rate and over both norms."""
    values = {
        scale: meta_gradient(-6e-6, 3.0, 4e-6, 1e-6, MetaControllerConfig(scale=scale), MetaGradientState())[0]
        for scale in ("literal", "no_lr", "cosine")
    }
    assert values == {"literal": -6e-6, "no_lr": pytest.approx(-6.0), "cosine": pytest.approx(-0.5)}


def test_rms_starts_at_one_and_is_a_bias_corrected_mean() -> None:
    """The first value is +-1 whatever the unit; the next is divided by the weighted mean of both squares."""
    settings = MetaControllerConfig(scale="rms", rms_decay=0.9)
    for dot in (3e-12, -2e5):
        assert meta_gradient(dot, 1.0, 1.0, 1.0, settings, MetaGradientState())[0] == pytest.approx(
            math.copysign(1, dot), rel=1e-14
        )
    _, state = meta_gradient(2.0, 1.0, 1.0, 1.0, settings, MetaGradientState())
    value, state = meta_gradient(-4.0, 1.0, 1.0, 1.0, settings, state)
    assert value == pytest.approx(-4 / math.sqrt((0.9 * 4 + 16) / 1.9), rel=1e-14)
    assert state.num_updates == 2


def test_rms_does_not_depend_on_the_unit_of_the_utility() -> None:
    """Signals of two kinds of rollouts, whose gradients have other lengths, share one running mean."""
    settings = MetaControllerConfig(scale="rms", rms_decay=0.9)
    _, one = meta_gradient(2.0, 1.0, 1.0, 1.0, settings, MetaGradientState())
    _, other = meta_gradient(2000.0, 1000.0, 1.0, 1.0, settings, MetaGradientState())
    assert one == other
    assert meta_gradient(-4.0, 1.0, 1.0, 1.0, settings, one) == meta_gradient(-4e-3, 1e-3, 1.0, 1.0, settings, one)


@pytest.mark.parametrize("scale", ["literal", "no_lr", "cosine", "rms"])
def test_degenerate_meta_gradients_are_zero(scale: str) -> None:
    """Zero norms give 0 without a division; a dot that is not finite gives 0 and does not poison the running mean."""
    settings = MetaControllerConfig(scale=scale)
    assert meta_gradient(0.0, 0.0, 0.0, 0.0, settings, MetaGradientState())[0] == 0.0
    state = MetaGradientState(mean_square=0.25, num_updates=3)
    for bad in (math.nan, math.inf):
        assert meta_gradient(bad, 1.0, 1.0, 1.0, settings, state) == (0.0, state)
