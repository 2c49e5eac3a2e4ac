"""A tiny random Llama with the embedded tokenizer, and the program itself."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import main  # noqa: E402

LABELS = ["billing", "billing and insurance", "appointments", "test results"]


@pytest.fixture(scope="session", autouse=True)
def quiet():
    main.quieten_libraries()
    torch.set_num_threads(1)  # models this small are not faster on more


@pytest.fixture(scope="session")
def tokenizer():
    return main.load_tokenizer(str(ROOT / "data" / "tiny-llama"))


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory, tokenizer):
    """Folder of a two-layer Llama with random weights, large enough to tell labels apart."""
    folder = tmp_path_factory.mktemp("random-llama")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.2, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=4, pad_token_id=5))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def form(tokenizer):
    return main.make_format(tokenizer, LABELS, 128)
