"""Texts and labels as one sequence."""

import torch
from conftest import TEXTS, plain_model

from day9.layout import lay_out, pick_log_probs, run_decoder, token_log_probs


def test_nothing_is_rounded_after_the_head(random_llama, prompt, tokenizer):
    """A model in bfloat16: log-probabilities are those of float32 arithmetic on its states."""
    model = plain_model(random_llama).bfloat16()
    layout = lay_out([prompt.before + ids for ids in prompt.encode(tokenizer, TEXTS[:4])],
                     list(prompt.completions.values()))
    names = ("input_ids", "position_ids", "attention_mask")
    with torch.no_grad():
        found = token_log_probs(model, **layout)
        hidden = run_decoder(model, **{name: layout[name] for name in names},
                             use_cache=False).last_hidden_state[0]
    head = model.get_output_embeddings().weight
    assert hidden.dtype == head.dtype == torch.bfloat16 and found.dtype == torch.float32
    logits = hidden[layout["sources"]].float() @ head.float().T
    wanted = logits.log_softmax(-1).gather(-1, layout["targets"][:, None])[:, 0]
    assert (found - wanted).abs().max() < 1e-5
    rounded = (hidden @ head.T).log_softmax(-1)[layout["sources"], layout["targets"]]
    assert (rounded.float() - wanted).abs().max() > 1e-3  # else rounding would go unnoticed


def test_the_head_is_multiplied_a_piece_at_a_time(monkeypatch):
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(6, 8), torch.randn(50, 8), torch.tensor([49, 0, 16, 17, 3])
    sources = torch.tensor([5, 0, 5, 2, 2])
    wanted = (hidden @ head.T).log_softmax(-1)[sources, targets]
    for piece in (1, 17, 50, 1000):
        monkeypatch.setattr("day9.layout.HEAD_PIECE", piece)
        assert torch.allclose(pick_log_probs(hidden, targets, head, sources), wanted)
