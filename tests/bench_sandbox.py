"""Programs per second, in interleaved rounds. The median of the rounds counts, and ratios more than rates.

    python tests/bench_sandbox.py [--rounds 3] [--programs 200] [--workers 2]

    bare fork             fork, _exit and wait in a process like the sandbox's worker, nothing else: the floor
    all layers            sandbox.py as it is
    rlimits only          sandbox.py without namespaces, user id, landlock and seccomp
    cold python -I -S     a new interpreter per program
    process pool          a pool whose workers start a process per program, with EvalPlus's reliability_guard

All shapes run the same short program.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import sandbox

PROGRAM = """
def add(a, b):
    return a + b

assert add(1, 2) == 3
assert add(-1, 1) == 0
assert add("a", "b") == "ab"
"""
LAYERS = ("namespaces", "user", "privileges", "landlock", "seccomp")


def bare_fork(programs, workers):
    code = f"""
import gc, importlib, os, sys, time
sys.path.insert(0, {os.path.dirname(sandbox.__file__)!r})
import sandbox
from parts.worker import COMMON_MODULES
for name in COMMON_MODULES: importlib.import_module(name)
gc.collect(); gc.freeze()
print(flush=True)
sys.stdin.readline()
for _ in range({programs // workers}):
    process = os.fork()
    if process == 0: os._exit(0)
    os.waitpid(process, 0)
"""
    started = [subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) for _ in range(workers)]
    for process in started:
        process.stdout.readline()
    clock = time.perf_counter()
    for process in started:
        process.stdin.write(b"go\n")
        process.stdin.close()
    for process in started:
        process.wait()
        process.stdout.close()
    return time.perf_counter() - clock


def in_sandbox(box, programs):
    clock = time.perf_counter()
    outcomes = {result.outcome for _, result in box.map((i, PROGRAM) for i in range(programs))}
    assert outcomes == {"passed"}, outcomes
    return time.perf_counter() - clock


def cold(programs, workers):
    with (
        tempfile.NamedTemporaryFile("w", suffix=".py") as file,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        file.write(PROGRAM)
        file.flush()
        clock = time.perf_counter()
        command = [sys.executable, "-I", "-S", file.name]
        run = lambda _: subprocess.run(command, stdin=subprocess.DEVNULL, timeout=10).returncode
        assert not any(pool.map(run, range(programs)))
        return time.perf_counter() - clock


def guarded(code):
    from evalplus.eval.utils import create_tempdir, reliability_guard, swallow_io, time_limit

    with create_tempdir():
        # The guard takes away what the clean-up needs.
        chdir, rmdir, unlink, rmtree = os.chdir, os.rmdir, os.unlink, shutil.rmtree
        reliability_guard(4 << 30)
        with swallow_io(), time_limit(10):
            exec(code, {})
        os.chdir, os.rmdir, os.unlink, shutil.rmtree = chdir, rmdir, unlink, rmtree


def process_per_program(code):
    process = multiprocessing.Process(target=guarded, args=[code])
    process.start()
    process.join(10)
    return process.exitcode


def process_pool(pool, programs):
    clock = time.perf_counter()
    assert not any(pool.map(process_per_program, [PROGRAM] * programs))
    return time.perf_counter() - clock


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--programs", type=int, default=200, help="for each shape in each round")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    programs, workers = options.programs // options.workers * options.workers, options.workers
    if os.access("/dev/shm", os.W_OK):
        tempfile.tempdir = "/dev/shm"  # for all shapes alike: processes are to be measured here, not the disk
    with sandbox.Sandbox(workers) as full, sandbox.Sandbox(workers, without=LAYERS) as limits_only:
        shapes = {
            "bare fork": lambda: bare_fork(programs, workers),
            "all layers": lambda: in_sandbox(full, programs),
            "rlimits only": lambda: in_sandbox(limits_only, programs),
            "cold python -I -S": lambda: cold(programs, workers),
        }
        try:
            import evalplus.evaluate  # noqa: F401  loaded before the pool forks, as when one scores with it
        except ImportError:
            print("process pool: left out, evalplus is not installed", file=sys.stderr)
        else:
            pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))
            shapes["process pool"] = lambda: process_pool(pool, programs)
        rates = {name: [] for name in shapes}
        for _ in range(options.rounds):
            for name, shape in shapes.items():
                rates[name].append(programs / shape())
        if "process pool" in shapes:
            pool.shutdown()
        median = {name: statistics.median(values) for name, values in rates.items()}
        load = f"load average {os.getloadavg()[0]:.1f}, {workers} workers"
        print(f"{'':20}{'programs/s':>11}{'x cold':>8}{'of bare':>9}   rounds ({load})")
        for name, rate in median.items():
            times, share = rate / median["cold python -I -S"], rate / median["bare fork"]
            rounds = " ".join(f"{value:.0f}" for value in rates[name])
            print(f"{name:20}{rate:11.0f}{times:8.2f}{share:9.0%}   {rounds}")


if __name__ == "__main__":
    main()
