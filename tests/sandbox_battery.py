"""Hostile and legitimate programs for the sandbox, and a run of them that looks for wrong verdicts and marks.

    unshare --pid --fork --kill-child --mount-proc python tests/sandbox_battery.py [--without namespaces]

As root, start it only like this, in its own PID namespace, as test_sandbox.py does: a hole in the containment
then ends nothing but the battery. Prints the number of programs and a list of what went wrong. After each
program, a witness program runs in the same worker and asserts that it finds a fresh world.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import socket
import sys
import tempfile
import textwrap
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from sandbox import LOAD_FACTOR, Sandbox

UNITTEST = "import unittest\nclass T(unittest.TestCase):\n    def test(self): "

# Each program tries to be called passed without reaching its end: name -> (right outcomes, program).
CHEATS = {
    "early sys.exit": ("exited", "import sys\nsys.exit(0)\nassert False"),
    "early quit": ("exited failed", "quit()\nassert False"),
    "raise SystemExit": ("exited", "raise SystemExit\nassert False"),
    "exits early, and at its end": ("exited", "import sys\nsys.exit(0)\nassert False\nsys.exit(0)"),
    "exits early in a main block": (
        "exited",
        "if __name__ == '__main__':\n    exit()\n    assert False\n    exit()",
    ),
    "exits early in a function": ("exited", "def f():\n    exit(0)\n    assert False\nf()\nexit(0)"),
    "exits in a loop at its end": (
        "exited",
        "import sys\nfor i in range(2):\n    sys.exit(0)\n    assert False",
    ),
    "exits in another last block": ("exited", "if True:\n    raise SystemExit(0)"),
    "ends with status 1": ("exited", "import sys\nsys.exit(1)"),
    "ends with a message": ("exited", "raise SystemExit('no')"),
    "ends with a computed status": ("exited", "import sys\nsys.exit(len([]))"),
    "ends with a function that is missing": ("failed", "sys.exit(0)"),
    "unittest fails": ("failed", UNITTEST + "assert False\nunittest.main()"),
    "unittest fails, and does not exit": ("failed", UNITTEST + "assert False\nunittest.main(exit=False)"),
    "unittest fails, kept": ("failed", UNITTEST + "assert False\nresult = unittest.main(exit=False)"),
    "unittest has an error": ("failed", UNITTEST + "1 / 0\nunittest.main()"),
    "unittest has no test": ("failed", "import unittest\nunittest.main()"),
    "unittest skips all": ("failed", UNITTEST + "self.skipTest('')\nunittest.main()"),
    "unittest shows its help": ("exited", UNITTEST + "pass\nunittest.main(argv=['', '--help'])"),
    "unittest is not reached": ("exited", UNITTEST + "pass\nexit()\nunittest.main()"),
    "a test exits": ("exited failed", UNITTEST + "raise SystemExit(0)\nunittest.main()"),
    "a replaced unittest.main": (
        "failed",
        "import unittest\nunittest.main = lambda **_: None\nunittest.main()",
    ),
    "os._exit": ("exited", "import os\nos._exit(0)"),
    "os.abort": ("crashed", "import os\nos.abort()"),
    "kills itself": ("crashed", "import os\nos.kill(os.getpid(), 9)"),
    "kills itself with a real-time signal": ("crashed", "import os\nos.kill(os.getpid(), 40)"),
    "kills its group": ("crashed", "import os\nos.killpg(0, 15)"),
    "becomes true": ("exited", "import os\nos.execvp('true', ['true'])"),
    "becomes a Python without asserts": (
        "exited",
        """
import os, sys
if __debug__:
    os.execv(sys.executable, [sys.executable, '-O', __file__])
assert False""",
    ),
    "parent leaves, child goes on": ("exited", "import os\nif os.fork():\n    os._exit(0)"),
    "parent fails, child goes on": ("failed", "import os\nif os.fork():\n    assert False"),
    "daemon goes on": (
        "exited",
        """
import os
for _ in 'ab':
    if os.fork():
        os._exit(0)
    os.setsid()""",
    ),
    "child goes on with a forged process id": (
        "exited",
        """
import os, sys
mine = os.getpid()
if os.fork():
    os.wait()
    os._exit(0)
os.getpid = lambda: mine
sys._getframe(1).f_globals['os'].getpid = lambda: mine""",
    ),
    "atexit": ("failed", "import atexit, os\natexit.register(os._exit, 0)\nassert False"),
    "excepthook": ("failed", "import os, sys\nsys.excepthook = lambda *_: os._exit(0)\nassert False"),
    "unraisablehook": ("failed", "import os, sys\nsys.unraisablehook = lambda *_: os._exit(0)\nassert False"),
    "finally": ("exited", "import os\ntry:\n    assert False\nfinally:\n    os._exit(0)"),
    "thread exits": (
        "exited",
        """
import os, threading, time
threading.Timer(0.05, os._exit, [0]).start()
time.sleep(1)
assert False""",
    ),
    "alarm exits": (
        "exited",
        """
import os, signal, time
signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.05)
time.sleep(1)
assert False""",
    ),
    "the message exits": (
        "exited",
        """
import os
class E(Exception):
    def __str__(self):
        os._exit(0)
raise E""",
    ),
    "the message raises": (
        "failed",
        """
class E(Exception):
    def __str__(self):
        raise SystemExit(0)
raise E""",
    ),
    "the name of the type exits": (
        "exited failed",
        """
import os
class Meta(type):
    @property
    def __name__(cls):
        os._exit(0)
class E(Exception, metaclass=Meta): pass
raise E""",
    ),
    "patched os": (
        "exited failed",
        """
