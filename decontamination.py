"""Keeps the benchmarks out of the data (paper 2.3 and C), in layers: what the one cannot see, the next one may.

    substring   the text holds a task's wording or its reference solution, both lower-cased and without white space. Needles under
                MIN_NEEDLE characters, such as `return number % 1.0`, are left out: they stand in much that is innocent.
    overlap     the text holds at least MIN_SHARE of the word six-grams of one wording or solution, and MIN_SHARED of them: a task copied
                with changes
    solved      a function of the code, called anything, gives a task's outputs on its inputs: a copy in other words (`solved_tasks`)

Searched are HumanEval+ and MBPP+ as EvalPlus has them, and every file of the folder that BENCHMARKS_PATH names: the other tasks of MBPP,
its sanitized wordings, HumanEval's own solutions, GSM8K, DS-1000, as .json or .jsonl, packed with gzip or not. Only the tasks of EvalPlus
have inputs to be tried on.

Differs from the paper's scripts: white space does not count (499 of 500 MBPP solutions end their lines with CRLF, and were never found),
every task and wording of MBPP that is there is searched, EvalPlus's rewritten solutions too, and two layers more.
"""

import ast
import base64
import collections
import contextlib
import functools
import gzip
import inspect
import io
import json
import marshal
import math
import mmap
import os
import re
import signal
import socket
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rows import BadInput
from sandbox import Sandbox

# Measured on 7,102 docstrings and 16,407 functions of the standard library and 36,350 of scientific packages. Of needles of 12 characters or
# more, one stands in them, Euclid's algorithm with 23. Six-grams overlap with one docstring, which is a task's wording nearly word for word,
# and with one function. Of the wordings, 91 % are found with one in 20 words replaced at random, 76 % with one in 10. Without the least
# number of six-grams, short solutions overlap with 17 more innocent functions and with 8 of 538 responses instead of none.
MIN_NEEDLE = 30
NGRAM, MIN_SHARED, MIN_SHARE = 6, 4, 0.3
TEXT_KEYS = ("prompt", "text", "question")
SOLUTION_KEYS = ("canonical_solution", "code", "reference_code")
# A function solves a task if it is right on INPUTS of its inputs, fewer where there are no more. Tasks whose outputs on them are too alike
# to tell are not tried: n outputs of entropy H carry n * H bits, and who guessed as they are spread would be right once in 2 ** (n * H).
INPUTS, LARGEST, MIN_BITS = 20, 300, 10  # LARGEST: characters of an input or an output
# Nor are those that one builtin solves, 16 in all: code that sorts, sums or counts is no sign of a copy. With them, 191 of 538 responses of
# a small model solved a task, 72 of them HumanEval/35 (`max`); without, 34.
BUILTINS = (abs, all, any, bool, float, int, len, list, max, min, pow, round, set, sorted, str, sum, tuple)
MAX_TRIES = 4000  # of functions on tasks, for one response
TRY_SECONDS, MAX_FALLS = 0.25, 20  # of the processor, for one function on one task; tries of one response that may take longer, or crash
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


