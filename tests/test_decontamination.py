"""The benchmarks are found, as they are, changed and rewritten; Python's own library is not taken for one."""

import ast
import gzip
import inspect
import json
import marshal
import random
import re
import statistics
import textwrap

import pytest

from parts import benchmarks
from parts.behaviour import Trial, make_trials, plan_tries, solved_tasks
from parts.benchmarks import OVERRIDES, load_benchmark
from parts.contamination import MIN_NEEDLE, Decontaminator, normalise, task_texts
from parts.rows import BadInput
from parts.try_tasks import same, solves
from sandbox import Sandbox


@pytest.fixture(scope="module")
def decontaminator() -> Decontaminator:
    found = Decontaminator(folder=None)
    if "humaneval+" not in found.coverage.split("NOT SEARCHED")[0] or "mbpp+ NOT SEARCHED" in found.coverage:
        pytest.skip(found.coverage)
    return found


@pytest.fixture(scope="module")
def tasks(decontaminator) -> dict[str, dict]:
    return {task_id: task for name in OVERRIDES for task_id, task in load_benchmark(name).tasks.items()}


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
    # Some tasks share a wording
    assert len(found) > 300 and all(found) and named > 0.95 * len(found), (len(found), sum(found), named)


def test_modules_of_the_library_hold_no_task(decontaminator):
    for module in (ast, gzip, inspect, json, random, re, statistics, textwrap):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef):
                assert decontaminator.contaminated_by(ast.unparse(node)) is None, (
                    f"{module.__name__}.{node.name}"
                )


@pytest.fixture
def nothing_to_download(monkeypatch):
    """As on a machine that reaches package registries only, with nothing downloaded before."""
    for override in OVERRIDES.values():
        monkeypatch.delenv(override, raising=False)
    monkeypatch.setattr(benchmarks, "cannot_download", lambda name: "no way there")


def test_humaneval_of_the_package_is_searched_where_evalplus_files_cannot_be_had(nothing_to_download):
    found = Decontaminator()
    assert found.suites == ["humaneval"] and found.coverage.count("NOT SEARCHED") == 3
    assert "HUMANEVAL_OVERRIDE_PATH" in found.coverage and not found.runnable
    for task_id, task in load_benchmark("humaneval").tasks.items():
        copy = task["prompt"].upper() + task["canonical_solution"]
        assert found.contaminated_by(copy), task_id


def test_further_benchmarks_come_from_a_folder_of_files(tmp_path, nothing_to_download):
    wording = " ".join(f"word{number}" for number in range(30))
    code = "def f(values):\r\n    return sorted(values, key=lambda value: -value)\r\n"
    (tmp_path / "one.jsonl.gz").write_bytes(
        gzip.compress(json.dumps({"task_id": 7, "text": wording, "code": code}).encode() + b"\n")
    )
    (tmp_path / "two.json").write_text(json.dumps([{"question": wording[::-1]}]))
    found = Decontaminator(str(tmp_path))
    assert "one, two" in found.coverage and found.coverage.count("NOT SEARCHED") == 2
    assert (
        found.contaminated_by(code.replace("\r", "")).task == found.contaminated_by(wording).task == "one/7"
    )
    assert (
        found.contaminated_by(wording[::-1]).task == "two/1"
        and found.contaminated_by("word1 word2 word3") is None
    )


@pytest.mark.parametrize(
    "name, content",
    [("a.jsonl", "{"), ("a.jsonl", '{"x": 1}\n'), ("a.jsonl.gz", "no"), ("a.json", "[1]"), ("a.txt", "")],
)
def test_a_folder_without_readable_tasks_is_named(tmp_path, nothing_to_download, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=str(tmp_path)):
        Decontaminator(str(tmp_path))


# ----------------------------------------------------------------------------------------------- by execution


@pytest.fixture(scope="module")
def trials(decontaminator) -> list[Trial]:
    return make_trials(decontaminator.runnable)


@pytest.fixture(scope="module")
def box():
    with Sandbox() as box:
        yield box


