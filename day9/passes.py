"""What goes into one pass of the model: rows, texts, labels. Written by hand, not tangled."""

import os
from collections.abc import Iterator

from accelerate import PartialState


def in_groups(sizes: list[int], room: int) -> list[list[int]]:
    """Indices of consecutive items whose sizes sum to at most `room`; a larger one goes alone."""
    groups, used = [], room + 1
    for index, size in enumerate(sizes):
        if used + size > room:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += size
    return groups


def group_labels(completions: list[list[int]], room: int) -> list[tuple[list[int], int]]:
    """The indices of each group's labels, and about how many tokens they take: `room`, or less."""
    order = sorted(range(len(completions)), key=lambda i: completions[i])  # similar ones adjacent
    shared = [len(os.path.commonprefix([completions[a], completions[b]]))
              for a, b in zip(order, order[1:])]
    sizes = [len(completions[i]) - same for i, same in zip(order, [0, *shared])]
    return [([order[i] for i in group], sum(sizes[i] for i in group))
            for group in in_groups(sizes, room)]


def plan_passes(texts: list[list[int]], completions: list[list[int]],
                pass_tokens: int) -> Iterator[list[tuple[int, int]]]:
    """The pairs (text, label) of each pass, in the order of the texts.

    That is several texts with all labels, or one text with a group of them.
    """
    rooms = [max(pass_tokens - len(ids), pass_tokens // 4) for ids in texts]  # some for long ones
    groups = {room: group_labels(completions, room) for room in set(rooms)}
    parts = [(text, *part) for text, room in enumerate(rooms) for part in groups[room]]
    for batch in in_groups([len(texts[text]) + size for text, _, size in parts], pass_tokens):
        yield [(parts[i][0], label) for i in batch for label in parts[i][1]]


IGNORED = -100  # in place of a target: the Trainer does not count it


def ignore_repeats(inputs: dict, rows: int, size: int) -> dict:
    """An epoch's last pass of this process without the targets of rows that are repeats.

    accelerate begins with the first of all `rows` again where there are too few to give every
    process `size` of them.
    """
    state = PartialState()
    if left := rows % (size * state.num_processes):
        new = left - size * state.process_index
        inputs["shift_labels"][inputs["rows"] >= new] = IGNORED
    return inputs


def rows_in_a_pass(batch_size: int, longest: int, pass_tokens: int) -> int:
    """Training rows that one process takes in a pass, an even part of its share of the batch."""
    share = batch_size // PartialState().num_processes
    return max(rows for rows in range(1, share + 1)
               if share % rows == 0 and (rows * longest <= pass_tokens or rows == 1))
