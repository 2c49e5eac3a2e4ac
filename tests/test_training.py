"""Training: its loss, its steps, and what ends it."""

import math

import bitsandbytes
import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS, adapted_model, as_split, interrupt, our_log, rows_of
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import main
from day9.classifier import Classifier
from day9.progress import ShowProgress
from day9.settings import Settings
from day9.training import (MOST_EPOCHS, CarefulTrainer, OneGpuConfig, StopOnOverflow, collate,
                           default_epochs, returning_log_probs, train, training_rows,
                           training_settings)


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
    (1000, 10, 2), (1540, 77, 10), (320, 10, 6), (32, 8, MOST_EPOCHS), (10**6, 2, 1)])
def test_each_class_is_seen_about_200_times(rows, classes, epochs):
    assert default_epochs([str(i % classes) for i in range(rows)]) == epochs


def careful_trainer(model, tokenizer, rows, config, kind=CarefulTrainer):
    """A trainer as the program makes it, without what a run's folder gets."""
    trainer = kind(model=model, train_dataset=rows, data_collator=collate, args=config,
                   processing_class=tokenizer, callbacks=[StopOnOverflow()])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def test_one_process_trains_on_one_gpu_however_many_there_are(random_llama, tokenizer, prompt,
                                                              tmp_path, monkeypatch):
    """trl refuses settings that count more, which is how we know that it reads ours."""
    assert isinstance(SFTConfig.n_gpu, property)  # which OneGpuConfig replaces
    settings = Settings(epochs=1, learning_rate=1e-3)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        config = training_settings(settings, tmp_path, 8, torch.float32)
        assert config.device.type == "cuda" and config.n_gpu == 1
        assert config.train_batch_size == 8
    model, rows = adapted_model(random_llama), rows_of(tokenizer, prompt, TEXTS)
    config = training_settings(settings, tmp_path, 8, torch.float32)
    assert careful_trainer(model, tokenizer, rows, config).args.n_gpu == 1
    monkeypatch.setattr(OneGpuConfig, "n_gpu", 2)
    with pytest.raises(ValueError, match="DataParallel"):
        careful_trainer(model, tokenizer, rows, config)


def test_a_loss_is_divided_by_the_targets_of_its_whole_batch(random_llama, tokenizer, prompt,
                                                             tmp_path):
    """Whatever the passes that a batch is split into; rows have completions of other lengths."""
    seen = []

    class Watched(CarefulTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            seen.append((len(inputs["labels"]), int(num_items_in_batch)))
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    split = Dataset.from_dict({"text": TEXTS + TEXTS[:3], "label": LABELS * 2})
    rows, model = training_rows(split, tokenizer, prompt), adapted_model(random_llama)
    config = training_settings(Settings(epochs=1, learning_rate=1e-3), tmp_path, 2, torch.float32)
    with returning_log_probs(model):
        careful_trainer(model, tokenizer, rows, config, Watched).train()
    targets = sum(len(completion) for completion in rows["completion"])
    assert len(seen) == 4 and len({size for size, _ in seen}) > 1
    assert sum(size for size, _ in seen) == targets and {count for _, count in seen} == {targets}


def test_an_interrupted_training_leaves_a_model_that_can_answer(random_llama, tokenizer, prompt,
                                                                tmp_path, monkeypatch):
    model = adapted_model(random_llama)
    settings = Settings(batch_size=4, max_length=128, epochs=1, learning_rate=1e-3)
    monkeypatch.setattr(ShowProgress, "on_step_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(Classifier(model, tokenizer, prompt), rows_of(tokenizer, prompt, TEXTS[:4]),
              as_split(TEXTS[:2]), settings, tmp_path)
    asked = torch.tensor([prompt.before])
    assert model(input_ids=asked).logits.shape[:2] == asked.shape
    assert model.generate(input_ids=asked, max_new_tokens=2, do_sample=False).shape[1] > len(
        prompt.before)


@pytest.mark.parametrize("half, last", [(True, 42), (False, 1)])
def test_steps_that_overflow_in_float16_stop_after_a_while(random_llama, tokenizer, prompt,
                                                           tmp_path, monkeypatch, half, last):
    """After twenty in a row, which float16 skips; in another format the first one ends training."""
    norms = iter([math.nan] * 20 + [1.0] + [math.inf] * 21)
    model, rows = adapted_model(random_llama), rows_of(tokenizer, prompt, TEXTS * 9)
    config = training_settings(Settings(epochs=1, learning_rate=1e-3, batch_size=1), tmp_path, 1,
                               torch.float32)
    trainer = careful_trainer(model, tokenizer, rows, config)
    trainer.args.fp16 = half
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda _: torch.tensor(next(norms)))
    with returning_log_probs(model), pytest.raises(FloatingPointError, match=f"step {last}: "):
        trainer.train()


def test_bitsandbytes_has_what_keeps_its_weights_trainable():
    """keep_trainable sets it; under another name nothing would be kept."""
    assert hasattr(bitsandbytes.nn.Linear4bit(8, 8), "support_avx512bf16_for_cpu")


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
