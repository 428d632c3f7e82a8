"""Decontamination by execution: functions that give a benchmark task's outputs on its inputs, whatever they
are called.

This finds a benchmark's task that was copied in other words, which no search of text can. Every top-level
function of a response is tried on every task of HumanEval+ and MBPP+ that takes as many arguments, in the
sandbox, by parts/try_tasks.py.
"""

import ast
import base64
import collections
import contextlib
import functools
import io
import itertools
import marshal
import math
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from parts.try_tasks import solves

TRY_TASKS = Path(__file__).with_name("try_tasks.py").read_text(encoding="utf-8")
# A function solves a task if it is right on INPUTS of its inputs, or on all if there are fewer. Tasks whose
# outputs on them are too alike are not tried: n outputs of entropy H carry n * H bits, and a guess by their
# frequencies is right once in 2 ** (n * H).
INPUTS, LARGEST, MIN_BITS = 20, 300, 10  # LARGEST: characters of an input or an output
# Nor are tasks that one builtin solves, 16 in all: code that sorts, sums or counts is no sign of a copy. With
# them, 191 of 538 responses of a small model solved a task, 72 of them HumanEval/35 (`max`); without, 34.
BUILTINS = (abs, all, any, bool, float, int, len, list, max, min, pow, round, set, sorted, str, sum, tuple)
MAX_TRIES = 4000  # of functions on tasks, for one response


def solved_tasks(
    trials: list["Trial"], sandbox, codes: Iterable[tuple[object, str]]
) -> Iterator[tuple[object, list[str], int]]:
    """For each (key, code): its key, the ids of the benchmark tasks that a function of the code solves, and
    how many tries are missing: beyond MAX_TRIES, or not made by the program (see parts/try_tasks.py).
    As they are done, not in order; none for a code on which the sandbox itself failed.

    Every top-level function is tried on every task whose number of arguments it takes, in one program of the
    sandbox for each code.
    """
    by_arity = collections.defaultdict(dict)
    for number, trial in enumerate(trials):
        by_arity[trial.arity][number] = trial.as_set, trial.examples
    tables = {arity: pack(table) for arity, table in sorted(by_arity.items())}

    def programs() -> Iterator[tuple[tuple, str]]:
        for key, code in codes:
            tries = plan_tries(code, trials)
            made = tries[:MAX_TRIES]
            arities = {trials[number].arity for _, number in made}
            needed = [table for arity, table in tables.items() if arity in arities]
            yield (key, made, len(tries)), trying_program(code, made, needed)

    for (key, made, planned), result in sandbox.map(programs()):
        if result.outcome == "error":  # the sandbox's own fault says nothing of the code
            continue
        solved, missing = set(), len(made)
        said = re.match(r"TriesDone: (\d+) missing, solved((?: \d+(?= ))*)", result.detail)
        if result.outcome == "failed" and said:
            missing = int(said[1])
            solved = {trials[made[int(number)][1]].task for number in said[2].split()}
        yield key, sorted(solved), missing + planned - len(made)


class Trial(NamedTuple):
    """What a function that solves the task must give."""

    task: str
    name: str
    arity: int
    as_set: bool  # the order of the output does not count, says EvalPlus
    examples: list[tuple[bytes, object]]  # arguments, marshalled so that each try has its own; output


def make_trials(tasks: dict[str, dict]) -> list[Trial]:
    return list(filter(None, map(make_trial, tasks.values())))


def make_trial(task: dict) -> Trial | None:
    """The task's own inputs and the shortest that EvalPlus added, and the outputs of EvalPlus's reference;
    None if they tell too little. None has a number of six digits: some references count up to theirs for
    minutes."""
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS, MBPP_OUTPUT_SET_EQ_TASKS
    from evalplus.gen.util import trusted_exec

    name = task["entry_point"]
    if name in MBPP_OUTPUT_NOT_NONE_TASKS:
        return None
    ordered = [*task["base_input"], *sorted(task["plus_input"], key=lambda item: len(short(item)))]
    texts = {short(arguments): arguments for arguments in ordered}
    fit = (text for text in texts if len(text) <= LARGEST and not re.search(r"(?<![.\d])\d{6}", text))
    inputs = [texts[text] for text in itertools.islice(fit, INPUTS)]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of references, such as invalid escapes
        outputs = trusted_exec(task["prompt"] + task["canonical_solution"], inputs, name)
    pairs = [pair for pair in zip(inputs, outputs) if len(short(pair[1])) <= LARGEST]
    counts = collections.Counter(short(output) for _, output in pairs)
    if -sum(count * math.log2(count / len(pairs)) for count in counts.values()) < MIN_BITS:
        return None
    try:
        examples = [(marshal.dumps(given), marshal.loads(marshal.dumps(output))) for given, output in pairs]
    except ValueError:  # not a plain value
        return None
    as_set = name in MBPP_OUTPUT_SET_EQ_TASKS
    if any(solves(builtin, as_set, examples) for builtin in BUILTINS):
        return None
    return Trial(task["task_id"], name, len(pairs[0][0]), as_set, examples)


def short(value: object) -> str:
    """The text of a value; a number beyond Python's limit of digits counts as too long."""
    try:
        return repr(value)
    except ValueError:
        return "9" * (LARGEST + 1)


def plan_tries(code: str, trials: list[Trial]) -> list[tuple[str, int]]:
    """(function, number of the trial) for each function of the code and each task with as many arguments; the
    likeliest names first."""
    tries = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef) and None not in node.args.kw_defaults:
            positional = len(node.args.posonlyargs + node.args.args)
            least, most = positional - len(node.args.defaults), math.inf if node.args.vararg else positional
            fit = [number for number, trial in enumerate(trials) if least <= trial.arity <= most]
            tries += [(node.name, number) for number in fit]
    words = functools.cache(lambda name: set(name.lower().split("_")))
    return sorted(tries, key=lambda item: -len(words(item[0]) & words(trials[item[1]].name)))


def pack(value: object) -> str:
    return base64.b64encode(zlib.compress(marshal.dumps(value))).decode()


def trying_program(code: str, tries: list[tuple[str, int]], tables: list[str]) -> str:
    """A program that makes the tries; its exception tells which solved a task, and how many are missing."""
    return f"{TRY_TASKS}\n\ntry_all(*unpack({pack((code, tries))!r}), map(unpack, {tables}))\n"