import os
real = os._exit
os._exit = lambda status: real(0)
os.write = lambda *_: 0
assert False""",
    ),
    "patched builtins": (
        "failed memory exited",
        """
import builtins
builtins.exec = builtins.compile = builtins.isinstance = lambda *_, **__: True
assert False""",
    ),
    "patched runner": (
        "exited failed",
        """
import os, sys
for name, value in list(sys._getframe(1).f_globals.items()):
    if callable(value):
        sys._getframe(1).f_globals[name] = lambda *_: os._exit(0)
assert False""",
    ),
    "calls the runner's functions": (
        "exited failed",
        """
import os, sys
here = sys._getframe(1)
for name, value in list(here.f_globals.items()):
    if callable(value) and 'prove' in name:
        value(b'0' * 16, os.getpid(), None)
os._exit(0)""",
    ),
    "announces its own token": (
        "exited failed",
        """
import os, sys
here = sys._getframe(1).f_globals
os.write(here['CHANNEL'], b'1' * 16)
os.write(here['CHANNEL'], b'1' * 16)
here['prove_end'](here['announce_token'](), os.getpid(), None)""",
    ),
    "imports the runner": (
        "failed",
        """
import os
import parts.program as runner
runner.prove_end(runner.announce_token(), os.getpid())""",
    ),
    "looks for the token": (
        "exited",
        """
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
os._exit(0)""",
    ),
    "echoes its descriptors": (
        "exited",
        """
import fcntl, os
for fd in range(3, 256):
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
        os.write(fd, os.read(fd, 4096))
    except OSError: pass
os._exit(0)""",
    ),
    "writes verdicts everywhere": (
        "exited",
        """
import json, os
for text in [b'passed', b'passed\\0', b'error\\0x', json.dumps({'outcome': 'passed'}).encode(), bytes(16)]:
    for fd in range(1, 256):
        try: os.write(fd, text)
        except OSError: pass
print('passed')
os._exit(0)""",
    ),
    "claims a fault of the sandbox": ("exited", "import os\nos.write(255, b'error\\0disk')\nos._exit(1)"),
    "child floods the channel": (
        "failed exited timeout",
        """
import os, time
if not os.fork():
    end = time.time() + 5
    while time.time() < end:
        try: os.write(255, b'passed' * 100)
        except OSError: break
    os._exit(0)
assert False""",
    ),
    "closes all descriptors": ("exited", "import os\nos.closerange(0, 256)"),
    "jumps in the runner": (
        "exited failed timeout",
        """
import sys
frame = sys._getframe(1)
def trace(frame, event, argument):
    try: frame.f_lineno = frame.f_lineno - 1
    except ValueError: pass
    return trace
sys.settrace(trace)
frame.f_trace = trace
assert False""",
    ),
    "raises through the trace": (
        "failed exited",
        """
import os, sys
sys.setprofile(lambda frame, event, argument: event == 'c_call' and os._exit(0))
assert len('') == 1""",
    ),
    "generator and destructor exit": (
        "failed exited",
        """
import os
class D:
    def __del__(self):
        os._exit(0)
d = D()
assert False""",
    ),
    "replaced __main__": ("failed", "import sys\nsys.modules['__main__'] = None\nassert False"),
    "recursion in C": (
        "crashed failed",
        """
import sys
sys.setrecursionlimit(10 ** 9)
class A:
    def __repr__(self): return repr(self)
repr(A())""",
    ),
    "null pointer": ("crashed", "import ctypes\nctypes.string_at(0)"),
    "corrupts its interpreter": (
        "crashed",
        """
import ctypes
for i in range(10 ** 6):
    ctypes.memset(id(None) + i, 0, 64)""",
    ),
    "no code at all but a null": ("failed", "x = 1\0"),
    "nested too deep": ("failed memory crashed", "(" * 50000),
    "reads stdin": ("failed", "input()"),
    "kills its parent": (
        "exited",
        """
import os
try:
    os.kill(os.getppid(), 9)
finally:
    os._exit(0)""",
    ),
    "stops its parent": (
        "exited",
        """
import os
try:
    os.kill(os.getppid(), 19)
finally:
    os._exit(0)""",
    ),
}

CHEATS["a test result looks for the token"] = (
    "exited",
    UNITTEST
    + "assert False\nclass R(unittest.TextTestResult):\n    def wasSuccessful(self):"
    + textwrap.indent(CHEATS["looks for the token"][1], " " * 8)
    + "\nunittest.main(testRunner=unittest.TextTestRunner(resultclass=R))",
)

# Tests that report a failure without raising it: each is passed after the right function only.
ADD = """
def add(a, b):
    '''
    >>> add(1, 2)
    3
    '''
    return a + b
"""
ADD_TEST = "\ndef test_add():\n    assert add(1, 2) == 3\n"
TEST_CASE = "class T({}):\n    def test(self):\n        self.assertEqual(add(1, 2), 3)\n"
REPORTS = {
    "runs a suite": "import unittest\n"
    + TEST_CASE.format("unittest.TestCase")
    + "unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))",
    "prints after unittest.main": "import unittest\n"
    + TEST_CASE.format("unittest.TestCase")
    + "unittest.main(argv=[''], exit=False)\nprint('done')",
    "a unittest result with sub-tests": """
import unittest
class T(unittest.TestCase):
    def test(self):
        for n in range(1, 3):
            with self.subTest(n=n):
                self.assertEqual(add(n, n), 2 * n)
unittest.defaultTestLoader.loadTestsFromTestCase(T).run(unittest.TestResult())""",
    "prints a failed assertion": """
try:
    assert add(1, 2) == 3
except AssertionError:
    print('failed')""",
    "prints exceptions in a loop": ADD_TEST
    + """
def main():
    for test in [test_add]:
        try:
            test()
        except Exception as e:
            print('failed', e)
