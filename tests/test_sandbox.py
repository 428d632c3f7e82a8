"""The sandbox: verdicts, containment, robustness. `SLOW=1 pytest tests/test_sandbox.py` adds the long runs.

HUMANEVAL_OVERRIDE_PATH: HumanEval+ as JSON Lines (.gz), for the slow test on canonical solutions.
"""

import collections
import concurrent.futures
import contextlib
import functools
import gzip
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
import sandbox_battery

import sandbox
from sandbox import Sandbox, SandboxError

HERE = os.path.dirname(os.path.abspath(__file__))
SANDBOX = os.path.join(os.path.dirname(HERE), "sandbox.py")
slow = pytest.mark.skipif(not os.environ.get("SLOW"), reason="set SLOW=1")
AS_ROOT = ["unshare", "--user", "--map-root-user"]  # a root that has no other user id to give to the programs
AS_USER = ["unshare", "--user", "--map-current-user"] if os.geteuid() else ["unshare"]
ISOLATE = [*AS_USER, "--pid", "--fork", "--kill-child", "--mount-proc"]


def isolated(*arguments, **options):
    """Run Python in its own PID namespace: elsewhere, a program that gets out could end every process."""
    if subprocess.run([*ISOLATE, "true"], capture_output=True).returncode:
        pytest.skip("no PID namespace here (usual in a container), so no attacks are run")
    return subprocess.run([*ISOLATE, sys.executable, *arguments], capture_output=True, text=True, **options)


def command_line(*arguments, **options):
    return subprocess.run(
        [sys.executable, SANDBOX, *map(str, arguments)], capture_output=True, text=True, **options
    )


@pytest.fixture(scope="module")
def box():
    with Sandbox(timeout=5) as box:
        yield box


@pytest.fixture
def busy_cores():
    spinning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * len(os.sched_getaffinity(0)))
    ]
    yield
    for process in spinning:
        process.kill()
        process.wait()


def write_programs(path, programs):
    path.write_text(
        "".join(json.dumps({"id": f"p{i}", "code": code}) + "\n" for i, code in enumerate(programs))
    )
    return path


def descendants_of(process):
    found = []
    for task in os.listdir(f"/proc/{process}/task"):
        with open(f"/proc/{process}/task/{task}/children") as file:
            for child in file.read().split():
                found += [int(child), *descendants_of(int(child))]
    return found


# Verdicts and containment.


@pytest.mark.parametrize("without", ["", "namespaces"])
def test_battery(without):
    if without and os.geteuid() == 0:
        try:
            Sandbox(workers=1, without=[without]).close()
        except SandboxError as problem:
            pytest.skip(str(problem))
    run = isolated(sandbox_battery.__file__, "--without", without, "--loaded", timeout=600)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["wrong"] == [] and report["programs"] > 150


def test_idle_battery_ends_in_time(box):
    started = time.monotonic()
    assert box.run("import time\ntime.sleep(100)").outcome == "timeout"
    assert time.monotonic() - started < 5 + 2


def test_work_of_3_seconds_passes_on_busy_cores(busy_cores):
    with Sandbox(timeout=4) as box:
        programs = [(i, sandbox_battery.THREE_SECONDS_OF_WORK) for i in range(len(box.workers))]
        results = [result for _, result in box.map(programs)]
    assert {result.outcome for result in results} == {"passed"}
    assert max(result.seconds for result in results) > 4, (
        "the cores were not busy: this test has shown nothing"
    )


def test_details(box):
    assert box.run("assert 1 == 2, 'no'").detail == "AssertionError: no"
    assert len(box.run("raise ValueError('x' * 10 ** 6)").detail) <= 300
    assert box.run("import os\nos.kill(os.getpid(), 11)").detail == "SIGSEGV"
    assert box.run("x = bytearray(300 << 20)").peak_mb > 300


def test_the_last_statement_may_end_the_program(box):
    """Programs of the battery that harm nobody: they run where the battery cannot."""
    programs = {
        name: code for name, code in sandbox_battery.LEGITIMATE.items() if name.startswith("ends with")
    }
    assert len(programs) == 9
    assert {result.outcome for _, result in box.map(programs.items())} == {"passed"}
    line_number = "from __future__ import annotations\n\ndef f():\n    raise LookupError\ntry:\n    f()"
    line_number += "\nexcept LookupError as e:\n    assert e.__traceback__.tb_next.tb_lineno == 4\nexit()"
    assert box.run(line_number).outcome == "passed"
    assert box.run("import unittest\nunittest.main()").detail.startswith("AssertionError: unittest: ")


