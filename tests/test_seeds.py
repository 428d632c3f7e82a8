"""Seeds against a file whose functions are each fit or unfit for one known reason, the standard library, and
planted type errors."""

import ast
import fcntl
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest
from pyrefly.__main__ import get_pyrefly_bin

from experiments.baselines import snippets
from parts import seeds
from parts.pool import map_in_order
from parts.rows import BadInput
from parts.seeds import TYPE_CHECKED_AT_A_TIME, extract, functions, type_checked, type_errors
from sandbox import Sandbox

SOURCE = '''
import functools
import math
import os.path
import urllib.error
import urllib.parse
import project
try:
    import simplejson as json
except ImportError:
    import json
from collections import Counter as Bag
from . import sibling
from packaging.version import Version
from heapq import _heapify_max
LIMIT = 3

def fit(values: list[int]) -> float:
    """The root of the sum."""
    return math.sqrt(sum(values))

def renamed(text):
    """Counts letters."""
    return Bag(text)

def recursive(n, seen=()):
    """Calls itself and a function of its own."""
    def half(m):
        return m // 2
    return 0 if n < 1 else 1 + recursive(half(n))

def parses(text):
    """Reads JSON from a part of an address."""
    return json.loads(urllib.parse.unquote(text))

@project.register("square")
@functools.lru_cache(maxsize=None)
def decorated(x):
    """Squares, and remembers."""
    return x * x

async def awaited(x):
    """Gives back what it is given."""
    return x

def undocumented(x):
    return x

def no_arguments_at_all():
    """Gives one."""
    return 1

def only_the_inner_one_returns(x):
    """Returns nothing itself."""
    def inner():
        return x
    inner()

def needs_a_constant(x):
    """Reads a global of its file."""
    return x + LIMIT

def needs_a_sibling(x):
    """Reads a relative import."""
    return sibling.f(x)

def needs_a_sibling_inside(x):
    """Has a relative import of its own."""
    from .sibling import f
    return f(x)

def needs_its_place(name):
    """Knows where its file is."""
    return __file__ + name

def needs_its_project(text):
    """Imports from the package that it is a part of."""
    return Version(text)

def needs_what_is_private(values):
    """Imports what is not for others."""
    return _heapify_max(values)

def quotes_an_annotation(text: "Bag") -> "float | None":
    """Names a type only as text."""
    return math.sqrt(len(text))

def needs_os(path):
    """Imports what is banned."""
    return os.path.join(path, "x")

def imports_os_inside(path):
    """Imports what is banned."""
    import subprocess
    return subprocess.run(path)

def unfinished(x):
    """Does a thing. TODO: the other thing."""
    return x

class Holder:
    def method(self, x):
        """Not a top-level function."""
        return x
'''


def test_each_function_is_kept_or_rejected_for_its_reason():
    rows = {row["name"]: row for row in functions("packaging/file.py", SOURCE)}
    assert {name: row.get("reject") for name, row in rows.items()} == {
        "fit": None,
        "renamed": None,
        "recursive": None,
        "parses": None,
        "decorated": None,
        "awaited": None,
        "undocumented": "no_docstring",
        "no_arguments_at_all": "no_arguments",
        "only_the_inner_one_returns": "no_return_value",
        "needs_a_constant": "undefined_name",
        "needs_a_sibling": "relative_import",
        "needs_a_sibling_inside": "relative_import",
        "needs_its_place": "undefined_name",
        "needs_its_project": "project_import",
        "needs_what_is_private": "project_import",
        "quotes_an_annotation": None,
        "needs_os": "banned_import",
        "imports_os_inside": "banned_import",
        "unfinished": "banned_word",
    }
    assert "method" not in rows
    assert "import Counter as Bag" in rows["quotes_an_annotation"]["code"]


def test_a_kept_function_runs_alone():
    rows = {row["name"]: row for row in functions("file.py", SOURCE)}
    cases = [("fit", [9, 7], 4.0), ("renamed", "aab", {"a": 2, "b": 1}), ("recursive", 8, 4)]
    for name, argument, value in [*cases, ("parses", "%5B1%5D", [1]), ("decorated", 3, 9)]:
        namespace = {}
        exec(rows[name]["code"], namespace)
        assert namespace[name](argument) == value