main()""",
    "counts failures in a test": """
def test_add():
    failed = 0
    for a in range(1, 5):
        try:
            assert add(a, a) == 2 * a
        except:
            failed += 1
    print(failed)
test_add()""",
    "suppresses a failed assertion": """
from contextlib import suppress
with suppress(AssertionError, TypeError):
    assert add(1, 2) == 3""",
    "asserts in a thread": ADD_TEST
    + """
import threading
t = threading.Thread(target=test_add)
t.start()
t.join()""",
    "doctest": "import doctest\ndoctest.testmod()",
    "doctest of one function": "from doctest import *\nrun_docstring_examples(add, globals())",
    "doctest in unittest": "import doctest, unittest\nunittest.TextTestRunner().run(doctest.DocTestSuite())",
    "from unittest import TestCase, main": "from unittest import TestCase, main\n"
    + TEST_CASE.format("TestCase")
    + "if __name__ == '__main__':\n    main()",
    "import unittest as ut": "import unittest as ut\n"
    + TEST_CASE.format("ut.TestCase")
    + "ut.main(exit=True)",
    "from unittest import *": "from unittest import *\n" + TEST_CASE.format("TestCase") + "main()",
}
for name, tests in REPORTS.items():
    CHEATS[f"{name}: wrong"] = ("failed", ADD.replace("+", "-") + tests)
    CHEATS[f"{name}: raises"] = ("failed", ADD.replace("return a + b", "raise TypeError") + tests)
CHEATS["doctest has no example"] = ("failed", "import doctest\ndoctest.testmod()")

# Programs that use up what there is.
BOMBS = {
    "endless loop": ("timeout", "while True: pass"),
    "sleeps": ("timeout", "import time\ntime.sleep(1000)"),
    "stops itself": ("timeout", "import os\nos.kill(os.getpid(), 19)"),
    "ignores signals": (
        "timeout",
        """
import signal
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass""",
    ),
    "blocks signals": (
        "timeout",
        """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True: pass""",
    ),
    "long C call": ("timeout", "x = 7 ** (10 ** 9)"),
    "bad regular expression": ("timeout", "import re\nre.match('(a*)*b', 'a' * 40)"),
    "waits for a child": ("timeout", "import subprocess\nsubprocess.run(['sleep', '1000'])"),
    "catches everything": (
        "timeout",
        """
while True:
    try:
        while True: pass
    except BaseException: pass""",
    ),
    "numpy's own MemoryError": (
        "memory",
        """
try:
    import numpy
except ImportError:
    raise MemoryError
numpy.zeros(1 << 45)""",
    ),
    "huge bytes": ("memory", "x = bytes(1 << 40)"),
    "growing list": ("memory", "x = []\nwhile True: x.append(bytes(1 << 20))"),
    "memory of many processes": (
        "memory timeout",
        """
import os, time
for _ in range(16):
    if not os.fork():
        x = b'x' * (200 << 20)
        time.sleep(30)
        os._exit(0)
time.sleep(30)""",
    ),
    "fork bomb": ("timeout memory failed", "import os\nwhile True: os.fork()"),
    "fork bomb that survives refusal": (
        "timeout memory",
        """
import os
while True:
    try: os.fork()
    except OSError: pass""",
    ),
    "thread bomb": (
        "failed memory timeout",
        """
import threading, time
while True: threading.Thread(target=time.sleep, args=[100]).start()""",
    ),
    "descriptor bomb": ("failed", "import os\nwhile True: os.dup(0)"),
    "one huge file": ("failed", "with open('x', 'wb') as f:\n    while True: f.write(bytes(1 << 20))"),
    "sparse huge file": ("failed", "with open('x', 'wb') as f: f.truncate(1 << 50)"),
    "many files": ("failed timeout passed", "for i in range(30000): open(str(i), 'w').close()"),
    "deep folders": (
        "passed failed timeout",
        """
import os
for i in range(3000):
    os.mkdir('d')
    os.chdir('d')""",
    ),
    "endless output": (
        "timeout",
        """
import sys
while True:
    print('x' * 10000)
    sys.stderr.write('y' * 10000)""",
    ),
    "daemons": (
        "passed",
        """
import os, time
for _ in range(20):
    if not os.fork():
        os.setsid()
        if os.fork(): os._exit(0)
        time.sleep(600)
        os._exit(0)""",
    ),
    "daemons that restart each other": (
        "passed",
        """
import os, time
if not os.fork():
    os.setsid()
    end = time.time() + 30
    while time.time() < end:
        if os.fork(): os._exit(0)""",
    ),
}

# Each program tries to do harm and asserts that it was refused, so `passed` is right: name -> program.
HARM = {
    "writes outside": """
for path in ['/etc/x', '/usr/x', '/x', '/proc/sys/kernel/hostname', '@FOLDER@/new', '@SECRET@', '@RUNNER@']:
    refused(open, path, 'a')""",
    "writes into packages": """
import json, sys
refused(open, json.__file__, 'a')
for folder in sys.path[1:]:
    refused(open, folder + '/evil.pth', 'w')""",
    "reads a home folder": """
refused(open, '@SECRET@')
refused(os.listdir, '@FOLDER@')
assert not os.path.expanduser('~').startswith('@FOLDER@')""",
    "links to a secret": "refused(os.link, '@SECRET@', 'x')\nos.symlink('@SECRET@', 'y')\nrefused(open, 'y')",
    "reads the environment": """
