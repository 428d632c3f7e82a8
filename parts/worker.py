"""A worker of the sandbox: a small process that contains itself, then forks a process for each program."""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from multiprocessing.connection import Connection

from parts import containment
from parts.program import be_program

COMMON_MODULES = """abc array bisect builtins calendar collections copy csv datetime decimal enum fractions
hashlib heapq inspect io itertools functools operator pprint re statistics string textwrap threading traceback
typing uuid""".split()  # loaded once, before a worker forks
TICK_SECONDS = 0.2  # how often a running program's memory and waiting time are read
LOAD_FACTOR = 4  # a program that waits for a core may take this many times the limit


def serve(settings, descriptor):
    """Contain this process, report what is missing, run one program at a time until the caller hangs up.

    `descriptor` is a socket to the caller; messages are JSON. The first is [None, or why this process could
    not contain itself; {layer: why it is missing}; None, or its folder, which a kill would leave]. Then for
    each program's text that comes, how the program ended: see run_program.
    """
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
        return caller.send_bytes(json.dumps([containment.reason(problem), {}, None]).encode())
    for name in [name for name in sys.modules if name.partition(".")[0] == "parts"]:
        del sys.modules[name]  # not for programs, which may have modules of these names
    os.dup2(1, 2)  # until here, stderr was for the caller
    scratch = config["scratch"]
    os.environ["HOME"] = os.environ["TMPDIR"] = scratch
    config |= {"remaining": set(os.listdir(scratch)), "mode": os.stat(scratch).st_mode & 0o7777}
    gc.collect()
    gc.freeze()
    with contextlib.suppress(EOFError, ConnectionError):  # the caller has gone
        caller.send_bytes(json.dumps([None, missing, None if config["process_1"] else scratch]).encode())
        while True:
            ending = run_program(config, caller, json.loads(caller.recv_bytes()))
            caller.send_bytes(json.dumps(ending).encode())
            containment.empty_scratch(config)
    if not config["process_1"]:
        containment.empty_scratch(config)
        os.rmdir(scratch)


def run_program(config, caller, code):
    """Run one program, end all its processes, and tell how it ended.

    `stopped` is "", "timeout" or "memory"; `messages` are the first and the last of the program's process, as
    Latin-1; `status` is that of os.wait4.
    """
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
        messages = [message.decode("latin-1") for message in read_messages(ours, process)]
    return {
        "stopped": stopped,
        "messages": messages,
        "status": status,
        "seconds": round(seconds, 4),
        "peak_mb": round(max(peak_mb, usage.ru_maxrss / 1024), 1),
    }


def read_messages(channel, process):
    """The first and the last message from the program's first process: the kernel says who sent which."""
    messages = []
    while True:
        message, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(12))
        if not message:  # no process is left to send one
            return messages
        if ancillary and struct.unpack("iII", ancillary[0][2][:12])[0] == process:
            messages = [*messages[:1], message]


def watch(config, process, caller):
    """Wait until the program's process ends or must end: (why it was stopped or "", most MB seen)."""
    ended = os.pidfd_open(process)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(caller, select.POLLIN)
    usage, lost, stopped = Usage(), 0.0, ""
    started = time.monotonic()
    while not stopped:
        left = started + config["timeout"] + lost - time.monotonic()
        ready = [descriptor for descriptor, _ in poll.poll(1000 * max(0.001, min(left, TICK_SECONDS)))]
        if ready:
            stopped = "" if ended in ready else "abandoned"  # it never writes meanwhile: it is gone
            break
        seconds = time.monotonic() - started  # before the reading: no wait after it counts
        usage.read()
        # Time lost to others; none where the program itself kept all cores busy.
        lost = max(0.0, min(usage.waited, seconds - usage.ran / config["cores"]))
        if usage.resident_mb > config["memory_mb"]:
            stopped = "memory"
        elif seconds > min(config["timeout"] + lost, LOAD_FACTOR * config["timeout"]):
            stopped = "timeout"
    os.close(ended)
    return stopped, usage.peak_mb


class Usage:
    """What the program's processes have used, by the readings so far."""

    def __init__(self):
        self.tasks = {}  # task: (seconds on a core, seconds waiting for one) at the last reading
        self.ran = 0.0  # seconds on a core, of all tasks
        self.waited = 0.0  # seconds waiting for one, of the task that waited longest between two readings
        self.resident_mb = self.peak_mb = 0.0

    def read(self):
        pages, tasks, waited = 0, {}, 0.0
        for process in containment.descendants():
            with contextlib.suppress(OSError):  # ended meanwhile
                with open(f"/proc/{process}/statm") as file:
                    _, resident, shared, *_ = map(int, file.read().split())
                pages += resident - shared
                for task in os.listdir(f"/proc/{process}/task"):
                    with open(f"/proc/{process}/task/{task}/schedstat") as file:
                        running, waiting, _ = file.read().split()
                    tasks[task] = int(running) / 1e9, int(waiting) / 1e9
                    ran_before, waited_before = self.tasks.get(task, (0, 0))
                    self.ran += tasks[task][0] - ran_before
                    waited = max(waited, tasks[task][1] - waited_before)
        self.tasks, self.waited = tasks, self.waited + waited
        self.resident_mb = pages * resource.getpagesize() / (1 << 20)
        self.peak_mb = max(self.peak_mb, self.resident_mb)
