"""What a run says of its results: tables, pictures, answers. Written by hand, not tangled."""

import codecs
import contextlib
import csv
import json
import math
import warnings
from pathlib import Path
from typing import TextIO

import matplotlib.figure
import numpy as np
from datasets import Dataset
from matplotlib import font_manager
from scipy.special import softmax
from sklearn.metrics import ConfusionMatrixDisplay, classification_report

from day9.baselines import Results
from day9.checkpoints import best_epoch
from day9.classifier import Classifier
from day9.errors import shortened
from day9.files import whole
from day9.metrics import calibration_bins, compare, compute_metrics, is_right, likeliest


SYSTEM_NAMES = {"fine_tuned": "fine-tuned", "plain": "plain trainer", "tfidf": "TF-IDF",
                "embeddings": "sentence embeddings", "zero_shot": "the base model"}
RIVALS = ("tfidf", "embeddings")  # what people would use instead


def scoreboard(systems: dict[str, dict[str, float]]) -> str:
    """The metrics as text, one line per system."""
    names = ["precision", "recall", "f1", "log_loss", "ece"]
    width = max(11, *(len(system) + 1 for system in systems))
    lines = [f"{'':{width}}accuracy (95 % interval)" + "".join(f"{name:>10}" for name in names)
             + f"{'n':>6}{'seconds':>10}"]
    for system, row in systems.items():
        low, high = row["accuracy_low"], row["accuracy_high"]
        lines.append(f"{system:{width}}{row['accuracy']:>8.3f} ({low:.3f} - {high:.3f})"
                     + "".join(f"{row[name]:>10.3f}" for name in names)
                     + f"{row['n']:>6}{row['seconds']:>8.0f} s")
    return "\n".join(lines)


def choose_instead(systems: dict[str, dict[str, float]],
                   comparisons: dict[str, dict[str, float]]) -> str | None:
    """The best of the rivals and the base model that fine-tuning does not beat; None if it does.

    From p = 0.05 on two systems count as level.
    """
    unbeaten = [other for other in (*RIVALS, "zero_shot") if other in systems and not (
        comparisons[f"fine_tuned_vs_{other}"]["p_value"] < 0.05
        and systems["fine_tuned"]["accuracy"] > systems[other]["accuracy"])]
    return max(unbeaten, key=lambda other: systems[other]["accuracy"], default=None)


def verdict(systems: dict[str, dict[str, float]], comparisons: dict[str, dict[str, float]]) -> str:
    """What fine-tuning was worth beside the base model and the best rival, in a sentence."""
    instead = choose_instead(systems, comparisons)
    rivals = [rival for rival in RIVALS if rival in systems]
    rival = instead if instead in rivals else max(
        rivals, key=lambda name: systems[name]["accuracy"])
    clauses = []
    for other in ("zero_shot", rival):
        points = 100 * (systems["fine_tuned"]["accuracy"] - systems[other]["accuracy"])
        p_value = comparisons[f"fine_tuned_vs_{other}"]["p_value"]
        verb = ("cannot be told apart from" if p_value >= 0.05
                else "beats" if points > 0 else "loses to")
        chance = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
        clauses.append(f"{verb} {SYSTEM_NAMES[other]} ({points:+.1f} points, {chance})")
    advice = f"use {SYSTEM_NAMES[instead]}" if instead else "fine-tuning was worth it"
    missing = "" if "embeddings" in systems else " Sentence embeddings were left out."
    return f"Fine-tuning {clauses[0]} and {clauses[1]}: {advice} here.{missing}"


def coverage(truth: list[str], probabilities: np.ndarray,
             labels: list[str]) -> list[dict[str, float]]:
    """Accuracy on the surest part of the rows, and the confidence from which they are answered.

    That is rounded down, to five digits and below 1: as --threshold it admits the part it is for.
    """
    right, confidence = is_right(truth, probabilities, labels), probabilities.max(1)
    order = np.argsort(-confidence, kind="stable")
    parts = {share: order[:max(1, round(share * len(order)))] for share in (1.0, 0.9, 0.8, 0.5)}
    return [{"coverage": share, "accuracy": float(right[part].mean()),
             "threshold": min(math.floor(confidence[part[-1]] * 1e5), 99_999) / 1e5}
            for share, part in parts.items()]


