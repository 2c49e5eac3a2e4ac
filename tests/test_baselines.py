"""What fine-tuning is compared with."""

import numpy as np
from conftest import ASK, LABELS, TEXTS, as_split, one_by_one, plain_model
from datasets import Dataset

from day9.baselines import draw_examples, few_shot, judge_base_model, judge_baselines
from day9.classifier import Classifier
from day9.metrics import compute_metrics


def messages(count):
    """A split of ever longer texts about the four labels in turn."""
    labels = [LABELS[i % 4] for i in range(count)]
    return Dataset.from_dict({"label": labels, "text": [
        f"message {i} about the {label} {'x' * i}" for i, label in enumerate(labels)]})


def test_few_shot_examples_are_balanced_short_and_fit(random_llama, tokenizer, prompt):
    model, split = plain_model(random_llama), messages(80)
    drawn = [list(draw_examples(split, LABELS, seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 40
    assert sorted({label for _, label in drawn[0][4:8]}) == sorted(LABELS)
    assert max(len(text) for text, label in drawn[0] if label == "billing") < 70  # the median

    classifier = Classifier(model, tokenizer, prompt)
    shown = few_shot(split, classifier, ASK, 0, room=300)
    longer = few_shot(split, classifier, ASK, 0).prompt
    assert 200 < len(shown.prompt.before) <= 300 and 400 < len(longer.before) <= 1024 // 2
    assert shown.prompt.text_room == longer.text_room == prompt.text_room
    written = tokenizer.decode(shown.prompt.before)
    places = [written.find(text) for text, _ in drawn[0][:8]]
    assert -1 not in places[:4] and places[:4] == sorted(places[:4])
    wanted = one_by_one(model, shown.prompt.encode(tokenizer, TEXTS), shown.prompt)
    assert np.abs(shown.scores(TEXTS) - wanted).max() < 1e-4


def test_each_third_of_the_rows_is_asked_with_other_examples(random_llama, tokenizer, prompt):
    classifier = Classifier(plain_model(random_llama), tokenizer, prompt)
    splits = {"train": messages(40), "test": as_split(TEXTS)}
    results = judge_base_model(splits, classifier, ASK)
    assert list(results) == ["zero_shot", "few_shot"]
    (alone, _), (mixed, _) = results.values()
    assert np.abs(alone - classifier.predict_proba(TEXTS)).max() < 1e-4
    draws = [few_shot(splits["train"], classifier, ASK, seed).predict_proba(TEXTS)
             for seed in range(3)]
    assert np.abs(draws[0] - draws[1]).max() > 1e-2
    for row in range(len(TEXTS)):
        assert np.abs(mixed[row] - draws[row % 3][row]).max() < 1e-4


def test_few_shot_answers_some_rows_of_the_whole_split(random_llama, tokenizer, prompt,
                                                       monkeypatch):
    classifier = Classifier(plain_model(random_llama), tokenizer, prompt)
    monkeypatch.setattr("day9.baselines.MOST_FEW_SHOT", 3)
    splits = {"train": messages(40), "test": messages(9)}
    answered, _ = judge_base_model(splits, classifier, ASK)["few_shot"]
    assert np.flatnonzero(~np.isnan(answered[:, 0])).tolist() == [0, 4, 8]
    truth = splits["test"]["label"][:]
    found = compute_metrics(truth, answered, classifier.labels, 1)
    assert found == compute_metrics(truth[::4], answered[::4], classifier.labels, 1)
    assert found["n"] == 3


def test_embeddings_are_judged_where_there_is_an_embedder():
    """One that sees the number of the label is always right, one that sees nothing never learns."""
    seeing = lambda texts: np.eye(4)[[int(text.split()[1]) % 4 for text in texts]]
    blind = lambda texts: np.ones((len(texts), 4)) / 2
    splits = {"train": messages(40), "validation": messages(8), "test": messages(12)}
    assert list(judge_baselines(splits)) == ["majority", "tfidf"]
    right = []
    for embed in (seeing, blind):
        probabilities, seconds = judge_baselines(splits, embed)["embeddings"]
        assert probabilities.shape == (12, 4) and seconds > 0
        chosen = [sorted(LABELS)[i] for i in probabilities.argmax(1)]
        right.append(np.mean(np.array(chosen) == splits["test"]["label"][:]))
    assert right[0] == 1 > 0.5 > right[1]