def load_further(folder: Path) -> Iterator[tuple[str, dict]]:
    """(task id, row) of each row of the folder's benchmark files: any with one of TEXT_KEYS. Raises BadInput."""
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
        docstrings = [ast.get_docstring(node) for node in nodes if isinstance(node, (ast.Module, ast.FunctionDef))]
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
                tasks += load_benchmark(name)[0].items()
                covered.append(f"{name}+")
            except BadInput as error:
                missing.append(f"{name}+ NOT SEARCHED: {error}")
        if folder:
            further = list(load_further(Path(folder)))
            tasks += further
            covered += sorted({task_id.split("/")[0] for task_id, _ in further})
        else:
            missing.append("MBPP's other tasks, GSM8K, DS-1000 NOT SEARCHED: BENCHMARKS_PATH names no folder with them")
        self.runnable = {task_id: task for task_id, task in tasks if "plus_input" in task}
        self.needles = collections.defaultdict(dict)  # first MIN_NEEDLE characters: {needle: task id}
        self.texts, self.texts_with = [], collections.defaultdict(list)  # (task id, six-grams in all); six-gram: the texts that hold it
        for task_id, task in tasks:
            for text in dict.fromkeys(task_texts(task)):
                if len(needle := normalise(text)) >= MIN_NEEDLE:
                    self.needles[needle[:MIN_NEEDLE]].setdefault(needle, task_id)
                if len(ngrams := word_ngrams(text)) >= MIN_SHARED:
                    for ngram in ngrams:
                        self.texts_with[ngram].append(len(self.texts))
                    self.texts.append((task_id, len(ngrams)))
        self.coverage = "; ".join(([f"substrings and six-grams of {', '.join(covered)}"] if covered else []) + missing)

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
        """The task with the largest share of a wording's or solution's six-grams in `text`, at least MIN_SHARED of them; and that share."""
        shared = collections.Counter(number for ngram in word_ngrams(text) for number in self.texts_with.get(ngram, ()))
        return max(
            ((self.texts[number][0], count / self.texts[number][1]) for number, count in shared.items() if count >= MIN_SHARED),
            key=lambda found: (found[1], found[0]), default=(None, 0.0),
        )  # fmt: skip

    @functools.cached_property
    def trials(self) -> list["Trial"]:
        return list(filter(None, map(make_trial, self.runnable.values())))

    def solved_tasks(self, sandbox: Sandbox, codes: Iterable[tuple[object, str]]) -> Iterator[tuple[object, list[str], int]]:
        """For each (key, code): its key, the ids of the benchmark tasks that a function of the code solves, and how many tries are missing,
        since MAX_TRIES were made, MAX_FALLS failed to end, or the program did not. As they are done, not in order; none for a code
        on which the sandbox itself failed.

        Every top-level function is tried on every task whose number of arguments it takes, in one program of the sandbox for each code.
        """
        tables = {
            arity: pack({number: (trial.as_set, trial.examples) for number, trial in enumerate(self.trials) if trial.arity == arity})
            for arity in {trial.arity for trial in self.trials}
        }

        def programs() -> Iterator[tuple[tuple, str]]:
            for key, code in codes:
                tries = plan_tries(code, self.trials)
                arities = {self.trials[number].arity for _, number in tries[:MAX_TRIES]}
                program = trying_program(code, tries[:MAX_TRIES], [tables[arity] for arity in sorted(arities)])
                yield (key, tries), program

        for (key, tries), result in sandbox.map(programs()):
            if result.outcome == "error":  # the sandbox's own fault says nothing of the code
                continue
            if result.outcome == "passed":
                solved, missing = [], 0
            elif result.outcome == "failed" and (said := re.match(r"TriesDone: (\d+) missing, solved((?: \d+(?= ))*)", result.detail)):
                solved, missing = sorted({self.trials[tries[int(number)][1]].task for number in said[2].split()}), int(said[1])
            else:
                solved, missing = [], min(len(tries), MAX_TRIES)
            yield key, solved, missing + max(0, len(tries) - MAX_TRIES)


# ------------------------------------------------------------------------------------------------- whether a function solves a task


class Trial(NamedTuple):
    """What a function that solves the task must give."""

    task: str
    name: str
    arity: int
    as_set: bool  # the order of the output does not count, says EvalPlus
    examples: list[tuple[bytes, object]]  # arguments, marshalled so that each try has its own; output


def make_trial(task: dict) -> Trial | None:
    """The task's own inputs and the shortest that EvalPlus added, and the outputs of EvalPlus's reference; None if they tell too little.
    None has a number of six digits: some references count up to theirs for minutes."""
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS, MBPP_OUTPUT_SET_EQ_TASKS
    from evalplus.gen.util import trusted_exec

    if task["entry_point"] in MBPP_OUTPUT_NOT_NONE_TASKS:
        return None
    ordered = [*task["base_input"], *sorted(task["plus_input"], key=lambda item: len(short(item)))]
    inputs = {short(arguments): arguments for arguments in ordered}
    inputs = [arguments for text, arguments in inputs.items() if len(text) <= LARGEST and not re.search(r"(?<![.\d])\d{6}", text)][:INPUTS]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of references, such as invalid escapes
        outputs = trusted_exec(task["prompt"] + task["canonical_solution"], inputs, task["entry_point"])
    pairs = [(arguments, output) for arguments, output in zip(inputs, outputs) if len(short(output)) <= LARGEST]
    counts = collections.Counter(short(output) for _, output in pairs)
    bits = -sum(count * math.log2(count / len(pairs)) for count in counts.values())
    if bits < MIN_BITS:
        return None
    try:
        examples = [(marshal.dumps(arguments), marshal.loads(marshal.dumps(output))) for arguments, output in pairs]
    except ValueError:  # not a plain value
        return None
    as_set = task["entry_point"] in MBPP_OUTPUT_SET_EQ_TASKS
    if any(solves(builtin, as_set, examples) for builtin in BUILTINS):
        return None
    return Trial(task["task_id"], task["entry_point"], len(pairs[0][0]), as_set, examples)


