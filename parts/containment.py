"""The layers that contain an untrusted program, in the order in which they are applied, and the clean-up.

A worker is started with:                environment
In a worker, before it forks programs:   contain_worker (enter_namespaces, filter_calls)
In each program's process:               PROGRAM_LAYERS
In the worker, after each program:       kill_the_rest, empty_scratch

A layer applies to the calling process and raises OSError where the kernel or the user's rights refuse it. All
are system calls through ctypes: nothing to install.
"""

import contextlib
import ctypes
import errno
import fcntl
import grp
import json
import math
import os
import pwd
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

FILE_MB = 256  # the largest file, and the size of the private /tmp (it is RAM)
OPEN_FILES = 256
PROCESSES = 256  # and threads
STACK_MB = 64
ACCOUNT = "sandbox"  # the name of the user and of the group that a program runs as

SYSTEM_FOLDERS = "/usr /bin /sbin /lib /lib32 /lib64 /etc /nix /sys/devices/system/cpu".split()
DEVICES = "/dev/null /dev/zero /dev/full /dev/random /dev/urandom".split()

libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 4, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 2, -100, 0x8000, 1, 2
NEW_NAMESPACES = 0x6C020000  # of mounts, host name, IPC, processes and network
NEW_USER_NAMESPACE = 0x10000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
# These have the same number on every architecture.
SYS_MOUNT_SETATTR, SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 442, 444, 445, 446


