"""Seed functions (paper 2.1, B): Python source -> top-level functions that stand alone.

    read_sources("stdlib")            the standard library of this interpreter (the default source)
    read_sources("path/to/folder")    every .py file below it
    read_sources("code.jsonl")        one file per row, its text in the column `content`; .parquet likewise
    read_sources("owner/dataset")     a dataset of the hub, streamed, same column
                                      ("owner/dataset/data/python": that folder of it)

`functions` turns the text of one file into candidate seeds, `type_checked` runs a type checker over them.
A rejected candidate has its reason in `reject`:

    syntax_error  no_docstring  no_arguments  no_return_value  too_long  banned_word  undefined_name
    relative_import  project_import  banned_import  type_error

A seed is the function with the imports it needs, taken from its file. Decorators are left out, as in the
paper's data, where nearly all of them bind a function to its project; those of the standard library stay.

Differs from the paper: the type checker is Pyrefly instead of Pyright, several times faster, without node; it
judges differently about 2 % of the functions that reach it (tests/bench_seeds.py). A name that neither the
function nor its file's imports define (`undefined_name`), and an import of its own project's modules or of
private names (`project_import`), are refused first: such a function does not stand alone even where it
type-checks, since its project is installed.
"""

import ast
import builtins
import collections
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import symtable
import sys
import sysconfig
import tempfile
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from parts.code import code_lines
from parts.containment import PR_SET_PDEATHSIG, prctl
from parts.rows import BadInput, digest, draw

MAX_LINES = 150  # appendix B
BANNED_WORDS = ("todo", "fixme", "bug")
BANNED_IMPORTS = {"argparse", "os", "subprocess", "sys", "setuptools", "distutils", "matplotlib", "seaborn"}
PARSED_AT_A_TIME = 64  # files, by one process
TYPE_CHECKED_AT_A_TIME = 256  # functions; starting the checker takes longer than checking a few
TYPE_CHECK_SECONDS = 300  # for as many; no verdict so far took a tenth of it
SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "node_modules",
}
TEST_FILE = re.compile(
    r"(conftest|tests?|test_.*|.*_test)\.py"
)  # not read, as their folders: what pytest calls does not stand alone


# ---------------------------------------------------------------------------------------------------- sources


def read_sources(source: str) -> Iterator[tuple[str, str]]:
    """Yield (where, text) for each Python file of `source`; `where` names it within the source. Raises
    BadInput."""
    path = Path(sysconfig.get_paths()["stdlib"] if source == "stdlib" else source)
    if path.is_dir():
        return read_folder(path)
    if path.suffix in {".jsonl", ".json", ".parquet"} or path.is_file():
        if not path.is_file():
            raise BadInput(f"no such source file: {path}")
        if path.suffix not in {".jsonl", ".parquet"}:
            raise BadInput(f"{path}: a source file must end in .jsonl or .parquet")
        return (
            read_jsonl_source(path)
            if path.suffix == ".jsonl"
            else read_dataset("parquet", data_files=str(path))
        )
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
        if (
            SKIPPED_FOLDERS.isdisjoint(where.parts[:-1])
            and not TEST_FILE.fullmatch(path.name)
            and path.is_file()
        ):
            found = True
            yield str(where), decode(path.read_bytes())
    if not found:
        raise BadInput(f"no Python files in the source folder {folder}")


def decode(source: bytes) -> str:
    """The text of a Python file in the encoding that it declares; one that breaks it gives text that no
    parser takes."""
    try:
        return source.decode(tokenize.detect_encoding(io.BytesIO(source).readline)[0])
    except (SyntaxError, UnicodeDecodeError):
        return source.decode("ascii", errors="surrogateescape")


