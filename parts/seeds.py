"""Seed functions (paper 2.1, B): Python source -> top-level functions that stand alone.

    read_sources("stdlib")            the standard library of this interpreter (the default source)
    read_sources("path/to/folder")    every .py file below it, but for tests
    read_sources("code.jsonl")        one file per row, its text in the column `content`; .parquet likewise
    read_sources("owner/dataset")     a dataset of the hub, streamed, same column
                                      ("owner/dataset/data/python": that folder of it)

`extract` gives the functions of a source as candidate seeds, `type_checked` runs a type checker over them.
A seed is the function with the imports it needs, taken from its file. Decorators are left out, as in the
paper's data, where nearly all of them bind a function to its project; those of the standard library stay.
A rejected candidate has the first reason that applies in `reject`:

    syntax_error      the file cannot be read, is not Python, or the function is not Python outside its file
    no_docstring, no_arguments
    no_return_value   no `return <value>`, those of functions inside it left out
    too_long          more than 150 lines
    banned_word       `todo`, `fixme` or `bug`, anywhere in it
    undefined_name    reads a name that neither the function nor an import of its file defines
    relative_import   needs a module beside its file
    project_import    needs a module of its own project, as its folders are named, or a private name
    banned_import     needs one of BANNED_IMPORTS
    type_error        the type checker finds an error, which is in `error`
    not_checked       the type checker breaks on it, or takes too long

Differs from the paper: the type checker is Pyrefly instead of Pyright, several times faster, without node; it
judges differently about 2 % of the functions that reach it (tests/bench_seeds.py). `undefined_name` and
`project_import` come first: such a function does not stand alone even where it type-checks, since its project
is installed.
"""

import ast
import builtins
import collections
import contextlib
import glob
import io
import itertools
import json
import os
import re
import subprocess
import symtable
import sys
import sysconfig
import tempfile
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyrefly.__main__

from parts.code import code_lines
from parts.pool import map_in_order
from parts.rows import BadInput

MAX_LINES = 150  # appendix B
BANNED_WORDS = ("todo", "fixme", "bug")
BANNED_IMPORTS = {"argparse", "os", "subprocess", "sys", "setuptools", "distutils", "matplotlib", "seaborn"}
PARSED_AT_A_TIME = 64  # files, by one process
TYPE_CHECKED_AT_A_TIME = 256  # functions; starting the checker takes longer than checking a few
BUILTINS = frozenset(dir(builtins))
ROWS_AT_A_TIME = 16_384  # candidates in memory, whose rejected ones are not checked
NOT_CHECKED = "the type checker broke on it"
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # what parsing raises
TYPE_CHECK_SECONDS = 300  # for as many; no verdict so far took a tenth of it
# Not read: others' packages, and tests, since what pytest calls does not stand alone
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "node_modules"}
SKIPPED_FILES = re.compile(r"(conftest|tests?|test_.*|.*_test)\.py")


# ---------------------------------------------------------------------------------------------------- sources


def read_sources(source: str) -> Iterator[tuple[str, str]]:
    """Yield (where, text) for each Python file of `source`; `where` names it within the source. Raises
    BadInput."""
    path = Path(sysconfig.get_paths()["stdlib"] if source == "stdlib" else source)
    if path.is_dir():
        return read_folder(path)
    if path.is_file() or path.suffix in {".jsonl", ".json", ".parquet"}:
        if not path.is_file():
            raise BadInput(f"no such source file: {path}")
        if path.suffix == ".jsonl":
            return read_jsonl_source(path)
        if path.suffix == ".parquet":
            return read_dataset("parquet", data_files=glob.escape(str(path)))
        raise BadInput(f"{path}: a source file must end in .jsonl or .parquet")
    if "/" in source and not source.startswith((".", "/", "~")):
        owner, name, *folder = source.split("/")
        return read_dataset(f"{owner}/{name}", data_dir="/".join(folder) or None)
    raise BadInput(
        f"no such source: {source} (a folder, a .jsonl or .parquet file, or a dataset id owner/name)"
    )


