"""Run untrusted Python programs: one sound verdict for each, and no harm done.

    python sandbox.py PROGRAMS.jsonl --out RESULTS.jsonl [--timeout 10] [--memory-mb 4096] [--workers N]
    python sandbox.py --check          the protection that is active here, and known programs with known verdicts

A PROGRAMS row is {"id", "code"}; a RESULTS row is {"id", "outcome", "detail", "seconds", "peak_mb"}, in input order. From Python:

    with Sandbox() as box:
        print(box.protection)                               # property -> by what, or "NOT ACTIVE: why"
        result = box.run("assert 1 + 1 == 2")               # Result(outcome="passed", ...)
        for key, result in box.map(pairs): ...              # any iterable of (key, code); as completed, bounded memory

Outcomes: `passed` (control reached the end of the program, proven), `failed` (an exception), `exited` (it ended before its end was
proven reached: sys.exit, os._exit, a closed descriptor; so also a program whose last statement is unittest.main()), `timeout`, `memory`,
`crashed` (a signal), `error` (the sandbox's own fault, tried twice: no verdict on the program).

    caller --socket--> worker ("zygote": a small clean interpreter, common modules loaded) --fork--> one program at a time

Covered, each layer where the kernel and the rights allow it (--check says which):
  * limits on CPU time, address space, file size, open files, processes; the memory of the whole tree is watched as well;
  * its own root of read-only system folders and this Python, with a private /tmp that is emptied after each program;
  * its own process, network (loopback only) and IPC namespaces; every process of the program is killed, daemons included;
  * an unprivileged user id of its own (as root), no capabilities, landlock, a seccomp list of calls that only attacks need;
  * a fixed environment, no inherited descriptors, empty stdin, output to /dev/null (so it can neither fill a disk nor block);
  * time spent waiting for a core that others use does not count against the time limit (up to 4x the limit).

Not covered: a program written against this very file can forge its own pass (it shares an interpreter with the code that reports it),
and any program can skip its own asserts; holes in the kernel (use a virtual machine); processor side channels. Without namespaces
(usual in containers): sockets other than local ones, multiprocessing.Manager and writing to a literal /tmp fail, files left in
/dev/shm stay, disk use is limited per file only, and a plain user's files can still be chmod-ed or stat-ed, its processes listed.
As root, with neither namespaces nor another user id to run programs under, it refuses. Linux, Python 3.11 or later; the seccomp list
knows x86-64 only. The command exits with 0 when every program has a verdict, 1 when some ended as `error` (or a check is wrong), 2 for
bad input or settings, 130 when interrupted.
"""

import argparse
import builtins
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import gc
import importlib
import json
import multiprocessing.connection
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
import time
import types

from containment import OPEN_FILES, PROGRAM_LAYERS, contain_worker, describe_protection

COMMON_MODULES = """abc array bisect builtins calendar collections copy csv datetime decimal enum fractions hashlib heapq inspect io
itertools functools operator pprint re statistics string textwrap threading traceback typing uuid""".split()
OUTCOMES = ("passed", "failed", "exited", "timeout", "memory", "crashed", "error")

DETAIL_CHARACTERS = 300
TICK_SECONDS = 0.2  # how often a running program's memory and waiting time are read
LOAD_FACTOR = 4  # a program that waits for a core may take this many times the limit
START_SECONDS = 60


class SandboxError(Exception):
    """The sandbox cannot do its work; the message is one line for the user."""


class WorkerLost(SandboxError):
    """A worker died or hung; its program has no verdict yet."""


@dataclasses.dataclass
class Result:
    outcome: str
    detail: str
    seconds: float
    peak_mb: float


# ---------------------------------------------------------------------------------------------------------------------
# The program's side: what happens in the forked process, from the last layer to the proof that the end was reached.