def test_imports_are_those_needed_and_a_decorator_stays_where_anyone_has_it():
    rows = {row["name"]: row["code"] for row in functions("file.py", SOURCE) if "code" in row}
    assert rows["parses"].startswith("import json\nimport urllib.parse\n\n\ndef parses")
    assert rows["decorated"].startswith(
        "import functools\n\n\n@functools.lru_cache(maxsize=None)\ndef decorated"
    )


@pytest.mark.parametrize(
    "where, home", [("packaging/src/file.py", ""), ("src/packaging/file.py", ""), ("file.py", "packaging")]
)
def test_a_project_is_known_by_its_folders(where, home):
    rows = {row["name"]: row for row in functions(where, SOURCE, home)}
    assert rows["needs_its_project"]["reject"] == "project_import" and "reject" not in rows["fit"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.encode(),
        # A form feed is white space, no line of its own
        lambda text: text.replace("\n\n", "\n\x0c\n").encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: ("# -*- coding: latin-1 -*-\n" + text).encode("latin-1"),
    ],
    ids=["plain", "form_feeds", "crlf", "byte_order_mark", "latin-1"],
)
def test_a_function_is_cut_out_whole(tmp_path, change):
    """Whatever the file's line ends and encoding: the parser says where the function is, and what it is."""
    text = 'x = 1\n\ndef f(a):\n    """Caf\u00e9."""\n\n    if a:\n        return "\u00e9"\n\n    return a\n'
    (tmp_path / "file.py").write_bytes(change(text))
    (row,) = extract(str(tmp_path))
    assert ast.dump(ast.parse(row["code"])) == ast.dump(ast.Module(ast.parse(text).body[1:], []))


def test_a_file_that_breaks_its_encoding_is_one_rejected_row(tmp_path):
    (tmp_path / "file.py").write_bytes(b'def f(x):\n    "caf\xe9"\n    return x\n')
    assert list(extract(str(tmp_path))) == [{"where": "file.py", "reject": "syntax_error"}]


@pytest.mark.parametrize("cookie", ["rot13", "hex", "no-such-codec", "undefined"])
def test_a_file_whose_encoding_python_refuses_is_one_rejected_row(tmp_path, cookie):
    (tmp_path / "file.py").write_text(f"# -*- coding: {cookie} -*-\ndef f(x):\n    'It.'\n    return x\n")
    assert list(extract(str(tmp_path))) == [{"where": "file.py", "reject": "syntax_error"}]
    assert list(snippets(str(tmp_path), 0)) == []


ALONE = """
import builtins, dis, inspect

def globals_of(code):
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield step.argval
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from globals_of(constant)

assert inspect.unwrap({name}).__doc__.strip()
missing = [name for name in globals_of(inspect.unwrap({name}).__code__) if name not in globals() and not hasattr(builtins, name)]
assert not missing, missing
"""


def test_seeds_of_the_standard_library_stand_alone():
    """A sample of 150: each can be defined, and its byte code reads no global name that is not there."""
    rows = [row for row in extract("stdlib") if "reject" not in row]
    rows.sort(key=lambda row: hashlib.sha256(row["code"].encode()).hexdigest())
    rows = [row for row in type_checked(iter(rows[:150])) if "reject" not in row]
    assert len(rows) > 120
    with Sandbox() as box:
        programs = ((row["where"], row["code"] + "\n\n" + ALONE.format(name=row["name"])) for row in rows)
        assert {
            where: result.detail for where, result in box.map(programs) if result.outcome != "passed"
        } == {}


@pytest.mark.parametrize("text", ["def f(:\n", "x = 1\0", "(" * 5000 + ")" * 5000])
def test_a_file_that_is_not_python_is_one_rejected_row(text):
    assert functions("file.py", text) == [{"where": "file.py", "reject": "syntax_error"}]


