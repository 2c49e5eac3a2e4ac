"""The memory that training needs."""

import pytest
import torch
from conftest import adapted_model
from transformers import LlamaConfig

from day9.memory import memory_ledger


def test_the_ledger_counts_what_is_kept(random_llama):
    """Weights in four bits, adapter and activations, against a model that is really there."""
    model = adapted_model(random_llama).train()
    predicted = memory_ledger(model.config, "qlora", 64, 4, torch.float32, checkpointing=False)
    fixed = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
             for p in model.parameters()}
    scales = sum(part.nbytes for p in model.parameters() if hasattr(p, "quant_state")
                 for name, part in p.quant_state.as_dict().items() if "absmax" in name)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.get_decoder()(input_ids=torch.ones(1, 64, dtype=torch.long),
                                     use_cache=False)
    assert hidden.last_hidden_state.requires_grad
    adapter = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert predicted["adapter"] == predicted["gradients"] == adapter
    assert predicted["optimizer"] == 2 * adapter
    weights = sum(fixed.values()) - adapter + scales
    assert predicted["weights"] == pytest.approx(weights, rel=0.02)
    counted = sum(tensor.untyped_storage().nbytes()
                  for pointer, tensor in kept.items() if pointer not in fixed)
    assert predicted["activations"] == pytest.approx(counted, rel=0.1)


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
