"""What held-out data says, on numbers small enough to work out."""

import math

import pytest

from trimtab.training.metrics import accuracy, calibration_error, preference_metrics, spearman


def test_spearman_follows_ranks_and_shares_ties() -> None:
    assert spearman([1, 10, 100], [-3, 0, 0.5]) == pytest.approx(1.0)
    assert spearman([3, 2, 1], [1, 2, 3]) == pytest.approx(-1.0)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman([0, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_spearman_of_a_constant_is_nothing() -> None:
    assert spearman([2, 2, 2], [1, 2, 3]) == 0.0


def test_calibration_error_compares_means_within_bins() -> None:
    # Two bins of two: predicted 0.1 and 0.8, observed 0.5 and 1.
    assert calibration_error([0.0, 0.7, 0.2, 0.9], [0, 1, 1, 1], bins=2) == pytest.approx((0.4 + 0.2) / 2)


def test_calibration_error_of_fewer_examples_than_bins() -> None:
    assert calibration_error([1.0, 2.0], [1.5, 2.0]) == pytest.approx(0.25)


def test_accuracy_counts_ties_half() -> None:
    assert accuracy([2.0, -1.0, 0.0, 5.0]) == pytest.approx(2.5 / 4)


def test_preferences_are_judged_with_their_mirror_images() -> None:
    told = preference_metrics([math.log(4.0)] * 5)
    assert told["accuracy"] == 1.0
    assert told["margin"] == pytest.approx(math.log(4.0))
    assert told["calibration_error"] == pytest.approx(0.2)  # 0.8 was always right, 0.2 never


def test_margins_of_any_size_are_finite() -> None:
    assert preference_metrics([900.0, -900.0])["calibration_error"] == pytest.approx(
        0.5
    )  # two of four are certain and wrong
