"""The benchmarks at their smallest sizes: all is measured, and once. Nothing is asked of times."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, write_rows

from benchmarks import bench, where
from day9 import training


def write_splits(folder, sizes, labels):
    """Csv files with so many invented rows of each label."""
    folder.mkdir()
    for split, size in sizes.items():
        write_rows(folder / f"{split}.csv", ["text", "label"], [
            [f"{split} {i}: about my {label}", label] for i in range(size) for label in labels])
    return folder


@pytest.fixture(scope="module")
def options(tmp_path_factory, random_llama):
    """The command line of a benchmark whose banking77 is invented, after it has run."""
    folder = tmp_path_factory.mktemp("bench")
    banking = write_splits(folder / "banking", {"train": 4, "validation": 2, "test": 3},
                           ["card_arrival", "card_lost", "top_up"])
    given = ["--model", random_llama, "--runs", "1", "--rows", "8", "--banking", str(banking),
             "--output", str(folder / "bench.json")]
    done = subprocess.run([sys.executable, "-m", "benchmarks.bench", *given], text=True, cwd=ROOT,
                          capture_output=True, timeout=600,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return given


@pytest.fixture(scope="module")
def results(options):
    with open(options[-1]) as file:
        return json.load(file)


def test_every_section_is_measured_with_its_memory(results):
    methods = {section: {run["method"] for run in results[section]}
               for section in ("scoring", "training")}
    assert methods == {"scoring": {"one_pass", "pairs", "generate", "few_shot"},
                       "training": {"fine_tuned", "plain", "head", "tfidf"}}
    assert all(run["peak_mb"] > run["own_mb"] >= 0 for section in methods
               for run in results[section])
    assert results["threads"] == 1 and results["model"] and results["torch"]


def test_tables_are_short_and_ours_is_the_measure(results):
    tables = bench.tables(results)
    assert list(tables) == ["scoring", "training"]
    assert all(0 < len(table) <= 8 for table in tables.values())
    for name, ours in (("scoring", "one_pass"), ("training", "fine_tuned")):
        assert np.all(tables[name]["times"].xs(ours, level="method") == 1)


def test_what_is_known_is_not_measured_again(options, results, monkeypatch, capsys):
    tune_alone = lambda function, *given, **case: (
        function is bench.tune or pytest.fail(f"measured again: {case}"))
    monkeypatch.setattr(bench, "in_own_process", tune_alone)
    picture = bench.Path(options[-1]).with_suffix(".png")
    picture.unlink()
    bench.bench(options)
    assert "times" in capsys.readouterr().out and picture.stat().st_size


def test_another_model_needs_another_file(options, capsys):
    with pytest.raises(SystemExit):
        bench.bench(["--model", str(TINY), *options[2:]])
    assert "was measured otherwise" in capsys.readouterr().err


def test_the_learning_curve_has_all_systems_and_is_measured_once(tmp_path, monkeypatch, capsys):
    data = write_splits(tmp_path / "data", {"train": 10, "validation": 25, "test": 2},
                        ["billing", "test results"])
    output = tmp_path / "curve.json"
    monkeypatch.setattr(training, "MOST_EPOCHS", 1)
    monkeypatch.setattr(sys, "argv", [
        "curve.py", "--model", str(TINY), "--data", str(data), "--sizes", "16", "--seeds", "1",
        "--output", str(output)])
    runpy.run_module("benchmarks.curve", run_name="__main__")
    points = json.loads(output.read_text())
    assert [(point["system"], point["rank"]) for point in points] == [
        ("tfidf", 16), ("embeddings", 16), ("fine_tuned", 16), ("head", 16), ("fine_tuned", 1),
        ("fine_tuned", 64), ("random", 16)]
    assert all(point["rows"] == 16 and 0 <= point["accuracy"] <= 1 for point in points)
    assert capsys.readouterr().out.count("accuracy") >= 6
    runpy.run_module("benchmarks.curve", run_name="__main__")
    assert "accuracy" not in capsys.readouterr().out
    assert json.loads(output.read_text()) == points


def test_where_it_wins_is_measured_cell_by_cell_and_once(tmp_path, monkeypatch, capsys):
    """What is planned and not measured is said to be open."""
    data = write_splits(tmp_path / "health-questions", {"train": 10, "validation": 25, "test": 4},
                        ["billing", "test results"])
    output = tmp_path / "where.json"
    monkeypatch.setattr(training, "MOST_EPOCHS", 1)
    ask = ["--model", str(TINY), "--data", str(data), "--rows", "16", "--draws", "2", "--output",
           str(output), "--systems", "tfidf", "fine_tuned"]
    where.main(ask)
    results = json.loads(output.read_text())
    assert [(found["system"], found["draw"]) for found in results] == [
        ("tfidf", 0), ("fine_tuned", 0), ("tfidf", 1), ("fine_tuned", 1)]
    assert all(0 <= found["f1"] <= 1 and found["n"] == 8 and found["log_loss"] > 0
               for found in results)
    table = where.means(results)
    mean = 50 * (results[0]["accuracy"] + results[2]["accuracy"])
    assert table.loc[("health-questions", 16), "tfidf"] == f"{mean:.1f}"
    assert table.loc[("health-questions", 80), "fine_tuned"] == "open"
    assert set(table.loc[("trec6", 1000), ["tfidf", "embeddings", "fine_tuned"]]) == {"open"}
    capsys.readouterr()
    where.main(ask)
    assert "accuracy" not in capsys.readouterr().out
    assert Path(where.draw_curves(results, tmp_path / "curves.png")).stat().st_size
