"""Finds the text of benchmarks in other text (paper 2.3 and C), in two layers.

    substring   The text holds a task's wording or reference solution, lower-cased and without white space.
                Needles under MIN_NEEDLE characters, such as `return number % 1.0`, are left out: they
                occur in much other code.
    overlap     The text holds at least MIN_SHARE of the word six-grams of a wording or solution, and at least
                MIN_SHARED: a task copied with changes.

A third layer, functions that solve a benchmark's task, is in parts/behaviour.py.

Searched are HumanEval+ and MBPP+, or what of them can be had (parts/benchmarks.py), and every file of the
folder that BENCHMARKS_PATH names: the other tasks of MBPP, its sanitized wordings, HumanEval's own solutions,
GSM8K, DS-1000, as .json or .jsonl, packed with gzip or not. Only the tasks of EvalPlus have inputs to be
tried on.

Differs from the paper's scripts: white space does not count (499 of 500 MBPP solutions end their lines with
CRLF, and were never found), every task and wording of MBPP that is there is searched, EvalPlus's rewritten
solutions too, and overlap is a layer of its own.
"""

import ast
import collections
import gzip
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from parts.benchmarks import OVERRIDES, NotHere, load_benchmark
from parts.rows import BadInput

# Measured on 7,102 docstrings and 16,407 functions of the standard library and 36,350 of scientific packages.
# Of needles of 12 characters or more, one stands in them, Euclid's algorithm with 23. Six-grams overlap with
# one docstring, which is a task's wording nearly word for word, and with one function. Of the wordings, 91 %
# are found with one in 20 words replaced at random, 76 % with one in 10. Without the least number of
# six-grams, short solutions overlap with 17 more innocent functions and with 8 of 538 responses instead of
# none.
MIN_NEEDLE = 30
NGRAM, MIN_SHARED, MIN_SHARE = 6, 4, 0.3
TEXT_KEYS = ("prompt", "text", "question")
SOLUTION_KEYS = ("canonical_solution", "code", "reference_code")


def load_further(folder: Path) -> Iterator[tuple[str, dict]]:
    """(task id, row) of each row with one of TEXT_KEYS in the folder's files. Raises BadInput."""
    paths = sorted(path for path in folder.glob("*") if re.search(r"\.jsonl?(\.gz)?$", path.name))
    if not paths:
        raise BadInput(f"BENCHMARKS_PATH names no folder with .json or .jsonl files: {folder}")
    for path in paths:
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            rows = json.loads(content) if ".jsonl" not in path.name else map(json.loads, content.splitlines())
            for number, row in enumerate(rows, 1):
                if not any(key in row for key in TEXT_KEYS):
                    raise ValueError(f"row {number} has none of {', '.join(TEXT_KEYS)}")
                yield f"{path.name.split('.')[0]}/{str(row.get('task_id', number)).split('/')[-1]}", row
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise BadInput(f"{path}: not a file of benchmark tasks: {error}") from None


def task_texts(task: dict) -> list[str]:
    """The task's wordings, whole and without their examples, and its reference solutions."""
    texts = [task[key] for key in SOLUTION_KEYS if key in task]
    for wording in (task[key] for key in TEXT_KEYS if key in task):
        try:
            nodes = list(ast.walk(ast.parse(wording)))
        except SyntaxError:  # prose
            nodes = []
        docstrings = [
            ast.get_docstring(node) for node in nodes if isinstance(node, (ast.Module, ast.FunctionDef))
        ]
        for text in list(filter(None, docstrings)) or [wording]:
            texts += [text, re.split(r">>>|\nassert|[Ee]xamples?:", text)[0]]
    return texts


def normalise(text: str) -> str:
    return re.sub(r"\s+", "", text.lower())


def word_ngrams(text: str) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}


class Finding(NamedTuple):
    """What a text has of a benchmark."""

    layer: str  # substring or overlap
    task: str
    share: float  # of the six-grams of the task's nearest wording or solution


class Decontaminator:
    """Finds benchmark tasks in texts; `coverage` says in one line what it searches."""

    def __init__(self, folder: str | None = None):
        """`folder` holds further benchmarks (default: BENCHMARKS_PATH)."""
        folder, tasks, covered, missing = folder or os.environ.get("BENCHMARKS_PATH"), [], [], []
        for name in OVERRIDES:
            try:
                benchmark = load_benchmark(name)
            except NotHere as error:
                missing.append(f"{name}+ NOT SEARCHED: {error}")
                continue
            tasks += benchmark.tasks.items()
            covered.append(benchmark.suite)
            if benchmark.missing:
                missing.append(f"{name}+ NOT SEARCHED: {benchmark.missing}")
        self.suites = list(covered)
        if folder:
            further = list(load_further(Path(folder)))
            tasks += further
            covered += sorted({task_id.split("/")[0] for task_id, _ in further})
        else:
            missing.append(
                "MBPP's other tasks, GSM8K, DS-1000 NOT SEARCHED: BENCHMARKS_PATH names no folder with them"
            )
        self.runnable = {task_id: task for task_id, task in tasks if "plus_input" in task}
        self.needles = collections.defaultdict(dict)  # first MIN_NEEDLE characters: {needle: task id}
        self.texts = []  # (task id, six-grams in all)
        self.texts_with = collections.defaultdict(list)  # six-gram: the texts that hold it
        for task_id, task in tasks:
            for text in dict.fromkeys(task_texts(task)):
                if len(needle := normalise(text)) >= MIN_NEEDLE:
                    self.needles[needle[:MIN_NEEDLE]].setdefault(needle, task_id)
                if len(ngrams := word_ngrams(text)) >= MIN_SHARED:
                    for ngram in ngrams:
                        self.texts_with[ngram].append(len(self.texts))
                    self.texts.append((task_id, len(ngrams)))
        self.coverage = "; ".join(
            ([f"substrings and six-grams of {', '.join(covered)}"] if covered else []) + missing
        )

    def contaminated_by(self, text: str) -> Finding | None:
        """The task that stands in `text`, or whose wording or solution stands there in large part."""
        haystack = normalise(text)
        for start in range(len(haystack) - MIN_NEEDLE + 1):
            if beginning_alike := self.needles.get(haystack[start : start + MIN_NEEDLE]):
                for needle, task_id in beginning_alike.items():
                    if haystack.startswith(needle, start):
                        return Finding("substring", task_id, 1.0)
        task, share = self.nearest(text)
        return Finding("overlap", task, share) if share >= MIN_SHARE else None

    def nearest(self, text: str) -> tuple[str | None, float]:
        """The task with the largest share of a wording's or solution's six-grams in `text`, at least
        MIN_SHARED of them; and that share."""
        shared = collections.Counter(
            number for ngram in word_ngrams(text) for number in self.texts_with.get(ngram, ())
        )
        found = (
            (count / self.texts[number][1], self.texts[number][0])
            for number, count in shared.items()
            if count >= MIN_SHARED
        )
        share, task = max(found, default=(0.0, None))
        return task, share
