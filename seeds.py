"""Seed functions: Python source -> top-level functions that stand alone and are worth learning from (paper 2.1, appendix B).

    read_sources("stdlib")            the standard library of this interpreter (the default source)
    read_sources("path/to/folder")    every .py file below it
    read_sources("code.jsonl")        one file per row, its text in the column `content`; .parquet likewise
    read_sources("owner/dataset")     a dataset of the hub, streamed, same column

`functions` turns the text of one file into candidate seeds, `type_checked` runs a type checker over them; each that is not fit says why
in `reject`:

    syntax_error  no_docstring  no_arguments  no_return_value  too_long  banned_word  relative_import  undefined_name  project_import
    banned_import  type_error

Differs from the paper: the type checker is Pyrefly instead of Pyright, for it is much faster, small, and needs no node; what it finds
is in README. A name that neither the function nor its file's imports define (`undefined_name`), and an import of its own project's
modules or of private names (`project_import`), are refused first: such a function does not stand alone even where it type-checks.
"""

import ast
import builtins
import contextlib
import itertools
import json
import multiprocessing
import os
import subprocess
import symtable
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from rows import BadInput

MAX_LINES = 150  # appendix B
BANNED_WORDS = ("todo", "fixme", "bug")
BANNED_IMPORTS = {"argparse", "os", "subprocess", "sys", "setuptools", "distutils", "matplotlib", "seaborn"}
TYPE_CHECKED_AT_A_TIME = 256  # functions; starting the checker takes longer than checking a few
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
    project = Path(where).parts[0].removesuffix(".py")
    rows = []
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            row = {"where": f"{where}:{node.lineno}", "name": node.name}
            if reject := shape_reject(node):
                row["reject"] = reject
            else:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                row |= stand_alone("\n".join(lines[first - 1 : node.end_lineno]), imports, project)
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


def stand_alone(code: str, imports: dict[str, list[str]], project: str) -> dict:
    """Put the imports that `code` needs in front of it; {"code"} and, where it cannot stand alone, {"reject"}."""
    if any(word in code.lower() for word in BANNED_WORDS):
        return {"code": code, "reject": "banned_word"}
    try:
        missing = free_names(code)
    except SyntaxError:  # e.g. a `global` that only its file makes sense of
        return {"code": code, "reject": "syntax_error"}
    quoted = quoted_annotations(code) & imports.keys()  # a quoted name that nothing imports may be no name: the type checker tells
    needed = [line for name in sorted(missing | quoted) for line in imports.get(name, [])]
    if any(line.startswith("from .") for line in needed):
        return {"code": code, "reject": "relative_import"}
    if any(name not in imports for name in missing):
        return {"code": code, "reject": "undefined_name"}
    if needed:
        code = "\n".join(dict.fromkeys(needed)) + "\n\n\n" + code
    tree = ast.parse(code)
    paths = set(imported_paths(tree))
    if any(is_own(path, project) for path in paths):
        return {"code": code, "reject": "project_import"}
    if not BANNED_IMPORTS.isdisjoint(path.split(".")[0] for path in paths):
        return {"code": code, "reject": "banned_import"}
    return {"code": code}


def is_own(path: str, project: str) -> bool:
    """Whether an import, written as a dotted path, is of the function's own project or of something private."""
    first, *rest = path.split(".")
    return first == project and first not in sys.stdlib_module_names or any(name[:1] == "_" and name[:2] != "__" for name in (first, *rest))


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


def quoted_annotations(code: str) -> set[str]:
    """The names in annotations that are written as text, and text in Literal[...] that looks like one."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for part in ast.walk(annotation) if annotation else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    with contextlib.suppress(SyntaxError, ValueError):  # other text
                        names |= free_names(part.value)
    return names


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


def imported_paths(tree: ast.AST) -> Iterable[str]:
    """What each import anywhere in `tree` brings, as a dotted path: package.module.name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# ----------------------------------------------------------------------------------------------------------- type checking


def type_checked(candidates: Iterator[dict]) -> Iterator[dict]:
    """Yield the candidates in their order, those with a type error rejected."""
    while batch := list(itertools.islice(candidates, TYPE_CHECKED_AT_A_TIME)):
        fit = [row for row in batch if "reject" not in row]
        for row, error in zip(fit, type_errors([row["code"] for row in fit]), strict=True):
            if error:
                row |= {"reject": "type_error", "error": error}
        yield from batch


def type_errors(codes: list[str]) -> list[str | None]:
    """The first error that Pyrefly's default rules find in each of the programs, each a module of its own; None where there is none.

    Imports are looked up among the packages of this interpreter; one that is not installed is an error, since nothing that uses it can be
    checked. Nothing of the code is executed.
    """
    if not codes:
        return []
    with tempfile.TemporaryDirectory() as folder:
        for number, code in enumerate(codes):
            Path(folder, f"seed_{number}.py").write_text(code + "\n", errors="surrogatepass")
        Path(folder, "pyrefly.toml").write_text('preset = "default"\nsearch-path = []\ndisable-search-path-heuristics = true\n')
        command = [sys.executable, "-m", "pyrefly", "check", "--output-format", "json", "--python-interpreter-path", sys.executable]
        finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    try:
        found = json.loads(finished.stdout)["errors"]
    except (ValueError, KeyError):
        raise BadInput(f"the type checker failed: {(finished.stderr.strip() or 'it said nothing').splitlines()[-1]}") from None
    errors: list[str | None] = [None] * len(codes)
    for error in reversed(found):
        number = int(Path(error["path"]).stem.removeprefix("seed_"))
        errors[number] = f"{error['name']}: {error['concise_description']}"
    return errors
