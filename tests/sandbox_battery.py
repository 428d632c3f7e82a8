"""Hostile and legitimate programs for the sandbox, and a run of them all that looks for wrong verdicts and for traces.

    unshare --pid --fork --kill-child --mount-proc python tests/sandbox_battery.py [--without namespaces,landlock] [--timeout 2]

As root, start it only like this (its own PID namespace): a hole in the containment then ends nothing but the battery. test_sandbox.py
does so. Prints a JSON list of what went wrong; [] is right. After each program a witness program runs in the same worker and asserts
that it finds a fresh world.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import socket
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from sandbox import LOAD_FACTOR, Sandbox

# Each program tries to be called passed without reaching its end: name -> (right outcomes, program).
CHEATS = {
    "early sys.exit": ("exited", "import sys\nsys.exit(0)\nassert False"),
    "early quit": ("exited failed", "quit()\nassert False"),
    "raise SystemExit": ("exited", "raise SystemExit"),
    "os._exit": ("exited", "import os\nos._exit(0)"),
    "os.abort": ("crashed", "import os\nos.abort()"),
    "kills itself": ("crashed", "import os\nos.kill(os.getpid(), 9)"),
    "kills itself with a real-time signal": ("crashed", "import os\nos.kill(os.getpid(), 40)"),
    "kills its group": ("crashed", "import os\nos.killpg(0, 15)"),
    "becomes true": ("exited", "import os\nos.execvp('true', ['true'])"),
    "becomes a Python without asserts": ("exited", "import os, sys\nif __debug__:\n    os.execv(sys.executable, [sys.executable, '-O', __file__])\nassert False"),
    "parent leaves, child goes on": ("exited", "import os\nif os.fork():\n    os._exit(0)"),
    "parent fails, child goes on": ("failed", "import os\nif os.fork():\n    assert False"),
    "daemon goes on": ("exited", "import os\nfor _ in 'ab':\n    if os.fork():\n        os._exit(0)\n    os.setsid()"),
    "child goes on with a forged process id": ("exited", """
import os, sys
mine = os.getpid()
if os.fork():
    os.wait()
    os._exit(0)
os.getpid = lambda: mine
sys._getframe(1).f_globals['os'].getpid = lambda: mine"""),
    "atexit": ("failed", "import atexit, os\natexit.register(os._exit, 0)\nassert False"),
    "excepthook": ("failed", "import os, sys\nsys.excepthook = lambda *_: os._exit(0)\nassert False"),
    "unraisablehook": ("failed", "import os, sys\nsys.unraisablehook = lambda *_: os._exit(0)\nassert False"),
    "finally": ("exited", "import os\ntry:\n    assert False\nfinally:\n    os._exit(0)"),
    "thread exits": ("exited", "import os, threading, time\nthreading.Timer(0.05, os._exit, [0]).start()\ntime.sleep(1)\nassert False"),
    "alarm exits": ("exited", "import os, signal, time\nsignal.signal(signal.SIGALRM, lambda *_: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(1)\nassert False"),
    "the message exits": ("exited", "import os\nclass E(Exception):\n    def __str__(self):\n        os._exit(0)\nraise E"),
    "the message raises": ("failed", "class E(Exception):\n    def __str__(self):\n        raise SystemExit(0)\nraise E"),
    "the name of the type exits": ("exited failed", """
import os
class Meta(type):
    @property
    def __name__(cls):
        os._exit(0)
class E(Exception, metaclass=Meta): pass
raise E"""),
    "patched os": ("exited failed", "import os\nreal = os._exit\nos._exit = lambda status: real(0)\nos.write = lambda *_: 0\nassert False"),
    "patched builtins": ("failed memory exited", "import builtins\nbuiltins.exec = builtins.compile = builtins.isinstance = lambda *_, **__: True\nassert False"),
    "patched runner": ("exited failed", """
import os, sys
for name, value in list(sys._getframe(1).f_globals.items()):
    if callable(value):
        sys._getframe(1).f_globals[name] = lambda *_: os._exit(0)
assert False"""),
    "calls the runner's functions": ("exited failed", """
import os, sys
here = sys._getframe(1)
for name, value in list(here.f_globals.items()):
    if callable(value) and 'prove' in name:
        value(b'0' * 16, os.getpid(), None)
os._exit(0)"""),
    "announces its own token": ("exited failed", """
import os, sys
here = sys._getframe(1).f_globals
os.write(here['CHANNEL'], b'1' * 16)
os.write(here['CHANNEL'], b'1' * 16)
here['prove_end'](here['announce_token'](), os.getpid(), None)"""),
    "looks for the token": ("exited", """
import gc, os, sys
found, frame = set(), sys._getframe()
def look(thing, depth=3):
    if isinstance(thing, bytes) and len(thing) == 16:
        found.add(thing)
    elif depth:
        for part in gc.get_referents(thing):
            look(part, depth - 1)
gc.unfreeze()
while frame:
    look(frame)
    for value in list(frame.f_locals.values()):
        look(value, 1)
    frame = frame.f_back