def read_jsonl_source(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield f"line {number}", content(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
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
    with multiprocessing.Pool(initializer=end_with_parent) as pool:
        ahead = collections.deque()
        while batch := list(itertools.islice(files, PARSED_AT_A_TIME)):
            ahead.append(pool.starmap_async(functions, batch, chunksize=PARSED_AT_A_TIME))
            if len(ahead) > 2 * os.cpu_count():
                for candidates in ahead.popleft().get():
                    yield from candidates
        for results in ahead:
            for candidates in results.get():
                yield from candidates


SNIPPET_LINES = 15
LINES_PER_SNIPPET = 50


def snippets(source: str, seed: int) -> Iterator[dict]:
    """Yield random snippets of 1 to 15 lines as rows {where, code}, one for each 50 lines of a file, drawn
    with the seed: what the paper compares seeds with (T10), and what OSS-Instruct starts from (T11). Files
    that break their encoding are left out."""
    for where, text in read_sources(source):
        try:
            text.encode()
        except UnicodeEncodeError:
            continue
        lines, content_id = text.splitlines(), digest(text)
        for number in range(-(-len(lines) // LINES_PER_SNIPPET)):
            start = draw(seed, "snippet", content_id, number) % len(lines)
            code = "\n".join(
                lines[start : start + 1 + draw(seed, "length", content_id, number) % SNIPPET_LINES]
            ).strip("\n")
            if code.strip():
                yield {"where": f"{where}:{start + 1}", "code": code}


def end_with_parent():
    """Make a worker end if its parent is killed, whose lock on a run folder it would hold on to, and leave
    Ctrl-C to the parent."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def functions(where: str, text: str, home: str = "") -> list[dict]:
    """The top-level functions of one file as rows {where, name, code} or, if not fit, with `reject` in
    addition.

    `where` is a path below the folder `home` if the file came from a folder: what it shares a name with is
    its own project.
    """
    text = text.removeprefix("\ufeff")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [{"where": where, "reject": "syntax_error"}]
    lines = code_lines(text)
    imports, project = imported_names(module), {home, *Path(where).parts[:-1]}
    rows = []
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            row = {"where": f"{where}:{node.lineno}", "name": node.name}
            if reject := shape_reject(node):
                row["reject"] = reject
            else:
                kept = [part for part in node.decorator_list if means_the_same_anywhere(part, imports)]
                spans = [lines[part.lineno - 1 : part.end_lineno] for part in (*kept, node)]
                row |= stand_alone("\n".join(itertools.chain(*spans)), imports, project)
            rows.append(row)
    return rows


def shape_reject(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    arguments = node.args
    if not ast.get_docstring(node):
        return "no_docstring"
    if not (
        arguments.posonlyargs or arguments.args or arguments.vararg or arguments.kwonlyargs or arguments.kwarg
    ):
        return "no_arguments"
    if not returns_value(node):
        return "no_return_value"
    if node.end_lineno - node.lineno + 1 > MAX_LINES:
        return "too_long"
    return None


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
    except (RecursionError, ValueError):
        return False
    return all(
        name in imports and package(chosen(imports[name])) in sys.stdlib_module_names for name in names
    )


def stand_alone(code: str, imports: dict[str, list[str]], project: set[str]) -> dict:
    """Put the imports that `code` needs in front of it; {"code"} and, where it cannot stand alone,
    {"reject"}."""
    if any(word in code.lower() for word in BANNED_WORDS):
        return {"code": code, "reject": "banned_word"}
    try:
        missing = free_names(code)
    except SyntaxError:  # e.g. a `global` that only its file makes sense of
        return {"code": code, "reject": "syntax_error"}
    if not missing <= imports.keys():
        return {"code": code, "reject": "undefined_name"}
    quoted = (
        quoted_annotations(code) & imports.keys()
    )  # a quoted name that nothing imports may be no name: the type checker tells
    if block := import_block(code, [imports[name] for name in missing | quoted]):
        code = f"{block}\n\n\n{code}"
    tree = ast.parse(code)
    if any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)):
        return {"code": code, "reject": "relative_import"}
    paths = set(imported_paths(tree))
    if any(is_own(path, project) for path in paths):
        return {"code": code, "reject": "project_import"}
    if not BANNED_IMPORTS.isdisjoint(path.split(".")[0] for path in paths):
        return {"code": code, "reject": "banned_import"}
    return {"code": code}


def is_own(path: str, project: set[str]) -> bool:
    """Whether an import, as a dotted path, is of the function's own project or of a private name."""
    first, *rest = path.split(".")
    return first in project - sys.stdlib_module_names or any(
        name[:1] == "_" and name[:2] != "__" for name in (first, *rest)
    )


def free_names(code: str) -> set[str]:
    """The names that `code` reads and neither defines nor finds among the builtins."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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
    return read - defined - set(dir(builtins))


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
    """Name -> the import statements that bind it, those under a top-level `if` or `try` included."""
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


def import_block(code: str, needed: list[list[str]]) -> str:
    """The import statements for `code`, given for each name those that bind it in its file; names of one
    module share a line."""
    plain, names_of = set(), {}
    for statements in needed:
        statement = chosen(statements)
        if statement.startswith("from "):
            module, name = statement.removeprefix("from ").split(" import ")
            names_of.setdefault(module, []).append(name)
        elif " as " in statement:
            plain.add(statement)
        else:  # `import a.b` and `import a.c` bind the same name and are no alternatives
            modules = [
                other.removeprefix("import ")
                for other in statements
                if other.startswith("import ") and " as " not in other
            ]
            plain |= {
                f"import {module}" for module in [module for module in modules if module in code] or modules
            }
    return "\n".join(
        sorted(plain)
        + [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(names_of.items())]
    )


def chosen(statements: list[str]) -> str:
    """Of the imports that bind one name, alternatives under `try` or `if`: the standard library's, or the
    first."""
    return next(
        (statement for statement in statements if package(statement) in sys.stdlib_module_names),
        statements[0],
    )


def package(statement: str) -> str:
    """The top-level package of an import statement; empty if it is relative."""
    return statement.split()[1].split(".")[0]


def imported_paths(tree: ast.AST) -> Iterable[str]:
    """What each import anywhere in `tree` brings, as a dotted path: package.module.name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# ---------------------------------------------------------------------------------------------- type checking


def type_checked(candidates: Iterator[dict]) -> Iterator[dict]:
    """Yield the candidates in their order, those with a type error rejected; no more are taken than the next
    batch needs."""
    while batch := list(itertools.islice(candidates, TYPE_CHECKED_AT_A_TIME)):
        fit = [row for row in batch if "reject" not in row]
        for row, error in zip(fit, type_errors([row["code"] for row in fit]), strict=True):
            if error:
                row |= {"reject": "type_error", "error": error}
        yield from batch


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
    with tempfile.TemporaryDirectory() as folder:
        for number, code in enumerate(codes):
            Path(folder, f"seed_{number}.py").write_text(code + "\n", encoding="utf-8")
        Path(folder, "pyrefly.toml").write_text(PYREFLY)
        command = [
            sys.executable,
            "-m",
            "pyrefly",
            "check",
            "--output-format",
            "json",
            "--python-interpreter-path",
            sys.executable,
        ]
        try:
            finished = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=TYPE_CHECK_SECONDS
            )
            broke = finished.returncode < 0 or finished.returncode == 101  # a signal, a panic
        except subprocess.TimeoutExpired:
            broke = True
    if broke and len(codes) == 1:
        return ["the type checker broke on it"]
    if broke:  # on one of them, and the others shall not suffer from it
        middle = len(codes) // 2
        return type_errors(codes[:middle]) + type_errors(codes[middle:])
    try:
        found = json.loads(finished.stdout)["errors"]
    except (ValueError, KeyError):
        raise BadInput(
            f"the type checker failed: {(finished.stderr.strip() or 'it said nothing').splitlines()[-1]}"
        ) from None
    errors: list[str | None] = [None] * len(codes)
    for error in reversed(found):
        number = int(Path(error["path"]).stem.removeprefix("seed_"))
        errors[number] = f"{error['name']}: {error['concise_description']}"
    return errors
