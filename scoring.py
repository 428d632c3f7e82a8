"""Right or wrong? EvalPlus's tests for HumanEval+ and MBPP+, a task's own tests for self-made tasks; the same verdict on a busy machine.

EvalPlus 0.3.1 gives an answer a time per test input, and a time for them all, both by the clock on the wall, so that a right answer fails
when other programs take its core. Here the same limits do not count the time spent waiting for a core, up to LOAD_FACTOR times the limit;
the references' times, which the limits are multiples of, are those of the processor; and an answer that may have failed for want of time
or memory is checked again, alone. On an idle machine these clocks agree with EvalPlus's; where there is no /proc/PID/schedstat they are
EvalPlus's, and the second check remains.
"""

import ast
import contextlib
import io
import multiprocessing
import os
import signal
import time
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from prompting import program, python_code, runnable_code
from rows import BadInput
from sandbox import Sandbox, SandboxError

MIN_TIME_LIMIT = 4.0  # seconds per test input; at EvalPlus's 1.0 a right answer fails on a loaded machine
LOAD_FACTOR = 20  # an answer that waits for a core may take this many times its limit
ALWAYS_FAILS = {"humaneval": "HumanEval/32"}  # in EvalPlus 0.3.1


# ------------------------------------------------------------------------------------------------- EvalPlus, made patient


def waited(process: int | str = "self") -> float:
    """Seconds that a process has waited for a core that others used; 0 where the kernel does not tell."""
    try:
        schedstat = os.open(f"/proc/{process}/schedstat", os.O_RDONLY)  # EvalPlus's guard leaves no other `open`
    except OSError:
        return 0.0
    try:
        return int(os.read(schedstat, 100).split()[1]) / 1e9
    except (OSError, IndexError):  # it ended meanwhile
        return 0.0
    finally:
        os.close(schedstat)


def time_left(limit: float, started: float, lost: float) -> float:
    """Of a time limit, when `lost` seconds of those since `started` were spent waiting for a core."""
    return min(limit + lost, LOAD_FACTOR * limit) - (time.monotonic() - started)


@contextlib.contextmanager
def patient_time_limit(seconds: float):
    """EvalPlus's limit on one test input, except that waiting for a core does not count."""
    from evalplus.eval.utils import TimeoutException

    started, before = time.monotonic(), waited()

    def on_alarm(*_):
        left = time_left(seconds, started, waited() - before)
        if left < 0.01:
            raise TimeoutException("Timed out!")
        signal.setitimer(signal.ITIMER_REAL, left)

    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class PatientProcess(multiprocessing.get_context("fork").Process):
    """The process of one answer, joined as EvalPlus does, except that its waiting for a core does not count; what it prints is lost."""

    def run(self):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        super().run()

    def join(self, timeout: float | None = None):
        started, left = time.monotonic(), timeout
        super().join(left)
        while timeout is not None and self.is_alive() and (left := time_left(timeout, started, waited(self.pid))) > 0.01:
            super().join(left)


def make_patient():
    """Set the clocks of the EvalPlus in this process; the references' times become those of the processor."""
    import evalplus.eval
    import evalplus.gen.util

    evalplus.eval.time_limit = patient_time_limit
    evalplus.eval.multiprocessing = types.SimpleNamespace(Process=PatientProcess)
    evalplus.gen.util.time = types.SimpleNamespace(time=time.process_time)
    os.environ.pop("EVALPLUS_TIMEOUT_PER_TASK", None)  # EvalPlus compares its text with a number, and dies