CHANNEL = OPEN_FILES - 1  # the descriptor on which a program's process reports


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
            PROGRAM_LAYERS[layer](config)
        os.closerange(3, CHANNEL)
        main = types.ModuleType("__main__")
        main.__file__, main.__builtins__ = path, builtins
        sys.modules["__main__"], sys.argv = main, [path]
        sys.path.insert(0, work)
        namespace = main.__dict__
    except BaseException as problem:  # nothing may leave this function: behind it is the worker's own loop, in a copy
        report("error", f"{type(problem).__name__}: {problem}")
    try:
        # The token lives only on this frame's value stack, where no frame, local variable or gc call shows it: the arguments are
        # evaluated from left to right, and prove_end gets it only when exec has returned. Hence one expression.
        prove_end(announce_token(), own_id, exec(compile(source, path, "exec", dont_inherit=True), namespace))
    except BaseException as problem:  # whatever a program raises, SystemExit and KeyboardInterrupt included, is its verdict
        if os.getpid() != own_id:  # a process that the program forked: it ends as any Python does
            leave_like_python(problem)
        kind = "memory" if isinstance(problem, MemoryError) else "exited" if isinstance(problem, SystemExit) else "failed"
        report(kind, describe(problem))


def announce_token():
    token = os.urandom(16)
    os.write(CHANNEL, token)
    return token


def prove_end(token, own_id, _):
    if os.getpid() != own_id:
        leave_like_python(SystemExit(0))
    os.write(CHANNEL, token)
    os._exit(0)


def report(outcome, detail):
    try:
        os.write(CHANNEL, f"{outcome}\0{detail[:DETAIL_CHARACTERS]}".encode("utf-8", "replace"))
    finally:
        os._exit(1)


def describe(problem):
    try:
        text = str(problem)
    except BaseException as second:  # __str__ is the program's own code
        text = f"<{type(second).__name__} in its __str__>"
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


def leave_like_python(problem):
    """End a forked process of the program with the status, the atexit calls and the flushed files of an ordinary Python process."""
    status = 1
    if isinstance(problem, SystemExit):
        status = problem.code if isinstance(problem.code, int) else int(problem.code is not None)
    ctypes.pythonapi.Py_Exit(status)


# ---------------------------------------------------------------------------------------------------------------------
# The worker: forks a process per program, watches it, kills what it leaves, empties the scratch folder.


def descendants(process="self"):
    """Process ids of all children, their children and so on."""
    found = []
    try:
        for task in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{task}/children") as file:
                for child in file.read().split():
                    found += [int(child), *descendants(child)]
    except OSError:
        pass  # ended meanwhile
    return found


def tree_usage():
    """(resident MB of all descendants, {task: (nanoseconds on a core, nanoseconds waiting for one)})"""
    resident, tasks = 0, {}
    for process in descendants():
        try:
            with open(f"/proc/{process}/statm") as file:
                _, pages, shared, *_ = file.read().split()
            resident += int(pages) - int(shared)
            for task in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{task}/schedstat") as file:
                    ran, waited, _ = file.read().split()
                tasks[task] = int(ran), int(waited)
        except OSError:
            pass  # ended meanwhile
    return resident * resource.getpagesize() / (1 << 20), tasks


def growth(before, tasks):
    """(seconds that the tasks ran, all together; the longest that one of them waited) since `before`."""
    steps = [(ran - before.get(task, (0, 0))[0], waited - before.get(task, (0, 0))[1]) for task, (ran, waited) in tasks.items()]
    return sum(ran for ran, _ in steps) / 1e9, max((waited for _, waited in steps), default=0) / 1e9


