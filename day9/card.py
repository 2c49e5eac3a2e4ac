"""The README.md of a run: a model card, as the hub shows it. Written by hand, not tangled."""

from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCardData

from day9.model import four_bits
from day9.prompts import name_labels
from day9.report import choose_instead, scoreboard
from day9.settings import EMBEDDER, SMALL_EMBEDDER, Settings

CARD, INSTEAD = ((Path(__file__).parent / name).read_text(encoding="utf-8")
                 for name in ("card.md", "card-embeddings.md"))  # the second: a part of the first


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
    embedder = EMBEDDER if settings.embedder == str(SMALL_EMBEDDER) else settings.embedder
    card = CARD.format(
        yaml=facts.to_yaml(), name=folder.name, base=base, count=len(labels),
        labels=", ".join(labels), data=data, n=tuned["n"], verdict=metrics["verdict"],
        rows=", ".join(f"{found['rows']:,} rows for {name}" for name, found in counts.items()),
        scoreboard=scoreboard(metrics["systems"]), best_epoch=metrics["best_epoch"],
        epochs=settings.epochs, folder=str(folder), quantization=quantization(settings),
        instead=INSTEAD.format(embedder=embedder) if instead == "embeddings" else "",
        instruction=name_labels(settings.instruction, labels))
    (folder / "README.md").write_text(card, encoding="utf-8")
