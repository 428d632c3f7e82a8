"""The method's pure pieces, and the whole pipeline with the real engine: killed anywhere, it ends as if it
never had been."""

import argparse
import ast
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import transformers
from conftest import ROOT
from test_engine import VLLM, real_server

import selfcodealign
from experiments import baselines
from extras import pilot, report, trace
from parts.code import python_code, runnable_code
from parts.contamination import Finding
from parts.duplicates import NearDuplicates
from parts.examples import load_examples
from parts.filters import Filters
from parts.folder import read_config
from parts.request import Completion
from parts.rows import BadInput, draw, lock_folder, read_rows, replacing, row_id
from sandbox import SandboxError
from selfcodealign import (
    METHOD,
    PROMPTS,
    BackgroundExecution,
    Run,
    Stage,
    draw_shots,
    funnel,
    open_run,
    parse_response,
    select,
    share_of_yes,
    short_test,
    wanted_examples,
)

pytestmark = pytest.mark.usefixtures("few_tasks")
TICKS = "```"


def fenced(code: str) -> str:
    return f"{TICKS}python\n{code}\n{TICKS}"


def parsed(text, layout="tags"):
    return parse_response(text, {}, {}, argparse.Namespace(layout=layout))


def sample(response="def f(x):\n    return x", tests="assert f(1) == 1", boundary="</response>\n\n<tests>"):
    return f"Because.\n{TICKS}python\n{response}\n{TICKS}\n{boundary}\n{TICKS}python\n{tests}\n{TICKS}\n"


@pytest.mark.parametrize(
    "text, reason",
    [
        (sample(), None),
        (sample(boundary="<tests>"), "no_response_tests_boundary"),
        (sample() + "</response>\n<tests>\n", "no_response_tests_boundary"),
        (sample().replace(f"{TICKS}python\ndef", "def", 1), "no_code_block"),
        (sample(tests="def test():\n    assert f(1) == 1"), "tests_assert_nothing"),
        (sample(tests="print(f(1))"), "tests_assert_nothing"),
        (sample(tests="print(f(1))  # assert f(1) == 1"), "tests_assert_nothing"),
        (sample(tests="def test():\n    assert f(1) == 1\nprint('no call')"), "tests_assert_nothing"),
        (sample(tests="def test():\n    check()\ndef check():\n    assert f(1) == 1\ntest()"), None),
        (
            sample(
                tests="import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(f(1), 1)\nunittest.main()"
            ),
            None,
        ),
        (
            sample(
                tests="import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(f(1), 1)"
            ),
            "tests_assert_nothing",
        ),
        (sample(tests="assert f(1) =="), "syntax_error"),
        (sample(response="def f(x):"), "syntax_error"),
        (sample(response="def f(x):\n    # TODO: your code here\n    return x"), "placeholder"),
    ],
)
def test_the_format_filter_gives_the_reason(text, reason):
    assert parsed(text).get("reject") == reason


def test_the_heading_layout_is_taken_apart_like_the_tags():
    text = sample(boundary="#### Tests")
    assert parsed(text, "headings") == parsed(sample())
    for wrong in (sample(boundary="Tests"), text + "#### Tests\n", "#### Response\n" + text):
        assert parsed(wrong, "headings")["reject"] == "no_response_tests_boundary"


def test_the_judge_weighs_yes_against_no():
    assert share_of_yes({"Yes": 0.3, " yes": 0.1, "No": 0.1, "Maybe": 0.5}) == 0.8
    assert share_of_yes({"No": 0.6}) == share_of_yes({"Perhaps": 1.0}) == 0.0


def test_a_main_block_goes_only_where_the_code_reads_input():
    block = "if __name__ == '__main__':\n    x = input()\n\n    print(x)\n"
    response = fenced(f"def f():\n    return 1\n\n{block}y = 2")
    assert runnable_code(response) == "def f():\n    return 1\n\ny = 2"
    assert runnable_code(response.replace("input()", "2")) == python_code(response.replace("input()", "2"))
    # What splitlines() takes for more lines
    fed = fenced(f"page = 'a\u2028b'\n\f\ndef f():\n    return 1\n\n{block}y = 2")
    assert runnable_code(fed) == "page = 'a\u2028b'\n\f\ndef f():\n    return 1\n\ny = 2"


def test_the_test_for_an_instruction_is_the_beginning_up_to_an_assert_within_five_lines():
    def tests(*lines):
        return f"{TICKS}python\n" + "\n".join(lines) + f"\n{TICKS}"

    assert (
        short_test(tests("x = f(1)", "assert x == 1", "", "assert f(2) == 2", "y = 3", "assert y"))
        == "x = f(1)\nassert x == 1\n\nassert f(2) == 2"
    )
    assert (
        short_test(tests("assert f([", "    1, 2,", "]) == 3", "z = 1")) == "assert f([\n    1, 2,\n]) == 3"
    )
    assert short_test(tests("a = 1", "b = 2", "c = 3", "d = 4", "assert f(a, b,", "  c, d)")) is None
    assert short_test(tests("def test():", "    assert f(1)", "test()")) is None


class NoBenchmark:
    def contaminated_by(self, text):
        return Finding("substring", "HumanEval/0", 1.0) if "benchmark text" in text else None


