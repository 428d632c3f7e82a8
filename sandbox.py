"""Run untrusted Python programs: one sound verdict for each, and no harm done.

    python sandbox.py PROGRAMS.jsonl --out RESULTS.jsonl [--timeout 10] [--memory-mb 4096] [--workers N]
    python sandbox.py --check                   what protects here, and programs whose verdicts are known

A row of PROGRAMS is {"id", "code"}. A row of RESULTS, which are in the order of the programs, is
{"id", "outcome", "detail", "seconds", "peak_mb"}. From Python:

    with Sandbox() as box:
        print(box.protection)                   # property: what protects it, or "NOT ACTIVE: why"
        box.run("assert 1 + 1 == 2")            # Result(outcome="passed", ...)
        for key, result in box.map(pairs): ...  # any iterable of (key, code); results as programs end

Outcomes: `passed` (control reached the end of the program, proven), `failed` (an exception), `exited` (it
ended earlier: sys.exit, os._exit, a closed descriptor), `timeout`, `memory`, `crashed` (a signal), `error`
(the sandbox's own fault, tried twice: no verdict). A program may end with a literal exit of status 0
(sys.exit(0), exit(), raise SystemExit ..) as its last statement, or with unittest.main(): at least one test
must run, and all must pass.

    caller --socket--> worker (a small clean interpreter) --fork--> one program at a time

Covered, each layer where the kernel and the user's rights allow it (--check says which):
  * limits on CPU time, address space, file size, open files and processes; on the memory of all processes;
  * its own root of read-only system folders and this Python, with a /tmp that is emptied after each program;
  * its own namespaces of processes (daemons are killed too), network (loopback only) and IPC;
  * its own user id where the caller is root; no capabilities; landlock; calls that only attacks need fail;
  * a fixed environment, no inherited descriptors, empty stdin, output to /dev/null, so that it cannot block;
  * time spent waiting for a core that others use does not count against the time limit (up to 4x the limit).

Not covered: a program written against this very file can forge its pass, since it shares an interpreter with
the code that reports it, and any program can skip its own asserts; holes in the kernel (use a virtual
machine); processor side channels. Without namespaces (usual in containers), sockets other than local ones,
writing to a literal /tmp and multiprocessing.Manager fail; files left in /dev/shm stay; disk use is limited
per file only; a plain user's files can be chmod-ed or stat-ed, its processes listed. As root, with neither
namespaces nor another user id for the programs, it refuses. Linux, Python 3.11 or later; seccomp on x86-64
only.

Exit status: 0 when every program has a verdict, 1 when some ended as `error` (or a check is wrong), 2 for bad
input or settings, 130 when interrupted.
"""

import argparse
import ast
import builtins
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import gc
import importlib
import json
import os
import queue
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
from multiprocessing.connection import Connection, wait

from parts import containment
from parts.containment import descendants, reason

COMMON_MODULES = """abc array bisect builtins calendar collections copy csv datetime decimal enum fractions
hashlib heapq inspect io itertools functools operator pprint re statistics string textwrap threading traceback
typing uuid""".split()  # loaded once, before a worker forks
OUTCOMES = ("passed", "failed", "exited", "timeout", "memory", "crashed", "error")

DETAIL_CHARACTERS = 300
TICK_SECONDS = 0.2  # how often a running program's memory and waiting time are read
LOAD_FACTOR = 4  # a program that waits for a core may take this many times the limit
START_SECONDS = 60


class SandboxError(Exception):
    """The sandbox cannot do its work; the message is one line for the user."""


@dataclasses.dataclass
class Result:
    outcome: str
    detail: str
    seconds: float
    peak_mb: float


# ----------------------------------------------------------------------------------- the process of a program

CHANNEL = containment.OPEN_FILES - 1  # the descriptor on which a program's process reports


def be_program(config, channel, folder, source):
    """Put on the layers, run the program as __main__, report how it ended. Never returns."""
    own_id = os.getpid()
    try:
        os.dup2(channel, CHANNEL, inheritable=False)
        os.setsid()
        path, work = os.path.join(folder, "main.py"), os.path.join(folder, "work")
        os.chdir(work)
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        for layer in config["layers"]:
            containment.PROGRAM_LAYERS[layer](config)
        os.closerange(3, CHANNEL)
        main = types.ModuleType("__main__")
        main.__file__, main.__builtins__ = path, builtins
        sys.modules["__main__"], sys.argv = main, [path]
        sys.path.insert(0, work)
        names = main.__dict__
    except BaseException as problem:  # nothing may leave: below is a copy of the worker's loop
        report("error", problem)
    try:
        code, tests = compile_program(source, path)
        # The token lives only on this frame's value stack: no frame, local variable or gc call shows it.
        # Arguments are evaluated from left to right: prove_end gets it when exec has returned. Keep one line.
        prove_end(announce_token(), own_id, exec(code, names), tests and check_tests(eval(tests, names)))
    except BaseException as problem:  # whatever a program raises, even KeyboardInterrupt, is its verdict
        if os.getpid() != own_id:  # a process that the program forked
            leave_like_python(problem)
        outcome = "exited" if isinstance(problem, SystemExit) else "failed"
        report("memory" if isinstance(problem, MemoryError) else outcome, problem)


