"""What is taken for the code and for the tests of a model's answer."""

from argparse import Namespace

import pytest

import eval as scoring
from extras.reward import passes_tests
from parts.code import code_blocks, has_reachable_assert, python_code
from selfcodealign import parse_response

TICKS = "```"
CODE = "def f(x):\n    return x + 1\n"
BLOCKS = {  # of CODE, as models write it
    "python": f"{TICKS}python\n{CODE}{TICKS}",
    "py": f"{TICKS}py\n{CODE}{TICKS}",
    "Python": f"{TICKS}Python\n{CODE}{TICKS}",
    "python3": f"{TICKS} python3.11 \n{CODE}{TICKS}",
    "no language": f"{TICKS}\n{CODE}{TICKS}",
    "CRLF": f"{TICKS}python\n{CODE}{TICKS}\n".replace("\n", "\r\n"),
    "in a list": f"1. So:\n\n   {TICKS}python\n   def f(x):\n       return x + 1\n   {TICKS}",
    "indented": f"{TICKS}python\n    def f(x):\n        return x + 1\n{TICKS}",
    "title": f'{TICKS}python title="a.py"\n{CODE}{TICKS}',
    "file": f"{TICKS}python:a.py\n{CODE}{TICKS}",
    "tildes": f"~~~python\n{CODE}~~~",
    "longer": f"````python\n{CODE}````",
    "not closed": f"{TICKS}python\n{CODE}",
    "beside others": f"{TICKS}sh\npip install f\n{TICKS}\n{TICKS}python\n{CODE}{TICKS}\n{TICKS}\n2\n{TICKS}",
}
SWALLOWED = "try:\n    assert f(1) == 1\nexcept {}:\n    {}\n"


@pytest.mark.parametrize(
    "tests, asserts",
    [
        (SWALLOWED.format("AssertionError as e", "print(e)"), False),
        (SWALLOWED.format("(ValueError, builtins.Exception)", "failed = True"), False),
        ("def test():\n    assert f(1)\ntry:\n    test()\nexcept:\n    pass", False),
        ("from contextlib import suppress\nwith suppress(Exception):\n    assert f(1) == 1", False),
        (SWALLOWED.format("AssertionError", "print('failed')") + "assert f(2) == 2", True),
        (SWALLOWED.format("AssertionError", "raise SystemExit(1)"), True),
        (SWALLOWED.format("AssertionError", "sys.exit(1)"), True),
        (SWALLOWED.format("ValueError", "pass"), True),
        ("try:\n    f(-1)\nexcept AssertionError:\n    pass\nelse:\n    assert False", True),
        ("try:\n    f(-1)\nexcept Exception as e:\n    assert str(e) == 'negative'", True),
    ],
)
def test_an_assertion_whose_failure_is_swallowed_asserts_nothing(tests, asserts):
    assert has_reachable_assert(tests) == asserts


@pytest.mark.parametrize(
    "imports, base, end, asserts",
    [
        ("import unittest", "unittest.TestCase", "unittest.main()", True),
        ("from unittest import TestCase, main", "TestCase", "main()", True),
        (
            "from unittest import TestCase as Case, TextTestRunner as Runner",
            "Case",
            "Runner().run(suite)",
            True,
        ),
        ("import unittest as ut", "ut.TestCase", "ut.main(exit=False)", True),
        ("from unittest import *", "TestCase", "main()", True),
        ("import unittest as ut", "ut.TestCase", "print('no call')", False),
        ("from unittest import TestCase, mock", "TestCase", "mock.patch('time.time')", False),
        ("import unittest", "unittest.TestCase", "unittest.mock.patch('time.time')", False),
    ],
)
def test_a_runner_of_unittest_has_any_name(imports, base, end, asserts):
    case = f"class T({base}):\n    def test(self):\n        self.assertEqual(f(1), 1)"
    assert has_reachable_assert(f"{imports}\n{case}\n{end}") == asserts


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_code_block_is_the_same_for_the_run_and_for_every_score(block):
    assert python_code(f"So:\n{block}\n") == CODE.strip() and scoring.fenced_block(block, "f") == CODE
    tests = f"{TICKS}python\nassert f(1) == 2\n{TICKS}"
    kept = parse_response(f"{block}\n</response>\n\n<tests>\n{tests}", {}, {}, Namespace(layout="tags"))
    assert python_code(kept["response"]) == CODE.strip()
    assert scoring.tested_program({"tests": tests}, block) == f"{CODE}\nassert f(1) == 2\n"


def test_a_right_completion_is_rewarded_whatever_its_fence_says():
    number, tests = len(BLOCKS), "assert f(1) == 2"
    columns = {"tests": [tests] * number, "timeout": [10] * number, "memory_mb": [512] * number}
    assert passes_tests(completions=list(BLOCKS.values()), **columns) == [1.0] * number


def test_the_content_of_a_chat_message_may_be_a_list_of_parts():
    parts = [{"type": "text", "text": "So:\n"}, {"type": "image"}, {"type": "text", "text": BLOCKS["py"]}]
    completions = [[{"role": "assistant", "content": content}] for content in (parts, [], None)]
    columns = {"tests": ["assert f(1) == 2"] * 3, "timeout": [10] * 3, "memory_mb": [512] * 3}
    assert passes_tests(completions=completions, **columns) == [1.0, 0.0, 0.0]


def test_what_is_no_block_of_python_is_none():
    for language in ("pycon", "python-repl", "pytb", "text"):
        assert python_code(f"{TICKS}{language}\n>>> 1 + 1\n{TICKS}") == ""
    assert python_code(f"Call {TICKS}f(1){TICKS} now") == ""
    inner = f'def f():\n    """\n    {TICKS}\n    f()\n    {TICKS}\n    """\n'
    assert code_blocks(f"{TICKS}python\n{inner}{TICKS}") == [("python", inner)]
    assert code_blocks(f"````python\n{TICKS}\n````") == [("python", f"{TICKS}\n")]
