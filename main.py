#!/usr/bin/env python
# Generated from README.org: edit that file, then tangle it. Changes made here are lost.

import sys

from settings import HERE, MergeSettings, PredictSettings, Settings, parse_command

if __name__ == "__main__":
    parse_command(sys.argv[1:])  # mistakes and --help do not wait for the libraries below

import contextlib
import logging
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a kernel it can do without
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # and this of a home it cannot write to
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # trl would report each trainer to its makers

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict
from scipy.special import softmax

from audit import audit_split, balance, print_audit
from baselines import context_length, judge_base_model, judge_baselines
from card import write_card
from edge import (ShowProgress, borrowed_process, check_stored, explain, is_out_of_memory, loading,
                  progress, quieten_libraries)
from judging import fit_temperature, likeliest
from keeping import (BEST, KeepBest, MarkComplete, alone_in, check_resumed, check_same,
                     check_space, find_again, forget_run_folder, identify, identify_prompt,
                     make_run_folder, new_output, newest_checkpoint, read_adapter, read_classifier,
                     read_settings, read_tested, save_classifier, write_json, write_table)
from llama import add_adapter, load_model, score_alone
from memory import HEAD_PIECE, choose_checkpointing, expect_memory
from prompts import Prompt, check_prompt, default_instruction, load_tokenizer, make_prompt
from reading import InputError, load_splits, read_table
from reporting import (best_epoch, compute_report, print_report, probability_columns, scoreboard,
                       write_report)

