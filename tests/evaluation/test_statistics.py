"""avg@k, pass@k and the bootstrap, against closed forms, brute force and simulation."""

from itertools import combinations

import numpy as np
import pytest

from recipe.amft.evaluation import statistics
from recipe.amft.evaluation.statistics import average_at_k, bootstrap_means, estimate, pass_at_k


def test_average_at_k_is_the_mean_over_samples_of_each_prompt():
    """avg@4 of 1, 3 and 0 right samples of 4."""
    successes = [[1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]]
    assert average_at_k(successes).tolist() == [0.25, 0.75, 0.0]


@pytest.mark.parametrize("num_samples", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(num_samples):
    """For every number of right samples and every k: the estimator equals the mean over all subsets of size k."""
    for num_right in range(num_samples + 1):
        samples = [1] * num_right + [0] * (num_samples - num_right)
        for k in range(1, num_samples + 1):
            brute_force = np.mean([any(subset) for subset in combinations(samples, k)])
            assert pass_at_k([samples], k)[0] == pytest.approx(brute_force, abs=1e-15)


def test_pass_at_k_is_unbiased():
    """Its mean over many draws of 8 samples with success probability p is 1 - (1 - p)^3 for k = 3."""
    draws = np.random.default_rng(0).random((40_000, 8)) < 0.3
    assert pass_at_k(draws, 3).mean() == pytest.approx(1 - 0.7**3, abs=0.005)


def test_pass_at_1_is_the_average_and_pass_at_n_asks_for_any():
    """The two ends of k."""
    successes = np.random.default_rng(1).random((50, 6)) < 0.4
    assert pass_at_k(successes, 1) == pytest.approx(average_at_k(successes))
    assert pass_at_k(successes, 6).tolist() == successes.any(axis=1).astype(float).tolist()


@pytest.mark.parametrize(("successes", "k"), [([[1, 0]], 3), ([[1, 0]], 0), ([[0.5, 1]], 1), ([], 1), ([1, 0], 1)])
def test_pass_at_k_refuses_what_it_is_not_defined_for(successes, k):
    """k outside 1..n, values that are no successes, no samples."""
    with pytest.raises(ValueError):
        pass_at_k(successes, k)


def test_the_bootstrap_repeats_itself_and_depends_on_its_seed():
    """Equal seeds give equal resamples."""
    values = np.random.default_rng(2).random(30)
    assert np.array_equal(bootstrap_means(values, 500, 7), bootstrap_means(values, 500, 7))
    assert not np.array_equal(bootstrap_means(values, 500, 7), bootstrap_means(values, 500, 8))


def test_the_size_of_memory_chunks_changes_nothing(monkeypatch):
    """Drawing 3 resamples at a time gives the numbers of drawing all at once."""
    values, weights = np.random.default_rng(3).random((2, 20))
    whole = bootstrap_means(values, 100, 0), bootstrap_means(values, 100, 0, weights)
    monkeypatch.setattr(statistics, "CHUNK", 60)
    chunked = bootstrap_means(values, 100, 0), bootstrap_means(values, 100, 0, weights)
    assert np.array_equal(whole[0], chunked[0])
    assert np.array_equal(whole[1], chunked[1])


def test_the_spread_of_the_bootstrap_is_the_standard_error():
    """The resampled means scatter by sd / sqrt(P)."""
    values = np.random.default_rng(4).normal(size=200)
    spread = bootstrap_means(values, 20_000, 0).std()
    assert spread == pytest.approx(values.std() / np.sqrt(200), rel=0.03)


def test_95_of_100_intervals_cover_the_true_mean():
    """Over 2,000 evaluations of 150 prompts with success 0.4, within the simulation's own error (0.5 points)."""
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(2000):
        found = estimate(rng.random(150) < 0.4, 1000, trial)
        covered += found.low <= 0.4 <= found.high
    assert 0.935 < covered / 2000 < 0.97


def test_weights_count_steps_and_not_episodes():
    """Per-step accuracy: 1 of 1 steps and 5 of 9 right is 6 of 10, and its interval stays within the two shares."""
    found = estimate([1.0, 5 / 9], 2000, 0, [1, 9])
    assert found.mean == pytest.approx(0.6)
    assert found.low == pytest.approx(5 / 9)
    assert found.high == pytest.approx(1.0)


def test_equal_weights_are_no_weights():
    """The weighted mean with equal weights is the mean, resample by resample."""
    values = np.random.default_rng(6).random(25)
    assert bootstrap_means(values, 200, 1, np.full(25, 3.0)) == pytest.approx(bootstrap_means(values, 200, 1))


def test_values_without_any_weight_have_the_mean_0():
    """A metric that no sample reported is 0 and no division by zero."""
    assert estimate([0.0, 0.0], 200, 0, [0, 0]).mean == 0.0


@pytest.mark.parametrize(
    ("values", "weights"), [([], None), ([np.nan], None), ([1.0, 2.0], [1.0]), ([1.0], [-1.0]), ([[1.0]], None)]
)
def test_the_bootstrap_refuses_bad_input(values, weights):
    """No prompts, numbers that are not finite, weights of another length or sign."""
    with pytest.raises(ValueError):
        estimate(values, 200, 0, weights)
