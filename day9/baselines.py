"""What fine-tuning is compared with: none, or simple training. Written by hand, not tangled."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from day9.prompts import context_length, make_prompt

Embed = Callable[[list[str]], np.ndarray]  # vectors (texts, width) of length 1


def fit_regression(features, train: Dataset, validation: Dataset):
    """Logistic regression on the features of the texts, which are fitted here too.

    Of the strengths C = 1, 10, 100 and 1,000, that with the least validation log-loss.
    """
    learnt, truth = features.fit_transform(train["text"][:]), train["label"][:]
    unseen, answers = features.transform(validation["text"][:]), validation["label"][:]
    fitted = [LogisticRegression(C=c, max_iter=2000).fit(learnt, truth)
              for c in (1, 10, 100, 1000)]
    loss = lambda model: log_loss(answers, model.predict_proba(unseen), labels=model.classes_)
    return make_pipeline(features, min(fitted, key=loss))


def fit_tfidf(train: Dataset, validation: Dataset):
    """TF-IDF of words and word pairs, with logistic regression."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]",
                            max_features=100_000)
    return fit_regression(words, train, validation)


def fit_embeddings(train: Dataset, validation: Dataset, embed: Embed):
    """Sentence embeddings, with logistic regression (Reimers and Gurevych, 2019)."""
    return fit_regression(FunctionTransformer(embed), train, validation)


Results = dict[str, tuple[np.ndarray, float]]  # of each system: probabilities, and seconds


def timed(work, *given, **named):
    """What a function returns, and the seconds that it takes."""
    start = time.perf_counter()
    return work(*given, **named), time.perf_counter() - start


def judge_baselines(splits: DatasetDict, embed: Embed | None = None) -> Results:
    """Probabilities of the test rows by `majority`, which always says the commonest class, by
    `tfidf`, and by `embeddings` if there is a function that makes them; and the seconds to fit and
    predict.
    """
    train, validation, test = splits["train"], splits["validation"], splits["test"]["text"][:]
    majority = lambda: DummyClassifier(strategy="prior").fit(train["text"][:], train["label"][:])
    results = {"majority": timed(lambda: majority().predict_proba(test)),
               "tfidf": timed(lambda: fit_tfidf(train, validation).predict_proba(test))}
    if embed:
        results["embeddings"] = timed(
            lambda: fit_embeddings(train, validation, embed).predict_proba(test))
    return results


def draw_examples(train: Dataset, labels: list[str], seed: int) -> Iterator[tuple[str, str]]:
    """Texts and labels in random order, one of each class in turn, of the class's shorter texts."""
    random = np.random.default_rng(seed)
    texts = {label: [] for label in labels}
    shuffled = train.select(random.permutation(len(train)))
    for label, text in zip(shuffled["label"][:], shuffled["text"][:]):
        texts[label].append(text)
    for label, same in texts.items():
        usual = np.median([len(text) for text in same])
        texts[label] = [text for text in same if len(text) <= usual]
    for turn in range(max(map(len, texts.values()))):
        for label in random.permutation(labels):
            if turn < len(texts[label]):
                yield texts[label][turn], str(label)


def few_shot(train: Dataset, classifier, instruction: str, seed: int, room: int = 1024):
    """The same classifier with as many examples in its prompt as `room` tokens hold."""
    model, tokenizer, prompt = classifier.model, classifier.tokenizer, classifier.prompt
    room, examples = min(room, context_length(model) // 2), []
    length = len(prompt.before) + len(prompt.after) + prompt.text_room + max(
        map(len, prompt.completions.values()))
    for example in draw_examples(train, classifier.labels, seed):
        most = min(context_length(model), room + length)
        longer = make_prompt(tokenizer, classifier.labels, instruction, most, [*examples, example])
        if len(longer.before) > room:
            break
        examples.append(example)
        prompt = replace(longer, text_room=min(longer.text_room, classifier.prompt.text_room))
    return replace(classifier, prompt=prompt)


MOST_FEW_SHOT = 200  # rows, as the model reads more for each


def judge_base_model(splits: DatasetDict, classifier, instruction: str) -> Results:
    """As judge_baselines, for `zero_shot` and `few_shot`; of rows not answered, NaN.

    Few-shot answers MOST_FEW_SHOT rows at most, from all of the split. The answer depends on the
    examples: each third of the rows gets another draw of them.
    """
    texts = splits["test"]["text"][:]

    def with_examples() -> np.ndarray:
        mixed = np.full((len(texts), len(classifier.labels)), np.nan)
        rows = np.unique(np.linspace(0, len(texts) - 1, MOST_FEW_SHOT).astype(int))
        for seed in range(3):
            shown, third = few_shot(splits["train"], classifier, instruction, seed), rows[seed::3]
            mixed[third] = shown.predict_proba([texts[row] for row in third])
        return mixed

    return {"zero_shot": timed(classifier.predict_proba, texts), "few_shot": timed(with_examples)}
