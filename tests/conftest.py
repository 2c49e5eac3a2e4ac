"""A random Llama of two layers with the tokenizer of the tiny one, and what tests share."""

import csv
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import main  # noqa: E402
from day9.checkpoints import MarkComplete  # noqa: E402
from day9.classifier import Classifier  # noqa: E402
from day9.errors import quieten_libraries  # noqa: E402
from day9.model import add_adapter, load_model, score_alone  # noqa: E402
from day9.prompts import default_instruction, load_tokenizer, make_prompt  # noqa: E402
from day9.training import train, training_rows  # noqa: E402

LABELS = ["appointments", "billing", "billing and insurance", "test results"]
TINY = ROOT / "tests" / "tiny-llama"
TEXTS = ["why was I charged twice", "ok", "",
         "can you move my visit to Tuesday, the bus does not run on Monday mornings",
         "my blood test?"]
ASK = default_instruction(LABELS)
INSTRUCTION = "Which desk ({labels}) should read this?"
ROWS = "text,label\n" + "".join(f"a{i},b\nc{i},d\n" for i in range(20))


@pytest.fixture(scope="session", autouse=True)
def quiet():
    quieten_libraries()
    torch.set_num_threads(1)  # models this small are not faster on more


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(str(TINY))


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory, tokenizer):
    """Folder of a Llama with random weights, large enough to tell labels apart."""
    folder = tmp_path_factory.mktemp("random-llama")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        initializer_range=0.2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=4,
        pad_token_id=5))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def prompt(tokenizer):
    return make_prompt(tokenizer, LABELS, ASK, 128)


# Models and rows


def plain_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def adapted_model(folder):
    return add_adapter(load_model(folder, torch.float32), 4, 0)


def as_split(texts, label="appointments"):
    return Dataset.from_dict({"text": texts, "label": [label] * len(texts)})


def rows_of(tokenizer, prompt, texts):
    return training_rows(as_split(texts), tokenizer, prompt)


def one_by_one(model, encoded, prompt):
    """Scores (texts, labels) from one pass through the model for each text and label."""
    return np.array([[score_alone(model, prompt.before + ids, completion)
                      for completion in prompt.completions.values()] for ids in encoded])


def our_log(random_llama, tokenizer, prompt, rows, settings, folder):
    """The losses of training by the program."""
    classifier = Classifier(adapted_model(random_llama), tokenizer, prompt,
                            pass_tokens=settings.pass_tokens)
    log = train(classifier, rows, as_split(TEXTS[:2], "billing"), settings, folder)
    return [entry["loss"] for entry in log if "loss" in entry]


# Files


def read_rows(path):
    """The rows of a csv file as dictionaries."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path, header, rows):
    """A csv file with a header."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


# Runs


@pytest.fixture(scope="session")
def arguments(tmp_path_factory, random_llama):
    """The command line of a short run: 17 messages, 12 steps, a checkpoint at every second one.

    Of an epoch's last row the second of two processes has no part.

    One validation label is wrong, so that after the second of four epochs, when the model has
    become too sure, validation gets worse. A test message has a carriage return, a comma and
    quotes.
    """
    data = tmp_path_factory.mktemp("data")
    for split, size in (("train", 17), ("validation", 12), ("test", 12)):
        rows = [[f"{split} message {i} about {'my bill' if i % 2 else 'a visit'}", "ab"[i % 2]]
                for i in range(size)]
        if split == "validation":
            rows[0][1] = "b"
        if split == "test":
            rows[4][0] += ',\rand "more"'
        write_rows(data / f"{split}.csv", ["text", "label"], rows)
    return ["--model", random_llama, "--data", str(data), "--epochs", "4", "--rank", "4",
            "--checkpoint-steps", "2", "--learning-rate", "0.01", "--instruction", INSTRUCTION,
            "--embedder", "none"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, arguments):
    """The folder of the short run, finished without an interruption."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main.main([*arguments, "--output-dir", str(folder)]) == 0
    return folder


def command(*arguments, **options):
    """What a script does in a process of its own."""
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True,
                          timeout=400, **options)


def two_teams(folder, sizes):
    """Files with so many embedded messages of two teams for each split; the test split's rows."""
    folder.mkdir()
    for split, counts in sizes.items():
        every = read_rows(ROOT / "data" / "patient-messages" / f"{split}.csv")
        rows = [row for team, count in zip(("billing", "heart and lungs"), counts)
                for row in [row for row in every if row["label"] == team][:count]]
        write_rows(folder / f"{split}.csv", ["text", "label"],
                   [(row["text"], row["label"]) for row in rows])
    return rows