@pytest.mark.parametrize("tests", sandbox_battery.REPORTS.values(), ids=sandbox_battery.REPORTS)
def test_a_failure_that_is_only_reported_is_a_failure(box, tests):
    right = sandbox_battery.ADD
    programs = [right, right.replace("+", "-"), right.replace("return a + b", "raise TypeError")]
    assert [box.run(code + tests).outcome for code in programs] == ["passed", "failed", "failed"]


@pytest.mark.parametrize("without", [[], ["namespaces"], ["namespaces", "user"]])
def test_a_program_has_an_account_in_every_mode(without):
    try:
        with Sandbox(workers=1, without=without) as box:
            assert box.run(sandbox_battery.LEGITIMATE["its account"]).outcome == "passed"
            in_a_child = "import subprocess\nassert subprocess.getoutput('id -un') == 'sandbox'"
            assert without or box.run(in_a_child).outcome == "passed"
    except SandboxError as problem:
        pytest.skip(str(problem))


def test_says_what_is_not_active():
    with Sandbox(workers=1, without=["namespaces", "user", "landlock", "seccomp"]) as box:
        inactive = {name for name, line in box.protection.items() if line.startswith("NOT ACTIVE")}
        assert inactive >= {"files", "network", "processes", "system calls"}
        assert box.run("pass").outcome == "passed"


def test_refuses_to_run_unconfined_as_root():
    run = in_python(AS_ROOT, "sandbox.Sandbox(without=['namespaces'])")
    assert "SandboxError: refused: as root" in run.stderr


def test_workers_that_are_refused_namespaces_do_not_run():
    room_for_four = ["sh", "-c", 'echo 4 > /proc/sys/user/max_pid_namespaces && exec "$@"', "sh"]
    code = """
with sandbox.Sandbox(workers=6) as box:
    print(len(box.workers), {result.outcome for _, result in box.map((i, "pass") for i in range(60))})
"""
    run = in_python([*AS_ROOT, *room_for_four], code)
    assert run.stdout == "4 {'passed'}\n" and "2 of 6 workers" in run.stderr, run.stderr