def coverage_table(rows: list[dict[str, float]]) -> str:
    """What `coverage` found, as text."""
    return "\n".join([f"{'answered':>9}{'accuracy':>10}{'threshold':>11}", *(
        f"{row['coverage']:>9.0%}{row['accuracy']:>10.3f}{row['threshold']:>11.5f}"
        for row in rows)])


def draw(size: tuple[float, float], path: Path):
    """A figure's axes, and a function that writes it and returns its path."""
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")

    def write(**properties) -> str:
        axes.set(**properties)
        figure.savefig(path, dpi=120)
        return str(path)

    axes = figure.subplots()
    return axes, write


def draw_loss(log: list[dict[str, float]], path: Path) -> str:
    """Draw the losses of a trainer's log: of training, and of validation after each epoch.

    Per token, but `validation_loss`, which the program computes, is log-loss per message.
    """
    axes, write = draw((6, 3.2), path)
    for key, name in (("loss", "training loss"), ("eval_loss", "validation loss"),
                      ("validation_loss", "validation log-loss")):
        if points := [(entry["step"], entry[key]) for entry in log if key in entry]:
            axes.plot(*zip(*points), "-" if key == "loss" else "o-", label=name)
    axes.legend()
    return write(xlabel="step", ylabel="loss", yscale="log")


def draw_reliability(truth: list[str], before: np.ndarray, after: np.ndarray, labels: list[str],
                     path: Path) -> str:
    """Draw accuracy against confidence, in bins, before and after temperature scaling."""
    axes, write = draw((5, 5), path)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
    low = 1.0  # where the points begin
    for name, probabilities in (("before", before), ("after temperature scaling", after)):
        bins = calibration_bins(is_right(truth, probabilities, labels), probabilities.max(1))
        sure, right, _ = zip(*bins)
        axes.plot(sure, right, marker="o", label=name)
        low = min(low, *sure, *right)
    axes.legend()
    ends = (low - 0.03, 1.03)
    return write(xlabel="confidence", ylabel="accuracy", xlim=ends, ylim=ends)


def find_fonts(text: str) -> list[str]:
    """The usual font, and installed ones for the characters that it lacks."""
    usual = font_manager.FontProperties().get_name()
    fonts, missing = [usual], {ord(character) for character in text}
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: font.name != usual):
        if missing and "Last Resort" not in font.name:  # which has a box for every character
            with contextlib.suppress(OSError, RuntimeError):  # an installed file may be anything
                if found := missing & font_manager.get_font(font.fname).get_charmap().keys():
                    fonts.append(font.name)
                    missing -= found
    return list(dict.fromkeys(fonts))


def draw_confusion(truth: list[str], predicted: list[str], labels: list[str], path: Path) -> str:
    """Draw the confusion matrix: a row per true label, a column per predicted one."""
    side = min(max(6.0, 0.45 * len(labels)), 40.0)
    axes, write = draw((side, side), path)
    shown = [shortened(label, 30) for label in labels]
    ConfusionMatrixDisplay.from_predictions(
        truth, predicted, labels=labels, display_labels=shown, xticks_rotation="vertical",
        cmap="Blues", include_values=len(labels) <= 20, colorbar=False, ax=axes)
    fonts = find_fonts("".join(shown))
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set(parse_math=False, fontfamily=fonts)  # no formulas, but any script
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box is drawn
        return write()


def show_mistakes(texts: list[str], truth: list[str], probabilities: np.ndarray,
                  labels: list[str], count: int = 5) -> str:
    """The mistakes that the model was surest of, in words."""
    predicted, confidence = likeliest(probabilities, labels), probabilities.max(1)
    wrong = [i for i in np.argsort(-confidence) if truth[i] != predicted[i]][:count]
    return "\n".join(f"{truth[i]} -> {predicted[i]} ({confidence[i]:.2f}): "
                     f"{' '.join(texts[i].split())[:200]}" for i in wrong)