@pytest.fixture(scope="session")
def main_job(tmp_path_factory):
    """What the main job prints for two teams on the tiny Llama, and the folder of its run."""
    folder = tmp_path_factory.mktemp("main-job")
    two_teams(folder / "data", {"train": (60, 60), "validation": (8, 8), "test": (20, 20)})
    done = command(ROOT / "main.py", "--model", TINY, "--data", folder / "data", "--epochs", "2",
                   "--output-dir", folder / "run")
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, folder / "run"


def refuse(capsys, *arguments):
    """Run the program, which refuses; what it says in one line."""
    capsys.readouterr()
    assert main.main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("main.py: error: ") and error.count("\n") == 1, error
    return error


def uses(folder, new):
    """The commands that read a finished run: each is refused alike where it is damaged."""
    return [["predict", "--run", folder, "--texts", "a text"],
            ["merge", "--run", folder, "--output", new]]


def answer(capsys, folder, *arguments):
    """The probability that predict prints for one text."""
    capsys.readouterr()
    assert main.main(["predict", "--run", str(folder), *arguments, "--texts", "my bill"]) == 0
    return json.loads(capsys.readouterr().out)["p_a"]


def adapter(folder):
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def losses(folder):
    """The training log but for its last entry, which holds times."""
    return [entry for entry in read_metrics(folder)["training_log"]
            if "loss" in entry or "validation_loss" in entry]


# Stopped, moved and damaged


def interrupt(*_, **__):
    raise KeyboardInterrupt


def after_checkpoint(step):
    """Ctrl-C right after a checkpoint is complete."""
    def patch(monkeypatch):
        mark = MarkComplete.on_save

        def on_save(self, args, state, control, **rest):
            mark(self, args, state, control, **rest)
            if state.global_step == step:
                interrupt()

        monkeypatch.setattr(MarkComplete, "on_save", on_save)
    return patch


forks = multiprocessing.get_context("forkserver")  # children have everything imported already
forks.set_forkserver_preload(["main"])


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


def set_settings(folder, **changes):
    path = folder / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def copied(tmp_path, finished):
    """A copy of a finished run, with a copy of its base model."""
    folder, base = tmp_path / "copied", tmp_path / "base"
    shutil.copytree(finished, folder)
    shutil.copytree(json.loads((finished / "settings.json").read_text())["model"], base)
    set_settings(folder, model=str(base))
    return folder


@pytest.fixture(scope="session")
def stopped(tmp_path_factory, arguments):
    """The place of a run that was stopped at its first checkpoint, of its model and its data."""
    place = tmp_path_factory.mktemp("stopped")
    shutil.copytree(arguments[1], place / "base")
    shutil.copytree(arguments[3], place / "data")
    with pytest.MonkeyPatch.context() as patch:
        after_checkpoint(2)(patch)
        patch.setattr("main.judge_base_model", lambda *_: {})
        assert main.main([*arguments, "--model", str(place / "base"), "--data", str(place / "data"),
                          "--output-dir", str(place / "run")]) == 130
    return place


@pytest.fixture
def place(tmp_path, stopped, monkeypatch):
    """A copy of it; a run that is resumed there ends where training would begin."""
    monkeypatch.setattr("main.judge_base_model", lambda *_: sys.exit("training begins"))
    copy = tmp_path / "stopped"
    shutil.copytree(stopped, copy)
    set_settings(copy / "run", model=str(copy / "base"), data=str(copy / "data"))
    return copy


def resumes(*arguments):
    """Whether training begins."""
    with pytest.raises(SystemExit, match="training begins"):
        main.main([str(argument) for argument in arguments])
    return True


def other_weights(base):
    weights = load_file(base / "model.safetensors")
    save_file({name: weight * 1.1 for name, weight in weights.items()},
              base / "model.safetensors", {"format": "pt"})


def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def point(path):
    """Damage: what git-lfs leaves where a file is not fetched."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def nonsense(path):
    path.write_text("[1, 2]")


DAMAGES = [Path.unlink, cut, empty, point, nonsense]