for thing in gc.get_objects():
    look(thing, 1)
for token in found:
    for fd in range(256):
        try: os.write(fd, token)
        except OSError: pass
os._exit(0)"""),
    "echoes its descriptors": ("exited", """
import fcntl, os
for fd in range(3, 256):
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
        os.write(fd, os.read(fd, 4096))
    except OSError: pass
os._exit(0)"""),
    "writes verdicts everywhere": ("exited", """
import json, os
for text in [b'passed', b'passed\\0', b'error\\0x', json.dumps({'outcome': 'passed'}).encode(), bytes(16)]:
    for fd in range(1, 256):
        try: os.write(fd, text)
        except OSError: pass
print('passed')
os._exit(0)"""),
    "claims a fault of the sandbox": ("exited", "import os\nos.write(255, b'error\\0disk')\nos._exit(1)"),
    "child floods the channel": ("failed exited timeout", """
import os, time
if not os.fork():
    end = time.time() + 5
    while time.time() < end:
        try: os.write(255, b'passed' * 100)
        except OSError: break
    os._exit(0)
assert False"""),
    "closes all descriptors": ("exited", "import os\nos.closerange(0, 256)"),
    "jumps in the runner": ("exited failed timeout", """
import sys
frame = sys._getframe(1)
def trace(frame, event, argument):
    try: frame.f_lineno = frame.f_lineno - 1
    except ValueError: pass
    return trace
sys.settrace(trace)
frame.f_trace = trace
assert False"""),
    "raises through the trace": ("failed exited", "import os, sys\nsys.setprofile(lambda frame, event, argument: event == 'c_call' and os._exit(0))\nassert len('') == 1"),
    "generator and destructor exit": ("failed exited", "import os\nclass D:\n    def __del__(self):\n        os._exit(0)\nd = D()\nassert False"),
    "replaced __main__": ("failed", "import sys\nsys.modules['__main__'] = None\nassert False"),
    "recursion in C": ("crashed failed", "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())"),
    "null pointer": ("crashed", "import ctypes\nctypes.string_at(0)"),
    "corrupts its interpreter": ("crashed", "import ctypes\nfor i in range(10 ** 6):\n    ctypes.memset(id(None) + i, 0, 64)"),
    "no code at all but a null": ("failed", "x = 1\0"),
    "nested too deep": ("failed memory crashed", "(" * 50000),
    "reads stdin": ("failed", "input()"),
    "kills its parent": ("exited", "import os\ntry:\n    os.kill(os.getppid(), 9)\nfinally:\n    os._exit(0)"),
    "stops its parent": ("exited", "import os\ntry:\n    os.kill(os.getppid(), 19)\nfinally:\n    os._exit(0)"),
}

# Programs that use up what there is.
BOMBS = {
    "endless loop": ("timeout", "while True: pass"),
    "sleeps": ("timeout", "import time\ntime.sleep(1000)"),
    "stops itself": ("timeout", "import os\nos.kill(os.getpid(), 19)"),
    "ignores signals": ("timeout", "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass"),
    "blocks signals": ("timeout", "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass"),
    "long C call": ("timeout", "x = 7 ** (10 ** 9)"),
    "bad regular expression": ("timeout", "import re\nre.match('(a*)*b', 'a' * 40)"),
    "waits for a child": ("timeout", "import subprocess\nsubprocess.run(['sleep', '1000'])"),
    "catches everything": ("timeout", "while True:\n    try:\n        while True: pass\n    except BaseException: pass"),
    "numpy's own MemoryError": ("memory", "try:\n    import numpy\nexcept ImportError:\n    raise MemoryError\nnumpy.zeros(1 << 45)"),
    "huge bytes": ("memory", "x = bytes(1 << 40)"),
    "growing list": ("memory", "x = []\nwhile True: x.append(bytes(1 << 20))"),
    "memory of many processes": ("memory timeout", "import os, time\nfor _ in range(16):\n    if not os.fork():\n        x = b'x' * (200 << 20)\n        time.sleep(30)\n        os._exit(0)\ntime.sleep(30)"),
    "fork bomb": ("timeout memory failed", "import os\nwhile True: os.fork()"),
    "fork bomb that survives refusal": ("timeout memory", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"),
    "thread bomb": ("failed memory timeout", "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=[100]).start()"),
    "descriptor bomb": ("failed", "import os\nwhile True: os.dup(0)"),
    "one huge file": ("failed", "with open('x', 'wb') as f:\n    while True: f.write(bytes(1 << 20))"),
    "sparse huge file": ("failed", "with open('x', 'wb') as f: f.truncate(1 << 50)"),
    "many files": ("failed timeout passed", "for i in range(30000): open(str(i), 'w').close()"),
    "deep folders": ("passed failed timeout", "import os\nfor i in range(3000):\n    os.mkdir('d')\n    os.chdir('d')"),
    "endless output": ("timeout", "import sys\nwhile True:\n    print('x' * 10000)\n    sys.stderr.write('y' * 10000)"),
    "daemons": ("passed", """
