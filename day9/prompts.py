"""Prompts and completions as token ids, whatever a text holds. Written by hand, not tangled."""

from dataclasses import dataclass

import transformers
from transformers import AutoTokenizer

from day9.files import sha256

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}:\n\n"
    "{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n\n{% endif %}")


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
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


@dataclass
class Prompt:
    """Token ids before and after each text, and of each label's completion with its end token."""

    before: list[int]
    after: list[int]
    completions: dict[str, list[int]]
    text_room: int  # most tokens of a text

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids, which another tokenizer or chat template would change."""
        return sha256([self.before, self.after, self.completions])

    def encode(self, tokenizer, texts: list[str]) -> list[list[int]]:
        """Token ids of each text and what follows it; a text too long is cut at its end."""
        return [ids[:self.text_room] + self.after for ids in token_ids(tokenizer, texts)]


def default_instruction(labels: list[str]) -> str:
    """Name the labels where the list is short; a list of many would fill every prompt."""
    return "Classify the text" + (" as one of: {labels}." if len(labels) <= 20 else ".")


def name_labels(instruction: str, labels: list[str]) -> str:
    """The instruction with the list of labels in place of each {labels}."""
    return instruction.replace("{labels}", ", ".join(labels))


def render(tokenizer, instruction: str, examples: list[tuple[str, str]]) -> list[list[int]]:
    """Token ids between the contents of a chat: the texts and labels of `examples`, then a text."""
    mark = "TEXT-GOES-HERE"
    turns = [{"role": role, "content": mark} for _ in examples for role in ("user", "assistant")]
    turns.append({"role": "user", "content": mark})
    turns[0]["content"] = f"{instruction}\n\n{mark}"
    chat = tokenizer.apply_chat_template(  # Llama 3.2 writes today's date unless told another
        turns, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024")
    return [tokenizer.encode(piece, add_special_tokens=False) for piece in chat.split(mark)]


def make_prompt(tokenizer, labels: list[str], instruction: str, max_length: int,
                examples: list[tuple[str, str]] = ()) -> Prompt:
    """The prompt of a classifier, with `examples` (text, label) as earlier turns."""
    *pieces, after = render(tokenizer, name_labels(instruction, labels), examples)
    contents = token_ids(tokenizer, [content for example in examples for content in example])
    before = pieces[0]
    for content, piece in zip(contents, pieces[1:]):
        before = before + content + piece
    ends = [ids + [tokenizer.eos_token_id] for ids in token_ids(tokenizer, labels)]
    room = max_length - len(before) - len(after) - max(map(len, ends))
    return Prompt(before, after, dict(zip(labels, ends)), room)


def context_length(model) -> int:
    """How many tokens the model can take at once, and each see all; very many without a limit."""
    config = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window"))
    return min(filter(None, limits), default=10**6)
