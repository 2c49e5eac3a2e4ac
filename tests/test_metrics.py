"""Metrics and temperature."""

import numpy as np
import pytest
from scipy.special import softmax

from day9.metrics import calibration_error, compute_metrics, fit_temperature, is_right
from day9.report import coverage


def test_metrics_of_known_predictions():
    truth = list("aabb")
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    metrics = compute_metrics(truth, probabilities, ["a", "b"], 1.0)
    assert metrics["accuracy"] == metrics["recall"] == 0.75 and metrics["n"] == 4
    assert metrics["precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert metrics["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean())
    assert metrics["ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    assert metrics["accuracy_low"] < 0.75 < metrics["accuracy_high"] <= 1
    absent = np.c_[probabilities, np.zeros(4)]  # a class that the test split has not
    assert compute_metrics(truth, absent, list("abc"), 1.0)["f1"] == metrics["f1"]


def test_the_temperature_undoes_overconfidence():
    random, labels = np.random.default_rng(0), list("abc")
    scores = random.normal(size=(4000, 3))
    truth = [labels[random.choice(3, p=p)] for p in softmax(scores, axis=1)]
    assert fit_temperature(scores * 3, truth, labels) == pytest.approx(3, rel=0.1)

    def error(probabilities):
        right = is_right(truth, probabilities, labels)
        return calibration_error(right, probabilities.max(1))

    sure, calibrated = softmax(scores * 3, axis=1), softmax(scores, axis=1)
    assert error(sure) > 0.15 > 0.05 > error(calibrated)
    table = coverage(truth, calibrated, labels)
    assert [row["accuracy"] for row in table] == sorted(row["accuracy"] for row in table)