def compile_program(source, path):
    """The program's code, and that of the unittest.main() which ends it, or None.

    Where the last statement (of a last `if __name__ == "__main__":` too) is a literal exit with status 0 or
    unittest.main(), the function's mere name takes its place: control that gets there has reached the end.
    """
    tree, tests = source, None
    if any(word in source for word in (b"exit", b"quit", b"SystemExit", b"unittest")):
        tree = compile(source, path, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
        block = tree.body
        match block[-1:]:
            case [ast.If(ast.Compare(ast.Name("__name__"), [ast.Eq()], [ast.Constant("__main__")]), body)]:
                block = body
        last = block[-1] if block else None
        call = getattr(last, "value", getattr(last, "exc", None))  # of an expression, or of a raise
        match call:
            case ast.Call(ast.Attribute(ast.Name("unittest"), "main"), _, keywords):
                no_exit = ast.keyword("exit", ast.Constant(False))
                call.keywords = [*(keyword for keyword in keywords if keyword.arg != "exit"), no_exit]
                expression = ast.fix_missing_locations(ast.Expression(call))
                tests = compile(expression, path, "eval", dont_inherit=True)
            case ast.Call(ast.Attribute(ast.Name("sys"), "exit"), [] | [ast.Constant(int(0))], []):
                pass
            case ast.Call(ast.Name("exit" | "quit" | "SystemExit"), [] | [ast.Constant(int(0))], []):
                pass
            case ast.Name("SystemExit"):
                pass
            case _:
                return compile(source, path, "exec", dont_inherit=True), None
        block[-1] = ast.copy_location(ast.Expr(getattr(call, "func", call)), last)
    return compile(tree, path, "exec", dont_inherit=True), tests


def check_tests(program):
    """Raise unless unittest.main() ran at least one test and all passed."""
    result = program.result
    if not result.wasSuccessful() or result.testsRun <= len(result.skipped):
        raise AssertionError(f"unittest.main: {result}, skipped={len(result.skipped)}")


def announce_token():
    token = os.urandom(16)
    os.write(CHANNEL, token)
    return token


def prove_end(token, own_id, *_):
    if os.getpid() != own_id:
        leave_like_python(SystemExit(0))
    os.write(CHANNEL, token)
    os._exit(0)


def report(outcome, problem):
    try:
        name = type(problem).__name__
        try:
            text = str(problem)
        except BaseException as second:  # __str__ is the program's own code
            text = f"<{type(second).__name__} in its __str__>"
        detail = f"{name}: {text}" if text else name
        os.write(CHANNEL, f"{outcome}\0{detail[:DETAIL_CHARACTERS]}".encode("utf-8", "replace"))
    finally:
        os._exit(1)


def leave_like_python(problem):
    """End with the exit status, the atexit calls and the flushed files of an ordinary Python process."""
    status = 1
    if isinstance(problem, SystemExit):
        status = problem.code if isinstance(problem.code, int) else int(problem.code is not None)
    ctypes.pythonapi.Py_Exit(status)


# --------------------------------------------------------- the worker, which forks a process for each program


def read_usage(before):
    """(resident MB of all descendants, {task: (seconds on a core, seconds waiting for one)}, seconds that all
    ran since the last reading, the longest that one waited). `before`: the tasks of the last reading."""
    resident, tasks, ran, waited = 0, {}, 0.0, 0.0
    for process in descendants():
        with contextlib.suppress(OSError):  # ended meanwhile
            with open(f"/proc/{process}/statm") as file:
                _, pages, shared, *_ = file.read().split()
            resident += int(pages) - int(shared)
            for task in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{task}/schedstat") as file:
                    on, off, _ = file.read().split()
                tasks[task] = int(on) / 1e9, int(off) / 1e9
                on_before, off_before = before.get(task, (0, 0))
                ran += tasks[task][0] - on_before
                waited = max(waited, tasks[task][1] - off_before)
    return resident * resource.getpagesize() / (1 << 20), tasks, ran, waited


def watch(config, process, caller):
    """Wait until the program's process ends or must end: (why it was stopped or "", most MB seen)."""
    ended = os.pidfd_open(process)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(caller, select.POLLIN)
    tasks, ran, waited, lost, peak_mb, stopped = {}, 0.0, 0.0, 0.0, 0.0, ""
    started = time.monotonic()
    while not stopped:
        left = started + config["timeout"] + lost - time.monotonic()
        ready = [descriptor for descriptor, _ in poll.poll(1000 * max(0.001, min(left, TICK_SECONDS)))]
        if ready:
            stopped = "" if ended in ready else "abandoned"  # the caller never speaks meanwhile: it has gone
            break
        seconds = time.monotonic() - started  # before the reading: no wait after it counts
        resident, tasks, ran_now, waited_now = read_usage(tasks)
        ran, waited, peak_mb = ran + ran_now, waited + waited_now, max(peak_mb, resident)
        lost = max(0.0, min(waited, seconds - ran / config["cores"]))  # not where it kept all cores busy
        if resident > config["memory_mb"]:
            stopped = "memory"
        elif seconds > min(config["timeout"] + lost, LOAD_FACTOR * config["timeout"]):
            stopped = "timeout"
    os.close(ended)
    return stopped, peak_mb


def run_program(config, caller, code):
    """One program, from its text to the fields of its Result. It leaves no process."""
    folder = os.path.join(config["scratch"], "program")
    work = os.path.join(folder, "work")
    os.makedirs(work)
    if "user" in config["layers"]:
        os.chown(work, config["user"], config["user"])
    source = code.encode("utf-8", "surrogatepass")
    with open(os.path.join(folder, "main.py"), "wb") as file:
        file.write(source)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        be_program(config, theirs.fileno(), folder, source)
    theirs.close()
    stopped, peak_mb = watch(config, process, caller)
    with contextlib.suppress(ProcessLookupError):  # it ended before it had a group of its own
        os.killpg(process, signal.SIGKILL)
    os.kill(process, signal.SIGKILL)
    _, status, usage = os.wait4(process, 0)
    seconds = time.monotonic() - started
    containment.kill_the_rest(config)
    with ours:
        outcome, detail = verdict(config, stopped, read_messages(ours, process), status)
    return outcome, detail, round(seconds, 4), round(max(peak_mb, usage.ru_maxrss / 1024), 1)


def read_messages(channel, process):
    """The first and the last message from the program's first process: the kernel says who sent which."""
    messages = []
    while True:
        message, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(12))
        if not message:  # no process is left to send one
            return messages
        if ancillary and struct.unpack("iII", ancillary[0][2][:12])[0] == process:
            messages = [*messages[:1], message]


