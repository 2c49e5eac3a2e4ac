"""The memory that training needs."""

import pytest
import torch
from conftest import adapted_model
from transformers import LlamaConfig

from day9.layout import lay_out, token_log_probs
from day9.memory import choose_checkpointing, memory_ledger
from day9.model import add_adapter, load_model
from day9.settings import Settings


def test_the_ledger_counts_weights_and_adapter(random_llama):
    """Weights in four bits and an adapter, against a model that is really there."""
    model = adapted_model(random_llama)
    predicted = memory_ledger(model.config, "qlora", 64, 4, torch.float32)
    scales = sum(part.nbytes for p in model.parameters() if hasattr(p, "quant_state")
                 for name, part in p.quant_state.as_dict().items() if "absmax" in name)
    adapter = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert predicted["adapter"] == predicted["gradients"] == adapter
    assert predicted["optimizer"] == 2 * adapter
    weights = sum(p.nbytes for p in model.parameters()) - adapter + scales
    assert predicted["weights"] == pytest.approx(weights, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tokens", [400, 1024])
@pytest.mark.parametrize("quantize", [True, False])
def test_the_ledger_counts_what_is_kept(random_llama, dtype, tokens, quantize):
    """By a pass of eight rows, with its mask and the head, for the gradients."""
    model = add_adapter(load_model(random_llama, dtype, quantize), 4, 0).train()
    fixed = {p.untyped_storage().data_ptr() for p in model.parameters()}
    rows = torch.arange(8 * (tokens // 8 - 1)).reshape(8, -1).tolist()
    layout, kept = lay_out(rows, [[7, 8]] * 8), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assert token_log_probs(model, **layout).requires_grad
    counted = sum(tensor.untyped_storage().nbytes()
                  for at, tensor in kept.items() if at not in fixed)
    predicted = memory_ledger(model.config, "qlora" if quantize else "lora", tokens, 4, dtype,
                              checkpointing=False)
    assert layout["input_ids"].shape == (1, tokens)
    assert predicted["activations"] == pytest.approx(counted, rel=0.05)


def test_the_ledger_knows_the_size_of_a_published_llama():
    config = LlamaConfig(vocab_size=128256, hidden_size=4096, num_hidden_layers=32,
                         num_attention_heads=32, head_dim=128, num_key_value_heads=8,
                         intermediate_size=14336, tie_word_embeddings=False)
    full, lora, qlora = (memory_ledger(config, method, 128, 16)
                         for method in ("full", "lora", "qlora"))
    size = 8_030_261_248  # Meta's own count of Llama 3.1 8B
    assert full["weights"] == 2 * size
    assert full["weights"] + full["gradients"] + full["optimizer"] == 16 * size
    assert sum(qlora.values()) < 0.5 * sum(lora.values()) < 0.1 * sum(full.values())
    whole = memory_ledger(config, "qlora", 128, 16, checkpointing=False)
    assert whole["activations"] > 5 * qlora["activations"]


def test_activations_are_kept_where_those_of_the_longest_row_fit(random_llama, monkeypatch):
    """However long rows may be by the settings."""
    model = adapted_model(random_llama)
    settings = Settings(max_length=2**20, batch_size=64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (200 * 10**6, 10**9))
    assert not choose_checkpointing(model, settings, 40)
    assert choose_checkpointing(model, settings, 2000)
