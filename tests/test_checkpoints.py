"""A run that is cut off goes on as if nothing had happened."""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import (DAMAGES, adapter, after_checkpoint, interrupt, losses, read_metrics,
                      read_rows, start_child, wait_for)
from safetensors.torch import save_file
from sklearn.metrics import log_loss

import main
from day9.baselines import judge_base_model
from day9.checkpoints import BEST, newest_checkpoint, validation_entries
from day9.files import digests, write_json
from day9.loading import load_classifier
from day9.metrics import fit_temperature, likeliest
from day9.progress import ShowProgress
from day9.training import training_settings


def test_the_best_epoch_is_kept(finished, arguments):
    """Training goes on to make validation worse: the adapter is an earlier one."""
    metrics = read_metrics(finished)
    epochs = validation_entries(metrics["training_log"])
    assert [entry["step"] for entry in epochs] == [3, 6, 9, 12]
    assert metrics["training_log"][0]["learning_rate"] == 0.01  # even the first step learns
    best = min(epochs, key=lambda entry: entry["validation_loss"])
    assert metrics["best_epoch"] == best["epoch"] == 2
    assert epochs[-1]["validation_loss"] > best["validation_loss"] + 0.05
    classifier = load_classifier(finished)
    rows = read_rows(Path(arguments[3]) / "validation.csv")
    texts, truth = [row["text"] for row in rows], [row["label"] for row in rows]
    assert classifier.temperature == best["temperature"] == pytest.approx(
        fit_temperature(classifier.scores(texts), truth, classifier.labels), abs=1e-3) != 1
    probabilities = classifier.predict_proba(texts)
    loss = log_loss(truth, probabilities, labels=classifier.labels)
    assert loss == pytest.approx(best["validation_loss"], abs=1e-3)
    right = [row["label"] == answer for row, answer in
             zip(rows, likeliest(probabilities, classifier.labels))]
    assert sum(right) / len(right) == best["validation_accuracy"]
    assert not list(finished.glob("checkpoint-*")) and not list(finished.glob("best*"))


def after_step(step):
    """Ctrl-C after a step, and after the validation that follows it, but before a checkpoint."""
    def patch(monkeypatch):
        monkeypatch.setattr(ShowProgress, "on_step_end", lambda self, args, state, *_, **__: (
            interrupt() if state.global_step == step else None))
    return patch


def after_training(monkeypatch):
    """Ctrl-C while results are written."""
    monkeypatch.setattr("main.write_report", interrupt)


def cut_short(name):
    """Damage: a file of the newest checkpoint lacks its end."""
    def damage(folder):
        path = folder / "checkpoint-6" / name
        path.write_bytes(path.read_bytes()[:-100])
    return damage


def without(name):
    """Damage: a file is missing."""
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize("stop, damage, start", [
    (after_step(1), None, None),
    (after_step(3), None, 2),  # an epoch's last step, which has no checkpoint
    (after_checkpoint(6), None, 6),  # one that has
    (after_training, None, 12),
    (after_checkpoint(6), cut_short("adapter_model.safetensors"), 4),
    (after_checkpoint(6), without("audit.json"), 6),
])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, arguments, finished, monkeypatch, capsys,
                                                stop, damage, start):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop(patch)
        assert main.main([*arguments, "--output-dir", str(folder)]) == 130
    assert f"main.py --resume {folder}" in capsys.readouterr().err
    assert not (folder / "metrics.json").exists()
    assert len(list(folder.glob("checkpoint-*"))) <= 2
    if damage:
        damage(folder)
    assert main.main(["--resume", str(folder)]) == 0
    said = capsys.readouterr().out
    assert ("checkpoint-6 is incomplete or damaged: skipped" in said) == (start == 4)
    assert f"resuming from {folder / f'checkpoint-{start}' if start else 'the beginning'}" in said
    assert adapter(folder) == adapter(finished) and losses(folder) == losses(finished)
    tuned = [read_metrics(run)["systems"]["fine_tuned"] for run in (folder, finished)]
    assert tuned[0]["log_loss"] == tuned[1]["log_loss"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in finished.iterdir())


