"""The sandbox as a reward: 1 where the code of a completion passes the tests of its task, 0 elsewhere.

    from extras.reward import passes_tests
    data = load_dataset("json", data_files="runs/first/export-rl/train.jsonl", split="train")
    GRPOTrainer(model, reward_funcs=passes_tests, train_dataset=data, args=...)

A completion is untrusted code: it runs in the sandbox only. A test can still be met by code that does not do
what the task says; nothing here sees that.
"""

import atexit
import functools
import os

from parts.code import parses, program, python_code, runnable_code
from sandbox import Sandbox


@functools.cache
def open_sandbox(timeout: float, memory_mb: int) -> Sandbox:
    """Kept open until the process ends; the processes of a node share its cores."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    sandbox = Sandbox(max(1, len(os.sched_getaffinity(0)) // processes), timeout, memory_mb)
    atexit.register(sandbox.close)
    return sandbox


def text_of(content: str | list | None) -> str:
    """The text of a chat message, whose content may be a list of parts."""
    if isinstance(content, list):
        return "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
    return content or ""


def passes_tests(completions, tests, timeout, memory_mb, **_) -> list[float | None]:
    """A reward for each completion, a text or chat messages; None where the sandbox has no verdict.

    The other columns are those of `export --format rl`. A program may take `timeout` seconds of the
    processor.
    """
    texts = [text if isinstance(text, str) else text_of(text[-1]["content"]) for text in completions]
    rewards = dict.fromkeys(range(len(texts)), 0.0)
    for limits in set(zip(timeout, memory_mb)):
        programs = (
            (n, program(runnable_code(text), tests[n]))
            for n, text in enumerate(texts)
            if (timeout[n], memory_mb[n]) == limits and python_code(text) and parses(python_code(text))
        )
        for n, result in open_sandbox(*limits).map(programs):
            rewards[n] = None if result.outcome == "error" else float(result.outcome == "passed")
    return list(rewards.values())
