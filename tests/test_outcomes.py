"""What a run gives besides its pairs: preference and reward sets, choices by difficulty and by tests, commits."""

import hashlib
import json
import re
import subprocess

import pytest
from huggingface_hub import ModelCard
from test_selfcodealign import fenced, plant, words

from experiments import baselines, commits
from extras.export import export
from extras.reward import passes_tests
from parts.code import program, python_code, runnable_code
from parts.filters import Filters
from parts.rows import BadInput, read_rows
from sandbox import Sandbox
from selfcodealign import execute, funnel, open_run, run_stages, select

pytestmark = pytest.mark.usefixtures("few_tasks")
RIGHT, OTHER_RIGHT = "def f{n}(x):\n    return x + {n}", "def f{n}(x):\n    return {n} + x"
WRONG, CRASHING = "def f{n}(x):\n    return x - 1", "def f{n}(x):\n    return unknown"
TESTS, WEAK, MISTAKEN = "assert f{n}(1) == 1 + {n}", "assert f{n}", "assert f{n}(1) == 0.5"
SAMPLES = {  # of a task: (code, tests)
    "clear": [(RIGHT, TESTS), (CRASHING, TESTS), (WRONG, TESTS)],
    "mistaken tests": [(RIGHT, TESTS), (OTHER_RIGHT, MISTAKEN), (CRASHING, TESTS)],
    "only mistaken tests": [(RIGHT, TESTS), (OTHER_RIGHT, MISTAKEN)],
    "all pass": [(RIGHT, TESTS), (OTHER_RIGHT, TESTS), (RIGHT, WEAK)],
    "two camps": [(RIGHT, TESTS), (OTHER_RIGHT, TESTS), (WRONG, WEAK)],
    "none passes": [(WRONG, TESTS)],
}
NUMBER = {name: n for n, name in enumerate(SAMPLES, 3)}


@pytest.fixture
def run(model, tmp_path):
    """Tasks of one to three samples each, executed for real."""
    run = open_run(tmp_path / "run", {"model": model, "samples": 3, "test_in_instruction": 0.0}, {})
    samples = {
        words(n): [
            (f"{words(10 * n + k)}\n{fenced(code.format(n=n))}", fenced(tests.format(n=n)), "passed")
            for k, (code, tests) in enumerate(SAMPLES[name])
        ]
        for name, n in NUMBER.items()
    }
    plant(run, samples)
    run.path("executions").unlink()
    execute(run)
    return run


def exported(run, format: str, **options) -> tuple[list[dict], dict]:
    folder = run.folder.parent / format
    counts = export(run.folder, folder, format, **options)
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()], counts


def name_of(text: str) -> str:
    return next(name for name, n in NUMBER.items() if words(n) in text)


def test_a_rejected_response_is_wrong_by_the_chosen_ones_tests_too(run):
    select(run)
    pairs, counts = exported(run, "preference", pairs=2)
    named = [(name_of(row["prompt"][0]["content"]), row) for row in pairs]
    assert sorted(name for name, _ in named) == ["clear", "clear", "mistaken tests"]
    first, second = (row for name, row in named if name == "clear")
    assert "return x - 1" in first["rejected"][0]["content"], "failed by an assertion before by an exception"
    assert "unknown" in second["rejected"][0]["content"]
    assert "unknown" in dict(named)["mistaken tests"]["rejected"][0]["content"]
    assert counts["examples"] == sum(1 for _ in read_rows(run.path("sft"))) == 5
    assert counts["with a pair"] == 2 and counts["without a failing response"] == 2 and counts["rows"] == 3
    assert counts["whose failing responses may be right"] == 1
    with Sandbox(2) as sandbox:
        for row in pairs:
            chosen, rejected = (row[key][0]["content"] for key in ("chosen", "rejected"))
            tests = next(one["tests"] for one in read_rows(run.path("sft")) if one["response"] == chosen)
            programs = (program(runnable_code(text), python_code(tests)) for text in (chosen, rejected))
            assert [sandbox.run(text).outcome for text in programs] == ["passed", "failed"]


