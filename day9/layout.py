"""Texts and labels as one sequence, and the log-probabilities in it. Tangled from README.org."""

import contextlib

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

HEAD_PIECE = 16384  # rows of the output head that are multiplied at a time


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
    index of each one's source (sources) and its id (targets).
    """
    paths = [p + c[:-1] for p, c in zip(prompts, completions)]  # nothing follows the last token
    tokens, parents, nodes = grow_forest(paths)
    depth, visible = see_ancestors(parents)
    mask = torch.cat([visible.new_ones(len(tokens), trunk), visible], dim=1)
    sources = [node for path, p in zip(nodes, prompts) for node in path[len(p) - 1:]]
    return {"input_ids": torch.tensor([tokens]), "position_ids": trunk + depth[None],
            "attention_mask": mask[None, None], "sources": torch.tensor(sources),
            "targets": torch.tensor([token for c in completions for token in c])}

def as_numbers(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask (1, 1, L, K) as 0 where it is true and minus infinity elsewhere."""
    padding = -mask.shape[-1] % 8  # a GPU would copy other rows in every layer
    numbers = torch.nn.functional.pad(torch.zeros_like(mask, dtype=dtype), (0, padding))
    return numbers[..., :mask.shape[-1]].masked_fill_(~mask, -torch.inf)


def run_decoder(model, attention_mask: torch.Tensor | None = None, **inputs):
    """All layers but the head, in the number format of the weights, adapter included."""
    dtype = model.get_input_embeddings().weight.dtype
    half = dtype != torch.float32
    if attention_mask is not None:
        attention_mask = as_numbers(attention_mask, dtype)
    with torch.autocast(model.device.type, dtype) if half else contextlib.nullcontext():
        return model.get_decoder()(attention_mask=attention_mask, **inputs)

def log_sum(states: torch.Tensor, piece: torch.Tensor) -> torch.Tensor:
    """Logarithm of the sum of exp(logit) over a piece of the head, for each state."""
    return (states @ piece.float().T).logsumexp(-1)


def pick_log_probs(hidden: torch.Tensor, targets: torch.Tensor, head: torch.Tensor,
                   sources: torch.Tensor) -> torch.Tensor:
    """Log-probability (W,) of each target after the hidden state (L, width) of its source.

    All in float32; the head (vocabulary, width) is taken in pieces, which are computed again for
    the gradients, to save memory.
    """
    where, back = sources.unique(return_inverse=True)  # labels may share a source
    states = hidden[where].float()
    with torch.autocast(hidden.device.type, enabled=False):
        logits = (states[back] * head[targets].float()).sum(-1)
        sums = [checkpoint(log_sum, states, piece, use_reentrant=False)
                for piece in head.split(HEAD_PIECE)]
    return logits - torch.stack(sums).logsumexp(0)[back]  # log_softmax over the vocabulary


def token_log_probs(model, input_ids, position_ids, attention_mask, sources, targets,
                    cache=None) -> torch.Tensor:
    """Log-probability of each target of a layout (`lay_out`): (W,), float32."""
    hidden = run_decoder(model, input_ids=input_ids, position_ids=position_ids,
                         attention_mask=attention_mask, cache=cache,
                         use_cache=cache is not None).last_hidden_state[0]
    return pick_log_probs(hidden, targets, model.get_output_embeddings().weight, sources)
