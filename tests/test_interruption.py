"""A run that is cut off goes on as if nothing had happened; trouble costs one line, no results."""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, read_rows
from sklearn.metrics import log_loss

import commands
import judging
import keeping
import main
import models
import reading
import scoring

forks = multiprocessing.get_context("forkserver")  # children have everything imported already
forks.set_forkserver_preload(["main"])


def adapter(folder):
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def losses(folder):
    """The training log but for its last entry, which holds times."""
    return [entry for entry in read_metrics(folder)["training_log"]
            if "loss" in entry or "validation_loss" in entry]


def test_the_best_epoch_is_kept(finished, arguments):
    """Training goes on to make validation worse: the adapter is an earlier one."""
    metrics = read_metrics(finished)
    epochs = keeping.validation_entries(metrics["training_log"])
    assert [entry["step"] for entry in epochs] == [3, 6, 9, 12]
    best = min(epochs, key=lambda entry: entry["validation_loss"])
    assert metrics["best_epoch"] == best["epoch"] == 2
    assert epochs[-1]["validation_loss"] > best["validation_loss"] + 0.1
    classifier = models.load_classifier(finished)
    fitted, classifier.temperature = classifier.temperature, 1
    rows = read_rows(Path(arguments[3]) / "validation.csv")
    probabilities = classifier.predict_proba([row["text"] for row in rows])
    truth = [row["label"] for row in rows]
    assert fitted == best["temperature"] == pytest.approx(
        judging.fit_temperature(np.log(probabilities), truth, classifier.labels), abs=1e-3) != 1
    loss = log_loss(truth, probabilities, labels=classifier.labels)
    assert loss == pytest.approx(best["validation_loss"], abs=1e-3)
    right = [row["label"] == answer for row, answer in
             zip(rows, judging.likeliest(probabilities, classifier.labels))]
    assert sum(right) / len(right) == best["validation_accuracy"]
    assert not list(finished.glob("checkpoint-*")) and not list(finished.glob("best*"))


# Interruption


def interrupt(*_, **__):
    raise KeyboardInterrupt


def after_checkpoint(step):
    """Ctrl-C right after a checkpoint is complete."""
    def patch(monkeypatch):
        mark = main.MarkComplete.on_save

        def on_save(self, args, state, control, **rest):
            mark(self, args, state, control, **rest)
            if state.global_step == step:
                interrupt()

        monkeypatch.setattr(main.MarkComplete, "on_save", on_save)
    return patch


def after_step(step):
    """Ctrl-C after a step, and after the validation that follows it, but before a checkpoint."""
    def patch(monkeypatch):
        monkeypatch.setattr(main.ShowProgress, "on_step_end", lambda self, args, state, *_, **__: (
            interrupt() if state.global_step == step else None))
    return patch


def after_training(monkeypatch):
    """Ctrl-C while results are written."""
    monkeypatch.setattr(main, "write_report", interrupt)


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
    training_settings = main.training_settings

    def log_less(*details):
        config = training_settings(*details)
        config.logging_steps = 2
        return config

    monkeypatch.setattr(main, "training_settings", log_less)
    argv = [*arguments, "--epochs", "2", "--checkpoint-steps", "3"]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main.main([*argv, "--output-dir", str(whole)]) == 0
    with monkeypatch.context() as patch:
        after_checkpoint(3)(patch)
        assert main.main([*argv, "--output-dir", str(folder)]) == 130
    assert main.main(["--resume", str(folder)]) == 0
    assert losses(folder) == losses(whole)
    assert [entry["step"] for entry in losses(whole) if "loss" in entry] == [2, 3, 4, 6]


def test_a_finished_run_is_not_resumed_and_an_unfinished_one_not_used(tmp_path, arguments, finished,
                                                                      monkeypatch, capsys):
    assert main.main(["--resume", str(finished)]) == 1
    assert "finished run: there is nothing to resume" in capsys.readouterr().err
    folder = tmp_path / "run"
    after_checkpoint(2)(monkeypatch)
    assert main.main([*arguments, "--output-dir", str(folder)]) == 130
    capsys.readouterr()
    for rest in (["predict", "--texts", "a text"], ["merge", "--output", str(tmp_path / "new")]):
        assert main.main([rest[0], "--run", str(folder), *rest[1:]]) == 1
        error = capsys.readouterr().err.strip()
        assert f"continue with main.py --resume {folder}" in error and "\n" not in error


def test_a_run_is_not_resumed_on_other_data(tmp_path, arguments, monkeypatch, capsys):
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(arguments[3], data)
    after_checkpoint(2)(monkeypatch)
    argv = [*arguments, "--data", str(data)]
    assert main.main([*argv, "--output-dir", str(folder)]) == 130
    train = data / "train.csv"
    train.write_text(train.read_text().replace("message 3", "letter 3"))
    capsys.readouterr()
    assert main.main(["--resume", str(folder)]) == 1
    assert "not what it was" in capsys.readouterr().err


