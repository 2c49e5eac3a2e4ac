#!/usr/bin/env python
"""What a good notebook does today with the model and data of main.py: the other side of the end-to-end benchmark.

Load in 4 bits, ask the model by generate() and parse its answers, train with trl as its documentation shows, ask again, report.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from sklearn.metrics import accuracy_score, classification_report
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

ROOT = Path(__file__).resolve().parent.parent
NO_LABEL = "(no label)"


def has_bfloat16() -> bool:
    """Whether this processor computes bfloat16 itself; others imitate it, many times as slowly."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("bf16"))  # x86, ARM


def load(name: str):
    """The model in 4 bits, and its tokenizer."""
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32  # most processors only imitate bfloat16
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute)
    return AutoModelForCausalLM.from_pretrained(name, quantization_config=four_bits, dtype=compute, device_map="auto"), AutoTokenizer.from_pretrained(name)


def question(text: str, labels: list[str]) -> list[dict[str, str]]:
    """The user's turn; few labels are named in it, many would fill the context."""
    ask = f"Classify the text as one of: {', '.join(labels)}." if len(labels) <= 20 else "Classify the text."
    return [{"role": "user", "content": f"{ask}\n\n{text}"}]


def classify(model, tokenizer, texts: list[str], labels: list[str], batch_size: int = 32) -> list[str]:
    """The model's answers, written by generate() and parsed; NO_LABEL where an answer is none of the labels."""
    model.eval()
    known, answers = {label.lower(): label for label in labels}, []
    longest = max(len(tokenizer.encode(label, add_special_tokens=False)) for label in labels)
    for start in range(0, len(texts), batch_size):
        prompts = [tokenizer.apply_chat_template(question(text, labels), tokenize=False, add_generation_prompt=True)
                   for text in texts[start:start + batch_size]]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False).to(model.device)
        written = model.generate(**batch, max_new_tokens=longest, do_sample=False, use_cache=True)[:, batch["input_ids"].shape[1]:]
        answers += tokenizer.batch_decode(written, skip_special_tokens=True)
    return [known.get(answer.strip().lower(), NO_LABEL) for answer in answers]


def train(model, tokenizer, rows: Dataset, labels: list[str], folder: str, *, epochs: int, learning_rate: float, rank: int, seed: int) -> SFTTrainer:
    """Train a LoRA adapter with trl's defaults, made to run on a processor where there is no GPU; returns the trainer.

    Some of the defaults are meant for GPUs: activations are computed again in the backward pass, and the adapter of a 4-bit model becomes bfloat16.
    """
    rows = rows.map(lambda row: {"prompt": question(row["text"], labels), "completion": [{"role": "assistant", "content": row["label"]}]},
                    remove_columns=rows.column_names)
    device = {} if torch.cuda.is_available() else {"use_cpu": True, "bf16": has_bfloat16()}
    config = SFTConfig(output_dir=folder, num_train_epochs=epochs, learning_rate=learning_rate, seed=seed, **device)
    adapter = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=adapter)
    trainer.train()
    return trainer


def judge(truth: list[str], answers: list[str], labels: list[str]) -> dict[str, float]:
    """Print scikit-learn's report; returns accuracy and the share of answers that are no label, which count as wrong."""
    print(classification_report(truth, answers, labels=labels, zero_division=0))
    return {"accuracy": float(accuracy_score(truth, answers)), "no_label": answers.count(NO_LABEL) / len(answers)}


def main() -> None:
    """Judge, train, judge again; the last line printed is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "data" / "tiny-llama"), help="folder or hub id of the model")
    parser.add_argument("--data", default=str(ROOT / "data" / "patient-messages"), help="folder with train.csv and test.csv")
    parser.add_argument("--epochs", type=int, default=3, help="how often training sees every example")
    parser.add_argument("--learning-rate", type=float, default=0.5 / 256, help="as main.py chooses for its tiny Llama")
    parser.add_argument("--rank", type=int, default=32, help="rank of the LoRA matrices")
    parser.add_argument("--seed", type=int, default=42, help="fixes initial adapter and order of the examples")
    args = parser.parse_args()

    rows = load_dataset("csv", data_files={split: str(Path(args.data) / f"{split}.csv") for split in ("train", "test")})
    labels = sorted(set(rows["train"]["label"]))
    texts, truth = rows["test"]["text"][:], rows["test"]["label"][:]
    model, tokenizer = load(args.model)

    print("before training")
    before = judge(truth, classify(model, tokenizer, texts, labels), labels)
    with tempfile.TemporaryDirectory() as folder:
        trainer = train(model, tokenizer, rows["train"], labels, folder,
                        epochs=args.epochs, learning_rate=args.learning_rate, rank=args.rank, seed=args.seed)
    print("after training")
    after = judge(truth, classify(trainer.model, tokenizer, texts, labels), labels)
    print(json.dumps(after | {f"{name}_before": figure for name, figure in before.items()}))


if __name__ == "__main__":
    main()
