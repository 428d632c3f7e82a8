"""Run untrusted Python programs, each in a contained process of its own, and give a sound verdict on each.

    python sandbox.py PROGRAMS.jsonl --out RESULTS.jsonl [--timeout 10] [--memory-mb 4096] [--workers N]
    python sandbox.py --check                   what protects here; programs whose verdicts are known

PROGRAMS has rows {"id", "code"}. RESULTS has rows {"id", "outcome", "detail", "seconds", "peak_mb"} in the
same order. From Python:

    with Sandbox() as box:
        print(box.protection)                   # {property: what protects it, or "NOT ACTIVE: why"}
        box.run("assert 1 + 1 == 2")            # Result(outcome="passed", ...)
        for key, result in box.map(pairs): ...  # any iterable of (key, code); results as programs end

    passed     control reached the end, shown by a random token (parts/program.py). The last statement
               may be a literal exit with status 0 (sys.exit(0), exit(), raise SystemExit), or unittest.main()
    failed     an exception; or a failure that its tests only reported (docs/trust.md)
    exited     an earlier end: sys.exit, os._exit, a closed descriptor
    timeout, memory, crashed (a signal)
    error      the sandbox's own fault, twice: no verdict

    caller --socket--> worker (a small clean interpreter) --fork--> one program at a time

Covered, each layer where the kernel and the user's rights allow it:
  * limits on CPU time, address space, file size, open files, processes, and the memory of all processes;
  * its own root: system folders and this Python, read-only, and a /tmp that is emptied after each program;
  * its own namespaces of processes (daemons are killed too), network (loopback only) and IPC;
  * its own user id where the caller is root; no capabilities; landlock; calls that only attacks need fail;
  * a fixed environment, no inherited descriptors, empty stdin, output to /dev/null;
  * time spent waiting for a core does not count against the time limit (up to 4x the limit).

Not covered: a program written against this code, which shares its interpreter, can forge a pass; any program
can skip its own asserts, or hide that they fail; holes in the kernel (use a virtual machine); processor side
channels. Without namespaces (usual in containers), sockets other than local ones, a literal /tmp and
multiprocessing.Manager fail; files in /dev/shm stay; disk use is limited per file only; a plain user's files
can be chmod-ed or stat-ed, its processes listed. As root with neither namespaces nor another user id, it
refuses. Linux, Python 3.11 or later; seccomp on x86-64 only.

Exit status: 0 where all have a verdict, 1 for an `error` or a wrong check, 2 for bad input, 130 interrupted.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection

from parts import containment
from parts.program import DETAIL_CHARACTERS
from parts.worker import LOAD_FACTOR, TICK_SECONDS, serve

OUTCOMES = ("passed", "failed", "exited", "timeout", "memory", "crashed", "error")
START_SECONDS = 60


class SandboxError(Exception):
    """The sandbox cannot do its work; the message is one line for the user."""


@dataclasses.dataclass
class Result:
    outcome: str
    detail: str
    seconds: float
    peak_mb: float


def verdict(settings, ending):
    """(outcome, detail) from how a program ended, as parts/worker.py reports it.

    What a program itself sends only lowers the verdict: a pass is the random token that was sent before the
    program began, sent again at its end, and exit status 0.
    """
    stopped, messages, status = ending["stopped"], ending["messages"], ending["status"]
    first, last = (messages[0], messages[-1]) if messages else ("", "")
    claim, _, detail = last.encode("latin-1").decode("utf-8", "replace").partition("\0")
    if stopped:
        limits = {"timeout": f"over {settings['timeout']:g} s", "memory": f"over {settings['memory_mb']} MB"}
        return stopped, limits[stopped]
    if first.startswith("error\0"):
        return "error", detail
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return "timeout", "over the limit of CPU time"
        return "crashed", signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if len(messages) == 2 and first == last and status == 0:
        return "passed", ""
    if claim in ("failed", "memory", "exited"):
        return claim, detail[:DETAIL_CHARACTERS]
    return "exited", f"exit status {os.waitstatus_to_exitcode(status)} before its end"


class Worker:
    """A worker process, which runs one program at a time, and the socket to it.

    It is a new interpreter and no fork, so it has nothing of the caller's memory. Messages are JSON: to
    unpickle what it sends could run code in the caller.
    """

    def __init__(self, settings):
        self.settings = settings
        self.start()

    def start(self):
        """Start the process, wait until it has contained itself; `refused` is None, or why it could not."""
        ours, theirs = socket.socketpair()
        self.socket, self.scratch = Connection(ours.detach()), None
        command = [sys.executable, "-s", os.path.abspath(__file__), "--worker"]
        command += [json.dumps(self.settings), str(theirs.fileno())]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        pipes |= {"pass_fds": [theirs.fileno()], "start_new_session": True}
        try:
            self.process = subprocess.Popen(command, env=containment.environment(), cwd="/", **pipes)
        except OSError as problem:
            raise SandboxError(f"cannot start a worker: {problem}") from problem
        finally:
            theirs.close()
        answer = self.receive(START_SECONDS)
        if answer is None:
            last_line = self.stop().decode(errors="replace").strip().rpartition("\n")[2]
            raise SandboxError(f"cannot start a worker: {last_line or 'it does not answer'}")
        self.refused, self.missing, self.scratch = answer
        if self.refused:
            self.stop()

    def receive(self, seconds, cancelled=lambda: False):
        """The worker's next message; None where it has ended, sends none in time, or cancelled() is true."""
        end = time.monotonic() + seconds
        with contextlib.suppress(EOFError, OSError):
            while time.monotonic() < end and not cancelled():
                if self.socket.poll(TICK_SECONDS):
                    return json.loads(self.socket.recv_bytes())

    def run(self, code, cancelled):
        """The Result of a program. Where it has no verdict, it runs once more, in a new worker if need be."""
        for _ in range(2):
            if cancelled():
                raise SandboxError("the sandbox was closed")
            if self.process is None:
                self.start()
                if self.refused:
                    raise SandboxError(f"cannot start a worker: {self.refused}")
            with contextlib.suppress(OSError):  # a dead worker: receive gives None
                self.socket.send_bytes(json.dumps(code).encode())
            ending = self.receive(LOAD_FACTOR * self.settings["timeout"] + 30, cancelled)
            if ending is None:
                self.stop()
                result = Result("error", "its worker ended or did not answer", 0.0, 0.0)
            else:
                result = Result(*verdict(self.settings, ending), ending["seconds"], ending["peak_mb"])
            if result.outcome != "error":
                break
        return result

    def stop(self):
        """Hang up, so that the worker ends, and all that it has; else kill it. Returns its stderr."""
        if self.process is None:
            return b""
        self.socket.close()
        try:
            _, errors = self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, errors = self.process.communicate()
        self.process = None
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)
        return errors