def test_the_tests_of_a_reward_are_those_that_most_siblings_pass(run):
    select(run)
    tasks, counts = exported(run, "rl", pass_rate=(0.5, 1.0))
    rates = {name_of(row["prompt"][0]["content"]): row["pass_rate"] for row in tasks}
    assert rates == {"all pass": 1.0, "two camps": 1.0}
    assert (counts["examples"], counts["outside the pass rate"]) == (5, 3)
    camps = next(row for row in tasks if name_of(row["prompt"][0]["content"]) == "two camps")
    assert camps["tests"] == WEAK.format(n=NUMBER["two camps"]) and camps["agreement"] == 1.0
    easy = next(row for row in tasks if row is not camps)
    n, victim = NUMBER["all pass"], run.folder / "sft.jsonl"
    completions = [
        fenced(RIGHT.format(n=n)),
        [{"role": "assistant", "content": f"So:\n{fenced(OTHER_RIGHT.format(n=n))}"}],
        fenced(WRONG.format(n=n)),
        fenced(f"import os\nos.remove({str(victim)!r})\n{RIGHT.format(n=n)}"),
        fenced("import os\nos._exit(0)"),
        fenced("while True: pass"),
        RIGHT.format(n=n),
        fenced("def f(:"),
    ]
    strict = {"tests": TESTS.format(n=n), "timeout": 1.0, "memory_mb": 512}
    columns = {key: [value] * len(completions) for key, value in (easy | strict).items() if key != "prompt"}
    rewards = passes_tests(prompts=[easy["prompt"]] * len(completions), completions=completions, **columns)
    assert rewards == [1.0, 1.0, 0, 0, 0, 0, 0, 0] and victim.exists()


def test_tasks_are_chosen_by_difficulty_and_responses_by_what_their_tests_notice(run, model):
    select(run)
    before = funnel(run.folder)
    again = lambda **given: open_run(run.folder, given, {})
    run.lock.close()
    run = again(pass_rate=[0.5, 0.9])
    select(run)
    assert {row["reject"] for row in read_rows(run.path("selection"))} == {"pass_rate"}
    run.lock.close()
    run = again(pass_rate=[0.0, 1.0], min_killed=0.9)
    select(run)
    rejects = funnel(run.folder)["stages"][-1]["rejects"]
    weak = {
        row["response_id"] for row in read_rows(run.path("selection")) if row.get("reject") == "weak_tests"
    }
    tests_of = {row["id"]: row["tests"] for row in read_rows(run.path("responses"))}
    assert rejects["weak_tests"] == len(weak) == 2
    assert all("==" not in tests_of[response_id] for response_id in weak)
    run.lock.close()
    run = again(min_killed=0.0)
    select(run)
    assert funnel(run.folder)["stages"] == before["stages"], "off again, as before"


def commit(repository, message, files, author="A Person"):
    identity = ["-c", f"user.name={author}", "-c", "user.email=a@example.org"]
    for name, text in files.items():
        (repository / name).write_text(text)
    git = ["git", "-C", str(repository), *identity]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", message], check=True)


OLD = """def mean(values):
    '''The mean of a list of numbers: their sum, which is added up one by one, divided by their count.'''
    total = 0
    for value in values:
        total += value
    return total / len(values)
"""
NEW = OLD.replace("    total = 0", "    if not values:\n        return 0.0\n    total = 0")