def compute_report(truth: list[str], tuned: Classifier, scores: np.ndarray, results: Results,
                   log: list[dict]) -> dict:
    """All figures of a run, as metrics.json keeps them; `scores` (rows, labels) are of the test."""
    labels, probabilities = tuned.labels, results["fine_tuned"][0]
    systems = {name: compute_metrics(truth, answered, labels, seconds)
               for name, (answered, seconds) in results.items()}
    comparisons = {f"fine_tuned_vs_{other}": compare(truth, probabilities, results[other][0],
                                                     labels)
                   for other in (*RIVALS, "zero_shot") if other in results}
    raw = compute_metrics(truth, softmax(scores, axis=1), labels, 0)
    return {"systems": systems, "comparisons": comparisons,
            "verdict": verdict(systems, comparisons),
            "calibration": {"temperature": tuned.temperature} | {
                f"{name}_{when}": metrics[name] for name in ("ece", "log_loss")
                for when, metrics in (("before", raw), ("after", systems["fine_tuned"]))},
            "coverage": coverage(truth, probabilities, labels),
            "best_epoch": best_epoch(log)["epoch"], "training_log": log}


def print_report(metrics: dict, test: Dataset, labels: list[str],
                 probabilities: np.ndarray) -> None:
    """Scoreboard, verdict, calibration and mistakes."""
    truth, predicted = test["label"][:], likeliest(probabilities, labels)
    calibration = metrics["calibration"]
    print(f"\n{scoreboard(metrics['systems'])}\n\n{metrics['verdict']}\n")
    print(f"temperature {calibration['temperature']:.2f}: calibration error "
          f"{calibration['ece_before']:.3f} before, {calibration['ece_after']:.3f} after\n")
    print(f"the surest part of the texts:\n{coverage_table(metrics['coverage'])}\n")
    print(classification_report(truth, predicted, digits=2, zero_division=0))
    print("mistakes the model was surest of:")
    print(show_mistakes(test["text"][:], truth, probabilities, labels))


def write_rows(file: TextIO, columns: dict[str, list], suffix: str, header: bool = True) -> None:
    """Write columns to an open file, as csv or as lines of JSON.

    Every text in a csv file is quoted, so that one of any characters is read back as it is.
    """
    rows = zip(*columns.values())
    if suffix == ".csv":
        table = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        table.writerows([list(columns), *rows] if header else rows)
    else:
        escape = codecs.lookup(getattr(file, "encoding", None) or "utf-8").name != "utf-8"
        for row in rows:
            file.write(json.dumps(dict(zip(columns, row)), ensure_ascii=escape) + "\n")


def write_table(path: Path, columns: dict[str, list]) -> None:
    """Write columns to a new csv or jsonl file, whole or not at all."""
    with whole(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, columns, path.suffix)


def probability_columns(probabilities: np.ndarray, labels: list[str]) -> dict[str, list[float]]:
    """Columns for a table of predictions: `confidence`, and `p_` with each label."""
    columns = {"confidence": probabilities.max(1)}
    columns |= {f"p_{label}": probabilities[:, i] for i, label in enumerate(labels)}
    return {name: column.astype(float).round(6).tolist() for name, column in columns.items()}


def write_report(folder: Path, test: Dataset, labels: list[str], scores: np.ndarray,
                 probabilities: np.ndarray, log: list[dict]) -> None:
    """The predictions, and the pictures."""
    truth, predicted = test["label"][:], likeliest(probabilities, labels)
    table = {"text": test["text"][:], "label": truth, "predicted": predicted}
    write_table(folder / "predictions.csv", table | probability_columns(probabilities, labels))
    draw_confusion(truth, predicted, labels, folder / "confusion-matrix.png")
    draw_reliability(truth, softmax(scores, axis=1), probabilities, labels,
                     folder / "reliability.png")
    draw_loss(log, folder / "loss.png")
