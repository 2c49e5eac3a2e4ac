"""Base models and finished runs, found, checked and loaded. Written by hand, not tangled."""

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from huggingface_hub import snapshot_download
from peft import PeftModel

from day9.baselines import Embed
from day9.classifier import Classifier, score_labels
from day9.errors import InputError, is_out_of_memory, one_line
from day9.files import digests, sha256
from day9.hub import cannot_load, check_pointer, is_silent
from day9.model import load_model, score_alone
from day9.prompts import (Prompt, context_length, control_ids, default_instruction, load_tokenizer,
                          make_prompt)
from day9.runs import check_same, find_again, read_classifier, read_json, read_settings
from day9.settings import EMBEDDER, SMALL_EMBEDDER, SMALL_LLAMA, Settings
from day9.training import default_epochs, default_learning_rate

MODEL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors"]
EMBEDDER_FILES = [*MODEL_FILES, "*/model*.safetensors"]  # of parts in folders of their own
BASE_FILES = re.compile(r"config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def choose_model(asked: str | None) -> tuple[str, str]:
    """The model to load, and the reason."""
    if asked:
        return asked, "it was asked for"
    if torch.cuda.is_available():
        return "unsloth/Llama-3.2-1B-Instruct", "there is a CUDA GPU, which can carry it"
    if (SMALL_LLAMA / "config.json").exists():
        return str(SMALL_LLAMA), "there is no CUDA GPU, and this small Llama runs on two CPU cores"
    return ("HuggingFaceTB/SmolLM2-135M-Instruct",
            "there is no CUDA GPU, and tools/smollm2.py has not made its local copy")


def choose_precision() -> tuple[torch.dtype, str]:
    """The number format to compute in, and the reason; the weights rest in 4 bits all the same."""
    if not torch.cuda.is_available():
        apple = ", and Apple's GPU is not used" if torch.backends.mps.is_available() else ""
        return torch.float32, f"it is the exact format of a CPU{apple}"
    amd = " (not tested on ROCm)" if torch.version.hip else ""
    return torch.float16, f"a GPU is fast in 16 bits, and bfloat16 would round more coarsely{amd}"


# Files


def find_model(name: str, revision: str | None = None, option_name: str = "model") -> Path:
    """The folder of a model: the one of that name, or one that the hub's files are kept in.

    Raises InputError where neither can be had, or it holds a run.
    """
    folder = Path(name)
    if folder.is_file():
        raise InputError(f"{folder} is a file: give for --{option_name} the folder with its "
                         "config.json and tokenizer, or convert a .gguf to such a folder with "
                         ".safetensors")
    if not folder.exists():
        try:
            silent = is_silent(name, "model", revision)  # the download would wait for ever
            files = EMBEDDER_FILES if option_name == "embedder" else MODEL_FILES
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=files,
                                            local_files_only=silent))
        except Exception as error:  # the hub's exceptions have no common class
            raise cannot_load(error, name, option_name) from error
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} is a run, an adapter beside its model: merge the two with "
                         f"main.py merge --run {folder} --output NEW, then give --{option_name} "
                         "NEW")
    return folder


