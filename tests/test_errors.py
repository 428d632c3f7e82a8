"""Every mistake of a user's ends with one clear line and exit status 2, and leaves nothing behind that the
corrected command trips over."""

import json
import os
import re
import shutil
import subprocess

import pytest
from conftest import ROOT

OFFLINE = ["unshare", "-rn"]  # a network namespace without a network
can_go_offline = (
    shutil.which("unshare") and subprocess.run([*OFFLINE, "true"], capture_output=True).returncode == 0
)
needs_offline = pytest.mark.skipif(not can_go_offline, reason="no rights to take the network away")


def refused(process, *says):
    assert process.returncode == 2, process.stderr[-2000:]
    bar = re.compile(r"\d+\w* \[\d\d:\d\d.*/s")
    lines = [
        line
        for line in process.stderr.replace("\r", "\n").splitlines()
        if line.strip() and not bar.search(line)
    ]
    assert "Traceback" not in process.stderr and len(lines) == 1, process.stderr
    for text in says:
        assert str(text) in lines[0]


def test_unknown_model_folder(inside, tmp_path, model):
    data = tmp_path / "sft.jsonl"
    data.write_text('{"instruction": "a", "response": "b"}\n')
    refused(
        inside("selfcodealign.py", "run", "--model", tmp_path / "nowhere", "--out", tmp_path / "run"),
        "no such model folder",
        "nowhere",
    )
    refused(
        inside("train.py", "--model", tmp_path / "nowhere", "--data", data, "--out", tmp_path / "model"),
        "nowhere",
    )
    refused(
        inside(
            "eval.py", "--model", tmp_path / "nowhere", "--benchmark", "humaneval", "--out", tmp_path / "eval"
        ),
        "nowhere",
    )
    refused(
        inside("selfcodealign.py", "run", "--model", tmp_path, "--out", tmp_path / "run"), "no config.json"
    )
    assert not any((tmp_path / name).exists() for name in ("run", "model", "eval"))


def test_empty_or_missing_source(inside, tmp_path, model):
    (tmp_path / "empty").mkdir()
    for source in ("empty", "missing", "missing.jsonl"):
        refused(
            inside(
                "selfcodealign.py",
                "run",
                "--model",
                model,
                "--source",
                tmp_path / source,
                "--out",
                tmp_path / "run",
            ),
            source,
        )
    assert not (tmp_path / "run").exists()


def test_corrupt_line_of_a_source_and_of_a_stage(command, inside, tmp_path, model):
    source = tmp_path / "code.jsonl"
    source.write_text('{"content": "x = 1"}\n{"content"\n')
    gather = [
        "selfcodealign.py",
        "seeds",
        "--model",
        model,
        "--source",
        source,
        "--judge",
        0,
        "--out",
        tmp_path / "run",
    ]
    refused(command(*gather), f"{source}:2:")
    source.write_text('{"content": "def f(x):\\n    \\"\\"\\"Same.\\"\\"\\"\\n    return x\\n"}\n')
    mended = inside(*gather)
    assert mended.returncode == 0, mended.stderr
    rows = tmp_path / "run" / "seeds.jsonl"
    rows.write_text("{\n" + rows.read_text())
    refused(inside("selfcodealign.py", "concepts", "--out", tmp_path / "run"), f"{rows}:1:")


def test_train_data_that_is_missing_corrupt_or_empty(command, inside, tmp_path, model):
    data = tmp_path / "sft.jsonl"
    options = ["--model", model, "--data", data, "--out", tmp_path / "model"]
    refused(command("train.py", *options), "no such data file")
    data.write_text("")
    refused(inside("train.py", *options), "no examples")
    data.write_text('{"instruction": "a", "response": "b"}\n{"instruction": "a"}\n')
    refused(inside("train.py", *options), f"{data}:2:")
    assert not (tmp_path / "model").exists()


def test_missing_benchmark_file(command, tmp_path, model):
    where = {"HUMANEVAL_OVERRIDE_PATH": str(tmp_path / "missing.jsonl")}
    refused(
        command(
            "eval.py", "--model", model, "--benchmark", "humaneval", "--out", tmp_path / "eval", env=where
        ),
        "missing.jsonl",
    )
    (tmp_path / "missing.jsonl").write_text('{"task_id": "HumanEval/0"}\n')
    refused(
        command(
            "eval.py", "--model", model, "--benchmark", "humaneval", "--out", tmp_path / "eval", env=where
        ),
        "missing.jsonl",
    )


