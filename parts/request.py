"""What an engine is asked for and what it gives."""

import functools
import re
from dataclasses import dataclass, field


@dataclass
class Request:
    """What the engine is asked for: `prompt` in token ids, the sampling `seed` of this one request, and the
    `row` it will become."""

    id: str
    prompt: list[int]
    max_tokens: int
    seed: int | None
    stop: list[str]
    row: dict = field(default_factory=dict)
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    logprobs: int = 0  # how many of the likeliest first tokens to tell


@dataclass
class Completion:
    text: str
    finished: bool  # by a stop string or the end-of-text token, not by running out of tokens
    tokens: int
    # The likeliest first tokens and their probabilities, where asked for
    first: dict[str, float] = field(default_factory=dict)


def prompt_ids(tokenizer, text: str) -> list[int]:
    """The tokens of a text that a model is to go on with: what its tokenizer puts before a text, then
    `text_ids`. An end-of-text token that it puts after each text would end the prompt."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    return whole[: whole.index(bare[0])] + text_ids(tokenizer, text)


def text_ids(tokenizer, text: str) -> list[int]:
    """The tokens of a text, in which the name of a control token, <|im_end|> say, is text like any other."""
    names = control_names(tokenizer)
    parts = re.split(f"(?<=<)(?={names})", text) if names else [text]
    encode = functools.partial(tokenizer, add_special_tokens=False, split_special_tokens=True)
    return [token for part in parts for token in encode(part).input_ids]


@functools.lru_cache
def control_names(tokenizer) -> str:
    """A pattern of what follows the < of the control tokens that `split_special_tokens` leaves out, as their
    tokenizer does not call them special: Qwen's <|fim_prefix|>."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if not token.special)
    return "|".join(re.escape(name[1:]) for name in added if re.fullmatch("<.+>", name))


def chat_ids(tokenizer, prompt: str, text: str) -> list[int]:
    """The tokens of a prompt that a chat template made around `text`: its own control tokens are such."""
    encode = lambda part: tokenizer(part, add_special_tokens=False).input_ids
    if encode(text) == text_ids(tokenizer, text):
        return encode(prompt)
    before, text, after = prompt.partition(text)
    return encode(before) + text_ids(tokenizer, text) + encode(after)
