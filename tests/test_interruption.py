"""A run that is cut off goes on as if nothing had happened; what goes wrong costs one line and destroys nothing."""

import csv
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

import pytest
import torch
from conftest import ROOT

import main

forks = multiprocessing.get_context("forkserver")  # children start with everything imported, and no threads
forks.set_forkserver_preload(["main"])


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, random_llama):
    """The command line of a short run: 24 messages, 12 steps, a checkpoint at every second one."""
    data = tmp_path_factory.mktemp("data")
    for split, size in (("train", 24), ("validation", 8), ("test", 12)):
        with (data / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"]] + [[f"{split} message {i} about {'my bill' if i % 2 else 'a visit'}", "ab"[i % 2]] for i in range(size)])
    return ["--model", random_llama, "--data", str(data), "--epochs", "4", "--rank", "4", "--checkpoint-steps", "2", "--learning-rate", "0.001"]


def adapter(folder):
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, arguments):
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert main.main([*arguments, "--output-dir", str(folder)]) == 0
    assert not list(folder.glob("checkpoint-*"))
    return folder


def stopped_at(step, monkeypatch):
    """Ctrl-C, once, right after the checkpoint at `step` is complete."""
    mark = main.MarkComplete.on_save

    def on_save(self, args, state, control, **rest):
        mark(self, args, state, control, **rest)
        if state.global_step == step:
            raise KeyboardInterrupt
    monkeypatch.setattr(main.MarkComplete, "on_save", on_save)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [None, lambda c: cut_short(c / "optimizer.pt"), lambda c: (c / "rng_state.pth").unlink(),
                                    lambda c: (c / "trainer_state.json").unlink(), lambda c: cut_short(c / "adapter_model.safetensors")])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, arguments, uninterrupted, monkeypatch, capsys, damage):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stopped_at(6, patch)
        assert main.main([*arguments, "--output-dir", str(folder)]) == 130
    assert f"main.py --resume {folder}" in capsys.readouterr().err and not (folder / "adapter_model.safetensors").exists()
    if damage:
        damage(folder / "checkpoint-6")
    assert main.main(["--resume", str(folder)]) == 0
    said = capsys.readouterr().out
    assert ("checkpoint-6 is incomplete or damaged: skipped" in said) == bool(damage)
    assert f"going on from {folder / ('checkpoint-4' if damage else 'checkpoint-6')}" in said
    assert adapter(folder) == adapter(uninterrupted)
    figures = [json.loads((f / "metrics.json").read_text())["systems"]["fine_tuned"] for f in (folder, uninterrupted)]
    assert [f["log_loss"] for f in figures][0] == figures[1]["log_loss"]
    assert main.main(["--resume", str(folder)]) == 1 and "finished" in capsys.readouterr().err


def test_a_run_is_not_resumed_on_other_data(tmp_path, arguments, monkeypatch, capsys):
    data = tmp_path / "data"
    shutil.copytree(arguments[3], data)
    stopped_at(2, monkeypatch)
    assert main.main([*arguments[:3], str(data), *arguments[4:], "--output-dir", str(tmp_path / "run")]) == 130
    (data / "train.csv").write_text((data / "train.csv").read_text().replace("message 3", "letter 3"))
    capsys.readouterr()
    assert main.main(["--resume", str(tmp_path / "run")]) == 1
    assert "not what it was" in capsys.readouterr().err


