"""The pictures of README.org that no run makes. Written by hand, not tangled."""

import textwrap

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle


def save(figure: Figure, path: str) -> str:
    """Write a figure, and return its path for Org."""
    figure.savefig(path, dpi=120)
    return path


def draw_path(prompt: list[int], tokenizer, scores: pd.DataFrame, path: str) -> str:
    """Draw the way of a text in one strip: prompt, token ids, scores, probabilities.

    `scores` has a row for each label, and columns score and probability.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    written, numbered, logs, bars = figure.subplots(1, 4, width_ratios=(2.5, 1.7, 1.4, 1.2))
    rows = "\n".join(textwrap.fill(line, 36) for line in tokenizer.decode(prompt).splitlines())
    pieces = [f"{token:>6}  {tokenizer.decode(token)!r}" for token in prompt]
    shown = [*pieces[:5], "     …", *pieces[-12:]]
    for axes, title, content in (
            (written, "1. the prompt", rows),
            (numbered, f"2. its {len(prompt)} tokens", "\n".join(shown))):
        axes.set_axis_off()
        axes.set_title(title, fontsize=10)
        axes.text(0, 0.97, content, va="top", family="monospace", fontsize=8, parse_math=False)
    for axes, column, title in ((logs, "score", "3. the Llama: log-\nprobabilities"),
                                (bars, "probability", "4. probability\n(softmax)")):
        axes.barh(scores.index, scores[column], color="steelblue")
        axes.set_title(title, fontsize=10)
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
    bars.set_yticklabels([])
    return save(figure, path)


def draw_layout(layout: dict, tokenizer, lengths: list[int], path: str) -> str:
    """Draw the mask of a layout: a row per token, its dark cells the tokens that it sees.

    `lengths` are the tokens of the trunk and of each text; brackets say where each stands.
    """
    tokens = [tokenizer.decode(token) for token in layout["input_ids"][0]]
    depths = layout["position_ids"][0].tolist()
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(layout["attention_mask"][0, 0], cmap="Blues", vmin=0, vmax=1.4)
    axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
    axes.set_yticks(range(len(tokens)), tokens, fontsize=8)
    axes.set_xlim(-0.5, len(tokens) - 0.5)
    trunk, *texts = lengths
    starts = [node for node, depth in enumerate(depths) if depth == trunk]
    ends = [*starts[1:], len(tokens)]
    spans = [(0, trunk, "instruction")]
    for number, (start, end, length) in enumerate(zip(starts, ends, texts), 1):
        spans += [(start, start + length, f"text {number}"), (start + length, end, "labels")]
    for start, end, name in spans:
        right = len(tokens) - 0.2
        axes.plot([right, right + 0.3, right + 0.3, right],
                  [start - 0.4, start - 0.4, end - 0.6, end - 0.6], color="black", clip_on=False)
        axes.text(right + 0.6, (start + end - 1) / 2, name, va="center", fontsize=9)
    return save(figure, path)


def draw_lora(shape: tuple[int, int], rank: int, path: str) -> str:
    """Draw a frozen weight matrix of a shape (out, in), and the two thin ones beside it."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    out, into = shape
    high, wide, thin = 2.2, 2.2 * into / out + 0.6, 0.22
    parts = ((0, wide, high, "lightgrey", f"W, frozen, in 4 bits\n{out} x {into}"),
             (wide + 1.1, thin, high, "steelblue", f"B\n{out} x {rank}"),
             (wide + 2.0, wide, thin, "steelblue", f"A\n{rank} x {into}"))
    for left, width, height, color, name in parts:
        axes.add_patch(Rectangle((left, -height), width, height, color=color))
        axes.text(left + width / 2, -height - 0.1, name, ha="center", va="top", fontsize=10)
    for left, sign in ((wide + 0.5, "+ 2 ·"), (wide + 1.65, "·")):
        axes.text(left, -high / 2, sign, ha="center", va="center", fontsize=16)
    axes.set(xlim=(-0.2, 2 * wide + 2.4), ylim=(-high - 0.8, 0.2), aspect="equal")
    axes.set_axis_off()
    return save(figure, path)


def draw_losses(logs: dict[str, list[dict]], path: str) -> str:
    """Draw the losses per token of trl's logs side by side: of training, and of validation."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (title, log) in zip(figure.subplots(1, len(logs), sharey=True), logs.items()):
        for key, name, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
            points = [(entry["step"], entry[key]) for entry in log if key in entry]
            axes.plot(*zip(*points), style, label=name)
        axes.set(title=title, xlabel="step")
        axes.legend()
    figure.axes[0].set(ylabel="loss per token", yscale="log")
    figure.axes[0].set_yticks([0.01, 0.03, 0.1, 0.3, 1], ["0.01", "0.03", "0.1", "0.3", "1"])
    figure.axes[0].minorticks_off()
    return save(figure, path)
