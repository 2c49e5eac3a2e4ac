"""The benchmarks at their smallest sizes: all is measured, and once. Nothing is asked of times."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, write_rows

from benchmarks import bench


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