def in_python(prefix, code):
    if subprocess.run([*AS_ROOT, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    code = f"import sys\nsys.path.insert(0, {os.path.dirname(SANDBOX)!r})\nimport sandbox\n{code}"
    return subprocess.run([*prefix, sys.executable, "-c", code], capture_output=True, text=True)


def test_worker_gets_the_folders_of_libraries_of_its_caller(monkeypatch, tmp_path):
    (tmp_path / "libsomething.so").touch()
    os.chmod(tmp_path, 0o755)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with Sandbox(workers=1) as box:
        code = "import os\nassert os.listdir(os.environ['LD_LIBRARY_PATH']) == ['libsomething.so']"
        assert box.run(code).outcome == "passed"


def test_says_why_a_worker_does_not_start(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'a line before' >&2\necho 'cannot open libpython.so' >&2\nexit 127\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(SandboxError, match="^cannot start a worker: cannot open libpython.so$"):
        Sandbox(workers=1)


# Robustness.


def test_lost_worker_is_replaced_and_its_program_run_again(box):
    victims = [worker.process.pid for worker in box.workers]
    pairs = [(i, "import time\ntime.sleep(0.5)") for i in range(8)]
    results = box.map(pairs)
    first = next(results)
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    assert {result.outcome for _, result in [first, *results]} == {"passed"}


def test_map_is_lazy_and_streams(box):
    taken = []
    endless = (taken.append(i) or (i, "pass") for i in iter(int, 1))
    for count, (_, result) in enumerate(box.map(endless), 1):
        assert result.outcome == "passed" and len(taken) <= count + 2 * len(box.workers)
        if count == 20:
            break
    assert box.run("pass").outcome == "passed"


def test_slow_iterable_holds_no_result_back(box):
    delivered = threading.Event()

    def pairs():
        yield 1, "pass"
        yield 2, f"raise ValueError({delivered.wait(20)})"

    results = box.map(pairs())
    assert next(results)[0] == 1
    delivered.set()
    assert [(key, result.detail) for key, result in results] == [(2, "ValueError: True")]


def test_map_may_be_left_while_the_iterable_waits(box):
    release, started = threading.Event(), time.monotonic()
    results = box.map((i, "pass") for i in range(2) if not i or release.wait(60))
    assert next(results)[0] == 0
    results.close()
    assert box.run("pass").outcome == "passed"
    assert time.monotonic() - started < 30
    release.set()


def test_exception_of_the_iterable_comes_after_the_results_before_it(box):
    def pairs():
        yield 1, "import time\ntime.sleep(0.5)"
        raise LookupError

    results = box.map(pairs())
    assert next(results)[1].outcome == "passed"
    with pytest.raises(LookupError):
        next(results)


def test_many_threads_may_run(box):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(box.run, [f"assert {i} % 2" for i in range(20)]))
    assert [result.outcome for result in results] == ["failed", "passed"] * 10


def test_interrupted_run_gives_its_result_to_no_other_program(box):
    answers = iter([False])

    def interrupted():
        for answer in answers:
            return answer
        raise KeyboardInterrupt  # the second time: the program is running

    with pytest.raises(KeyboardInterrupt):
        box.run("pass", interrupted)
    assert {box.run("assert False").outcome for _ in box.workers} == {"failed"}


def test_close_ends_what_another_thread_runs():
    started, box = time.monotonic(), Sandbox(workers=1, timeout=60)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(box.run, "import time\ntime.sleep(50)")
        time.sleep(0.5)
        box.close()
        with pytest.raises(SandboxError, match="closed"):
            running.result()
    assert time.monotonic() - started < 20


def test_command_line_keeps_order(tmp_path):
    programs = ["import time\ntime.sleep(1)", "assert False", "pass", "import sys\nsys.exit(1)"] + [
        "pass"
    ] * 20
    out = tmp_path / "results.jsonl"
    run = command_line(write_programs(tmp_path / "programs.jsonl", programs), "--out", out)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(24)]
    assert [row["outcome"] for row in rows[:4]] == ["passed", "failed", "passed", "exited"]
    assert set(rows[0]) == {"id", "outcome", "detail", "seconds", "peak_mb"}


def test_check():
    run = command_line("--check")
    everything = (
        f"known programs: {len(sandbox.KNOWN_PROGRAMS)} of {len(sandbox.KNOWN_PROGRAMS)} verdicts right"
    )
    assert run.returncode == 0 and everything in run.stdout, run.stdout + run.stderr


def test_blank_lines_are_skipped(tmp_path):
    path, out = (
        write_programs(tmp_path / "programs.jsonl", ["pass", "assert False"]),
        tmp_path / "results.jsonl",
    )
    path.write_text("\n" + path.read_text().replace("\n", "\n \n"))
    assert command_line(path, "--out", out).returncode == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["id"], row["outcome"]) for row in rows] == [("p0", "passed"), ("p1", "failed")]


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "not json", '{"id": 1}', "[1]", '{"id": 1, "code": 2}', "\udcff"]
)
def test_bad_line_is_named_and_finished_results_stay(tmp_path, line):
    path, out = write_programs(tmp_path / "programs.jsonl", ["pass"] * 5), tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes() + os.fsencode(line) + b"\n")
    run = command_line(path, "--out", out)
    assert run.returncode == 2 and f"{path}, line 6" in run.stderr and "Traceback" not in run.stderr
    assert len(out.read_text().splitlines()) == 5


BAD_SETTINGS = """p | missing.jsonl --out x | p --out /nowhere/x | p --out p | p --out x --timeout 0
p --out x --timeout soon | p --out x --timeout nan | p --out x --workers 0 | p --out x --memory-mb 1"""


@pytest.mark.parametrize("arguments", BAD_SETTINGS.replace("\n", " | ").split(" | "))
def test_bad_settings_give_one_line(tmp_path, arguments):
    write_programs(tmp_path / "p", ["pass"])
    run = command_line(*arguments.split(), cwd=tmp_path)
    assert run.returncode == 2 and len(run.stderr.strip().splitlines()) == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert (tmp_path / "p").read_text()


def test_results_replace_results_and_no_other_file(tmp_path):
    programs, out = write_programs(tmp_path / "p", ["pass"]), tmp_path / "out"
    out.touch()
    for _ in range(2):
        assert command_line(programs, "--out", out).returncode == 0
        assert len(out.read_text().splitlines()) == 1
    for text in ("notes\n", '{"id": "p0", "code": "pass", "outcome": "failed"}\n'):
        out.write_text(text)
        for given in (programs, out):
            run = command_line(given, "--out", out)
            assert run.returncode == 2 and "another --out" in run.stderr and "Traceback" not in run.stderr
        assert out.read_text() == text