def child(argv, log):
    """The program in a process of its own, its output in a file."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main.main(argv))


def start_child(argv, log):
    process = forks.Process(target=child, args=(argv, str(log)))
    process.start()
    return process


def wait_for(found, process, seconds=120):
    """Until found() is true or the process ends."""
    deadline = time.monotonic() + seconds
    while not found() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_is_clean_and_says_how_to_go_on(tmp_path, arguments, sent, code):
    folder, log = tmp_path / "run", tmp_path / "log"
    argv = [*arguments, "--epochs", "400"]
    process = start_child([*argv, "--output-dir", str(folder)], log)
    wait_for(lambda: list(folder.glob("checkpoint-*/complete.json")), process)
    os.kill(process.pid, sent)
    process.join(60)
    assert process.exitcode == code, log.read_text()
    assert log.read_text().rstrip().endswith(f"main.py --resume {folder}")
    assert "Traceback" not in log.read_text()


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


def test_of_two_runs_into_one_folder_one_is_refused(tmp_path, arguments, finished):
    folder, logs = tmp_path / "run", [tmp_path / "log1", tmp_path / "log2"]
    both = [start_child([*arguments, "--output-dir", str(folder)], log) for log in logs]
    for process in both:
        process.join(120)
    assert sorted(process.exitcode for process in both) == [0, 1]
    [refused] = [log for process, log in zip(both, logs) if process.exitcode]
    line = refused.read_text().strip()
    assert "choose a new --output-dir" in line and "\n" not in line
    assert adapter(folder) == adapter(finished)


def test_a_claimed_folder_is_not_taken(tmp_path, monkeypatch):
    """Two runs that both saw an empty folder: only one can claim it."""
    folder = keeping.make_run_folder(str(tmp_path / "run"))
    assert (folder / "settings.json").exists()
    monkeypatch.setattr(keeping.Path, "iterdir", lambda self: iter([]))
    with pytest.raises(reading.InputError, match="another run starts in"):
        keeping.make_run_folder(str(folder))
    with pytest.raises(reading.InputError, match="no run began in"):  # it was killed
        keeping.read_settings(folder, "--resume")


# Trouble


@pytest.mark.parametrize("batch", [8, 12, 24])
def test_a_loss_that_is_no_number_stops_the_run_at_once(tmp_path, arguments, capsys, batch):
    """In the midst of an epoch, at its end, or at the first step that changes anything."""
    folder = tmp_path / "run"
    argv = [*arguments, "--learning-rate", "1e30"]
    assert main.main([*argv, "--batch-size", str(batch), "--output-dir", str(folder)]) == 1
    error = capsys.readouterr().err.strip()
    assert "lower --learning-rate" in error and "\n" not in error
    step = int(error.split("step ")[1].split(":")[0])
    assert step <= 3 and not (folder / "adapter_model.safetensors").exists()


ERRORS = [torch.OutOfMemoryError("CUDA out of memory"),
          RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=["gpu", "cpu", "python"])
@pytest.mark.parametrize("command, module, function", [
    ("run", models, "load_model"), ("run", scoring, "score_labels"), ("run", main, "train"),
    ("predict", models, "load_model"), ("predict", scoring, "score_labels"),
    ("merge", commands, "merge_adapter")])
def test_want_of_memory_says_what_to_lower(tmp_path, arguments, finished, capsys, monkeypatch,
                                           command, module, function, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(module, function, fail)
    argv = {"run": [*arguments, "--output-dir", str(tmp_path / "run")],
            "predict": ["predict", "--run", str(finished), "--texts", "a text"],
            "merge": ["merge", "--run", str(finished), "--output", str(tmp_path / "merged")]}
    assert main.main(argv[command]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("main.py: error: out of memory: lower ")
    assert said.err.count("\n") == 1 and "--model" not in said.err
    assert function != "train" or "memory to train: about 0.1" in said.out


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_one_line(small_disk, arguments, capsys, monkeypatch):
    assert main.main([*arguments, "--output-dir", str(small_disk / "first")]) == 1
    assert "make room" in capsys.readouterr().err  # seen before training
    monkeypatch.setattr(main, "check_space", lambda folder, trainable: None)
    older, folder = small_disk / "older.txt", small_disk / "second"
    older.write_text("kept")
    argv = [*arguments, "--rank", "64"]
    assert main.main([*argv, "--output-dir", str(folder)]) == 1
    error = capsys.readouterr().err.strip()
    assert f"the disk is full: make room, then main.py --resume {folder}" in error
    assert "\n" not in error and older.read_text() == "kept"


def test_a_folder_that_cannot_be_written(tmp_path, arguments, capsys):
    (tmp_path / "file").write_text("kept")
    assert main.main([*arguments, "--output-dir", str(tmp_path / "file" / "run")]) == 1
    assert "cannot write to" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_that_never_began_leaves_nothing(tmp_path, arguments, capsys):
    folder = tmp_path / "run"
    argv = [*arguments, "--label-column", "team", "--output-dir", str(folder)]
    assert main.main(argv) == 1 and not folder.exists()


# Several processes


def test_two_processes_give_what_one_gives(tmp_path, arguments, finished):
    """torchrun with two processes: the same losses, the same probabilities row by row."""
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