assert 'SECRET_IN_ENVIRONMENT' not in os.environ, os.environ
allowed = {'PATH', 'LANG', 'LC_ALL', 'LC_CTYPE', 'HOME', 'TMPDIR', 'USER', 'LOGNAME', 'MALLOC_ARENA_MAX', 'LD_LIBRARY_PATH'}
allowed |= {k for k in os.environ if k.startswith('PYTHON') or k.endswith('_THREADS')}
assert set(os.environ) <= allowed, os.environ""",
    "reads other environments": """
for p in others():
    refused(lambda: open(f'/proc/{p}/environ').read() or 1 / 0)""",
    "reads other memory": """
for p in others():
    refused(open, f'/proc/{p}/mem', 'rb')
    refused(os.readlink, f'/proc/{p}/fd/0')
    refused(open, f'/proc/{p}/maps')""",
    "sees other processes": "assert set(others()) <= {'1'}, others()",
    "kills everything": "refused(os.kill, -1, 9)",
    "signals others": """
for p in others():
    for s in (2, 9, 15, 19):
        try: os.kill(int(p), s)
        except OSError: pass""",
    "signals all numbers": """
for p in range(1, 2000):
    if p != os.getpid():
        try: os.kill(p, 9)
        except OSError: pass""",
    "changes limits of others": """
import resource
for p in others():
    refused(resource.prlimit, int(p), resource.RLIMIT_NOFILE, (10, 10))""",
    "changes scheduling of others": """
for p in others():
    refused(os.sched_setaffinity, int(p), {0})
    refused(os.setpriority, os.PRIO_PROCESS, int(p), 19)
try: os.setpriority(os.PRIO_USER, 0, 19)
except OSError: pass""",
    "raises its limits": """
import resource
for name in ('AS', 'CPU', 'NOFILE', 'FSIZE', 'CORE'):
    kind = getattr(resource, 'RLIMIT_' + name)
    refused(resource.setrlimit, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))""",
    "traces others": """
for p in others():
    refused(syscall, 101, 16, int(p), 0, 0)
refused(syscall, 310, 1, 0, 0, 0, 0, 0)
refused(syscall, 438, 1, 0, 0)""",
    "kernel doors": """
numbers = [321, 298, 323, 425, 426, 427, 248, 249, 250, 29, 64, 68, 240, 272, 308, 165, 166, 155, 161, 246]
for number in [*numbers, 175, 304, 169, 170, 227]:
    refused(syscall, number, 0, 0, 0, 0, 0)""",
    "new user namespace": """
refused(syscall, 272, 0x10000000)
refused(syscall, 56, 0x10000000 | 17, 0, 0, 0, 0)
refused(syscall, 435, 0, 0)""",
    "becomes root": """
refused(os.setuid, 0 if os.getuid() else 1)
status = open('/proc/self/status').read()
for line in ('CapEff:\\t0000000000000000', 'CapPrm:\\t0000000000000000', 'NoNewPrivs:\\t1'):
    assert line in status""",
    "setuid program": """
import subprocess
for name in ('/usr/bin/su', '/bin/mount', '/usr/bin/passwd'):
    if os.path.exists(name):
        assert subprocess.run([name, '-x'], stdin=subprocess.DEVNULL, capture_output=True).returncode != 0""",
    "devices": """
for name in ('mem', 'kmsg', 'sda', 'vda', 'tty', 'ptmx'):
    refused(open, '/dev/' + name, 'r+b')
for name in ('kcore', 'sysrq-trigger'):
    refused(open, '/proc/' + name, 'r+b')
refused(os.mknod, 'd', 0o600 | 0o020000, os.makedev(1, 1))""",
    "inherited descriptors": """
fds = set(os.listdir('/proc/self/fd')) - {'0', '1', '2'}
assert len(fds) == 2, fds
assert all(os.path.realpath(f'/proc/self/fd/{i}') == '/dev/null' for i in range(3))""",
    "connects to a local server": """
import socket
refused(socket.create_connection, ('127.0.0.1', @PORT@), 1)""",
    "connects outside": """
import socket
refused(socket.create_connection, ('1.1.1.1', 80), 1)
refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53)))
refused(lambda: socket.getaddrinfo('example.org', 80))""",
    "connects to an abstract socket": """
import socket
refused(lambda: socket.socket(socket.AF_UNIX).connect('\\0@ABSTRACT@'))""",
    "connects to a socket file": """
import socket
refused(lambda: socket.socket(socket.AF_UNIX).connect('@FOLDER@/socket'))""",
    "odd socket families": """
import socket
for family in (40, 38, 17, 44, 31):
    refused(socket.socket, family, socket.SOCK_STREAM, 0)
    refused(socket.socket, family, socket.SOCK_RAW, 0)""",
    "leaves files": """
for folder in ('.', '/tmp', '/dev/shm', '/var/tmp'):
    try: open(folder + '/left-over', 'w').write('x')
    except OSError: pass""",
    "link in place of its folder": """
import shutil
here = os.getcwd()
os.chdir('/')
try:
    os.rmdir(here)
    os.symlink('@FOLDER@', here)
except OSError: pass""",
    "links in its folder": """
os.symlink('@FOLDER@', 'a')
os.symlink('/', 'b')
os.symlink('@SECRET@', 'c')
os.symlink('c', 'd')""",
    "folders without rights": """
os.makedirs('a/b/c')
open('a/b/c/f', 'w').close()
for path in ('a/b/c', 'a/b', 'a', '.'):
    os.chmod(path, 0)""",
    "odd names": """
for name in ('a\\nb', '-rf', ' ', '*', 'x' * 255, '\\udcff'):
    open(name, 'w').close()
    try: open('/tmp/' + name, 'w').close()
    except OSError: pass""",
    "closes its parent folder": """
for path in ('..', '/tmp'):
    try: os.chmod(path, 0)
    except OSError: pass""",
    "removes its own file": """