def start_workers(settings, count):
    """The workers, all behind the same layers. Raises SandboxError."""
    first = Worker(settings)
    if first.refused and "namespaces" not in settings["without"]:
        settings["without"]["namespaces"] = f"{first.refused} (usual in a container)"
        first.start()
    if first.refused:
        raise SandboxError(f"cannot start a worker: {first.refused}")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        workers = [first, *pool.map(Worker, [settings] * (count - 1))]
    if refused := [worker.refused for worker in workers if worker.refused]:
        print(f"sandbox: {len(refused)} of {count} workers do not run: {refused[0]}", file=sys.stderr)
    return [worker for worker in workers if not worker.refused]


def check_limits(workers, timeout, memory_mb):
    if workers < 1 or not 0 < timeout < 86400 or memory_mb < 128:
        wanted = "workers >= 1, 0 < timeout < 86400 seconds, memory >= 128 MB"
        raise SandboxError(f"needs {wanted}; not {workers}, {timeout:g} s, {memory_mb} MB")


class Sandbox(contextlib.AbstractContextManager):
    """Workers that run programs, each in a new process behind all layers that work here (see `protection`).

    All workers have the same layers, so no verdict depends on the worker. If the first is refused namespaces,
    all go without. If a later one is, it is left out, and a line on stderr tells.
    """

    def __init__(self, workers=None, timeout=10.0, memory_mb=4096, without=()):
        """`without`: layers to leave out, "namespaces" or names of PROGRAM_LAYERS, to test what remains."""
        workers = len(os.sched_getaffinity(0)) if workers is None else workers
        check_limits(workers, timeout, memory_mb)
        settings = {"timeout": timeout, "memory_mb": memory_mb}
        settings["without"] = dict.fromkeys(without, "switched off by the caller")
        self.workers = start_workers(settings, workers)
        self.closed, self.free_workers = False, queue.SimpleQueue()
        for worker in self.workers:
            self.free_workers.put(worker)
        missing = {layer: why for worker in self.workers for layer, why in worker.missing.items()}
        exposed = {"namespaces", "user"}
        if os.geteuid() == 0 and exposed <= missing.keys() and not exposed <= set(without):
            self.close()
            harm = "as root, with neither namespaces nor another user id, a program could harm this machine"
            why = f"({missing['namespaces']}; {missing['user']})"
            raise SandboxError(f"refused: {harm} {why}; run it as a plain user")
        self.protection = containment.describe_protection(missing)

    def run(self, code, cancelled=lambda: False):
        """Run one program: its Result. Safe to call from several threads. When cancelled() becomes true, the
        program is ended and SandboxError raised."""
        worker = self.free_workers.get()
        try:
            return worker.run(code, lambda: self.closed or cancelled())
        except BaseException:  # the next program must not be given this one's result
            worker.stop()
            raise
        finally:
            self.free_workers.put(worker)

    def map(self, pairs):
        """Run the programs of an iterable of (key, code): yields (key, Result) as they end.

        Threads read the iterable, one pair ahead of the workers, so a slow iterable holds no result back. An
        exception of the iterable is raised when the programs before it have ended.
        """
        pairs, results, reading = iter(pairs), queue.SimpleQueue(), threading.Lock()
        problems, left = [], threading.Event()
        ahead = threading.Semaphore(2 * len(self.workers))  # pairs that were read, less results yielded

        def run_programs():
            try:
                while ahead.acquire():
                    with reading:
                        if problems or left.is_set():
                            break
                        key, code = next(pairs)
                    results.put((key, self.run(code, left.is_set)))
            except BaseException as problem:  # for map: in this thread it would be lost
                problems.append(problem)
            finally:
                results.put(None)

        running = len(self.workers) + 1  # one waits with the next pair
        try:
            for _ in range(running):
                threading.Thread(target=run_programs, daemon=True).start()
            while running:
                if result := results.get():
                    ahead.release()
                    yield result
                else:
                    running -= 1
        finally:  # where the caller left early, the threads end what still runs
            left.set()
            ahead.release(len(self.workers) + 1)
        for problem in problems:
            if not isinstance(problem, StopIteration):
                raise problem

    def close(self):
        """End all programs and workers."""
        self.closed = True  # so that each thread in `run` gives its worker back
        with contextlib.suppress(queue.Empty):
            for _ in self.workers:
                self.free_workers.get(timeout=30)
        for worker in self.workers:
            worker.stop()
            self.free_workers.put(worker)

    def __exit__(self, *_):
        self.close()


