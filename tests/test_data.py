"""The embedded dataset keeps what its card promises."""

import csv
import re
from collections import Counter

import pytest
from conftest import ROOT
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


@pytest.fixture(scope="module")
def splits():
    found = {}
    for name in ("train", "validation", "test"):
        path = ROOT / "data" / "patient-messages" / f"{name}.csv"
        with path.open(newline="", encoding="utf-8") as file:
            found[name] = list(csv.DictReader(file))
    return found


def words(text):
    return re.findall(r"[a-z0-9']+", text.lower())


def four_grams(text):
    tokens = words(text)
    return [tuple(tokens[i:i + 4]) for i in range(len(tokens) - 3)]


def test_sizes_balance_and_lengths(splits):
    for name, size in (("train", 880), ("validation", 160), ("test", 400)):
        counts = Counter(row["label"] for row in splits[name])
        assert len(counts) == 8 and set(counts.values()) == {size // 8}
    assert all(4 <= len(row["text"].split()) <= 90 for rows in splits.values() for row in rows)


def test_no_near_duplicates_across_splits(splits):
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        known = Counter(gram for row in splits[a] for gram in set(four_grams(row["text"])))
        for row in splits[b]:
            grams = set(four_grams(row["text"]))
            assert sum(gram in known for gram in grams) <= 0.3 * len(grams), row["text"]
    every = [" ".join(words(row["text"])) for rows in splits.values() for row in rows]
    assert len(set(every)) == len(every)


def test_four_grams_are_distinct(splits):
    grams = [gram for rows in splits.values() for row in rows for gram in four_grams(row["text"])]
    assert len(set(grams)) >= 0.9 * len(grams)


def test_labels_do_not_leak(splits):
    labels = {row["label"] for row in splits["train"]}
    for label in labels:
        holding = [row for rows in splits.values() for row in rows if label in row["text"].lower()]
        assert len(holding) <= 0.2 * 180, f"{label} is named in {len(holding)} messages"
    named = re.compile(r"\s*\[|.*\b(team|label|category|department)\s*:", re.I)
    assert not any(named.match(row["text"]) for rows in splits.values() for row in rows)


def test_learnable_but_not_trivial(splits):
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
                          LogisticRegression(C=10, max_iter=1000))
    columns = lambda name: ([row[column] for row in splits[name]] for column in ("text", "label"))
    score = model.fit(*columns("train")).score(*columns("test"))
    assert 0.70 <= score <= 0.93
