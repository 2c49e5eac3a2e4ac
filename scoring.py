# Generated from README.org: edit that file, then tangle it. Changes made here are lost.

import contextlib
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from scipy.special import softmax

from edge import progress
from judging import likeliest
from memory import HEAD_PIECE
from packing import group_labels, in_groups
from prompts import Prompt


def grow_forest(paths: list[list[int]]) -> tuple[list[int], list[int], list[list[int]]]:
    """A forest in which paths that begin alike share nodes.

    Returns each node's token and parent (-1: none; parents come first), and each path's nodes.
    """
    tokens, parents, nodes, known = [], [], [], {}
    for path in paths:
        nodes.append([])
        node = -1
        for token in path:
            if (node, token) not in known:
                known[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = known[node, token]
            nodes[-1].append(node)
    return tokens, parents, nodes

def see_ancestors(parents: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth (L,) of each node, and a mask (L, L): a row sees its ancestors' columns and its own."""
    visible, depth = np.eye(len(parents), dtype=bool), np.zeros(len(parents), dtype=int)
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] |= visible[parent]
            depth[node] = depth[parent] + 1
    return torch.from_numpy(depth), torch.from_numpy(visible)

def lay_out(prompts: list[list[int]], completions: list[list[int]],
            trunk: int = 0) -> dict[str, torch.Tensor]:
    """Prompts, each followed by its completion, as one sequence of L tokens.

    `trunk` counts the cached tokens before it. Returns input_ids and position_ids (1, L),
    attention_mask (1, 1, L, trunk + L), and for the W tokens of all completions, in order, the
    index of each one's source (sources) and its id (labels, Trainer's word for targets).
    """
    paths = [p + c[:-1] for p, c in zip(prompts, completions)]  # nothing follows the last token
    tokens, parents, nodes = grow_forest(paths)
    depth, visible = see_ancestors(parents)
    mask = torch.cat([visible.new_ones(len(tokens), trunk), visible], dim=1)
    sources = [node for path, p in zip(nodes, prompts) for node in path[len(p) - 1:]]
    return {"input_ids": torch.tensor([tokens]), "position_ids": trunk + depth[None],
            "attention_mask": mask[None, None], "sources": torch.tensor(sources),
            "labels": torch.tensor([token for c in completions for token in c])}

def run_decoder(model, **inputs):
    """All layers but the head, in the number format of the weights, adapter included."""
    dtype = model.get_output_embeddings().weight.dtype
    half = dtype != torch.float32
    with torch.autocast(model.device.type, dtype) if half else contextlib.nullcontext():
        return model.get_decoder()(**inputs)

def pick_log_probs(hidden: torch.Tensor, targets: torch.Tensor, head: torch.Tensor,
                   sources: torch.Tensor) -> torch.Tensor:
    """Log-probability (W,) of each target after the hidden state (L, width) of its source.

    All in float32; the head (vocabulary, width) is taken in pieces, to save memory.
    """
    where, back = sources.unique(return_inverse=True)  # labels may share a source
    states = hidden[where].float()
    with torch.autocast(hidden.device.type, enabled=False):
        logits = (states[back] * head[targets].float()).sum(-1)
        sums = [(states @ piece.float().T).logsumexp(-1) for piece in head.split(HEAD_PIECE)]
    return logits - torch.stack(sums).logsumexp(0)[back]  # log_softmax over the vocabulary


def token_log_probs(model, input_ids, position_ids, attention_mask, sources, labels,
                    cache=None) -> torch.Tensor:
    """Log-probability of each target of a layout (`lay_out`): (W,), float32."""
    hidden = run_decoder(model, input_ids=input_ids, position_ids=position_ids,
                         attention_mask=attention_mask, past_key_values=cache,
                         use_cache=cache is not None).last_hidden_state[0]
    return pick_log_probs(hidden, labels, model.get_output_embeddings().weight, sources)

def default_pass_tokens() -> int:
    """The most tokens in one pass: a GPU is busy only with many."""
    return 4096 if torch.cuda.is_available() else 1024


@torch.no_grad()
def score_labels(model, encoded: list[list[int]], prompt: Prompt, pass_tokens: int) -> np.ndarray:
    """Log-probability (texts, labels) of every label after every encoded text."""
    model.eval()
    trunk = torch.tensor([prompt.before], device=model.device)
    cache = run_decoder(model, input_ids=trunk, past_key_values=transformers.DynamicCache(),
                        use_cache=True).past_key_values
    completions = list(prompt.completions.values())
    scores = np.zeros((len(encoded), len(completions)))
    rooms = [max(pass_tokens - len(ids), pass_tokens // 4) for ids in encoded]  # some for long ones
    groups = {room: group_labels(completions, room) for room in set(rooms)}
    parts = [(text, *part) for text, room in enumerate(rooms) for part in groups[room]]
    bar = progress(len(encoded), "scoring")
    for batch in in_groups([len(encoded[text]) + size for text, _, size in parts], pass_tokens):
        pairs = [(parts[i][0], label) for i in batch for label in parts[i][1]]
        layout = lay_out([encoded[text] for text, _ in pairs],
                         [completions[label] for _, label in pairs], len(prompt.before))
        layout = {name: tensor.to(model.device) for name, tensor in layout.items()}
        log_probs = token_log_probs(model, **layout, cache=cache).cpu()
        cache.crop(-layout["input_ids"].shape[1])  # the trunk stays for the next pass
        lengths = [len(completions[label]) for _, label in pairs]
        for pair, part in zip(pairs, log_probs.split(lengths)):
            scores[pair] = part.sum().item()
        bar.update(parts[batch[-1]][0] + 1 - bar.n)
    bar.close()
    return scores

@dataclass
class Classifier:
    """A causal language model that answers with one of its labels."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    prompt: Prompt
    temperature: float = 1.0
    pass_tokens: int = default_pass_tokens()
    digest: str | None = None  # of the base model's files, where it is known

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the columns of `predict_proba`."""
        return list(self.prompt.completions)

    def scores(self, texts: list[str]) -> np.ndarray:
        """Log-probability of every label for every text, (texts, labels)."""
        if isinstance(texts, str):
            raise TypeError("give a list of texts, not one text")
        state, blocks = PartialState(), []
        for start in range(0, max(1, len(texts)), 10_000):  # token ids take more room than texts
            block = texts[start:start + 10_000]
            mine = self.prompt.encode(self.tokenizer,
                                      block[state.process_index::state.num_processes])
            found = score_labels(self.model, mine, self.prompt, self.pass_tokens)
            blocks.append(np.empty((len(block), len(self.labels))))
            for process, scores in enumerate(gather_object([found])):  # processes share the work
                blocks[-1][process::state.num_processes] = scores
        return np.concatenate(blocks)

    def predict_proba(self, texts: list[str]) -> np.ndarray:
        """Probability of every label for every text, (texts, labels); rows sum to 1."""
        return softmax(self.scores(texts) / self.temperature, axis=1)

    def predict(self, texts: list[str]) -> list[str]:
        """The likeliest label of every text."""
        return likeliest(self.predict_proba(texts), self.labels)