def read_folder(folder: Path) -> Iterator[tuple[str, str]]:
    found = False
    for path in sorted(folder.rglob("*.py")):
        where = path.relative_to(folder)
        skipped = SKIPPED_FILES.fullmatch(path.name) or not SKIPPED_FOLDERS.isdisjoint(where.parts[:-1])
        if not skipped and path.is_file():
            found = True
            yield str(where), read_python(path)
    if not found:
        raise BadInput(f"no Python files in the source folder {folder}")


def read_python(path: Path) -> str:
    """The text of a Python file in the encoding that it declares. Where it cannot be read, breaks that
    encoding or declares one that Python refuses: half a surrogate pair, which no parser takes."""
    try:
        source = path.read_bytes()
        return source.decode(tokenize.detect_encoding(io.BytesIO(source).readline)[0])
    except (OSError, SyntaxError, UnicodeError, LookupError):
        return "\udcff"


def read_jsonl_source(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    yield f"line {number}", content(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise BadInput(
                    f"{path}:{number}: not a JSON object with text in the column `content` ({error!r})"
                ) from None


def content(row: dict) -> str:
    if not isinstance(row["content"], str | None):
        raise TypeError(f"`content` is of type {type(row['content']).__name__}")
    return row["content"] or ""


def read_dataset(name: str, **options) -> Iterator[tuple[str, str]]:
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one line of ours instead of its retries
    import datasets

    source = options.get("data_files") or f"{name} (no folder here, so a dataset of the hub)"
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True, **options)
        for number, row in enumerate(rows):
            yield f"row {number}", content(row)
    except KeyError:
        raise BadInput(f"{source} has no `content` column") from None
    except (OSError, ValueError, TypeError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise BadInput(f"cannot read the source {source}: {reason}") from None


# ------------------------------------------------------------------------------------------------- extraction


def extract(source: str) -> Iterator[dict]:
    """Yield the candidate seeds of all files of `source`, in the source's order, parsed on all cores, a
    bounded number of files ahead."""
    home = Path(source).resolve().name if Path(source).is_dir() else ""
    files = ((where, text, home) for where, text in read_sources(source))
    yield from itertools.chain.from_iterable(map_in_order(functions, files, PARSED_AT_A_TIME))


def functions(where: str, text: str, home: str = "") -> list[dict]:
    """The top-level functions of one file as rows {where, name, code} or, if not fit, with `reject` in
    addition.

    `where` is a path below the folder `home` if the file came from a folder: what it shares a name with is
    its own project.
    """
    text = text.removeprefix("\ufeff")
    try:
        module = ast.parse(text)
    except NOT_PYTHON:
        return [{"where": where, "reject": "syntax_error"}]
    lines, imports = code_lines(text), imported_names(module)
    project = {home, *Path(where).parts[:-1]} - sys.stdlib_module_names
    rows = []
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            row = {"where": f"{where}:{node.lineno}", "name": node.name}
            if reject := shape_reject(node):
                row["reject"] = reject
            else:
                kept = [part for part in node.decorator_list if means_the_same_anywhere(part, imports)]
                spans = [lines[part.lineno - 1 : part.end_lineno] for part in (*kept, node)]
                row |= stand_alone("\n".join(itertools.chain(*spans)), node, imports, project)
            rows.append(row)
    return rows


def shape_reject(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    if not ast.get_docstring(node):
        return "no_docstring"
    if not any(isinstance(part, ast.arg) for part in ast.iter_child_nodes(node.args)):
        return "no_arguments"
    if not returns_value(node):
        return "no_return_value"
    return "too_long" if node.end_lineno - node.lineno + 1 > MAX_LINES else None


def returns_value(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the function itself, not one nested in it, has a `return <value>`."""
    pending = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            return True
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))
    return False


def means_the_same_anywhere(decorator: ast.expr, imports: dict[str, list[str]]) -> bool:
    """Whether a decorator is of the standard library; not one that Python cannot write again."""
    try:
        names = free_names(ast.unparse(decorator))
    except NOT_PYTHON:
        return False
    return all(name in imports and is_standard(chosen(imports[name])) for name in names)


def stand_alone(code: str, node: ast.AST, imports: dict[str, list[str]], project: set[str]) -> dict:
    """{"code"}, with the imports that it needs in front, taken from those of its file, and {"reject"} where
    it cannot stand alone. `node`: its syntax tree. `project`: the names that its project's modules are
    imported from."""
    lowered = code.lower()
    if any(word in lowered for word in BANNED_WORDS):
        return {"code": code, "reject": "banned_word"}
    try:
        missing = free_names(code)
    except NOT_PYTHON:  # e.g. a `global` that only its file makes sense of
        return {"code": code, "reject": "syntax_error"}
    if not missing <= imports.keys():
        return {"code": code, "reject": "undefined_name"}
    parts = list(ast.walk(node))
    # A quoted name that nothing imports may be no name: the type checker tells
    quoted = quoted_annotations(parts) & imports.keys()
    paths = imported_paths(parts)
    if block := import_block(code, [imports[name] for name in missing | quoted]):
        code = f"{block}\n\n\n{code}"
        paths += imported_paths(ast.parse(block).body)
    reject = import_reject(paths, project)
    return {"code": code, "reject": reject} if reject else {"code": code}


def import_reject(paths: list[str], project: set[str]) -> str | None:
    split = {tuple(path.split(".")) for path in paths}
    packages = {path[0] for path in split}
    if "" in packages:
        return "relative_import"
    private = any(name[:1] == "_" and name[:2] != "__" for path in split for name in path)
    if private or not packages.isdisjoint(project):
        return "project_import"
    return None if packages.isdisjoint(BANNED_IMPORTS) else "banned_import"


def imported_paths(nodes: Iterable[ast.AST]) -> list[str]:
    """What each import brings, as a dotted path: package.module.name, or .module.name."""
    paths = []
    for node in nodes:
        if isinstance(node, ast.Import):
            paths += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            paths += [f"{module}.{alias.name}" for alias in node.names]
    return paths


def free_names(code: str) -> set[str]:
    """The names that `code` reads and neither defines nor finds among the builtins."""
    module = symtable.symtable(code, "seed", "exec")
    defined = {
        symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned() or symbol.is_imported()
    }
    read, tables = set(), [module]
    while tables:
        table = tables.pop()
        tables.extend(table.get_children())
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table is module or symbol.is_global()):
                read.add(symbol.get_name())
    return read - defined - BUILTINS


def quoted_annotations(nodes: Iterable[ast.AST]) -> set[str]:
    """The names in annotations that are written as text, and text in Literal[...] that looks like one."""
    names = set()
    for node in nodes:
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for part in ast.walk(annotation) if annotation else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    with contextlib.suppress(*NOT_PYTHON):  # other text
                        names |= free_names(part.value)
    return names


# An import is a statement that binds one name, as text: `import a.b`, `from a import b as c`.


def imported_names(module: ast.Module) -> dict[str, list[str]]:
    """Name -> the import statements that bind it, those under a top-level `if` or `try` included."""
    names = collections.defaultdict(list)
    pending: list[ast.AST] = list(reversed(module.body))
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler)):
            pending.extend(ast.iter_child_nodes(node))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]].append(ast.unparse(ast.Import([alias])))
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            for alias in node.names:
                statement = ast.unparse(ast.ImportFrom(node.module, [alias], node.level))
                names[alias.asname or alias.name].append(statement)
    return names


def import_block(code: str, needed: list[list[str]]) -> str:
    """The import statements for `code`, given for each name those that bind it in its file; names of one
    module share a line."""
    whole, names_of = set(), collections.defaultdict(list)
    for statements in needed:
        statement = chosen(statements)
        if statement.startswith("from "):
            module, name = statement.removeprefix("from ").split(" import ")
            names_of[module].append(name)
        elif " as " in statement:
            whole.add(statement)
        else:  # `import a.b` and `import a.c` bind the same name and are no alternatives
            modules = [other for other in statements if other.startswith("import ") and " as " not in other]
            whole.update([other for other in modules if other.removeprefix("import ") in code] or modules)
    parts = (f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(names_of.items()))
    return "\n".join([*sorted(whole), *parts])


def chosen(statements: list[str]) -> str:
    """Of the imports that bind one name, alternatives under `try` or `if`: the standard library's, or the
    first."""
    return next(filter(is_standard, statements), statements[0])


def is_standard(statement: str) -> bool:
    return statement.split()[1].split(".")[0] in sys.stdlib_module_names


# ---------------------------------------------------------------------------------------------- type checking


def type_checked(candidates: Iterator[dict]) -> Iterator[dict]:
    """Yield the candidates in their order, those with a type error rejected; no more are taken than the next
    batch needs."""
    while batch := list(itertools.islice(up_to_fit(candidates, TYPE_CHECKED_AT_A_TIME), ROWS_AT_A_TIME)):
        fit = [row for row in batch if "reject" not in row]
        for row, error in zip(fit, type_errors([row["code"] for row in fit]), strict=True):
            if error:
                row |= {"reject": "not_checked" if error is NOT_CHECKED else "type_error", "error": error}
        yield from batch


def up_to_fit(candidates: Iterator[dict], count: int) -> Iterator[dict]:
    """The candidates up to the one that is the last of `count` without a reject."""
    for row in candidates:
        yield row
        count -= "reject" not in row
        if not count:
            return


PYREFLY = """
preset = "default"
search-path = []                        # the programs do not see each other
disable-search-path-heuristics = true
[errors]                                # of these Pyrefly only warns, and Pyright does not
implicit-import = "error"               # `import urllib`, then `urllib.parse`: needs another import of it
unreachable-except-clause = "error"
"""


def type_errors(codes: list[str]) -> list[str | None]:
    """The first error that Pyrefly finds in each of the programs, each a module of its own; None where there
    is none.

    Imports are looked up among the packages of this interpreter; one that is not installed is an error, as it
    was for the paper's Pyright: nothing that uses it can be checked. Nothing of the code is executed. Raises
    BadInput if the checker does not work.
    """
    if not codes:
        return []
    finished = run_pyrefly(codes)
    # A time-out, a signal or a panic, on one of them, and the others shall not suffer from it
    if finished is None or finished.returncode < 0 or finished.returncode == 101:
        if len(codes) == 1:
            return [NOT_CHECKED]
        middle = len(codes) // 2
        return type_errors(codes[:middle]) + type_errors(codes[middle:])
    try:
        found = json.loads(finished.stdout)["errors"]
    except (ValueError, KeyError):
        said = finished.stderr.strip() or "it said nothing"
        raise BadInput(f"the type checker failed: {said.splitlines()[-1]}") from None
    errors: list[str | None] = [None] * len(codes)
    for error in reversed(found):
        number = int(Path(error["path"]).stem.removeprefix("seed_"))
        errors[number] = f"{error['name']}: {error['concise_description']}"
    return errors


def run_pyrefly(codes: list[str]) -> subprocess.CompletedProcess | None:
    """Check the programs as seed_0.py, seed_1.py and so on; None if that takes too long."""
    # The program itself: `python -m pyrefly` gives a signal that ended it as an ordinary status
    command = [pyrefly.__main__.get_pyrefly_bin(), "check", "--output-format", "json"]
    command += ["--python-interpreter-path", sys.executable]
    # Pyrefly checks nothing below a folder that PYTHONPATH names, which may be that of temporary files
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        for number, code in enumerate(codes):
            Path(folder, f"seed_{number}.py").write_text(code + "\n", encoding="utf-8")
        Path(folder, "pyrefly.toml").write_text(PYREFLY, encoding="utf-8")
        try:
            options = {"cwd": folder, "env": environment, "timeout": TYPE_CHECK_SECONDS}
            return subprocess.run(command, capture_output=True, encoding="utf-8", **options)
        except subprocess.TimeoutExpired:
            return None
