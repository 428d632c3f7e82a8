"""What an engine is asked for and what it gives."""

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
