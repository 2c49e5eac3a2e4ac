"""The benchmarks of accuracy, on a few rows and the tiny Llama: measured once, open cells said."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, write_rows
from datasets import Dataset, DatasetDict

from benchmarks import systems, where
from day9.settings import Settings

LABELS = ["billing", "test results"]


def invented(size: int) -> list[tuple[str, str]]:
    """So many rows that a word tells apart."""
    return [(f"message {i} about my {LABELS[i % 2]}", LABELS[i % 2]) for i in range(size)]


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder of few rows under the name of a set that is planned."""
    folder = tmp_path / "health-questions"
    folder.mkdir()
    for split, size in {"train": 40, "validation": 8, "test": 8}.items():
        write_rows(folder / f"{split}.csv", ["text", "label"],
                   [(f"{split} {text}", label) for text, label in invented(size)])
    return folder


@pytest.fixture
def one_epoch(monkeypatch):
    monkeypatch.setattr("day9.loading.default_epochs", lambda labels: 1)


def test_where_it_wins_is_measured_cell_by_cell_and_once(data, tmp_path, one_epoch, capsys):
    """What is planned and not measured is said to be open; no path is kept."""
    output = tmp_path / "where.json"
    ask = ["--model", str(TINY), "--data", str(data), "--rows", "16", "--draws", "2", "--output",
           str(output), "--systems", "tfidf", "fine_tuned"]
    where.main(ask)
    results = json.loads(output.read_text())
    assert [(found["system"], found["draw"]) for found in results] == [
        ("tfidf", 0), ("fine_tuned", 0), ("tfidf", 1), ("fine_tuned", 1)]
    assert all(found["n"] == 8 and found["accuracy_low"] <= found["accuracy"] and found["log_loss"]
               and found["source"].endswith("50b7985") for found in results)
    assert str(tmp_path) not in output.read_text()
    table = where.means(results)
    mean = 50 * (results[0]["accuracy"] + results[2]["accuracy"])
    assert table.loc[("health-questions", 16), "tfidf"] == f"{mean:.1f}"
    assert table.loc[("health-questions", 80), "fine_tuned"] == "open"
    assert set(table.loc[("trec6", 1000), ["tfidf", "embeddings", "fine_tuned"]]) == {"open"}
    capsys.readouterr()
    where.main(ask)
    assert "'accuracy'" not in capsys.readouterr().out
    assert Path(where.draw_curves(results, tmp_path / "curves.png")).stat().st_size


def test_a_draw_has_its_sizes_and_a_large_test_split_is_cut_in_proportion(data):
    for split, size in {"validation": 60, "test": 1200}.items():
        write_rows(data / f"{split}.csv", ["text", "label"], [
            (f"{split} {i}", LABELS[i % 4 == 0]) for i in range(size)])
    first, second = (where.draw_splits(data, 20, draw) for draw in (0, 1))
    assert {name: len(split) for name, split in first.items()} == {
        "train": 20, "validation": 40, "test": 1000}
    assert first["test"]["label"][:].count("billing") == 750
    assert first["test"]["text"][:] == second["test"]["text"][:]
    assert first["train"]["text"][:] != second["train"]["text"][:]