def check(benchmark: str, task: dict, solutions: list[str]) -> list[dict]:
    """EvalPlus's verdict {base, plus} of each solution of one task: pass, fail or timeout. Plus counts only where base passes, and is None
    elsewhere; `doubtful` where the machine's load can have been the reason. The reference runs first, so that no cache of its outputs and
    times, written in a busy moment, gives lax limits ever after."""
    from evalplus.eval import PASS, TIMEOUT, untrusted_check
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
    from evalplus.gen.util import trusted_exec

    expected = {}
    not_none = benchmark == "mbpp" and task["entry_point"] in MBPP_OUTPUT_NOT_NONE_TASKS
    with contextlib.redirect_stdout(io.StringIO()):
        for suite in ("base", "plus"):
            expected[suite] = trusted_exec(
                task["prompt"] + task["canonical_solution"], task[f"{suite}_input"], task["entry_point"],
                record_time=True, output_not_none=not_none,
            )  # fmt: skip
    verdicts = []
    for solution in solutions:
        verdict = {"base": None, "plus": None, "doubtful": False}
        for suite, (outputs, times) in expected.items():
            started = time.monotonic()
            verdict[suite], details = untrusted_check(
                benchmark, solution, task[f"{suite}_input"], task["entry_point"], outputs, task["atol"], times,
                fast_check=True, min_time_limit=MIN_TIME_LIMIT,
            )  # fmt: skip
            if verdict[suite] != PASS:
                # EvalPlus calls one input's lack of time a plain failure, but it cannot come earlier than this; and a process that ended
                # without a word, one that the system ended for want of memory, say, a timeout.
                verdict["doubtful"] = verdict[suite] == TIMEOUT or time.monotonic() - started >= MIN_TIME_LIMIT
                if details and not details[-1]:
                    verdict["failed_input"] = repr(task[f"{suite}_input"][len(details) - 1])[:300]
                break
        verdicts.append(verdict)
    return verdicts


def check_all(benchmark: str, tasks: dict[str, dict], solutions: dict[str, list[str]], workers: int) -> Iterator[tuple[str, str, dict]]:
    """Yield (task id, solution, verdict) as they are known; doubtful ones come last, checked again, one at a time."""
    again = []
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=fork, initializer=make_patient) as pool:
        known = next(task for task_id, task in tasks.items() if task_id != ALWAYS_FAILS.get(benchmark))
        [verdict] = pool.submit(check, benchmark, known, [known["prompt"] + known["canonical_solution"]]).result()
        if verdict["plus"] != "pass":
            raise BadInput(f"EvalPlus fails its own solution of {known['task_id']} here: does `ulimit -v` limit the memory?")
        futures = {pool.submit(check, benchmark, tasks[task_id], found): task_id for task_id, found in solutions.items()}
        for future in as_completed(futures):
            task_id = futures[future]
            for solution, verdict in zip(solutions[task_id], future.result()):
                if verdict["doubtful"]:
                    again.append((task_id, solution))
                else:
                    yield task_id, solution, verdict
        for task_id, solution in again:
            [verdict] = pool.submit(check, benchmark, tasks[task_id], [solution]).result()
            yield task_id, solution, verdict | {"doubtful": True}


# -------------------------------------------------------------------------------------------------------- self-made tasks


def run_all(benchmark: str, tasks: dict[str, dict], solutions: dict[str, list[str]], workers: int) -> Iterator[tuple[str, str, dict]]:
    """`check_all` for self-made tasks: the code of each response and the task's tests, in the sandbox. Raises SandboxError."""
    programs, again = [], []
    for task_id, found in solutions.items():
        for solution in found:
            if text := program_of(solution, tasks[task_id]["tests"]):
                programs.append(((task_id, solution), text))
            else:
                yield task_id, solution, {"base": "no program", "doubtful": False}
    with Sandbox(workers=workers) as sandbox:
        for (key, text), result in sandbox.map(((key, text), text) for key, text in programs):
            if result.outcome in ("timeout", "error"):
                again.append((key, text))
            else:
                yield *key, sandbox_verdict(result)
        for key, text in again:
            yield *key, sandbox_verdict(sandbox.run(text)) | {"doubtful": True}


def program_of(response: str, tests: str) -> str | None:
    """The program that decides about a response; None if it holds no code that parses."""
    code = python_code(response)
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return program(runnable_code(response), python_code(tests)) if code else None


def sandbox_verdict(result) -> dict:
    if result.outcome == "error":
        raise SandboxError(f"the sandbox gave no verdict: {result.detail}")
    return {"base": "pass" if result.outcome == "passed" else result.outcome, "detail": result.detail, "doubtful": False}
