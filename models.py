"""The models that the program loads: which, in which number format, and with which adapter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers

from edge import check_stored, is_out_of_memory, loading
from keeping import (check_same, find_again, identify, identify_prompt, read_classifier,
                     read_settings)
from llama import load_model, score_alone
from prompts import load_tokenizer, make_prompt
from reading import InputError, one_line
from scoring import Classifier, default_pass_tokens, score_labels
from settings import HERE, Settings


def choose_model(asked: str | None) -> tuple[str, str]:
    """The model to load, and the reason."""
    if asked:
        return asked, "it was asked for"
    if torch.cuda.is_available():
        return "unsloth/Llama-3.2-1B-Instruct", "there is a CUDA GPU, which can carry it"
    local = HERE / "data" / "smollm2"
    if (local / "config.json").exists():
        return str(local), "there is no CUDA GPU, and this small Llama runs on two CPU cores"
    return ("HuggingFaceTB/SmolLM2-135M-Instruct",
            "there is no CUDA GPU, and data/smollm2.py has not made its local copy")


def choose_precision() -> tuple[torch.dtype, str]:
    """The number format to compute in, and the reason; the weights rest in 4 bits all the same."""
    if not torch.cuda.is_available():
        apple = ", and Apple's GPU is not used" if torch.backends.mps.is_available() else ""
        return torch.float32, f"it is the exact format of a CPU{apple}"
    amd = " (not tested on ROCm)" if torch.version.hip else ""
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, f"this GPU computes bfloat16 natively{amd}"
    return torch.float16, f"this GPU only emulates bfloat16{amd}"


def context_length(model) -> int:
    """How many tokens the model can take at once, and each see all; very many without a limit."""
    config = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window"))
    return min(filter(None, limits), default=10**6)


def load_base(settings: Settings, kept: str | None = None):
    """The base model, the settings with its commit if it is on the hub, and a digest of its files.

    Raises InputError if the digest is not the one that a run has `kept`.
    """
    name, revision = settings.model, settings.revision or "main"
    with loading("model", name, settings.revision):
        config = transformers.AutoConfig.from_pretrained(name, revision=revision,
                                                         trust_remote_code=False)
        stored = getattr(config, "quantization_config", None)
        check_stored(name, stored, settings.quantize)
        model = load_model(name, choose_precision()[0], revision, settings.quantize and not stored)
        commit, digest = identify(name, revision, kept)
    check_same(digest, kept, name, "--model")
    return model, replace(settings, revision=commit or settings.revision), digest


@torch.no_grad()
def scores_agree(classifier: Classifier) -> bool:
    """Whether labels score together what up to eight of them score alone.

    Wrong scores are off by whole nats; rounding in half precision by a tenth.
    """
    prompt, model = classifier.prompt, classifier.model
    texts = prompt.encode(classifier.tokenizer, ["a", "a text that is longer than the other one"])
    some = np.linspace(0, len(prompt.completions) - 1, min(8, len(prompt.completions))).astype(int)
    completions = list(prompt.completions.values())
    alone = np.array([[score_alone(model, prompt.before + ids, completions[i]) for i in some]
                      for ids in texts])
    together = score_labels(model, texts, prompt, classifier.pass_tokens)[:, some]
    limit = 0.02 if model.dtype == torch.float32 else 0.5
    return bool(np.abs(alone - together).max() < limit)


def check_scoring(classifier: Classifier) -> None:
    """Raise InputError if the model's architecture does not accept the mask of a layout."""
    why = f"a {classifier.model.config.model_type} model cannot score labels in one pass"
    try:
        if scores_agree(classifier):
            return
    except Exception as error:  # whatever such a mask leads to
        if is_out_of_memory(error) or "CUDA" in str(error):
            raise
        why = one_line(error)
    raise InputError(f"{why}: choose a Llama, or one built like it, for --model")


def load_classifier(run_folder: str | Path, model: str | None = None) -> Classifier:
    """The fine-tuned classifier of a run. Raises InputError if the folder holds none.

    `model` is the place of its base model, if that has moved.
    """
    from peft import PeftModel

    folder = Path(run_folder)
    settings, kept = find_again(read_settings(folder, "--run"), model), read_classifier(folder)
    base, settings, digest = load_base(settings, kept.get("base"))
    with loading("run", str(folder)):
        tokenizer, tuned = load_tokenizer(str(folder)), PeftModel.from_pretrained(base, folder)
        prompt = make_prompt(tokenizer, kept["labels"], settings.instruction, settings.max_length)
    check_same(identify_prompt(prompt), kept.get("prompt"), f"the tokenizer in {folder}", "--run")
    pass_tokens = min(settings.pass_tokens, default_pass_tokens())  # it was trained elsewhere?
    return Classifier(tuned, tokenizer, prompt, kept["temperature"], pass_tokens, digest)
