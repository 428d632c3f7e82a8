"""The few-shot examples are what the model imitates: each must be right, and a malformed one must be found
where it is."""

import argparse
import ast
import collections
import re

import pytest

from parts.code import program, python_code
from parts.contamination import Decontaminator
from parts.examples import load_examples, parse_example
from parts.rows import BadInput
from parts.seeds import functions, type_errors
from sandbox import Sandbox
from selfcodealign import LAYOUTS, PROMPTS, parse_response

EXAMPLES = load_examples(PROMPTS / "examples")


def test_every_example_passes_its_own_tests_and_fails_them_when_its_code_is_missing():
    with Sandbox() as sandbox:
        right = dict(
            sandbox.map(
                (example.name, program(python_code(example.response), python_code(example.tests)))
                for example in EXAMPLES
            )
        )
        gutted = dict(sandbox.map((example.name, python_code(example.tests)) for example in EXAMPLES))
    assert {name: result.outcome for name, result in right.items()} == dict.fromkeys(right, "passed")
    assert {name: result.outcome for name, result in gutted.items()} == dict.fromkeys(gutted, "failed")


@pytest.mark.parametrize("name, layout", LAYOUTS.items(), ids=LAYOUTS)
def test_every_example_would_pass_the_filter_that_samples_must_pass(name, layout):
    settings = argparse.Namespace(layout=name)
    for example in EXAMPLES:
        shot = layout.shot[layout.shot.index("{response}") :].format(
            response=example.response, tests=example.tests
        )
        sample = shot.removesuffix(layout.stop[0])  # as the engine gives it
        assert parse_response(sample, {}, {}, settings) == {
            "response": example.response,
            "tests": example.tests,
        }, example.name


def test_the_judge_sees_seven_functions_that_stand_alone_and_both_verdicts():
    text = (PROMPTS / "judge.md").read_text()
    verdicts = re.findall(r"^\[Sufficient\]\n(Yes|No)$", text, re.MULTILINE)
    assert len(verdicts) == 7 and 3 <= verdicts.count("No") <= 4
    rows = functions("judge.py", python_code(text))
    assert len(rows) == 7 and [row.get("reject") for row in rows] == [None] * 7
    assert type_errors([row["code"] for row in rows]) == [None] * 7


def test_the_examples_are_21_and_cover_every_category_and_difficulty():
    counts = collections.Counter(
        (example.properties["category"], example.properties["difficulty"]) for example in EXAMPLES
    )
    assert len(EXAMPLES) == 21 and len(counts) == 9, counts


def test_no_example_holds_a_benchmark_task():
    decontaminator = Decontaminator()
    if not decontaminator.needles:
        pytest.skip(decontaminator.coverage)
    for example in EXAMPLES:
        for text in (example.code, example.instruction, example.response):
            assert decontaminator.contaminated_by(text) is None, example.name


def test_the_code_of_every_example_is_one_documented_function():
    for example in EXAMPLES:
        functions = [
            node for node in ast.parse(python_code(example.code)).body if isinstance(node, ast.FunctionDef)
        ]
        assert len(functions) == 1 and ast.get_docstring(functions[0]), example.name


GOOD = (PROMPTS / "examples" / "01-ingredient-line.md").read_text()


@pytest.mark.parametrize(
    "text, line, says",
    [
        (GOOD.replace("## Properties", "## Property"), "## Property", "Properties belongs"),
        (GOOD.replace("## Tests", "## Test cases"), "## Test cases", "Tests belongs"),
        (GOOD.replace("language: Python\n", ""), "## Properties", "a line each"),
        (GOOD.replace("category: function", "category: poem"), "## Properties", "unknown category"),
        ("hello\n" + GOOD, "hello", "before the first section"),
        (GOOD.rstrip().removesuffix("```"), None, "closing"),
        (GOOD[: GOOD.index("## Tests")], None, "section Tests is missing"),
    ],
)
def test_a_malformed_example_is_refused_with_file_and_line(tmp_path, text, line, says):
    path = tmp_path / "bad.md"
    path.write_text(text)
    number = text.splitlines().index(line) + 1 if line else len(text.splitlines())
    with pytest.raises(BadInput) as error:
        parse_example(path)
    assert str(error.value).startswith(f"{path}:{number}: ") and says in str(error.value)
