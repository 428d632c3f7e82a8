"""The benchmarks are found, as they are, changed and rewritten; Python's own library is not taken for one."""

import ast
import gzip
import inspect
import itertools
import json
import random
import re
import statistics
import textwrap

import pytest

from decontamination import MIN_NEEDLE, OVERRIDES, Decontaminator, load_benchmark, normalise, task_texts
from rows import BadInput


@pytest.fixture(scope="module")
def decontaminator() -> Decontaminator:
    found = Decontaminator(folder=None)
    if "humaneval+" not in found.coverage.split("NOT SEARCHED")[0] or "mbpp+ NOT SEARCHED" in found.coverage:
        pytest.skip(found.coverage)
    return found


@pytest.fixture(scope="module")
def tasks(decontaminator) -> dict[str, dict]:
    return {task_id: task for name in OVERRIDES for task_id, task in load_benchmark(name)[0].items()}


def test_every_wording_and_solution_is_found_however_its_white_space_stands(decontaminator, tasks):
    for task_id, task in tasks.items():
        for text in task_texts(task):
            if len(normalise(text)) >= MIN_NEEDLE:
                planted = "An answer:\r\n" + re.sub(r"\s+", "\r\n\t", text.upper()) + "\n# end"
                assert decontaminator.contaminated_by(planted).layer == "substring", task_id


def test_a_copy_with_every_sixteenth_word_replaced_is_found_and_its_task_named(decontaminator, tasks):
    found, named = [], 0
    for task_id, task in tasks.items():
        words = re.findall(r"\w+", task_texts(task)[1])
        if len(words) > 20:
            words[7::16] = ["otherwise"] * len(words[7::16])
            finding = decontaminator.contaminated_by(" ".join(words))
            found.append(finding is not None)
            named += finding is not None and finding.task == task_id
    assert len(found) > 300 and all(found) and named > 0.95 * len(found), (len(found), sum(found), named)  # some tasks share a wording


def test_modules_of_the_library_hold_no_task(decontaminator):
    for module in (ast, gzip, inspect, json, random, re, statistics, textwrap):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef):
                assert decontaminator.contaminated_by(ast.unparse(node)) is None, f"{module.__name__}.{node.name}"


def test_further_benchmarks_come_from_a_folder_of_files(tmp_path, monkeypatch):
    for override in OVERRIDES.values():
        monkeypatch.setenv(override, str(tmp_path / "none"))
    wording = " ".join(f"word{number}" for number in range(30))
    code = "def f(values):\r\n    return sorted(values, key=lambda value: -value)\r\n"
    (tmp_path / "one.jsonl.gz").write_bytes(gzip.compress(json.dumps({"task_id": 7, "text": wording, "code": code}).encode() + b"\n"))
    (tmp_path / "two.json").write_text(json.dumps([{"question": wording[::-1]}]))
    found = Decontaminator(str(tmp_path))
    assert "one, two" in found.coverage and found.coverage.count("NOT SEARCHED") == 2
    assert found.contaminated_by(code.replace("\r", "")).task == found.contaminated_by(wording).task == "one/7"
    assert found.contaminated_by(wording[::-1]).task == "two/1" and found.contaminated_by("word1 word2 word3") is None


@pytest.mark.parametrize("name, content", [("a.jsonl", "{"), ("a.jsonl", '{"x": 1}\n'), ("a.jsonl.gz", "no"), ("a.json", "[1]"), ("a.txt", "")])
def test_a_folder_without_readable_tasks_is_named(tmp_path, monkeypatch, name, content):
    for override in OVERRIDES.values():
        monkeypatch.setenv(override, str(tmp_path / "none"))
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=str(tmp_path)):
        Decontaminator(str(tmp_path))
