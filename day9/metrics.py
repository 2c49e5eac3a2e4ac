"""Accuracy, precision, recall, F1, confidence, and a fair comparison. Tangled from README.org."""

from itertools import compress

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import log_loss, precision_recall_fscore_support


def likeliest(probabilities: np.ndarray, labels: list[str]) -> list[str]:
    """The likeliest label of each row of (rows, labels)."""
    return [labels[i] for i in probabilities.argmax(1)]


def is_right(truth: list[str], probabilities: np.ndarray, labels: list[str]) -> np.ndarray:
    """Whether the likeliest label of each row is the true one: (rows,), boolean."""
    return np.array(likeliest(probabilities, labels)) == np.array(truth)


def calibration_bins(right: np.ndarray, confidence: np.ndarray,
                     bins: int = 15) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and size of bins of equal size, from unsure to sure.

    Bins of equal size rather than width: Nguyen and O'Connor, 2015.
    """
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    return [(float(confidence[part].mean()), float(right[part].mean()), len(part))
            for part in parts if len(part)]


def calibration_error(right: np.ndarray, confidence: np.ndarray) -> float:
    """Expected calibration error over bins of equal size: 0 is perfect."""
    bins = calibration_bins(right, confidence)
    return sum(size * abs(sure - accuracy) for sure, accuracy, size in bins) / len(right)

def fit_temperature(scores: np.ndarray, truth: list[str], labels: list[str]) -> float:
    """The temperature at which softmax(scores / temperature) has the least log-loss."""
    def loss(log_temperature):
        return log_loss(truth, softmax(scores / np.exp(log_temperature), axis=1), labels=labels)
    return float(np.exp(minimize_scalar(loss, bounds=(0, 3), method="bounded").x))

def compute_metrics(truth: list[str], probabilities: np.ndarray, labels: list[str],
                    seconds: float) -> dict[str, float]:
    """The metrics of a system that answered with probabilities (rows, labels), or with NaN.

    Rows with NaN do not count.
    """
    answered = ~np.isnan(probabilities[:, 0])
    truth, probabilities = list(compress(truth, answered)), probabilities[answered]
    right, chosen = is_right(truth, probabilities, labels), likeliest(probabilities, labels)
    interval = bootstrap((right,), np.mean, n_resamples=2000, batch=100, method="percentile",
                         rng=0).confidence_interval
    precision, recall, f1, _ = precision_recall_fscore_support(  # of classes there, or chosen
        truth, chosen, average="macro", zero_division=0)
    metrics = {"accuracy": right.mean(), "accuracy_low": interval.low,
               "accuracy_high": interval.high, "precision": precision, "recall": recall, "f1": f1,
               "seconds": seconds, "log_loss": log_loss(truth, probabilities, labels=labels),
               "ece": calibration_error(right, probabilities.max(1))}
    return {name: float(value) for name, value in metrics.items()} | {"n": len(truth)}


def compare(truth: list[str], a: np.ndarray, b: np.ndarray,
            labels: list[str]) -> dict[str, float]:
    """Exact McNemar test of two systems on the same rows, each probabilities (rows, labels)."""
    right_a, right_b = (is_right(truth, probabilities, labels) for probabilities in (a, b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a_right": only_a, "only_b_right": only_b, "p_value": float(p_value)}
