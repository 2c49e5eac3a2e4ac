#!/usr/bin/env python
# Generated from README.org: edit that file, then tangle it. Changes made here are lost.

import contextlib
import copy
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path

from transformers import HfArgumentParser

HERE = Path(globals().get("__file__", "main.py")).resolve().parent

def option(default, help: str):
    """A field of Settings with the text that --help prints for it."""
    return field(default=default, metadata={"help": help})

@dataclass
class Settings:
    """Fine-tune a 4-bit Llama with LoRA to classify texts, and judge it."""

    model: str | None = option(None, "Hub id or folder of a causal language model. Default: what this machine can carry.")
    revision: str | None = option(None, "Branch, tag or commit of a model on the hub.")
    quantize: bool = option(True, "Keep the weights in 4 bits; --no-quantize keeps them as they are.")
    data: str = option(str(HERE / "data" / "patient-messages"),
                       "Hub id of a dataset, a csv, tsv, json, jsonl or parquet file, or a folder with train, validation and test files.")
    data_config: str | None = option(None, "Configuration of a dataset on the hub, where it has several.")
    data_revision: str | None = option(None, "Branch, tag or commit of a dataset on the hub.")
    text_column: str = option("text", "Column with the texts.")
    label_column: str = option("label", "Column with the classes.")
    balance: bool = option(False, "Repeat the examples of rare classes until all are as frequent as the commonest.")
    epochs: int = option(4, "How often training sees every example: fewer underfit a small set, more memorise it.")
    learning_rate: float | None = option(None, "Step size of the optimizer. Default: 0.5 / width of the model; wide models need small steps.")
    batch_size: int = option(8, "Examples an optimizer step, of all processes together.")
    pass_tokens: int = option(2048, "Most tokens in one pass through the model: lower it when memory runs out; results stay the same.")
    max_length: int = option(512, "Most tokens in prompt and label together. Longer texts are cut at their end.")
    rank: int = option(32, "Rank of the LoRA matrices: the adapter's capacity.")
    seed: int = option(42, "Fixes splits, initial adapter and order of the examples.")
    output_dir: str | None = option(None, "The run folder, new or empty. Default: outputs/ and the time of the start.")
    checkpoint_steps: int = option(100, "Save what is needed to go on after an interruption, every so many steps.")
    resume: str | None = option(None, "The folder of a run that was interrupted: goes on with its settings.")

    def __post_init__(self):
        for name in ("epochs", "batch_size", "pass_tokens", "max_length", "rank", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError("--learning-rate must be above 0")
        if self.resume and any(getattr(self, f.name) != f.default for f in fields(self) if f.name != "resume"):
            raise ValueError("--resume takes all settings from the run: give no other option")

@dataclass
class PredictSettings:
    """Classify texts with a finished run."""

    run: str = field(metadata={"help": "The folder of a finished run."})
    texts: list[str] = field(default_factory=list, metadata={"help": "Texts, where there is no --data."})
    data: str | None = option(None, "A csv, tsv, json, jsonl or parquet file with texts.")
    text_column: str = option("text", "Column with the texts.")
    output: str | None = option(None, "A new csv or jsonl file. Default: one JSON object a line, printed.")
    threshold: float = option(0.0, "Answers less sure than this are marked: abstain.")

    def __post_init__(self):
        if bool(self.data) == bool(self.texts):
            raise ValueError("give either --data or --texts")
        if self.output and Path(self.output).suffix not in (".csv", ".jsonl"):
            raise ValueError("--output must end in .csv or .jsonl")


@dataclass
class MergeSettings:
    """Add a run's adapter to its model's weights, in 16 bits, for use without peft and bitsandbytes."""

    run: str = field(metadata={"help": "The folder of a finished run."})
    output: str = field(metadata={"help": "A new folder for the merged model."})

def parse_command(argv: list[str]) -> Settings | PredictSettings | MergeSettings:
    """The command line as settings; what cannot be understood ends the program with exit code 2."""
    commands = {"predict": PredictSettings, "merge": MergeSettings}
    name, *rest = argv if argv and argv[0] in commands else ["", *argv]
    kind = commands.get(name, Settings)
    parser = HfArgumentParser(kind, allow_abbrev=False, prog=f"main.py {name}".strip(), description=kind.__doc__,
                              epilog="" if name else "main.py predict --help and main.py merge --help: what to do with a finished run.")
    try:
        settings, unknown = parser.parse_args_into_dataclasses(args=rest, return_remaining_strings=True, look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}; see --help")
    return settings

if __name__ == "__main__":
    parse_command(sys.argv[1:])

import datasets
import huggingface_hub
import matplotlib.figure
import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import ClassLabel, Dataset, DatasetDict
from huggingface_hub import EvalResult, ModelCardData, constants
from safetensors import SafetensorError
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import binomtest, bootstrap
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, classification_report, log_loss, precision_recall_fscore_support, recall_score
from sklearn.pipeline import make_pipeline
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from reading import (InputError, SPLITS, ask_hub, cannot_load, cut_off, find_data, keys, normalised, read_file, require_column, two_columns,
                     without_repeats)

def at_terminal() -> bool:
    """True where a progress bar can be drawn; Emacs opens a terminal too, but a dumb one."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def quieten_libraries() -> None:
    """Leave errors on, turn off the libraries' own bars and advice."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for library in (transformers.utils, huggingface_hub.utils, datasets):
        library.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks transformers by its old name

def load_splits(settings: Settings) -> DatasetDict:
    """Train, validation and test splits with the string columns `text` and `label`; no text of a later split is in an earlier one."""
    data, found = settings.data, find_data(settings.data, settings.data_config, settings.data_revision)
    for name in ("validation", "test"):
        if name in found and isinstance(found[name].features.get(settings.label_column), ClassLabel) and max(found[name].unique(settings.label_column)) < 0:
            print(f"warning: the {name} split has no labels: it is cut from train instead")
            del found[name]
    splits = DatasetDict({name: two_columns(found[name], settings.text_column, settings.label_column) for name in SPLITS if name in found})
    if "train" not in splits or not all(map(len, splits.values())):
        raise InputError(f"{data} has an empty or missing split (there are {', '.join(found)}): every split needs rows, and one must be called train")
    if len(splits["train"].unique("label")) < 2:
        raise InputError(f"{data} has a single class in column {settings.label_column!r}: there is nothing to tell apart")
    if "test" not in splits:
        splits["train"], splits["test"] = cut_off(splits["train"], len(splits["train"]) // 5, settings.seed)
    if "validation" not in splits:
        splits["train"], splits["validation"] = cut_off(splits["train"], len(splits["train"]) // 10, settings.seed)
    splits = without_repeats(splits).flatten_indices()  # rows stand in the order in which they are read: a large file is read much faster so
    if not all(map(len, splits.values())) or len(splits["test"]) < 2:
        raise InputError(f"{data} has too few rows that are in one split only, to train, to validate or to test: give more examples")
    for name in ("validation", "test"):
        unknown = sorted(set(splits[name].unique("label")) - set(splits["train"].unique("label")))
        if unknown:
            raise InputError(f"the {name} split has labels that training never sees: {', '.join(unknown)}: add examples or remove the rows")
    return splits

def balance(split: Dataset, seed: int) -> Dataset:
    """Repeat rows of rare classes, drawn at random, until every class has as many as the largest."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(split["label"][:]):
        rows.setdefault(label, []).append(row)
    most, random = max(map(len, rows.values())), np.random.default_rng(seed)
    return split.select(np.concatenate([[*same, *random.choice(same, most - len(same))] for same in rows.values()]).astype(int))

def choose_model(asked: str | None) -> tuple[str, str]:
    """The model to load, and the reason."""
    if asked:
        return asked, "it was asked for"
    if torch.cuda.is_available():
        return "unsloth/Llama-3.2-1B-Instruct", "there is a CUDA GPU, and this small Llama needs no licence click"
    return str(HERE / "data" / "tiny-llama"), "there is no CUDA GPU, and the embedded tiny Llama runs on any processor"


def choose_precision() -> tuple[torch.dtype, str]:
    """The number format to compute in, and the reason. Weights rest in 4 bits all the same."""
    if not torch.cuda.is_available():
        apple = " (Apple's GPU is left alone: not tested)" if torch.backends.mps.is_available() else ""
        return torch.float32, f"a processor has no faster format that is as exact{apple}"
    amd = " (on ROCm this was not tested)" if torch.version.hip else ""
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, f"this GPU computes bfloat16 natively{amd}"
    return torch.float16, f"this GPU only emulates bfloat16{amd}"

PLAIN_TEMPLATE = ("{{ bos_token }}{% for message in messages %}{{ message['role'] }}:\n\n{{ message['content'] }}{{ eos_token }}\n"
                  "{% endfor %}{% if add_generation_prompt %}assistant:\n\n{% endif %}")


def load_pretrained(loader, name: str, revision: str | None = None, **options):
    """`loader.from_pretrained` with its failures in one line."""
    try:
        ask_hub(name, "model", revision)
        return loader.from_pretrained(name, revision=revision or "main", trust_remote_code=False, **options)
    except Exception as error:  # what the hub, the file system and the readers of weights raise has no common class
        raise cannot_load(error, name, "model") from error


def load_tokenizer(name: str, revision: str | None = None) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer, with a chat template and a padding token where it brings none."""
    tokenizer = load_pretrained(AutoTokenizer, name, revision)
    if tokenizer.eos_token is None:
        raise InputError(f"the tokenizer of {name} has no end token: choose another --model")
    tokenizer.chat_template = tokenizer.chat_template or PLAIN_TEMPLATE
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer

def load_model(name: str, dtype: torch.dtype, revision: str | None = None, quantize: bool = True) -> transformers.PreTrainedModel:
    """The model, computing in `dtype`, its linear layers in 4 bits, on this process's GPU if there is one."""
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                   bnb_4bit_compute_dtype=dtype)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    model = load_pretrained(AutoModelForCausalLM, name, revision, dtype=dtype, device_map={"": device}, use_safetensors=True,
                            quantization_config=four_bits if quantize else None)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval()

@dataclass
class PromptFormat:
    """Token ids around a text, and of each label's completion, end token included."""

    before: list[int]
    after: list[int]
    completions: dict[str, list[int]]
    text_room: int  # tokens left for the text


def as_written(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of the texts; the names of control tokens in them are ordinary characters."""
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"] if len(texts) else []

def make_format(tokenizer, labels: list[str], max_length: int, examples: list[tuple[str, str]] = []) -> PromptFormat:
    """Render the chat template once, with `examples` as earlier turns. Llama 3.2 writes today's date into it unless told one."""
    ask = f"Classify the text as one of: {', '.join(labels)}." if len(labels) <= 20 else "Classify the text."
    mark = "TEXT-GOES-HERE"
    turns = [{"role": role, "content": mark} for _ in examples for role in ("user", "assistant")] + [{"role": "user", "content": mark}]
    turns[0]["content"] = f"{ask}\n\n{mark}"
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024")
    *pieces, after = (tokenizer.encode(piece, add_special_tokens=False) for piece in rendered.split(mark))
    filled = as_written(tokenizer, [content for example in examples for content in example])
    before = pieces[0] + [token for content, piece in zip(filled, pieces[1:]) for token in content + piece]
    completions = {label: ids + [tokenizer.eos_token_id] for label, ids in zip(labels, as_written(tokenizer, labels))}
    if len(set(map(tuple, completions.values()))) < len(labels):
        raise InputError("two labels are the same to the tokenizer: rename one of " + ", ".join(labels))
    text_room = max_length - len(before) - len(after) - max(map(len, completions.values()))
    if text_room < 8:
        raise InputError(f"--max-length {max_length} leaves {text_room} tokens for the text: raise it")
    return PromptFormat(before, after, completions, text_room)

def encode_texts(tokenizer, texts: list[str], form: PromptFormat) -> list[list[int]]:
    """Each prompt's token ids from the text on (after `form.before`); a text that is too long is cut at its end."""
    return [ids[:form.text_room] + form.after for ids in as_written(tokenizer, texts)]


def training_rows(split: Dataset, tokenizer, form: PromptFormat) -> Dataset:
    """What SFTTrainer takes: token ids, and labels that are -100 on the prompt: only the completion is learnt."""
    def rows(batch):
        prompts = [form.before + ids for ids in encode_texts(tokenizer, batch["text"], form)]
        completions = [form.completions[label] for label in batch["label"]]
        return {"input_ids": [prompt + completion for prompt, completion in zip(prompts, completions)],
                "labels": [[-100] * len(prompt) + completion for prompt, completion in zip(prompts, completions)]}

    return split.map(rows, batched=True, remove_columns=split.column_names)

def audit_split(split: Dataset, tokenizer, form: PromptFormat) -> dict:
    """Counts of what may be wrong with a split, and the SHA-256 of its texts and labels."""
    lengths, empty, garbled, digest = [], 0, 0, hashlib.sha256()
    for batch in split.iter(1000):
        lengths += map(len, as_written(tokenizer, batch["text"]))
        empty += sum(not text.strip() for text in batch["text"])
        garbled += sum("\ufffd" in text or "Ã" in text or "â€" in text for text in batch["text"])
        digest.update(json.dumps(batch).encode())
    classes, texts = Counter(split["label"][:]), keys(split)
    return {"rows": len(split), "classes": len(classes), "rarest": min(classes.values()), "empty": empty, "repeated": len(texts) - len(np.unique(texts)),
            "garbled": garbled, "median_tokens": int(np.median(lengths)), "most_tokens": max(lengths),
            "shortened": sum(length > form.text_room for length in lengths), "labels": dict(classes.most_common()), "sha256": digest.hexdigest()}


def audit(splits: DatasetDict, tokenizer, form: PromptFormat) -> dict[str, dict]:
    """audit_split of each split, printed as a table with one warning for each kind of trouble."""
    found = {name: audit_split(split, tokenizer, form) for name, split in splits.items()}
    columns = [name for name in found["train"] if name not in ("labels", "sha256")]
    print(f"{'':12}" + "".join(f"{name:>15}" for name in columns))
    for split, counts in found.items():
        print(f"{split:12}" + "".join(f"{counts[name]:>15,}" for name in columns))
    for kind, advice in (("empty", "are empty: they can only be guessed"), ("repeated", "stand in their split more than once"),
                         ("garbled", "look as if read in a wrong encoding: save the file as UTF-8"),
                         ("shortened", "are too long and lose their end: raise --max-length if the model allows it")):
        if count := sum(counts[kind] for counts in found.values()):
            print(f"warning: {count:,} texts {advice}")
    similar = Counter(map(normalised, form.completions))
    if alike := [label for label in form.completions if similar[normalised(label)] > 1]:
        print(f"warning: labels differ in case or white space alone: {', '.join(map(repr, alike))}")
    return found

def grow_tree(branches: list[list[int]]) -> tuple[list[int], list[int], list[list[int]]]:
    """Tokens and parents of the nodes of a tree in which branches that begin alike share nodes, and the nodes of each branch; parents come first, -1 is none."""
    tokens, parents, paths, known = [], [], [], {}
    for branch in branches:
        path = [-1]
        for token in branch:
            step = (path[-1], token)
            if step not in known:
                known[step] = len(tokens)
                tokens.append(token)
                parents.append(path[-1])
            path.append(known[step])
        paths.append(path[1:])
    return tokens, parents, paths


def see_ancestors(parents: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (L,) and boolean mask (L, L), row sees column, of tokens that see their parent, what it sees, and themselves; -1 is no parent."""
    visible, positions = np.eye(len(parents), dtype=bool), np.zeros(len(parents), dtype=int)
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] |= visible[parent]
            positions[node] = positions[parent] + 1
    return torch.from_numpy(positions), torch.from_numpy(visible)

def lay_out(shared: int, encoded: list[list[int]], tokens: list[int], parents: list[int], pad_id: int) -> dict[str, torch.Tensor]:
    """One row a text, after `shared` cached tokens: [padding | text | tree of the labels], L tokens wide.

    Returns input_ids and position_ids (rows, L) and a boolean attention_mask (rows, 1, L, shared + L).
    """
    width = max(map(len, encoded))
    padding = torch.tensor([width - len(ids) for ids in encoded])[:, None]
    positions, visible = see_ancestors([*range(-1, width - 1), *(width + parent for parent in parents)])
    visible = visible & (torch.arange(len(positions)) >= padding)[:, None, :]
    visible |= torch.eye(len(positions), dtype=torch.bool)  # padding looks at itself: a row of nothing would be NaN
    return {"input_ids": torch.tensor([[pad_id] * (width - len(ids)) + ids + tokens for ids in encoded]),
            "position_ids": shared + (positions - padding).clamp(min=0),
            "attention_mask": torch.cat([visible.new_ones(len(encoded), len(positions), shared), visible], dim=2)[:, None]}

@torch.no_grad()
def score_batch(model, cache, encoded: list[list[int]], completions: list[list[int]], tree: tuple, pad_id: int) -> torch.Tensor:
    """Log-probability of each completion after the cached beginning and each text: (texts, completions), float32; `tree` is theirs, from `grow_tree`."""
    cache = copy.deepcopy(cache)  # a forward pass would lengthen it
    cache.batch_repeat_interleave(len(encoded))
    tokens, parents, paths = tree
    batch = lay_out(cache.get_seq_length(), encoded, tokens, parents, pad_id)
    hidden = model.get_decoder()(**{name: tensor.to(model.device) for name, tensor in batch.items()},
                                 past_key_values=cache, use_cache=True).last_hidden_state[:, -len(tokens) - 1:]  # from the text's last token on
    sources = [node + 1 for path in paths for node in [-1, *path]]  # a token is predicted by its parent, a label's first by the text's last
    targets = [token for completion in completions for token in completion]
    log_probs = torch.cat([model.get_output_embeddings()(part).float().log_softmax(-1)[:, sources, targets]
                           for part in hidden.split(max(1, 1024 // (len(tokens) + 1)))])
    return torch.stack([part.sum(1) for part in log_probs.split(list(map(len, completions)), dim=1)], dim=1).cpu()

def in_groups(lengths: list[int], room: int) -> list[list[int]]:
    """Indices of consecutive items whose lengths sum to at most `room`; an item longer than that stands alone."""
    groups, used = [], room + 1
    for index, length in enumerate(lengths):
        if used + length > room:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += length
    return groups

@torch.no_grad()
def score_labels(model, encoded: list[list[int]], form: PromptFormat, pad_id: int, pass_tokens: int = 2048) -> np.ndarray:
    """Log-probability of every label for every text, (texts, labels); `pass_tokens` limits the tokens of one pass."""
    model.eval()
    cache = model.get_decoder()(input_ids=torch.tensor([form.before], device=model.device), use_cache=True).past_key_values
    completions = list(form.completions.values())
    groups = in_groups(list(map(len, completions)), pass_tokens - max(map(len, encoded), default=0))
    trees = [grow_tree([completions[i][:-1] for i in group]) for group in groups]  # nothing is asked of the end tokens
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))  # like lengths share a batch: less padding
    scores = np.zeros((len(encoded), len(completions)))
    with tqdm(total=len(order), desc="scoring", disable=not at_terminal()) as bar:
        while order:
            width = len(encoded[order[0]]) + max(len(tokens) for tokens, _, _ in trees)
            batch = order[:max(1, min(pass_tokens // width, 8 * pass_tokens // (len(form.before) + width)))]  # the cache takes room, too
            order = order[len(batch):]
            for group, tree in zip(groups, trees):
                scores[np.ix_(batch, group)] = score_batch(model, cache, [encoded[i] for i in batch], [completions[i] for i in group], tree, pad_id)
            bar.update(len(batch))
    return scores

@dataclass
class Classifier:
    """A causal language model that answers with one of its labels."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    form: PromptFormat
    temperature: float = 1.0
    pass_tokens: int = 2048  # in one pass through the model

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the columns of `predict_proba`."""
        return list(self.form.completions)

    def scores(self, texts: list[str]) -> np.ndarray:
        """Log-probability of every label for every text, (texts, labels)."""
        if isinstance(texts, str):
            raise TypeError("give a list of texts, not one text")
        state, blocks = PartialState(), []
        for start in range(0, max(1, len(texts)), 10_000):  # a block at a time: token ids take more room than texts
            block = texts[start:start + 10_000]
            encoded = encode_texts(self.tokenizer, block[state.process_index::state.num_processes], self.form)
            own = score_labels(self.model, encoded, self.form, self.tokenizer.pad_token_id, self.pass_tokens)
            blocks.append(np.empty((len(block), len(self.labels))))
            for process, scores in enumerate(gather_object([own])):  # where several processes share the work
                blocks[-1][process::state.num_processes] = scores
        return np.concatenate(blocks)

    def predict_proba(self, texts: list[str]) -> np.ndarray:
        """Probability of every label for every text, (texts, labels); rows sum to 1."""
        return softmax(self.scores(texts) / self.temperature, axis=1)

    def predict(self, texts: list[str]) -> list[str]:
        """The likeliest label of every text."""
        return choose(self.predict_proba(texts), self.labels)

def choose(probabilities: np.ndarray, labels: list[str]) -> list[str]:
    """The likeliest label of each row of (rows, labels)."""
    return [labels[i] for i in probabilities.argmax(1)]


def is_right(truth: list[str], probabilities: np.ndarray, labels: list[str]) -> np.ndarray:
    """Whether the likeliest label of each row is the true one: (rows,), boolean."""
    return np.array(choose(probabilities, labels)) == np.array(truth)

@torch.no_grad()
def check_scoring(classifier: Classifier) -> None:
    """Raise InputError unless a label's score in one pass with all others is what the label gets alone."""
    form, model = classifier.form, classifier.model
    prompt, completion = form.before + form.after, list(form.completions.values())[-1]
    places = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1, device=model.device)
    try:
        log_probs = model(torch.tensor([prompt + completion], device=model.device), logits_to_keep=places).logits[0].float().log_softmax(-1)
        alone = log_probs[range(len(completion)), completion].sum().item()
        together = score_labels(model, [form.after], form, classifier.tokenizer.pad_token_id, classifier.pass_tokens)[0, -1]
        exact = abs(together - alone) < max(0.02, 32 * torch.finfo(model.dtype).eps) * max(1, abs(alone))
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError):
        exact = False
    if not exact:
        raise InputError(f"a {model.config.model_type} model cannot score all labels in one pass: choose a Llama or a model built like one for --model")

def calibration_bins(right: np.ndarray, confidence: np.ndarray, bins: int = 15) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and size of bins of equal size, from unsure to sure (Nguyen and O'Connor, 2015)."""
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    return [(float(confidence[part].mean()), float(right[part].mean()), len(part)) for part in parts if len(part)]


def calibration_error(right: np.ndarray, confidence: np.ndarray) -> float:
    """Expected calibration error over bins of equal size: 0 is perfect."""
    return sum(size * abs(sure - correct) for sure, correct, size in calibration_bins(right, confidence)) / len(right)

def measure(truth: list[str], runs: list[np.ndarray], labels: list[str], seconds: float) -> dict[str, float]:
    """The figures of one system as shares of 1, means over its `runs`, each a (rows, labels) array of probabilities."""
    right = [is_right(truth, run, labels) for run in runs]
    accuracy = bootstrap((np.mean(right, axis=0),), np.mean, n_resamples=2000, batch=100, method="percentile", rng=0)
    prf = [precision_recall_fscore_support(truth, choose(run, labels), labels=labels, average="macro", zero_division=0)[:3] for run in runs]
    precision, recall, f1 = np.mean(prf, axis=0)
    figures = {"accuracy": np.mean(right), "accuracy_low": accuracy.confidence_interval.low, "accuracy_high": accuracy.confidence_interval.high,
               "precision": precision, "recall": recall, "f1": f1,
               "balanced_accuracy": np.mean([recall_score(truth, choose(run, labels), labels=sorted(set(truth)), average="macro")
                                             for run in runs]),
               "log_loss": np.mean([log_loss(truth, run, labels=labels) for run in runs]),
               "ece": np.mean([calibration_error(ok, run.max(1)) for ok, run in zip(right, runs)]), "seconds": seconds}
    return {name: float(value) for name, value in figures.items()} | {"n": len(truth)}

def scoreboard(systems: dict[str, dict[str, float]]) -> str:
    """The figures as text, one line a system."""
    names = ["precision", "recall", "f1", "balanced_accuracy", "log_loss", "ece"]
    lines = [f"{'':11}accuracy (95 % interval)" + "".join(f"{name.split('_acc')[0]:>10}" for name in names) + f"{'n':>7}{'seconds':>11}"]
    for system, row in systems.items():
        lines.append(f"{system:11}{row['accuracy']:>8.3f} ({row['accuracy_low']:.3f} - {row['accuracy_high']:.3f})"
                     + "".join(f"{row[name]:>10.3f}" for name in names) + f"{row['n']:>7}{row['seconds']:>9.1f} s")
    return "\n".join(lines)

def fit_tfidf(train: Dataset, validation: Dataset):
    """TF-IDF of words and word pairs with logistic regression; C is the one of four with the least log-loss on validation."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]", max_features=100_000)
    features, truth = words.fit_transform(train["text"][:]), train["label"][:]
    fitted = [LogisticRegression(C=c, max_iter=2000).fit(features, truth) for c in (1, 10, 100, 1000)]
    unseen = words.transform(validation["text"][:])
    return make_pipeline(words, min(fitted, key=lambda one: log_loss(validation["label"][:], one.predict_proba(unseen), labels=one.classes_)))


def judge_baselines(splits: DatasetDict) -> dict[str, tuple[list[np.ndarray], float]]:
    """Probabilities of the test rows, in a list of one run, and seconds to fit and predict, for `majority` and `tfidf`."""
    results, majority = {}, DummyClassifier(strategy="prior")
    for name, fit in {"majority": lambda train, _: majority.fit(train["text"][:], train["label"][:]), "tfidf": fit_tfidf}.items():
        start = time.perf_counter()
        probabilities = fit(splits["train"], splits["validation"]).predict_proba(splits["test"]["text"][:])
        results[name] = [probabilities], time.perf_counter() - start
    return results

def draw_examples(train: Dataset, classifier: Classifier, room: int, seed: int) -> list[tuple[str, str]]:
    """Examples for a few-shot prompt: one of each class in turn, in random order, as many as fit into `room` tokens."""
    random = np.random.default_rng(seed)
    texts, labels = train["text"][:], train["label"][:]
    rows = {label: [] for label in classifier.labels}
    for i in random.permutation(len(texts)):
        rows[labels[i]].append(i)
    for label, same in rows.items():
        usual = np.median([len(texts[i]) for i in same])
        rows[label] = [i for i in same if len(texts[i]) <= usual]
    empty = [len(make_format(classifier.tokenizer, classifier.labels, 10**6, [("", "")] * count).before) for count in (1, 2)]
    cost = lambda i: empty[1] - empty[0] + sum(map(len, as_written(classifier.tokenizer, [texts[i], labels[i]])))
    examples, used = [], 2 * empty[0] - empty[1]
    for turn in range(max(map(len, rows.values()))):
        drawn = [rows[label][turn] for label in random.permutation(classifier.labels) if turn < len(rows[label])]
        ends = used + np.cumsum([cost(i) for i in drawn])
        fitting = drawn[:int((ends <= room).sum())]
        if fitting == drawn or not examples:  # half a turn only where not even the first fits whole
            examples += [(texts[i], labels[i]) for i in fitting]
        if fitting != drawn:
            break
        used = ends[-1]
    return examples

def context_length(model) -> int:
    """How many tokens the model can take at once; very many where its configuration sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 10**6


def longest_prompt(texts: list[str], classifier: Classifier) -> int:
    """Most tokens of a text and what follows it, encoded 10,000 texts at a time."""
    return max(len(ids) for i in range(0, len(texts), 10_000) for ids in encode_texts(classifier.tokenizer, texts[i:i + 10_000], classifier.form))


def few_shot(train: Dataset, classifier: Classifier, longest: int, seed: int) -> Classifier:
    """The same model with examples in its prompt: 2,048 tokens of them, or half the context where that is less; `longest_prompt` goes on from there."""
    form, context = classifier.form, context_length(classifier.model)
    longest += max(map(len, form.completions.values())) + 8
    length = min(context, max(len(form.before), min(2048, context // 2)) + longest)
    examples = draw_examples(train, classifier, length - longest, seed)
    return replace(classifier, form=make_format(classifier.tokenizer, classifier.labels, length, examples))

def judge_untouched(splits: DatasetDict, classifier: Classifier) -> dict[str, tuple[list[np.ndarray], float]]:
    """As judge_baselines, for `zero_shot` (one run) and `few_shot` (three draws of examples; the seconds are of one)."""
    texts, results = splits["test"]["text"][:], {}
    longest = longest_prompt(texts, classifier)
    for name, asked in (("zero_shot", [classifier]), ("few_shot", [few_shot(splits["train"], classifier, longest, seed) for seed in range(3)])):
        start = time.perf_counter()
        runs = [one.predict_proba(texts) for one in asked]
        results[name] = runs, (time.perf_counter() - start) / len(runs)
    return results

def add_adapter(model, rank: int, seed: int):
    """The model wrapped with a LoRA adapter on every linear layer but the output head."""
    from peft import LoraConfig, get_peft_model

    transformers.set_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)

def linear_shapes(config) -> list[tuple[int, int]]:
    """Inputs and outputs of the seven linear layers in each block of a Llama."""
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    return [(width, queries), (width, keys), (width, keys), (queries, width), (width, inner), (width, inner), (inner, width)]


def memory_ledger(config, method: str, batch_size: int, length: int, rank: int, number: int = 2, checkpointing: bool = True) -> dict[str, int]:
    """Bytes to train a Llama by `method` ("full", "lora" or "qlora") on batches of batch_size x length tokens.

    `number` is the size of a number in the compute format, in bytes. NF4 with double quantization takes half a byte a weight, one byte more for
    each 64 weights and four for each 16,384 (Dettmers et al., 2023). Activations are what a block of transformers' Llama keeps for the backward pass.
    """
    shapes, layers, width, tokens = linear_shapes(config), config.num_hidden_layers, config.hidden_size, batch_size * length
    linear = layers * sum(i * o for i, o in shapes)
    other = config.vocab_size * width * (1 if config.tie_word_embeddings else 2) + (2 * layers + 1) * width
    adapter = 0 if method == "full" else layers * sum(rank * (i + o) for i, o in shapes)
    queries, keys = shapes[0][1], shapes[1][1]
    block = number * tokens * (4 * width + 4 * config.intermediate_size + 2 * queries + 2 * keys + 7 * (rank if adapter else 0))
    return {"weights": int(linear * (1 / 2 + 1 / 64 + 4 / 16384)) + number * other if method == "qlora" else number * (linear + other),
            "adapter": 4 * adapter, "gradients": 4 * adapter if adapter else number * (linear + other),
            "optimizer": 8 * adapter if adapter else 12 * (linear + other),
            "activations": block + layers * tokens * width * number if checkpointing else layers * block}

def collate(shared: int, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch of rows as one sequence: the `shared` first tokens once, then the rest of each row, a branch of its own."""
    parents = list(range(-1, shared - 1))
    for row in rows:
        parents += [shared - 1, *range(len(parents), len(parents) + len(row["input_ids"]) - shared - 1)]
    positions, visible = see_ancestors(parents)
    ids, targets = ([token for row in rows for token in row[name][shared:]] for name in ("input_ids", "labels"))
    return {"input_ids": torch.tensor([rows[0]["input_ids"][:shared] + ids]), "labels": torch.tensor([[-100] * shared + targets]),
            "position_ids": positions[None], "attention_mask": visible[None, None]}

def default_learning_rate(model) -> float:
    """0.5 / hidden size: 2e-3 for the tiny Llama, 2.4e-4 for one with a width of 2048."""
    return 0.5 / model.config.hidden_size


def rows_in_a_pass(settings: Settings, longest: int) -> int:
    """Rows that one process takes in a pass, an even part of the batch; `longest` is the most tokens that a row adds."""
    processes = PartialState().num_processes
    own, rest = divmod(settings.batch_size, processes)
    if rest or not own:
        raise InputError(f"{processes} processes cannot share a batch of {settings.batch_size} evenly: choose a multiple for --batch-size")
    return max(rows for rows in range(1, own + 1) if own % rows == 0 and (rows * longest <= settings.pass_tokens or rows == 1))


def training_settings(settings: Settings, folder: Path, rows: int):
    """The run's settings in the words of trl: an SFTConfig that takes `rows` rows in a pass."""
    from trl import SFTConfig

    dtype, _ = choose_precision()
    return SFTConfig(
        dataset_kwargs={"skip_prepare_dataset": True},  # the rows are token ids and labels already
        output_dir=str(folder), num_train_epochs=settings.epochs,
        per_device_train_batch_size=rows, gradient_accumulation_steps=settings.batch_size // (rows * PartialState().num_processes),
        learning_rate=settings.learning_rate, lr_scheduler_type="linear", warmup_steps=0.02,  # below 1: a share of all steps
        activation_checkpointing=torch.cuda.is_available(),  # trades time for memory; a small model needs none
        use_cpu=not torch.cuda.is_available(), bf16=dtype == torch.bfloat16, fp16=dtype == torch.float16,
        logging_steps=0.02, logging_nan_inf_filter=False, report_to="none", seed=settings.seed, disable_tqdm=not at_terminal(),
        save_steps=settings.checkpoint_steps, save_total_limit=2, ddp_find_unused_parameters=False)

def write_json(path: Path, content) -> None:
    """Write readable JSON, whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint but the list itself."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.stem != "complete"}


class MarkComplete(transformers.TrainerCallback):
    """Writes the list when a checkpoint's files are written, by all processes."""

    def on_save(self, args, state, control, **_):
        PartialState().wait_for_everyone()
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero:
            write_json(folder / "complete.json", digests(folder))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; says which newer ones are skipped."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1])):
        try:
            if json.loads((checkpoint / "complete.json").read_text(encoding="utf-8")) == digests(checkpoint):
                return checkpoint
        except (OSError, ValueError):
            pass
        print(f"warning: {checkpoint} is incomplete or damaged: skipped")
    return None

def careful_trainer(learning_rate: float, **arguments):
    """An SFTTrainer for batches of one sequence, as `collate` makes them, that stops at the first number that is none."""
    from trl import SFTTrainer

    class CarefulTrainer(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            targets = inputs["labels"][0, 1:]  # each token is predicted by the one before it
            places = (targets != -100).nonzero()[:, 0]
            logits = model(**{name: tensor for name, tensor in inputs.items() if name != "labels"}, logits_to_keep=places, use_cache=False).logits[0]
            loss = torch.nn.functional.cross_entropy(logits.float(), targets[places], reduction="sum") / num_items_in_batch
            return loss * self.accelerator.num_processes  # num_items_in_batch counts those of all, and gradients will be averaged

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            scaled = self.accelerator.scaler is not None  # in float16 gradients overflow now and then, and the scaler leaves out the step
            gradients = [] if scaled else [p.grad for p in self.model.parameters() if p.grad is not None]
            if not all(tensor.isfinite().all() for tensor in (loss, *gradients)):
                raise InputError(f"step {self.state.global_step + 1}: the loss or a gradient is infinite or not a number, and nothing was "
                                 f"changed by it: lower --learning-rate (it is {learning_rate:.2g})")
            return loss

    return CarefulTrainer(**arguments)

def train(classifier: Classifier, rows: Dataset, settings: Settings, folder: Path, resume: bool = False) -> list[dict[str, float]]:
    """Train the classifier's adapter in place on training_rows, with checkpoints in `folder`; returns the log: step, loss, learning rate."""
    shared = len(classifier.form.before)
    longest = max(len(ids) for batch in rows.iter(1000) for ids in batch["input_ids"]) - shared
    trainer = careful_trainer(settings.learning_rate, model=classifier.model, args=training_settings(settings, folder, rows_in_a_pass(settings, longest)),
                              train_dataset=rows, processing_class=classifier.tokenizer, data_collator=partial(collate, shared),
                              callbacks=[MarkComplete()])
    for parameter in classifier.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.remove_callback(transformers.PrinterCallback)
    checkpoint = newest_checkpoint(folder) if resume else None
    if resume:
        print(f"going on from {checkpoint or 'the beginning: there is no complete checkpoint'}", flush=True)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return [{name: value for name, value in entry.items() if name != "grad_norm"} for entry in trainer.state.log_history]

def draw_loss(log: list[dict[str, float]], path: Path) -> str:
    """Write the training loss as a picture; returns its path."""
    points = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    figure = matplotlib.figure.Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points))
    axes.set(xlabel="step", ylabel="loss, nats a token", yscale="log")
    figure.savefig(path, dpi=120)
    return str(path)

def fit_temperature(scores: np.ndarray, truth: list[str], labels: list[str]) -> float:
    """The temperature at which softmax(scores / temperature) has the least log-loss; scores are (rows, labels)."""
    loss = lambda log_t: log_loss(truth, softmax(scores / np.exp(log_t), axis=1), labels=labels)
    return float(np.exp(minimize_scalar(loss, bounds=(0, 3), method="bounded").x))

def draw_reliability(truth: list[str], before: np.ndarray, after: np.ndarray, labels: list[str], path: Path) -> str:
    """Write accuracy against confidence, in bins, before and after temperature scaling; returns the path."""
    figure = matplotlib.figure.Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
    for name, probabilities in (("before", before), ("after temperature scaling", after)):
        bins = calibration_bins(is_right(truth, probabilities, labels), probabilities.max(1))
        axes.plot([sure for sure, _, _ in bins], [right for _, right, _ in bins], marker="o", label=name)
    axes.set(xlabel="confidence", ylabel="accuracy")
    axes.legend()
    figure.savefig(path, dpi=120)
    return str(path)

def coverage(truth: list[str], probabilities: np.ndarray, labels: list[str]) -> list[dict[str, float]]:
    """Accuracy on the surest part of the rows, and the confidence from which on they were answered."""
    right, confidence = is_right(truth, probabilities, labels), probabilities.max(1)
    surest = np.argsort(-confidence, kind="stable")
    parts = [(share, surest[:max(1, round(share * len(surest)))]) for share in (1.0, 0.9, 0.8, 0.5)]
    return [{"coverage": share, "accuracy": float(right[part].mean()), "threshold": float(confidence[part[-1]])} for share, part in parts]


def coverage_table(rows: list[dict[str, float]]) -> str:
    """The same as text."""
    return "\n".join([f"{'answered':>9}{'accuracy':>10}{'threshold':>11}",
                      *(f"{row['coverage']:>9.0%}{row['accuracy']:>10.3f}{row['threshold']:>11.3f}" for row in rows)])

def compare(truth: list[str], a: np.ndarray, b: np.ndarray, labels: list[str]) -> dict[str, float]:
    """Exact McNemar test of two systems on the same rows, each a (rows, labels) array of probabilities."""
    right_a, right_b = (is_right(truth, probabilities, labels) for probabilities in (a, b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a_right": only_a, "only_b_right": only_b, "p_value": float(p_value)}


def verdict(systems: dict[str, dict[str, float]], comparisons: dict[str, dict[str, float]]) -> str:
    """Say in a sentence what fine-tuning was worth; from p = 0.05 on two systems cannot be told apart."""
    clauses = []
    for other, name in (("zero_shot", "the untouched model"), ("tfidf", "TF-IDF")):
        points = 100 * (systems["fine_tuned"]["accuracy"] - systems[other]["accuracy"])
        p_value = comparisons[f"fine_tuned_vs_{other}"]["p_value"]
        verb = "cannot be told apart from" if p_value >= 0.05 else "beats" if points > 0 else "loses to"
        clauses.append(f"{verb} {name} ({points:+.1f} points, {'p < 0.001' if p_value < 0.001 else f'p = {p_value:.3f}'})")
    advice = "fine-tuning was worth it" if clauses[1].startswith("beats") else "use TF-IDF"
    return f"Fine-tuning {clauses[0]} and {clauses[1]}: {advice} here."

def draw_confusion(truth: list[str], predicted: list[str], labels: list[str], path: Path) -> str:
    """Write the confusion matrix as a picture; returns its path."""
    size = min(max(6.0, 0.45 * len(labels)), 40.0)
    figure = matplotlib.figure.Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    shown = [label.replace("$", r"\$") for label in labels]  # matplotlib would take it for mathematics
    ConfusionMatrixDisplay.from_predictions(truth, predicted, labels=labels, display_labels=shown, xticks_rotation="vertical",
                                            cmap="Blues", include_values=len(labels) <= 20, colorbar=False, ax=axes)
    figure.savefig(path, dpi=120)
    return str(path)

def show_mistakes(texts: list[str], truth: list[str], predicted: list[str], confidence: np.ndarray, count: int = 5) -> str:
    """The mistakes that the model was surest of, in words."""
    wrong = [i for i in np.argsort(-confidence) if truth[i] != predicted[i]][:count]
    return "\n".join(f"{truth[i]} -> {predicted[i]} ({confidence[i]:.2f}): {texts[i][:300]}" for i in wrong)

def make_run_folder(asked: str | None) -> Path:
    """A new or empty folder, the same for all processes: results are never overwritten."""
    [name] = broadcast_object_list([asked or str(HERE / "outputs" / datetime.now().strftime("%Y-%m-%d-%H%M%S-%f"))])
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if PartialState().is_main_process and any(folder.iterdir()):
            raise InputError(f"{folder} holds the results of another run: choose a new --output-dir")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}: choose another --output-dir") from error
    return folder


def read_settings(folder: Path, option_name: str) -> Settings:
    """The settings of a run. Raises InputError if the folder holds none."""
    try:
        return Settings(**json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder} is not the folder of a run: check {option_name}") from error

def probability_columns(probabilities: np.ndarray, labels: list[str]) -> dict[str, np.ndarray]:
    """Columns for a table of predictions: `confidence`, and `p_` with each label."""
    columns = {"confidence": probabilities.max(1)} | {f"p_{label}": probabilities[:, i] for i, label in enumerate(labels)}
    return {name: column.astype(float).round(6) for name, column in columns.items()}


def save_classifier(folder: Path, classifier: Classifier, settings: Settings) -> None:
    """What load_classifier needs, in peft's own format, and the versions of the libraries."""
    classifier.model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    write_json(folder / "classifier.json", {"labels": classifier.labels, "temperature": classifier.temperature})
    write_json(folder / "settings.json", asdict(settings))
    packages = ["torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "scikit-learn"]
    write_json(folder / "versions.json", {"python": sys.version.split()[0], **{name: version(name) for name in packages}})

def expected_memory(config, settings: Settings) -> str:
    """What the ledger says of a run, in words; nothing for models that are no Llamas."""
    if config.model_type != "llama":
        return ""
    tokens = min(settings.batch_size * settings.max_length, max(settings.pass_tokens, settings.max_length))
    parts = memory_ledger(config, "qlora" if settings.quantize else "lora", 1, tokens, settings.rank, choose_precision()[0].itemsize,
                          torch.cuda.is_available())
    return f"memory to train: about {sum(parts.values()) / 1e9:.2f} GB, beside the libraries' own"


def prepare(settings: Settings) -> tuple[Settings, DatasetDict, Classifier]:
    """Load data, tokenizer and model, and say what was chosen and why; returns the settings with the choices filled in."""
    rows_in_a_pass(settings, 1)  # raises at once what it would raise before training
    splits = load_splits(settings)
    name, reason = choose_model(settings.model)
    dtype, why = choose_precision()
    print(f"model: {name}, because {reason}")
    print(f"precision: {'4-bit' if settings.quantize else 'plain'} weights, {dtype} arithmetic, because {why}")
    tokenizer = load_tokenizer(name, settings.revision)
    config = load_pretrained(transformers.AutoConfig, name, settings.revision)
    print(expected_memory(config, settings), flush=True)
    model = load_model(name, dtype, settings.revision, settings.quantize)
    absolute = lambda place: str(Path(place).resolve()) if Path(place).exists() else place
    settings = replace(settings, model=absolute(name), data=absolute(settings.data),
                       learning_rate=settings.learning_rate or default_learning_rate(model),
                       max_length=min(settings.max_length, context_length(model)))
    print(f"learning rate: {settings.learning_rate:.2g} for a width of {model.config.hidden_size}")
    form = make_format(tokenizer, sorted(splits["train"].unique("label")), settings.max_length)
    classifier = Classifier(model, tokenizer, form, pass_tokens=settings.pass_tokens)
    check_scoring(classifier)
    return settings, splits, classifier

def check_space(folder: Path, trainable: int) -> None:
    """Raise InputError unless three checkpoints (weights and two states in float32) and the results will fit on the disk."""
    need, free = 40 * trainable + 50e6, shutil.disk_usage(folder).free
    if free < need:
        raise InputError(f"{folder} has {free / 1e6:,.0f} MB left and the run may need {need / 1e6:,.0f}: make room, or choose another --output-dir")


def fine_tune(untouched: Classifier, splits: DatasetDict, settings: Settings, folder: Path, resume: bool = False):
    """Wrap the model, train it, fit the temperature; returns the new classifier, the training log and the seconds."""
    tokenizer, start = untouched.tokenizer, time.perf_counter()
    examples = balance(splits["train"], settings.seed) if settings.balance else splits["train"]
    rows = training_rows(examples, tokenizer, untouched.form)
    print(f"{len(rows)} examples to train on\n\nthe first example:\n{tokenizer.decode(rows[0]['input_ids'])}\n")
    print("trained on:", [tokenizer.decode(i) for i in rows[0]["labels"] if i != -100])
    tuned = replace(untouched, model=add_adapter(untouched.model, settings.rank, settings.seed))
    trainable, total = tuned.model.get_nb_trainable_parameters()
    print(f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.2%})", flush=True)
    check_space(folder, trainable)
    log = train(tuned, rows, settings, folder, resume)
    tuned.temperature = fit_temperature(tuned.scores(splits["validation"]["text"]), splits["validation"]["label"][:], tuned.labels)
    return tuned, log, time.perf_counter() - start

def whole_run(settings: Settings, folder: Path, resume: bool) -> None:
    """Judge the baselines and the untouched model, train, judge again; print and keep the results."""
    settings, splits, untouched = prepare(settings)
    found, kept = audit(splits, untouched.tokenizer, untouched.form), folder / "audit.json"
    if resume and kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != found:
        raise InputError(f"{settings.data} is not what it was when the run began: restore it, or begin a new run")
    first = PartialState().is_main_process
    if first:
        write_json(kept, found)
        write_json(folder / "settings.json", asdict(settings))
    print("scoring what there is before training", flush=True)
    results = (judge_baselines(splits) if first else {}) | judge_untouched(splits, untouched)
    tuned, log, seconds = fine_tune(untouched, splits, settings, folder, resume)
    start = time.perf_counter()
    scores = tuned.scores(splits["test"]["text"])
    results["fine_tuned"] = [softmax(scores / tuned.temperature, axis=1)], seconds + time.perf_counter() - start
    if first:
        save_classifier(folder, tuned, settings)
        metrics = report(folder, splits["test"], tuned, scores, results, log)
        write_card(folder, settings, found, tuned.labels, metrics)
        write_json(folder / "metrics.json", metrics)  # last: it marks the run as finished
        print(f"\nkept in {folder}: adapter, tokenizer, classifier.json, settings.json, versions.json, audit.json, metrics.json, "
              "predictions.csv, pictures, README.md")
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)

def run(settings: Settings) -> None:
    """A new run, or one that was interrupted."""
    resume = settings.resume is not None
    if resume:
        folder = Path(settings.resume)
        settings = read_settings(folder, "--resume")
        if (folder / "metrics.json").exists():
            raise InputError(f"{folder} holds a finished run: there is nothing to resume")
    else:
        folder = make_run_folder(settings.output_dir)
    try:
        whole_run(settings, folder, resume)
    except (KeyboardInterrupt, SystemExit):
        print("\nstopped" + (f": to go on, main.py --resume {folder}" if (folder / "settings.json").exists() else ""), file=sys.stderr)
        raise
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
            raise InputError("out of memory: lower --pass-tokens, then --max-length and --rank; what was expected stands above") from error
        if shutil.disk_usage(folder).free < 2**20:
            raise InputError(f"the disk is full: make room, then main.py --resume {folder}") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only an empty one goes

def report(folder: Path, test: Dataset, tuned: Classifier, scores: np.ndarray, results: dict, log: list[dict[str, float]]) -> dict:
    """Print scoreboard, verdict, calibration and mistakes; write predictions.csv and the pictures; returns all figures."""
    texts, truth, labels = test["text"][:], test["label"][:], tuned.labels
    systems = {name: measure(truth, runs, labels, seconds) for name, (runs, seconds) in results.items()}
    after, raw = results["fine_tuned"][0][0], softmax(scores, axis=1)
    comparisons = {f"fine_tuned_vs_{other}": compare(truth, after, results[other][0][0], labels) for other in ("tfidf", "zero_shot")}
    untempered = {"ece": calibration_error(is_right(truth, raw, labels), raw.max(1)), "log_loss": float(log_loss(truth, raw, labels=labels))}
    sure, sentence = coverage(truth, after, labels), verdict(systems, comparisons)
    predicted = choose(after, labels)
    print(f"\n{scoreboard(systems)}\n\n{json.dumps(comparisons)}\n{sentence}\n")
    print(f"temperature {tuned.temperature:.2f}: calibration error {untempered['ece']:.3f} before, {systems['fine_tuned']['ece']:.3f} after\n")
    print(f"the surest part of the messages:\n{coverage_table(sure)}\n")
    print(classification_report(truth, predicted, labels=labels, digits=2, zero_division=0))
    print("mistakes the model was surest of:\n" + show_mistakes(texts, truth, predicted, after.max(1)))
    calibration = {"temperature": tuned.temperature} | {f"{name}_{when}": figures[name] for name in ("ece", "log_loss")
                                                        for when, figures in (("before", untempered), ("after", systems["fine_tuned"]))}
    table = {"text": texts, "label": truth, "predicted": predicted} | probability_columns(after, labels)
    Dataset.from_dict(table).to_csv(folder / "predictions.csv", index=False)
    draw_confusion(truth, predicted, labels, folder / "confusion-matrix.png")
    draw_reliability(truth, raw, after, labels, folder / "reliability.png")
    draw_loss(log, folder / "training-loss.png")
    return {"systems": systems, "comparisons": comparisons, "verdict": sentence, "calibration": calibration, "coverage": sure, "training_log": log}

CARD = """---
{yaml}
---
# {name}

A LoRA adapter for {base} that sorts texts into {count} classes: {labels}.

## Data

{data}; {rows}. Fingerprints and counts are in audit.json.

## Scores

On {n} test rows; *seconds* on the machine that trained. {verdict}

```
{scoreboard}
```

## Limits

It answers with one of its classes whatever the text is. The scores hold for texts like those of the test split and for nothing else. Its confidence was
set by one temperature on the validation split; see reliability.png.

## How to load

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, BitsAndBytesConfig

model = AutoPeftModelForCausalLM.from_pretrained("{name}", quantization_config={quantization})
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

A label's score is the log-probability of its tokens and the end token after the prompt. `main.py predict --run {name} --texts "..."`, with the
program that made this folder, computes it for all labels.
"""

def write_card(folder: Path, settings: Settings, found: dict[str, dict], labels: list[str], metrics: dict) -> None:
    """The run's README.md, a model card."""
    base, data = (Path(place).name if Path(place).exists() else place for place in (settings.model, settings.data))
    scores = [EvalResult(task_type="text-classification", dataset_type=data, dataset_name=data, dataset_split="test", metric_type=name,
                         metric_value=round(metrics["systems"]["fine_tuned"][name], 4)) for name in ("accuracy", "precision", "recall", "f1")]
    facts = ModelCardData(library_name="peft", pipeline_tag="text-classification", tags=["lora", "trl", "sft"], model_name=folder.name,
                          base_model=None if Path(settings.model).exists() else settings.model, eval_results=scores)
    card = CARD.format(yaml=facts.to_yaml(), name=folder.name, base=base, count=len(labels), labels=", ".join(labels), data=data,
                       rows=", ".join(f"{counts['rows']:,} for {name}" for name, counts in found.items()), n=metrics["systems"]["fine_tuned"]["n"],
                       verdict=metrics["verdict"], scoreboard=scoreboard(metrics["systems"]),
                       quantization='BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)' if settings.quantize else None)
    (folder / "README.md").write_text(card, encoding="utf-8")

def load_classifier(run_folder: str | Path) -> Classifier:
    """The fine-tuned classifier of a run, with its temperature. Raises InputError if the folder holds none."""
    from peft import PeftModel

    folder = Path(run_folder)
    settings = read_settings(folder, "--run")
    try:
        kept = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is not the folder of a finished run: check --run, or go on with main.py --resume {folder}") from error
    tokenizer = load_tokenizer(str(folder))
    base = load_model(settings.model, choose_precision()[0], settings.revision, settings.quantize)
    form = make_format(tokenizer, kept["labels"], settings.max_length)
    return Classifier(PeftModel.from_pretrained(base, folder), tokenizer, form, kept["temperature"], settings.pass_tokens)

def read_texts(data: str, text_column: str) -> list[str]:
    """The texts of a file, in its order; a missing one counts as empty."""
    if not Path(data).is_file():
        raise InputError(f"there is no file {data}: check --data")
    split = read_file(Path(data))
    require_column(split, text_column, "--text-column")
    return ["" if text is None else str(text) for text in split[text_column]]


def new_output(output: str) -> Path:
    """The path of a result that does not exist yet, in a folder that does."""
    path = Path(output)
    if path.exists() or not path.parent.is_dir():
        raise InputError(f"{path} {'exists already' if path.exists() else 'is in a folder that does not exist'}: name a new --output")
    return path


def predict(settings: PredictSettings) -> None:
    """Answer every text in its order: label, confidence, abstain, and a probability for each label."""
    output = new_output(settings.output) if settings.output else None
    texts = settings.texts or read_texts(settings.data, settings.text_column)
    classifier = load_classifier(settings.run)
    probabilities = classifier.predict_proba(texts)
    columns = probability_columns(probabilities, classifier.labels)
    table = Dataset.from_dict({"text": texts, "label": choose(probabilities, classifier.labels), "confidence": columns.pop("confidence"),
                               "abstain": (probabilities.max(1) < settings.threshold).tolist(), **columns})
    if output is None:
        for row in table:
            print(json.dumps(row, ensure_ascii=False))
    elif output.suffix == ".csv":
        table.to_csv(output, index=False)
    else:
        table.to_json(output, force_ascii=False)

def merge(settings: MergeSettings) -> None:
    """Write the merged model and say what merging changed, on up to 200 test rows of the run."""
    from peft import PeftModel

    output, folder = new_output(settings.output), Path(settings.run)
    run_settings = read_settings(folder, "--run")
    classifier = load_classifier(folder)
    test = read_file(folder / "predictions.csv")
    test = test.select(range(min(200, len(test))))
    before = classifier.predict_proba(test["text"])
    base = load_model(run_settings.model, torch.bfloat16, run_settings.revision, quantize=False)
    PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(output)
    classifier.tokenizer.save_pretrained(output)
    shutil.copy(folder / "classifier.json", output)
    after = replace(classifier, model=load_model(str(output), choose_precision()[0], quantize=False)).predict_proba(test["text"])
    flips = sum(a != b for a, b in zip(choose(before, classifier.labels), choose(after, classifier.labels)))
    print(f"merged into {output}, in bfloat16: on {len(test)} test rows the largest change of a probability is {np.abs(before - after).max():.4f}, "
          f"and {flips} predictions flip")

def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code: 0, or 1 for what the user can mend, 130 and 143 when it was stopped."""
    command = parse_command(sys.argv[1:] if argv is None else argv)
    if "LOCAL_RANK" not in os.environ:  # one process trains on one GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))  # the first process may be long at the baselines
    if not state.is_main_process:
        sys.stdout = open(os.devnull, "w")
    quieten_libraries()
    offline, terminate = constants.HF_HUB_OFFLINE, signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        {Settings: run, PredictSettings: predict, MergeSettings: merge}[type(command)](command)
    except InputError as error:
        print(f"main.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:  # leave a notebook's kernel as it was
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline
        signal.signal(signal.SIGTERM, terminate)
    return 0

if __name__ == "__main__":
    sys.exit(main())