def verdict(config, stopped, messages, status):
    """(outcome, detail). What a program says only lowers it; a pass is the token twice and exit status 0."""
    first, last = (messages[0], messages[-1]) if messages else (b"", b"")
    said, _, detail = last.decode("utf-8", "replace").partition("\0")
    if stopped:
        limits = {"timeout": f"over {config['timeout']:g} s", "memory": f"over {config['memory_mb']} MB"}
        return stopped, limits.get(stopped, "")
    if first.startswith(b"error\0"):
        return "error", detail
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return "timeout", "over the limit of CPU time"
        return "crashed", signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if len(messages) == 2 and first == last and status == 0:
        return "passed", ""
    if said in ("failed", "memory", "exited"):
        return said, detail[:DETAIL_CHARACTERS]
    return "exited", f"exit status {os.waitstatus_to_exitcode(status)} before its end"


def serve(settings, descriptor):
    """A worker: contain itself, say what protects, run a program at a time until the caller hangs up."""
    caller = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the caller ignores
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)
    for name in COMMON_MODULES:
        importlib.import_module(name)
    try:
        config, missing = containment.contain_worker(settings)
    except (OSError, ValueError) as problem:
        return caller.send_bytes(json.dumps([reason(problem), {}, None]).encode())
    os.dup2(1, 2)  # the caller has read stderr until here
    scratch = config["scratch"]
    os.environ["HOME"] = os.environ["TMPDIR"] = scratch
    config |= {"remaining": set(os.listdir(scratch)), "mode": os.stat(scratch).st_mode & 0o7777}
    gc.collect()
    gc.freeze()
    with contextlib.suppress(EOFError, ConnectionError):  # the caller has gone
        caller.send_bytes(json.dumps([None, missing, None if config["process_1"] else scratch]).encode())
        while True:
            reply = run_program(config, caller, json.loads(caller.recv_bytes()))
            caller.send_bytes(json.dumps(reply).encode())
            containment.empty_scratch(config)
    if not config["process_1"]:
        containment.empty_scratch(config)
        os.rmdir(scratch)