def watch(config, process, pipe):
    """Wait until the program's process ends or has to: (why it was stopped or "", most MB seen)."""
    ended = os.pidfd_open(process)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(pipe, select.POLLIN)
    before, ran, waited, lost, peak_mb, stopped = {}, 0.0, 0.0, 0.0, 0.0, ""
    started = time.monotonic()
    while not stopped:
        left = started + config["timeout"] + lost - time.monotonic()
        ready = [descriptor for descriptor, _ in poll.poll(1000 * max(0.001, min(left, TICK_SECONDS)))]
        if ready:
            stopped = "" if ended in ready else "abandoned"  # the caller never speaks meanwhile: it has gone
            break
        seconds = time.monotonic() - started  # before the reading, so that no wait after it is held against the program
        resident, tasks = tree_usage()
        ran_now, waited_now = growth(before, tasks)
        before, ran, waited, peak_mb = tasks, ran + ran_now, waited + waited_now, max(peak_mb, resident)
        lost = max(0.0, min(waited, seconds - ran / config["cores"]))  # waited, but not because it kept all cores busy itself
        if resident > config["memory_mb"]:
            stopped = "memory"
        elif seconds > min(config["timeout"] + lost, LOAD_FACTOR * config["timeout"]):
            stopped = "timeout"
    os.close(ended)
    return stopped, peak_mb


def read_messages(channel, process):
    """What the program's first process said, says the kernel (others hold the channel too); only the first and the last count."""
    messages = []
    while True:
        message, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(12))
        if not message:
            return messages
        if ancillary and struct.unpack("iII", ancillary[0][2][:12])[0] == process:
            messages = [*messages[:1], message]


def run_program(config, pipe, code):
    """One program from its text to its verdict; its processes are gone when this returns."""
    folder = os.path.join(config["scratch"], "program")
    work = os.path.join(folder, "work")
    os.mkdir(folder, 0o755)
    os.mkdir(work, 0o755)
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
    stopped, peak_mb = watch(config, process, pipe)
    with contextlib.suppress(ProcessLookupError):  # it ended before it had a group of its own
        os.killpg(process, signal.SIGKILL)
    os.kill(process, signal.SIGKILL)
    _, status, usage = os.wait4(process, 0)
    seconds = time.monotonic() - started
    kill_the_rest(config)
    messages = read_messages(ours, process)  # with no process left, they have an end
    ours.close()
    if stopped == "abandoned":
        raise EOFError
    outcome, detail = verdict(config, stopped, messages, status)
    peak_mb = max(peak_mb, usage.ru_maxrss / 1024)
    return {"outcome": outcome, "detail": detail, "seconds": round(seconds, 4), "peak_mb": round(peak_mb, 1)}


def verdict(config, stopped, messages, status):
    """(outcome, detail). What a program says of itself can only lower it: passed needs the token, twice, and a clean exit."""
    first, last = (messages[0], messages[-1]) if messages else (b"", b"")
    said, _, detail = last.decode("utf-8", "replace").partition("\0")
    if stopped:
        return stopped, {"timeout": f"over {config['timeout']:g} s", "memory": f"over {config['memory_mb']} MB"}[stopped]
    if first.startswith(b"error\0"):
        return "error", detail
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return "timeout", "over the limit of CPU time"
        return "crashed", signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if len(messages) == 2 and first == last and status == 0:
        return "passed", ""
    if len(messages) == 2 and said in ("failed", "memory", "exited"):
        return said, detail[:DETAIL_CHARACTERS]
    return "exited", f"exit status {os.waitstatus_to_exitcode(status)} before its end"


def kill_the_rest(config):
    """End and reap everything that the program started; what it orphaned has become this process's child."""
    try:
        while True:
            process, _ = os.waitpid(-1, os.WNOHANG)
            if process == 0:  # something lives: all but this process at one stroke, or what is seen until nothing is
                for process in [-1] if config["process_1"] else descendants():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                time.sleep(0.001)
    except ChildProcessError:
        pass  # nothing is left: in the usual case this took one system call


