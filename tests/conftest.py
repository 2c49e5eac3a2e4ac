"""A random Llama of two layers with the tokenizer of the tiny one, and what tests share."""

import csv
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import main  # noqa: E402
from day9.errors import quieten_libraries  # noqa: E402
from day9.prompts import default_instruction, load_tokenizer, make_prompt  # noqa: E402

LABELS = ["appointments", "billing", "billing and insurance", "test results"]
TINY = ROOT / "tests" / "tiny-llama"


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
    return make_prompt(tokenizer, LABELS, default_instruction(LABELS), 128)


def read_rows(path):
    """The rows of a csv file as dictionaries."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path, header, rows):
    """A csv file with a header."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


INSTRUCTION = "Which desk ({labels}) should read this?"


@pytest.fixture(scope="session")
def arguments(tmp_path_factory, random_llama):
    """The command line of a short run: 24 messages, 12 steps, a checkpoint at every second one.

    One validation label is wrong, so that after the second of four epochs, when the model has
    become too sure, validation gets worse. A test message has a carriage return, a comma and
    quotes.
    """
    data = tmp_path_factory.mktemp("data")
    for split, size in (("train", 24), ("validation", 12), ("test", 12)):
        rows = [[f"{split} message {i} about {'my bill' if i % 2 else 'a visit'}", "ab"[i % 2]]
                for i in range(size)]
        if split == "validation":
            rows[0][1] = "b"
        if split == "test":
            rows[4][0] += ',\rand "more"'
        write_rows(data / f"{split}.csv", ["text", "label"], rows)
    return ["--model", random_llama, "--data", str(data), "--epochs", "4", "--rank", "4",
            "--checkpoint-steps", "2", "--learning-rate", "0.01", "--instruction", INSTRUCTION]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, arguments):
    """The folder of the short run, finished without an interruption."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main.main([*arguments, "--output-dir", str(folder)]) == 0
    return folder
