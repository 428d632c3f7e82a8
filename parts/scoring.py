"""EvalPlus's verdicts on answers to HumanEval+ and MBPP+, the same on a busy machine as on an idle one.

EvalPlus 0.3.1 limits each test input, and all inputs together, by wall-clock time. A right answer then fails
when other programs take its core: beside two busy processes on 2 cores, one that needs 2.4 s failed a limit
of 4 s, even checked again alone. So these limits leave out the time spent waiting for a core, up to
LOAD_FACTOR times the limit; the references' times, which limits are multiples of, are processor times; and a
verdict tells whether want of time or memory may have caused it, so that the answer can be checked again,
alone. Without /proc/PID/schedstat only the second check remains.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import time
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from parts.pool import end_with_parent
from parts.rows import BadInput

MIN_TIME_LIMIT = 4.0  # seconds per test input; at EvalPlus's 1.0 a right answer fails on a loaded machine
LOAD_FACTOR = 20  # an answer that waits for a core may take this many times its limit
SANITIZE_SECONDS = 60  # its time grows with the cube of the lines: 380 of them can take as long
SPAWN = multiprocessing.get_context("spawn")  # EvalPlus forks its worker for each answer: keep it small
ALWAYS_FAILS = {"humaneval": "HumanEval/32"}  # in EvalPlus 0.3.1, whatever the answer


def run_queue_wait(process: int | str = "self") -> float:
    """Seconds that a process has waited for a core; 0 where the kernel does not tell."""
    with contextlib.suppress(OSError, IndexError):  # no such file, or the process has ended
        schedstat = os.open(f"/proc/{process}/schedstat", os.O_RDONLY)  # EvalPlus's guard removes `open`
        try:
            return int(os.read(schedstat, 100).split()[1]) / 1e9
        finally:
            os.close(schedstat)
    return 0.0


def time_left(limit: float, started: float, waited: float) -> float:
    """Seconds left of a limit that does not count the `waited` seconds since `started`."""
    return min(limit + waited, LOAD_FACTOR * limit) - (time.monotonic() - started)


@contextlib.contextmanager
def time_limit(seconds: float):
    """In place of EvalPlus's limit on one test input."""
    from evalplus.eval.utils import TimeoutException

    started, before = time.monotonic(), run_queue_wait()

    def on_alarm(*_):
        left = time_left(seconds, started, run_queue_wait() - before)
        if left < 0.01:
            raise TimeoutException("Timed out!")
        signal.setitimer(signal.ITIMER_REAL, left)

    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def sanitized(code: str, entry_point: str, seconds: float = SANITIZE_SECONDS) -> str:
    """The code by EvalPlus's sanitizer; where that fails or does not end, code that fails and says so."""
    from evalplus.sanitize import sanitize

    try:
        with time_limit(seconds):
            return sanitize(code, entrypoint=entry_point)
    except Exception as error:  # its parser's too, of a zero byte or of an expression that is too deep
        return f"raise RuntimeError({f'the sanitizer of EvalPlus failed: {error!r}'!r})\n"


class AnswerProcess(multiprocessing.get_context("fork").Process):
    """In place of EvalPlus's process of one answer, which it joins with the limit on all inputs."""

    def run(self):
        end_with_parent()  # a worker that is killed ends nothing, and an answer may be endless
        super().run()

    def join(self, timeout: float | None = None):
        started, left = time.monotonic(), timeout
        super().join(left)
        while timeout and self.is_alive():
            if (left := time_left(timeout, started, run_queue_wait(self.pid))) < 0.01:
                return
            super().join(left)


def prepare_process():
    """Make EvalPlus use these clocks in this process, drop what programs print, and end with the parent."""
    end_with_parent()
    import evalplus.eval
    import evalplus.gen.util

    evalplus.eval.time_limit = time_limit
    evalplus.eval.multiprocessing = types.SimpleNamespace(Process=AnswerProcess)
    evalplus.gen.util.time = types.SimpleNamespace(time=time.process_time)
    os.environ.pop("EVALPLUS_TIMEOUT_PER_TASK", None)  # EvalPlus compares its text with a number, and dies
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def check(benchmark: str, task: dict, solutions: list[str], least: float) -> list[tuple[dict, bool]]:
    """EvalPlus's verdict on each solution of a task, and whether the machine's load may have made it fail.

    A verdict is {base, plus}, each pass, fail or timeout; plus is None unless base passes. An input may take
    `least` seconds, or several times the reference's if that is more. The reference runs first, every time:
    EvalPlus's cache would keep limits that were measured in a busy moment. On the inputs of plus, a minute of
    a core for both benchmarks, it runs only where an answer passes base."""
    from evalplus.eval import PASS, TIMEOUT, untrusted_check
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
    from evalplus.gen.util import trusted_exec

    name, reference = task["entry_point"], task["prompt"] + task["canonical_solution"]
    not_none = benchmark == "mbpp" and name in MBPP_OUTPUT_NOT_NONE_TASKS
    inputs = {suite: task[f"{suite}_input"] for suite in ("base", "plus")}
    expected = functools.cache(lambda suite: trusted_exec(reference, inputs[suite], name, True, not_none))
    verdicts = []
    for solution in solutions:
        verdict, maybe_load = {"base": None, "plus": None}, False
        for suite in inputs:
            outputs, times = expected(suite)
            asked = benchmark, solution, inputs[suite], name, outputs, task["atol"], times
            started = time.monotonic()
            verdict[suite], passed = untrusted_check(*asked, fast_check=True, min_time_limit=least)
            if verdict[suite] != PASS:
                # To EvalPlus, an input over its limit is a plain failure, but it takes at least that long; a
                # process that the system killed, for want of memory for example, is a timeout.
                maybe_load = verdict[suite] == TIMEOUT or time.monotonic() - started >= least
                if passed and not passed[-1]:
                    verdict["failed_input"] = repr(inputs[suite][len(passed) - 1])[:300]
                break
        verdicts.append((verdict, maybe_load))
    return verdicts


def check_all(benchmark: str, tasks: dict, samples: list[tuple[str, str]], workers: int) -> Iterator[tuple]:
    """Yield ((task id, solution), verdict, whether load may have made it fail) of each, in any order."""
    by_task = {}
    for task_id, solution in samples:
        by_task.setdefault(task_id, []).append(solution)
    with ProcessPoolExecutor(workers, SPAWN, initializer=prepare_process) as pool:
        begin = functools.partial(pool.submit, check, benchmark)
        known = next(task for task_id, task in tasks.items() if task_id != ALWAYS_FAILS.get(benchmark))
        own = known["prompt"] + known["canonical_solution"]
        if begin(known, [own], MIN_TIME_LIMIT).result()[0][0]["plus"] != "pass":
            problem = f"EvalPlus fails its own solution of {known['task_id']}"
            raise BadInput(f"{problem}: does `ulimit -v` limit memory?")
        futures = {begin(tasks[key], found, MIN_TIME_LIMIT): key for key, found in by_task.items()}
        for future in as_completed(futures):
            task_id = futures[future]
            for solution, (verdict, maybe_load) in zip(by_task[task_id], future.result()):
                yield (task_id, solution), verdict, maybe_load