# ------------------------------------------------------------------------------------------- the command line

KNOWN_PROGRAMS = {
    "import multiprocessing\nwith multiprocessing.Pool(2) as p:\n    assert p.map(abs, [1]) == [1]": "passed",
    "import sys\nassert sum(range(5)) == 10\nsys.exit(0)": "passed",
    "import sys\nsys.exit(0)\nassert False": "exited",
    "import os\nif os.fork():\n    os._exit(0)": "exited",
    "assert 1 + 1 == 3": "failed",
    "open('/etc/sandbox-was-here', 'w')": "failed",
    "while True:\n    pass": "timeout",
    "x = b'x' * (1 << 40)": "memory",
    "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)": "crashed",
}


def check():
    """Print what protects here and whether the known programs get their verdicts: the exit status."""
    with Sandbox(timeout=2, memory_mb=1024) as box:
        for name, line in box.protection.items():
            print(f"{name + ':':14}{line}")
        results = dict(box.map((code, code) for code in KNOWN_PROGRAMS))
    wrong = [code for code, expected in KNOWN_PROGRAMS.items() if results[code].outcome != expected]
    for code in wrong:
        print(f"WRONG: {results[code]}, not {KNOWN_PROGRAMS[code]}: {code!r}")
    print(f"known programs: {len(results) - len(wrong)} of {len(results)} verdicts right")
    return 1 if wrong else 0


