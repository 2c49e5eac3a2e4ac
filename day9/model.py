"""The Llama: in 4 bits, with an adapter, and one completion scored. Tangled from README.org."""

import os

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4, its scales quantized too; converted to `dtype` to compute (Dettmers et al., 2023)."""
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                              bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


def load_model(name: str, dtype: torch.dtype,
               quantize: bool = True) -> transformers.PreTrainedModel:
    """The model, computing in `dtype`, its linear layers in 4 bits, on the GPU if there is one."""
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    model = AutoModelForCausalLM.from_pretrained(
        name, dtype=dtype, attn_implementation="sdpa", use_safetensors=True,
        device_map={"": gpu if torch.cuda.is_available() else "cpu"}, trust_remote_code=False,
        **({"quantization_config": four_bits(dtype)} if quantize else {}))
    return keep_trainable(model).eval()  # see "What the libraries get wrong"

@torch.no_grad()
def score_alone(model, prompt: list[int], completion: list[int]) -> float:
    """Log-probability of a completion after a prompt; logits at a token score the next one."""
    ids = torch.tensor([prompt + completion], device=model.device)
    log_probs = model(ids).logits[0, len(prompt) - 1:-1].float().log_softmax(-1)
    return log_probs.gather(-1, ids[0, len(prompt):, None]).sum().item()

def lora_config(rank: int) -> LoraConfig:
    """An adapter on every linear layer but the output head."""
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear",
                      task_type="CAUSAL_LM")


def add_adapter(model, rank: int, seed: int):
    """The model wrapped with a LoRA adapter; its first numbers depend on the seed."""
    transformers.set_seed(seed)
    return get_peft_model(model, lora_config(rank))

def keep_trainable(model):
    """Keep bitsandbytes from replacing 4-bit weights with copies that pass on no gradient."""
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype = model.dtype  # a model stored in 4 bits may ask for another
    return model