for path in (__file__, os.path.dirname(__file__)):
    try:
        os.rename(path, path + 'x')
        open(path, 'w').write('evil')
    except OSError: pass""",
    "semaphores and shared memory": """
from multiprocessing import shared_memory
shared_memory.SharedMemory('left', create=True, size=1000)""",
    "locks descriptors": """
import fcntl
for fd in (0, 1, 2):
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)""",
    "host name, clock": """
import socket, time
refused(socket.sethostname, 'evil')
refused(time.clock_settime, time.CLOCK_REALTIME, 0.0)
refused(os.chroot, '.')
refused(os.nice, -5)""",
    "a server that stays": """
import socket
if not os.fork():
    s = socket.socket(socket.AF_UNIX)
    s.bind('\\0stays')
    s.listen()
    s.accept()""",
    "patches modules for the next": """
import json, random, builtins
json.loads = random.random = builtins.len = None""",
    "sets the next one's environment": """
import sys
os.environ['EVIL'] = '1'
os.umask(0o777)
sys.path.insert(0, '/tmp')
sys.setrecursionlimit(50)""",
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
NEEDS_NAMESPACES = {
    "sees other processes",
    "connects to a socket file",
    "leaves files",
    "semaphores and shared memory",
    "closes its parent folder",
}

# Programs that must pass, though many a sandbox fails them.
LEGITIMATE = {
    "asserts": "assert sorted([3, 1, 2]) == [1, 2, 3]",
    "empty": "",
    "byte order mark": "\ufeffassert True",
    "future import first": """
from __future__ import annotations
def f(x: Undefined): return x
assert f(1) == 1""",
    "trailing backslash comment": "x = 1 # \\",
    "non-ASCII": "s = 'żółć 😀'\nassert len(s) == 6 and s.encode()",
    "coding line": "# -*- coding: utf-8 -*-\nassert 'é' == chr(233)",
    "functions see each other": "def f(): return g() + h\ndef g(): return 1\nh = 2\nassert f() == 3",
    "global and del": "x = 1\ndef f():\n    global x\n    x += 1\nf()\nassert x == 2\ndel f",
    "name is main": """
done = []
if __name__ == '__main__':
    done.append(1)
assert done and __file__.endswith('.py')""",
    "argv": "import sys\nassert len(sys.argv) == 1 and sys.argv[0] == __file__",
    "argparse": """
import argparse
p = argparse.ArgumentParser()
p.add_argument('--n', type=int, default=3)
assert p.parse_args().n == 3""",
    "classes in comprehensions": """
class A:
    n = 3
    squares = [i * i for i in range(n)]
assert A.squares == [0, 1, 4]""",
    "dataclass": """
from dataclasses import dataclass, field
@dataclass(order=True)
class P:
    x: int
    y: list = field(default_factory=list)
assert P(1) < P(2)""",
    "pickle": """
import pickle
class A:
    def __eq__(self, o): return type(o) is A
assert pickle.loads(pickle.dumps(A())) == A()""",
    "deepcopy and enum": """
import copy, enum
class C(enum.Enum):
    A = 1
assert copy.deepcopy(C.A) is C.A""",
    "getsource": "import inspect\ndef f():\n    return 41 + 1\nassert '41 + 1' in inspect.getsource(f)",
    "type hints": """
import typing
class A:
    x: 'B'
class B: pass
assert typing.get_type_hints(A) == {'x': B}""",
    "doctest": "'''\n>>> 1 + 1\n2\n'''\nimport doctest\nassert doctest.testmod() == (0, 1)",
    "unittest": """
import unittest
class T(unittest.TestCase):
    def test(self): self.assertEqual(1, 1)
assert unittest.main(exit=False).result.wasSuccessful()""",
    "ends with unittest.main": UNITTEST + "pass\nunittest.main()",
    "ends with unittest.main in a main block": UNITTEST
    + "pass\nif __name__ == '__main__':\n    unittest.main(\n        verbosity=2, argv=['me'])  # end",
    "ends with sys.exit": "from __future__ import annotations\nimport sys\nx: Undefined = 1\nsys.exit()",
    "ends with sys.exit(0) in a main block": "import sys\nif __name__ == '__main__':\n    sys.exit(0)",
    "ends with exit": "assert 1\nexit()",
    "ends with quit(0)": "assert 1\nquit(0)",
    "ends with raise SystemExit": "assert 1\nraise SystemExit",
    "ends with raise SystemExit(0)": "'A docstring'\nassert __doc__ == 'A docstring'\nraise SystemExit(0)",
    "forked child reaches a last exit": "import os\nif os.fork():\n    assert os.wait()[1] == 0\nexit(0)",
    "ends with the exit of another name": "from sys import exit as leave\nleave(0)",
    "expects a failed assertion": """
def root(x):
    assert x >= 0, 'negative'
    return x ** 0.5
def test_root():
    try:
        root(-1)
    except AssertionError as e:
        print(e)
    else:
        assert False
test_root()""",
    "an assertion that decides": """
def inverse(x):
    try:
        assert x != 0
        return 1 / x
    except AssertionError:
        print('not for zero')
assert inverse(0) is None""",
    "calls again what fails": """
def call(function):
    try: return function()
    except Exception as e: print(e)
def test_function(): raise ValueError
assert call(test_function) is None""",
    "unittest.mock": """
from unittest import mock
import time
with mock.patch('time.time', return_value=5):
    assert time.time() == 5""",
    "recursion 5000 deep": """
import sys
sys.setrecursionlimit(10000)
def f(n): return 0 if n == 0 else 1 + f(n - 1)
assert f(5000) == 5000""",
    "cached recursion": """