def test_full_disk_gives_one_line_and_what_was_written_stays(tmp_path):
    programs = write_programs(tmp_path / "p", ["pass"] * 200)
    run = command_line(programs, "--out", "/dev/full")
    assert run.returncode == 2 and run.stderr.endswith("sandbox: /dev/full: No space left on device\n"), (
        run.stderr
    )
    small = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (9000, 9000))
    run = command_line(programs, "--out", tmp_path / "r", preexec_fn=small)
    assert run.returncode == 2 and run.stderr.endswith(f"sandbox: {tmp_path / 'r'}: File too large\n"), (
        run.stderr
    )
    assert json.loads((tmp_path / "r").read_text().splitlines()[0])["outcome"] == "passed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupt_leaves_nothing(tmp_path, number):
    marker = f"sleep-{os.getpid()}-{number}"
    programs = write_programs(
        tmp_path / "p",
        [f"import subprocess\nsubprocess.run(['sh', '-c', 'sleep 1000 # {marker}; true'])"] * 10,
    )
    command = [sys.executable, SANDBOX, programs, "--out", tmp_path / "r"]
    # Tests in the background begin with interrupts ignored.
    take_interrupts = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    options = {"env": {**os.environ, "TMPDIR": str(tmp_path)}, "preexec_fn": take_interrupts}
    run = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
    wait_for(lambda: marker in all_command_lines())
    run.send_signal(number)
    assert run.wait(20) == (130 if number == signal.SIGINT else -number)
    wait_for(lambda: marker not in all_command_lines())
    wait_for(lambda: not list(tmp_path.glob("sandbox-*")))


def all_command_lines():
    lines = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/cmdline") as file:
                lines.append(file.read())
        except OSError:
            pass  # not a process, or ended meanwhile
    return "\n".join(lines)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


# Long runs.

MIXED = [
    ("passed", "assert {0} + 1 == {1}"),
    ("failed", "assert {0} == {1}"),
    ("exited", "import sys\nsys.exit({0} % 2)"),
    ("failed", "raise ValueError({0})"),
    ("passed", "open('f', 'w').write('{0}')\nassert open('f').read() == '{0}'"),
    ("crashed", "import os\nos.abort() # {0}"),
    ("memory", "x = bytes(1 << 42) # {0}"),
    ("passed", "def f(n): return n and n + f(n - 1)\nassert f({0} % 300) >= 0\nexit()"),
    ("exited", "import os\nos._exit(0) # {0}"),
    ("failed", "def broken(: # {0}"),
]


@slow
def test_20000_mixed_programs_twice():
    def verdicts():
        programs = ((i, MIXED[i % 10][1].format(i, i + 1)) for i in range(20000))
        with Sandbox() as box:
            return {i: result.outcome for i, result in box.map(programs)}

    first = verdicts()
    assert first == {i: MIXED[i % 10][0] for i in range(20000)}
    assert verdicts() == first


@slow
def test_memory_is_flat_over_100000_programs():
    def resident():
        kilobytes = 0
        for process in [os.getpid(), *descendants_of(os.getpid())]:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                with open(f"/proc/{process}/status") as file:
                    found = re.search(r"VmRSS:\s+(\d+)", file.read())
                kilobytes += int(found[1]) if found else 0
        return kilobytes / 1024

    with Sandbox() as box:
        sizes = []
        for i, (_, result) in enumerate(box.map((i, f"assert {i} >= 0") for i in range(100_000))):
            assert result.outcome == "passed"
            if i % 10_000 == 5_000:
                sizes.append(resident())
    print("resident MB of caller and workers:", [round(size) for size in sizes])
    assert min(sizes[5:]) - min(sizes[:5]) < 4  # the smallest: in some readings a program is just running


@slow
@pytest.mark.skipif(
    "HUMANEVAL_OVERRIDE_PATH" not in os.environ, reason="HUMANEVAL_OVERRIDE_PATH names no file"
)
def test_humaneval_canonical_solutions():
    path = os.environ["HUMANEVAL_OVERRIDE_PATH"]
    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as file:
        problems = [json.loads(line) for line in file]
    outcomes = {"right": collections.Counter(), "wrong": collections.Counter()}
    programs = []
    for problem in problems:
        test = f"\n{problem['test']}\ncheck({problem['entry_point']})\n"
        right = problem["prompt"] + problem["canonical_solution"]
        wrong = right + f"\ndef {problem['entry_point']}(*arguments):\n    return 'a wrong constant'\n"
        programs += [
            (("right", problem["task_id"]), right + test),
            (("wrong", problem["task_id"]), wrong + test),
        ]
    with Sandbox(timeout=60) as box:
        for (kind, task), result in box.map(programs):
            outcomes[kind][result.outcome] += 1
            assert result.outcome == ("passed" if kind == "right" else "failed"), (kind, task, result)
    print(outcomes)
