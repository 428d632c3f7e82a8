"""Samples and their selection: the format filter, the program to execute, and what a final example must be (paper 2.3, C)."""

import ast
import re

from decontamination import Decontaminator
from prompting import Layout, python_code

PLACEHOLDERS = ("todo", "fixme", "write your code here", "your code here", "your code goes here", "notimplemented")


def split_response(text: str, layout: Layout) -> dict:
    """{response, tests} of a sample, or {text, reject}: the format filter of the paper."""
    parts = re.split(layout.boundary, text, flags=re.MULTILINE)
    if len(parts) != 2 or any(mark in part for mark in layout.marks for part in parts):
        return {"text": text, "reject": "no_response_tests_boundary"}
    response, tests = (part.strip() for part in parts)
    code, test_code = python_code(response), python_code(tests)
    if not code or not test_code:
        return {"text": text, "reject": "no_code_block"}
    try:
        ast.parse(code)
        statements = ast.parse(test_code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {"text": text, "reject": "syntax_error"}
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    if "assert" not in test_code or all(isinstance(statement, definitions) for statement in statements):
        return {"text": text, "reject": "tests_assert_nothing"}
    if any(word in text.lower() for word in PLACEHOLDERS):
        return {"text": text, "reject": "placeholder"}
    return {"response": response, "tests": tests}


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


class NearDuplicates:
    """Whether a text is nearly one seen before: MinHash of word 5-grams, 250 permutations, found by locality-sensitive hashing."""

    def __init__(self, threshold: float, permutations: int = 250):
        from datasketch import MinHash, MinHashLSH

        self.empty = MinHash(num_perm=permutations)
        self.index = MinHashLSH(threshold=threshold, num_perm=permutations)

    def is_new(self, text: str) -> bool:
        """False if a near-duplicate was seen; otherwise True, and the text counts as seen from now on."""
        words = re.findall(r"\w+", text.lower())
        grams = {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
        minhash = self.empty.copy()
        minhash.update_batch([gram.encode() for gram in grams])
        if self.index.query(minhash):
            return False
        self.index.insert(len(self.index.keys), minhash)
        return True


class Filters:
    """What an example must be, given those already kept. Calling it gives the reason of the rejection, or None and the example is kept."""

    def __init__(self, decontaminator: Decontaminator):
        self.decontaminator = decontaminator
        self.seen = set()
        self.near = {part: NearDuplicates(0.7) for part in ("instruction", "response", "code")}

    def __call__(self, instruction: str, response: str) -> str | None:
        code = python_code(response)
        functions, classes = defined_names(code)
        exact = {
            "same_instruction": "".join(instruction.split()),
            "same_response": "".join(response.split()),
            "same_function_names": functions,
            "same_class_names": classes,
        }
        if len(instruction.split()) > 200:
            return "long_instruction"
        for reason, value in exact.items():
            if value and (reason, value) in self.seen:
                return reason
        if self.decontaminator.contaminated_by(instruction) or self.decontaminator.contaminated_by(response):
            return "benchmark"
        for part, text in {"instruction": instruction, "response": response, "code": bare_code(code)}.items():
            if not self.near[part].is_new(text):
                return f"near_duplicate_{part}"
        self.seen |= set(exact.items())
        return None


def defined_names(code: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names of the functions and of the classes that `code` defines at its top level."""
    body = ast.parse(code).body
    functions = frozenset(node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return functions, frozenset(node.name for node in body if isinstance(node, ast.ClassDef))


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
