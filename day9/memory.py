"""The memory that training needs, counted before it is needed. Written by hand, not tangled."""

import copy
import re

import torch
import transformers
from peft import get_peft_model
from torch._subclasses import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM

from day9.layout import HEAD_PIECE, run_decoder
from day9.model import lora_config
from day9.settings import Settings


def build(config, layers: int, dtype: torch.dtype, rank: int | None):
    """A model of so many layers, with an adapter if it has a rank, on the meta device.

    There tensors have shapes but no contents.
    """
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return model if rank is None else get_peft_model(model, lora_config(rank))


def count_kept(model, tokens: int) -> int:
    """Bytes that a model keeps for the gradients of a pass of `tokens`, and its mask.

    It runs on a CPU, as far as PyTorch can tell, but its tensors are still without contents.
    """
    kept = {}

    def keep(tensor):
        kept[StorageWeakRef(tensor.untyped_storage())] = tensor
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        weights = {StorageWeakRef(p.untyped_storage()) for p in model.parameters()}
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run_decoder(model, input_ids=torch.ones(1, tokens, dtype=torch.long),
                        attention_mask=mask, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items()
               if storage not in weights)


FLOAT32 = 4  # bytes
NF4 = 1 / 2 + 1 / 64 + 4 / 16384  # bytes per weight: four bits, and scales of blocks in two layers


def memory_ledger(config, method: str, tokens: int, rank: int, dtype=torch.bfloat16,
                  checkpointing: bool = True) -> dict[str, int]:
    """Bytes to train by `method` ("full", "lora" or "qlora") on batches of so many tokens.

    It computes in `dtype`. NF4 with double quantization: Dettmers et al., 2023. In 16 bits some
    activations are counted that peft copies for plain weights, and for 4-bit ones on a CPU only.
    """
    config, lora = config.get_text_config(), method != "full"
    layers, rank = config.num_hidden_layers, rank if lora else None
    model = build(config, layers, dtype, rank)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.parameters()) - (trained if lora else 0)
    linear = sum(module.weight.numel() for name, module in model.named_modules()
                 if isinstance(module, torch.nn.Linear) and not re.search("head|lora", name))
    one, two = (count_kept(build(config, few, dtype, rank), tokens) for few in (1, 2))
    entering = tokens * config.hidden_size * dtype.itemsize  # what checkpointing keeps of a layer
    kept = one + (layers - 1) * (entering if checkpointing else two - one)
    frozen = int(linear * (NF4 if method == "qlora" else dtype.itemsize))
    return {"weights": frozen + (weights - linear) * dtype.itemsize,
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


def expect_memory(model, settings: Settings, tokens: int, checkpointing: bool) -> int:
    """Bytes that the ledger counts for a run and its scoring, the libraries' own left out."""
    config = model.config.get_text_config()
    parts = memory_ledger(config, "qlora" if settings.quantize else "lora", tokens, settings.rank,
                          model.dtype, checkpointing)
    logits = settings.pass_tokens * HEAD_PIECE * 8 + HEAD_PIECE * config.hidden_size * FLOAT32
    return sum(parts.values()) + logits


def choose_checkpointing(model, settings: Settings, tokens: int) -> bool:
    """Whether to drop activations and compute them again, where those of a pass of so many tokens
    do not fit; says what fits.
    """
    expected = expect_memory(model, settings, tokens, checkpointing=False)
    gpu = torch.cuda.is_available()
    room = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() if gpu else 0  # with ours
    if recompute := gpu and expected > 0.8 * room:
        expected = expect_memory(model, settings, tokens, checkpointing=True)
    print(f"memory to train: about {expected / 1e9:.2f} GB beside the libraries' own"
          + (", activations computed again" if recompute else ""))
    return recompute