def words(seed: int, count: int = 60) -> str:
    generator = random.Random(seed)
    return " ".join(f"word{generator.randrange(5000)}" for _ in range(count))


def test_each_planted_row_is_rejected_for_its_reason_and_no_clean_one_is():
    filters = Filters(NoBenchmark())

    def reject_reason(instruction, response):
        return filters(instruction, response).get("reject")

    def response(number, name=None, prose=None):
        body = "".join(f"    x += {random.Random(number * 100 + i).randrange(10**6)}\n" for i in range(12))
        return f"{prose or words(1000 + number)}\n{TICKS}python\ndef {name or f'f{number}'}(x):\n{body}    return x\n{TICKS}"

    for number in range(20):
        assert reject_reason(words(number), response(number)) is None
    assert reject_reason(words(0), response(30)) == "same_instruction"
    assert reject_reason(words(31), "  " + response(0)) == "same_response"
    assert reject_reason(words(32), response(32, name="f3")) == "same_function_names"
    classes = [words(3000 + n) + "\n" + fenced(f"class Same:\n    x = {n}") for n in range(2)]
    assert (
        reject_reason(words(50), classes[0]) is None
        and reject_reason(words(51), classes[1]) == "same_class_names"
    )
    assert reject_reason(words(52), fenced("s = f\"{'\u00a0'.strip()}\"")) is None, (
        "ast.unparse of Python 3.11 gives up on it"
    )
    assert reject_reason(words(33, 201), response(33)) == "long_instruction"
    assert reject_reason("benchmark text " + words(34), response(34)) == "benchmark_substring"
    assert reject_reason(words(4) + " indeed", response(35)) == "near_duplicate_instruction"
    assert reject_reason(words(36), response(36, prose=words(1005, 400))) is None
    assert reject_reason(words(37), response(37, prose=words(1005, 399) + " so")) == "near_duplicate_response"
    same_code = response(6, name="g6").split(TICKS, 1)[1]
    assert reject_reason(words(38), words(2000, 500) + "\n" + TICKS + same_code) == "near_duplicate_code"
    assert reject_reason(words(37), response(37)) is None, "what was rejected does not count as seen"


def test_near_duplicates_are_those_above_the_threshold():
    """Five-grams of 400 distinct words: changing every 100th word leaves a Jaccard of 0.9, every 8th one of
    0.23."""
    text = [f"w{i}" for i in range(400)]
    slightly = [word if i % 100 else "new" for i, word in enumerate(text)]
    largely = [word if i % 8 else "new" for i, word in enumerate(text)]
    near = NearDuplicates(0.7)
    assert (
        near.is_new(" ".join(text)) and not near.is_new(" ".join(slightly)) and near.is_new(" ".join(largely))
    )


def test_a_shot_set_depends_on_seed_stage_and_number_alone():
    def shot_set(seed, stage, number):
        settings = argparse.Namespace(
            seed=seed, categories="function,class,program", difficulties="easy,medium,hard", shots="8,8,8"
        )
        run = argparse.Namespace(settings=settings, examples=wanted_examples(settings), stages=METHOD)
        return tuple(example.name for example in draw_shots(run, stage, number))

    assert shot_set(0, "concepts", 1) == shot_set(0, "concepts", 1)
    stages = ("concepts", "instructions")
    assert len({shot_set(s, stage, n) for s in (0, 1) for stage in stages for n in (0, 1)}) == 8


# -------------------------------------------------------------------------------------------- the real engine

GENERATION = ("concepts", "instructions", "responses")
# A judge that is asked, and whose answer is never near the threshold: there, the engine's arithmetic would
# decide.
SIZE = "--limit 5 --judge 0.0001 --samples 2 --max-tokens 96 --shot-sets 2 --shots 2,2,1".split()


def command_line(out: Path, model: str, source: Path, *options, stage="run") -> list[str]:
    words = ["selfcodealign.py", stage, "--model", model, "--source", source, "--out", out, *SIZE, *options]
    return list(map(str, words))


def start(*run) -> subprocess.Popen:
    mark = secrets.token_hex(8)
    # No compiler is needed, not even for the judge
    environment = os.environ | {"CXX": "no-compiler-here", "RUN_UNDER_TEST": mark}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell starts what is in the background with Ctrl-C ignored
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([sys.executable, *command_line(*run)], env=environment, cwd=ROOT, **pipes)
    process.mark = mark
    return process


