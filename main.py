#!/usr/bin/env python
# Generated from README.org: edit that file, then tangle it. Changes made here are lost.

import csv
import json
import logging
import os
import sys
import warnings
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import datasets
import matplotlib.figure
import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, classification_report, precision_recall_fscore_support
from sklearn.model_selection import train_test_split
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, HfArgumentParser

HERE = Path(globals().get("__file__", "main.py")).resolve().parent

class InputError(Exception):
    """Something the user gave cannot be used; the message names it and the mend."""

def option(default, help: str):
    """A field of Settings with the text that --help prints for it."""
    return field(default=default, metadata={"help": help})


@dataclass
class Settings:
    """Everything a run can be told."""

    model: str | None = option(None, "Hub id or folder of a causal language model. Default: what this machine can carry.")
    data: str = option(str(HERE / "data" / "patient-messages"),
                       "Hub id of a dataset, a csv, tsv, json, jsonl or parquet file, or a folder with train, validation and test files.")
    text_column: str = option("text", "Column with the texts.")
    label_column: str = option("label", "Column with the classes.")
    output_dir: str | None = option(None, "The run folder, new or empty. Default: outputs/ and the time of the start.")
    epochs: int = option(5, "How often training sees every example: fewer underfit a small set, more memorise it.")
    learning_rate: float | None = option(None, "Step size of the optimizer. Default: 0.5 / width of the model; wide models need small steps.")
    batch_size: int = option(8, "Examples an optimizer step. Lower it when memory runs out.")
    max_length: int = option(512, "Most tokens in prompt and label together. Longer texts are cut at their end.")
    rank: int = option(32, "Rank of the LoRA matrices: the adapter's capacity.")
    seed: int = option(42, "Fixes splits, initial adapter and order of the examples.")

