"""Samples and their selection: the format filter, the program to execute, and what a final example must be (paper 2.3, C)."""

import ast
import re

import numpy as np

from decontamination import Decontaminator, Finding
from prompting import Layout, python_code
from rows import digest

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
    same takes about a hundred times as much memory.
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