def succeeds(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def identities(out: Path, stage: str) -> list[str]:
    return [row["id"] for row in read_rows(out / f"{stage}.jsonl")]


@pytest.fixture(scope="session")
def source() -> Path:
    """Other people's code: the functions of an installed package."""
    import packaging

    return Path(packaging.__file__).parent


@pytest.fixture(scope="session")
def whole(model, source, command, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    printed = succeeds(command(*command_line(out, model, source)))
    assert "executions" in printed and "report: " in printed
    return out


def test_a_run_leaves_every_file_and_its_counts_add_up(whole):
    counts = json.loads((whole / "funnel.json").read_text())
    for stage in counts["stages"]:
        assert (
            stage["in"]
            == stage["kept"] + sum(stage["rejects"].values())
            == len(identities(whole, stage["stage"]))
        )
    by_stage = {stage["stage"]: stage for stage in counts["stages"]}
    assert by_stage["seeds"]["kept"] == by_stage["concepts"]["in"] == 5
    assert by_stage["instructions"]["in"] == by_stage["concepts"]["kept"]
    assert by_stage["responses"]["in"] == 2 * by_stage["instructions"]["kept"] > 0
    assert by_stage["executions"]["in"] == by_stage["responses"]["kept"]
    assert by_stage["selection"]["in"] == by_stage["executions"]["kept"]
    assert counts["sft"] == by_stage["selection"]["kept"] > 0
    for stage in GENERATION:
        sampling = {row["id"]: row["sampling_seed"] for row in read_rows(whole / f"{stage}.jsonl")}
        assert sampling == {identity: draw(0, stage, "sampling", identity) for identity in sampling}
        assert len(set(sampling.values())) == len(sampling)  # samples of a task differ
    for row in read_rows(whole / "sft.jsonl"):
        subprocess.run([sys.executable, "-c", row["program"]], check=True, timeout=60)
    assert (whole / "report.html").read_text().count("<tr>") > 10


def test_the_prompt_of_every_row_can_be_shown_again(whole):
    settings = argparse.Namespace(**read_config(whole))
    other = load_examples(PROMPTS / "examples")[0].name
    for stage in GENERATION:
        parents = {row["id"]: row for row in read_rows(whole / f"{METHOD[stage].parent}.jsonl")}
        rows = list(read_rows(whole / f"{stage}.jsonl"))
        for row in rows:
            parent = parents[row[METHOD[stage].parent_id]]
            prompt = trace.rebuild_prompt(METHOD[stage], row, parent, settings)
            assert prompt.count("### Example") == 1 + len(row["examples"])
            assert parent.get("code", parent.get("instruction", "")) in prompt
            changed = row | {"examples": [*row["examples"][1:], other]}
            assert trace.rebuild_prompt(METHOD[stage], changed, parent, settings) is None
        assert rows


def test_a_run_that_goes_on_can_be_looked_at(whole, inside, tmp_path):
    """Its lock is taken, a stage has begun, and what only reads it works all the same."""
    out = tmp_path / "going"
    shutil.copytree(whole, out)
    lines = (whole / "concepts.jsonl").read_text().splitlines(keepends=True)
    (out / "concepts.jsonl").write_text("".join(lines[:2]) + lines[2][:30])
    for stage in ("instructions", "responses", "executions", "selection", "sft"):
        (out / f"{stage}.jsonl").unlink(missing_ok=True)
    with lock_folder(out):
        looked = inside("selfcodealign.py", "report", "--out", out)
    assert looked.returncode == 0, looked.stderr
    assert "under way: concepts: 2 of 5 done (40%)" in looked.stdout
    assert (
        "Under way" in (out / "report.html").read_text()
        and "Under way" not in (whole / "report.html").read_text()
    )


def test_a_report_is_written_while_a_stage_runs(whole, tmp_path, monkeypatch):
    out = tmp_path / "going"
    shutil.copytree(whole, out)
    (out / "report.html").unlink()
    monkeypatch.setattr(report, "SECONDS_BETWEEN", 0.1)
    run = open_run(out, {}, {})
    run.time_for("responses")
    before = run.config["seconds"]["responses"]
    deadline = time.monotonic() + 60
    with report.live(run):
        while not (out / "report.html").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    assert (out / "report.html").exists() and json.loads((out / "config.json").read_text())["seconds"][
        "responses"
    ] > before


def plant(run: Run, tasks: dict[str, list[tuple[str, str, str]]]):
    """Fill the run folder: for each instruction, its samples as (response, tests, outcome)."""
    rows = {stage: [] for stage in ("seeds", "concepts", "instructions", "responses", "executions")}
    for n, (instruction, samples) in enumerate(tasks.items()):
        rows["seeds"].append({"id": f"s{n}", "where": "m.py:1", "code": "half a pair \ud800"})
        ids = {"seed_id": f"s{n}"}
        rows["concepts"].append({"id": f"c{n}", **ids, "concepts": []})
        ids["concepts_id"] = f"c{n}"
        drawn = {"category": "function", "difficulty": "easy"}
        rows["instructions"].append({"id": f"i{n}", **ids, "instruction": instruction, **drawn})
        ids["instruction_id"] = f"i{n}"
        for k, (response, tests, outcome) in enumerate(samples):
            answer = {"sample": k, "response": response, "tests": tests}
            rows["responses"].append({"id": f"r{n}_{k}", **ids, **answer})
            reject = {} if outcome == "passed" else {"reject": outcome}
            verdict = {"response_id": f"r{n}_{k}", "outcome": outcome} | reject
            rows["executions"].append({"id": f"e{n}_{k}", **ids, **verdict})
    for stage, lines in rows.items():
        with replacing(run.path(stage)) as write:
            for line in lines:
                write(line)


def test_a_task_has_one_chance_even_where_its_first_response_is_rejected(model, tmp_path):
    run = open_run(tmp_path / "run", {"model": model}, {})
    plant(run, {"task": [("one", "", "passed"), ("two", "", "passed")]})
    filters = lambda instruction, response: {"reject": f"{instruction} {response}"}
    found = selfcodealign.choose(run, {"r0_1": "i0", "r0_0": "i0"}, filters)
    assert found == {"r0_1": {"reject": "task two"}, "r0_0": {"reject": "not_chosen"}}


def test_a_benchmark_task_is_found_however_it_is_told_and_clean_tasks_are_kept(model, benchmarks, tmp_path):
    """The wording copied, the solution copied under another name, the wording changed here and there, and the
    task solved in other words."""
    humaneval = benchmarks["humaneval"]
    copied, renamed, reworded = (
        humaneval["HumanEval/10"],
        humaneval["HumanEval/39"],
        humaneval["HumanEval/12"],
    )
    wording = ast.get_docstring(ast.parse(reworded["prompt"]).body[-1]).split(">>>")[0].split()
    wording[4::12] = ["indeed"] * len(wording[4::12])
    again = """
def weave(bits, mask):
    out = []
    for p, q in zip(bits, mask):
        out.append(str(int(p != q)))
    return "".join(out)"""  # HumanEval/11, string_xor
    planted = {
        words(1) + "\n" + ast.get_docstring(ast.parse(copied["prompt"]).body[-1]): (
            fenced("def one(x):\n    return 1"),
            "benchmark_substring",
        ),
        words(2): (
            fenced(f"{renamed['prompt']}{renamed['canonical_solution']}".replace("prime_fib", "g")),
            "benchmark_substring",
        ),
        " ".join(wording): (fenced("def three(x):\n    return 3"), "benchmark_overlap"),
        words(4): (f"{words(5)}\n{fenced(again)}", "benchmark_solved"),
    }
    harmless = [fenced(f"def clean{n}(x, y):\n    return x * {n} - y") for n in range(8)]
    clean = {words(100 + n): (f"{words(200 + n)}\n{code}", None) for n, code in enumerate(harmless)}
    run = open_run(tmp_path / "run", {"model": model}, {})
    plant(
        run,
        {
            task: [(response, fenced("assert True"), "passed")]
            for task, (response, _) in (planted | clean).items()
        },
    )
    select(run)
    reasons = {row["response_id"]: row for row in read_rows(run.path("selection"))}
    for n, (_, expected) in enumerate((planted | clean).values()):
        assert reasons[f"r{n}_0"].get("reject") == expected, (n, reasons[f"r{n}_0"])
    assert "HumanEval/11" in reasons["r3_0"]["benchmark"] and reasons["r2_0"]["benchmark"] == ["HumanEval/12"]
    assert len(list(read_rows(run.path("sft")))) == len(clean)
    assert {"HumanEval/10", "HumanEval/11", "HumanEval/12", "HumanEval/39"} <= set(
        funnel(run.folder)["contaminated_tasks"]
    )


def test_other_choices_of_responses_give_other_sets_of_one_size(model, tmp_path, command):
    """Twelve tasks of three responses each, of which the first passes in every second task, and one is the
    sandbox's own fault."""
    out = tmp_path / "recipes"
    run = open_run(out, {"model": model, "heldout": 0.4, "test_in_instruction": 1.0}, {})
    with pytest.raises(BadInput, match="no sft.jsonl to match"):
        baselines.choose(run, "failing")

    def sample_of(n, k):
        body = f"def f{n}_{k}(x):\n    return {random.Random(3 * n + k).random()}"
        outcome = "passed" if k == 0 and n % 2 else "error" if (n, k) == (0, 0) else "failed"
        return f"{words(100 + 3 * n + k)}\n{fenced(body)}", fenced(f"assert f{n}_{k}"), outcome

    tasks = {words(n): [sample_of(n, k) for k in range(3)] for n in range(12)}
    plant(run, tasks)
    outcomes = {row["response_id"]: row["outcome"] for row in read_rows(run.path("executions"))}
    chosen = {}
    select(run)
    chosen["passing"] = list(read_rows(out / "sft.jsonl"))
    for choice in baselines.CHOICES:
        baselines.choose(run, choice)
        chosen[choice] = list(read_rows(out / f"sft-{choice}.jsonl"))
    of = {recipe: {outcomes[row["response_id"]] for row in examples} for recipe, examples in chosen.items()}
    assert (
        of["passing"] == {"passed"} and of["failing"] == {"failed"} and of["random"] == {"passed", "failed"}
    )
    held_out = {row["instruction_id"] for row in read_rows(out / "heldout.jsonl")}
    assert 0 < len(held_out) < 6 and len(chosen["passing"]) == 6 - len(held_out)
    assert (
        len(chosen["failing"])
        == len(chosen["random-subset"])
        == len(chosen["passing"])
        < len(chosen["random"])
    )
    assert chosen["random-subset"] == chosen["random"][: len(chosen["passing"])]
    assert held_out.isdisjoint(row["instruction_id"] for examples in chosen.values() for row in examples)
    # A test is shown only if the response passes it
    for row in itertools.chain.from_iterable(chosen.values()):
        assert row["instruction"].endswith(row["tests"]) == (outcomes[row["response_id"]] == "passed")
    example = chosen["passing"][0]
    traced = command("selfcodealign.py", "trace", out, example["id"])
    assert traced.returncode == 0, traced.stderr
    for text in (f"{example['response_id']}  passed; kept", example["response"], "half a pair"):
        assert text in traced.stdout
    scored = {row["instruction"] for row in read_rows(out / "heldout.jsonl")}
    assert not any("assert" in instruction for instruction in scored)

    other = open_run(
        tmp_path / "other", {"model": model, "test_in_instruction": 0.0}, {}, facts={"match": str(out)}
    )
    more = {words(50 + n): [sample_of(50 + n, 0)] for n in range(1, 13, 2)}
    plant(other, {f"{task} indeed": samples for task, samples in (tasks | more).items()})
    baselines.select_matched(other)
    learned = {row["instruction"].removesuffix(" indeed") for row in read_rows(other.path("sft"))}
    assert len(learned) == len(chosen["passing"]) and learned.isdisjoint(scored), (
        "what another set is scored on is not learned"
    )
    fates = [row.get("reject") for row in read_rows(other.path("selection"))]
    assert fates.count("enough") == 6 and fates.count("same_response") == len(scored)


def sleepers(count: int) -> dict:
    """Tasks of one response each, every second of which fails, after a moment."""
    response = fenced("import time\ntime.sleep(0.1)\ndef f():\n    return 1")
    return {words(n): [(response, fenced(f"assert f() == {1 + n % 2}"), "passed")] for n in range(count)}


def test_execution_killed_midway_goes_on_and_judges_each_response_once(model, tmp_path):
    run = open_run(tmp_path / "run", {"model": model}, {})
    plant(run, sleepers(60))
    path = run.path("executions")
    path.unlink()
    run.lock.close()
    command = [sys.executable, ROOT / "selfcodealign.py", "executions", "--out", run.folder]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = len(list(read_rows(path)))
    with path.open("ab") as file:
        file.write(b'{"id": "torn')
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, stdout=subprocess.DEVNULL)
    outcomes = {row["response_id"]: row["outcome"] for row in read_rows(path)}
    assert 0 < done < 60 == len(list(read_rows(path)))
    assert outcomes == {f"r{n}_0": "failed" if n % 2 else "passed" for n in range(60)}


def test_responses_are_executed_while_an_engine_elsewhere_goes_on(model, tmp_path):
    run = open_run(tmp_path / "run", {"model": model}, {})
    plant(run, sleepers(10))
    run.path("executions").unlink()
    run.engine = argparse.Namespace(on_cpu=False, cores=1)
    with BackgroundExecution(run) as beside:
        for row in run.kept("responses"):
            beside.add(row)
    assert str(beside) == ", executed 10, passed 50%"
    run.settings.memory_mb = 1  # no sandbox can be had: the problem is not lost, and nothing waits for ever
    with pytest.raises(SandboxError), BackgroundExecution(run) as beside:
        for row in run.kept("responses"):
            beside.add(row)


def test_the_pilot_takes_the_layout_of_more_passing_responses_not_of_more_well_formed_ones(
    model, tmp_path, monkeypatch, capsys
):
    outcomes = {"tags": ["passed", "failed", "failed", "failed"], "headings": ["passed", "passed"]}

    def plant_everything(run):
        samples = [("", "", outcome) for outcome in outcomes[run.settings.layout]]
        plant(run, {words(0): samples})
        run.path("heldout").touch()
        return 0

    monkeypatch.setattr(pilot, "run_everything", plant_everything)
    assert pilot.pilot(tmp_path / "pilot", {"model": model}, {}, 1000) == 0
    assert "tags 1, headings 2; take --layout headings" in capsys.readouterr().out


def test_concepts_leave_a_model_of_short_context_room_for_their_prompt(model, tmp_path, monkeypatch):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    asked = []
    monkeypatch.setattr(selfcodealign, "stream", lambda engine, requests: asked.extend(requests) or ())
    run = open_run(tmp_path / "run", {"model": model, "shots": "4,4,1"}, {})
    run.engine = argparse.Namespace(tokenizer=tokenizer, context=2048)
    with replacing(run.path("seeds")) as write:
        for n in range(5):
            write({"id": f"s{n}", "code": f"def f(x):\n    return x + {n}"})
    selfcodealign.generate(run, "concepts")
    assert len(asked) == 5 and not list(read_rows(run.path("concepts")))
    assert all(len(request.prompt) + request.max_tokens <= 2048 for request in asked)


def test_settings_that_do_not_fit_together_are_refused_and_leave_no_run(model, tmp_path):
    origin = tmp_path / "origin"
    origin.mkdir()
    for given, says in [
        ({"difficulties": "medium"}, "--shots 8,8,1"),
        ({"shots": "8"}, "--shots takes"),
        ({"temperature": -0.1}, "--temperature takes"),
        ({"pass_rate": [0.9, 0.1]}, "--pass-rate takes"),
        ({"categories": "function,poem"}, "--categories takes"),
    ]:
        with pytest.raises(BadInput, match=says):
            open_run(tmp_path / "run", {"model": model} | given, {})
    with pytest.raises(BadInput, match="octopack executes no responses"):
        baselines.start("octopack", tmp_path / "run", {"model": model, "min_killed": 0.5}, {}, None, None)
    for name, given, instructions, match, says in [
        ("oss-instruct", {}, origin, None, "makes its own instructions"),
        ("evol-instruct", {}, None, None, "needs --from"),
        ("teacher", {"source": "stdlib"}, origin, None, "no --source"),
        ("teacher", {"limit": 3}, origin, None, "no --limit"),
        ("teacher", {}, origin, None, "has no seeds.jsonl"),
        ("random-snippets", {}, None, origin, "no sft.jsonl"),
    ]:
        with pytest.raises(BadInput, match=says):
            baselines.start(name, tmp_path / "run", {"model": model} | given, {}, instructions, match)
    with pytest.raises(SandboxError, match="memory"):
        open_run(tmp_path / "run", {"model": model, "memory_mb": 64}, {})
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()  # killed before its settings were written
    untested = baselines.start("oss-instruct", tmp_path / "run", {"model": model}, {}, None, None)
    with pytest.raises(BadInput, match="executes none"):
        baselines.choose(untested, "failing")


def test_a_run_with_all_its_seeds_needs_its_source_no_more(model, tmp_path):
    source = tmp_path / "code"
    source.mkdir()
    (source / "a.py").write_text('def double(x):\n    """Twice x."""\n    return 2 * x\n')
    given = {"model": model, "source": str(source), "judge": 0.0, "limit": 1}
    run = open_run(tmp_path / "run", given, {})
    selfcodealign.run_stages(run, ["seeds"])
    assert len(list(run.kept("seeds"))) == 1
    shutil.rmtree(source)
    run.lock.close()
    selfcodealign.run_stages(open_run(tmp_path / "run", {}, {}), ["seeds"])


def test_the_rows_of_a_stage_are_bound_to_its_own_prompts(model, tmp_path, monkeypatch):
    run = open_run(tmp_path / "run", {"model": model}, {})
    plant(run, {words(0): [(fenced("x = 1"), fenced("assert x"), "passed")]})
    run.lock.close()
    new, changed = tmp_path / "new", tmp_path / "concepts"
    for file in (new, changed):
        file.with_suffix(".md").write_text("other words")
    added = Stage("responses", "response_id", new, lambda *_: "", lambda *_: {})
    with_one_more = METHOD | {"reviews": added}  # a new prompt file: the finished rows stay as they are
    run = open_run(run.folder, {}, {}, with_one_more)
    assert json.loads((run.folder / "config.json").read_text())["stages"]["reviews"][:2] == [
        "responses",
        "response_id",
    ]
    run.lock.close()
    other = METHOD | {"concepts": dataclasses.replace(METHOD["concepts"], text=changed)}
    with pytest.raises(BadInput, match="its concepts were made with another"):
        open_run(run.folder, {}, {}, other)
    run.path("concepts").unlink()  # none is made yet
    open_run(run.folder, {}, {}, other).lock.close()
    with pytest.raises(BadInput, match="baseline = None, not teacher"):
        open_run(run.folder, {}, {}, facts={"baseline": "teacher"})


def test_a_stage_that_asks_about_a_response_sees_it_and_needs_no_docstring(model, tmp_path, monkeypatch):
    """A second request, whose answer is put beside what its parent row has."""
    text = tmp_path / "tests.md"
    text.write_text("Write tests.")
    ask = lambda shots, fields, parent, settings: parent["response"]
    answer = lambda text, row, parent, settings: {
        "response": parent["response"],
        "tests": f"{text} {row['sample']}",
    }
    stage = Stage("responses", "response_id", tmp_path / "tests", ask, answer)
    run = open_run(tmp_path / "run", {"model": model}, {}, METHOD | {"tests": stage})
    plant(run, {words(0): [("one", "", "passed"), ("two", "", "passed")]})
    run.engine = argparse.Namespace(tokenizer=transformers.AutoTokenizer.from_pretrained(model), context=4096)
    finished = lambda engine, requests: [(request, Completion("assert", True, 1)) for request in requests]
    monkeypatch.setattr(selfcodealign, "stream", finished)
    selfcodealign.generate(run, "tests")
    rows = {row["response_id"]: row for row in read_rows(run.path("tests"))}
    assert {key: row["response"] for key, row in rows.items()} == {"r0_0": "one", "r0_1": "two"}
    for row in rows.values():
        assert row["tests"] == "assert 0" and row["seed_id"] == "s0" and row["instruction_id"] == "i0"
    monkeypatch.setitem(METHOD, "tests", stage)
    monkeypatch.setattr(sys, "argv", ["selfcodealign.py", "tests", "--out", "x", "--decks", "3"])
    assert selfcodealign.parse_arguments().shot_sets == 3


def test_a_run_of_another_version_is_refused(model, tmp_path):
    run = open_run(tmp_path / "run", {"model": model}, {})
    run.lock.close()
    config = {key: value for key, value in run.config.items() if key != "heldout"} | {"held_out": 0.2}
    (run.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="another version"):
        open_run(tmp_path / "run", {}, {})


def processes_of(run: subprocess.Popen) -> list[int]:
    """The processes that `run` or one of its descendants started, whatever became of their parents: by a mark
    in their environment, or, since vLLM's overwrite theirs, by the session of one that had it."""
    found, known = [], run.__dict__.setdefault("sessions", set())
    for _ in range(2):  # the second time by all sessions that were found
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                process = int(entry.parent.name)
                marked = f"RUN_UNDER_TEST={run.mark}".encode() in entry.read_bytes().split(b"\0")
                if marked and os.getsid(process) != os.getsid(0):
                    known.add(os.getsid(process))
                if marked or os.getsid(process) in known:
                    found.append(process)
    return found


def kill_when(run: subprocess.Popen, happened, number: int):
    """Send the signal once `happened()`; within 15 s no process of the run may be left."""
    while run.poll() is None and not happened():
        time.sleep(0.02)
    assert run.poll() is None and processes_of(run), f"it ended before the signal: {run.communicate()}"
    run.send_signal(number)
    run.wait(timeout=15)
    end = time.monotonic() + 15
    while processes_of(run) and time.monotonic() < end:
        time.sleep(0.1)
    assert not processes_of(run)


def has_rows(path: Path):
    return lambda: path.exists() and path.stat().st_size


def test_a_killed_run_goes_on_and_each_row_is_there_once(whole, model, source, command, tmp_path):
    """The first time with vLLM's server in processes of its own, as on GPUs, then with vLLM in the same one."""
    out = tmp_path / "killed"
    path = out / "instructions.jsonl"
    kill_when(start(out, model, source, "--data-parallel", "1"), has_rows(path), signal.SIGKILL)
    with path.open("ab") as file:
        file.write(b'{"id": "torn')
    succeeds(command(*command_line(out, model, source)))
    for stage in ("seeds", *GENERATION[:1]):
        assert sorted(identities(out, stage)) == sorted(identities(whole, stage))
    for stage, parent, samples in [("instructions", "concepts", 1), ("responses", "instructions", 2)]:
        kept = [row["id"] for row in read_rows(out / f"{parent}.jsonl") if "reject" not in row]
        assert sorted(identities(out, stage)) == sorted(
            row_id(stage, identity, n) for identity in kept for n in range(samples)
        )
    assert len(identities(out, "executions")) == len(
        [row for row in read_rows(out / "responses.jsonl") if "reject" not in row]
    )


@pytest.mark.skipif(
    not os.environ.get("SLOW"), reason="set SLOW=1: two engines on a machine's few cores take their time"
)
def test_other_engines_and_batch_sizes_change_no_prompt_and_no_sampling_seed(
    whole, model, source, command, tmp_path
):
    """The text may differ in a token, since a batch's arithmetic does; what is asked for may not."""
    out, two = tmp_path / "two", ("--data-parallel", "2")
    server = lambda: len(processes_of(run)) > 4
    for happened, number in [
        (server, signal.SIGKILL),  # while it starts
        (server, signal.SIGINT),
        (server, signal.SIGKILL),
        (has_rows(out / "concepts.jsonl"), signal.SIGKILL),
        (has_rows(out / "instructions.jsonl"), signal.SIGTERM),
        (has_rows(out / "responses.jsonl"), signal.SIGINT),
    ]:
        run = start(out, model, source, *two)
        kill_when(run, happened, number)
    succeeds(command(*command_line(out, model, source, *two)))
    assert identities(out, "seeds") == identities(whole, "seeds")
    assert sorted(identities(out, "concepts")) == sorted(identities(whole, "concepts"))
    for stage, parent, content in [
        ("concepts", "seeds", "code"),
        ("instructions", "concepts", "concepts"),
        ("responses", "instructions", "instruction"),
    ]:
        here, there = (
            {row["id"]: row for row in read_rows(folder / f"{stage}.jsonl")} for folder in (out, whole)
        )
        parents_here, parents_there = (
            {row["id"]: row.get(content) for row in read_rows(folder / f"{parent}.jsonl")}
            for folder in (out, whole)
        )
        for identity in here.keys() & there.keys():
            one, other = here[identity], there[identity]
            assert one["sampling_seed"] == other["sampling_seed"] and one["examples"] == other["examples"]
            parent_id = one[METHOD[stage].parent_id]
            assert (one["prompt"] == other["prompt"]) == (parents_here[parent_id] == parents_there[parent_id])


def test_a_larger_limit_adds_to_the_rows_there_are(model, source, inside, tmp_path):
    for name, limit in [("grown", "2"), ("grown", "5"), ("at once", "5")]:
        succeeds(
            inside(
                *command_line(tmp_path / name, model, source, "--judge", "0", "--limit", limit, stage="seeds")
            )
        )
    assert identities(tmp_path / "grown", "seeds") == identities(tmp_path / "at once", "seeds")


def test_a_changed_setting_is_refused_by_name(whole, inside):
    changed = inside("selfcodealign.py", "run", "--out", whole, "--samples", 3)
    assert (
        changed.returncode == 2 and changed.stderr.count("\n") == 1 and "samples = 2, not 3" in changed.stderr
    )


@pytest.mark.skipif(not os.environ.get("SLOW"), reason="set SLOW=1: generation, two trainings, two scores")
def test_the_whole_loop_runs_in_the_shape_of_a_gpu_node(tmp_path):
    """vLLM's server with two copies, execution beside generation, training on two ranks, scores through the
    server, and a comparison at the end."""
    out = tmp_path / "run"
    environment = os.environ | {"AS_ON_GPUS": "2", "EVALUATE": "--limit 3 --max-tokens 32"}
    command = [ROOT / "run.sh", "--limit", "12", "--out", out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ", executed " in done.stderr and "on 2 x " in done.stdout
    [comparison] = out.glob("comparison-*/compare.json")

    assert json.loads(comparison.read_text())["suites"]
    assert (out / "vllm.log").exists() and list(out.glob("eval-base/**/vllm.log"))


@pytest.mark.skipif(not os.environ.get("SLOW"), reason="set SLOW=1: vLLM's server takes its time to start")
def test_a_killed_client_leaves_a_server_of_others_free_and_resumes(model, source, command, tmp_path):
    def in_work() -> float:
        text = urllib.request.urlopen(f"{url}/metrics").read().decode()
        return sum(map(float, re.findall(r"^vllm:num_requests_(?:running|waiting)\{.* (\S+)$", text, re.M)))

    out = tmp_path / "run"
    with real_server(VLLM, model, tmp_path / "log") as url:
        options = "--server", url, "--samples", "300"
        responses = has_rows(out / "responses.jsonl")
        kill_when(start(out, model, source, *options), lambda: responses() and in_work(), signal.SIGKILL)
        end = time.monotonic() + 15
        while in_work() and time.monotonic() < end:
            time.sleep(0.2)
        assert not in_work()  # vLLM gives up what nobody waits for
        before = len(identities(out, "responses"))
        succeeds(command(*command_line(out, model, source, *options)))
    rows = identities(out, "responses")
    kept = [row for row in read_rows(out / "instructions.jsonl") if "reject" not in row]
    assert before < len(rows) == len(set(rows)) == 300 * len(kept)


@pytest.mark.skipif(not os.environ.get("SLOW"), reason="set SLOW=1: vLLM's server takes its time to start")
def test_an_engine_that_dies_by_itself_ends_the_run_in_one_line(model, source, command, tmp_path):
    out = tmp_path / "run"
    run = start(out, model, source, "--data-parallel", "1")
    while run.poll() is None and not has_rows(out / "concepts.jsonl")():
        time.sleep(0.02)
    engines = [one for one in processes_of(run) if "EngineCore" in Path(f"/proc/{one}/cmdline").read_text()]
    assert len(engines) == 1
    os.kill(engines[0], signal.SIGKILL)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 2 and "the same command goes on from here" in errors.splitlines()[-1]
    assert "Traceback" not in errors and not processes_of(run)
    succeeds(command(*command_line(out, model, source)))


@pytest.mark.skipif(not os.environ.get("SLOW"), reason="set SLOW=1: six runs")
def test_the_baselines_give_training_data(model, source, tmp_path):
    """T10 and T11, one engine for all, in a process of its own, which ends with it."""
    code = f"""
from pathlib import Path
import selfcodealign as s
from experiments import baselines
from extras import pilot
out = Path({str(tmp_path)!r})
given = dict(model={model!r}, samples=1, max_tokens=160, shot_sets=1, temperature=0.2, difficulties="easy", shots="2,2,1")
given |= dict(categories="function")
own = dict(source={str(source)!r}, limit=3, judge=0.0)
engine = s.start_engine({model!r}, 4096)
for name in ("method", *(name for name in baselines.TABLES if name not in baselines.OTHER_SOURCES)):
    if name == "method":
        run = s.open_run(out / name, given | own, {{}})
    elif name in baselines.NEED_INSTRUCTIONS:
        run = baselines.start(name, out / name, given, {{}}, out / "method", None)
    else:
        run = baselines.start(name, out / name, given | own, {{}}, None, None)
    run.engine = engine
    pilot.run_everything(run)
    run.lock.close()
    for stage in ("seeds", "concepts", "instructions", "responses"):
        assert run.path(stage).exists(), (name, stage)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=1800)
    for name in ("method", *baselines.TABLES.keys() - baselines.OTHER_SOURCES.keys()):
        counts = funnel(tmp_path / name)
        assert not any(stage["waiting"] for stage in counts["stages"]), name
        assert counts["tested"] == any(stage["stage"] == "executions" for stage in counts["stages"])
    concepts = list(read_rows(tmp_path / "snippet-to-instruction" / "concepts.jsonl"))
    assert concepts and not any(row["concepts"] for row in concepts)
    evolved = list(read_rows(tmp_path / "evol-instruct" / "instructions.jsonl"))
    origins = {row["id"] for row in read_rows(tmp_path / "evol-instruct" / "evolution-1.jsonl")}
    assert evolved and all(
        row["evolution_1_id"] in origins and row["change"] in baselines.CHANGES for row in evolved
    )
    answered = list(read_rows(tmp_path / "teacher" / "instructions.jsonl"))
    assert answered == list(read_rows(tmp_path / "method" / "instructions.jsonl"))
    for name in ("oss-instruct", "evol-instruct"):
        kept = [row for row in read_rows(tmp_path / name / "responses.jsonl") if "reject" not in row]
        examples = list(read_rows(tmp_path / name / "sft.jsonl"))
        verdicts = list(read_rows(tmp_path / name / "selection.jsonl"))
        assert len(verdicts) == len(kept) and len(examples) == sum("reject" not in row for row in verdicts)
        assert not list(read_rows(tmp_path / name / "executions.jsonl"))