def empty_scratch(config):
    """Nothing that a program wrote outlives it. Never follows a link, and goes as deep as the program went."""
    scratch, folder = config["scratch"], os.path.join(config["scratch"], "program")
    os.chmod(scratch, config["mode"])
    try:
        os.unlink(os.path.join(folder, "main.py"))
        os.rmdir(os.path.join(folder, "work"))
        os.rmdir(folder)
    except OSError:
        pass  # it left files: below
    if config["remaining"] != set(os.listdir(scratch)):
        subprocess.run(["find", scratch, "-xdev", "-type", "d", "!", "-perm", "-700", "-exec", "chmod", "u+rwx", "{}", ";"])
        left = [os.path.join(scratch, name) for name in os.listdir(scratch) if name not in config["remaining"]]
        subprocess.run(["xargs", "-0", "rm", "-rf", "--"], input=os.fsencode("\0".join(left)), check=True)


def serve(settings, descriptor):
    """A worker's life: contain itself, say what protects, then a program at a time until the caller hangs up."""
    pipe = multiprocessing.connection.Connection(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the caller ignores
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)
    for name in COMMON_MODULES:
        importlib.import_module(name)
    try:
        config, missing = contain_worker(settings)
    except (OSError, ValueError) as problem:
        return pipe.send_bytes(json.dumps({"refused": getattr(problem, "strerror", None) or str(problem)}).encode())
    pipe.send_bytes(json.dumps({"missing": missing, "scratch": None if config["process_1"] else config["scratch"]}).encode())
    scratch = config["scratch"]
    os.environ["HOME"] = os.environ["TMPDIR"] = scratch
    config |= {"remaining": set(os.listdir(scratch)), "mode": os.stat(scratch).st_mode & 0o7777}
    gc.collect()
    gc.freeze()
    try:
        while True:
            reply = run_program(config, pipe, json.loads(pipe.recv_bytes()))
            pipe.send_bytes(json.dumps(reply).encode())
            empty_scratch(config)
    except (EOFError, ConnectionError):
        pass  # the caller has gone
    if not config["process_1"]:
        empty_scratch(config)
        os.rmdir(config["scratch"])


# ---------------------------------------------------------------------------------------------------------------------
# The caller's side.


class Worker:
    """A worker process and the socket to it. Started afresh (exec, not fork): nothing of the caller's memory is in it."""

    def __init__(self, settings):
        self.settings, self.process = settings, None
        self.start()

    def start(self):
        ours, theirs = socket.socketpair()
        environment = {"PATH": f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8",
                       "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1",
                       "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-s", os.path.abspath(__file__), "--worker", json.dumps(self.settings), str(theirs.fileno())]
        self.pipe, self.scratch = multiprocessing.connection.Connection(ours.detach()), None
        try:
            self.process = subprocess.Popen(command, env=environment, cwd="/", pass_fds=[theirs.fileno()], start_new_session=True,
                                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError as problem:
            raise SandboxError(f"cannot start a worker: {problem}") from problem
        finally:
            theirs.close()
        hello = self.receive(START_SECONDS)
        self.refused, self.missing, self.scratch = hello.get("refused"), hello.get("missing", {}), hello.get("scratch")

    def receive(self, seconds):
        try:
            if not self.pipe.poll(seconds):
                raise WorkerLost(f"a worker did not answer in {seconds:g} s")
            return json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError) as problem:
            raise WorkerLost("a worker ended unexpectedly") from problem

    def give(self, code):
        """Start a program (and, after a loss, the worker)."""
        self.code, self.overdue = code, time.monotonic() + LOAD_FACTOR * self.settings["timeout"] + 30
        if self.process is None:
            self.start()
        with contextlib.suppress(OSError):  # a dead worker is noticed by take
            self.pipe.send_bytes(json.dumps(code).encode())

    def take(self):
        """The result of the program that was given. A worker that is lost is replaced, and the program run once more."""
        for last_try in (False, True):
            try:
                reply = self.receive(max(0.0, self.overdue - time.monotonic()))
            except WorkerLost as lost:
                reply = {"outcome": "error", "detail": str(lost), "seconds": 0.0, "peak_mb": 0.0}
                self.stop()
            if reply["outcome"] != "error" or last_try:
                return Result(**reply)
            self.give(self.code)

    def stop(self):
        """Hang up: it then kills and removes what it has. If it does not end, kill it."""
        if self.process is None:
            return
        self.pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)


