"""The Python in a model's answer: fenced blocks, the program that is run, names, code without comments."""

import ast
import re
from collections.abc import Iterator

FENCE = re.compile(r"([ \t]*)(`{3,}(?=[^`]*$)|~{3,})(.*)")
PYTHON = re.compile(r"(?:python|py)[\d.]*(?![\w-])", re.IGNORECASE)


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(what its fence says, code) of each fenced block, by CommonMark: from three or more backticks or tildes
    to as many, or to the end. One rule is wider: a fence may be indented as far as a list goes, and the
    indentation that the lines of a block share is taken off."""
    blocks, closing = [], None
    for line in code_lines(text.rstrip()):
        if closing and closing.fullmatch(line):
            closing = None
        elif closing:
            blocks[-1][1].append(line)
        elif fence := FENCE.fullmatch(line):
            indent, mark, info = fence.groups()
            closing = re.compile(rf"[ \t]{{,{len(indent) + 3}}}{mark}{mark[0]}*[ \t]*")
            blocks.append((info.strip(), []))
    return [(info, "".join(f"{line}\n" for line in without_indent(lines))) for info, lines in blocks]


def without_indent(lines: list[str]) -> list[str]:
    shared = min((len(line) - len(line.lstrip(" \t")) for line in lines if line.strip()), default=0)
    return [line[shared:] for line in lines]


def python_code(text: str) -> str:
    """The contents of all fenced blocks of `text` that say Python, or where none does, of those that say
    nothing, joined; empty if there is none."""
    blocks = code_blocks(text)
    named = [code for info, code in blocks if PYTHON.match(info)]
    return "\n\n".join(named or [code for info, code in blocks if not info]).strip()


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


FAILURES = {"AssertionError", "Exception", "BaseException"}  # what takes a failed assertion
ENDINGS = {"exit", "_exit", "quit", "fail"}  # calls after which no program is passed


def called_name(node: ast.AST) -> str:
    """The last name of what a call calls."""
    called = node.func if isinstance(node, ast.Call) else None
    return getattr(called, "attr", getattr(called, "id", ""))


def is_assertion(node: ast.AST) -> bool:
    """Whether a node is an `assert` or the call of one of unittest's methods."""
    method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return isinstance(node, ast.Assert) or method and called_name(node).startswith("assert")


def swallowing_handler(node: ast.AST) -> ast.ExceptHandler | None:
    """The handler of a `try` that takes a failed assertion, where it neither raises nor asserts nor exits."""
    for handler in getattr(node, "handlers", ()):
        kinds = getattr(handler.type, "elts", [handler.type])
        if None in kinds or any(getattr(kind, "attr", getattr(kind, "id", "")) in FAILURES for kind in kinds):
            parts = list(ast.walk(handler))
            ends = any(isinstance(part, ast.Raise) or called_name(part) in ENDINGS for part in parts)
            return None if ends or any(map(is_assertion, parts)) else handler
    return None


def heard(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree, but for those whose failure is swallowed: the body of a `try` with such a handler,
    or of `with suppress(...)`."""
    pending = [node]
    while pending:
        node = pending.pop()
        yield node
        managers = (item.context_expr for item in getattr(node, "items", ()))
        suppressed = [call for call in managers if called_name(call) == "suppress"]
        names = {getattr(kind, "id", "") for call in suppressed for kind in call.args}
        unheard = node.body if swallowing_handler(node) or names & FAILURES else []
        pending += [child for child in ast.iter_child_nodes(node) if child not in unheard]


def imported_names(tree: ast.AST) -> dict[str, str]:
    """What each name that `tree` imports stands for, as a dotted path."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    if found.get("*") == "unittest.*":
        found |= {"main": "unittest.main", "TextTestRunner": "unittest.TextTestRunner"}
    return found


def dotted_path(node: ast.AST | None, imported: dict[str, str]) -> str:
    """The path of a name, or of an attribute of one, with what its import stands for; "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted_path(node.value, imported)}.{node.attr}"
    return imported.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def has_reachable_assert(code: str) -> bool:
    """Whether running `code` comes to an assertion whose failure is heard: at the top level, or in a function
    or class that is named by code which runs."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.parse(code)
    imported = imported_names(tree)
    defined = {node.name: node for node in tree.body if isinstance(node, definitions)}
    pending, reached = [node for node in tree.body if not isinstance(node, definitions)], set()
    while pending:
        for node in heard(pending.pop()):
            if is_assertion(node):
                return True
            names = {node.id} if isinstance(node, ast.Name) else set()
            path = dotted_path(node, imported)
            of_unittest = path.startswith("unittest.") and not path.startswith("unittest.mock")
            if of_unittest or names & {"globals", "locals"}:  # a runner that finds the tests by itself
                names |= defined.keys()
            pending += [defined[name] for name in names & defined.keys() - reached]
            reached |= names
    return False
