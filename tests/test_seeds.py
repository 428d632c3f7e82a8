"""Seed extraction against a file whose functions are each fit or unfit for one known reason."""

import json

import pytest

from rows import BadInput
from seeds import TYPE_CHECKED_AT_A_TIME, extract, functions, type_checked, type_errors

SOURCE = '''
import math
import os.path
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
        "undocumented": "no_docstring",
        "no_arguments_at_all": "no_arguments",
        "only_the_inner_one_returns": "no_return_value",
        "needs_a_constant": "undefined_name",
        "needs_a_sibling": "relative_import",
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


RIGHT = ["def f(x: int) -> int:\n    return x + 1", "import numpy as np\n\n\ndef f(x: np.ndarray) -> float:\n    return float(x.sum())"]
WRONG = {
    "def f(x: int) -> str:\n    return x + 1": "bad-return",
    "import math\n\n\ndef f(x: str) -> float:\n    return math.sqrt(x)": "bad-argument-type",
    "def f(x):\n    return undefined_helper(x)": "unknown-name",
    "import a_package_that_nobody_has\n\n\ndef f(x):\n    return a_package_that_nobody_has.g(x)": "missing-import",
    "import math\n\n\ndef f(x):\n    return math.squareroot(x)": "missing-attribute",
}


def test_the_type_checker_finds_planted_errors_and_no_others():
    """Each verdict is the same alone and among others."""
    codes = [*RIGHT, *WRONG]
    together = type_errors(codes)
    assert [error and error.split(":")[0] for error in together] == [None] * len(RIGHT) + list(WRONG.values())
    assert [type_errors([code])[0] for code in codes[1:4]] == together[1:4]


def test_type_checking_keeps_the_order_over_batches():
    wrong = next(iter(WRONG))
    rows = [{"name": str(n), "code": wrong if n % 50 == 0 else RIGHT[0]} for n in range(TYPE_CHECKED_AT_A_TIME + 60)]
    rows[7]["reject"] = "too_long"
    checked = list(type_checked(iter(rows)))
    assert [row["name"] for row in checked] == [row["name"] for row in rows]
    assert [row["name"] for row in checked if row.get("reject") == "type_error"] == [str(n) for n in range(0, len(rows), 50)]
    assert checked[7]["reject"] == "too_long"