import os, time
for _ in range(20):
    if not os.fork():
        os.setsid()
        if os.fork(): os._exit(0)
        time.sleep(600)
        os._exit(0)"""),
    "daemons that restart each other": ("passed", """
import os, time
if not os.fork():
    os.setsid()
    end = time.time() + 30
    while time.time() < end:
        if os.fork(): os._exit(0)"""),
}

# Each program tries to do harm and asserts that it was refused, so `passed` is right: name -> program.
HARM = {
    "writes outside": "for path in ['/etc/x', '/usr/x', '/x', '/proc/sys/kernel/hostname', '@FOLDER@/new', '@SECRET@', '@RUNNER@']:\n    refused(open, path, 'a')",
    "writes into packages": "import json, sys\nrefused(open, json.__file__, 'a')\nfor folder in sys.path[1:]:\n    refused(open, folder + '/evil.pth', 'w')",
    "reads a home folder": "refused(open, '@SECRET@')\nrefused(os.listdir, '@FOLDER@')\nassert not os.path.expanduser('~').startswith('@FOLDER@')",
    "links to a secret": "refused(os.link, '@SECRET@', 'x')\nos.symlink('@SECRET@', 'y')\nrefused(open, 'y')",
    "reads the environment": "assert 'SECRET_IN_ENVIRONMENT' not in os.environ, os.environ\nassert set(os.environ) <= {'PATH', 'LANG', 'LC_ALL', 'HOME', 'TMPDIR', 'MALLOC_ARENA_MAX', 'LC_CTYPE'} | {k for k in os.environ if k.startswith('PYTHON') or k.endswith('_THREADS')}, os.environ",
    "reads other environments": "for p in others():\n    refused(lambda: open(f'/proc/{p}/environ').read() or 1 / 0)",
    "reads other memory": "for p in others():\n    refused(open, f'/proc/{p}/mem', 'rb')\n    refused(os.readlink, f'/proc/{p}/fd/0')\n    refused(open, f'/proc/{p}/maps')",
    "sees other processes": "assert set(others()) <= {'1'}, others()",
    "kills everything": "refused(os.kill, -1, 9)",
    "signals others": "for p in others():\n    for s in (2, 9, 15, 19):\n        try: os.kill(int(p), s)\n        except OSError: pass",
    "signals all numbers": "for p in range(1, 2000):\n    if p != os.getpid():\n        try: os.kill(p, 9)\n        except OSError: pass",
    "changes limits of others": "import resource\nfor p in others():\n    refused(resource.prlimit, int(p), resource.RLIMIT_NOFILE, (10, 10))",
    "changes scheduling of others": "for p in others():\n    refused(os.sched_setaffinity, int(p), {0})\n    refused(os.setpriority, os.PRIO_PROCESS, int(p), 19)\ntry: os.setpriority(os.PRIO_USER, 0, 19)\nexcept OSError: pass",
    "raises its limits": "import resource\nfor kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):\n    refused(resource.setrlimit, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
    "traces others": "for p in others():\n    refused(syscall, 101, 16, int(p), 0, 0)\nrefused(syscall, 310, 1, 0, 0, 0, 0, 0)\nrefused(syscall, 438, 1, 0, 0)",
    "kernel doors": "for number in (321, 298, 323, 425, 426, 427, 248, 249, 250, 29, 64, 68, 240, 272, 308, 165, 166, 155, 161, 246, 175, 304, 169, 170, 227):\n    refused(syscall, number, 0, 0, 0, 0, 0)",
    "new user namespace": "refused(syscall, 272, 0x10000000)\nrefused(syscall, 56, 0x10000000 | 17, 0, 0, 0, 0)\nrefused(syscall, 435, 0, 0)",
    "becomes root": "refused(os.setuid, 0 if os.getuid() else 1)\nstatus = open('/proc/self/status').read()\nassert 'CapEff:\\t0000000000000000' in status and 'CapPrm:\\t0000000000000000' in status and 'NoNewPrivs:\\t1' in status",
    "setuid program": "import subprocess\nfor name in ('/usr/bin/su', '/bin/mount', '/usr/bin/passwd'):\n    if os.path.exists(name):\n        assert subprocess.run([name, '-x'], stdin=subprocess.DEVNULL, capture_output=True).returncode != 0",
    "devices": "for path in ['/dev/mem', '/dev/kmsg', '/dev/sda', '/dev/vda', '/dev/tty', '/dev/ptmx', '/proc/kcore', '/proc/sysrq-trigger']:\n    refused(open, path, 'r+b')\nrefused(os.mknod, 'd', 0o600 | 0o020000, os.makedev(1, 1))",
    "inherited descriptors": "fds = set(os.listdir('/proc/self/fd')) - {'0', '1', '2'}\nassert len(fds) == 2, fds\nassert all(os.path.realpath(f'/proc/self/fd/{i}') == '/dev/null' for i in range(3))",
    "connects to a local server": "import socket\nrefused(socket.create_connection, ('127.0.0.1', @PORT@), 1)",
    "connects outside": "import socket\nrefused(socket.create_connection, ('1.1.1.1', 80), 1)\nrefused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53)))\nrefused(lambda: socket.getaddrinfo('example.org', 80))",
    "connects to an abstract socket": "import socket\nrefused(lambda: socket.socket(socket.AF_UNIX).connect('\\0@ABSTRACT@'))",
    "connects to a socket file": "import socket\nrefused(lambda: socket.socket(socket.AF_UNIX).connect('@FOLDER@/socket'))",
    "odd socket families": "import socket\nfor family in (40, 38, 17, 44, 31):\n    refused(socket.socket, family, socket.SOCK_STREAM, 0)\n    refused(socket.socket, family, socket.SOCK_RAW, 0)",
    "leaves files": "for folder in ('.', '/tmp', '/dev/shm', '/var/tmp'):\n    try: open(folder + '/left-over', 'w').write('x')\n    except OSError: pass",
    "link in place of its folder": "import shutil\nhere = os.getcwd()\nos.chdir('/')\ntry:\n    os.rmdir(here)\n    os.symlink('@FOLDER@', here)\nexcept OSError: pass",
    "links in its folder": "os.symlink('@FOLDER@', 'a')\nos.symlink('/', 'b')\nos.symlink('@SECRET@', 'c')\nos.symlink('c', 'd')",
    "folders without rights": "os.makedirs('a/b/c')\nopen('a/b/c/f', 'w').close()\nfor path in ('a/b/c', 'a/b', 'a', '.'):\n    os.chmod(path, 0)",
    "odd names": "for name in ('a\\nb', '-rf', ' ', '*', 'x' * 255, '\\udcff'):\n    open(name, 'w').close()\n    try: open('/tmp/' + name, 'w').close()\n    except OSError: pass",
    "closes its parent folder": "for path in ('..', '/tmp'):\n    try: os.chmod(path, 0)\n    except OSError: pass",
    "removes its own file": "for path in (__file__, os.path.dirname(__file__)):\n    try:\n        os.rename(path, path + 'x')\n        open(path, 'w').write('evil')\n    except OSError: pass",
    "semaphores and shared memory": "from multiprocessing import shared_memory\nshared_memory.SharedMemory('left', create=True, size=1000)",
    "locks descriptors": "import fcntl\nfor fd in (0, 1, 2):\n    fcntl.flock(fd, fcntl.LOCK_EX)\n    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)",
    "host name, clock": "import socket, time\nrefused(socket.sethostname, 'evil')\nrefused(time.clock_settime, time.CLOCK_REALTIME, 0.0)\nrefused(os.chroot, '.')\nrefused(os.nice, -5)",
    "a server that stays": "import socket\nif not os.fork():\n    s = socket.socket(socket.AF_UNIX)\n    s.bind('\\0stays')\n    s.listen()\n    s.accept()",
    "patches modules for the next": "import json, random, builtins\njson.loads = random.random = builtins.len = None",
    "sets the next one's environment": "import sys\nos.environ['EVIL'] = '1'\nos.umask(0o777)\nsys.path.insert(0, '/tmp')\nsys.setrecursionlimit(50)",
}
HARM_PRELUDE = """
import ctypes, os
def refused(action, *arguments):
    try:
        result = action(*arguments)
    except (OSError, ValueError):
        return
    raise AssertionError(f'not refused: {action} {arguments} -> {result}')