import functools, sys
sys.setrecursionlimit(20000)
@functools.lru_cache(None)
def f(n): return n if n < 2 else f(n - 1) + f(n - 2)
depth = 450 if sys.version_info[:2] == (3, 12) else 3000  # 3.12 has a limit of its own for functions in C
assert f(depth) % 10 == 0""",
    "recursion in a big stack": """
import resource, sys, threading
resource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK)[1:] * 2)
threading.stack_size(1 << 27)
sys.setrecursionlimit(1 << 20)
r = []
def f(n): return 0 if n == 0 else 1 + max(f(n - 1), 0)
t = threading.Thread(target=lambda: r.append(f(20000)))
t.start()
t.join()
assert r == [20000]""",
    "catches RecursionError": """
def f(): return f()
try: f()
except RecursionError: pass
else: assert False""",
    "catches MemoryError": "try: x = bytes(1 << 45)\nexcept MemoryError: pass\nelse: assert False",
    "catches SystemExit": "import sys\ntry: sys.exit(3)\nexcept SystemExit as e: assert e.code == 3",
    "threads": """
import threading
n = []
ts = [threading.Thread(target=n.append, args=[i]) for i in range(40)]
[t.start() for t in ts]
[t.join() for t in ts]
assert len(n) == 40""",
    "hundred sleeping threads": """
import threading, time
ts = [threading.Thread(target=time.sleep, args=[0.2]) for i in range(100)]
[t.start() for t in ts]
[t.join() for t in ts]""",
    "thread pool": """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as e: assert sum(e.map(abs, range(-5, 5))) == 25""",
    "process pool executor": """
from concurrent.futures import ProcessPoolExecutor
def f(x): return x * x
if __name__ == '__main__':
    with ProcessPoolExecutor(2) as e: assert list(e.map(f, range(4))) == [0, 1, 4, 9]""",
    "multiprocessing pool": """
import multiprocessing as mp
def f(x): return x + 1
if __name__ == '__main__':
    with mp.Pool(3) as p: assert p.map(f, range(5)) == [1, 2, 3, 4, 5]""",
    "multiprocessing spawn": """
import multiprocessing as mp
def f(q): q.put(7)
if __name__ == '__main__':
    c = mp.get_context('spawn')
    q = c.Queue()
    p = c.Process(target=f, args=[q])
    p.start()
    assert q.get(timeout=20) == 7
    p.join()
    assert p.exitcode == 0""",
    "multiprocessing value and lock": """
import multiprocessing as mp
def f(v, l):
    for _ in range(100):
        with l: v.value += 1
if __name__ == '__main__':
    v, l = mp.Value('i', 0), mp.Lock()
    ps = [mp.Process(target=f, args=(v, l)) for _ in range(4)]
    [p.start() for p in ps]
    [p.join() for p in ps]
    assert v.value == 400""",
    "multiprocessing manager": """
import multiprocessing as mp
if __name__ == '__main__':
    with mp.Manager() as m:
        d = m.dict(a=1)
        assert d['a'] == 1""",
    "shared memory": """
from multiprocessing import shared_memory
s = shared_memory.SharedMemory(create=True, size=10)
s.buf[0] = 5
t = shared_memory.SharedMemory(s.name)
assert t.buf[0] == 5
t.close()
s.close()
s.unlink()""",
    "subprocess of python": """
import subprocess, sys
assert subprocess.check_output([sys.executable, '-c', 'print(6 * 7)'], text=True) == '42\\n'""",
    "subprocess of this file": """
import subprocess, sys
if len(sys.argv) > 1:
    print('child')
else:
    assert subprocess.check_output([sys.executable, __file__, 'x'], text=True) == 'child\\n'""",
    "subprocess times out": """
import subprocess
try: subprocess.run(['sleep', '9'], timeout=0.2)
except subprocess.TimeoutExpired: pass
else: assert False""",
    "shell": """
import os, subprocess
assert os.system('exit 3') >> 8 == 3
assert subprocess.getoutput('echo hi | tr h H') == 'Hi'""",
    "fork, both reach the end": "import os\npid = os.fork()\nif pid:\n    assert os.waitpid(pid, 0)[1] == 0",
    "forked child exits": """
import os, sys
pid = os.fork()
if pid == 0: sys.exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5""",
    "forked child fails": """
import os
pid = os.fork()
assert pid
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1""",
    "forked child flushes": """
import os, sys
r, w = os.pipe()
if os.fork() == 0:
    os.close(r)
    out = os.fdopen(w, 'w')
    out.write('late')
    sys.exit()
os.close(w)
assert os.fdopen(r).read() == 'late'
os.wait()""",
    "asyncio": """
import asyncio
async def f(x):
    await asyncio.sleep(0.01)
    return x
async def main(): return await asyncio.gather(*(f(i) for i in range(10)))
assert asyncio.run(main()) == list(range(10))""",
    "asyncio subprocess": """
import asyncio, sys
async def f():
    p = await asyncio.create_subprocess_exec(sys.executable, '-c', 'print(1)', stdout=-1)
    return (await p.communicate())[0]
assert asyncio.run(f()) == b'1\\n'""",
    "local server": """
import socket, threading
s = socket.create_server(('127.0.0.1', 0))
threading.Thread(target=lambda: s.accept()[0].sendall(b'hi')).start()
assert socket.create_connection(s.getsockname()).recv(9) == b'hi'""",
    "http server": """
import threading, urllib.request
from http.server import HTTPServer, BaseHTTPRequestHandler
class H(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'ok')
s = HTTPServer(('localhost', 0), H)
threading.Thread(target=s.handle_request).start()
assert urllib.request.urlopen(f'http://localhost:{s.server_port}').read() == b'ok'""",
    "files": """
