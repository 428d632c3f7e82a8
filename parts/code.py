"""The Python in a model's answer: fenced blocks, the program that is run, names, code without comments."""

import ast
import re


def python_code(text: str) -> str:
    """The contents of all fenced python blocks of `text`, joined; empty if there is none."""
    return "\n\n".join(
        re.findall(r"^```(?:python|py)[ \t]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ).strip()


def code_lines(code: str) -> list[str]:
    """The lines as the parser counts them: `splitlines` would split at a form feed, too."""
    return re.split(r"\r\n|\r|\n", code)


def runnable_code(response: str) -> str:
    """The code of a response as it is executed: without a `__main__` block where it reads `input`, which the
    sandbox does not give."""
    code = python_code(response)
    if re.search(r"\binput\s*\(", code):
        lines = code_lines(code)
        for node in reversed(ast.parse(code).body):
            if is_main_block(node):
                del lines[node.lineno - 1 : node.end_lineno]
        code = "\n".join(lines)
    return code


def is_main_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and any(
        isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)
    )


def program(code: str, tests: str) -> str:
    """What the sandbox runs: the code, then its tests."""
    return f"{code}\n\n{tests}\n"


def defined_names(code: str) -> tuple[list[str], list[str]]:
    """The names, sorted, of the functions and of the classes that `code` defines at its top level."""
    body = ast.parse(code).body
    functions = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    return sorted(functions), sorted({node.name for node in body if isinstance(node, ast.ClassDef)})


def bare_code(code: str) -> str:
    """`code` without comments and docstrings; as it is where Python cannot write it again: nested too deep,
    or an odd f-string."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    try:
        return ast.unparse(tree)
    except (RecursionError, ValueError):
        return code


def is_assertion(node: ast.AST) -> bool:
    """Whether a node is an `assert` or the call of one of unittest's methods."""
    called = node.func if isinstance(node, ast.Call) else None
    return (
        isinstance(node, ast.Assert) or isinstance(called, ast.Attribute) and called.attr.startswith("assert")
    )


def parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def has_reachable_assert(code: str) -> bool:
    """Whether running `code` comes to an assertion: at the top level, or in a function or class that is named
    by code which runs."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    body = ast.parse(code).body
    defined = {node.name: node for node in body if isinstance(node, definitions)}
    pending, reached = [node for node in body if not isinstance(node, definitions)], set()
    while pending:
        for node in ast.walk(pending.pop()):
            if is_assertion(node):
                return True
            names = {node.id} if isinstance(node, ast.Name) else set()
            if names & {"unittest", "globals", "locals"}:  # a runner that finds the tests by itself
                names |= defined.keys()
            pending += [defined[name] for name in names & defined.keys() - reached]
            reached |= names
    return False