def grow_forest(paths: list[list[int]]) -> tuple[list[int], list[int], list[list[int]]]:
    """A forest in which paths that begin alike share nodes.

    Returns each node's token and parent (-1: none; parents come first), and each path's nodes.
    """
    tokens, parents, nodes, known = [], [], [], {}
    for path in paths:
        nodes.append([])
        node = -1
        for token in path:
            if (node, token) not in known:
                known[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = known[node, token]
            nodes[-1].append(node)
    return tokens, parents, nodes

def see_ancestors(parents: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth (L,) of each node, and a mask (L, L): a row sees its ancestors' columns and its own."""
    visible, depth = np.eye(len(parents), dtype=bool), np.zeros(len(parents), dtype=int)
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] |= visible[parent]
            depth[node] = depth[parent] + 1
    return torch.from_numpy(depth), torch.from_numpy(visible)

def lay_out(prompts: list[list[int]], completions: list[list[int]],
            trunk: int = 0) -> dict[str, torch.Tensor]:
    """Prompts, each followed by its completion, as one sequence of L tokens after a cached trunk.

    Returns input_ids and position_ids (1, L), attention_mask (1, 1, L, trunk + L), and for the W
    tokens of all completions, one after another, where each is predicted (sources) and which it
    is (labels, as Trainer calls them).
    """
    paths = [p + c[:-1] for p, c in zip(prompts, completions)]  # nothing follows the last token
    tokens, parents, nodes = grow_forest(paths)
    depth, visible = see_ancestors(parents)
    mask = torch.cat([visible.new_ones(len(tokens), trunk), visible], dim=1)
    sources = [node for path, p in zip(nodes, prompts) for node in path[len(p) - 1:]]
    return {"input_ids": torch.tensor([tokens]), "position_ids": trunk + depth[None],
            "attention_mask": mask[None, None], "sources": torch.tensor(sources),
            "labels": torch.tensor([token for c in completions for token in c])}

def run_decoder(model, **inputs):
    """All layers but the head, in the number format of the weights, adapter included."""
    dtype = model.get_output_embeddings().weight.dtype
    half = dtype != torch.float32
    with torch.autocast(model.device.type, dtype) if half else contextlib.nullcontext():
        return model.get_decoder()(**inputs)

def pick_log_probs(hidden: torch.Tensor, targets: torch.Tensor, head: torch.Tensor,
                   sources: torch.Tensor) -> torch.Tensor:
    """Log-probability (W,) of each target after the hidden state (L, width) of its source.

    In float32 from the product with the head (vocabulary, width) on, a piece of it at a time.
    """
    where, back = sources.unique(return_inverse=True)
    states = hidden[where].float()
    with torch.autocast(hidden.device.type, enabled=False):
        sums = [(states @ piece.float().T).logsumexp(-1) for piece in head.split(HEAD_PIECE)]
        wanted = (states[back] * head[targets].float()).sum(-1)
    return wanted - torch.stack(sums).logsumexp(0)[back]

def token_log_probs(model, input_ids, position_ids, attention_mask, sources, labels,
                    cache=None) -> torch.Tensor:
    """Log-probability of each wanted token of a layout (`lay_out`): (W,), float32."""
    hidden = run_decoder(model, input_ids=input_ids, position_ids=position_ids,
                         attention_mask=attention_mask, past_key_values=cache,
                         use_cache=cache is not None).last_hidden_state[0]
    return pick_log_probs(hidden, labels, model.get_output_embeddings().weight, sources)

def in_groups(sizes: list[int], room: int) -> list[list[int]]:
    """Indices of consecutive items whose sizes sum to at most `room`; a larger one goes alone."""
    groups, used = [], room + 1
    for index, size in enumerate(sizes):
        if used + size > room:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += size
    return groups

def group_labels(completions: list[list[int]], room: int) -> list[tuple[list[int], int]]:
    """Indices of labels whose tree has at most `room` tokens, and that number, for each group."""
    order = sorted(range(len(completions)), key=lambda i: completions[i])  # alike stand together
    shared = [len(os.path.commonprefix([completions[a], completions[b]]))
              for a, b in zip(order, order[1:])]
    sizes = [len(completions[i]) - same for i, same in zip(order, [0, *shared])]
    return [([order[i] for i in group], sum(sizes[i] for i in group))
            for group in in_groups(sizes, room)]

@torch.no_grad()
def score_labels(model, encoded: list[list[int]], prompt: Prompt, pass_tokens: int) -> np.ndarray:
    """Log-probability (texts, labels) of every label after every encoded text."""
    model.eval()
    trunk = torch.tensor([prompt.before], device=model.device)
    cache = run_decoder(model, input_ids=trunk, past_key_values=transformers.DynamicCache(),
                        use_cache=True).past_key_values
    completions = list(prompt.completions.values())
    scores = np.zeros((len(encoded), len(completions)))
    groups = group_labels(completions, pass_tokens - max(map(len, encoded), default=0))
    parts = [(text, group, size) for text in range(len(encoded)) for group, size in groups]
    bar = progress(len(encoded), "scoring")
    for batch in in_groups([len(encoded[text]) + size for text, _, size in parts], pass_tokens):
        pairs = [(text, label) for i in batch for text, group, _ in [parts[i]] for label in group]
        layout = lay_out([encoded[text] for text, _ in pairs],
                         [completions[label] for _, label in pairs], len(prompt.before))
        layout = {name: tensor.to(model.device) for name, tensor in layout.items()}
        log_probs = token_log_probs(model, **layout, cache=cache).cpu()
        cache.crop(-layout["input_ids"].shape[1])  # the trunk stays for the next pass
        sums = [part.sum() for part in log_probs.split([len(completions[i]) for _, i in pairs])]
        scores[tuple(zip(*pairs))] = sums
        bar.update(parts[batch[-1]][0] + 1 - bar.n)
    bar.close()
    return scores

def default_pass_tokens() -> int:
    """Attention in one sequence grows with its square: short ones suit a CPU, long ones a GPU."""
    return 4096 if torch.cuda.is_available() else 512

@dataclass
class Classifier:
    """A causal language model that answers with one of its labels."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    prompt: Prompt
    temperature: float = 1.0
    pass_tokens: int = default_pass_tokens()
    base: str | None = None  # a digest of the base model's files, where it is known

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the columns of `predict_proba`."""
        return list(self.prompt.completions)

    def scores(self, texts: list[str]) -> np.ndarray:
        """Log-probability of every label for every text, (texts, labels)."""
        if isinstance(texts, str):
            raise TypeError("give a list of texts, not one text")
        state, blocks = PartialState(), []
        for start in range(0, max(1, len(texts)), 10_000):  # token ids take more room than texts
            block = texts[start:start + 10_000]
            mine = self.prompt.encode(self.tokenizer,
                                      block[state.process_index::state.num_processes])
            found = score_labels(self.model, mine, self.prompt, self.pass_tokens)
            blocks.append(np.empty((len(block), len(self.labels))))
            for process, scores in enumerate(gather_object([found])):  # processes share the work
                blocks[-1][process::state.num_processes] = scores
        return np.concatenate(blocks)

    def predict_proba(self, texts: list[str]) -> np.ndarray:
        """Probability of every label for every text, (texts, labels); rows sum to 1."""
        return softmax(self.scores(texts) / self.temperature, axis=1)

    def predict(self, texts: list[str]) -> list[str]:
        """The likeliest label of every text."""
        return likeliest(self.predict_proba(texts), self.labels)

@torch.no_grad()
def check_scoring(classifier: Classifier) -> None:
    """Raise ValueError unless labels score together what up to eight of them score alone.

    Not every architecture takes such a mask. Wrong scores are off by whole nats; rounding in half
    precision by a tenth.
    """
    prompt, model = classifier.prompt, classifier.model
    texts = prompt.encode(classifier.tokenizer, ["a", "a text that is longer than the other one"])
    some = np.linspace(0, len(prompt.completions) - 1, min(8, len(prompt.completions))).astype(int)
    completions = list(prompt.completions.values())
    alone = np.array([[score_alone(model, prompt.before + ids, completions[i]) for i in some]
                      for ids in texts])
    together = score_labels(model, texts, prompt, classifier.pass_tokens)[:, some]
    limit = 0.02 if model.dtype == torch.float32 else 0.5
    if not np.abs(alone - together).max() < limit:
        raise ValueError(f"a {model.config.model_type} model cannot score labels in one pass")

def training_rows(split: Dataset, tokenizer, prompt: Prompt) -> Dataset:
    """Token ids of each row's `prompt` and `completion`; only the completion is learnt."""
    def rows(batch):
        encoded = prompt.encode(tokenizer, batch["text"])
        return {"prompt": [prompt.before + ids for ids in encoded],
                "completion": [prompt.completions[label] for label in batch["label"]]}

    return split.map(rows, batched=True, remove_columns=split.column_names)


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch of training rows as one sequence; what all prompts share is its trunk by itself."""
    return lay_out([row["prompt"] for row in rows], [row["completion"] for row in rows])

def default_learning_rate(model) -> float:
    """0.5 / width: wide models need small steps."""
    return 0.5 / model.config.get_text_config().hidden_size


MOST_EPOCHS = 12


def default_epochs(labels: list[str]) -> int:
    """So many that each class is seen about a hundred times; `labels` are the training rows'."""
    return max(1, min(MOST_EPOCHS, round(100 * len(set(labels)) / len(labels))))

def careful_trainer(learning_rate: float, **arguments):
    """An SFTTrainer whose loss is the scorer's, and which stops when gradients overflow."""
    from trl import SFTTrainer

    class CarefulTrainer(SFTTrainer):
        overflows = 0

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            share = num_items_in_batch / self.accelerator.num_processes  # gradients are averaged
            return -model(**inputs).sum() / share

        def _clip_grad_norm(self, model):
            norm = super()._clip_grad_norm(model)
            self.overflows = 0 if norm.isfinite() else self.overflows + 1
            if self.overflows > (20 if self.accelerator.scaler else 0):  # float16 skips such steps
                raise FloatingPointError(
                    f"step {self.state.global_step + 1}: the gradient is infinite or not a number, "
                    f"and nothing was changed by it: lower --learning-rate ({learning_rate:.2g})")
            return norm

    trainer = CarefulTrainer(**arguments)
    trainer.model_accepts_loss_kwargs = True  # count the batch's labels, all of its passes
    trainer._loss_shifts_labels = False  # ours are aligned with their sources
    return trainer

def rows_in_a_pass(batch_size: int, longest: int, pass_tokens: int) -> int:
    """Rows that one process takes in a pass, an even part of its share of the batch."""
    mine = batch_size // PartialState().num_processes
    return max(rows for rows in range(1, mine + 1)
               if mine % rows == 0 and (rows * longest <= pass_tokens or rows == 1))


def training_settings(settings: Settings, folder: Path, rows: int, checkpointing: bool = False):
    """The run's settings in the words of trl: an SFTConfig that takes `rows` rows in a pass."""
    from trl import SFTConfig

    dtype, _ = choose_precision()
    config = SFTConfig(
        output_dir=str(folder), num_train_epochs=settings.epochs,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=settings.batch_size // (rows * PartialState().num_processes),
        learning_rate=settings.learning_rate, lr_scheduler_type="linear",
        warmup_steps=0.02,  # below 1 it is a share of all steps
        activation_checkpointing=checkpointing, remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # the rows are token ids already
        use_cpu=not torch.cuda.is_available(), bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16, logging_steps=0.02, logging_nan_inf_filter=False,
        report_to="none", seed=settings.seed, disable_tqdm=True,
        save_steps=settings.checkpoint_steps, save_total_limit=2,
        ddp_find_unused_parameters=False)
    config._n_gpu = 1  # one process trains on one GPU, however many there are
    return config

def train(classifier: Classifier, rows: Dataset, validation: Dataset, settings: Settings,
          folder: Path, resume: bool = False, checkpointing: bool = False) -> list[dict]:
    """Train the classifier's adapter in place on training_rows; returns the log.

    The adapter of the epoch with the least validation log-loss is the one that stays.
    """
    model, shared = classifier.model, len(classifier.prompt.before)
    longest = max(len(prompt) + len(completion) for batch in rows.iter(1000)
                  for prompt, completion in zip(batch["prompt"], batch["completion"])) - shared
    size = rows_in_a_pass(settings.batch_size, longest, classifier.pass_tokens)
    best = KeepBest(classifier, validation, folder)
    trainer = careful_trainer(
        settings.learning_rate, model=model, train_dataset=rows, data_collator=collate,
        args=training_settings(settings, folder, size, checkpointing),
        processing_class=classifier.tokenizer, callbacks=[best, ShowProgress(), MarkComplete()])
    trainer.remove_callback(transformers.PrinterCallback)
    for parameter in model.parameters():
        if parameter.requires_grad:  # trl's bfloat16 is too coarse for small steps
            parameter.data = parameter.data.float()
    model.forward = lambda **layout: token_log_probs(model, **layout)  # what the trainer calls
    checkpoint = newest_checkpoint(folder) if resume else None
    if resume:
        start = checkpoint or "the beginning: no checkpoint is complete"
        print(f"resuming from {start}", flush=True)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    del model.forward
    read_adapter(best.path, model)
    return [{name: value for name, value in entry.items() if name != "grad_norm"}
            for entry in trainer.state.log_history]

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

def prepare(settings: Settings) -> tuple[Settings, DatasetDict, Classifier]:
    """Load data, tokenizer and model, and say what was chosen and why.

    Returns the settings with the choices filled in, the splits, and the base model's classifier.
    """
    splits = load_splits(settings.data, settings.text_column, settings.label_column,
                         settings.data_config, settings.data_revision, settings.seed)
    labels = sorted(splits["train"].unique("label"))
    absolute = lambda place: str(Path(place).resolve()) if Path(place).exists() else place
    name, reason = choose_model(settings.model)
    settings = replace(settings, model=absolute(name), data=absolute(settings.data))
    dtype, why = choose_precision()
    print(f"model: {settings.model}, because {reason}")
    print(f"precision: {'4-bit' if settings.quantize else 'plain'} weights, {dtype} arithmetic, "
          f"because {why}", flush=True)
    model, settings, digest = load_base(settings)
    rows = splits["train"]["label"][:]
    settings = replace(
        settings, instruction=settings.instruction or default_instruction(labels),
        epochs=settings.epochs or default_epochs(rows),
        learning_rate=settings.learning_rate or default_learning_rate(model),
        pass_tokens=settings.pass_tokens or default_pass_tokens(),
        max_length=min(settings.max_length, context_length(model)))
    print(f"epochs: {settings.epochs}, because training has {len(rows) / len(labels):,.0f} rows "
          f"per class")
    print(f"learning rate: {settings.learning_rate:.2g}, because the model is "
          f"{model.config.get_text_config().hidden_size} wide")
    with loading("model", settings.model, settings.revision):
        tokenizer = load_tokenizer(settings.model, settings.revision or "main")
        prompt = make_prompt(tokenizer, labels, settings.instruction, settings.max_length)
    check_prompt(prompt, settings)
    classifier = Classifier(model, tokenizer, prompt, 1.0, settings.pass_tokens, digest)
    try:
        check_scoring(classifier)
    except Exception as error:  # not an architecture for our mask
        if is_out_of_memory(error) or "CUDA" in str(error):
            raise
        raise InputError(f"{error}: choose a Llama, or one built like it, for --model") from error
    return settings, splits, classifier

def fine_tune(base: Classifier, splits: DatasetDict, settings: Settings, folder: Path,
              resume: bool = False) -> tuple[Classifier, list[dict], float]:
    """Wrap the model, train it, fit the temperature; returns classifier, log and seconds."""
    start, tokenizer = time.perf_counter(), base.tokenizer
    examples = balance(splits["train"], settings.seed) if settings.balance else splits["train"]
    rows = training_rows(examples, tokenizer, base.prompt)
    print(f"{len(rows):,} rows to train on\n\nthe first prompt:\n"
          f"{tokenizer.decode(rows[0]['prompt'])}\n")
    print("its completion:", [tokenizer.decode(token) for token in rows[0]["completion"]])
    config, number = base.model.config, choose_precision()[0].itemsize
    checkpointing = choose_checkpointing(expect_memory(config, settings, number, False))
    expected = expect_memory(config, settings, number, checkpointing)
    print(f"memory to train: about {expected / 1e9:.2f} GB beside the libraries' own"
          + (", activations computed again" if checkpointing else ""))
    tuned = replace(base, model=add_adapter(base.model, settings.rank, settings.seed))
    trainable, total = tuned.model.get_nb_trainable_parameters()
    print(f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.1%})", flush=True)
    check_space(folder, trainable)
    log = train(tuned, rows, splits["validation"], settings, folder, resume, checkpointing)
    best = best_epoch(log)
    print(f"kept: the adapter after epoch {best['epoch']:.0f} of {settings.epochs}, with the least "
          f"validation log-loss ({best['validation_loss']:.3f})", flush=True)
    scores = tuned.scores(splits["validation"]["text"][:])
    tuned.temperature = fit_temperature(scores, splits["validation"]["label"][:], tuned.labels)
    return tuned, log, time.perf_counter() - start

