"""Pretrain the tiny Llama of this folder from scratch, on a processor with two cores.

It takes any JSONL file with a `text` on each line: pretrain.py corpus.jsonl. A run that was cut off
goes on from its own checkpoint. There were two stages. The first reads plain text. The second,
--start tests/tiny-llama --key-word-share 0.6 --rate 0.5, goes on from there and teaches the model
to answer: a passage is the question, the key words of its surroundings are the answer. Sources and
figures are in the model card, README.md.
"""

import argparse
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
           "<|eot_id|>", "<|finetune_right_pad_id|>"]
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}")
# Llama 3's own rule for cutting text into words before bytes are merged.
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with Llama 3's special tokens, word rule and chat template.

    It starts from the 256 bytes and merges the commonest pair, again and again.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    bpe.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>", chat_template=CHAT_TEMPLATE,
        model_max_length=1024, clean_up_tokenization_spaces=False)


def turns(question: str, answer: str) -> str:
    """A user's turn and the assistant's."""
    return (f"<|start_header_id|>user<|end_header_id|>\n\n{question.strip()}<|eot_id|>"
            f"<|start_header_id|>assistant<|end_header_id|>\n\n{answer.strip()}<|eot_id|>")


def passages(text: str, rng: np.random.Generator) -> Iterator[tuple[list[str], list[str]]]:
    """Cut a text into passages of 6 to 70 words, as long as a message; yields the words of each and
    those with the 60 on either side."""
    words, start = text.split(" "), 0
    while start < len(words):
        length = int(np.exp(rng.uniform(np.log(6), np.log(70))))
        yield words[start:start + length], words[max(0, start - 60):start + length + 60]
        start += length


def key_words(words: list[str], weights: dict[str, float], count: int = 6) -> list[str]:
    """The words that matter most, by TF-IDF.

    Many do not stand in the passage itself: to guess them the model must gather at the end of its
    prompt what the passage is about, and that is what a classifier needs.
    """
    counts = Counter(re.findall(r"[a-z]{3,}", " ".join(words).lower()))
    scores = {word: math.log1p(n) * weights[word] for word, n in counts.items() if word in weights}
    return sorted(scores, key=lambda word: -scores[word])[:count]


def word_weights(texts: list[str]) -> dict[str, float]:
    """Inverse document frequency of the words that are neither rare nor everywhere."""
    counted = TfidfVectorizer(token_pattern=r"(?u)\b[a-z]{3,}\b", min_df=15, max_df=0.08,
                              stop_words="english").fit(texts)
    return dict(zip(counted.get_feature_names_out(), counted.idf_))


def lay_out(texts: list[str], chat_share: float, key_word_share: float,
            rng: np.random.Generator) -> list[str]:
    """The documents as strings with special tokens, in random order.

    So that the special tokens are not strangers later, a share is laid out as chats: the first
    paragraph is the question, the rest the answer. Another share becomes key-word questions.
    """
    laid_out, weights = [], word_weights(texts) if key_word_share else {}
    for text in texts:
        draw = rng.random()
        if draw < key_word_share:
            for passage, around in passages(text, rng):
                words, question = key_words(around, weights), " ".join(passage).strip()
                if len(words) >= 3 and question:
                    laid_out.append(turns(question, ", ".join(words)))
        elif draw < key_word_share + chat_share and "\n" in text.strip():
            laid_out.append(turns(*text.split("\n", 1)))
        else:
            laid_out.append(text + "<|end_of_text|>")
    return [laid_out[i] for i in rng.permutation(len(laid_out))]


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """All texts as one row of token ids."""
    return np.concatenate([np.asarray(e.ids, np.uint16)
                           for i in range(0, len(texts), 4096)
                           for e in tokenizer.backend_tokenizer.encode_batch(texts[i:i + 4096])])


def load_tokens(
        args: argparse.Namespace) -> tuple[PreTrainedTokenizerFast, np.ndarray, np.ndarray, int]:
    """Tokenizer, training ids, held-out ids (the first 1 % of the documents) and held-out bytes;
    made once, then read back."""
    cache = args.work_dir / "tokens.npz"
    if not cache.exists():
        documents = [json.loads(line) for line in args.corpus.open(encoding="utf-8")]
        count = len(documents) // 100
        held_out, train = documents[:count], documents[count:]
        if args.shares:
            shares, draw = json.loads(args.shares.read_text()), random.Random(0)
            train = [d for d in train if draw.random() < shares.get(d["source"], shares["other"])]
        texts = [d["text"] for d in train]
        tokenizer = (PreTrainedTokenizerFast.from_pretrained(args.start) if args.start
                     else train_tokenizer(texts[::5], args.vocab_size))
        tokenizer.save_pretrained(args.work_dir)
        laid_out = lay_out(texts, args.chat_share, args.key_word_share, np.random.default_rng(0))
        np.savez(cache, train=encode(laid_out, tokenizer),
                 held_out=encode([d["text"] + "<|end_of_text|>" for d in held_out], tokenizer),
                 bytes=np.int64(sum(len(d["text"].encode()) for d in held_out)))
    saved = np.load(cache)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.work_dir)
    return tokenizer, saved["train"], saved["held_out"], int(saved["bytes"])


def make_model(vocab_size: int) -> LlamaForCausalLM:
    """A Llama small enough for two CPU cores; every linear width is a multiple of 64."""
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab_size, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=1024,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=4, pad_token_id=5))


def orthogonalize(update: torch.Tensor, coefficients: tuple[float, float, float], steps: int,
                  eps: float) -> torch.Tensor:
    """The nearest orthogonal matrix, nearly, by Newton-Schulz iteration (Jordan et al., 2024).

    It computes in float32. PyTorch's own does so in bfloat16, which a processor that lacks it
    emulates: 300 tokens a second where float32 reached 2,400.
    """
    a, b, c = coefficients
    x = update.T if update.shape[0] > update.shape[1] else update
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if update.shape[0] > update.shape[1] else x