def test_a_variant_trains_otherwise_and_stands_beside_training_as_it_is(
        data, tmp_path, monkeypatch):
    """Each changes what it is for: settings, the rate, the labels' names or the weights."""
    seen = []

    def look(base, splits, settings, folder):
        seen.append((settings, splits["train"]["label"][:], base))
        return base, []

    monkeypatch.setattr("main.fine_tune", look)
    monkeypatch.setattr(where, "HERE", tmp_path)
    (tmp_path / "data").mkdir()
    data.rename(tmp_path / "data" / data.name)
    output, names = tmp_path / "where.json", ["rank-1", "fourfold-rate", "no-list", "coded-labels",
                                              "random-weights"]
    where.main(["--model", str(TINY), "--output", str(output), "--variants", *names])
    (rank, *_), (rate, *_), (alone, *_), (_, codes, _), (_, _, random) = seen
    assert (rank.rank, alone.rank) == (1, 16)
    assert rate.learning_rate == pytest.approx(4 * rank.learning_rate)
    assert "{labels}" in rank.instruction and "{labels}" not in alone.instruction
    assert {*codes} == {"type 1", "type 2"} and random.digest != seen[0][2].digest
    results = json.loads(output.read_text())
    usual = where.find_variants([None])[0] | {"accuracy": results[0]["accuracy"] - 0.125}
    table = where.ablations([*results, usual | {name: 0.5 for name in (
        "accuracy_low", "accuracy_high", "f1", "log_loss", "seconds")}])
    assert table.loc["rank-1", "change"] == "+12.5" and table.loc["rank-1", "draws"] == "1"
    assert table.loc["rank-64", "accuracy"] == "open" and len(table) == 1 + len(where.VARIANTS)
    assert table.loc["rank-1", "command"] == "python -m benchmarks.where --variants rank-1"


def test_codes_are_put_back_in_the_order_of_the_labels(monkeypatch):
    """Of twelve, as "type 10" comes before "type 2"."""
    labels = [f"{letter} words" for letter in "abcdefghijkl"]
    splits = DatasetDict(train=Dataset.from_dict({"text": labels, "label": labels}))

    def sure(coded, settings):
        columns, truth = sorted(set(coded["train"]["label"][:])), coded["train"]["label"][:]
        return np.array([[float(column == label) for column in columns] for label in truth])

    monkeypatch.setattr(systems, "train_fine_tuned", sure)
    assert (systems.train_coded(splits, Settings()) == np.eye(12)).all()


def test_the_head_reads_the_prompt_of_the_words_and_learns(monkeypatch):
    """Its classes are outputs of their own: the Llama's tokens are not."""
    seen = []
    train = systems.train

    def look(classifier, rows, *given):
        seen.extend([rows[0]["prompt"], classifier])
        return train(classifier, rows, *given)

    monkeypatch.setattr(systems, "train", look)
    rows = invented(48)
    splits = DatasetDict({name: Dataset.from_dict(dict(zip(("text", "label"), zip(*part))))
                          for name, part in (("train", rows[:32]), ("validation", rows[32:40]),
                                             ("test", rows[40:]))})
    found = systems.judge(systems.train_head, splits, Settings(
        model=str(TINY), epochs=4, learning_rate=0.01, seed=0))
    prompt, tuned = seen
    assert "billing, test results" in tuned.tokenizer.decode(prompt)
    assert tuned.model.get_output_embeddings().weight.shape[0] == 2
    assert found["accuracy"] == 1 and found["log_loss"] < 0.2


def test_gains_are_sorted_and_open_ones_come_last(tmp_path):
    def cells(name, **accuracies):
        return [{"data": name, "rows": where.TASKS[name].sizes[-1], "draw": 0, "system": system,
                 "variant": None, "accuracy": value, "accuracy_low": value - 0.02,
                 "accuracy_high": value + 0.02} for system, value in accuracies.items()]

    results = [*cells("snips", tfidf=0.97, embeddings=0.96, fine_tuned=0.95),
               *cells("trec6", tfidf=0.84, embeddings=0.86, fine_tuned=0.95)]
    table = where.gains(results)
    assert [*table.index[:2]] == ["trec6", "snips"] and len(table) == len(where.TASKS)
    assert table["gain"].round(2).tolist()[:2] == [0.09, -0.02] and table["gain"].isna().sum() == 5
    assert Path(where.draw_gains(results, tmp_path / "gains.png")).stat().st_size


def test_what_is_kept_was_measured_on_the_planned_cells():
    kept = json.loads((ROOT / "outputs" / "where.json").read_text(encoding="utf-8"))
    assert all(where.find_result(cell, kept) for cell in where.find_cells()
               if cell["system"] in ("tfidf", "embeddings"))
    assert all(found["n"] <= where.MOST_TEST for found in kept)