def test_every_kind_of_source_gives_the_same_functions(tmp_path):
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "tree" / "package"
    folder.mkdir(parents=True)
    (folder / "file.py").write_text(SOURCE)
    (folder / "notes.txt").write_text("def f(x): ...")
    (tmp_path / "code.jsonl").write_text(json.dumps({"content": SOURCE}) + "\n")
    pyarrow.parquet.write_table(pyarrow.table({"content": [SOURCE]}), tmp_path / "code.parquet")
    expected = [row.get("code") for row in functions("file.py", SOURCE)]
    (tmp_path / "a [1]*.parquet").write_bytes((tmp_path / "code.parquet").read_bytes())
    (tmp_path / "blank.jsonl").write_text("\n" + (tmp_path / "code.jsonl").read_text() + " \n")
    for source in ("tree", "code.jsonl", "blank.jsonl", "code.parquet", "a [1]*.parquet"):
        assert [row.get("code") for row in extract(str(tmp_path / source))] == expected


def test_a_corrupt_line_of_a_source_file_is_named(tmp_path):
    path = tmp_path / "code.jsonl"
    for broken in ("[" * 100_000, '{"content": ', '{"text": "x = 1"}', '["x = 1"]', '{"content": 1}'):
        path.write_text('{"content": null}\n' + broken + "\n")
        with pytest.raises(BadInput, match=f"{path}:2: "):
            list(extract(str(path)))


def test_a_parquet_file_without_text_is_named(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "code.parquet"
    for table in ({"text": ["x = 1"]}, {"content": [1]}):
        pyarrow.parquet.write_table(pyarrow.table(table), path)
        with pytest.raises(BadInput, match=f"{path}.*`?content"):
            list(extract(str(path)))


@pytest.mark.parametrize("cores", [1, len(os.sched_getaffinity(0))])
def test_parsing_ahead_is_bounded(cores, monkeypatch):
    """The first seed of an endless source comes, and the source was not read far beyond it. Cores that are not
    allowed do not count."""
    read, allowed = 0, sorted(os.sched_getaffinity(0))

    def endless(source):
        nonlocal read
        while True:
            read += 1
            yield f"row {read}", SOURCE

    monkeypatch.setattr(seeds, "read_sources", endless)
    os.sched_setaffinity(0, allowed[:cores])
    try:
        candidates = extract("endless")
        assert next(candidates)["name"] == "fit"
        candidates.close()
    finally:
        os.sched_setaffinity(0, allowed)
    assert read <= seeds.PARSED_AT_A_TIME * (2 * cores + 2)


def test_a_process_that_is_killed_is_an_error_and_not_waited_for():
    killed = lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == 3 else number
    found = map_in_order(killed, ((number,) for number in itertools.count()), 2)
    with pytest.raises(BrokenExecutor):
        list(found)


ENDLESS = """
import fcntl, itertools, sys
from parts import seeds
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
seeds.read_sources = lambda source: (("file.py", "x = 1\\n" * 100_000) for _ in itertools.count())
print("started", flush=True)
list(seeds.extract("endless"))
"""


def test_no_worker_outlives_a_killed_parent(tmp_path):
    """A worker that did would hold the lock that its parent held, and the next start would be refused."""
    command = [sys.executable, "-c", ENDLESS, tmp_path / "lock"]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(seeds.__file__).parent.parent
    )
    parent.stdout.readline()
    time.sleep(2)
    parent.kill()
    assert parent.communicate(timeout=60)[1] == b""  # no worker has anything to say
    fcntl.flock((tmp_path / "lock").open("w"), fcntl.LOCK_EX | fcntl.LOCK_NB)


