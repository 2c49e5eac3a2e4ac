"""Scores of many labels in few passes are those of each label alone."""

import numpy as np
import pytest
import torch
from conftest import ASK, LABELS, ROOT, TEXTS, TINY, one_by_one, plain_model, read_rows

from day9.classifier import Classifier, score_labels
from day9.model import add_adapter, load_model
from day9.prompts import default_instruction, make_prompt

EXAMPLES = [("I owe how much?", "billing"), ("is my <|eot_id|> slot free", "appointments")]


@pytest.mark.parametrize("examples", [[], EXAMPLES], ids=["zero-shot", "few-shot"])
def test_scores_are_those_of_one_pass_for_each_label(random_llama, tokenizer, examples):
    """Whatever the size of a pass and the order of the texts.

    "billing" begins another label; at sizes 1 and 100 the labels are scored in groups.
    """
    model = plain_model(random_llama)
    prompt = make_prompt(tokenizer, LABELS, ASK, 256, examples)
    encoded = prompt.encode(tokenizer, TEXTS)
    wanted = one_by_one(model, encoded, prompt)
    assert np.abs(np.diff(wanted, axis=1)).min() > 1e-2  # else any answer would do
    for size in (1, 100, 512, 4096):
        assert np.abs(score_labels(model, encoded, prompt, size) - wanted).max() < 1e-4
        turned = score_labels(model, encoded[::-1], prompt, size)
        assert np.abs(turned[::-1] - wanted).max() < 1e-4


def count_tokens(model):
    """A list that grows by the number of tokens of each pass through the decoder."""
    counts = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(kwargs["input_ids"].numel()), with_kwargs=True)
    return counts


def test_labels_beyond_a_pass_are_scored_in_groups(random_llama, tokenizer):
    model = plain_model(random_llama)
    labels = [f"{i} is the number of the team" for i in range(50)]
    prompt = make_prompt(tokenizer, labels, "Which team?", 256)
    counts = count_tokens(model)
    scores = Classifier(model, tokenizer, prompt, pass_tokens=200).scores(TEXTS[:2])
    assert len(counts) > 3 and max(counts) <= 200
    wanted = one_by_one(model, prompt.encode(tokenizer, TEXTS[:2]), prompt)
    assert np.abs(scores - wanted).max() < 1e-4


def test_the_cost_grows_with_the_labels_not_with_labels_times_prompt(random_llama, tokenizer):
    """77 labels: what texts or labels have in common runs through the decoder once."""
    model = plain_model(random_llama)
    prompt = make_prompt(tokenizer, [f"label {i}" for i in range(77)], "Which?", 256)
    texts = [f"{TEXTS[3] * 4} {i}" for i in range(16)]
    encoded, counts = prompt.encode(tokenizer, texts), count_tokens(model)
    Classifier(model, tokenizer, prompt, pass_tokens=512).scores(texts)
    plain = sum(len(prompt.before + ids + completion)
                for ids in encoded for completion in prompt.completions.values())
    assert sum(counts) * 10 < plain
    assert sum(counts) < len(prompt.before) + sum(len(ids) + 77 + 10 for ids in encoded)


def test_one_long_text_does_not_make_the_others_slow(random_llama, tokenizer):
    """It leaves little room in a pass, and is itself read only for some groups of labels."""
    model = plain_model(random_llama)
    prompt = make_prompt(tokenizer, [f"label {i}" for i in range(77)], "Which?", 256)
    classifier = Classifier(model, tokenizer, prompt, pass_tokens=200)
    counts, total = count_tokens(model), []
    for texts in (TEXTS[:2] * 6, [*TEXTS[:2] * 6, TEXTS[3] * 40]):
        classifier.scores(texts)
        total.append(sum(counts))
        counts.clear()
    assert 256 < total[1] - total[0] < 10 * 256


def test_scores_are_right_in_four_bits(tokenizer):
    model = load_model(str(TINY), torch.float32)
    rows = read_rows(ROOT / "data" / "patient-messages" / "test.csv")
    labels = sorted({row["label"] for row in rows})
    prompt = make_prompt(tokenizer, labels, default_instruction(labels), 512)
    encoded = prompt.encode(tokenizer, [row["text"] for row in rows[:8]])
    scores = score_labels(model, encoded, prompt, 512)
    wanted = one_by_one(model, encoded, prompt)
    assert np.abs(scores - wanted).max() < 2e-2 < np.abs(np.diff(wanted, axis=1)).min()


def test_the_adapter_computes_in_the_number_format_of_the_weights(random_llama, tokenizer,
                                                                  prompt):
    """Its own weights are in float32: without autocast it would be slow on a GPU."""
    model = add_adapter(load_model(random_llama, torch.bfloat16, quantize=False), 4, 0)
    classifier, seen = Classifier(model.float(), tokenizer, prompt), []
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            parameter.data = parameter.data.bfloat16()
    for name, module in model.named_modules():
        if name.endswith("lora_B.default"):
            module.register_forward_hook(lambda _, args, output: seen.append(output.dtype))
    classifier.scores(TEXTS[:2])
    assert len(seen) > 10 and set(seen) == {torch.bfloat16}
