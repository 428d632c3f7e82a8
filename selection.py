"""Samples and their selection: the format filter, what a final example must be, and the stage (paper 2.3, C)."""

import ast
import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import quality
from decontamination import Decontaminator, Finding
from prompting import Layout, code_lines, program, python_code, runnable_code
from recipes import UNTESTED
from rows import Appender, BadInput, KeptRows, digest, draw, progress, read_rows, replacing, row_id
from sandbox import OUTCOMES, Sandbox

if TYPE_CHECKING:
    from selfcodealign import Run

# -------------------------------------------------------------------------------------------------------------------- sample

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
    """Why the fenced code of `text` is not kept, None if it is."""
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


def short_test(tests: str) -> str | None:
    """The beginning of the tests up to an assert, at most 5 lines, as the paper's main run puts it into instructions (C.1)."""
    code, end = python_code(tests), None
    for statement in ast.parse(code).body:
        if statement.end_lineno <= 5 and isinstance(statement, ast.Assert):
            end = statement.end_lineno
    return "\n".join(code_lines(code)[:end]) if end else None


# -------------------------------------------------------------------------------------------------------------------- filters


class NumberSet:
    """64-bit numbers, 8 bytes each: sorted arrays, each more than twice as long as the next, and a small set for the latest."""

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
            while self.arrays and len(self.arrays[-1]) <= 2 * len(array):
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

    def hashes(self, text: str) -> np.ndarray:
        """A number for each band: texts that share one are near-duplicates."""
        words = re.findall(r"\w+", text.lower())
        grams = {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
        minhash = self.empty.copy()
        minhash.update_batch([gram.encode() for gram in grams])
        bands, rows = self.shape
        return (minhash.hashvalues[: bands * rows].reshape(self.shape) * self.factors).sum(axis=1, dtype=np.uint64)

    def is_new(self, text: str) -> bool:
        """False if a near-duplicate was seen; otherwise True, and the text counts as seen from now on."""
        hashes = self.hashes(text)
        if self.seen.has_any(hashes):
            return False
        self.seen.add(hashes)
        return True


class Filters:
    """What an example must be, given those already kept. Calling it gives {"reject": reason, ...}, or {} and the example is kept.

    One that is kept here and turns out to solve a benchmark's task afterwards still counts: what is like it is left out, too.
    """

    def __init__(self, decontaminator: Decontaminator):
        self.decontaminator = decontaminator
        self.seen = NumberSet()
        self.near = {part: NearDuplicates(0.7) for part in ("instruction", "response", "code")}

    def __call__(self, instruction: str, response: str) -> dict:
        exact, near = self.traces(instruction, response)
        if len(instruction.split()) > 200:
            return {"reject": "long_instruction"}
        for reason, number in exact.items():
            if self.seen.has_any(number):
                return {"reject": reason}
        if finding := self.decontaminator.contaminated_by(instruction) or self.decontaminator.contaminated_by(response):
            return contaminated(finding)
        for part, hashes in near.items():
            if self.near[part].seen.has_any(hashes):
                return {"reject": f"near_duplicate_{part}"}
        self.remember(exact, near)
        return {}

    def remember(self, exact: dict[str, np.ndarray], near: dict[str, np.ndarray]):
        """From now on the example with these traces, and what is nearly the same, counts as kept."""
        for number in exact.values():
            self.seen.add(number)
        for part, hashes in near.items():
            self.near[part].seen.add(hashes)

    def traces(self, instruction: str, response: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What tells an example from others: {reason: hash of what must not be the same}, {part: hashes of its bands}."""
        code = python_code(response)
        functions, classes = defined_names(code)
        exact = {
            "same_instruction": "".join(instruction.split()),
            "same_response": "".join(response.split()),
            "same_function_names": functions,
            "same_class_names": classes,
        }
        numbers = {reason: np.array([int(digest(reason, value)[:16], 16)], np.uint64) for reason, value in exact.items() if value}
        texts = {"instruction": instruction, "response": response, "code": bare_code(code)}
        return numbers, {part: self.near[part].hashes(text) for part, text in texts.items()}


def contaminated(finding: Finding) -> dict:
    """What a row says of the benchmark text that was found in it."""
    return {"reject": f"benchmark_{finding.layer}", "benchmark": [finding.task], "share": round(finding.share, 2)}


def defined_names(code: str) -> tuple[list[str], list[str]]:
    """The names, sorted, of the functions and of the classes that `code` defines at its top level."""
    body = ast.parse(code).body
    functions = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    return sorted(functions), sorted({node.name for node in body if isinstance(node, ast.ClassDef)})


def bare_code(code: str) -> str:
    """`code` without comments and docstrings; as it is where Python cannot write it again: nested too deep, or an odd f-string."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    try:
        return ast.unparse(tree)
    except (RecursionError, ValueError):
        return code


# --------------------------------------------------------------------------------------------------------------- the stage

CHOICES = ("passing", "random", "random-subset", "failing")


def select(run: "Run", choice: str = "passing"):
    """Paper 2.3 and C: one response per instruction, then the filters; first come, first kept, in a drawn order. Raises BadInput.

    `choice` is a row of the paper's T9: which responses may be chosen. `passing` is the method, and makes sft.jsonl; another makes
    sft-CHOICE.jsonl, of `random-subset` and `failing` no more examples than of `passing`. Depends on nothing but the rows before it, so
    it is done as a whole each time, and its files are replaced as a whole.
    """
    suffix = "" if choice == "passing" else f"-{choice}"
    if suffix and run.settings.recipe in UNTESTED:
        raise BadInput(f"--recipe {choice} needs executed responses, and the run's recipe {run.settings.recipe} executes none")
    most = most_examples(run, choice)
    seed_rows, concepts, instructions, responses = map(KeptRows, map(run.path, ("seeds", "concepts", "instructions", "responses")))
    outcomes = {row["response_id"]: row["outcome"] for row in read_rows(run.path("executions"))}
    wanted = {"passing": {"passed"}, "failing": set(OUTCOMES) - {"passed", "error"}}.get(choice, set(OUTCOMES) - {"error"})
    candidates = [identity for identity in responses if outcomes.get(identity) in wanted or run.settings.recipe in UNTESTED]
    candidates.sort(key=lambda response_id: digest(run.settings.seed, "selection", response_id))
    preferred = agreed_responses(run, candidates, responses) if run.settings.select == "consensus" and not suffix else {}

    filters, chosen, fates = Filters(run.decontaminator), set(), {}
    for example in held_out_elsewhere(run, choice):
        filters.remember(*filters.traces(example["instruction"], example["response"]))
    for response_id in progress(candidates, desc="selection", unit="row"):
        row = responses[response_id]
        task_id = row["instruction_id"]
        if task_id in chosen or preferred.get(task_id, response_id) != response_id:
            fates[response_id] = {"reject": "not_chosen"}
            continue
        chosen.add(task_id)
        if suffix and is_held_out(run, task_id):
            fates[response_id] = {"reject": "held_out"}
        else:
            fates[response_id] = filters(instructions[task_id]["instruction"], row["response"])
    kept = [response_id for response_id, fate in fates.items() if not fate]
    solved, tried = solved_benchmarks(run, kept, responses)
    for response_id, tasks in solved.items():
        fates[response_id] = {"reject": "benchmark_solved", "benchmark": tasks}
    if not suffix:
        run.save(decontamination="; ".join(filter(None, (run.decontaminator.coverage, tried))))

    def example_of(row: dict) -> dict:
        task = instructions[row["instruction_id"]]
        seed = seed_rows[concepts[task["concepts_id"]]["seed_id"]]
        return {
            "id": row_id("sft", row["id"]),
            "instruction": task["instruction"],
            "response": row["response"],
            "tests": row["tests"],
            "program": program(runnable_code(row["response"]), python_code(row["tests"])),
            "category": task["category"],
            "difficulty": task["difficulty"],
            "concepts": concepts[task["concepts_id"]]["concepts"],
            "seed": seed["code"],
            "seed_id": seed["id"],
            "concepts_id": task["concepts_id"],
            "instruction_id": task["id"],
            "response_id": row["id"],
        }

    examples = 0
    with (
        replacing(run.path(f"selection{suffix}")) as write_fate,
        replacing(run.path(f"sft{suffix}")) as write_example,
        contextlib.nullcontext() if suffix else replacing(run.path("heldout")) as write_held_out,
    ):
        for response_id, fate in fates.items():
            if not fate:
                row = responses[response_id]
                example = example_of(row)
                if is_held_out(run, row["instruction_id"]):
                    fate = {"reject": "held_out"}
                    write_held_out(example)
                elif examples >= most:
                    fate = {"reject": "enough"}
                else:
                    shown = chance(run, "test in instruction", response_id) < run.settings.test_in_instruction
                    test = short_test(row["tests"]) if shown and outcomes.get(response_id) == "passed" else None
                    if test:
                        example["instruction"] += f"\n\nYour code should pass this test:\n\n```python\n{test}\n```"
                    write_example(example | {"test_in_instruction": test is not None})
                    examples += 1
            write_fate({"id": row_id("selection", response_id), "response_id": response_id} | fate)
    if suffix or run.settings.match:
        fewer = f", fewer than the {most} to match: there are no more" if examples < most < math.inf else ""
        print(f"{examples} examples{fewer}: {run.path(f'sft{suffix}')}")


def most_examples(run: "Run", choice: str) -> float:
    """How many examples are wanted: as many as of the set that this one is compared with, if it is with one."""
    folder = run.folder if choice in ("random-subset", "failing") else run.settings.match
    if not folder:
        return math.inf
    if not (Path(folder) / "sft.jsonl").is_file():
        raise BadInput(f"{folder} has no sft.jsonl to match in size: `select` makes it")
    return sum(1 for _ in read_rows(Path(folder) / "sft.jsonl"))


def is_held_out(run: "Run", instruction_id: str) -> bool:
    return chance(run, "held out", instruction_id) < run.settings.held_out


def held_out_elsewhere(run: "Run", choice: str) -> Iterator[dict]:
    """The held-out examples that this set will be scored on beside another: nothing like them may be learned."""
    folders = {run.settings.match, run.settings.instructions_from} | ({str(run.folder)} if choice != "passing" else set())
    for folder in sorted(filter(None, folders)):
        if not (Path(folder) / "heldout.jsonl").is_file():
            raise BadInput(f"{folder} has no heldout.jsonl: which tasks it is scored on is not known before `select` has run there")
        yield from read_rows(Path(folder) / "heldout.jsonl")


def agreed_responses(run: "Run", candidates: list[str], responses: KeptRows) -> dict[str, str]:
    """{instruction id: its passing response on which the others agree most}, for those with several: each one's code runs with each one's
    tests. A verdict once given stays, in agreement.jsonl, so that the choice does too."""
    siblings = {}
    for response_id in candidates:
        siblings.setdefault(responses[response_id]["instruction_id"], []).append(response_id)
    groups = {row_id("agreement", *sorted(ids)): sorted(ids) for ids in siblings.values() if len(ids) > 1}
    with (
        Appender(run.path("agreement")) as rows,
        Sandbox(workers=run.settings.workers, timeout=run.settings.timeout, memory_mb=run.settings.memory_mb) as sandbox,
    ):
        waiting = [key for key in groups if key not in rows.ids]

        def samples(response_id: str) -> tuple[str, str]:
            row = responses[response_id]
            return runnable_code(row["response"]), python_code(row["tests"])

        matrices = quality.agreement(sandbox, ((key, list(map(samples, groups[key]))) for key in waiting))
        for key, matrix in progress(matrices, total=len(waiting), desc="consensus", unit="instruction"):
            if all(passed is not None for row in matrix for passed in row):
                rows.append({"id": key, "responses": groups[key], "passed": matrix})
    chosen = (quality.consensus(row["passed"], row["responses"]) for row in read_rows(run.path("agreement")) if row["id"] in groups)
    return {responses[response_id]["instruction_id"]: response_id for response_id in chosen if response_id}


def solved_benchmarks(run: "Run", response_ids: list[str], responses: KeptRows) -> tuple[dict[str, list[str]], str]:
    """The responses whose code does what a benchmark's task asks for, with the tasks; and what was tried, in words. What was tried once
    stays in benchmarks.jsonl."""
    decontaminator = run.decontaminator
    if not decontaminator.runnable:
        return {}, ""
    attempts = {row_id("benchmarks", decontaminator.coverage, response_id): response_id for response_id in response_ids}
    with Appender(run.path("benchmarks")) as rows, Sandbox(workers=run.settings.workers) as sandbox:
        waiting = [attempt for attempt in attempts if attempt not in rows.ids]
        codes = ((attempt, python_code(responses[attempts[attempt]]["response"])) for attempt in waiting)
        tried = decontaminator.solved_tasks(sandbox, codes) if waiting else ()
        for attempt, tasks, missing in progress(tried, total=len(waiting), desc="benchmark tasks", unit="response"):
            rows.append({"id": attempt, "response_id": attempts[attempt], "solves": tasks, "not_tried": missing})
    solved, incomplete = {}, len(attempts)
    for row in read_rows(run.path("benchmarks")):
        if row["id"] in attempts:
            incomplete -= not row["not_tried"]
            if row["solves"]:
                solved[row["response_id"]] = row["solves"]
    said = f"{len(attempts)} responses tried on the inputs of {len(decontaminator.trials)} tasks"
    return solved, said + (f", {incomplete} of them not on all" if incomplete else "")


def chance(run: "Run", *parts) -> float:
    """A number from 0 to 1, always the same for the same parts."""
    return draw(run.settings.seed, *parts) / 2**31