def check_limits(workers, timeout, memory_mb):
    if workers < 1 or not 0 < timeout < 86400 or memory_mb < 128:
        raise SandboxError(f"needs workers >= 1 (not {workers}), 0 < timeout < 86400 seconds (not {timeout:g}) "
                           f"and memory >= 128 MB (not {memory_mb})")


class Sandbox:
    """Workers that run programs, each program in a fresh process behind all the layers that work here (see `protection`)."""

    def __init__(self, workers=None, timeout=10.0, memory_mb=4096, without=()):
        """`without`: layers to leave out ("namespaces" or names of PROGRAM_LAYERS), to measure or test what remains."""
        workers = len(os.sched_getaffinity(0)) if workers is None else workers
        check_limits(workers, timeout, memory_mb)
        settings = {"timeout": timeout, "memory_mb": memory_mb, "folder": tempfile.gettempdir(),
                    "without": dict.fromkeys(without, "switched off by the caller")}
        first = Worker(settings)
        if first.refused:  # never half-way: a fresh worker without any namespace
            first.stop()
            settings["without"]["namespaces"] = f"{first.refused} (usual in a container)"
            first = Worker(settings)
        self.workers, self.idle = [first], queue.SimpleQueue()
        with contextlib.ExitStack() as unless_complete:
            unless_complete.callback(self.close)
            if first.refused:
                raise SandboxError(f"cannot start a worker: {first.refused}")
            if os.geteuid() == 0 and {"namespaces", "user"} <= first.missing.keys() and not {"namespaces", "user"} <= set(without):
                raise SandboxError("refused: as root, with neither namespaces nor another user id, a program could harm this machine "
                                   f"({first.missing['namespaces']}; {first.missing['user']}); run it as a plain user")
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                started = [pool.submit(lambda: self.workers.append(Worker(settings))) for _ in range(workers - 1)]
            for worker in started:
                worker.result()
            unless_complete.pop_all()
        self.protection = describe_protection(first.missing)
        for worker in self.workers:
            self.idle.put(worker)

    def run(self, code):
        """Run one program: its Result. Safe to call from several threads."""
        worker = self.idle.get()
        try:
            worker.give(code)
            return worker.take()
        finally:
            self.idle.put(worker)

    def map(self, pairs):
        """Run the programs of an iterable of (key, code): yields (key, Result) as they end; takes no more than are running."""
        pairs, keys, broken = iter(pairs), {}, None
        try:
            while True:
                while pairs and (not keys or not self.idle.empty()):
                    try:
                        key, code = next(pairs)
                    except StopIteration:
                        pairs = None
                    except Exception as problem:  # of the iterable: what it gave before is finished first
                        pairs, broken = None, problem
                    else:
                        worker = self.idle.get()
                        keys[worker] = key
                        worker.give(code)
                if not keys:
                    break
                ready = multiprocessing.connection.wait([worker.pipe for worker in keys], timeout=1)
                for worker in [w for w in keys if w.pipe in ready or w.overdue < time.monotonic()]:
                    result = worker.take()
                    self.idle.put(worker)
                    yield keys.pop(worker), result
        finally:
            for worker in keys:  # left early: what still runs is ended, the worker starts again when it is needed
                worker.stop()
                self.idle.put(worker)
        if broken:
            raise broken

    def close(self):
        for worker in self.workers:
            worker.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# ---------------------------------------------------------------------------------------------------------------------
# Command line.