RIGHT = [
    "def f(x: int) -> int:\n    return x + 1",
    "import numpy as np\n\n\ndef f(x: np.ndarray) -> float:\n    return float(x.sum())",
]
WRONG = {
    "def f(x: int) -> str:\n    return x + 1": "bad-return",
    "import math\n\n\ndef f(x: str) -> float:\n    return math.sqrt(x)": "bad-argument-type",
    "def f(x):\n    return undefined_helper(x)": "unknown-name",
    "import a_package_that_nobody_has\n\n\ndef f(x):\n    return a_package_that_nobody_has.g(x)": "missing-import",
    "import math\n\n\ndef f(x):\n    return math.squareroot(x)": "missing-attribute",
    "import urllib\n\n\ndef f(x):\n    return urllib.parse.quote(x)": "implicit-import",
    # The first program of the batch, by its file's name
    "from seed_0 import f\n\n\ndef g(x):\n    return f(x)": "missing-import",
}


def test_the_type_checker_finds_planted_errors_and_no_others():
    """Each verdict is the same alone and among others."""
    codes = [*RIGHT, *WRONG]
    together = type_errors(codes)
    assert [error and error.split(":")[0] for error in together] == [None] * len(RIGHT) + list(WRONG.values())
    assert [type_errors([code])[0] for code in codes[1:4]] == together[1:4]


def test_the_type_checker_works_where_the_path_of_modules_holds_temporary_files(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", tempfile.gettempdir())
    wrong = next(iter(WRONG))
    assert [error and error.split(":")[0] for error in type_errors([RIGHT[0], wrong])] == [None, WRONG[wrong]]


def test_type_checking_keeps_the_order_over_batches():
    wrong = next(iter(WRONG))
    rows = [
        {"name": str(n), "code": wrong if n % 50 == 0 else RIGHT[0]}
        for n in range(TYPE_CHECKED_AT_A_TIME + 60)
    ]
    rows[7]["reject"] = "too_long"
    checked = list(type_checked(iter(rows)))
    assert [row["name"] for row in checked] == [row["name"] for row in rows]
    assert [row["name"] for row in checked if row.get("reject") == "type_error"] == [
        str(n) for n in range(0, len(rows), 50)
    ]
    assert checked[7]["reject"] == "too_long"


def test_type_checking_takes_no_more_than_it_needs():
    taken = []
    rows = ({"code": RIGHT[0], "name": taken.append(n)} for n in range(10**6))
    next(type_checked(rows))
    assert len(taken) == TYPE_CHECKED_AT_A_TIME


def test_a_program_that_breaks_the_type_checker_is_alone_in_it(monkeypatch):
    """Here none is given the time to be checked, so each is tried alone in the end."""
    monkeypatch.setattr(seeds, "TYPE_CHECK_SECONDS", 0.001)
    assert type_errors(RIGHT[:1] * 3) == ["the type checker broke on it"] * 3


def test_a_program_that_kills_the_type_checker_is_alone_in_it(monkeypatch, tmp_path):
    """As the kernel does where memory runs out."""
    checker = tmp_path / "checker"
    checker.write_text(
        f"#!/bin/sh\ngrep -q deadly seed_*.py && kill -9 $$\nexec {get_pyrefly_bin()} " + '"$@"\n'
    )
    checker.chmod(0o755)
    monkeypatch.setattr("pyrefly.__main__.get_pyrefly_bin", lambda: str(checker))
    rows = [{"code": code} for code in (*RIGHT[:2], f"{RIGHT[0]}\n# deadly", RIGHT[1])]
    assert [row.get("reject") for row in type_checked(iter(rows))] == [None, None, "not_checked", None]


def test_snippets_are_pieces_of_the_files_and_always_the_same(tmp_path):
    (tmp_path / "long.py").write_text("".join(f"line_{n} = {n}\n" for n in range(500)))
    (tmp_path / "blank.py").write_text("\n" * 40)
    (tmp_path / "latin.py").write_bytes("x = 'é'\n".encode("latin-1"))
    rows = list(snippets(str(tmp_path), 0))
    assert len(rows) == 10 and rows == list(snippets(str(tmp_path), 0)) != list(snippets(str(tmp_path), 1))
    lengths = [row["code"].count("\n") + 1 for row in rows]
    assert (
        all(row["code"] in (tmp_path / "long.py").read_text() for row in rows)
        and len(set(lengths)) > 3
        and max(lengths) <= 15
    )
