"""Samples and their selection: the format filter, the program to execute, what a final example must be, and the stage (paper 2.3, C)."""

import ast
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import quality
from decontamination import Decontaminator, Finding
from prompting import Layout, python_code
from rows import Appender, KeptRows, digest, draw, progress, read_rows, replacing, row_id
from sandbox import OUTCOMES, Sandbox

if TYPE_CHECKING:
    from selfcodealign import Run

# --------------------------------------------------------------------------------------------------------- sample and program

UNTESTED = ("oss-instruct", "evol-instruct")  # recipes whose responses are kept without being executed
PLACEHOLDERS = ("todo", "fixme", "write your code here", "your code here", "your code goes here", "notimplemented")


def split_response(text: str, layout: Layout) -> dict:
    """{response, tests} of a sample, or {text, reject}: the format filter of the paper."""
    parts = re.split(layout.boundary, text, flags=re.MULTILINE)
    if len(parts) != 2 or any(mark in part for mark in layout.marks for part in parts):
        return {"text": text, "reject": "no_response_tests_boundary"}
    response, tests = (part.strip() for part in parts)
    if reason := malformed_code(response) or malformed_code(tests):
        return {"text": text, "reject": reason}
    test_code = python_code(tests)
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    if "assert" not in test_code or all(isinstance(statement, definitions) for statement in ast.parse(test_code).body):
        return {"text": text, "reject": "tests_assert_nothing"}
    return {"response": response, "tests": tests}


def malformed_code(text: str) -> str | None:
    """Why the fenced code of `text` is none to keep."""
    code = python_code(text)
    if not code:
        return "no_code_block"
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "syntax_error"
    return "placeholder" if any(word in text.lower() for word in PLACEHOLDERS) else None


def split_problem(text: str) -> dict:
    """{instruction, solution} of what the recipe oss-instruct asks for, or {text, reject}."""
    problem, *solutions = (part.strip() for part in re.split(r"^\[Solution\][ \t]*\n", text, flags=re.MULTILINE))
    if len(solutions) != 1 or not problem:
        return {"text": text, "reject": "no_problem_solution_boundary"}
    if reason := malformed_code(solutions[0]):
        return {"text": text, "reject": reason}
    return {"instruction": problem, "solution": solutions[0]}


def program(response: str, tests: str) -> str:
    """The response's code, then its tests. A `__main__` block goes only where the code reads `input`, which the sandbox does not give."""
    code = python_code(response)
    if re.search(r"\binput\s*\(", code):
        lines = code.splitlines()
        for node in reversed(ast.parse(code).body):
            if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
                del lines[node.lineno - 1 : node.end_lineno]
        code = "\n".join(lines)
    return f"{code}\n\n{python_code(tests)}\n"


def short_test(tests: str) -> str | None:
    """The beginning of the tests up to an assert, at most 5 lines, as the paper's main run puts it into instructions (C.1)."""
    code, end = python_code(tests), None
    for statement in ast.parse(code).body:
        if statement.end_lineno <= 5 and isinstance(statement, ast.Assert):
            end = statement.end_lineno
    return "\n".join(code.splitlines()[:end]) if end else None


# -------------------------------------------------------------------------------------------------------------------- filters


class NumberSet:
    """64-bit numbers, 8 bytes each: sorted arrays, each longer than all behind it, and a small set for the latest."""

    def __init__(self):
        self.latest, self.arrays = set(), []

    def has_any(self, numbers: np.ndarray) -> bool:
        found = (array[np.searchsorted(array, numbers).clip(max=len(array) - 1)] == numbers for array in self.arrays)
        return not self.latest.isdisjoint(numbers.tolist()) or any(map(np.any, found))

    def add(self, numbers: np.ndarray):
        self.latest.update(numbers.tolist())
        if len(self.latest) > 100_000:
            array = np.fromiter(self.latest, np.uint64, len(self.latest))
            self.latest.clear()
            while self.arrays and len(self.arrays[-1]) <= len(array):
                array = np.concatenate([self.arrays.pop(), array])
            array.sort()
            self.arrays.append(array)


