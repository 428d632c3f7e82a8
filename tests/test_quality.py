"""Mutants, scores and agreement where the right answer is known."""

import ast

import pytest

from extras.quality import agreement
from parts.mutants import mutants, mutation_score
from sandbox import Sandbox

CODE = """
def clamp(value: int, low: int = 0, high: int = 10) -> int:
    \"\"\"Between the two.\"\"\"
    if value < low:
        return low
    if value > high:
        return high
    return value


if __name__ == "__main__":
    print(clamp(1 + 1))
"""
WEAK = "assert clamp(5) == 5\nassert clamp(5) == 5"
STRONG = (
    WEAK
    + "\nassert clamp(-3) == 0\nassert clamp(99) == 10\nassert clamp(1, 2, 3) == 2\nassert clamp(4, 2, 3) == 3"
)


DEEP = "x = " + " + ".join(["1"] * 1500)  # Python parses it, and ast.unparse gives up
ODD = "x = f\"{'\u00a0'.strip()}\""  # the same


@pytest.fixture(scope="module")
def box():
    with Sandbox(timeout=2) as box:
        yield box


def test_the_mutants_of_a_line_are_the_ones_that_can_be_counted_by_hand():
    assert set(mutants("def f(a, b):\n    return a + b", 99)) == {
        "def f(a, b):\n    return a - b",
        "def f(a, b):\n    return None",
    }
    assert set(mutants("x = not True", 99)) == {"x = True", "x = not False"}
    assert set(mutants("while a < 1 < b:\n    break", 99)) == {
        f"while {test}:\n    {body}"
        for test, body in [
            ("a <= 1 < b", "break"), ("a < 1 <= b", "break"), ("a < 2 < b", "break"), ("not a < 1 < b", "break"), ("a < 1 < b", "continue"),
        ]
    }  # fmt: skip


def test_mutants_are_different_parse_and_a_few_are_always_the_same():
    every = mutants(CODE, 99)
    assert len(every) == len(set(every)) > 8
    for mutant in every:
        assert ast.parse(mutant) and mutant != ast.unparse(ast.parse(CODE))
        assert "value: int" in mutant and "Between the two." in mutant and "__main__" not in mutant
    drawn = mutants(CODE, 3)
    assert drawn == mutants(CODE, 3) and set(drawn) < set(every)
    assert mutants("import math", 9) == []
    assert mutants(DEEP, 9) == []
    assert all(
        map(ast.parse, mutants(ODD, 9))
    )  # Python 3.12 writes it as only 3.12 reads it, 3.11 not at all


def test_strong_tests_kill_more_than_weak_ones_and_tests_of_nothing_none(box):
    examples = [
        ("weak", CODE, WEAK),
        ("strong", CODE, STRONG),
        ("none", CODE, "assert clamp"),
        ("broken", CODE, "assert clamp(5) == 6"),
    ]
    scores = dict(mutation_score(box, examples, limit=99))
    assert set(scores) == {"weak", "strong", "none", "broken"}
    assert scores["none"].killed == 0 < scores["weak"].killed < scores["strong"].killed
    equivalent = 2  # at the limits themselves, `<` and `<=` give the same
    assert scores["strong"].mutants - scores["strong"].killed == equivalent
    assert scores["broken"].mutants == 0


def test_a_mutant_that_loops_is_killed(box):
    code = "def count(n):\n    while n > 0:\n        n -= 1\n    return n"
    [(_, score)] = mutation_score(box, [("loop", code, "assert count(3) == 0")])
    assert score.killed == score.mutants == 7  # two loop: n += 1, and the step left out


RIGHT, OTHER_RIGHT, WRONG = (
    "def f(x):\n    return " + body for body in ("abs(x)", "x if x > 0 else -x", "x")
)
NEGATIVE, POSITIVE, NOTHING = "assert f(-2) == 2", "assert f(2) == 2", "assert f"


def test_agreement_says_whose_code_passes_whose_tests(box):
    [(key, matrix)] = agreement(
        box, [("key", [(RIGHT, NEGATIVE), (OTHER_RIGHT, POSITIVE), (WRONG, NOTHING), (WRONG, NEGATIVE)])]
    )
    assert key == "key" and matrix == [
        [True, True, True, True],
        [True, True, True, True],
        [False, True, True, False],
        [False, True, True, False],
    ]