def child(argv, log):
    """The program in a process of its own, its output in a file."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored, and that is inherited
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main.main(argv))


def start(argv, log):
    process = forks.Process(target=child, args=(argv, str(log)))
    process.start()
    return process


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_is_clean_and_says_how_to_go_on(tmp_path, arguments, sent, code):
    folder, log = tmp_path / "run", tmp_path / "log"
    process = start([*arguments, "--epochs", "400", "--output-dir", str(folder)], log)
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoint-*/complete.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, sent)
    process.join(60)
    assert process.exitcode == code, log.read_text()
    assert log.read_text().rstrip().endswith(f"main.py --resume {folder}") and "Traceback" not in log.read_text()


def test_a_killed_run_goes_on(tmp_path, arguments, uninterrupted):
    """SIGKILL at random moments, saving included; KILLS=50 kills fifty times."""
    kills, rounds, draw = int(os.environ.get("KILLS", 4)), 0, random.Random(0)
    killed = 0
    while killed < kills:
        rounds += 1
        folder, log = tmp_path / f"run{rounds}", tmp_path / f"log{rounds}"
        argv = [*arguments, "--output-dir", str(folder)]
        while True:
            process = start(argv, log)
            wait = time.monotonic() + 60
            while not (folder / "settings.json").exists() and process.is_alive() and time.monotonic() < wait:
                time.sleep(0.01)
            process.join(draw.uniform(0.2, 3.0) if killed < kills else 300)
            if process.exitcode is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
            if (folder / "metrics.json").exists():  # killed, but not before it was finished
                break
            argv = ["--resume", str(folder)] if (folder / "settings.json").exists() else argv
        assert (folder / "metrics.json").exists(), log.read_text()
        assert adapter(folder) == adapter(uninterrupted), log.read_text()


def test_a_loss_that_is_no_number_stops_the_run_at_once(tmp_path, arguments, capsys):
    folder = tmp_path / "run"
    argv = [*arguments[:-1], "1e30", "--output-dir", str(folder)]
    assert main.main(argv) == 1
    error = capsys.readouterr().err.strip()
    assert "lower --learning-rate" in error and "\n" not in error
    step = int(error.split("step ")[1].split(":")[0])
    assert step <= 3 and not (folder / "adapter_model.safetensors").exists()
    assert [path.name for path in folder.glob("checkpoint-*")] == [f"checkpoint-{s}" for s in range(2, step, 2)]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_want_of_memory_says_what_to_lower(tmp_path, arguments, capsys, monkeypatch, error):
    def train(*_):
        raise error
    monkeypatch.setattr(main, "train", train)
    assert main.main([*arguments, "--output-dir", str(tmp_path / "run")]) == 1
    said = capsys.readouterr()
    assert "lower --pass-tokens" in said.err and said.err.count("\n") == 1 and "memory to train: about 0.0" in said.out


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("a file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_one_line(small_disk, arguments, capsys, monkeypatch):
    assert main.main([*arguments, "--output-dir", str(small_disk / "first")]) == 1
    assert "make room" in capsys.readouterr().err  # seen before training
    monkeypatch.setattr(main, "check_space", lambda folder, trainable: None)
    older = small_disk / "older.txt"
    older.write_text("kept")
    assert main.main([*arguments, "--rank", "64", "--output-dir", str(small_disk / "second")]) == 1
    error = capsys.readouterr().err.strip()
    assert "the disk is full" in error and "\n" not in error and older.read_text() == "kept"


def test_a_folder_that_cannot_be_written(tmp_path, arguments, capsys):
    (tmp_path / "file").write_text("kept")
    assert main.main([*arguments, "--output-dir", str(tmp_path / "file" / "run")]) == 1
    assert "cannot write to" in capsys.readouterr().err and (tmp_path / "file").read_text() == "kept"


def test_a_run_that_never_began_leaves_nothing(tmp_path, arguments, capsys):
    assert main.main([*arguments, "--label-column", "team", "--output-dir", str(tmp_path / "run")]) == 1
    assert not (tmp_path / "run").exists()


def test_two_processes_give_what_one_gives(tmp_path, arguments, uninterrupted):
    """torchrun with two gloo processes: the same losses, the same probabilities row by row."""
    folder = tmp_path / "run"
    done = subprocess.run([str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", str(ROOT / "main.py"), *arguments,
                           "--output-dir", str(folder)], capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Fine-tuning ") == 1
    logs, rows = [], []
    for run in (folder, uninterrupted):
        logs.append([entry["loss"] for entry in json.loads((run / "metrics.json").read_text())["training_log"] if "loss" in entry])
        with (run / "predictions.csv").open(newline="") as file:
            rows.append(list(csv.DictReader(file)))
    assert len(logs[0]) == 12 and max(abs(a - b) for a, b in zip(*logs, strict=True)) < 1e-3
    for ours, theirs in zip(*rows, strict=True):
        assert ours["text"] == theirs["text"] and abs(float(ours["p_a"]) - float(theirs["p_a"])) < 1e-3