# ------------------------------------------------------------------------------------------ the caller's side


class Worker:
    """A worker process and the socket to it. It is no fork: it has nothing of the caller's memory."""

    def __init__(self, settings):
        self.settings = settings
        self.start()

    def start(self):
        """Start the process, wait until it has contained itself; `refused` is None, or why it could not."""
        ours, theirs = socket.socketpair()
        self.pipe, self.scratch = Connection(ours.detach()), None
        arguments = ["--worker", json.dumps(self.settings), str(theirs.fileno())]
        command = [sys.executable, "-s", os.path.abspath(__file__), *arguments]
        options = {"env": environment(), "cwd": "/", "start_new_session": True, "pass_fds": [theirs.fileno()]}
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        try:
            self.process = subprocess.Popen(command, stdin=null, stdout=null, stderr=pipe, **options)
        except OSError as problem:
            raise SandboxError(f"cannot start a worker: {problem}") from problem
        finally:
            theirs.close()
        hello = self.receive(START_SECONDS)
        if hello is None:
            last_line = self.stop().decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise SandboxError(f"cannot start a worker: {last_line or 'it does not answer'}")
        self.refused, self.missing, self.scratch = hello
        if self.refused:
            self.stop()

    def receive(self, seconds):
        """What the worker says; None where it has ended or says nothing in time."""
        with contextlib.suppress(EOFError, OSError):
            if self.pipe.poll(seconds):
                return json.loads(self.pipe.recv_bytes())

    def give(self, code, last_try=False):
        """Start a program (and, after a loss, the worker)."""
        if self.process is None:
            self.start()
            if self.refused:
                raise SandboxError(f"cannot start a worker: {self.refused}")
        self.code, self.last_try = code, last_try
        self.overdue = time.monotonic() + LOAD_FACTOR * self.settings["timeout"] + 30
        with contextlib.suppress(OSError):  # a dead worker is noticed by take
            self.pipe.send_bytes(json.dumps(code).encode())

    def take(self):
        """The Result of the program that was given, or None: it has no verdict, and runs once more."""
        reply = self.receive(max(0.0, self.overdue - time.monotonic()))
        if reply is None:
            self.stop()
            reply = ["error", "its worker ended or did not answer", 0.0, 0.0]
        if reply[0] != "error" or self.last_try:
            return Result(*reply)
        self.give(self.code, last_try=True)

    def stop(self):
        """Hang up, so that the worker ends, and all that it has; else kill it. Returns its stderr."""
        if self.process is None:
            return b""
        self.pipe.close()
        try:
            _, errors = self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, errors = self.process.communicate()
        self.process = None
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)
        return errors


