"""Token ids of prompts and completions; what a text contains cannot change them."""

from dataclasses import dataclass

import transformers
from accelerate import PartialState
from transformers import AutoTokenizer

from reading import InputError
from settings import Settings


PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}:\n\n"
    "{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n\n{% endif %}")


def load_tokenizer(name: str, revision: str = "main") -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer; a base model's gets a plain chat template and a padding token."""
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
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
    before = pieces[0] + [t for pair in zip(contents, pieces[1:]) for part in pair for t in part]
    ends = [ids + [tokenizer.eos_token_id] for ids in token_ids(tokenizer, labels)]
    room = max_length - len(before) - len(after) - max(map(len, ends))
    return Prompt(before, after, dict(zip(labels, ends)), room)


def check_prompt(prompt: Prompt, settings: Settings) -> None:
    """Raise InputError where texts have no room, labels cannot be told apart or ended, or processes
    cannot share a batch.
    """
    if any(None in completion for completion in prompt.completions.values()):
        raise InputError(f"the tokenizer of {settings.model} has no token that ends an answer: "
                         "restore its tokenizer_config.json, or choose another --model")
    if len(set(map(tuple, prompt.completions.values()))) < len(prompt.completions):
        raise InputError("two labels are the same to the tokenizer: rename one of "
                         + ", ".join(prompt.completions))
    if prompt.text_room < 8:
        raise InputError(f"--max-length {settings.max_length} leaves {prompt.text_room} tokens for "
                         "the text: raise it, or choose a --model that takes more")
    processes = PartialState().num_processes
    if settings.batch_size % processes:
        raise InputError(f"{processes} processes cannot share a batch of {settings.batch_size} "
                         "evenly: choose a multiple for --batch-size")