def call(function, *arguments):
    result = function(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")
    return result


def system_call(number, *arguments):
    return call(libc.syscall, number, *arguments)


def reason(problem):
    return getattr(problem, "strerror", None) or str(problem)


def prctl(option, value):
    call(libc.prctl, option, value, 0, 0, 0)


def write_text(path, text):
    with open(path, "w") as file:
        file.write(text)


def readable_folders():
    """What a program may read: the system, this Python, its packages and its libraries."""
    hops, link = [], sys.executable
    while os.path.islink(link):  # a virtual environment's python: each link must exist inside
        link = os.path.join(os.path.dirname(link), os.readlink(link))
        hops.append(os.path.dirname(link))
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    wanted = [*SYSTEM_FOLDERS, sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    wanted += [path for path in [*hops, *sys.path, *libraries] if os.path.isabs(path)]
    wanted += [os.path.realpath(path) for path in wanted]
    folders = []
    for path in sorted({os.path.abspath(path) for path in wanted if os.path.exists(path)} - {"/"}):
        if not any(path.startswith(folder + "/") for folder in folders):
            folders.append(path)
    return folders


def enter_namespaces(folders, account):
    """Own processes, network, mounts, IPC and host name; the caller goes on as process 1 inside.
    Returns whether it also has its own user namespace."""
    uid, gid, own_user_namespace = os.geteuid(), os.getegid(), False
    try:
        call(libc.unshare, NEW_NAMESPACES)
    except PermissionError:  # a plain user needs a user namespace for the others
        call(libc.unshare, NEW_NAMESPACES | NEW_USER_NAMESPACE)
        own_user_namespace = True
        write_text("/proc/self/setgroups", "deny")
        write_text("/proc/self/uid_map", f"{uid} {uid} 1")
        write_text("/proc/self/gid_map", f"{gid} {gid} 1")
    first = os.fork()
    if first:  # stays outside only to hold process 1
        os.waitpid(first, 0)
        os._exit(0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    enter_private_root(folders, account)
    with socket.socket() as any_socket:  # loopback up: programs may talk to themselves
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
    return own_user_namespace


def mount(source, target, kind=None, flags=0, options=None):
    encoded = [text and text.encode() for text in (source, target, kind)]
    call(libc.mount, *encoded, ctypes.c_ulong(flags), options and options.encode())


def bind_read_only(source, target):
    mount(source, target, None, MS_BIND | MS_REC)
    set_bits = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    system_call(SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, set_bits, len(set_bits))


def enter_private_root(folders, account):
    """A new root: the readable folders and some devices, read-only, a fresh /proc and a private /tmp; in
    /etc/passwd and /etc/group, the account of these two ids comes first."""
    root = "/proc"  # this folder exists everywhere and holds nothing that is bound below
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID, "mode=755,size=1m")
    for name in ("/tmp", "/proc", "/var"):
        os.mkdir(root + name)
    mount("tmpfs", root + "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={FILE_MB}m,nr_inodes=20k")
    for path in folders + DEVICES:
        if os.path.isdir(path):
            os.makedirs(root + path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.close(os.open(root + path, os.O_CREAT | os.O_RDONLY))
        bind_read_only(path, root + path)
    for name in os.listdir(root + "/tmp"):  # a Python that is installed under /tmp
        bind_read_only(f"{root}/tmp/{name}", f"{root}/tmp/{name}")
    lines = "{0}:x:{1}:{2}::/tmp:/bin/sh\n", "{0}:x:{2}:\n"
    for path, line in zip(("/etc/passwd", "/etc/group"), lines):
        if os.path.exists(path):  # else name_account does without
            named = root + path.replace("/etc/", "/.")
            with open(path, "rb") as file, open(named, "wb") as new:
                new.write(line.format(ACCOUNT, *account).encode() + file.read())
            bind_read_only(named, root + path)
    mount("proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    links = {"/var/tmp": "/tmp", "/dev/shm": "/tmp", "/dev/fd": "/proc/self/fd"}
    links |= {"/dev/stdin": "/dev/fd/0", "/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}
    for link, target in links.items():
        os.symlink(target, root + link)
    os.chdir(root)
    call(libc.pivot_root, b".", b".")
    call(libc.umount2, b".", MNT_DETACH)
    os.chdir("/")
    mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)


def set_limits(config):
    """rlimits, none above the worker's own."""
    wanted = {
        # A backstop behind the clock.
        resource.RLIMIT_CPU: (math.ceil(config["timeout"]) + 1) * config["cores"],
        resource.RLIMIT_AS: config["memory_mb"] << 20,
        resource.RLIMIT_FSIZE: FILE_MB << 20,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: STACK_MB << 20,
    }
    if config["counts_processes"]:
        wanted[resource.RLIMIT_NPROC] = PROCESSES
    for kind, limit in wanted.items():
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        # Programs with deep recursion raise the limit on their stack themselves.
        resource.setrlimit(kind, (limit, hard if kind == resource.RLIMIT_STACK else limit))


def drop_user(config):
    """As root: a user id that owns nothing and that no other process has."""
    if os.geteuid() != 0:
        raise PermissionError(f"not root: programs run as user {os.geteuid()}")
    os.setgroups([])
    os.setresgid(config["user"], config["user"], config["user"])
    os.setresuid(config["user"], config["user"], config["user"])


def name_account(config):
    """The account of the program's user, for its own Python, where the files of its root do not name it."""
    uid, gid, folder = os.geteuid(), os.getegid(), config["scratch"]
    with contextlib.suppress(KeyError):
        if pwd.getpwuid(uid).pw_name == grp.getgrgid(gid).gr_name == ACCOUNT:
            return
    user = pwd.struct_passwd((ACCOUNT, "x", uid, gid, "", folder, "/bin/sh"))
    group = grp.struct_group((ACCOUNT, "x", gid, []))
    for module, name, entry in (
        (pwd, "getpwuid", user),
        (pwd, "getpwnam", user),
        (grp, "getgrgid", group),
        (grp, "getgrnam", group),
    ):
        find = getattr(module, name)
        setattr(module, name, lambda key, find=find, own=entry: own if key in (own[0], own[2]) else find(key))


def drop_privileges(config):
    """No capabilities; setuid files give none either (no_new_privs, set in the worker)."""
    call(libc.capset, struct.pack("Ii", 0x20080522, 0), bytes(24))  # version 3 of the call, this process
    # Off in the worker and after the change of user; on, a program may read its own /proc/self.
    prctl(PR_SET_DUMPABLE, 1)
    if not config["process_1"]:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it


def landlock_rules(folders, scratch):
    """Rules that allow to read the folders and to write the scratch folder and devices; from landlock 6 on
    they also keep signals and abstract sockets inside. Returns their descriptor and landlock's version."""
    version = system_call(SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    execute, write_file, read_file, read_folder, truncate, device_calls = 1, 2, 4, 8, 1 << 14, 1 << 15
    scopes = 3 if version >= 6 else 0  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | LANDLOCK_SCOPE_SIGNAL
    attributes = struct.pack("QQQ", rights, 0, scopes)[: 24 if scopes else 8]
    rules = system_call(SYS_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    granted = {path: execute | read_file | read_folder for path in [*folders, "/proc"]}
    granted |= {path: rights & (read_file | write_file | truncate | device_calls) for path in DEVICES}
    # /dev/shm: POSIX semaphores are files there.
    granted |= {path: rights for path in (scratch, "/dev/shm") if os.path.isdir(path)}
    for path, allowed in granted.items():
        if not os.path.isdir(path):
            allowed &= ~read_folder  # refused for a file
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        system_call(SYS_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, handle), 0)
        os.close(handle)
    return rules, version


def restrict_files(config):
    system_call(SYS_LANDLOCK_RESTRICT, config["landlock"], 0)


# x86-64 system call numbers.
ATTACH = {"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_getfd": 438, "kcmp": 312}
REACH_KERNEL = {"unshare": 272, "setns": 308, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323}
IO_URING = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}
KEYS = {"add_key": 248, "request_key": 249, "keyctl": 250}  # these and the next outlive the program
QUEUES = {"shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240}
REFUSED_CALLS = ATTACH | REACH_KERNEL | IO_URING | KEYS | QUEUES | {"ioprio_set": 251}
CLONE, CLONE3, KILL, SOCKET, SETPRIORITY = 56, 435, 62, 41, 141
PRLIMIT64, SCHED_SETAFFINITY, SCHED_SETSCHEDULER, SCHED_SETPARAM, SCHED_SETATTR = 302, 203, 144, 142, 314
LOCAL_SOCKETS, INTERNET_SOCKETS = [1], [1, 2, 10, 16]  # AF_UNIX; and AF_INET, AF_INET6, AF_NETLINK
BPF_LOAD, BPF_EQUAL, BPF_AT_LEAST, BPF_ANY_BIT, BPF_RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL_PROCESS, REFUSE, UNKNOWN = 0x7FFF0000, 0x80000000, 0x50000 + errno.EPERM, 0x50000 + errno.ENOSYS
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # where the filter finds them


def bpf(code, value, if_true=0, if_false=0):
    """An instruction of the filter; a test jumps over as many instructions as if_true or if_false says."""
    return struct.pack("HBBI", code, if_true, if_false, value)


def refuse(number, argument=0, unless=()):
    """The steps that refuse the call `number`, unless its argument is one of these values."""
    tests = [bpf(BPF_EQUAL, value, len(unless) - i, 0) for i, value in enumerate(unless)]
    steps = [bpf(BPF_LOAD, ARGUMENTS + 8 * argument), *tests, bpf(BPF_RETURN, REFUSE), bpf(BPF_LOAD, NUMBER)]
    return [bpf(BPF_EQUAL, number, 0, len(steps)), *steps]


def refuse_if(number, test, value):
    """The steps that refuse the call `number` where its first argument passes the test."""
    steps = [bpf(BPF_LOAD, ARGUMENTS), bpf(test, value, 0, 1), bpf(BPF_RETURN, REFUSE), bpf(BPF_LOAD, NUMBER)]
    return [bpf(BPF_EQUAL, number, 0, len(steps)), *steps]


def install_filter(rules):
    if os.uname().machine != "x86_64":
        raise OSError(f"the list of calls is for x86-64, this is {os.uname().machine}")
    steps = [bpf(BPF_LOAD, ARCHITECTURE), bpf(BPF_EQUAL, 0xC000003E, 1, 0), bpf(BPF_RETURN, KILL_PROCESS)]
    steps += [bpf(BPF_LOAD, NUMBER), bpf(BPF_AT_LEAST, 0x40000000, 0, 1), bpf(BPF_RETURN, UNKNOWN)]  # x32
    steps += [*rules, bpf(BPF_RETURN, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(steps))
    call(libc.prctl, PR_SET_SECCOMP, 2, struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)), 0, 0)


def filter_calls(process_1):
    """Refuse some calls to the worker and all that it forks; a list of allowed calls breaks many programs."""
    rules = [step for number in REFUSED_CALLS.values() for step in refuse(number)]
    # The flags of clone3 are out of the filter's sight; where it is unknown, libc uses clone.
    rules += [bpf(BPF_EQUAL, CLONE3, 0, 1), bpf(BPF_RETURN, UNKNOWN)]
    rules += refuse_if(CLONE, BPF_ANY_BIT, NEW_NAMESPACES | NEW_USER_NAMESPACE)
    if not process_1:
        rules += refuse_if(KILL, BPF_EQUAL, 0xFFFFFFFF)  # kill(-1)
    install_filter(rules + refuse(SOCKET, unless=INTERNET_SOCKETS if process_1 else LOCAL_SOCKETS))


def keep_off_the_worker(config):
    """A program with its worker's user id could change the worker's limits and priority: only its own."""
    rules = refuse(SETPRIORITY, 0, unless=[0]) + refuse(SETPRIORITY, 1, unless=[0, os.getpid()])
    for number in (PRLIMIT64, SCHED_SETAFFINITY, SCHED_SETSCHEDULER, SCHED_SETPARAM, SCHED_SETATTR):
        rules += refuse(number, 0, unless=[0, os.getpid()])
    install_filter(rules)


PROGRAM_LAYERS = {  # in the order in which a program's process applies them
    "limits": set_limits,
    "user": drop_user,
    "account": name_account,
    "privileges": drop_privileges,
    "landlock": restrict_files,
    "same user": keep_off_the_worker,
}
PROPERTIES = {  # property: {layer that gives it: how}
    "limits": {
        "limits": "CPU time, address space, file size, open files, processes, no core files (rlimits)"
    },
    "processes": {
        "namespaces": "sees and signals only its own (PID namespace)",
        "user": "its own user id",
        "landlock signals": "signals stay inside (landlock)",
    },
    "files": {
        "namespaces": "its own read-only root with a private /tmp (mount namespace)",
        "landlock": "an allow-list of folders (landlock)",
        "user": "its own user id",
    },
    "network": {
        "namespaces": "loopback only (network namespace)",
        "seccomp": "few socket families (seccomp)",
    },
    "privileges": {"privileges": "no capabilities, no new privileges"},
    "system calls": {"seccomp": "no ptrace, namespaces, bpf, io_uring, keys or System V IPC (seccomp)"},
}


def environment():
    """A worker's environment, fixed so that no verdict depends on the caller's."""
    fixed = {"PATH": f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin"}
    fixed |= {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    fixed |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    fixed |= {"MALLOC_ARENA_MAX": "2", "TMPDIR": tempfile.gettempdir()}
    fixed |= {"USER": ACCOUNT, "LOGNAME": ACCOUNT}
    if "LD_LIBRARY_PATH" in os.environ:  # without it, a Python of a module system or conda may not start
        fixed["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return fixed


def spare_user():
    """A user id that no account has; random, so that no two workers share it."""
    with open("/proc/self/uid_map") as file:
        first, _, count = map(int, file.readline().split())
    all_ids_exist = first + count > 1 << 31  # in this user namespace
    return random.SystemRandom().choice(range(1 << 30, 1 << 31) if all_ids_exist else range(61184, 65520))


def try_layers(config, layers):
    """Apply the layers in a process that does nothing else: {layer: why it does not work here}."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        missing = {}
        for layer in layers:
            try:
                PROGRAM_LAYERS[layer](config)
            except (OSError, ValueError) as problem:
                missing[layer] = reason(problem)
        if not os.access(os.__file__, os.R_OK) or not os.access(sys.executable, os.X_OK):
            missing["user"] = f"another user id cannot reach {sys.executable}"
        os.write(writer, json.dumps(missing).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        missing = json.load(file)
    os.waitpid(process, 0)
    return missing


def contain_worker(settings):
    """Contain the calling process, a worker: (what its programs' layers need, {layer: why it is missing}).
    Raises OSError where namespaces are refused; the process is then half contained, and has to end."""
    missing = dict(settings["without"])
    # Where the machine runs out of memory, programs are killed first.
    write_text("/proc/self/oom_score_adj", "1000")
    folders, own_user_namespace = readable_folders(), False
    config = settings | {"cores": len(os.sched_getaffinity(0)), "user": spare_user()}
    config["counts_processes"], config["process_1"] = False, "namespaces" not in missing
    if config["process_1"]:
        ids = (os.geteuid(), os.getegid()) if os.geteuid() else 2 * (config["user"],)
        own_user_namespace = enter_namespaces(folders, ids)
        config["scratch"] = "/tmp"
    else:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        config["scratch"] = tempfile.mkdtemp(prefix="sandbox-", dir=os.environ["TMPDIR"])
    try:
        config["landlock"], version = landlock_rules(folders, config["scratch"])
    except OSError:
        version, missing["landlock"] = 0, "this kernel has no landlock"
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)  # its memory and descriptors are not for the programs
    if "seccomp" not in missing:
        try:
            filter_calls(config["process_1"])
        except OSError as problem:
            missing["seccomp"] = reason(problem)
    missing |= try_layers(config, [layer for layer in PROGRAM_LAYERS if layer not in missing])
    if "landlock" in missing or version < 6:
        missing["landlock signals"] = missing.get("landlock", "landlock is older than version 6")
    own_user = "user" not in missing
    if own_user or "seccomp" in missing:
        missing["same user"] = "not needed"
    config["layers"] = [layer for layer in PROGRAM_LAYERS if layer not in missing]
    # Only here does the limit on processes count the programs' alone (user namespaces: since Linux 5.14).
    kernel = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])
    config["counts_processes"] = own_user or own_user_namespace and kernel >= (5, 14)
    if own_user and not config["process_1"]:
        os.chown(config["scratch"], config["user"], config["user"])
    return config, missing


def descendants(process="self"):
    """Process ids of all children, their children and so on."""
    found = []
    with contextlib.suppress(OSError):  # ended meanwhile
        for task in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{task}/children") as file:
                for child in file.read().split():
                    found += [int(child), *descendants(child)]
    return found


def kill_the_rest(config):
    """End and reap all that the program started; what it orphaned has become this process's child."""
    with contextlib.suppress(ChildProcessError):  # nothing is left: usually this takes one system call
        while True:
            process, _ = os.waitpid(-1, os.WNOHANG)
            if process == 0:  # something lives: all but this process at one stroke, or what is seen
                for victim in [-1] if config["process_1"] else descendants():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                time.sleep(0.001)


def empty_scratch(config):
    """Remove all that a program wrote, as deep as it went, without following links."""
    scratch, folder = config["scratch"], os.path.join(config["scratch"], "program")
    os.chmod(scratch, config["mode"])
    with contextlib.suppress(OSError):  # it left files: below
        os.unlink(os.path.join(folder, "main.py"))
        os.rmdir(os.path.join(folder, "work"))
        os.rmdir(folder)
    left = [os.path.join(scratch, name) for name in os.listdir(scratch) if name not in config["remaining"]]
    if left:
        locked = ["-xdev", "-type", "d", "!", "-perm", "-700"]
        subprocess.run(["find", scratch, *locked, "-exec", "chmod", "u+rwx", "{}", ";"])
        subprocess.run(["xargs", "-0", "rm", "-rf", "--"], input=os.fsencode("\0".join(left)), check=True)


def describe_protection(missing):
    """{property: what protects it, or "NOT ACTIVE: why"}"""
    lines = {}
    for name, layers in PROPERTIES.items():
        active = [text for layer, text in layers.items() if layer not in missing]
        lines[name] = "; ".join(active) or "NOT ACTIVE: " + "; ".join(missing[layer] for layer in layers)
    return lines