def rewritten(task: dict) -> str:
    """The reference with its function under another name and behind another function, its docstring gone."""
    tree = ast.parse(task["prompt"] + task["canonical_solution"])
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    arguments = next(
        node.args
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == task["entry_point"]
    )
    names = [f"given_{n}" for n in range(len(arguments.args))]
    tree.body.append(
        ast.parse(f"def answer({', '.join(names)}):\n    return _step({', '.join(names)})").body[0]
    )
    return re.sub(rf"\b{task['entry_point']}\b", "_step", ast.unparse(tree))


def test_rewritten_references_are_found_by_what_they_do(trials, tasks, box):
    planted = {trial.task: rewritten(tasks[trial.task]) for trial in trials[::9]}
    found = {key: (solved, missing) for key, solved, missing in solved_tasks(trials, box, planted.items())}
    assert len(planted) > 50
    assert [key for key in planted if key not in found[key][0]] == []


def test_what_hangs_exits_or_crashes_solves_nothing_and_hides_nothing(trials, tasks, box):
    trial = next(trial for trial in trials if trial.arity == 1)
    right = rewritten(tasks[trial.task])
    harmful = {
        "ordinary": "def f(x):\n    return x\ndef g(x, y):\n    return None",
        "loops": "def f(x):\n    while True:\n        pass",
        "exits": "import os\ndef f(x):\n    os._exit(0)",
        "crashes": "import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGSEGV)",
        "raises": "import sys\ndef f(x):\n    sys.exit(0)",
        "module exits": "import os\ndef f(x):\n    return x\nos._exit(0)",
    }
    found = {key: (solved, missing) for key, solved, missing in solved_tasks(trials, box, harmful.items())}
    assert all(solved == [] for solved, _ in found.values())
    assert found["ordinary"][1] == found["raises"][1] == 0
    assert all(found[key][1] > 100 for key in ("loops", "exits", "crashes", "module exits"))
    first = marshal.loads(trial.examples[0][0])[0]
    after = f"def {trial.name}(x):\n    if x == {first!r}:\n        while True:\n            pass\n{right}"
    [(_, solved, missing)] = solved_tasks(trials, box, [("after", after)])
    assert trial.task in solved and missing == 0


def test_a_later_function_that_sleeps_hides_nothing(trials, tasks, box):
    trial = next(trial for trial in trials if trial.arity == 2)
    code = rewritten(tasks[trial.task]) + "\nimport time\ndef slow(x, y):\n    time.sleep(5)"
    [(_, solved, missing)] = solved_tasks(trials, box, [("slow", code)])
    assert trial.task in solved and missing > 0


def test_every_task_that_a_code_solves_is_named(trials, tasks, box):
    one, other = (next(trial.task for trial in trials if trial.arity == arity) for arity in (1, 2))
    both = (
        rewritten(tasks[one])
        + "\n"
        + rewritten(tasks[other]).replace("_step", "_other").replace("answer", "second")
    )
    [(key, solved, missing)] = solved_tasks(trials, box, [("both", both)])
    assert {one, other} <= set(solved) and key == "both" and missing == 0


def test_no_task_is_tried_that_tells_nothing(trials):
    constant_or_builtin = [lambda *_: True, lambda *_: None, lambda *_: [], len, sum, sorted, max]
    for trial in trials:
        assert not any(solves(function, trial.as_set, trial.examples) for function in constant_or_builtin), (
            trial.task
        )
    assert len(trials) > 450


def test_arguments_are_counted_as_a_call_counts_them():
    trials = [Trial("t", "f", arity, False, []) for arity in (1, 2, 3)]

    def arities(signature):
        return [trials[number].arity for _, number in plan_tries(f"def g({signature}):\n    pass", trials)]

    assert arities("a, b=1") == [1, 2] and arities("*a") == [1, 2, 3] and arities("a, b, c, /") == [3]
    assert arities("a, *, key") == [] and arities("a, *, key=None") == [1] and arities("") == []


@pytest.mark.parametrize(
    "answer, expected, equal",
    [
        ([1, 2], (1, 2), True), (0.1 + 0.2, 0.3, True), (1, 1.0, True),
        (1.01, 1.0, False), ([1], [1, 2], False), ("12", ["1", "2"], False), (None, 0, False),
    ],
)  # fmt: skip
def test_outputs_are_compared_as_a_scorer_would(answer, expected, equal):
    assert same(answer, expected) is equal