def make_optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon, which makes each update of a hidden matrix orthogonal, and AdamW for the embedding and
    the norms; `rate` scales the learning rates of both."""
    torch.optim._muon._zeropower_via_newtonschulz = orthogonalize
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [torch.optim.Muon(hidden, lr=0.02 * rate, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=3e-3 * rate, betas=(0.9, 0.95), weight_decay=0.0)]


def learning_rate_factor(step: int, steps: int, warmup: int = 100) -> float:
    """Linear warm-up, then linear decay to zero."""
    return min((step + 1) / warmup, max(0.0, (steps - step) / (steps - warmup)))


@torch.no_grad()
def held_out_loss(model, ids: np.ndarray, length: int, batch_size: int) -> float:
    """Mean negative log-likelihood, in nats per token, over whole windows of `length` tokens."""
    windows = ids[: len(ids) // length * length].reshape(-1, length).astype(np.int64)
    losses = []
    for i in range(0, len(windows) // batch_size * batch_size, batch_size):
        batch = torch.from_numpy(windows[i:i + batch_size])
        losses.append(model(input_ids=batch, labels=batch).loss.item())
    return float(np.mean(losses))


def save_checkpoint(path: Path, model, optimizers, step: int) -> None:
    """Write beside, then rename: a cut-off run never leaves half a checkpoint."""
    part = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "step": step,
                "optimizers": [o.state_dict() for o in optimizers]}, part)
    part.replace(path)


def load_checkpoint(path: Path, model, optimizers) -> int:
    """Take up a saved run, if there is one; returns the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"]):
        optimizer.load_state_dict(saved)
    return state["step"]


def train_step(model, optimizers, base_rates: list[float], factor: float, batch: torch.Tensor,
               bf16: bool) -> float:
    """One step of both optimizers; returns the loss in nats per token."""
    for optimizer, rate in zip(optimizers, base_rates):
        optimizer.param_groups[0]["lr"] = rate * factor
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def train(model, ids: np.ndarray, held_out_ids: np.ndarray, args: argparse.Namespace) -> None:
    """Train from the last checkpoint on, over windows of the corpus in a fixed random order."""
    optimizers = make_optimizers(model, args.rate)
    base_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    checkpoint = args.work_dir / "checkpoint.pt"
    first = load_checkpoint(checkpoint, model, optimizers)
    compiled, started = torch.compile(model), time.time()
    windows = ids[: len(ids) // args.length * args.length].reshape(-1, args.length)
    epochs = math.ceil(args.steps * args.batch_size / len(windows))
    order = np.concatenate([np.random.default_rng(epoch).permutation(len(windows))
                            for epoch in range(epochs)])
    for step in range(first, args.steps):
        rows = order[step * args.batch_size:(step + 1) * args.batch_size]
        batch = torch.from_numpy(windows[rows].astype(np.int64))
        factor = learning_rate_factor(step, args.steps)
        loss = train_step(compiled, optimizers, base_rates, factor, batch, args.bf16)
        if (step + 1) % 50 == 0:
            speed = (step + 1 - first) * batch.numel() / (time.time() - started)
            print(f"step {step + 1:6d}  loss {loss:.3f}  {speed:,.0f} tokens/s", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            score = held_out_loss(compiled, held_out_ids[:65536], args.length, args.batch_size)
            print(f"step {step + 1:6d}  held-out loss {score:.3f}", flush=True)
            save_checkpoint(checkpoint, model, optimizers, step + 1)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Pretrain the tiny Llama on a JSONL file of texts.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("corpus", type=Path, help="JSONL file, one object with a `text` a line")
    add("--output-dir", type=Path, default=Path(__file__).parent, help="where the model is written")
    add("--work-dir", type=Path, default=Path("outputs/pretrain"),
        help="token cache and checkpoint")
    add("--steps", type=int, default=4300, help="optimizer steps in all")
    add("--batch-size", type=int, default=8, help="sequences a step")
    add("--length", type=int, default=512, help="tokens a sequence")
    add("--vocab-size", type=int, default=4096, help="tokens in the vocabulary")
    add("--chat-share", type=float, default=0.15, help="share of documents laid out as chats")
    add("--key-word-share", type=float, default=0.0,
        help="share of documents laid out as passages and their key words")
    add("--shares", type=Path,
        help="JSON file: share of the documents of each `source` to read, and of `other`")
    add("--start", type=Path, help="folder of a model to go on from")
    add("--rate", type=float, default=1.0, help="factor on both learning rates")
    add("--bf16", action="store_true",
        help="compute in bfloat16: faster where the processor has AVX512-BF16")
    return parser.parse_args()


def main() -> None:
    """Pretrain, measure on held-out text, and write the model in bfloat16."""
    args = parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer, ids, held_out_ids, held_out_bytes = load_tokens(args)
    print(f"{len(ids):,} training tokens, {len(held_out_ids):,} held out", flush=True)
    if args.start:
        model = LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32)
        seen = json.loads((args.start / "pretraining.json").read_text())["tokens_seen"]
    else:
        model, seen = make_model(len(tokenizer)), 0
    train(model, ids, held_out_ids, args)

    nats = held_out_loss(model, held_out_ids, args.length, args.batch_size)
    figures = {"parameters": model.num_parameters(),
               "tokens_seen": seen + args.steps * args.batch_size * args.length,
               "nats_per_token": nats,
               "bits_per_byte": nats * len(held_out_ids) / held_out_bytes / math.log(2)}
    print(figures)
    model.to(torch.bfloat16).save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    (args.output_dir / "pretraining.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
