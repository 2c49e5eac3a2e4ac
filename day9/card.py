"""The README.md of a run: a model card, as the hub shows it. Written by hand, not tangled."""

from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCardData

from day9.model import four_bits
from day9.prompts import name_labels
from day9.report import choose_instead, scoreboard
from day9.settings import Settings

CARD = """---
{yaml}
---
# {name}

A LoRA adapter for {base} that sorts texts into {count} classes: {labels}.

## Data

{data}: {rows}. Fingerprints and counts are in audit.json.

## Scores

{verdict}

```
{scoreboard}
```

{instead}On {n} test rows; *seconds* on the machine that trained (of a resumed run, since it was resumed).
The adapter is the one after epoch {best_epoch:.0f} of {epochs}, which had the least log-loss on
validation.

![Loss on training and validation](loss.png)

![Where the test messages went](confusion-matrix.png)

![Confidence against accuracy](reliability.png)

## Limits

It answers with one of its classes whatever the text is. The scores hold for texts like those of
the test split and for nothing else. Its confidence was set by one temperature on the validation
split.

## Use

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, BitsAndBytesConfig

folder = {folder!r}  # the folder of this file
model = AutoPeftModelForCausalLM.from_pretrained(
    folder, quantization_config={quantization})
tokenizer = AutoTokenizer.from_pretrained(folder)
chat = [{{"role": "user", "content": {instruction!r} + "\\n\\n" + "the text"}}]
prompt = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt",
    date_string="26 Jul 2024").to(model.device)
answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)
start = prompt["input_ids"].shape[1]
print(tokenizer.decode(answer[0, start:], skip_special_tokens=True))
```

`main.py predict --run {folder} --texts "..."`, with the program that made this folder, also gives
the probability of every label.
"""

EMBEDDINGS = """Sentence embeddings with a logistic regression do as well, in a fraction of the time:

```python
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegressionCV

embedder = SentenceTransformer({embedder!r})  # texts and labels: lists of the training rows
classifier = LogisticRegressionCV(Cs=[1, 10, 100, 1000], scoring="neg_log_loss", max_iter=2000)
classifier.fit(embedder.encode(texts, normalize_embeddings=True), labels)
print(classifier.predict(embedder.encode(["the text"], normalize_embeddings=True)))
```

"""


def quantization(settings: Settings) -> str:
    """The code that loads a base model in 4 bits, as the run did."""
    if not settings.quantize:
        return "None"
    given = {name: value for name, value in four_bits(torch.float32).to_diff_dict().items()
             if not name.startswith("_")}
    return f"BitsAndBytesConfig(\n        {', '.join(f'{k}={v!r}' for k, v in given.items())})"


def write_card(folder: Path, settings: Settings, counts: dict[str, dict], labels: list[str],
               metrics: dict) -> None:
    """Write the card of a run from its settings, the counts of its splits and its metrics."""
    base, data = (Path(name).name if Path(name).exists() else name
                  for name in (settings.model, settings.data))
    folder, tuned = folder.resolve(), metrics["systems"]["fine_tuned"]
    results = [EvalResult(task_type="text-classification", dataset_type=data, dataset_name=data,
                          dataset_split="test", metric_type=name,
                          metric_value=round(tuned[name], 4))
               for name in ("accuracy", "precision", "recall", "f1")]
    facts = ModelCardData(
        library_name="peft", pipeline_tag="text-classification", tags=["lora", "trl", "sft"],
        model_name=folder.name, eval_results=results,
        base_model=None if Path(settings.model).exists() else settings.model)
    instead = choose_instead(metrics["systems"], metrics["comparisons"])
    card = CARD.format(
        yaml=facts.to_yaml(), name=folder.name, base=base, count=len(labels),
        labels=", ".join(labels), data=data, n=tuned["n"], verdict=metrics["verdict"],
        rows=", ".join(f"{found['rows']:,} rows for {name}" for name, found in counts.items()),
        scoreboard=scoreboard(metrics["systems"]), best_epoch=metrics["best_epoch"],
        epochs=settings.epochs,
        instead=EMBEDDINGS.format(embedder=settings.embedder) if instead == "embeddings" else "",
        folder=str(folder), quantization=quantization(settings),
        instruction=name_labels(settings.instruction, labels))
    (folder / "README.md").write_text(card, encoding="utf-8")