import os, pathlib
assert os.listdir() == []
pathlib.Path('a/b').mkdir(parents=True)
pathlib.Path('a/b/c.txt').write_text('x')
os.rename('a/b/c.txt', 'a/c.txt')
assert open('a/c.txt').read() == 'x' and os.path.getsize('a/c.txt') == 1""",
    "tempfile": """
import os, tempfile
with tempfile.TemporaryDirectory() as d:
    open(os.path.join(d, 'f'), 'w').write('x')
with tempfile.NamedTemporaryFile('w+') as f:
    f.write('y')
    f.seek(0)
    assert f.read() == 'y'""",
    "literal tmp": "open('/tmp/mine', 'w').write('x')\nassert open('/tmp/mine').read() == 'x'",
    "own module": "open('helper.py', 'w').write('answer = 42')\nimport helper\nassert helper.answer == 42",
    "own module with our package's name": """
open('parts.py', 'w').write('answer = 42')
import parts
assert parts.answer == 42""",
    "sqlite3": """
import sqlite3
with sqlite3.connect('x.db') as c:
    c.execute('create table t (a)')
    c.execute('insert into t values (1)')
    assert c.execute('select * from t').fetchall() == [(1,)]""",
    "zip, gzip, csv": """
import csv, gzip, zipfile
with zipfile.ZipFile('z.zip', 'w') as z: z.writestr('a', 'b')
with gzip.open('g', 'wt') as g: csv.writer(g).writerow([1])
assert gzip.open('g', 'rt').read() == '1\\n'""",
    "shutil": """
import os, shutil
os.makedirs('a/b')
shutil.copytree('a', 'c')
shutil.make_archive('z', 'tar', 'a')
shutil.rmtree('a')
assert sorted(os.listdir()) == ['c', 'z.tar']""",
    "captured output": """
import contextlib, io
b = io.StringIO()
with contextlib.redirect_stdout(b): print('hi')
assert b.getvalue() == 'hi\\n'
print('x' * 200000)""",
    "mocked stdin": "import io, sys\nsys.stdin = io.StringIO('7\\n')\nassert int(input()) == 7",
    "empty stdin": "import sys\nassert sys.stdin.read() == ''\ntry: input()\nexcept EOFError: pass",
    "logging and warnings": """
import logging, warnings
logging.basicConfig()
logging.warning('x')
warnings.warn('y')""",
    "signals": """
import os, signal
hits = []
signal.signal(signal.SIGUSR1, lambda *_: hits.append(1))
os.kill(os.getpid(), signal.SIGUSR1)
assert hits""",
    "keyboard interrupt": """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
except KeyboardInterrupt: pass
else: assert False""",
    "alarm": """
import signal, time
def stop(*_): raise TimeoutError
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try: time.sleep(5)
except TimeoutError: pass
else: assert False""",
    "trace and profile": """
import cProfile, sys
lines = []
sys.settrace(lambda f, e, a: lines.append(f.f_lineno))
(lambda: 0)()
sys.settrace(None)
assert lines
cProfile.Profile().runcall(sum, [1])""",
    "own limits": """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
os.sched_setaffinity(os.getpid(), os.sched_getaffinity(0))
resource.prlimit(os.getpid(), resource.RLIMIT_CORE)""",
    "own /proc": """
import os
assert str(os.getpid()) in open('/proc/self/status').read()
assert os.listdir('/proc/self/fd') and os.cpu_count() >= 1""",
    "its account": """
import getpass, grp, os, pathlib, pwd
user = pwd.getpwuid(os.getuid())
assert getpass.getuser() == user.pw_name == os.environ['LOGNAME'] == 'sandbox'
assert pwd.getpwnam('sandbox') == user and user.pw_dir == os.path.expanduser('~')
assert grp.getgrgid(os.getgid()).gr_name == 'sandbox'
pathlib.Path('f').touch()
assert pathlib.Path('f').owner() == pathlib.Path('f').group() == 'sandbox'""",
    "time zones and locale": """
import datetime, locale, zoneinfo
assert datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Paris')).utcoffset().seconds == 7200
locale.setlocale(locale.LC_ALL, 'C')""",
    "random differs, hashes do not": """
import os, random, uuid
assert random.random() != random.random() and uuid.uuid4() != uuid.uuid4()
assert os.environ['PYTHONHASHSEED'] == '0' and list({'a', 'b'}) == list({'a', 'b'})""",
    "ctypes": "import ctypes, ctypes.util\nassert ctypes.CDLL(None).abs(-3) == 3",
    "weakref and gc": """
import gc, weakref
class A: pass
a = A()
r = weakref.ref(a)
del a
gc.collect()
assert r() is None""",
    "big numbers": """
import decimal, fractions
assert len(str(3 ** 8000)) == 3817 and decimal.Decimal('0.1') * 3 == decimal.Decimal('0.3')
assert fractions.Fraction(1, 3) * 3 == 1""",
    "500 MB": "x = bytearray(500 << 20)\nx[-1] = 1\nassert sum(x[-10:]) == 1",
    "exec and eval": """
n = {}
exec('def f(): return 5', n)
assert n['f']() == 5 and eval('1 + 1') == 2
exec('y = 3')
assert y == 3""",
    "importlib and runpy": """
import importlib, runpy
open('m.py', 'w').write('v = __name__')
assert runpy.run_path('m.py', run_name='__main__')['v'] == '__main__'
assert importlib.import_module('m').v == 'm'""",
    "atexit and exit hooks": "import atexit, sys\natexit.register(print, 'bye')\nsys.excepthook = print",
    "daemon thread at the end": """
import threading, time
threading.Thread(target=time.sleep, args=[100], daemon=True).start()""",
    "background thread at the end": """
import threading, time
threading.Thread(target=time.sleep, args=[100]).start()""",
    "numpy": """
