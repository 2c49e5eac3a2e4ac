"""The published figure's protocol: its folds, measured once, and what their table says."""

import json

from datasets import Dataset, DatasetDict

from benchmarks import folds
from tools.health_questions import near_copies


def test_folds_have_every_row_once_and_keep_repeats_together():
    """Of both kinds. Where repeats are kept in one fold, no near-copy of a test row is learnt."""
    for repeats in folds.REPEATS:
        made = list(folds.make_folds(repeats))
        tested = [row for splits in made for row in splits["test"]["text"][:]]
        assert len(tested) == 2937 and len(set(made[0]["train"]["label"][:])) == 13
        texts = [text for split in made[0].values() for text in split["text"][:]]
        groups, n = near_copies(texts), len(made[0]["test"])
        assert len(texts) == 2937
        shared = set(groups[-n:]) & set(groups[:-n])
        assert bool(shared) == (repeats == "as they are")


def test_folds_are_measured_once_and_their_table_says_what_is_open(tmp_path, monkeypatch, capsys):
    rows = Dataset.from_dict({"text": ["the cause", "a cure"] * 4, "label": ["cause", "cure"] * 4})
    few = DatasetDict(train=rows, validation=rows, test=rows)
    monkeypatch.setattr(folds, "make_folds", lambda repeats: [few] * 5)
    output = tmp_path / "folds.json"
    folds.main(["--systems", "tfidf", "--output", str(output)])
    results = json.loads(output.read_text())
    assert len(results) == 10
    table = folds.table(results[:6])
    assert table.loc[("as they are", "mean"), "tfidf"] == "100.0"
    assert table.loc[("as they are", "mean"), "n"] == 40
    assert table.loc[("in one fold", "mean"), "tfidf"] == "open"
    capsys.readouterr()
    folds.main(["--systems", "tfidf", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "'accuracy'" not in printed and "85.3" in printed
