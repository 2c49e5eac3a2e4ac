"""The memory that training needs, counted before it is needed. Written by hand, not tangled."""

import copy

import torch
import transformers
from peft import get_peft_model
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM

from day9.layout import HEAD_PIECE
from day9.model import lora_config
from day9.settings import Settings


class CountedAttention(torch.autograd.Function):
    """Keeps what fused attention keeps for its gradient: queries, keys, values and output."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output.transpose(1, 2)


transformers.AttentionInterface.register(
    "counted", lambda module, query, key, value, *_, **__: (
        CountedAttention.apply(query, key, value), None))


def count_activations(model, tokens: int) -> int:
    """Bytes that the layers of a model on the meta device keep for the gradients of `tokens`."""
    weights = {StorageWeakRef(p.untyped_storage()) for p in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[StorageWeakRef(tensor.untyped_storage())] = tensor
        return tensor

    model.set_attn_implementation("counted")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.get_decoder()(
            input_ids=torch.ones(1, tokens, dtype=torch.long, device="meta"), use_cache=False,
            attention_mask=torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device="meta"))
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items()
               if storage not in weights)


FLOAT32 = 4  # bytes
NF4 = 1 / 2 + 1 / 64 + 4 / 16384  # bytes per weight: four bits, and scales of blocks in two layers


def memory_ledger(config, method: str, tokens: int, rank: int, dtype=torch.bfloat16,
                  checkpointing: bool = True) -> dict[str, int]:
    """Bytes to train by `method` ("full", "lora" or "qlora") on batches of so many tokens.

    The model is built on the meta device, where tensors have shapes but no contents; it computes
    in `dtype`. NF4 with double quantization: Dettmers et al., 2023.
    """
    config, lora = config.get_text_config(), method != "full"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
        linear = sum(module.weight.numel() for name, module in model.named_modules()
                     if isinstance(module, torch.nn.Linear) and "head" not in name)
        other = model.num_parameters() - linear
        if lora:
            model = get_peft_model(model, lora_config(rank)).to(dtype)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    layers = config.num_hidden_layers
    kept = count_activations(model, tokens)
    if checkpointing:  # one layer at a time, and what enters each
        kept = kept // layers + layers * tokens * config.hidden_size * dtype.itemsize
    frozen = int(linear * (NF4 if method == "qlora" else dtype.itemsize))
    return {"weights": frozen + other * dtype.itemsize,
            "adapter": FLOAT32 * trained if lora else 0,
            "gradients": (FLOAT32 if lora else dtype.itemsize) * trained,
            "optimizer": (2 if lora else 3) * FLOAT32 * trained,  # two averages; a copy of weights
            "activations": kept}


PUBLISHED = {  # width, layers, heads, key-value heads, inner width, tied embeddings
    "1B": (2048, 16, 32, 8, 8192, True), "3B": (3072, 28, 24, 8, 8192, True),
    "8B": (4096, 32, 32, 8, 14336, False), "70B": (8192, 80, 64, 8, 28672, False)}


def ledger_table(tokens: int, rank: int) -> list[list[str] | None]:
    """The ledger of the published Llamas by each method, in GB, and the card that carries it."""
    lines = [["Llama", "method", "weights", "adapter", "gradients", "optimizer", "activations",
              "sum, GB", "fits on"], None]
    for llama, (width, layers, heads, kv, inner, tied) in PUBLISHED.items():
        config = transformers.LlamaConfig(
            vocab_size=128256, hidden_size=width, num_hidden_layers=layers,
            intermediate_size=inner, num_attention_heads=heads, num_key_value_heads=kv,
            tie_word_embeddings=tied)
        for method in ("full", "lora", "qlora"):
            parts = [n / 1e9 for n in memory_ledger(config, method, tokens, rank).values()]
            fits = [f"{size} GB" for size in (16, 24, 80) if sum(parts) < 0.9 * size][:1]
            lines.append([llama, method, *(f"{part:.2f}" for part in parts), f"{sum(parts):.1f}",
                          *(fits or ["none of them"])])
    return lines


def expect_memory(config, settings: Settings, dtype: torch.dtype, checkpointing: bool) -> int:
    """Bytes that the ledger counts for a run and its scoring, the libraries' own left out."""
    config = config.get_text_config()
    tokens = min(settings.batch_size * settings.max_length,
                 max(settings.pass_tokens, settings.max_length))
    parts = memory_ledger(config, "qlora" if settings.quantize else "lora", tokens, settings.rank,
                          dtype, checkpointing)
    logits = settings.pass_tokens * HEAD_PIECE * 8 + HEAD_PIECE * config.hidden_size * FLOAT32
    return sum(parts.values()) + logits


def choose_checkpointing(config, settings: Settings, dtype: torch.dtype) -> bool:
    """Whether to drop activations and compute them again, where they do not fit; says what fits."""
    expected = expect_memory(config, settings, dtype, checkpointing=False)
    gpu = torch.cuda.is_available()
    if recompute := gpu and expected > 0.8 * torch.cuda.mem_get_info()[0]:
        expected = expect_memory(config, settings, dtype, checkpointing=True)
    print(f"memory to train: about {expected / 1e9:.2f} GB beside the libraries' own"
          + (", activations computed again" if recompute else ""))
    return recompute