def short(value: object) -> str:
    """The text of a value; numbers beyond Python's limit of digits are as long as the limit of what is tried."""
    try:
        return repr(value)
    except ValueError:
        return "9" * (LARGEST + 1)


def plan_tries(code: str, trials: list[Trial]) -> list[tuple[str, int]]:
    """(function, number of the trial) for each function of the code and each task with as many arguments; the likeliest names first."""
    tries = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef) and not any(default is None for default in node.args.kw_defaults):
            positional = len(node.args.posonlyargs + node.args.args)
            required, most = positional - len(node.args.defaults), math.inf if node.args.vararg else positional
            tries += [(node.name, number) for number, trial in enumerate(trials) if required <= trial.arity <= most]
    words = {name: set(name.lower().split("_")) for name in {name for name, _ in tries} | {trial.name for trial in trials}}
    return sorted(tries, key=lambda item: -len(words[item[0]] & words[trials[item[1]].name]))


def pack(value: object) -> str:
    return base64.b64encode(zlib.compress(marshal.dumps(value))).decode()


def trying_program(code: str, tries: list[tuple[str, int]], tables: list[str]) -> str:
    """A program that makes the tries. It passes if all were made and none solved a task; else its exception tells."""
    return f"{trying_source()}try_all(*unpack({pack((code, tries))!r}), map(unpack, {tables}))\n"


@functools.cache
def trying_source() -> str:
    parts = "\n\n".join(inspect.getsource(part) for part in (TriesDone, unpack, same, solves, try_in_turn, try_all))
    return f"import base64, marshal, math, mmap, os, signal, zlib\n\nTRY_SECONDS, MAX_FALLS = {TRY_SECONDS}, {MAX_FALLS}\n\n{parts}\n\n"


# What follows runs in the sandbox too.


def unpack(text):
    return marshal.loads(zlib.decompress(base64.b64decode(text)))


class TriesDone(Exception):
    pass


def try_all(code, tries, tables):
    """The tries are made in a process of their own, so that what hangs, exits or crashes ends only itself."""
    tasks = {number: trial for table in tables for number, trial in table.items()}
    board = mmap.mmap(-1, len(tries) + 1)  # shared by both: 0 not begun, 1 begun, 2 solved; the last stays 0
    for _ in range(MAX_FALLS):
        next_one = board[:].index(0)
        if next_one < len(tries):
            process = os.fork()
            if process == 0:
                try:
                    try_in_turn(code, tries, tasks, board)
                finally:
                    os._exit(0)
            os.waitpid(process, 0)
        if board[:].index(0) == next_one:  # all are done, or the code cannot even be loaded
            break
    solved = [number for number, mark in enumerate(board[:]) if mark == 2]
    missing = len(tries) - board[:].index(0)
    if solved or missing:
        raise TriesDone(f"{missing} missing, solved {' '.join(map(str, solved))} ")


def try_in_turn(code, tries, tasks, board):
    def limit():  # with no handler, the signals end the process whatever it is doing
        signal.setitimer(signal.ITIMER_PROF, TRY_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 8 * TRY_SECONDS)

    limit()
    namespace = {"__name__": "response"}
    exec(code, namespace)
    for number in range(board[:].index(0), len(tries)):
        board[number] = 1
        name, task = tries[number]
        limit()
        try:
            board[number] += solves(namespace[name], *tasks[task])
        except BaseException:  # a function that exits, say: it does not solve this task
            pass


def solves(function, as_set, examples):
    try:
        for arguments, expected in examples:
            answer = function(*marshal.loads(arguments))
            if not (set(answer) == set(expected) if as_set else same(answer, expected)):
                return False
    except Exception:  # whatever is raised by other people's code
        return False
    return True


def same(answer, expected):
    """Equal, but for the rounding of floats and for lists that stand for tuples."""
    if isinstance(expected, (list, tuple)):
        return isinstance(answer, (list, tuple)) and len(answer) == len(expected) and all(map(same, answer, expected))
    if isinstance(expected, float):
        return isinstance(answer, (int, float)) and math.isclose(answer, expected, rel_tol=1e-7, abs_tol=1e-6)
    return answer == expected