def parse_settings(argv: list[str] | None) -> Settings:
    """Read the command line; unknown options and wrong types end the program with exit code 2."""
    parser = HfArgumentParser(Settings, description="Fine-tune a 4-bit Llama with LoRA to classify texts.")
    settings, unknown = parser.parse_args_into_dataclasses(args=sys.argv[1:] if argv is None else argv,
                                                           return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}; see --help")
    for name in ("epochs", "batch_size", "max_length", "rank"):
        if getattr(settings, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if settings.learning_rate is not None and settings.learning_rate <= 0:
        parser.error("--learning-rate must be above 0")
    return settings

def at_terminal() -> bool:
    """True where a progress bar can be drawn; Emacs opens a terminal too, but a dumb one."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def quieten_libraries() -> None:
    """Leave errors on, turn off the libraries' own bars and advice."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks transformers by its old name

SPLITS = ("train", "validation", "test")
READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def read_files(files: dict[str, Path], text_column: str, label_column: str) -> DatasetDict:
    """Read one file a split with the datasets library; all files have the same suffix."""
    suffix = next(iter(files.values())).suffix
    reader = READERS[suffix]
    as_written = {"keep_default_na": False, "sep": "\t" if suffix == ".tsv" else ",",
                  "converters": {text_column: str, label_column: str}} if reader == "csv" else {}
    try:
        return load_dataset(reader, data_files={split: str(path) for split, path in files.items()}, **as_written)
    except Exception as error:  # every reader wraps its failures in its own way
        cause = str(error.__cause__ or error).splitlines()[0]
        reason = "empty, a file without rows" if "corresponds to no data" in cause else cause
        raise InputError(f"cannot read {', '.join(str(path) for path in files.values())}: {reason}") from error

def find_data(data: str, text_column: str, label_column: str) -> DatasetDict:
    """A file, a folder of split files, or a dataset on the hub, with whatever splits it has."""
    path = Path(data)
    if path.is_dir():
        files = {split: file for split in SPLITS for file in sorted(path.glob(f"{split}.*")) if file.suffix in READERS}
        if "train" not in files:
            raise InputError(f"{data} has no train file: name one train.csv, train.tsv, train.json, train.jsonl or train.parquet")
        return read_files(files, text_column, label_column)
    if path.is_file():
        if path.suffix not in READERS:
            raise InputError(f"{data} is none of {', '.join(READERS)}: convert it, or mend its suffix")
        return read_files({"train": path}, text_column, label_column)
    try:
        return DatasetDict(load_dataset(data))
    except Exception as error:
        raise InputError(f"no file, folder or reachable hub dataset is called {data}: check --data") from error

def two_columns(split: Dataset, text_column: str, label_column: str) -> Dataset:
    """Keep the text and the label, as strings, under the names `text` and `label`."""
    for option_name, column in (("--text-column", text_column), ("--label-column", label_column)):
        if column not in split.column_names:
            raise InputError(f"no column {column!r}; there are {', '.join(split.column_names)}: choose with {option_name}")
    names = split.features[label_column]
    columns = {"text": split[text_column], "label": split[label_column]}
    if isinstance(names, ClassLabel):
        columns["label"] = [names.int2str(i) for i in columns["label"]]
    for row, (text, label) in enumerate(zip(*columns.values()), start=1):
        if text is None or label is None or not str(label).strip():
            raise InputError(f"row {row} has no {'text' if text is None else 'label'}: fill it in or remove the row")
    return Dataset.from_dict({name: [str(value) for value in values] for name, values in columns.items()})

def cut_off(split: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide a split in two, stratified by label; the second part holds `share` of the rows."""
    try:
        kept, cut = train_test_split(range(len(split)), test_size=share, stratify=split["label"], random_state=seed)
    except ValueError as error:
        raise InputError(f"the data cannot be split by class ({error}): add examples, or give validation and test files") from error
    return split.select(kept), split.select(cut)


def load_splits(data: str, text_column: str, label_column: str, seed: int) -> DatasetDict:
    """Train, validation and test splits with the string columns `text` and `label`."""
    found = find_data(data, text_column, label_column)
    splits = DatasetDict({name: two_columns(found[name], text_column, label_column) for name in SPLITS if name in found})
    if "train" not in splits or any(len(split) == 0 for split in splits.values()):
        raise InputError(f"{data} has an empty or missing split: every split needs rows")
    if len(set(splits["train"]["label"])) < 2:
        raise InputError(f"{data} has a single class in column {label_column!r}: there is nothing to tell apart")
    if "test" not in splits:
        splits["train"], splits["test"] = cut_off(splits["train"], 0.2, seed)
    if "validation" not in splits:
        splits["train"], splits["validation"] = cut_off(splits["train"], 0.1, seed)
    unknown = sorted(set(splits["test"]["label"]) - set(splits["train"]["label"]))
    if unknown:
        raise InputError(f"the test split has labels that training never sees: {', '.join(unknown)}")
    return splits

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
        return torch.float32, "a processor has no faster format that is as exact"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "this GPU computes bfloat16 natively"
    return torch.float16, "this GPU only emulates bfloat16"

PLAIN_TEMPLATE = ("{{ bos_token }}{% for message in messages %}{{ message['role'] }}:\n\n{{ message['content'] }}{{ eos_token }}\n"
                  "{% endfor %}{% if add_generation_prompt %}assistant:\n\n{% endif %}")


def load_tokenizer(name: str) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer, with a chat template and a padding token where it brings none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"no folder or reachable hub model is called {name}: check --model") from error
    tokenizer.chat_template = tokenizer.chat_template or PLAIN_TEMPLATE
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer

def load_model(name: str, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """The model with its linear layers in 4 bits, computing in `dtype`, on the GPU if there is one."""
    import bitsandbytes  # slow to import and chatty: only where it is needed, like peft and trl below

    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                   bnb_4bit_compute_dtype=dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(name, quantization_config=four_bits, dtype=dtype, device_map={"": device})
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load {name} as a causal language model: {str(error).splitlines()[0]}") from error
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model.eval()

@dataclass
class PromptFormat:
    """Token ids around a text, and of each label's completion, end token included."""

    before: list[int]
    after: list[int]
    completions: dict[str, list[int]]
    text_room: int  # tokens left for the text


def make_format(tokenizer, labels: list[str], max_length: int) -> PromptFormat:
    """Render the chat template once. Llama 3.2 writes today's date into it unless told one."""
    ask = f"Classify the text as one of: {', '.join(labels)}." if len(labels) <= 20 else "Classify the text."
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": ask + "\n\nTEXT-GOES-HERE"}], tokenize=False,
                                             add_generation_prompt=True, date_string="26 Jul 2024")
    before, after = (tokenizer.encode(part, add_special_tokens=False) for part in rendered.split("TEXT-GOES-HERE"))
    completions = {label: tokenizer.encode(label, add_special_tokens=False, split_special_tokens=True) + [tokenizer.eos_token_id]
                   for label in labels}
    text_room = max_length - len(before) - len(after) - max(map(len, completions.values()))
    if text_room < 8:
        raise InputError(f"--max-length {max_length} leaves {text_room} tokens for the text: raise it")
    return PromptFormat(before, after, completions, text_room)

def encode_prompts(tokenizer, texts: list[str], form: PromptFormat) -> tuple[list[list[int]], int]:
    """The prompts' token ids, and how many texts had to be shortened."""
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    prompts = [form.before + ids[:form.text_room] + form.after for ids in encoded]
    return prompts, sum(len(ids) > form.text_room for ids in encoded)


def training_rows(prompts: list[list[int]], labels: list[str], form: PromptFormat) -> Dataset:
    """What SFTTrainer takes: token ids, and a mask that is 1 where the loss is computed: on the completion only."""
    return Dataset.from_list([
        {"input_ids": prompt + form.completions[label],
         "completion_mask": [0] * len(prompt) + [1] * len(form.completions[label])}
        for prompt, label in zip(prompts, labels)])

def lay_out(prompts: list[list[int]], completions: list[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """One row a prompt: [padding | prompt | label 1 | label 2 | ...], with positions and a (rows, 1, L, L) mask."""
    width = max(map(len, prompts))
    tail = [token for completion in completions for token in completion]
    owner = torch.tensor([0] * width + [i for i, completion in enumerate(completions, 1) for _ in completion])
    steps = torch.tensor([step for completion in completions for step in range(len(completion))])
    ids = torch.tensor([[pad_id] * (width - len(p)) + p + tail for p in prompts])
    lengths = torch.tensor([len(p) for p in prompts])[:, None]
    positions = torch.cat([(torch.arange(width) - (width - lengths)).clamp(min=0), lengths + steps], dim=1)
    order = torch.arange(len(owner))
    causal = order[:, None] >= order
    same_label = (owner == 0) | (owner[:, None] == owner)
    real = order >= width - lengths
    itself = torch.eye(len(owner), dtype=torch.bool)  # padding looks at itself: a row of nothing would be NaN
    mask = (causal & same_label & real[:, None, :]) | itself
    return {"input_ids": ids, "position_ids": positions, "attention_mask": mask[:, None]}

@torch.no_grad()
def score_batch(model, prompts: list[list[int]], completions: list[list[int]], pad_id: int) -> torch.Tensor:
    """Log-probability of each completion after each prompt: (prompts, completions), float32."""
    batch = {name: tensor.to(model.device) for name, tensor in lay_out(prompts, completions, pad_id).items()}
    hidden = model.get_decoder()(**batch, use_cache=False).last_hidden_state
    prompt_end = hidden.shape[1] - sum(map(len, completions)) - 1
    sources, start = [], prompt_end + 1
    for completion in completions:  # a label's first token is predicted by the prompt's last, the others by the one before
        sources += [prompt_end, *range(start, start + len(completion) - 1)]
        start += len(completion)
    log_probs = model.get_output_embeddings()(hidden[:, sources]).float().log_softmax(-1)
    targets = batch["input_ids"][:, prompt_end + 1:, None]
    return torch.stack([part.sum(1) for part in
                        log_probs.gather(-1, targets)[..., 0].split(list(map(len, completions)), dim=1)], dim=1).cpu()

def score_labels(model, prompts: list[list[int]], form: PromptFormat, pad_id: int, batch_size: int = 16) -> np.ndarray:
    """Log-probability of every label for every prompt, (prompts, labels); prompts of like length share a batch."""
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    scores = np.zeros((len(prompts), len(form.completions)), np.float32)
    for start in tqdm(range(0, len(order), batch_size), desc="scoring", disable=not at_terminal()):
        rows = order[start:start + batch_size]
        scores[rows] = score_batch(model, [prompts[i] for i in rows], list(form.completions.values()), pad_id).numpy()
    return scores


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax over the labels: (rows, labels), each row sums to 1."""
    return torch.from_numpy(scores).softmax(-1).numpy()

def measure(truth: list[str], predicted: list[str], labels: list[str]) -> dict[str, float]:
    """Accuracy and macro precision, recall and F1, as shares of 1, and the number of rows."""
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, labels=labels, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, predicted)), "precision": float(precision), "recall": float(recall),
            "f1": float(f1), "n": len(truth)}


def table(columns: dict[str, dict[str, float]]) -> str:
    """The measures as text, one line a system."""
    names = ["accuracy", "precision", "recall", "f1", "n"]
    lines = [f"{'':8}" + "".join(f"{name:>11}" for name in names)]
    for system, figures in columns.items():
        lines.append(f"{system:8}" + "".join(f"{figures[name]:>11.3f}" for name in names[:-1]) + f"{figures['n']:>11}")
    return "\n".join(lines)

def add_adapter(model, rank: int, seed: int):
    """The model wrapped with a LoRA adapter on every linear layer but the output head."""
    from peft import LoraConfig, get_peft_model

    transformers.set_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)

def default_learning_rate(model) -> float:
    """0.5 / hidden size: 2e-3 for the tiny Llama, 2.4e-4 for one with a width of 2048."""
    return 0.5 / model.config.hidden_size


def training_settings(settings: Settings, learning_rate: float, dtype: torch.dtype, folder: Path):
    """The run's settings in the words of trl: an SFTConfig."""
    from trl import SFTConfig

    return SFTConfig(
        completion_only_loss=True,  # must be said: rows that come as token ids are otherwise trained on whole
        output_dir=str(folder), num_train_epochs=settings.epochs, per_device_train_batch_size=settings.batch_size,
        learning_rate=learning_rate, lr_scheduler_type="linear", warmup_steps=10, max_length=settings.max_length,
        train_sampling_strategy="group_by_length",  # rows of like length share a batch: less padding
        activation_checkpointing=torch.cuda.is_available(),  # trades time for memory; a small model needs none
        use_cpu=not torch.cuda.is_available(), bf16=dtype == torch.bfloat16, fp16=dtype == torch.float16,
        logging_steps=10, logging_nan_inf_filter=False, save_strategy="no", report_to="none", seed=settings.seed,
        disable_tqdm=not at_terminal())

def train(model, tokenizer, rows: Dataset, config) -> list[dict[str, float]]:
    """Train the adapter in place as an SFTConfig says; returns the log: step, loss, learning rate."""
    from trl import SFTTrainer

    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return trainer.state.log_history

def draw_confusion(truth: list[str], predicted: list[str], labels: list[str], path: Path) -> str:
    """Write the confusion matrix as a picture; returns its path."""
    size = max(6.0, 0.45 * len(labels))
    figure = matplotlib.figure.Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay.from_predictions(truth, predicted, labels=labels, xticks_rotation="vertical", cmap="Blues",
                                            include_values=len(labels) <= 20, colorbar=False, ax=axes)
    figure.savefig(path, dpi=120)
    return str(path)

def show_mistakes(texts: list[str], truth: list[str], predicted: list[str], confidence: np.ndarray, count: int = 5) -> str:
    """The mistakes that the model was surest of, in words."""
    wrong = [i for i in np.argsort(-confidence) if truth[i] != predicted[i]][:count]
    return "\n".join(f"{truth[i]} -> {predicted[i]} ({confidence[i]:.2f}): {texts[i][:300]}" for i in wrong)

def make_run_folder(asked: str | None) -> Path:
    """A new or empty folder: results are never overwritten."""
    folder = Path(asked) if asked else HERE / "outputs" / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder} holds the results of another run: choose a new --output-dir")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    return folder

def write_json(path: Path, content) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_predictions(path: Path, texts: list[str], truth: list[str], predicted: list[str], confidence: np.ndarray) -> None:
    """One row a test text: text, label, predicted, confidence."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "predicted", "confidence"])
        writer.writerows(zip(texts, truth, predicted, (f"{value:.6f}" for value in confidence)))


def write_settings(folder: Path, settings: Settings, labels: list[str]) -> None:
    """What is needed to repeat the run and to read its predictions."""
    write_json(folder / "settings.json", asdict(settings))
    write_json(folder / "labels.json", labels)
    packages = ["torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "scikit-learn"]
    write_json(folder / "versions.json", {"python": sys.version.split()[0], **{name: version(name) for name in packages}})

def prepare(settings: Settings):
    """Load data, tokenizer and model, and say what was chosen and why."""
    splits = load_splits(settings.data, settings.text_column, settings.label_column, settings.seed)
    labels = sorted(set(splits["train"]["label"]))
    print("data:", {name: len(split) for name, split in splits.items()}, "in", len(labels), "classes")
    settings.model, reason = choose_model(settings.model)
    dtype, why = choose_precision()
    print(f"model: {settings.model}, because {reason}")
    print(f"precision: 4-bit weights, {dtype} arithmetic, because {why}")
    tokenizer, model = load_tokenizer(settings.model), load_model(settings.model, dtype)
    settings.learning_rate = settings.learning_rate or default_learning_rate(model)
    print(f"learning rate: {settings.learning_rate:.2g} for a width of {model.config.hidden_size}")
    return splits, labels, tokenizer, model, dtype

def run(settings: Settings) -> None:
    """Score, train, score again; print and keep the results."""
    folder = make_run_folder(settings.output_dir)
    splits, labels, tokenizer, model, dtype = prepare(settings)
    form = make_format(tokenizer, labels, settings.max_length)
    prompts, shortened = encode_prompts(tokenizer, splits["train"]["text"], form)
    test_prompts, shortened_test = encode_prompts(tokenizer, splits["test"]["text"], form)
    rows = training_rows(prompts, splits["train"]["label"], form)
    print(f"shortened to fit: {shortened} training and {shortened_test} test texts\n\nthe first example:\n{tokenizer.decode(rows[0]['input_ids'])}\n")
    print("trained on:", [tokenizer.decode(i) for i, m in zip(rows[0]["input_ids"], rows[0]["completion_mask"]) if m])

    truth = list(splits["test"]["label"])
    before = probabilities(score_labels(model, test_prompts, form, tokenizer.pad_token_id))
    model = add_adapter(model, settings.rank, settings.seed)
    trainable, total = model.get_nb_trainable_parameters()
    print(f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.2%})", flush=True)
    log = train(model, tokenizer, rows, training_settings(settings, settings.learning_rate, dtype, folder))
    after = probabilities(score_labels(model, test_prompts, form, tokenizer.pad_token_id))

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_settings(folder, settings, labels)
    report(folder, splits["test"]["text"], truth, labels, before, after, log)

def report(folder: Path, texts: list[str], truth: list[str], labels: list[str], before: np.ndarray, after: np.ndarray,
           log: list[dict[str, float]]) -> None:
    """Print the comparison and write metrics.json, predictions.csv and the picture."""
    predicted = [labels[i] for i in after.argmax(1)]
    figures = {"before": measure(truth, [labels[i] for i in before.argmax(1)], labels), "after": measure(truth, predicted, labels)}
    print("\n" + table(figures) + "\n")
    print(classification_report(truth, predicted, labels=labels, digits=2, zero_division=0))
    print("mistakes the model was surest of:\n" + show_mistakes(texts, truth, predicted, after.max(1)))
    write_json(folder / "metrics.json", {**figures, "training_log": log})
    write_predictions(folder / "predictions.csv", texts, truth, predicted, after.max(1))
    draw_confusion(truth, predicted, labels, folder / "confusion-matrix.png")
    print(f"\nkept in {folder}: adapter, tokenizer, settings, labels, versions, metrics.json, predictions.csv, confusion-matrix.png")

def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    settings = parse_settings(argv)
    quieten_libraries()
    try:
        run(settings)
    except InputError as error:
        print(f"main.py: error: {error}", file=sys.stderr)
        return 1
    return 0

if __name__ == "__main__":
    sys.exit(main())
