"""The main job through the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ASK, INSTRUCTION, ROOT, TINY, command, losses, read_rows, two_teams
from safetensors.torch import load_file

import main
from day9.checkpoints import validation_entries
from day9.loading import load_base, load_classifier
from day9.metrics import compute_metrics
from day9.prompts import make_prompt
from day9.reading.splits import load_splits
from day9.settings import Settings


def test_the_main_job_learns_and_keeps_its_results(main_job):
    out, err, run = main_job
    for line in (out + err).splitlines():
        assert not re.search("Failed|Error|Traceback|[Ww]arning", line)
    metrics = json.loads((run / "metrics.json").read_text())
    systems = metrics["systems"]
    assert list(systems) == ["majority", "tfidf", "embeddings", "zero_shot", "few_shot",
                             "fine_tuned"]
    for row in systems.values():
        assert set(row) == {
            "accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "f1",
            "log_loss", "ece", "n", "seconds"}
        assert row["n"] == 40 and row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    assert systems["majority"]["accuracy"] == 0.5
    tuned = systems["fine_tuned"]["accuracy"]
    assert tuned >= max(0.7, systems["zero_shot"]["accuracy"] + 0.1)
    assert set(metrics["comparisons"]["fine_tuned_vs_tfidf"]) == {
        "only_a_right", "only_b_right", "p_value"}
    assert metrics["verdict"] in out and f"model: {TINY}, because it was asked for" in out
    epochs = validation_entries(metrics["training_log"])
    assert [entry["step"] for entry in epochs] == [15, 30]
    for entry in epochs:
        assert f"epoch {entry['epoch']:.0f} of 2: validation log-loss " in out
    assert f"kept: the adapter after epoch {metrics['best_epoch']:.0f} of 2" in out
    kept = read_rows(run / "predictions.csv")
    assert sum(row["label"] == row["predicted"] for row in kept) / 40 == pytest.approx(tuned)
    assert all(float(row["p_billing"]) + float(row["p_heart and lungs"])
               == pytest.approx(1, abs=1e-5) for row in kept)
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
                 "settings.json", "classifier.json", "versions.json"):
        assert (run / name).stat().st_size > 0
    labels = json.loads((run / "audit.json").read_text())["train"]["labels"]
    assert labels == {"billing": 60, "heart and lungs": 60}
    assert not [path for path in run.iterdir() if "best" in path.name or path.name.startswith(".")]


def test_the_instruction_is_kept_and_used(finished):
    assert json.loads((finished / "settings.json").read_text())["instruction"] == INSTRUCTION
    classifier = load_classifier(finished)
    asked = INSTRUCTION.replace("{labels}", "a, b")
    assert f"{asked}\n\n" in classifier.tokenizer.decode(classifier.prompt.before)
    assert asked in (finished / "README.md").read_text()
    rows = read_rows(finished / "predictions.csv")
    again = classifier.predict_proba([row["text"] for row in rows])[:, 0]
    assert np.abs(again - [float(row["p_a"]) for row in rows]).max() < 1e-4
    classifier.prompt = make_prompt(classifier.tokenizer, ["a", "b"], ASK, 512)
    other = classifier.predict_proba([row["text"] for row in rows])[:, 0]
    assert np.abs(again - other).max() > 1e-2  # else the line above would not notice


def test_balancing_helps_a_rare_class(tmp_path, capsys):
    """40 to 4: without --balance the rare team is hardly ever named."""
    test = two_teams(tmp_path / "data",
                     {"train": (40, 4), "validation": (4, 4), "test": (16, 16)})
    f1 = {}
    for balanced in (False, True):
        settings = Settings(model=str(TINY), data=str(tmp_path / "data"), epochs=3,
                            balance=balanced, quantize=False)
        splits = load_splits(settings.data)
        base, settings = load_base(settings, splits["train"])
        tuned, _ = main.fine_tune(base, splits, settings, tmp_path)
        assert f"{80 if balanced else 44} rows to train on" in capsys.readouterr().out
        probabilities = tuned.predict_proba([row["text"] for row in test])
        f1[balanced] = compute_metrics([row["label"] for row in test], probabilities,
                                       tuned.labels, 0)["f1"]
    assert f1[True] > f1[False] + 0.2


STARTS = {
    "script": """
import runpy
try:
    runpy.run_path("main.py", run_name="__main__")
except SystemExit as stop:
    assert stop.code == 0, stop
""", "module": """
import main
assert main.main(sys.argv[1:]) == 0
""", "trainer": """
import torch
from day9.training import CarefulTrainer, collate, training_settings
from datasets import Dataset
from day9.model import add_adapter, load_model
from day9.prompts import load_tokenizer
from day9.settings import Settings
name, folder = sys.argv[2], sys.argv[-1]
CarefulTrainer(
    model=add_adapter(load_model(name, torch.float32), 4, 0), data_collator=collate,
    train_dataset=Dataset.from_dict({"prompt": [[1, 2]], "completion": [[3, 4]]}),
    args=training_settings(Settings(epochs=1, learning_rate=0.1), folder, 1, torch.float32),
    processing_class=load_tokenizer(name))
"""}
QUEUED = """
from huggingface_hub import constants
from huggingface_hub.utils import _telemetry
assert not constants.is_offline_mode() and "trl" in sys.modules
assert _telemetry._TELEMETRY_QUEUE.empty() and _telemetry._TELEMETRY_THREAD is None
"""


@pytest.mark.parametrize("start", STARTS)
def test_nothing_is_reported_to_the_makers_of_libraries(tmp_path, arguments, start):
    """trl would report each trainer; nobody listens at the address that it is given here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = command("-c", f"import sys\n{STARTS[start]}{QUEUED}", *arguments, "--epochs", "1",
                   "--output-dir", tmp_path / "run", cwd=ROOT,
                   env=kept | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr


def test_two_processes_give_what_one_gives(tmp_path, arguments, finished):
    """torchrun with two processes: the same losses, adapter and probabilities row by row.

    Where a gradient is next to nothing, rounding decides the way of a first step, which is 0.01.
    The last rows of an epoch cannot be dealt out evenly.
    """
    folder, torchrun = tmp_path / "run", Path(sys.executable).parent / "torchrun"
    done = subprocess.run(
        [torchrun, "--nproc-per-node", "2", ROOT / "main.py", *arguments, "--output-dir", folder],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Fine-tuning ") == done.stdout.count("epoch 4 of 4") == 1
    ours, theirs = losses(folder), losses(finished)
    assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs]
    for name in ("loss", "validation_loss"):
        pairs = [(a[name], b[name]) for a, b in zip(ours, theirs) if name in a]
        assert len(pairs) in (4, 12) and max(abs(a - b) for a, b in pairs) < 1e-3
    tuned = [load_file(run / "adapter_model.safetensors") for run in (folder, finished)]
    assert max((tuned[0][name] - tuned[1][name]).abs().max() for name in tuned[1]) < 2e-3
    kept = [read_rows(run / "predictions.csv") for run in (folder, finished)]
    for row, other in zip(*kept, strict=True):
        assert row["text"] == other["text"]
        assert abs(float(row["p_a"]) - float(other["p_a"])) < 1e-3
    done = subprocess.run(
        [torchrun, "--nproc-per-node", "2", "--", ROOT / "main.py", "predict", "--run", folder,
         "--output", tmp_path / "new.csv", "--texts", "one", "two", "three"],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert [row["text"] for row in read_rows(tmp_path / "new.csv")] == ["one", "two", "three"]
