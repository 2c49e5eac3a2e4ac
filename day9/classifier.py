"""All labels of all texts scored in few passes, and the classifier. Tangled from README.org."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from scipy.special import softmax

from day9.layout import lay_out, run_decoder, token_log_probs
from day9.metrics import likeliest
from day9.passes import plan_passes
from day9.progress import progress
from day9.prompts import Prompt
from day9.settings import PASS_TOKENS

BLOCK = 1000  # texts that are encoded at a time, as ids take more room

@torch.no_grad()
def score_labels(model, encoded: list[list[int]], prompt: Prompt, pass_tokens: int,
                 tell: Callable[[int], object] = lambda count: None) -> np.ndarray:
    """Log-probability (texts, labels) of every label after every encoded text.

    `tell` is called with the number of texts that are done.
    """
    model.eval()
    trunk = torch.tensor([prompt.before], device=model.device)
    cache = transformers.DynamicCache()
    run_decoder(model, input_ids=trunk, cache=cache, use_cache=True)  # which fills it
    completions = list(prompt.completions.values())
    scores = np.zeros((len(encoded), len(completions)))
    for pairs in plan_passes(encoded, completions, pass_tokens):  # of a text and a label
        layout = lay_out([encoded[text] for text, _ in pairs],
                         [completions[label] for _, label in pairs], len(prompt.before))
        layout = {name: tensor.to(model.device) for name, tensor in layout.items()}
        log_probs = token_log_probs(model, **layout, cache=cache).cpu()
        cache.crop(-layout["input_ids"].shape[1])  # the trunk stays for the next pass
        lengths = [len(completions[label]) for _, label in pairs]
        for pair, part in zip(pairs, log_probs.split(lengths)):
            scores[pair] = part.sum().item()
        tell(pairs[-1][0] + 1)  # texts come in their order
    if not np.isfinite(scores).all():
        raise FloatingPointError("the scores of a text are not numbers")
    return scores

def score_blocks(classifier, texts: Sequence[str], start: int = 0) -> Iterator[np.ndarray]:
    """Log-probability of every label for the texts from `start` on, BLOCK texts at a time."""
    rank, processes = PartialState().process_index, PartialState().num_processes
    with progress(len(texts), "scoring", "rows", start) as bar:
        for first in range(start, len(texts), BLOCK):
            block = texts[first:first + BLOCK]
            encoded = classifier.prompt.encode(classifier.tokenizer, block[rank::processes])
            tell = lambda count: bar.update(min(first + count * processes, len(texts)) - bar.n)
            found = score_labels(classifier.model, encoded, classifier.prompt,
                                 classifier.pass_tokens, tell)
            scores = np.empty((len(block), len(classifier.labels)))
            for process, share in enumerate(gather_object([found])):
                scores[process::processes] = share
            yield scores

@dataclass
class Classifier:
    """A causal language model that answers with one of its labels."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    prompt: Prompt
    temperature: float = 1.0
    pass_tokens: int = PASS_TOKENS
    digest: str | None = None  # of the base model's files, where it is known

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the columns of `predict_proba`."""
        return list(self.prompt.completions)

    def scores(self, texts: list[str]) -> np.ndarray:
        """Log-probability of every label for every text, (texts, labels)."""
        if isinstance(texts, str):
            raise TypeError("give a list of texts, not one text")
        return np.concatenate([np.empty((0, len(self.labels))), *score_blocks(self, texts)])

    def predict_proba(self, texts: list[str]) -> np.ndarray:
        """Probability of every label for every text, (texts, labels); rows sum to 1."""
        return softmax(self.scores(texts) / self.temperature, axis=1)

    def predict(self, texts: list[str]) -> list[str]:
        """The likeliest label of every text."""
        return likeliest(self.predict_proba(texts), self.labels)
