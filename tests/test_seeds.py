"""Seed extraction against a file whose functions are each fit or unfit for one known reason."""

import json

import pytest

from rows import BadInput
from seeds import extract, functions

SOURCE = '''
import math
import os.path
from collections import Counter as Bag
from . import sibling
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
    rows = {row["name"]: row for row in functions("file.py", SOURCE)}
    assert {name: row.get("reject") for name, row in rows.items()} == {
        "fit": None,
        "renamed": None,
        "recursive": None,
        "undocumented": "no_docstring",
        "no_arguments_at_all": "no_arguments",
        "only_the_inner_one_returns": "no_return_value",
        "needs_a_constant": "undefined_name",
        "needs_a_sibling": "relative_import",
        "needs_os": "banned_import",
        "imports_os_inside": "banned_import",
        "unfinished": "banned_word",
    }
    assert "method" not in rows


def test_a_kept_function_runs_alone():
    rows = {row["name"]: row for row in functions("file.py", SOURCE)}
    for name, argument, value in [("fit", [9, 7], 4.0), ("renamed", "aab", {"a": 2, "b": 1}), ("recursive", 8, 4)]:
        namespace = {}
        exec(rows[name]["code"], namespace)
        assert namespace[name](argument) == value


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
    for source in ("tree", "code.jsonl", "code.parquet"):
        assert [row.get("code") for row in extract(str(tmp_path / source))] == expected


def test_a_corrupt_line_of_a_source_file_is_named(tmp_path):
    path = tmp_path / "code.jsonl"
    path.write_text('{"content": "x = 1"}\n{"content": \n')
    with pytest.raises(BadInput, match=f"{path}:2: "):
        list(extract(str(path)))