@pytest.fixture
def offline(tmp_path) -> dict:
    """What `command` needs to run without a network, and with nothing that was downloaded before."""
    nothing = {"XDG_CACHE_HOME": str(tmp_path), "HF_HOME": str(tmp_path)}
    nothing |= {"HUMANEVAL_OVERRIDE_PATH": "", "MBPP_OVERRIDE_PATH": ""}
    # What vLLM knows of its own classes stays: it starts a process that imports all of it to learn that.
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    nothing["VLLM_CACHE_ROOT"] = os.environ.get("VLLM_CACHE_ROOT", f"{cache}/vllm")
    return {"prefix": OFFLINE, "env": nothing}


@needs_offline
def test_without_a_network_the_benchmarks_are_missed_and_seeds_are_not(command, tmp_path, model, offline):
    scored = command(
        "eval.py", "--model", model, "--benchmark", "mbpp", "--out", tmp_path / "eval", **offline
    )
    refused(scored, "MBPP_OVERRIDE_PATH")
    options = ["--model", model, "--limit", 3, "--judge", 0, "--out", tmp_path / "run"]
    alone = command("selfcodealign.py", "seeds", *options, **offline)
    assert alone.returncode == 0 and "mbpp+ NOT SEARCHED" in alone.stdout, alone.stderr


@needs_offline
@pytest.mark.skipif(
    not os.environ.get("SLOW"), reason="set SLOW=1: the hub's client tries each name again and again"
)
def test_without_a_network_a_name_of_the_hub_is_refused(command, tmp_path, model, offline):
    data, out = tmp_path / "sft.jsonl", tmp_path / "out"
    data.write_text('{"instruction": "a", "response": "b"}\n')
    refused(command("eval.py", "--model", "owner/name", "--benchmark", "mbpp", "--out", out, **offline))
    run = command(
        "selfcodealign.py", "run", "--model", model, "--source", "owner/name", "--out", out, **offline
    )
    refused(run, "owner/name")
    refused(
        command("train.py", "--model", "owner/name", "--data", data, "--out", out, **offline), "owner/name"
    )
    assert not out.exists()


def test_not_a_run_folder_and_no_result(inside, tmp_path, model):
    (tmp_path / "notes.txt").write_text("mine")
    refused(inside("selfcodealign.py", "run", "--model", model, "--out", tmp_path), "not a run folder")
    refused(inside("selfcodealign.py", "concepts", "--out", tmp_path / "none"), "not a run folder")
    refused(inside("selfcodealign.py", "trace", tmp_path / "none", "abc"), "no such run folder")
    refused(inside("eval.py", "--compare", tmp_path, tmp_path), "no result")
    refused(inside("eval.py", "--benchmark", "mbpp"), "--out")


def test_an_environment_of_the_users_is_left_alone(tmp_path):
    for name in ("environment.sh", "requirements.txt", "requirements-cpu.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "mine").write_text("mine")
    refused(
        subprocess.run(["bash", "-c", "source environment.sh"], cwd=tmp_path, capture_output=True, text=True),
        "is not ours",
    )
    assert (tmp_path / ".venv" / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "program, script, variable, says",
    [
        ("nvidia-smi", "echo 570.86.10", {}, "needs 580"),
        ("nvidia-smi", "echo 580.65.06", {"CC": "no-compiler-here"}, "no-compiler-here"),
        ("getconf", "echo glibc 2.28", {}, "has glibc 2.28"),
        (
            "python",
            'case $2 in *Python.h*) exit 1 ;; esac; exec python3 "$@"',
            {"PYTHON": "python"},
            "Python.h",
        ),
    ],
)
def test_what_a_gpu_needs_is_asked_for_and_nothing_installed_for_the_cpu(
    program, script, variable, says, tmp_path
):
    for name in ("environment.sh", "requirements.txt", "requirements-cpu.txt"):
        shutil.copy(ROOT / name, tmp_path)
    found = {"nvidia-smi": "echo 580.65.06", "gcc": "exit 1", program: script}
    for name, lines in found.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key not in ("CC", "PYTHON")}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "0"} | variable
    shell = ["bash", "-c", "source environment.sh"]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, env=environment)
    refused(done, says)
    assert not (tmp_path / ".venv").exists()


