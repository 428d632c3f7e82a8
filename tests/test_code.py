"""What is taken for the code and for the tests of a model's answer."""

import pytest

from parts.code import has_reachable_assert

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
