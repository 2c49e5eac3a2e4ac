"""Training: its loss, its steps, and what ends it."""

import math

import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS, adapted_model, as_split, our_log, rows_of
from datasets import Dataset
from trl import SFTTrainer

import main
from day9.classifier import Classifier
from day9.settings import Settings
from day9.training import MOST_EPOCHS, collate, default_epochs, train, training_settings


def test_the_loss_is_on_label_and_end_token_even_of_a_long_text(tokenizer, prompt):
    texts = ["short", "a very long story about a knee " * 100]
    for row in rows_of(tokenizer, prompt, texts):
        batch = collate([row])
        seen = batch["input_ids"][0].tolist()
        assert seen == row["prompt"] + row["completion"][:-1] and len(seen) < 128
        assert batch["labels"].tolist() == prompt.completions["appointments"]
        assert batch["labels"][-1] == tokenizer.eos_token_id
        first = len(row["prompt"]) - 1
        assert batch["sources"].tolist() == list(range(first, first + len(row["completion"])))


def test_rows_of_a_batch_that_begin_alike_share_what_is_alike(tokenizer, prompt):
    texts = ["my visit on Monday", "my visit on Tuesday", "my visit on Monday"]
    rows = list(rows_of(tokenizer, prompt, texts))
    begins = {tuple((row["prompt"] + row["completion"])[:length])
              for row in rows for length in range(1, len(row["prompt"] + row["completion"]))}
    layout = collate(rows)
    assert layout["input_ids"].shape == (1, len(begins))
    assert len(begins) < 2 * len(rows[0]["prompt"]) and len(layout["labels"]) == sum(
        len(row["completion"]) for row in rows)


def stock_log(random_llama, tokenizer, rows, settings, folder):
    """The losses of trl's trainer, which pads the rows and computes the loss itself."""
    whole = [row["prompt"] + row["completion"] for row in rows]
    learnt = [[-100] * len(row["prompt"]) + row["completion"] for row in rows]
    trainer = SFTTrainer(
        model=adapted_model(random_llama), processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"input_ids": whole, "labels": learnt}),
        args=training_settings(settings, folder, settings.batch_size, torch.float32))
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # trl has made bfloat16 of it
            parameter.data = parameter.data.float()
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_step_is_the_same_however_it_is_computed(random_llama, tokenizer, prompt, tmp_path):
    """In one pass, in eight, and row by row with padding and trl's own loss."""
    rows = rows_of(tokenizer, prompt, [text + " again" * i for i in range(4)
                                       for text in TEXTS[:4]])
    settings = [Settings(epochs=3, max_length=128, learning_rate=1e-2, pass_tokens=size)
                for size in (2048, 1)]
    losses = [our_log(random_llama, tokenizer, prompt, rows, one, tmp_path) for one in settings]
    losses.append(stock_log(random_llama, tokenizer, rows, settings[0], tmp_path))
    assert len(losses[0]) == 6 and losses[0][-1] < losses[0][0] - 0.1
    assert np.abs(np.array(losses) - losses[0]).max() < 1e-3


def test_the_loss_is_what_the_scorer_computes(random_llama, tokenizer, prompt, tmp_path):
    rows = rows_of(tokenizer, prompt, TEXTS[:4])
    settings = Settings(epochs=1, max_length=128, learning_rate=1e-3, pass_tokens=2048,
                        batch_size=4)
    [loss] = our_log(random_llama, tokenizer, prompt, rows, settings, tmp_path)
    classifier = Classifier(adapted_model(random_llama), tokenizer, prompt)
    scores = classifier.scores(TEXTS[:4])[:, LABELS.index("appointments")]
    assert loss == pytest.approx(-scores.mean() / len(prompt.completions["appointments"]),
                                 abs=1e-4)


def test_scoring_before_training_does_not_change_training(random_llama, tokenizer, prompt,
                                                          tmp_path):
    """bitsandbytes repacks weights to score on some processors, and gradients are then lost."""
    adapters = []
    for score_first in (False, True):
        model = adapted_model(random_llama)
        assert not any(getattr(module, "support_avx512bf16_for_cpu", False)
                       for module in model.modules())  # wherever this test runs
        classifier = Classifier(model, tokenizer, prompt)
        if score_first:
            classifier.scores(TEXTS)
        settings = Settings(batch_size=4, max_length=128, epochs=1, learning_rate=1e-3)
        train(classifier, rows_of(tokenizer, prompt, TEXTS[:4]), as_split(TEXTS[:2]),
              settings, tmp_path)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert {p.dtype for p in trained.values()} == {torch.float32}
        adapters.append({name: p.detach().numpy().tobytes() for name, p in trained.items()})
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("rows, classes, epochs", [
    (880, 8, 1), (1540, 77, 5), (1000, 16, 2), (32, 8, MOST_EPOCHS), (10**6, 2, 1)])
def test_each_class_is_seen_about_a_hundred_times(rows, classes, epochs):
    assert default_epochs([str(i % classes) for i in range(rows)]) == epochs


def test_one_process_trains_on_one_gpu_however_many_there_are(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    settings = Settings(epochs=1, learning_rate=1e-3)
    config = training_settings(settings, tmp_path, 8)
    assert config.device and config.n_gpu == 1


def test_steps_that_overflow_in_float16_stop_after_a_while(random_llama, tokenizer, prompt,
                                                           tmp_path, monkeypatch):
    trainer = careful_trainer(
        0.1, model=adapted_model(random_llama), processing_class=tokenizer,
        train_dataset=rows_of(tokenizer, prompt, TEXTS), data_collator=collate,
        args=training_settings(Settings(epochs=1, learning_rate=0.1), tmp_path, 1))
    norms = [math.inf] * 20 + [1.0] + [math.nan] * 20
    monkeypatch.setattr(trainer.accelerator, "scaler", object())
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_",
                        lambda *_: torch.tensor(norms.pop() if norms else math.inf))
    for _ in range(41):
        trainer._clip_grad_norm(trainer.model)
    with pytest.raises(FloatingPointError, match="lower --learning-rate"):
        trainer._clip_grad_norm(trainer.model)


@pytest.mark.parametrize("batch", [8, 12, 24])
def test_a_loss_that_is_no_number_stops_the_run_at_once(tmp_path, arguments, capsys, batch):
    """In the midst of an epoch, at its end, or at the first step that changes anything."""
    folder = tmp_path / "run"
    argv = [*arguments, "--learning-rate", "1e30"]
    assert main.main([*argv, "--batch-size", str(batch), "--output-dir", str(folder)]) == 1
    error = capsys.readouterr().err.strip()
    assert "lower --learning-rate" in error and "\n" not in error
    step = int(error.split("step ")[1].split(":")[0])
    assert step <= 3 and not (folder / "adapter_model.safetensors").exists()