def environment():
    """A worker's environment, fixed so that no verdict depends on the caller's."""
    fixed = {"PATH": f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin"}
    fixed |= {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    fixed |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    fixed |= {"MALLOC_ARENA_MAX": "2", "TMPDIR": tempfile.gettempdir()}
    if "LD_LIBRARY_PATH" in os.environ:  # without it, a Python of a module system or conda may not start
        fixed["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return fixed


def start_workers(settings, count):
    """The workers, all behind the same layers. Raises SandboxError."""
    first = Worker(settings)
    if first.refused and "namespaces" not in settings["without"]:
        settings["without"]["namespaces"] = f"{first.refused} (usual in a container)"
        return start_workers(settings, count)
    if first.refused:
        raise SandboxError(f"cannot start a worker: {first.refused}")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        workers = [first, *pool.map(Worker, [settings] * (count - 1))]
    refused = [worker.refused for worker in workers if worker.refused]
    if refused:
        print(f"sandbox: {len(refused)} of {count} workers do not run: {refused[0]}", file=sys.stderr)
    return [worker for worker in workers if not worker.refused]


def check_limits(workers, timeout, memory_mb):
    if workers < 1 or not 0 < timeout < 86400 or memory_mb < 128:
        wanted = "workers >= 1, 0 < timeout < 86400 seconds, memory >= 128 MB"
        raise SandboxError(f"needs {wanted}; not {workers}, {timeout:g} s, {memory_mb} MB")


def read_on_request(pairs, given, requests):
    """For each byte received, append the next pair, or the exception that ends them, to `given`; answer."""
    with requests, contextlib.suppress(OSError):  # the caller has hung up
        while requests.recv(1):
            try:
                given.append(next(pairs))
            except (
                BaseException
            ) as problem:  # map raises it: in this thread it would be lost, and map wait on
                given.append(problem)
            requests.send(b"!")


class Sandbox:
    """Workers that run programs, each in a new process behind all layers that work here (see `protection`).

    All have the same layers: no verdict depends on the worker. If the first is refused namespaces, all go
    without. If a later one is, it is left out, and a line on stderr says so.
    """

    def __init__(self, workers=None, timeout=10.0, memory_mb=4096, without=()):
        """`without`: layers to leave out, "namespaces" or names of PROGRAM_LAYERS, to test what remains."""
        workers = len(os.sched_getaffinity(0)) if workers is None else workers
        check_limits(workers, timeout, memory_mb)
        settings = {"timeout": timeout, "memory_mb": memory_mb}
        settings["without"] = dict.fromkeys(without, "switched off by the caller")
        self.workers, self.idle = start_workers(settings, workers), queue.SimpleQueue()
        missing = {layer: why for worker in self.workers for layer, why in worker.missing.items()}
        exposed = {"namespaces", "user"}
        if os.geteuid() == 0 and exposed <= missing.keys() and not exposed <= set(without):
            self.close()
            harm = "as root, with neither namespaces nor another user id, a program could harm this machine"
            why = f"({missing['namespaces']}; {missing['user']})"
            raise SandboxError(f"refused: {harm} {why}; run it as a plain user")
        self.protection = containment.describe_protection(missing)
        for worker in self.workers:
            self.idle.put(worker)

    def run(self, code):
        """Run one program: its Result. Safe to call from several threads."""
        [(_, result)] = self.map([(None, code)])
        return result

    def map(self, pairs):
        """Run the programs of an iterable of (key, code): yields (key, Result) as they end.

        Another thread reads the iterable, one pair ahead: a slow iterable holds no result back. An exception
        of the iterable is raised when the programs before it have ended.
        """
        keys, given, asked, end = {}, [], False, None
        reader, theirs = socket.socketpair()
        threading.Thread(target=read_on_request, args=(iter(pairs), given, theirs), daemon=True).start()
        try:
            while keys or end is None:
                if end is None and not asked:
                    reader.send(b"?")
                    asked = True
                free = end is None and not (keys and self.idle.empty())
                if free and given:
                    reader.recv(1)
                    asked, pair = False, given.pop()
                    if isinstance(pair, BaseException):
                        end = pair
                    else:
                        worker = self.idle.get()
                        keys[worker], code = pair
                        worker.give(code)
                    continue
                ready = wait([worker.pipe for worker in keys] + ([reader] if free else []), timeout=1)
                for worker in [w for w in keys if w.pipe in ready or w.overdue < time.monotonic()]:
                    if result := worker.take():
                        self.idle.put(worker)
                        yield keys.pop(worker), result
        finally:
            reader.close()
            for worker in keys:  # left early: end what still runs; the workers start again when needed
                worker.stop()
                self.idle.put(worker)
        if not isinstance(end, StopIteration):
            raise end

    def close(self):
        for worker in self.workers:
            worker.stop()

    def __enter__(self):
        return self

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
        raise SandboxError(f"{path}: {reason(problem)}") from problem


def read_programs(path):
    """((line number, id), code) of each line."""
    with naming(path), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                key, code = (number, row["id"]), row["code"]
                if not isinstance(code, str):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                raise SandboxError(
                    f'{path}, line {number}: not {{"id", "code"}} with a text as code'
                ) from None
            yield key, code


def run_file(path, out, box):
    """Write the result rows in the order of the programs, each as soon as it can be: the exit status."""
    from tqdm import tqdm  # not at the top: every worker is this file, and has no use for it

    counts, waiting, next_line = dict.fromkeys(OUTCOMES, 0), {}, 1
    with naming(path), open(path, "rb") as file:
        total = sum(1 for _ in file)
    shape = {"total": total, "unit": " programs", "smoothing": 0}
    with naming(out), open(out, "w", buffering=1) as results, tqdm(**shape) as bar:
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
    try:
        if options.check:
            return check()
        if not options.programs or not options.out:
            raise SandboxError("needs PROGRAMS.jsonl and --out RESULTS.jsonl, or --check")
        if os.path.exists(options.out) and os.path.samefile(options.programs, options.out):
            raise SandboxError(f"{options.out}: the results would overwrite the programs")
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