class NearDuplicates:
    """Whether a text is nearly one seen before: MinHash of word 5-grams, 250 permutations, found by locality-sensitive hashing.

    The library chooses the bands for the threshold. Of each text its bands' hashes stay, 8 bytes each; in the library's own index the
    same takes forty times as much memory.
    """

    def __init__(self, threshold: float, permutations: int = 250):
        from datasketch import MinHash, MinHashLSH

        self.empty = MinHash(num_perm=permutations)
        bands = MinHashLSH(threshold=threshold, num_perm=permutations)
        self.shape, self.seen = (bands.b, bands.r), NumberSet()
        odd = np.random.default_rng(0).integers(2**63, size=self.shape, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self.factors = odd  # of a multiplicative hash of each band

    def is_new(self, text: str) -> bool:
        """False if a near-duplicate was seen; otherwise True, and the text counts as seen from now on."""
        words = re.findall(r"\w+", text.lower())
        grams = {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
        minhash = self.empty.copy()
        minhash.update_batch([gram.encode() for gram in grams])
        bands, rows = self.shape
        hashes = (minhash.hashvalues[: bands * rows].reshape(self.shape) * self.factors).sum(axis=1, dtype=np.uint64)
        if self.seen.has_any(hashes):
            return False
        self.seen.add(hashes)
        return True


class Filters:
    """What an example must be, given those already kept. Calling it gives {"reject": reason, ...}, or {} and the example is kept."""

    def __init__(self, decontaminator: Decontaminator):
        self.decontaminator = decontaminator
        self.seen = NumberSet()
        self.near = {part: NearDuplicates(0.7) for part in ("instruction", "response", "code")}

    def __call__(self, instruction: str, response: str) -> dict:
        code = python_code(response)
        functions, classes = defined_names(code)
        exact = {
            "same_instruction": "".join(instruction.split()),
            "same_response": "".join(response.split()),
            "same_function_names": functions,
            "same_class_names": classes,
        }
        hashes = {reason: np.array([int(digest(reason, value)[:16], 16)], np.uint64) for reason, value in exact.items() if value}
        if len(instruction.split()) > 200:
            return {"reject": "long_instruction"}
        for reason, number in hashes.items():
            if self.seen.has_any(number):
                return {"reject": reason}
        if finding := self.decontaminator.contaminated_by(instruction) or self.decontaminator.contaminated_by(response):
            return contaminated(finding)
        for part, text in {"instruction": instruction, "response": response, "code": bare_code(code)}.items():
            if not self.near[part].is_new(text):
                return {"reject": f"near_duplicate_{part}"}
        for number in hashes.values():
            self.seen.add(number)
        return {}


def contaminated(finding: Finding) -> dict:
    """What a row says of the benchmark text that was found in it."""
    return {"reject": f"benchmark_{finding.layer}", "benchmark": [finding.task], "share": round(finding.share, 2)}


def defined_names(code: str) -> tuple[list[str], list[str]]:
    """The names, sorted, of the functions and of the classes that `code` defines at its top level."""
    body = ast.parse(code).body
    functions = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    return sorted(functions), sorted({node.name for node in body if isinstance(node, ast.ClassDef)})


def bare_code(code: str) -> str:
    """`code` without comments and docstrings; as it is where it is nested too deep to be written again."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    try:
        return ast.unparse(tree)
    except RecursionError:
        return code


# --------------------------------------------------------------------------------------------------------------- the stage

CHOICES = ("passing", "random", "random-subset", "failing")


def select(run: "Run", choice: str = "passing"):
    """Paper 2.3 and C: one response per instruction, then the filters; first come, first kept, in a drawn order.

    `choice` is a row of the paper's T9: which responses may be chosen. `passing` is the method, and makes sft.jsonl; another makes
    sft-CHOICE.jsonl, of `random-subset` and `failing` as many examples as of `passing`. Depends on nothing but the rows before it, so it
    is done as a whole each time, and its files are replaced as a whole.
    """
    seed_rows, concepts, instructions, responses = map(KeptRows, map(run.path, ("seeds", "concepts", "instructions", "responses")))
    if run.settings.recipe in UNTESTED:
        candidates = list(responses)
    else:
        wanted = {"passing": {"passed"}, "failing": set(OUTCOMES) - {"passed", "error"}}.get(choice, set(OUTCOMES) - {"error"})
        outcomes = {row["response_id"]: row["outcome"] for row in read_rows(run.path("executions"))}
        candidates = [response_id for response_id in responses if outcomes.get(response_id) in wanted]
    candidates.sort(key=lambda response_id: digest(run.settings.seed, "selection", response_id))
    if run.settings.select == "consensus" and choice == "passing":
        candidates = consensus_first(run, candidates, responses)

    reject_reason, chosen, fates = Filters(run.decontaminator), set(), {}
    for response_id in progress(candidates, desc="selection", unit="row"):
        row = responses[response_id]
        task_id = row["instruction_id"]
        if task_id in chosen:
            fates[response_id] = {"reject": "not_chosen"}
        else:
            chosen.add(task_id)
            fates[response_id] = reject_reason(instructions[task_id]["instruction"], row["response"])
    kept = [response_id for response_id, fate in fates.items() if not fate]
    for response_id, tasks in solved_benchmarks(run, kept, responses):
        fates[response_id] = {"reject": "benchmark_solved", "benchmark": tasks}

    def example_of(row: dict) -> dict:
        task = instructions[row["instruction_id"]]
        seed = seed_rows[concepts[task["concepts_id"]]["seed_id"]]
        return {
            "id": row_id("sft", row["id"]),
            "instruction": task["instruction"],
            "response": row["response"],
            "tests": row["tests"],
            "program": program(row["response"], row["tests"]),  # both as the sandbox ran them
            "category": task["category"],
            "difficulty": task["difficulty"],
            "concepts": concepts[task["concepts_id"]]["concepts"],
            "seed": seed["code"],
            "seed_id": seed["id"],
            "concepts_id": task["concepts_id"],
            "instruction_id": task["id"],
            "response_id": row["id"],
        }

    suffix, most = "" if choice == "passing" else f"-{choice}", float("inf")
    if choice in ("random-subset", "failing"):
        most = sum(1 for _ in read_rows(run.path("sft")))
    elif run.settings.match:
        most = sum(1 for _ in read_rows(Path(run.settings.match) / "sft.jsonl"))
    examples = 0
    with (
        replacing(run.path(f"selection{suffix}")) as write_fate,
        replacing(run.path(f"sft{suffix}")) as write_example,
        contextlib.nullcontext(lambda example: None) if suffix else replacing(run.path("heldout")) as write_held_out,
    ):
        for response_id, fate in fates.items():
            if not fate:
                row = responses[response_id]
                example = example_of(row)
                if chance(run, "held out", row["instruction_id"]) < run.settings.held_out:
                    fate = {"reject": "held_out"}
                    write_held_out(example)
                elif examples >= most:
                    fate = {"reject": "enough"}
                else:
                    shown = chance(run, "test in instruction", response_id) < run.settings.test_in_instruction
                    test = short_test(row["tests"]) if shown else None
                    if test:
                        example["instruction"] += f"\n\nYour code should pass this test:\n\n```python\n{test}\n```"
                    write_example(example | {"test_in_instruction": test is not None})
                    examples += 1
            write_fate({"id": row_id("selection", response_id), "response_id": response_id} | fate)
    if suffix:
        print(f"{examples} examples: {run.path(f'sft{suffix}')}")


def consensus_first(run: "Run", candidates: list[str], responses: KeptRows) -> list[str]:
    """The passing responses, first of each instruction the one on which its others agree most: each one's code with each one's tests."""
    siblings = {}
    for response_id in candidates:
        siblings.setdefault(responses[response_id]["instruction_id"], []).append(response_id)

    def groups() -> Iterator[tuple[tuple[str, ...], list[tuple[str, str]]]]:
        for ids in siblings.values():
            if len(ids) > 1:
                yield tuple(ids), [(python_code(row["response"]), python_code(row["tests"])) for row in map(responses.__getitem__, ids)]

    total = sum(len(ids) > 1 for ids in siblings.values())
    with Sandbox(workers=run.settings.workers, timeout=run.settings.timeout, memory_mb=run.settings.memory_mb) as sandbox:
        matrices = progress(quality.agreement(sandbox, groups()), total=total, desc="consensus", unit="instruction")
        agreed = {quality.consensus(matrix, ids) for ids, matrix in matrices}
    return sorted(candidates, key=lambda response_id: response_id not in agreed)


def solved_benchmarks(run: "Run", response_ids: list[str], responses: KeptRows) -> Iterator[tuple[str, list[str]]]:
    """The responses whose code does what a benchmark's task asks for, and the tasks. What was tried once stays in benchmarks.jsonl."""
    decontaminator = run.decontaminator
    if not decontaminator.runnable:
        return
    with Appender(run.path("benchmarks")) as rows, Sandbox(workers=run.settings.workers) as sandbox:
        trial_ids = {row_id("benchmarks", decontaminator.coverage, response_id): response_id for response_id in response_ids}
        waiting = {trial_id: response_id for trial_id, response_id in trial_ids.items() if trial_id not in rows.ids}
        codes = ((trial_id, python_code(responses[response_id]["response"])) for trial_id, response_id in waiting.items())
        tried = decontaminator.solved_tasks(sandbox, codes) if waiting else ()
        for trial_id, tasks, missing in progress(tried, total=len(waiting), desc="benchmark tasks", unit="response"):
            rows.append({"id": trial_id, "response_id": waiting[trial_id], "solves": tasks, "not_tried": missing})
    incomplete = 0
    for row in read_rows(run.path("benchmarks")):
        if row["id"] in trial_ids:
            incomplete += row["not_tried"] > 0
            if row["solves"]:
                yield row["response_id"], row["solves"]
    tried = f"{len(response_ids)} responses tried on the inputs of {len(decontaminator.trials)} tasks"
    run.save(decontamination=f"{decontaminator.coverage}; {tried}" + (f", {incomplete} of them not on all" if incomplete else ""))


def chance(run: "Run", *parts) -> float:
    """A number from 0 to 1, always the same for the same parts."""
    return draw(run.settings.seed, *parts) / 2**31