def test_each_planted_bad_commit_is_rejected_with_its_reason(model, tmp_path):
    """Of a repository and of a file with CommitPackFT's columns; the good ones become training pairs."""
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", "-b", "main", str(repository)], check=True)
    commit(repository, "Add a mean of a list", {"mean.py": OLD})
    commit(repository, "Return zero for an empty list", {"mean.py": NEW})
    commit(repository, "Update the copyright years everywhere", {"mean.py": OLD}, author="renovate[bot]")
    commit(repository, "Fix the mean of empty lists #12", {"mean.py": NEW})
    commit(repository, "Fix typo", {"mean.py": OLD})
    commit(repository, "Change two files in one go", {"mean.py": NEW, "other.py": "x = 1\n"})
    commit(repository, "Describe the mean in a text", {"notes.txt": "mean"})
    (repository / "notes.txt").unlink()
    commit(repository, "Explain it in the code alone", {"other.py": "x = 2\n" * 30})
    commit(repository, "make the mean lower case here", {"mean.py": OLD})
    commit(repository, "Mean of nothing is now zero", {"mean.py": NEW})
    commit(repository, "Add a very large table of numbers", {"table.py": f"TABLE = {list(range(3000))}\n"})
    git = ["git", "-C", str(repository), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "checkout", "-q", "-b", "side", "HEAD~2"], check=True)
    commit(repository, "Use sum for the whole total", {"side.py": OLD.replace("mean(", "average(")})
    subprocess.run([*git, "checkout", "-q", "main"], check=True)
    subprocess.run([*git, "merge", "-q", "--no-edit", "side"], check=True)
    commit(repository, "Print the mean in an old way", {"old.py": OLD + "print 'mean'\n" * 9})
    submodule = f"160000,{'1' * 40},library.py"
    subprocess.run([*git, "update-index", "--add", "--cacheinfo", submodule], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "Use the library of another project"], check=True)
    # What a repository's own settings name is run by many of git's commands
    ran = tmp_path / "ran"
    subprocess.run([*git, "config", "core.fsmonitor", f"touch {ran}; false"], check=True)

    reasons = {}
    run = baselines.start(
        "octopack", tmp_path / "out", {"model": model, "source": str(repository)}, {}, None, None
    )
    run_stages(run, run.stages)
    for row in read_rows(run.path("seeds")):
        reasons[row["message"]] = row.get("reject")
    assert reasons.pop("Merge branch 'side'") == "merge"
    assert reasons == {
        "Add a mean of a list": None,
        "Return zero for an empty list": None,
        "Use sum for the whole total": None,
        "Update the copyright years everywhere": "bot",
        "Fix the mean of empty lists #12": "names_issue_or_file",
        "Fix typo": "message_length",
        "Change two files in one go": "not_one_python_file",
        "Describe the mean in a text": "not_one_python_file",
        "Explain it in the code alone": "not_one_python_file",
        "make the mean lower case here": "no_imperative_verb",
        "Mean of nothing is now zero": "no_imperative_verb",
        "Add a very large table of numbers": "code_size",
        "Print the mean in an old way": "syntax_error",
        "Use the library of another project": "not_one_python_file",
    }
    assert not ran.exists()
    examples = {row["instruction"].split("\n")[0]: row for row in read_rows(run.path("sft"))}
    changed = examples["Return zero for an empty list"]
    assert python_code(changed["instruction"]) == OLD.strip()
    assert python_code(changed["response"]) == NEW.strip() and not changed["tests"]

    columns = {"subject": "Return zero for an empty list", "old_contents": OLD, "new_contents": NEW}
    rows = [columns, columns | {"subject": "Return zero", "new_file": "mean.py"}]
    (tmp_path / "commits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"model": model, "source": str(tmp_path / "commits.jsonl")}
    run = baselines.start("octopack", tmp_path / "rows", given, {}, None, None)
    run_stages(run, run.stages)
    assert [row.get("reject") for row in read_rows(run.path("seeds"))] == [None, "message_length"]
    [example] = read_rows(run.path("sft"))
    assert all(example[key] == changed[key] for key in ("instruction", "response"))
    with pytest.raises(BadInput, match="No git repository was found"):
        baselines.start("octopack", tmp_path / "none", given | {"source": str(tmp_path)}, {}, None, None)


AUTHORS = {"no brackets": "A 0 +0000", "no zone": "A <a@b.c> 0", "no time": "A", "odd zone": "A <a> 5 --700"}


@pytest.mark.parametrize("kind", AUTHORS)
@pytest.mark.parametrize("role", ["author", "committer"])
def test_a_commit_that_git_shows_is_read_and_one_that_cannot_be_is_one_reject(kind, role, tmp_path):
    git = ["git", "-C", str(tmp_path)]
    ask = lambda *command, given="": (
        subprocess.run([*git, *command], input=given, text=True, capture_output=True, check=True).stdout
    )
    ask("init", "-q")
    with pytest.raises(BadInput, match="without a commit"):
        next(commits.read_commits(str(tmp_path)))
    commit(tmp_path, "Add a mean of a list", {"mean.py": OLD})
    commit(tmp_path, "Return zero for an empty list", {"mean.py": NEW})
    good = ask("cat-file", "commit", "HEAD")
    odd = re.sub(f"^{role} .*", f"{role} {AUTHORS[kind]}", good, flags=re.M).replace("Return", "Give")
    lost = re.sub("^tree .*", f"tree {'1' * 40}", odd, flags=re.M)
    for text in (odd, lost, good):
        text = re.sub("^parent .*", f"parent {ask('rev-parse', 'HEAD').strip()}", text, flags=re.M)
        name = ask("hash-object", "-t", "commit", "-w", "--stdin", "--literally", given=text)
        ask("update-ref", "HEAD", name.strip())
    found = list(commits.read_commits(str(tmp_path)))
    messages = sorted(row["message"].split(" ")[0] for row in found if "reject" not in row)
    # The last one's parent has lost its tree, so that nothing tells what it changed
    assert messages == ["Add", "Give", "Return"] and len(found) == 5
    assert {row.get("reject") for row in found} == {None, "unreadable_commit"}
    assert next(row for row in found if row["message"].startswith("Give"))["author"] in ("A", "A Person")


def test_a_commit_in_an_encoding_that_nobody_has_keeps_its_text():
    assert [commits.text(b"caf\xc3\xa9", name) for name in ("utf-8", "x-unknown", "utf-8\0")] == ["café"] * 3


def test_given_tasks_are_taken_as_they_are_and_those_of_a_benchmark_left_out_in_the_end(
    model, benchmarks, tmp_path
):
    copied = benchmarks["humaneval"]["HumanEval/10"]["prompt"]
    tasks = [words(1, 12), copied, words(2, 12), words(1, 12), words(3, 300), " "]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps({"instruction": task}) + "\n" for task in tasks))
    given = {"model": model, "source": str(tmp_path / "tasks.jsonl")}
    run = baselines.start("given-tasks", tmp_path / "out", given, {}, None, None)
    run_stages(run, ["seeds", "concepts", "instructions"])
    instructions = [row["instruction"] for row in read_rows(run.path("instructions"))]
    assert instructions == [tasks[0], copied, tasks[2], tasks[4]]
    filters = Filters(run.decontaminator)
    answers = (fenced(f"def f{n}(x):\n    return '{words(9 + n, 30)}'") for n in range(4))
    rejects = [verdict.get("reject") for verdict in map(filters, instructions, answers)]
    assert (
        rejects[0] is rejects[2] is None
        and rejects[1].startswith("benchmark")
        and rejects[3] == "long_instruction"
    )