def syscall(*arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(*(ctypes.c_long(a) for a in arguments))
    if result == -1:
        raise OSError(ctypes.get_errno(), '')
    return result
def others():
    return [p for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid()]
"""
# What these try is refused by namespaces alone; without them the docstring of sandbox.py says so.
NEEDS_NAMESPACES = {"sees other processes", "connects to a socket file", "leaves files", "semaphores and shared memory",
                    "closes its parent folder"}

# Programs that must pass, though many a sandbox fails them.
LEGITIMATE = {
    "asserts": "assert sorted([3, 1, 2]) == [1, 2, 3]",
    "empty": "",
    "byte order mark": "\ufeffassert True",
    "future import first": "from __future__ import annotations\ndef f(x: Undefined): return x\nassert f(1) == 1",
    "trailing backslash comment": "x = 1 # \\",
    "non-ASCII": "s = 'żółć 😀'\nassert len(s) == 6 and s.encode()",
    "coding line": "# -*- coding: utf-8 -*-\nassert 'é' == chr(233)",
    "functions see each other": "def f(): return g() + h\ndef g(): return 1\nh = 2\nassert f() == 3",
    "global and del": "x = 1\ndef f():\n    global x\n    x += 1\nf()\nassert x == 2\ndel f",
    "name is main": "done = []\nif __name__ == '__main__':\n    done.append(1)\nassert done and __file__.endswith('.py')",
    "argv": "import sys\nassert len(sys.argv) == 1 and sys.argv[0] == __file__",
    "argparse": "import argparse\np = argparse.ArgumentParser()\np.add_argument('--n', type=int, default=3)\nassert p.parse_args().n == 3",
    "classes in comprehensions": "class A:\n    n = 3\n    squares = [i * i for i in range(n)]\nassert A.squares == [0, 1, 4]",
    "dataclass": "from dataclasses import dataclass, field\n@dataclass(order=True)\nclass P:\n    x: int\n    y: list = field(default_factory=list)\nassert P(1) < P(2)",
    "pickle": "import pickle\nclass A:\n    def __eq__(self, o): return type(o) is A\nassert pickle.loads(pickle.dumps(A())) == A()",
    "deepcopy and enum": "import copy, enum\nclass C(enum.Enum):\n    A = 1\nassert copy.deepcopy(C.A) is C.A",
    "getsource": "import inspect\ndef f():\n    return 41 + 1\nassert '41 + 1' in inspect.getsource(f)",
    "type hints": "import typing\nclass A:\n    x: 'B'\nclass B: pass\nassert typing.get_type_hints(A) == {'x': B}",
    "doctest": "'''\n>>> 1 + 1\n2\n'''\nimport doctest\nassert doctest.testmod() == (0, 1)",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(1, 1)\nassert unittest.main(exit=False).result.wasSuccessful()",
    "unittest.mock": "from unittest import mock\nimport time\nwith mock.patch('time.time', return_value=5):\n    assert time.time() == 5",
    "recursion 5000 deep": "import sys\nsys.setrecursionlimit(10000)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nassert f(5000) == 5000",
    "cached recursion": "import functools, sys\nsys.setrecursionlimit(20000)\n@functools.lru_cache(None)\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2)\nassert f(3000) % 10 == 0",
    "recursion in a big stack": "import resource, sys, threading\nresource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK)[1:] * 2)\nthreading.stack_size(1 << 27)\nsys.setrecursionlimit(1 << 20)\nr = []\ndef f(n): return 0 if n == 0 else 1 + max(f(n - 1), 0)\nt = threading.Thread(target=lambda: r.append(f(20000)))\nt.start()\nt.join()\nassert r == [20000]",
    "catches RecursionError": "def f(): return f()\ntry: f()\nexcept RecursionError: pass\nelse: assert False",
    "catches MemoryError": "try: x = bytes(1 << 45)\nexcept MemoryError: pass\nelse: assert False",
    "catches SystemExit": "import sys\ntry: sys.exit(3)\nexcept SystemExit as e: assert e.code == 3",
    "threads": "import threading\nn = []\nts = [threading.Thread(target=n.append, args=[i]) for i in range(40)]\n[t.start() for t in ts]\n[t.join() for t in ts]\nassert len(n) == 40",
    "hundred sleeping threads": "import threading, time\nts = [threading.Thread(target=time.sleep, args=[0.2]) for i in range(100)]\n[t.start() for t in ts]\n[t.join() for t in ts]",
    "thread pool": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(8) as e: assert sum(e.map(abs, range(-5, 5))) == 25",
    "process pool executor": "from concurrent.futures import ProcessPoolExecutor\ndef f(x): return x * x\nif __name__ == '__main__':\n    with ProcessPoolExecutor(2) as e: assert list(e.map(f, range(4))) == [0, 1, 4, 9]",
    "multiprocessing pool": "import multiprocessing as mp\ndef f(x): return x + 1\nif __name__ == '__main__':\n    with mp.Pool(3) as p: assert p.map(f, range(5)) == [1, 2, 3, 4, 5]",
    "multiprocessing spawn": "import multiprocessing as mp\ndef f(q): q.put(7)\nif __name__ == '__main__':\n    c = mp.get_context('spawn')\n    q = c.Queue()\n    p = c.Process(target=f, args=[q])\n    p.start()\n    assert q.get(timeout=20) == 7\n    p.join()\n    assert p.exitcode == 0",
    "multiprocessing value and lock": "import multiprocessing as mp\ndef f(v, l):\n    for _ in range(100):\n        with l: v.value += 1\nif __name__ == '__main__':\n    v, l = mp.Value('i', 0), mp.Lock()\n    ps = [mp.Process(target=f, args=(v, l)) for _ in range(4)]\n    [p.start() for p in ps]\n    [p.join() for p in ps]\n    assert v.value == 400",
    "multiprocessing manager": "import multiprocessing as mp\nif __name__ == '__main__':\n    with mp.Manager() as m:\n        d = m.dict(a=1)\n        assert d['a'] == 1",
    "shared memory": "from multiprocessing import shared_memory\ns = shared_memory.SharedMemory(create=True, size=10)\ns.buf[0] = 5\nt = shared_memory.SharedMemory(s.name)\nassert t.buf[0] == 5\nt.close()\ns.close()\ns.unlink()",
    "subprocess of python": "import subprocess, sys\nassert subprocess.check_output([sys.executable, '-c', 'print(6 * 7)'], text=True) == '42\\n'",
    "subprocess of this file": "import subprocess, sys\nif len(sys.argv) > 1:\n    print('child')\nelse:\n    assert subprocess.check_output([sys.executable, __file__, 'x'], text=True) == 'child\\n'",
    "subprocess times out": "import subprocess\ntry: subprocess.run(['sleep', '9'], timeout=0.2)\nexcept subprocess.TimeoutExpired: pass\nelse: assert False",
    "shell": "import os, subprocess\nassert os.system('exit 3') >> 8 == 3\nassert subprocess.getoutput('echo hi | tr h H') == 'Hi'",
    "fork, both reach the end": "import os\npid = os.fork()\nif pid:\n    assert os.waitpid(pid, 0)[1] == 0",
    "forked child exits": "import os, sys\npid = os.fork()\nif pid == 0: sys.exit(5)\nassert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5",
    "forked child fails": "import os\npid = os.fork()\nassert pid\nassert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1",
    "forked child flushes": "import os, sys\nr, w = os.pipe()\nif os.fork() == 0:\n    os.close(r)\n    out = os.fdopen(w, 'w')\n    out.write('late')\n    sys.exit()\nos.close(w)\nassert os.fdopen(r).read() == 'late'\nos.wait()",
    "asyncio": "import asyncio\nasync def f(x):\n    await asyncio.sleep(0.01)\n    return x\nasync def main(): return await asyncio.gather(*(f(i) for i in range(10)))\nassert asyncio.run(main()) == list(range(10))",
    "asyncio subprocess": "import asyncio, sys\nasync def f():\n    p = await asyncio.create_subprocess_exec(sys.executable, '-c', 'print(1)', stdout=-1)\n    return (await p.communicate())[0]\nassert asyncio.run(f()) == b'1\\n'",
    "local server": "import socket, threading\ns = socket.create_server(('127.0.0.1', 0))\nthreading.Thread(target=lambda: s.accept()[0].sendall(b'hi')).start()\nassert socket.create_connection(s.getsockname()).recv(9) == b'hi'",
    "http server": "import threading, urllib.request\nfrom http.server import HTTPServer, BaseHTTPRequestHandler\nclass H(BaseHTTPRequestHandler):\n    def do_GET(self):\n        self.send_response(200)\n        self.end_headers()\n        self.wfile.write(b'ok')\ns = HTTPServer(('localhost', 0), H)\nthreading.Thread(target=s.handle_request).start()\nassert urllib.request.urlopen(f'http://localhost:{s.server_port}').read() == b'ok'",
    "files": "import os, pathlib\nassert os.listdir() == []\npathlib.Path('a/b').mkdir(parents=True)\npathlib.Path('a/b/c.txt').write_text('x')\nos.rename('a/b/c.txt', 'a/c.txt')\nassert open('a/c.txt').read() == 'x' and os.path.getsize('a/c.txt') == 1",
    "tempfile": "import os, tempfile\nwith tempfile.TemporaryDirectory() as d:\n    open(os.path.join(d, 'f'), 'w').write('x')\nwith tempfile.NamedTemporaryFile('w+') as f:\n    f.write('y')\n    f.seek(0)\n    assert f.read() == 'y'",
    "literal tmp": "open('/tmp/mine', 'w').write('x')\nassert open('/tmp/mine').read() == 'x'",
    "own module": "open('helper.py', 'w').write('answer = 42')\nimport helper\nassert helper.answer == 42",
    "sqlite3": "import sqlite3\nwith sqlite3.connect('x.db') as c:\n    c.execute('create table t (a)')\n    c.execute('insert into t values (1)')\n    assert c.execute('select * from t').fetchall() == [(1,)]",
    "zip, gzip, csv": "import csv, gzip, zipfile\nwith zipfile.ZipFile('z.zip', 'w') as z: z.writestr('a', 'b')\nwith gzip.open('g', 'wt') as g: csv.writer(g).writerow([1])\nassert gzip.open('g', 'rt').read() == '1\\n'",
    "shutil": "import os, shutil\nos.makedirs('a/b')\nshutil.copytree('a', 'c')\nshutil.make_archive('z', 'tar', 'a')\nshutil.rmtree('a')\nassert sorted(os.listdir()) == ['c', 'z.tar']",
    "captured output": "import contextlib, io\nb = io.StringIO()\nwith contextlib.redirect_stdout(b): print('hi')\nassert b.getvalue() == 'hi\\n'\nprint('x' * 200000)",
    "mocked stdin": "import io, sys\nsys.stdin = io.StringIO('7\\n')\nassert int(input()) == 7",
    "empty stdin": "import sys\nassert sys.stdin.read() == ''\ntry: input()\nexcept EOFError: pass",
    "logging and warnings": "import logging, warnings\nlogging.basicConfig()\nlogging.warning('x')\nwarnings.warn('y')",
    "signals": "import os, signal\nhits = []\nsignal.signal(signal.SIGUSR1, lambda *_: hits.append(1))\nos.kill(os.getpid(), signal.SIGUSR1)\nassert hits",
    "keyboard interrupt": "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(1)\nexcept KeyboardInterrupt: pass\nelse: assert False",
    "alarm": "import signal, time\ndef stop(*_): raise TimeoutError\nsignal.signal(signal.SIGALRM, stop)\nsignal.setitimer(signal.ITIMER_REAL, 0.1)\ntry: time.sleep(5)\nexcept TimeoutError: pass\nelse: assert False",
    "trace and profile": "import cProfile, sys\nlines = []\nsys.settrace(lambda f, e, a: lines.append(f.f_lineno))\n(lambda: 0)()\nsys.settrace(None)\nassert lines\ncProfile.Profile().runcall(sum, [1])",
    "own limits": "import os, resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\nos.sched_setaffinity(os.getpid(), os.sched_getaffinity(0))\nresource.prlimit(os.getpid(), resource.RLIMIT_CORE)",
    "own /proc": "import os\nassert str(os.getpid()) in open('/proc/self/status').read()\nassert os.listdir('/proc/self/fd') and os.cpu_count() >= 1",
    "time zones and locale": "import datetime, locale, zoneinfo\nassert datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Paris')).utcoffset().seconds == 7200\nlocale.setlocale(locale.LC_ALL, 'C')",
    "random differs, hashes do not": "import os, random, uuid\nassert random.random() != random.random() and uuid.uuid4() != uuid.uuid4()\nassert os.environ['PYTHONHASHSEED'] == '0' and list({'a', 'b'}) == list({'a', 'b'})",
    "ctypes": "import ctypes, ctypes.util\nassert ctypes.CDLL(None).abs(-3) == 3",
    "weakref and gc": "import gc, weakref\nclass A: pass\na = A()\nr = weakref.ref(a)\ndel a\ngc.collect()\nassert r() is None",
    "big numbers": "import decimal, fractions\nassert len(str(3 ** 8000)) == 3817 and decimal.Decimal('0.1') * 3 == decimal.Decimal('0.3')\nassert fractions.Fraction(1, 3) * 3 == 1",
    "500 MB": "x = bytearray(500 << 20)\nx[-1] = 1\nassert sum(x[-10:]) == 1",
    "exec and eval": "n = {}\nexec('def f(): return 5', n)\nassert n['f']() == 5 and eval('1 + 1') == 2\nexec('y = 3')\nassert y == 3",
    "importlib and runpy": "import importlib, runpy\nopen('m.py', 'w').write('v = __name__')\nassert runpy.run_path('m.py', run_name='__main__')['v'] == '__main__'\nassert importlib.import_module('m').v == 'm'",
    "atexit and exit hooks": "import atexit, sys\natexit.register(print, 'bye')\nsys.excepthook = print",
    "daemon thread at the end": "import threading, time\nthreading.Thread(target=time.sleep, args=[100], daemon=True).start()",
    "background thread at the end": "import threading, time\nthreading.Thread(target=time.sleep, args=[100]).start()",
    "numpy": "try:\n    import numpy\nexcept ImportError:\n    pass\nelse:\n    a = numpy.arange(10000.0).reshape(100, 100)\n    assert (a @ a).shape == (100, 100) and numpy.linalg.det(numpy.eye(3)) == 1",
}
NEEDS_LOOPBACK = {"local server", "http server", "multiprocessing manager", "literal tmp"}
SLOW_LEGITIMATE = {"3 s of work": "import time\nend = time.process_time() + 3\nwhile time.process_time() < end: pass"}

WITNESS = """
import builtins, json, os, random, resource, sys, tempfile
assert os.listdir() == [] and os.path.basename(os.getcwd()) == 'work'
left = set(os.listdir(tempfile.gettempdir())) - {'program', @REMAINING@}
assert not left, left
assert not [name for name in os.listdir('/dev/shm') if name in ('left', 'left-over', 'program')] or os.path.islink('/dev/shm')
assert json.loads('[1]') == [1] and random.random() < 1 and builtins.len('ab') == 2
assert 'EVIL' not in os.environ and sys.getrecursionlimit() == 1000 and '/tmp' not in sys.path
mask = os.umask(0)
assert mask == 0o022, mask
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, 256) and os.getpriority(os.PRIO_PROCESS, 0) == @NICE@
assert len(os.sched_getaffinity(0)) == @CORES@
if @NAMESPACES@:
    assert {p for p in os.listdir('/proc') if p.isdigit()} == {'1', str(os.getpid())}
    assert 'stays' not in open('/proc/net/unix').read()