def test_the_log_does_not_show_where_a_run_was_resumed(tmp_path, arguments, monkeypatch):
    """Losses are logged at every second step, as in a run of a hundred; checkpoints at 3 and 6."""
    def log_less(*details):
        config = training_settings(*details)
        config.logging_steps = 2
        return config

    monkeypatch.setattr("day9.training.training_settings", log_less)
    argv = [*arguments, "--epochs", "2", "--checkpoint-steps", "3"]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main.main([*argv, "--output-dir", str(whole)]) == 0
    with monkeypatch.context() as patch:
        after_checkpoint(3)(patch)
        assert main.main([*argv, "--output-dir", str(folder)]) == 130
    assert main.main(["--resume", str(folder)]) == 0
    assert losses(folder) == losses(whole)
    assert [entry["step"] for entry in losses(whole) if "loss" in entry] == [2, 3, 4, 6]


def test_a_killed_run_goes_on(tmp_path, arguments, finished):
    """SIGKILL at random moments, saving included; KILLS=50 kills fifty times."""
    kills, killed, rounds, draw = int(os.environ.get("KILLS", 4)), 0, 0, random.Random(0)
    while killed < kills:
        rounds += 1
        folder, log = tmp_path / f"run{rounds}", tmp_path / f"log{rounds}"
        argv = [*arguments, "--output-dir", str(folder)]
        while True:
            process = start_child(argv, log)
            wait_for((folder / "audit.json").exists, process)
            process.join(draw.uniform(0.2, 3.0) if killed < kills else 300)
            if process.exitcode is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
            if (folder / "metrics.json").exists():  # killed, but not before it was finished
                break
            argv = ["--resume", str(folder)]
        assert (folder / "metrics.json").exists(), log.read_text()
        assert adapter(folder) == adapter(finished), log.read_text()
        assert losses(folder) == losses(finished)


def test_a_finished_run_removes_its_own_checkpoints_alone(place, monkeypatch):
    run, users = place / "run", ["checkpoint-2 copy", "checkpoint-99 of mine", "checkpoint-mine"]
    for name in users:
        shutil.copytree(run / "checkpoint-2", run / name)
    files = sorted(path.name for path in (run / "checkpoint-2").iterdir())
    monkeypatch.setattr("main.judge_base_model", judge_base_model)
    assert main.main(["--resume", str(run)]) == 0
    assert sorted(path.name for path in run.glob("checkpoint-*")) == users
    assert all(sorted(path.name for path in (run / name).iterdir()) == files for name in users)
    assert not (run / BEST).exists()


def test_litter_does_not_damage_a_checkpoint(place, capsys):
    (place / "run" / "checkpoint-2" / ".DS_Store").write_text("")
    shutil.copytree(place / "run" / "checkpoint-2", place / "run" / "checkpoint-2 copy")
    assert newest_checkpoint(place / "run").name == "checkpoint-2"
    assert not capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_checkpoint_is_worth_nothing_without_the_best_adapter(place, capsys, damage):
    """If validation was scored before it: training starts at an earlier one, or anew."""
    run, state = place / "run", place / "run" / "checkpoint-2" / "trainer_state.json"
    assert newest_checkpoint(run)
    content = json.loads(state.read_text())
    content["log_history"].append({"validation_loss": 1.0})
    state.write_text(json.dumps(content))
    write_json(state.parent / "complete.json", digests([state]))
    save_file({"weight": torch.zeros(100)}, run / BEST)
    assert newest_checkpoint(run)
    damage(run / BEST)
    assert newest_checkpoint(run) is None
    assert "checkpoint-2 is incomplete or damaged: skipped" in capsys.readouterr().out
