"""Prompts and completions as token ids, whatever a text holds. Written by hand, not tangled."""

import os
from dataclasses import dataclass
from datetime import date

import transformers
from transformers import AutoTokenizer

from day9.files import sha256

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}:\n\n"
    "{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n\n{% endif %}")

TODAY = date(2024, 7, 26)  # for every template: a prompt that holds does not depend on a clock
CLOCK = "{%- macro strftime_now(form) %}{{ form" + "".join(
    f" | replace('%{code}', '{TODAY.strftime('%' + code)}')"
    for code in ["a", "A", "b", "B", "d", "-d", "F", "H", "I", "j", "m", "-m", "M", "p", "S", "T",
                 "y", "Y"]) + " }}{% endmacro %}\n"  # in place of what a template is offered


def load_tokenizer(name: str) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer; a base model's gets a plain chat template and a padding token."""
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    tokenizer.chat_template = tokenizer.chat_template or PLAIN_TEMPLATE
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def token_ids(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of the texts; the names of control tokens in them are ordinary characters."""
    if not len(texts):
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
    control = control_ids(tokenizer) - {tokenizer.unk_token_id}
    return [ids if control.isdisjoint(ids) else  # a unigram model knows the names as words
            [part for token in ids for part in (spelled(tokenizer, token) if token in control else
                                                [token])] for ids in encoded["input_ids"]]


def control_ids(tokenizer) -> set[int]:
    """The ids of control tokens."""
    return {*tokenizer.all_special_ids,
            *(token for token, added in tokenizer.added_tokens_decoder.items() if added.special)}


def spelled(tokenizer, token: int) -> list[int]:
    """The ids of the characters of a token's name."""
    ids = tokenizer.convert_tokens_to_ids(list(tokenizer.convert_ids_to_tokens(token)))
    return [part for part in ids if part is not None]


def inner_ids(tokenizer, texts: list[str], lead: str) -> list[list[int]]:
    """As token_ids, of texts that stand inside a chat; `lead` is what `lead_after` returns."""
    if not lead:
        return token_ids(tokenizer, texts)
    [start] = token_ids(tokenizer, [lead.rstrip(" ")])
    return [take_off(start, ids) for ids in token_ids(tokenizer, [lead + text for text in texts])]


def take_off(start: list[int], ids: list[int]) -> list[int]:
    """Token ids without those at their beginning that are also the beginning of `start`."""
    return ids[len(os.path.commonprefix([start, ids])):]


@dataclass
class Prompt:
    """Token ids before and after each text, and of each label's completion with its end token."""

    before: list[int]
    after: list[int]
    completions: dict[str, list[int]]
    text_room: int  # most tokens of a text
    lead: str = ""  # of inner_ids

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids, which another tokenizer or chat template would change."""
        return sha256([self.before, self.after, self.completions, *filter(None, [self.lead])])

    def token_ids(self, tokenizer, texts: list[str]) -> list[list[int]]:
        """Token ids of each whole text, as they are in the prompt."""
        return inner_ids(tokenizer, texts, self.lead)

    def encode(self, tokenizer, texts: list[str]) -> list[list[int]]:
        """Token ids of each text and what follows it; a text too long is cut at its end."""
        return [ids[:self.text_room] + self.after for ids in self.token_ids(tokenizer, texts)]


def default_instruction(labels: list[str]) -> str:
    """Name the labels where the list is short; a list of many would fill every prompt."""
    return "Classify the text" + (" as one of: {labels}." if len(labels) <= 20 else ".")


def name_labels(instruction: str, labels: list[str]) -> str:
    """The instruction with the list of labels in place of each {labels}."""
    return instruction.replace("{labels}", ", ".join(labels))


def render(tokenizer, instruction: str, turns: int) -> list[str]:
    """What the chat template writes around the contents of `turns` messages, the first the user's.

    The instruction goes before the first content; an odd number of turns asks for an answer.
    Raises ValueError where the template does not write every message once.
    """
    mark, template, why = "TEXT-GOES-HERE", tokenizer.get_chat_template(), []
    if "strftime_now" in template:
        template = CLOCK + template
    for wrap in (str, lambda text: [{"type": "text", "text": text}]):  # some ask for parts
        chat = [{"role": ("user", "assistant")[turn % 2], "content": wrap(mark)}
                for turn in range(turns)]
        chat[0]["content"] = wrap(f"{instruction}\n\n{mark}")
        try:
            written = tokenizer.apply_chat_template(
                chat, chat_template=template, tokenize=False, add_generation_prompt=turns % 2 == 1,
                date_string=TODAY.strftime("%d %b %Y"))  # what Llama's asks for
        except Exception as error:  # a template may raise anything
            why.append(str(error))
            continue
        pieces = written.split(mark)
        if len(pieces) == turns + 1 and not pieces[1].startswith(("'}]", '"}]')):  # parts, as code
            return pieces
        why.append("a message is left out or changed")
    raise ValueError(f"its chat template cannot write messages of plain text ({why[0]})")


def line_before(tokenizer) -> str:
    """A line end if the tokenizer begins each text with a space, as sentencepiece does, or "".

    Inside a chat a text has no such space, and none after a line end, which can be taken off again.
    """
    [start], [joined], [alone] = (token_ids(tokenizer, [text]) for text in ("\n", "\na", "a"))
    spaced = joined[:len(start)] == start and joined[len(start):] not in ([], alone)
    return "\n" if spaced else ""


def lead_after(tokenizer, piece: str, line: str) -> str:
    """What a text is tokenized after that follows a piece of a chat; `line` is of line_before.

    Spaces at the end of the piece belong to the first token of the text.
    """
    spaces = piece[len(piece.rstrip(" ")):]
    if line and not spaces:  # after a control token there may be a space, as at a beginning
        [alone] = token_ids(tokenizer, ["a"])
        if tokenizer.encode(f"{piece}a", add_special_tokens=False)[-len(alone):] == alone:
            return ""
    return line and line + spaces


def piece_ids(tokenizer, piece: str, line: str) -> list[int]:
    """Token ids of a piece of the template, but for the spaces that belong to the next text."""
    start, ids = (tokenizer.encode(text, add_special_tokens=False)
                  for text in (line, line + (piece.rstrip(" ") if line else piece)))
    return take_off(start, ids) if line else ids


def end_of_answer(tokenizer, ids: list[int]) -> list[int]:
    """Of what the template writes after an answer all up to its first control token, or eos."""
    control = control_ids(tokenizer)
    places = [place for place, token in enumerate(ids) if token in control]
    return ids[:places[0] + 1] if places else [tokenizer.eos_token_id]


def make_prompt(tokenizer, labels: list[str], instruction: str, max_length: int,
                examples: list[tuple[str, str]] = ()) -> Prompt:
    """The prompt of a classifier, with `examples` (text, label) as earlier turns.

    Raises ValueError where the chat template cannot be used.
    """
    instruction, line = name_labels(instruction, labels), line_before(tokenizer)
    first, *others, after = render(tokenizer, instruction, 2 * len(examples) + 1)
    _, opening, ending = render(tokenizer, instruction, 2)
    before, lead = piece_ids(tokenizer, first, ""), lead_after(tokenizer, first, line)
    for content, piece in zip([content for example in examples for content in example], others):
        [ids] = inner_ids(tokenizer, [content], lead)
        before = before + ids + piece_ids(tokenizer, piece, line)
        lead = lead_after(tokenizer, piece, line)
    after, end = (piece_ids(tokenizer, piece, line) for piece in (after, ending))
    end = end_of_answer(tokenizer, end)
    answers = inner_ids(tokenizer, labels, lead_after(tokenizer, opening, line))
    completions = {label: ids + end for label, ids in zip(labels, answers)}
    room = max_length - len(before) - len(after) - max(map(len, completions.values()))
    return Prompt(before, after, completions, room, lead)


def context_length(model) -> int:
    """How many tokens the model can take at once, and each see all; very many without a limit."""
    config = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window"))
    return min(filter(None, limits), default=10**6)