def test_too_little_memory_is_said_first(tmp_path):
    for name in ("environment.sh", "requirements.txt", "requirements-cpu.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "awk").write_text("#!/bin/sh\necho 4000\n")
    (tmp_path / "awk").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "none", "CUDA_VISIBLE_DEVICES": ""}
    shell = ["bash", "-c", "source environment.sh"]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, env=environment)
    said = done.stderr.splitlines()
    assert done.returncode == 2 and "4000 MB" in said[0] and "set PYTHON" in said[1]


@pytest.mark.parametrize("source", [["--source", "parts"], ["--source=parts"]])
def test_run_sh_takes_relative_paths_from_the_folder_that_it_is_called_from(source, tmp_path, embedded):
    """Both have a folder `parts`: that of the caller's is the empty one."""
    installed = ROOT / ".venv" / "installed.txt"
    wanted = [file.read_text() for file in ROOT.glob("requirements*.txt")]
    if not installed.is_file() or installed.read_text() not in wanted:
        pytest.skip("run.sh would install first")
    (tmp_path / "mine").symlink_to(embedded)
    (tmp_path / "parts").mkdir()
    before = set(ROOT.glob("runs/*"))
    (tmp_path / "tasks.jsonl").touch()
    environment = os.environ | dict.fromkeys(["HUMANEVAL_OVERRIDE_PATH", "MBPP_OVERRIDE_PATH"], "tasks.jsonl")
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    words = ["--model", "mine", *source, "--out", "runs/of-the-caller"]
    done = subprocess.run([ROOT / "run.sh", *words], **options)
    assert "humaneval+ mbpp+" in done.stdout, done.stderr
    assert done.returncode == 2 and "source folder parts" in done.stderr.splitlines()[-1], done.stderr
    assert set(ROOT.glob("runs/*")) == before and not (tmp_path / "runs").exists()


def test_run_sh_explains_itself_and_does_nothing():
    done = subprocess.run([ROOT / "run.sh", "--help"], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0 and "./run.sh --model MODEL" in done.stdout and not done.stderr
    assert "scored before" not in done.stdout


def test_an_option_is_not_abbreviated_since_run_sh_would_not_see_it(inside, tmp_path, model):
    done = inside("selfcodealign.py", "seeds", "--mod", model, "--out", tmp_path / "run")
    assert done.returncode == 2 and "--mod" in done.stderr and not (tmp_path / "run").exists()


def test_results_of_different_tasks_are_not_compared(inside, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tasks = {f"{name}/0": {"base": True, "plus": True}}
        (tmp_path / name / "result.json").write_text(json.dumps({"benchmark": "mbpp", "tasks": tasks}))
    refused(inside("eval.py", "--compare", tmp_path / "a", tmp_path / "b"), "not scored on the same tasks")


PRINT_PROMPTS = """
import argparse, json, sys
sys.path.insert(0, sys.argv[1])
from selfcodealign import METHOD, add_settings, few_shot, prompt_digests, wanted_examples
settings = add_settings(argparse.ArgumentParser())
shots = [example.code for example in wanted_examples(argparse.Namespace(**settings))]
print(json.dumps([prompt_digests(settings, METHOD), few_shot(shots, "")]))
"""


def test_a_locale_that_is_not_utf_8_changes_no_prompt_and_ends_no_command(command, tmp_path):
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "prompts.py").write_text(PRINT_PROMPTS)
    there, here = (command(tmp_path / "prompts.py", ROOT, env=env) for env in (odd, {"PYTHONUTF8": "1"}))
    assert there.returncode == 0 and there.stdout == here.stdout, there.stderr[-2000:]
    result = {"benchmark": "mbpp", "tasks": {"Mbpp/2": {"base": True, "plus": True}}, "model": "modèle"}
    (tmp_path / "result.json").write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
    shown = command("eval.py", "--table", tmp_path, env=odd)
    assert shown.returncode == 0 and "mod\\xe8le" in shown.stdout, shown.stderr[-2000:]
