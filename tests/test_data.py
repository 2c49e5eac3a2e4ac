"""The two data sets keep what their cards promise."""

import hashlib
import re
from collections import Counter
from itertools import combinations

import pytest
from conftest import ROOT, read_rows
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from tools import health_questions


@pytest.fixture(scope="module")
def splits():
    folder = ROOT / "data" / "patient-messages"
    return {name: read_rows(folder / f"{name}.csv") for name in ("train", "validation", "test")}


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


QUESTIONS = ROOT / "data" / "health-questions"
FILES = {"train": "train.csv", "validation": "validation.csv", "test": "test.csv",
         "pool": "source/pool.csv"}


@pytest.fixture(scope="module")
def questions():
    """The rows of each split of the health questions, and of the pool."""
    return {name: read_rows(QUESTIONS / file) for name, file in FILES.items()}


def make_questions(folder, monkeypatch, source):
    """Run the maker in a folder that holds nothing but its source; returns the exit code."""
    (folder / "source").mkdir()
    (folder / "source" / "GARD.tsv").write_bytes(source)
    monkeypatch.setattr(health_questions, "FOLDER", folder)
    return health_questions.main()


def test_questions_are_made_again_byte_for_byte(tmp_path, monkeypatch):
    source = (QUESTIONS / "source" / "GARD.tsv").read_bytes()
    assert make_questions(tmp_path, monkeypatch, source) == 0
    for file in FILES.values():
        assert (tmp_path / file).read_bytes() == (QUESTIONS / file).read_bytes(), file


def test_another_source_makes_nothing(tmp_path, monkeypatch, capsys):
    assert make_questions(tmp_path, monkeypatch, b"QT\tQuestion\r\n") == 1
    error = capsys.readouterr().err
    assert "its SHA-256 differs" in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.csv"))


def test_questions_come_from_the_source_unchanged(questions):
    content = (QUESTIONS / "source" / "GARD.tsv").read_bytes()
    card = (QUESTIONS / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(content).hexdigest() in card
    source = {tuple(line.split("\t")) for line in content.decode().split("\r\n")[1:-1]}
    kinds = {name: kind for kind, name in health_questions.NAMES.items()}
    assert all((kinds[row["label"]], row["text"]) in source
               for rows in questions.values() for row in rows)


def test_questions_have_their_sizes_and_classes_in_proportion(questions):
    assert {name: len(rows) for name, rows in questions.items()} == {
        "train": 1000, "validation": 200, "test": 600, "pool": 878}
    card = (QUESTIONS / "README.md").read_text(encoding="utf-8")
    every = Counter(row["label"] for rows in questions.values() for row in rows)
    assert len(every) == 10
    for label, count in every.items():
        held = [sum(row["label"] == label for row in rows) for rows in questions.values()]
        assert all(abs(part - count * len(rows) / 2678) <= 1.5
                   for part, rows in zip(held, questions.values())), label
        assert re.search(rf"^\| {label} \|.*\| {' [|] '.join(map(str, held))} \|$", card, re.M)


def test_no_question_comes_twice_or_with_two_labels(questions):
    source = (QUESTIONS / "source" / "GARD.tsv").read_text(encoding="utf-8").splitlines()[1:]
    labels = {}
    for kind, text in (line.split("\t") for line in source):
        labels.setdefault(" ".join(text.lower().split()), set()).add(kind)
    every = [" ".join(row["text"].lower().split()) for rows in questions.values() for row in rows]
    assert len(set(every)) == len(every)
    assert all(len(labels[text]) == 1 for text in every)


def test_near_copies_of_a_question_are_not_parted(questions):
    bags = {name: [set(re.findall(r"\w+", row["text"].lower())) for row in rows]
            for name, rows in questions.items()}
    for one, other in combinations(bags, 2):
        for a in bags[one]:
            for b in bags[other]:
                if 4 * len(a) <= 5 * len(b) and 4 * len(b) <= 5 * len(a):
                    assert 5 * len(a & b) < 4 * len(a | b), (one, a, other, b)
