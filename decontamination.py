"""Keeps the benchmarks out of the data: nothing is kept that holds the text or the solution of a HumanEval+ or MBPP+ task.

A needle is a task's docstring (its part before the examples, too), its wording, or its reference solution, lower-cased and with white space
removed, if at least MIN_NEEDLE characters remain: shorter ones, such as `return number % 1.0`, are in much that is innocent.
"""

import ast
import contextlib
import gzip
import io
import os
import re
import socket
import tempfile
from pathlib import Path

from rows import BadInput

MIN_NEEDLE = 40
OVERRIDES = {"humaneval": "HUMANEVAL_OVERRIDE_PATH", "mbpp": "MBPP_OVERRIDE_PATH"}


def load_benchmark(name: str) -> tuple[dict[str, dict], str]:
    """The tasks of HumanEval+ or MBPP+ by task id, and the MD5 of their file, from EvalPlus: downloaded once, or the file that the
    environment variable HUMANEVAL_OVERRIDE_PATH or MBPP_OVERRIDE_PATH names (.jsonl or .jsonl.gz). Raises BadInput."""
    override = os.environ.get(OVERRIDES[name])
    if override and not Path(override).is_file():
        raise BadInput(f"{OVERRIDES[name]} names a missing file: {override}")
    import evalplus.data
    import evalplus.data.humaneval
    import evalplus.data.mbpp

    module = getattr(evalplus.data, name)
    with tempfile.TemporaryDirectory() as scratch:
        if override and override.endswith(".gz"):  # EvalPlus would hash the packed bytes
            unpacked = Path(scratch, "tasks.jsonl")
            unpacked.write_bytes(gzip.decompress(Path(override).read_bytes()))
            override = str(unpacked)
        setattr(module, OVERRIDES[name], override)
        get_tasks, get_hash = {
            "humaneval": (evalplus.data.get_human_eval_plus, evalplus.data.get_human_eval_plus_hash),
            "mbpp": (evalplus.data.get_mbpp_plus, evalplus.data.get_mbpp_plus_hash),
        }[name]
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(60)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # its download bar
                return get_tasks(), get_hash()
        except OSError as error:
            raise BadInput(
                f"cannot download {name}+ ({error}): connect to the internet once, "
                f"or set {OVERRIDES[name]} to a copy of EvalPlus's file"
            ) from None
        except (ValueError, AssertionError, KeyError) as error:
            raise BadInput(f"{os.environ.get(OVERRIDES[name], name + '+')} is not a file of {name}+ tasks: {error}") from None
        finally:
            socket.setdefaulttimeout(timeout)


def normalise(text: str) -> str:
    return re.sub(r"\s+", "", text.lower())


class Decontaminator:
    """Answers whether a text holds a needle of a benchmark; `coverage` says in one line which benchmarks it searches."""

    def __init__(self):
        self.needles, covered, missing = {}, [], []
        for name in OVERRIDES:
            try:
                tasks, _ = load_benchmark(name)
            except BadInput as error:
                missing.append(f"{name}+ NOT SEARCHED: {error}")
                continue
            for task_id, task in tasks.items():
                for text in task_texts(task):
                    if len(needle := normalise(text)) >= MIN_NEEDLE:
                        self.needles[needle] = task_id
            covered.append(f"{name}+")
        self.coverage = "; ".join(([f"substrings of {' and '.join(covered)}"] if covered else []) + missing)

    def contaminated_by(self, text: str) -> str | None:
        """The id of a task whose text or solution stands in `text`."""
        haystack = normalise(text)
        return next((task_id for needle, task_id in self.needles.items() if needle in haystack), None)


def task_texts(task: dict) -> list[str]:
    """The task's wordings and its reference solution."""
    texts = [task["canonical_solution"]]
    for node in ast.walk(ast.parse(task["prompt"])):
        if isinstance(node, (ast.Module, ast.FunctionDef)) and (docstring := ast.get_docstring(node)):
            texts += [docstring, re.split(r">>>|\nassert|[Ee]xamples?:", docstring)[0]]
    return texts