@contextlib.contextmanager
def reading_files(folder: Path, what: str, name: str) -> Iterator[None]:
    """Turn what fails inside, where the files of a "model" or "run" are read, into an InputError.

    `name` is how the user calls it.
    """
    try:
        for path in folder.glob("*.*"):
            if path.suffix in (".json", ".jinja", ".safetensors"):
                check_pointer(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # random without them
            yield
    except Exception as error:  # file system and readers of weights share no exception
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        for path in sorted(folder.glob("*.json")):
            if not is_json(path):
                raise InputError(f"{path} is damaged: restore it") from error
        raise cannot_load(error, name, what) from error


def is_json(path: Path) -> bool:
    """Whether a file is whole, as far as that can be seen."""
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def check_stored(name: str, stored: dict | None, quantize: bool) -> None:
    """Raise InputError if a model's weights are stored as no adapter can be trained beside them."""
    if stored and not stored.get("load_in_4bit"):
        raise InputError(f"{name} is stored as {stored.get('quant_method')}: choose a --model that "
                         "is not quantized, or one in the 4 bits of bitsandbytes")
    if stored and not quantize:
        raise InputError(f"{name} is stored in 4 bits: leave out --no-quantize, or choose the "
                         "--model that was quantized to make it")


def identify(folder: Path) -> str:
    """The digest of a model's config and weights.

    The version of the library that wrote the config does not count.
    """
    found = digests(path for path in folder.iterdir() if BASE_FILES.fullmatch(path.name))
    config = read_json(folder / "config.json") | {"transformers_version": None}
    return sha256(found | {"config.json": config})


# Short texts to try a model with. In 16 bits, rounding alone can be half a nat off at one of them.
TRIED = ["a", "a text that is longer than the other one", "ok", "When does it open?", "1 2 3",
         "my order has not arrived", "thank you", "Is it too late? I have waited for a week."]


@torch.no_grad()
def overflows(model, tokenizer) -> bool:
    """Whether what a model computes leaves the range of its number format."""
    tried = tokenizer(" ".join(TRIED), return_tensors="pt")["input_ids"]
    return not model(tried.to(model.device)).logits.isfinite().all()


def load_files(settings: Settings, kept: str | None = None):
    """The base model, its tokenizer, the settings with its commit on the hub, and its digest.

    Raises InputError if it cannot be loaded, or the digest is not the one that a run has `kept`.
    """
    name, folder = settings.model, find_model(settings.model, settings.revision)
    commit = None if Path(name).exists() else folder.name
    with reading_files(folder, "model", name):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        stored = getattr(config, "quantization_config", None)
        check_stored(name, stored, settings.quantize)
        tokenizer = load_tokenizer(str(folder))
        dtype, quantize = choose_precision()[0], settings.quantize and not stored
        model = load_model(str(folder), dtype, quantize)
        if dtype == torch.float16 and overflows(model, tokenizer):
            print("precision: torch.bfloat16 instead, because this model overflows in float16")
            del model  # one at a time
            model = load_model(str(folder), torch.bfloat16, quantize)
    known = kept and commit and commit == settings.revision  # the files of a commit do not change
    digest = kept if known else identify(folder)
    check_same(digest, kept, name, "--model")
    return model, tokenizer, replace(settings, revision=commit or settings.revision), digest


def load_embedder(settings: Settings) -> tuple[Embed | None, str | None, Settings]:
    """The function that embeds texts, a digest of its weights, and the settings with its name.

    None, None and the name none where it is not wanted, or where the default cannot be loaded, of
    which a warning is printed. Raises InputError where another cannot be loaded.
    """
    name = settings.embedder or (str(SMALL_EMBEDDER) if SMALL_EMBEDDER.exists() else EMBEDDER)
    print(f"embedder: {name}")
    if name == "none":
        return None, None, settings
    if Path(name).exists():
        name = os.path.abspath(name)
    try:
        folder = find_model(name, option_name="embedder")
        with reading_files(folder, "embedder", name):
            from sentence_transformers import SentenceTransformer  # slow, and only needed here

            model = SentenceTransformer(
                str(folder), device="cuda" if torch.cuda.is_available() else "cpu")
            digest = sha256([digests([path]) for path in sorted(folder.rglob("*"))
                             if path.suffix in (".json", ".safetensors", ".bin")
                             and path.name != "made.json"])
    except InputError as error:
        if settings.embedder:
            raise
        print(f"warning: the rival `embeddings` is left out: {error}")
        return None, None, replace(settings, embedder="none")
    embed = partial(model.encode, normalize_embeddings=True, show_progress_bar=False)
    return embed, digest, replace(settings, embedder=name)


# Checks


def check_prompt(prompt: Prompt, settings: Settings) -> None:
    """Raise InputError where labels cannot be told apart, texts have no room, or processes cannot
    share a batch.
    """
    if len(set(map(tuple, prompt.completions.values()))) < len(prompt.completions):
        raise InputError("two labels are the same to the tokenizer: rename one of "
                         + ", ".join(prompt.completions))
    if prompt.text_room < 8:
        raise InputError(f"--max-length {settings.max_length} leaves {prompt.text_room} tokens for "
                         "the text: raise it, or choose a --model that takes more")
    processes = PartialState().num_processes
    if settings.batch_size % processes:
        raise InputError(f"{processes} processes cannot share a batch of {settings.batch_size} "
                         "evenly: choose a multiple for --batch-size")


def check_vocabulary(model, tokenizer, prompt: Prompt, name: str) -> None:
    """Raise InputError where a prompt or a text may hold tokens that the model does not know, or no
    token ends an answer. A control token that no prompt has, as one to pad with, does no harm.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of {name} has no token that ends an answer: restore its "
                         "tokenizer_config.json, or choose another --model")
    rows = model.get_input_embeddings().num_embeddings
    used = {*tokenizer.get_vocab().values()} - control_ids(tokenizer)
    if max(used.union(prompt.before, prompt.after, *prompt.completions.values())) >= rows:
        raise InputError(f"the tokenizer of {name} has {len(tokenizer):,} tokens, and its model "
                         f"knows {rows:,}: restore the files that belong together, or choose "
                         "another --model")


@torch.no_grad()
def scoring_gap(classifier: Classifier, texts: list[list[int]], together: np.ndarray) -> float:
    """How far the scores (texts, labels) of up to eight labels are from scores of each alone.

    That is the largest difference; in 16 bits, the largest of each label's mean difference.
    """
    model, prompt = classifier.model, classifier.prompt
    completions = list(prompt.completions.values())
    tried = np.linspace(0, len(completions) - 1, min(8, len(completions))).astype(int)
    alone = [[score_alone(model, prompt.before + ids, completions[i]) for i in tried]
             for ids in texts]
    gaps = np.abs(together[:, tried] - alone)
    return float(np.max(gaps if model.dtype == torch.float32 else gaps.mean(axis=0)))


def check_scoring(classifier: Classifier) -> None:
    """Raise InputError if the model's architecture does not accept the mask of a layout.

    Wrong scores are off by whole nats; right ones in 16 bits by a tenth or two, on average.
    """
    model, prompt = classifier.model, classifier.prompt
    exact = model.dtype == torch.float32
    texts = prompt.encode(classifier.tokenizer, TRIED[:2] if exact else TRIED)
    why = f"a {model.config.model_type} model cannot score labels in one pass"
    try:
        together = score_labels(model, texts, prompt, classifier.pass_tokens)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error) or "CUDA" in str(error):
            raise
        why = one_line(error)
    else:
        if scoring_gap(classifier, texts, together) < (0.02 if exact else 1):
            return
    raise InputError(f"{why}: choose a Llama, or one built like it, for --model")


# Classifiers


def load_base(settings: Settings, train: Dataset) -> tuple[Classifier, Settings]:
    """The base model as a classifier of the labels of the training rows, and the settings with all
    choices filled in; says what was chosen, and why.

    Raises InputError where the model cannot be loaded, or cannot do what is asked of it.
    """
    name, reason = choose_model(settings.model)
    model, data = (os.path.abspath(path) if Path(path).exists() else path  # not what links point to
                   for path in (name, settings.data))
    settings = replace(settings, model=model, data=data)  # found again from any folder
    dtype, why = choose_precision()
    print(f"model: {name}, because {reason}")
    print(f"precision: {'4-bit' if settings.quantize else 'plain'} weights, {dtype} arithmetic, "
          f"because {why}", flush=True)
    model, tokenizer, settings, digest = load_files(settings)
    rows = train["label"][:]
    labels = sorted(set(rows))
    settings = replace(
        settings, instruction=settings.instruction or default_instruction(labels),
        epochs=settings.epochs or default_epochs(rows),
        learning_rate=settings.learning_rate or default_learning_rate(model),
        max_length=min(settings.max_length, context_length(model)))
    print(f"epochs: {settings.epochs}, with {len(rows) / len(labels):,.0f} rows per class")
    print(f"learning rate: {settings.learning_rate:.2g}, for a model "
          f"{model.config.get_text_config().hidden_size} wide")
    with reading_files(Path(settings.model), "model", settings.model):
        prompt = make_prompt(tokenizer, labels, settings.instruction, settings.max_length)
        make_prompt(tokenizer, labels, settings.instruction, settings.max_length,
                    [("a", labels[0])])  # the template also writes earlier turns
    check_prompt(prompt, settings)
    check_vocabulary(model, tokenizer, prompt, settings.model)
    classifier = Classifier(model, tokenizer, prompt, 1.0, settings.pass_tokens, digest)
    check_scoring(classifier)
    return classifier, settings


def load_classifier(run_folder: str | Path, model: str | None = None) -> Classifier:
    """The fine-tuned classifier of a run. Raises InputError if the folder holds none.

    `model` is the place of its base model, if that has moved.
    """
    folder = Path(run_folder)
    settings, kept = find_again(read_settings(folder, "--run"), model), read_classifier(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).exists():
            raise InputError(f"{folder / name} is missing: restore it")
    base, _, settings, digest = load_files(settings, kept.get("base"))
    with reading_files(folder, "run", str(folder)):
        tokenizer, tuned = load_tokenizer(str(folder)), PeftModel.from_pretrained(base, folder)
        prompt = make_prompt(tokenizer, kept["labels"], settings.instruction, settings.max_length)
    check_same(prompt.digest, kept.get("prompt"), f"the tokenizer in {folder}", "--run")
    return Classifier(tuned, tokenizer, prompt, kept["temperature"], settings.pass_tokens, digest)
