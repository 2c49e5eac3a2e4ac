"""What a run says of its results."""

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib import font_manager

from day9.metrics import compare
from day9.reading.splits import read_table
from day9.report import coverage, coverage_table, draw_confusion, find_fonts, verdict, write_table


@pytest.mark.parametrize("tuned, other, words", [
    (18, 2, "beats TF-IDF"), (2, 18, "loses to TF-IDF"),
    (6, 5, "cannot be told apart from TF-IDF")])
def test_the_verdict_follows_from_the_test(tuned, other, words):
    def answers(wins, start):
        right = [start <= i < start + wins or i >= 36 for i in range(40)]
        return np.array([[0.9, 0.1] if one else [0.1, 0.9] for one in right])

    comparison = compare(["a"] * 40, answers(tuned, 0), answers(other, tuned), ["a", "b"])
    assert (comparison["only_a_right"], comparison["only_b_right"]) == (tuned, other)
    tail = sum(math.comb(tuned + other, k) for k in range(min(tuned, other) + 1))
    assert comparison["p_value"] == pytest.approx(min(1, 2 * tail / 2 ** (tuned + other)))
    baseline = {"accuracy": (other + 4) / 40}
    systems = {"fine_tuned": {"accuracy": (tuned + 4) / 40}, "tfidf": baseline,
               "zero_shot": baseline}
    sentence = verdict(systems, {"fine_tuned_vs_tfidf": comparison,
                                 "fine_tuned_vs_zero_shot": comparison})
    assert words in sentence
    assert ("worth it" in sentence) == (tuned == 18)
    assert ("use TF-IDF" in sentence) == (tuned != 18)
    sentence = verdict(systems, {"fine_tuned_vs_tfidf": comparison,
                                 "fine_tuned_vs_zero_shot": {"p_value": 0.5}})
    assert ("use the base model" in sentence) == (tuned == 18)
    assert sentence.endswith("Sentence embeddings were left out.")


@pytest.mark.parametrize("embeddings, p_value, words", [
    (0.9, 0.5, "cannot be told apart from sentence embeddings (-5.0 points, p = 0.500): "
               "use sentence embeddings here."),
    (0.9, 0.01, "loses to sentence embeddings (-5.0 points, p = 0.010): use sentence embeddings"),
    (0.75, 0.01, "beats sentence embeddings (+10.0 points, p = 0.010): fine-tuning was worth it"),
    (0.75, 0.2, "(+10.0 points, p = 0.200): use sentence embeddings"),
    (0.65, 0.01, "beats TF-IDF (+15.0 points, p = 0.001): fine-tuning was worth it")])
def test_the_verdict_names_the_best_rival(embeddings, p_value, words):
    systems = {name: {"accuracy": accuracy} for name, accuracy in (
        ("tfidf", 0.7), ("embeddings", embeddings), ("zero_shot", 0.2), ("fine_tuned", 0.85))}
    chances = {"tfidf": 0.001, "embeddings": p_value, "zero_shot": 0.0001}
    sentence = verdict(systems, {f"fine_tuned_vs_{name}": {"p_value": chance}
                                 for name, chance in chances.items()})
    assert words in sentence and "left out" not in sentence


@pytest.mark.parametrize("sure, shown", [(0.839699, "0.83969"), (0.9998799, "0.99987"),
                                         (0.9999999, "0.99999"), (1.0, "0.99999")])
def test_a_threshold_is_rounded_down(sure, shown):
    rows = coverage(["a", "a"], np.array([[sure, 1 - sure]] * 2), ["a", "b"])
    assert rows[0]["threshold"] == float(shown) <= sure
    assert coverage_table(rows).splitlines()[1].endswith(f" {shown}")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    texts = ["lone\rreturn", "both\r\n", "two\nlines", 'a "quoted", text', '"', " padded ", "",
             "007", "日本 🙂", "\x85\u2028", "nul\0", "# no comment", "tab\there"]
    columns = {"text": texts, "label": [str(i) for i in range(len(texts))]}
    write_table(tmp_path / f"a{suffix}", columns)
    table = read_table(tmp_path / f"a{suffix}", "text")
    assert {name: table[name][:] for name in table.column_names} == columns
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.filterwarnings("error")
def test_labels_of_any_script_are_drawn(tmp_path, monkeypatch, capfd):
    """Without a warning where no font has them, not as formulas, not over the whole picture."""
    labels = ["账单问题", "🙂 emoji", "$5 or $6", "a_b^2 \\alpha", "\\$", "two\nlines",
              "long " * 100, "é"]
    picture = Path(draw_confusion(labels, labels, labels, tmp_path / "a.png"))
    pixels = matplotlib.image.imread(picture)
    blue = (pixels[..., 2] > pixels[..., 0] + 0.1).mean()
    assert blue > 0.02 and capfd.readouterr().err == ""


def test_a_font_that_has_the_characters_is_used():
    usual, *more = find_fonts("abc é")
    assert not more
    found, [other] = "\u20d2", find_fonts("abc \u20d2")[1:]  # a mathematical sign
    path = font_manager.findfont(other, fallback_to_default=False)
    assert ord(found) in font_manager.get_font(path).get_charmap()