"""


class World:
    """What the programs could harm: a folder with a secret and sockets, the processes and limits of this run."""

    def __init__(self):
        os.environ["SECRET_IN_ENVIRONMENT"] = "1"
        self.folder = tempfile.mkdtemp(prefix="battery-home-", dir=os.environ.get("BATTERY_FOLDER"))
        os.chmod(self.folder, 0o755)
        self.secret = os.path.join(self.folder, "secret.txt")
        with open(self.secret, "w") as file:
            file.write("the secret")
        os.makedirs(os.path.join(self.folder, "tree", "inner"))
        self.abstract = os.path.basename(self.folder)
        self.servers = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
        self.servers[1].bind("\0" + self.abstract)
        self.servers[2].bind(os.path.join(self.folder, "socket"))
        os.chmod(os.path.join(self.folder, "socket"), 0o777)
        for server in self.servers:
            server.listen()
            server.setblocking(False)
        self.before = self.state()

    def state(self):
        entries = []
        for folder, _, names in os.walk(self.folder):
            entries += [(folder, oct(os.stat(folder).st_mode))]
            for name in names:
                path = os.path.join(folder, name)
                content = b"" if name == "socket" else open(path, "rb").read()
                entries.append((path, oct(os.lstat(path).st_mode), hashlib.sha256(content).hexdigest()))
        temporary = [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("sandbox-") or "left" in name or "mine" == name]
        shm = [name for name in os.listdir("/dev/shm") if "left" in name]
        limits = [resource.getrlimit(kind) for kind in range(16)]
        etc = sorted(os.listdir("/etc"))
        return {"files": sorted(entries), "temporary": temporary, "shm": shm, "limits": limits, "etc": etc, "umask": 0,
                "nice": os.getpriority(os.PRIO_PROCESS, 0), "cores": len(os.sched_getaffinity(0)), "processes": self.processes()}

    def processes(self):
        """Processes of the sandbox: all descendants of this one that are not threads of it."""
        found, queue = [], [os.getpid()]
        while queue:
            for task in os.listdir(f"/proc/{queue[0]}/task"):
                try:
                    with open(f"/proc/{queue[0]}/task/{task}/children") as file:
                        children = [int(child) for child in file.read().split()]
                except OSError:
                    continue
                found += children
                queue += children
            queue.pop(0)
        return found

    def visited(self):
        for name, server in zip(("TCP", "abstract", "file"), self.servers):
            try:
                server.accept()
                yield name
            except BlockingIOError:
                pass

    def fill(self, code, remaining, namespaces):
        runner = sys.modules["sandbox"].__file__
        for mark, value in {"@FOLDER@": self.folder, "@SECRET@": self.secret, "@PORT@": str(self.servers[0].getsockname()[1]), "@RUNNER@": runner,
                            "@ABSTRACT@": self.abstract, "@REMAINING@": repr(remaining)[1:-1] if remaining else "''", "@NAMESPACES@": str(namespaces),
                            "@NICE@": str(self.before["nice"]), "@CORES@": str(self.before["cores"])}.items():
            code = code.replace(mark, value)
        return code


def battery(without, timeout, most_seconds):
    """Run everything: (what went wrong, number of programs)."""
    namespaces = "namespaces" not in without
    programs = [(f"cheat: {name}", set(right.split()), code) for name, (right, code) in CHEATS.items()]
    bombs = [(f"bomb: {name}", set(right.split()), code) for name, (right, code) in BOMBS.items()]
    programs += [(f"harm: {name}", {"passed"}, HARM_PRELUDE + code) for name, code in HARM.items() if namespaces or name not in NEEDS_NAMESPACES]
    programs += [(f"legitimate: {name}", {"passed"}, code) for name, code in LEGITIMATE.items() if namespaces or name not in NEEDS_LOOPBACK]
    world, wrong = World(), []

    def run(share):
        with Sandbox(workers=1, timeout=timeout, memory_mb=2048, without=without) as box:
            remaining = eval(box.run("import os, tempfile\nraise ValueError(set(os.listdir(tempfile.gettempdir())) - {'program'})").detail.removeprefix("ValueError: ")) if namespaces else set()
            for name, right, code in share:
                started = time.monotonic()
                result = box.run(world.fill(code, remaining, namespaces))
                seconds = time.monotonic() - started
                witness = box.run(world.fill(WITNESS, remaining, namespaces))
                if result.outcome not in right:
                    wrong.append(f"{name}: {result.outcome} ({result.detail}), not {' or '.join(right)}")
                if witness.outcome != "passed":
                    wrong.append(f"after {name}: {witness.outcome} ({witness.detail})")
                if seconds > most_seconds:
                    wrong.append(f"{name}: {seconds:.1f} s")

    run(bombs)  # alone: side by side they would take the cores from each other, and be given more time for that
    threads = [threading.Thread(target=run, args=[programs[i::2]]) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = world.state()
    wrong += [f"side effect: {key}: {world.before[key]} -> {after[key]}" for key in after if after[key] != world.before[key]]
    wrong += [f"side effect: a program reached the {name} server" for name in world.visited()]
    shutil.rmtree(world.folder)
    return wrong, len(bombs + programs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--without", default="", help="layers to leave out, with commas")
    parser.add_argument("--timeout", type=float, default=2)
    parser.add_argument("--loaded", action="store_true", help="other work has the cores: programs may take LOAD_FACTOR times the limit")
    options = parser.parse_args()
    if os.geteuid() == 0 and os.getpid() != 1:
        sys.exit("as root only as process 1 of an own PID namespace, see the docstring")
    most_seconds = options.timeout * (LOAD_FACTOR if options.loaded else 1) + 2
    wrong, count = battery(options.without.split(",") if options.without else (), options.timeout, most_seconds)
    print(json.dumps({"programs": count, "wrong": [line[:300] for line in wrong]}, indent=1))
