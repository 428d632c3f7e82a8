"""Seed functions: Python source -> top-level functions that stand alone and are worth learning from (paper 2.1, appendix B).

    read_sources("stdlib")            the standard library of this interpreter (the default source)
    read_sources("path/to/folder")    every .py file below it
    read_sources("code.jsonl")        one file per row, its text in the column `content`; .parquet likewise
    read_sources("owner/dataset")     a dataset of the hub, streamed, same column

`functions` turns the text of one file into candidate seeds; each that is not fit says why in `reject`:

    syntax_error  no_docstring  no_arguments  no_return_value  too_long  banned_word  relative_import  undefined_name  banned_import

Differs from the paper: no type checker and no judgement of the docstring by the model yet; a name that neither the function nor its
file's imports define is refused instead (`undefined_name`).
"""

import ast
import builtins
import itertools
import json
import multiprocessing
import os
import symtable
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from rows import BadInput

MAX_LINES = 150  # appendix B
BANNED_WORDS = ("todo", "fixme", "bug")
BANNED_IMPORTS = {"argparse", "os", "subprocess", "sys", "setuptools", "distutils", "matplotlib", "seaborn"}
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "node_modules"}


# ---------------------------------------------------------------------------------------------------------------- sources


def read_sources(source: str) -> Iterator[tuple[str, str]]:
    """Yield (where, text) for each Python file of `source`; `where` names it within the source. Raises BadInput."""
    path = Path(sysconfig.get_paths()["stdlib"] if source == "stdlib" else source)
    if path.is_dir():
        return read_folder(path)
    if path.suffix in {".jsonl", ".json", ".parquet"} or path.is_file():
        if not path.is_file():
            raise BadInput(f"no such source file: {path}")
        if path.suffix not in {".jsonl", ".parquet"}:
            raise BadInput(f"{path}: a source file must end in .jsonl or .parquet")
        return read_jsonl_source(path) if path.suffix == ".jsonl" else read_dataset("parquet", str(path))
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return read_dataset(source, None)
    raise BadInput(f"no such source: {source} (a folder, a .jsonl or .parquet file, or a dataset id owner/name)")


def read_folder(folder: Path) -> Iterator[tuple[str, str]]:
    found = False
    for path in sorted(folder.rglob("*.py")):
        where = path.relative_to(folder)
        if SKIPPED_FOLDERS.isdisjoint(where.parts[:-1]) and path.is_file():
            found = True
            yield str(where), path.read_bytes().decode("utf-8", errors="replace")
    if not found:
        raise BadInput(f"no Python files in the source folder {folder}")


def read_jsonl_source(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield f"line {number}", json.loads(line)["content"]
            except (ValueError, KeyError, TypeError) as error:
                raise BadInput(f"{path}:{number}: not a JSON object with a `content` column ({error!r})") from None


def read_dataset(name: str, data_file: str | None) -> Iterator[tuple[str, str]]:
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one line of ours instead of its retries
    import datasets

    try:
        rows = datasets.load_dataset(name, data_files=data_file, split="train", streaming=True)
        for number, row in enumerate(rows):
            yield f"row {number}", row["content"]
    except KeyError:
        raise BadInput(f"{data_file or name} has no `content` column") from None
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"cannot read the source {data_file or name}: {reason}") from None


# -------------------------------------------------------------------------------------------------------------- extraction


def extract(source: str) -> Iterator[dict]:
    """Yield the candidate seeds of all files of `source`, in the source's order, parsed on all cores."""
    files = read_sources(source)
    with multiprocessing.Pool() as pool:
        while batch := list(itertools.islice(files, 512)):
            for candidates in pool.starmap(functions, batch):
                yield from candidates


def functions(where: str, text: str) -> list[dict]:
    """The top-level functions of one file as rows {where, name, code} or, if not fit, with `reject` in addition."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [{"where": where, "reject": "syntax_error"}]
    lines, imports = text.splitlines(), imported_names(module)
    rows = []
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            row = {"where": f"{where}:{node.lineno}", "name": node.name}
            if reject := shape_reject(node):
                row["reject"] = reject
            else:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                row |= stand_alone("\n".join(lines[first - 1 : node.end_lineno]), imports)
            rows.append(row)
    return rows


def shape_reject(node: ast.FunctionDef) -> str | None:
    arguments = node.args
    if ast.get_docstring(node) is None:
        return "no_docstring"
    if not (arguments.posonlyargs or arguments.args or arguments.vararg or arguments.kwonlyargs or arguments.kwarg):
        return "no_arguments"
    if not returns_value(node):
        return "no_return_value"
    if node.end_lineno - node.lineno + 1 > MAX_LINES:
        return "too_long"
    return None


def returns_value(function: ast.FunctionDef) -> bool:
    """Whether the function itself, not one nested in it, has a `return <value>`."""
    pending = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            return True
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))
    return False


def stand_alone(code: str, imports: dict[str, list[str]]) -> dict:
    """Put the imports that `code` needs in front of it; {"code"} and, where it cannot stand alone, {"reject"}."""
    if any(word in code.lower() for word in BANNED_WORDS):
        return {"code": code, "reject": "banned_word"}
    try:
        missing = free_names(code)
    except SyntaxError:  # e.g. a `global` that only its file makes sense of
        return {"code": code, "reject": "syntax_error"}
    needed = [line for name in sorted(missing) for line in imports.get(name, [])]
    if any(line.startswith("from .") for line in needed):
        return {"code": code, "reject": "relative_import"}
    if any(name not in imports for name in missing):
        return {"code": code, "reject": "undefined_name"}
    if needed:
        code = "\n".join(dict.fromkeys(needed)) + "\n\n\n" + code
    if not BANNED_IMPORTS.isdisjoint(imported_modules(ast.parse(code))):
        return {"code": code, "reject": "banned_import"}
    return {"code": code}


def free_names(code: str) -> set[str]:
    """The names that `code` reads and neither defines nor finds among the builtins."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = symtable.symtable(code, "seed", "exec")
    defined = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    read, tables = set(), [module]
    while tables:
        table = tables.pop()
        tables.extend(table.get_children())
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table is module or symbol.is_global()):
                read.add(symbol.get_name())
    return read - defined - set(dir(builtins)) - {"__name__", "__file__"}


def imported_names(module: ast.Module) -> dict[str, list[str]]:
    """Name -> the import statements of the file that bind it, those under a top-level `if` or `try` included."""
    names: dict[str, list[str]] = {}
    pending: list[ast.AST] = list(reversed(module.body))
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler)):
            pending.extend(ast.iter_child_nodes(node))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                statement = ast.unparse(ast.Import([alias]))
                names.setdefault(alias.asname or alias.name.split(".")[0], []).append(statement)
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            for alias in node.names:
                statement = ast.unparse(ast.ImportFrom(node.module, [alias], node.level))
                names.setdefault(alias.asname or alias.name, []).append(statement)
    return names


def imported_modules(tree: ast.AST) -> Iterable[str]:
    """The top-level package of each import anywhere in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]