KNOWN_PROGRAMS = [
    ("passed", "assert sum(range(5)) == 10"),
    ("passed", "import subprocess, sys\nassert subprocess.run([sys.executable, '-c', 'print(42)'], capture_output=True).stdout == b'42\\n'"),
    ("passed", "import multiprocessing\nwith multiprocessing.Pool(2) as pool:\n    assert pool.map(abs, [-1, 2]) == [1, 2]"),
    ("failed", "assert 1 + 1 == 3"),
    ("failed", "def f(:"),
    ("failed", "open('/etc/sandbox-was-here', 'w')"),
    ("exited", "import sys\nsys.exit(0)\nassert False"),
    ("exited", "import os\nos._exit(0)"),
    ("exited", "import os\nif os.fork():\n    os._exit(0)"),
    ("timeout", "while True:\n    pass"),
    ("memory", "x = b'x' * (1 << 40)"),
    ("crashed", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"),
]


def check():
    """Print what protects here and whether the known programs get their verdicts; True if all do."""
    right = 0
    with Sandbox(timeout=2, memory_mb=1024) as box:
        for name, line in box.protection.items():
            print(f"{name + ':':14}{line}")
        for (expected, code), result in box.map((known, known[1]) for known in KNOWN_PROGRAMS):
            right += result.outcome == expected
            if result.outcome != expected:
                print(f"WRONG: {result.outcome} ({result.detail}), not {expected}: {code!r}")
    print(f"known programs: {right} of {len(KNOWN_PROGRAMS)} verdicts right")
    return right == len(KNOWN_PROGRAMS)


def read_programs(path):
    """((line number, id), code) of each line."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                identity, code = row["id"], row["code"]
                if not isinstance(code, str):
                    raise TypeError
            except (ValueError, KeyError, TypeError) as problem:
                raise SandboxError(f'{path}, line {number}: not a JSON object with "id" and a text "code"') from problem
            yield (number, identity), code


def run_file(path, out, box):
    """A result row for each program row, in the same order, on disk as soon as all before it are; counts the outcomes."""
    from tqdm import tqdm  # not at the top: every worker is this file, and has no use for it

    counts, waiting, next_line = dict.fromkeys(OUTCOMES, 0), {}, 1
    with open(path, "rb") as file:
        total = sum(1 for _ in file)
    with open(out, "w", buffering=1) as results, tqdm(total=total, unit=" programs", smoothing=0) as bar:
        for (number, identity), result in box.map(read_programs(path)):
            waiting[number] = {"id": identity, **dataclasses.asdict(result)}
            while next_line in waiting:
                results.write(json.dumps(waiting.pop(next_line)) + "\n")
                next_line += 1
            counts[result.outcome] += 1
            bar.set_postfix_str(f"passed {counts['passed'] / sum(counts.values()):.1%}", refresh=False)
            bar.update()
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    parser.add_argument("programs", nargs="?", metavar="PROGRAMS.jsonl")
    parser.add_argument("--out", metavar="RESULTS.jsonl")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for each program (default 10)")
    parser.add_argument("--memory-mb", type=int, default=4096, help="address space of each process, memory of all together (default 4096)")
    parser.add_argument("--workers", type=int, help="programs at the same time (default: one per core)")
    parser.add_argument("--check", action="store_true", help="say what protects here and run a few known programs")
    options = parser.parse_args()
    try:
        if options.check:
            return 0 if check() else 1
        if not options.programs or not options.out:
            raise SandboxError("needs PROGRAMS.jsonl and --out RESULTS.jsonl, or --check")
        if os.path.exists(options.out) and os.path.samefile(options.programs, options.out):
            raise SandboxError(f"{options.out}: the results would overwrite the programs")
        with Sandbox(options.workers, options.timeout, options.memory_mb) as box:
            counts = run_file(options.programs, options.out, box)
    except (SandboxError, OSError) as problem:
        print(f"sandbox: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sandbox: interrupted", file=sys.stderr)
        return 130
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    return 1 if counts["error"] else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        del sys.path[0]  # this folder is not for the programs
        serve(json.loads(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main())