@contextlib.contextmanager
def naming(path):
    """An OSError becomes one line that names the file."""
    try:
        yield
    except OSError as problem:
        raise SandboxError(f"{path}: {containment.reason(problem)}") from problem


def read_programs(path):
    """((number of the program, id), code) of each line that is not blank."""
    with naming(path), open(path, "rb") as file:
        lines = ((place, line) for place, line in enumerate(file, 1) if line.strip())
        for number, (place, line) in enumerate(lines, 1):
            try:
                row = json.loads(line)
                key, code = (number, row["id"]), "" + row["code"]  # fails where it is no text
            except (ValueError, KeyError, TypeError, RecursionError):
                raise SandboxError(f'{path}, line {place}: not {{"id", "code"}}, code a text') from None
            yield key, code


def run_file(path, out, box):
    """Write the result rows in the order of the programs, each as soon as it can be: the exit status."""
    from tqdm import tqdm  # not at the top: every worker is this file, and has no use for it

    counts, waiting, next_line = dict.fromkeys(OUTCOMES, 0), {}, 1
    with naming(path), open(path, "rb") as file:
        total = sum(1 for line in file if line.strip())
    shape = {"total": total, "unit": " programs", "smoothing": 0}
    with naming(out), open(out, "w", buffering=1, encoding="utf-8") as results, tqdm(**shape) as bar:
        for (number, identity), result in box.map(read_programs(path)):
            waiting[number] = {"id": identity, **dataclasses.asdict(result)}
            while next_line in waiting:
                results.write(json.dumps(waiting.pop(next_line)) + "\n")
                next_line += 1
            counts[result.outcome] += 1
            bar.set_postfix_str(f"passed {counts['passed'] / sum(counts.values()):.1%}", refresh=False)
            bar.update()
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    return 1 if counts["error"] else 0


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, usage=argparse.SUPPRESS)
    parser.add_argument("programs", nargs="?", metavar="PROGRAMS.jsonl")
    parser.add_argument("--out", metavar="RESULTS.jsonl")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for each program (default 10)")
    parser.add_argument("--memory-mb", type=int, default=4096, help="for each program (default 4096)")
    parser.add_argument("--workers", type=int, help="programs at the same time (default: one per core)")
    parser.add_argument("--check", action="store_true", help="what protects here, and a few known programs")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack letters that a path has
    try:
        if options.check:
            return check()
        if not options.programs or not options.out:
            raise SandboxError("needs PROGRAMS.jsonl and --out RESULTS.jsonl, or --check")
        if os.path.isfile(options.out):
            with open(options.out, "rb") as file:
                if (first := file.readline()) and (b'"outcome": ' not in first or b'"code": ' in first):
                    raise SandboxError(f"{options.out} exists and holds no results: take another --out")
        with Sandbox(options.workers, options.timeout, options.memory_mb) as box:
            return run_file(options.programs, options.out, box)
    except (SandboxError, OSError) as problem:
        print(f"sandbox: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sandbox: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        del sys.path[0]  # this folder is not for the programs
        serve(json.loads(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main())