def test_the_card_of_a_model_says_what_is_known_and_never_replaces_another(inside, tmp_path):
    model, data = tmp_path / "model", tmp_path / "run" / "sft.jsonl"
    model.mkdir(), data.parent.mkdir()
    data.write_text('{"id": "1"}\n{"id": "2"}\n')
    (data.parent / "config.json").write_text(json.dumps({"model": "owner/writer", "source": "stdlib"}))
    settings = {"model": "owner/base", "data": str(data), "lr": 1e-5, "out": str(model)}
    settings["data_sha256"] = hashlib.sha256(data.read_bytes()).hexdigest()
    (model / "train.json").write_text(json.dumps(settings))
    result = {
        "model": str(model),
        "benchmark": "humaneval",
        "tasks": {f"HumanEval/{n}": {"base": True, "plus": n < 3} for n in range(4)},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    made = inside("selfcodealign.py", "card", "--model", model, "--scores", tmp_path)
    assert made.returncode == 0, made.stderr
    card = ModelCard.load(model / "README.md")
    assert card.data.base_model == "owner/base" and card.data.license == "unknown"
    for text in (
        "2 pairs, made from code of Python's standard library\nby owner/writer",
        settings["data_sha256"],
        "| humaneval+ | 3 of 4 | 75.0 |",
    ):
        assert text in card.text, card.text
    assert str(tmp_path) not in card.text
    assert inside("selfcodealign.py", "card", "--model", model).returncode == 0, "made again"
    (tmp_path / "result.json").write_text(json.dumps(result | {"model": "someone/else"}))
    other = inside("selfcodealign.py", "card", "--model", model, "--scores", tmp_path)
    assert other.returncode == 2 and "scores of someone/else" in other.stderr
    (model / "README.md").write_text("mine")
    refused = inside("selfcodealign.py", "card", "--model", model)
    assert refused.returncode == 2 and (model / "README.md").read_text() == "mine"