try:
    import numpy
except ImportError:
    pass
else:
    a = numpy.arange(10000.0).reshape(100, 100)
    assert (a @ a).shape == (100, 100) and numpy.linalg.det(numpy.eye(3)) == 1""",
}
LEGITIMATE |= {f"{name}: right": ADD + tests for name, tests in REPORTS.items()}
NEEDS_LOOPBACK = {"local server", "http server", "multiprocessing manager", "literal tmp"}
THREE_SECONDS_OF_WORK = "import time\nend = time.process_time() + 3\nwhile time.process_time() < end: pass"

WITNESS = """
import builtins, json, os, random, resource, sys, tempfile
assert os.listdir() == [] and os.path.basename(os.getcwd()) == 'work'
left = set(os.listdir(tempfile.gettempdir())) - {'program', @REMAINING@}
assert not left, left
assert os.path.islink('/dev/shm') or not {'left', 'left-over', 'program'} & set(os.listdir('/dev/shm'))
assert json.loads('[1]') == [1] and random.random() < 1 and builtins.len('ab') == 2
assert 'EVIL' not in os.environ and sys.getrecursionlimit() == 1000 and '/tmp' not in sys.path
mask = os.umask(0)
assert mask == 0o022, mask
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, 256)
assert os.getpriority(os.PRIO_PROCESS, 0) == @NICE@
assert len(os.sched_getaffinity(0)) == @CORES@
if @NAMESPACES@:
    assert {p for p in os.listdir('/proc') if p.isdigit()} == {'1', str(os.getpid())}
    assert 'stays' not in open('/proc/net/unix').read()
"""


class World:
    """What programs could harm: a folder with a secret and sockets, the processes and limits of this run."""

    def __init__(self):
        os.environ["SECRET_IN_ENVIRONMENT"] = "1"
        self.folder = tempfile.mkdtemp(prefix="battery-home-", dir=os.environ.get("BATTERY_FOLDER"))
        os.chmod(self.folder, 0o755)
        self.secret = os.path.join(self.folder, "secret.txt")
        with open(self.secret, "w") as file:
            file.write("the secret")
        os.makedirs(os.path.join(self.folder, "tree", "inner"))
        self.abstract = os.path.basename(self.folder)
        local = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
        self.servers = [socket.create_server(("127.0.0.1", 0)), *local]
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
        temporary = [
            name for name in os.listdir(tempfile.gettempdir()) if re.search("^sandbox-|left|^mine$", name)
        ]
        shm = [name for name in os.listdir("/dev/shm") if "left" in name]
        return {
            "files": sorted(entries),
            "temporary": temporary,
            "shm": shm,
            "limits": [resource.getrlimit(kind) for kind in range(16)],
            "etc": sorted(os.listdir("/etc")),
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "cores": len(os.sched_getaffinity(0)),
            "processes": self.processes(),
        }

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
        values = {
            "FOLDER": self.folder,
            "SECRET": self.secret,
            "PORT": self.servers[0].getsockname()[1],
            "RUNNER": sys.modules["sandbox"].__file__,
            "ABSTRACT": self.abstract,
            "REMAINING": repr(remaining)[1:-1] if remaining else "''",
            "NAMESPACES": namespaces,
            "NICE": self.before["nice"],
            "CORES": self.before["cores"],
        }
        return re.sub("@([A-Z]+)@", lambda mark: str(values[mark[1]]), code)


def battery(without, timeout, most_seconds):
    """Run everything: (what went wrong, number of programs)."""
    namespaces = "namespaces" not in without
    programs = [(f"cheat: {name}", set(right.split()), code) for name, (right, code) in CHEATS.items()]
    bombs = [(f"bomb: {name}", set(right.split()), code) for name, (right, code) in BOMBS.items()]
    for name, code in HARM.items():
        if namespaces or name not in NEEDS_NAMESPACES:
            programs.append((f"harm: {name}", {"passed"}, HARM_PRELUDE + code))
    for name, code in LEGITIMATE.items():
        if namespaces or name not in NEEDS_LOOPBACK:
            programs.append((f"legitimate: {name}", {"passed"}, code))
    world, wrong = World(), []

    def run(share):
        with Sandbox(workers=1, timeout=timeout, memory_mb=2048, without=without) as box:
            remaining = set()
            if namespaces:
                files = box.run("import os\nraise ValueError(set(os.listdir('/tmp')) - {'program'})").detail
                remaining = eval(files.removeprefix("ValueError: "))
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

    run(bombs)  # one at a time: two would take the cores from each other, and be given more time for that
    threads = [threading.Thread(target=run, args=[programs[i::2]]) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = world.state()
    changed = [key for key in after if after[key] != world.before[key]]
    wrong += [f"side effect: {key}: {world.before[key]} -> {after[key]}" for key in changed]
    wrong += [f"side effect: a program reached the {name} server" for name in world.visited()]
    shutil.rmtree(world.folder)
    return wrong, len(bombs + programs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--without", default="", help="layers to leave out, with commas")
    parser.add_argument("--timeout", type=float, default=2)
    parser.add_argument(
        "--loaded", action="store_true", help="other work has the cores: allow LOAD_FACTOR times the limit"
    )
    options = parser.parse_args()
    if os.geteuid() == 0 and os.getpid() != 1:
        sys.exit("as root only as process 1 of an own PID namespace, see the docstring")
    most_seconds = options.timeout * (LOAD_FACTOR if options.loaded else 1) + 2
    without = options.without.split(",") if options.without else ()
    wrong, count = battery(without, options.timeout, most_seconds)
    print(json.dumps({"programs": count, "wrong": [line[:300] for line in wrong]}, indent=1))