def do_run(settings: Settings, folder: Path, resume: bool) -> None:
    """Judge the baselines and the base model, train, judge again; print and keep the results."""
    settings, splits, base = prepare(settings)
    counts = {name: audit_split(split, base.tokenizer, base.prompt)
              for name, split in splits.items()}
    print_audit(counts)
    began = {"base": base.base, "prompt": identify_prompt(base.prompt), **counts}
    if resume:
        check_resumed(folder, settings, began)
    first = PartialState().is_main_process
    if first:
        write_json(folder / "settings.json", asdict(settings))
        write_json(folder / "audit.json", began)
    print("scoring before training", flush=True)
    results = judge_baselines(splits) if first else {}
    results |= judge_base_model(splits, base, settings.instruction)
    tuned, log, seconds = fine_tune(base, splits, settings, folder, resume)
    start = time.perf_counter()
    scores = tuned.scores(splits["test"]["text"][:])
    seconds += time.perf_counter() - start
    probabilities, test = softmax(scores / tuned.temperature, axis=1), splits["test"]
    results["fine_tuned"] = [probabilities], seconds
    if torch.cuda.is_available():
        print(f"most memory allocated: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
    if first:
        save_classifier(folder, tuned, settings)
        metrics = compute_report(test["label"][:], tuned.labels, scores, tuned.temperature,
                                 results, log)
        print_report(metrics, test, tuned.labels, probabilities)
        write_report(folder, test, tuned.labels, scores, probabilities, log)
        write_card(folder, settings, counts, tuned.labels, metrics,
                   scoreboard(metrics["systems"]))
        write_json(folder / "metrics.json", metrics)  # last: it marks the run as finished
        print(f"\nkept in {folder}: the adapter and tokenizer, README.md, predictions.csv, "
              "pictures, and what was measured")
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        (folder / BEST).unlink()

def run(settings: Settings) -> None:
    """A new run, or one that was interrupted."""
    resume = settings.resume is not None
    if resume:
        folder, data = Path(settings.resume), settings.data
        settings = find_again(read_settings(folder, "--resume"), settings.model,
                              data if data != Settings.data else None)
    else:
        folder = make_run_folder(settings.output_dir)
    began = lambda: (folder / "audit.json").exists()
    try:
        with alone_in(folder):
            if (folder / "metrics.json").exists():
                raise InputError(f"{folder} holds a finished run: there is nothing to resume")
            do_run(settings, folder, resume)
    except BaseException as error:
        if began() and isinstance(error, (KeyboardInterrupt, SystemExit, BrokenPipeError)):
            print(f"\nstopped: to continue, main.py --resume {folder}", file=sys.stderr)
        if line := explain(error, folder):
            raise InputError(line) from error
        raise
    finally:
        if not resume and not began():
            forget_run_folder(folder)

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
    return Classifier(tuned, tokenizer, prompt, kept["temperature"], settings.pass_tokens, digest)

def predict(settings: PredictSettings) -> None:
    """Answer every text in its order, after the columns that its file already has."""
    output = new_output(settings.output) if settings.output else None
    columns = {settings.text_column: settings.texts}
    if settings.data:
        table = read_table(Path(settings.data), settings.text_column)
        columns = {name: table[name][:] for name in table.column_names}
    names = read_classifier(Path(settings.run))["labels"]
    own = {"predicted", "abstain", "confidence", *(f"p_{label}" for label in names)}
    if twice := sorted(own & set(columns)):
        raise InputError(f"{settings.data} has a column {twice[0]!r}, which predict writes itself: "
                         "rename it")
    classifier = load_classifier(settings.run, settings.model)
    probabilities = classifier.predict_proba(columns[settings.text_column])
    answers = {"predicted": likeliest(probabilities, classifier.labels),
               "abstain": (probabilities.max(1) < settings.threshold).tolist()}
    answers |= probability_columns(probabilities, classifier.labels)
    write_table(output, columns | answers)

def merge_adapter(model, quantized: bool):
    """The model with its adapter added to the weights, which are no longer in 4 bits."""
    from peft import PeftModel

    if not quantized:
        return model.merge_and_unload()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        plain = model.unload().dequantize()
        return PeftModel.from_pretrained(plain, folder).merge_and_unload()


def merge(settings: MergeSettings) -> None:
    """Write the merged model and say what merging changed, on up to 200 test rows of the run.

    The adapter learnt beside 4-bit weights, so it is added to what those stand for.
    """
    output, folder = new_output(settings.output), Path(settings.run)
    run_settings = read_settings(folder, "--run")
    read_classifier(folder)  # of a finished run
    tested = read_tested(folder)
    classifier = load_classifier(folder, settings.model)
    before = classifier.predict_proba(tested)
    stored = run_settings.quantize and classifier.model.hf_quantizer.pre_quantized
    merged = merge_adapter(classifier.model, run_settings.quantize)
    merged.to(torch.bfloat16).save_pretrained(output, save_original_format=not stored)
    classifier.tokenizer.save_pretrained(output)
    shutil.copy(folder / "classifier.json", output)
    del merged, classifier.model  # one model at a time
    classifier.model = load_model(str(output), choose_precision()[0], quantize=False)
    after = classifier.predict_proba(tested)
    a, b = (likeliest(probabilities, classifier.labels) for probabilities in (before, after))
    print(f"merged into {output}, in bfloat16: on {len(tested)} test rows the largest change of a "
          f"probability is {np.abs(before - after).max():.4f}, and "
          f"{sum(x != y for x, y in zip(a, b))} predictions flip")

def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code.

    0, or 1 for what the user can do something about, 130 and 143 when it was stopped, 141 when
    nobody reads on.
    """
    command = parse_command(sys.argv[1:] if argv is None else argv)
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
    quieten_libraries()
    try:
        with borrowed_process():  # a notebook's kernel, perhaps
            {Settings: run, PredictSettings: predict, MergeSettings: merge}[type(command)](command)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        print(f"main.py: error: {line}", file=sys.stderr)
        return 1
    finally:
        state.destroy_process_group()
    return 0

if __name__ == "__main__":
    sys.exit(main())
