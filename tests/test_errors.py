"""Trouble costs one line, and any surroundings will do."""

import io
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ROOT, adapter, refuse, start_child, wait_for, write_rows

import main

ERRORS = [torch.OutOfMemoryError("CUDA out of memory"),
          RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=["gpu", "cpu", "python"])
@pytest.mark.parametrize("command, function", [
    ("run", "day9.loading.load_model"), ("run", "day9.loading.score_labels"),
    ("run", "day9.classifier.score_labels"), ("run", "day9.training.KeepBest"),
    ("predict", "day9.loading.load_model"), ("predict", "day9.classifier.score_labels"),
    ("merge", "day9.commands.merge_adapter")])
def test_want_of_memory_says_what_to_lower(tmp_path, arguments, finished, capsys, monkeypatch,
                                           command, function, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(function, fail)
    argv = {"run": [*arguments, "--output-dir", str(tmp_path / "run")],
            "predict": ["predict", "--run", str(finished), "--texts", "a text"],
            "merge": ["merge", "--run", str(finished), "--output", str(tmp_path / "merged")]}
    assert main.main(argv[command]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("main.py: error: out of memory: lower ")
    assert said.err.count("\n") == 1 and "--model" not in said.err
    assert function != "day9.training.KeepBest" or "memory to train: about 0.1" in said.out


@pytest.mark.parametrize("left", [
    {"LOCAL_RANK": "0"}, {"WORLD_SIZE": "2", "RANK": "1"}, {"PMI_SIZE": "4"},
    {"OMPI_COMM_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, {"WORLD_SIZE": "two"}])
def test_what_a_batch_system_left_costs_one_line(capsys, monkeypatch, left):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    error = refuse(capsys, "predict", "--run", "r", "--texts", "a")
    assert f"{next(iter(left))}, as if" in error and "unset" in error and "torchrun" in error


def test_a_single_process_of_a_batch_system_is_one(capsys, monkeypatch):
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    assert "check --run" in refuse(capsys, "predict", "--run", "r", "--texts", "a")


def test_settings_left_by_accelerate_change_nothing(tmp_path, arguments, finished, monkeypatch):
    """The program prints what it computes in, and that holds."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    assert main.main([*arguments, "--output-dir", str(tmp_path / "run")]) == 0
    assert adapter(tmp_path / "run") == adapter(finished)


def test_a_full_disk_costs_one_line(small_disk, arguments, capsys, monkeypatch):
    assert main.main([*arguments, "--output-dir", str(small_disk / "first")]) == 1
    assert "make room" in capsys.readouterr().err  # seen before training
    monkeypatch.setattr("main.check_space", lambda folder, trainable: None)
    older, folder = small_disk / "older.txt", small_disk / "second"
    older.write_text("kept")
    argv = [*arguments, "--rank", "64"]
    assert main.main([*argv, "--output-dir", str(folder)]) == 1
    error = capsys.readouterr().err.strip()
    assert f"the disk is full: make room, then main.py --resume {folder}" in error
    assert "\n" not in error and older.read_text() == "kept"


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


def test_a_narrow_output_whose_reader_leaves_and_no_home(tmp_path, finished):
    """As `| head -1` does at the command line: JSON comes, and then nothing more is said."""
    write_rows(tmp_path / "a.csv", ["text", "long"], [["日本 🙂 é", "x" * 50_000]] * 8)
    gone = {"HOME": "/dev/null/none", "PYTHONIOENCODING": "latin-1"}
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("HF_", "MPL", "XDG"))}
    process = subprocess.Popen(
        [sys.executable, ROOT / "main.py", "predict", "--run", finished, "--data",
         tmp_path / "a.csv"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=kept | gone)
    line = process.stdout.readline()
    process.stdout.close()
    assert json.loads(line.decode("ascii"))["text"] == "日本 🙂 é"
    assert process.stderr.read() == b"" and process.wait(60) == 141


def test_a_reader_that_left_before_the_first_line(monkeypatch, capsys):
    """Little is said, and it would only be written when the process ends."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr("main.predict", lambda settings: print("an answer"))
        assert main.main(["predict", "--run", "r", "--texts", "a"]) == 141


def test_any_text_can_be_printed(monkeypatch):
    """To an output that has no character for it, and which is afterwards as it was."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr("main.predict", lambda settings: print("账 é"))
    assert main.main(["predict", "--run", "r", "--texts", "a"]) == 0
    assert out.buffer.getvalue() == b"\\u8d26 \\xe9\n" and out.errors == "strict"


def test_the_program_runs_in_a_thread(finished, capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(
        main.main(["predict", "--run", str(finished), "--texts", "a text"])))
    thread.start()
    thread.join()
    assert codes == [0] and json.loads(capsys.readouterr().out)["text"] == "a text"
