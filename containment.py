"""The layers that hold an untrusted program, in the order in which they are put on; sandbox.py says what they are for.

Once per worker, before it forks any program:    enter_namespaces (with a root of its own), filter_calls
In each forked program:                          PROGRAM_LAYERS: limits, user, privileges, landlock, same user

Each function applies one layer to the calling process and raises OSError where the kernel or the rights refuse it. `try_layers` finds out
which of them work here, `describe_protection` says what that gives. Only the kernel's own calls, by ctypes: nothing to install.
"""

import ctypes
import errno
import fcntl
import json
import math
import os
import random
import resource
import signal
import socket
import struct
import sys
import tempfile

FILE_MB = 256  # the largest file, and the size of the private /tmp (it is RAM)
OPEN_FILES = 256
PROCESSES = 256  # and threads; set where they are counted alone: under a user id of its own or, from Linux 5.14, in a user namespace
STACK_MB = 64

SYSTEM_FOLDERS = "/usr /bin /sbin /lib /lib32 /lib64 /etc /nix /sys/devices/system/cpu".split()
DEVICES = "/dev/null /dev/zero /dev/full /dev/random /dev/urandom".split()

libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 2, -100, 0x8000, 1, 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
NEW_NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
# These have the same number on every architecture.
SYS_MOUNT_SETATTR, SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 442, 444, 445, 446


def call(function, *arguments):
    result = function(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")
    return result


def prctl(option, value):
    call(libc.prctl, option, value, 0, 0, 0)


def write_text(path, text):
    with open(path, "w") as file:
        file.write(text)


def kernel_version():
    return tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])


def readable_folders():
    """What a program may read: the system, and this Python with its packages wherever it is installed."""
    hops, link = [], sys.executable
    while os.path.islink(link):  # a virtual environment's python is a chain of links; each hop must exist inside
        link = os.path.join(os.path.dirname(link), os.readlink(link))
        hops.append(os.path.dirname(link))
    wanted = [*SYSTEM_FOLDERS, sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, *hops, *sys.path]
    wanted += [os.path.realpath(path) for path in wanted]
    folders = []
    for path in sorted({os.path.abspath(path) for path in wanted if path and os.path.exists(path)}):
        if not any(path.startswith(folder + "/") for folder in folders):
            folders.append(path)
    return folders


def enter_namespaces(folders):
    """Own processes, network, mounts, IPC and host name. The caller goes on as process 1 inside; tells whether it has an own user
    namespace, in which limits on processes count only its own."""
    uid, gid = os.geteuid(), os.getegid()
    own_user_namespace = False
    try:
        call(libc.unshare, NEW_NAMESPACES)
    except PermissionError:  # a plain user needs a user namespace for the others
        call(libc.unshare, NEW_NAMESPACES | CLONE_NEWUSER)
        own_user_namespace = True
        write_text("/proc/self/setgroups", "deny")
        write_text("/proc/self/uid_map", f"{uid} {uid} 1")
        write_text("/proc/self/gid_map", f"{gid} {gid} 1")
    first = os.fork()
    if first:  # stays outside only to hold process 1
        os.waitpid(first, 0)
        os._exit(0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    enter_private_root(folders)
    with socket.socket() as any_socket:  # SIOCSIFFLAGS: loopback up, for programs that talk to themselves
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 1))
    return own_user_namespace


def mount(source, target, kind=None, flags=0, options=None):
    encoded = [text and text.encode() for text in (source, target, kind)]
    call(libc.mount, *encoded, ctypes.c_ulong(flags), options and options.encode())


def make_read_only(path, flags=AT_RECURSIVE):
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    call(libc.syscall, SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, attributes, len(attributes))


def enter_private_root(folders):
    """A root file system of its own: the readable folders and a few devices, read-only, a fresh /proc and a private /tmp."""
    root = "/proc"  # built over a folder that is there everywhere and holds none of the sources; seen in this namespace only
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID, "mode=755,size=1m")
    os.makedirs(root + "/tmp")
    mount("tmpfs", root + "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={FILE_MB}m,nr_inodes=20k")
    for path in folders + DEVICES:
        if os.path.isdir(path):
            os.makedirs(root + path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.close(os.open(root + path, os.O_CREAT | os.O_RDONLY))
        mount(path, root + path, None, MS_BIND | MS_REC)
        make_read_only(root + path)
    for name in os.listdir(root + "/tmp"):  # a Python that lives under /tmp: shut the folders that lead to it
        path = f"{root}/tmp/{name}"
        mount(path, path, None, MS_BIND | MS_REC)
        make_read_only(path)
    os.makedirs(root + "/proc")
    mount("proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    os.makedirs(root + "/var")
    for link, target in {"var/tmp": "/tmp", "dev/shm": "/tmp", "dev/fd": "/proc/self/fd", "dev/stdin": "/proc/self/fd/0",
                         "dev/stdout": "/proc/self/fd/1", "dev/stderr": "/proc/self/fd/2"}.items():
        os.symlink(target, f"{root}/{link}")
    os.chdir(root)
    call(libc.pivot_root, b".", b".")
    call(libc.umount2, b".", MNT_DETACH)
    os.chdir("/")
    make_read_only("/", 0)


def limits_for(config, counts_alone):
    """{kind: (soft, hard)}. Unless processes are counted alone (see PROCESSES), a limit on them would count all of the user's."""
    wanted = {
        resource.RLIMIT_CPU: (math.ceil(config["timeout"]) + 1) * config["cores"],  # a backstop: the clock is watched from outside
        resource.RLIMIT_AS: config["memory_mb"] << 20,
        resource.RLIMIT_FSIZE: FILE_MB << 20,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: STACK_MB << 20,
    }
    if counts_alone:
        wanted[resource.RLIMIT_NPROC] = PROCESSES
    limits = {}
    for kind, limit in wanted.items():
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        limits[kind] = (limit, hard if kind == resource.RLIMIT_STACK else limit)  # programs with deep recursion raise it themselves
    return limits


def set_limits(config):
    """rlimits on this process and what it starts."""
    for kind, limit in config["limits"].items():
        resource.setrlimit(kind, limit)


def drop_user(config):
    """As root: a user id that owns nothing and that no other process has."""
    if os.geteuid() != 0:
        raise PermissionError(f"not root: programs run as user {os.geteuid()}")
    os.setgroups([])
    os.setresgid(config["user"], config["user"], config["user"])
    os.setresuid(config["user"], config["user"], config["user"])


def drop_privileges(config):
    """No capabilities; setuid files give none either (no_new_privs, set in the worker)."""
    call(libc.capset, NO_CAPABILITIES, bytes(24))
    prctl(PR_SET_DUMPABLE, 1)  # off in the worker, and after the change of user: a program may read its own /proc/self
    if not config["process_1"]:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it


NO_CAPABILITIES = struct.pack("Ii", 0x20080522, 0)  # the header that capset wants: version 3, this process


def landlock_version():
    return call(libc.syscall, SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)


def landlock_rules(folders, scratch):
    """A ruleset (a descriptor): read the readable folders, write the scratch folder and the devices; from version 6 on, signals and
    abstract sockets only inside. TCP is left to seccomp."""
    version = landlock_version()
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    execute, write_file, read_file, read_folder, truncate, device_calls = 1, 2, 4, 8, 1 << 14, 1 << 15
    scopes = 3 if version >= 6 else 0  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | LANDLOCK_SCOPE_SIGNAL
    attributes = struct.pack("QQQ", rights, 0, scopes)[: 24 if scopes else 8]
    rules = call(libc.syscall, SYS_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    granted = {path: execute | read_file | (read_folder if os.path.isdir(path) else 0) for path in folders + ["/proc"]}
    granted |= {path: rights & (read_file | write_file | truncate | device_calls) for path in DEVICES}
    granted |= {path: rights for path in (scratch, "/dev/shm") if os.path.isdir(path)}  # POSIX semaphores are files in /dev/shm
    for path, allowed in granted.items():
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(libc.syscall, SYS_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, handle), 0)
        os.close(handle)
    return rules


def restrict_files(config):
    call(libc.syscall, SYS_LANDLOCK_RESTRICT, config["landlock"], 0)


# x86-64 system call numbers.
REFUSED_CALLS = {
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_getfd": 438, "kcmp": 312, "unshare": 272, "setns": 308,
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "add_key": 248, "request_key": 249, "keyctl": 250, "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "ioprio_set": 251,
}  # from the keys on: they reach past the program's life or process
CLONE, CLONE3, KILL, SOCKET, SETPRIORITY = 56, 435, 62, 41, 141
CALLS_ON_A_PROCESS = {"prlimit64": 302, "sched_setaffinity": 203, "sched_setscheduler": 144, "sched_setparam": 142, "sched_setattr": 314}
LOCAL_SOCKETS, INTERNET_SOCKETS = [1], [1, 2, 10, 16]  # AF_UNIX; and AF_INET, AF_INET6, AF_NETLINK
BPF_LOAD, BPF_EQUAL, BPF_AT_LEAST, BPF_ANY_BIT, BPF_RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL_PROCESS, REFUSE, UNKNOWN = 0x7FFF0000, 0x80000000, 0x50000 + errno.EPERM, 0x50000 + errno.ENOSYS


def bpf(code, value, if_true=0, if_false=0):
    return struct.pack("HBBI", code, if_true, if_false, value)


def refuse_if(number, argument, test, value):
    the_argument = [bpf(BPF_LOAD, 16 + 8 * argument), bpf(test, value, 0, 1), bpf(BPF_RETURN, REFUSE)]
    return [bpf(BPF_EQUAL, number, 0, 4), *the_argument, bpf(BPF_LOAD, 0)]


def refuse_unless(number, argument, values):
    tests = [bpf(BPF_EQUAL, value, len(values) - i, 0) for i, value in enumerate(values)]
    return [bpf(BPF_EQUAL, number, 0, len(values) + 3), bpf(BPF_LOAD, 16 + 8 * argument), *tests, bpf(BPF_RETURN, REFUSE), bpf(BPF_LOAD, 0)]


def install_filter(rules):
    if os.uname().machine != "x86_64":
        raise OSError(f"the list of calls is for x86-64, this is {os.uname().machine}")
    steps = [bpf(BPF_LOAD, 4), bpf(BPF_EQUAL, 0xC000003E, 1, 0), bpf(BPF_RETURN, KILL_PROCESS),  # another architecture's numbers
             bpf(BPF_LOAD, 0), bpf(BPF_AT_LEAST, 0x40000000, 0, 1), bpf(BPF_RETURN, UNKNOWN), *rules, bpf(BPF_RETURN, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(steps))
    call(libc.prctl, PR_SET_SECCOMP, 2, struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)), 0, 0)


def filter_calls(process_1):
    """Refuse a short list of calls, in the worker and all that it forks; a list of allowed calls would break ordinary programs."""
    rules = [step for number in REFUSED_CALLS.values() for step in (bpf(BPF_EQUAL, number, 0, 1), bpf(BPF_RETURN, REFUSE))]
    rules += [bpf(BPF_EQUAL, CLONE3, 0, 1), bpf(BPF_RETURN, UNKNOWN)]  # its flags are out of sight; the C library then uses clone
    rules += refuse_if(CLONE, 0, BPF_ANY_BIT, NEW_NAMESPACES | CLONE_NEWUSER)
    if not process_1:
        rules += refuse_if(KILL, 0, BPF_EQUAL, 0xFFFFFFFF)  # kill(-1)
    install_filter(rules + refuse_unless(SOCKET, 0, INTERNET_SOCKETS if process_1 else LOCAL_SOCKETS))


def keep_off_the_worker(config):
    """A program with the user id of its worker could change the worker's limits and priority: only its own."""
    rules = refuse_unless(SETPRIORITY, 0, [0]) + refuse_unless(SETPRIORITY, 1, [0, os.getpid()])
    for number in CALLS_ON_A_PROCESS.values():
        rules += refuse_unless(number, 0, [0, os.getpid()])
    install_filter(rules)


PROGRAM_LAYERS = {  # in the order in which a forked program puts them on
    "limits": set_limits,
    "user": drop_user,
    "privileges": drop_privileges,
    "landlock": restrict_files,
    "same user": keep_off_the_worker,
}
PROPERTIES = {  # property -> the layers that give it, and how
    "limits": {"limits": "CPU time, address space, file size, open files, processes, no core files (rlimits)"},
    "processes": {"namespaces": "sees and signals only its own (PID namespace)", "user": "its own user id",
                  "landlock signals": "signals stay inside (landlock)"},
    "files": {"namespaces": "its own read-only root with a private /tmp (mount namespace)",
              "landlock": "an allow-list of folders (landlock)", "user": "its own user id"},
    "network": {"namespaces": "loopback only (network namespace)", "seccomp": "no foreign socket families (seccomp)"},
    "privileges": {"privileges": "no capabilities, no new privileges"},
    "system calls": {"seccomp": "no ptrace, namespaces, bpf, io_uring, keys or System V IPC (seccomp)"},
}


def spare_user():
    """A user id that no account has, high where this user namespace has high ones, and random, so that no two workers share it."""
    with open("/proc/self/uid_map") as file:
        first, _, count = map(int, file.readline().split())
    return random.SystemRandom().randrange(*((1 << 30, 1 << 31) if first + count > 1 << 31 else (61184, 65520)))


def try_layers(config, layers):
    """Put the layers on in a process that does nothing else: {layer: why it does not work here}."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        missing = {}
        for layer in layers:
            try:
                PROGRAM_LAYERS[layer](config)
            except (OSError, ValueError) as problem:
                missing[layer] = getattr(problem, "strerror", None) or str(problem)
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
    """Contain the calling process, a worker, before its first program: (what its programs' layers need, {layer: why it is missing})."""
    missing = dict(settings["without"])
    write_text("/proc/self/oom_score_adj", "1000")  # when the machine runs out of memory, programs and workers go first
    folders, own_user_namespace = readable_folders(), False
    config = dict(settings, cores=len(os.sched_getaffinity(0)), user=spare_user(), process_1="namespaces" not in missing)
    if config["process_1"]:
        own_user_namespace = enter_namespaces(folders)
        config["scratch"] = "/tmp"
    else:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        config["scratch"] = tempfile.mkdtemp(prefix="sandbox-", dir=settings["folder"])
    try:
        config["landlock"] = landlock_rules(folders, config["scratch"])
        if landlock_version() < 6:
            missing["landlock signals"] = "landlock is older than version 6"
    except OSError:
        missing["landlock signals"] = missing["landlock"] = "this kernel has no landlock"
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)  # its memory and descriptors are not for the programs
    if "seccomp" not in missing:
        try:
            filter_calls(config["process_1"])
        except OSError as problem:
            missing["seccomp"] = problem.strerror or str(problem)
    config["limits"] = limits_for(config, counts_alone=False)
    missing |= try_layers(config, [layer for layer in PROGRAM_LAYERS if layer not in missing])
    if "user" not in missing or "seccomp" in missing:
        missing["same user"] = "not needed"
    config["layers"] = [layer for layer in PROGRAM_LAYERS if layer not in missing]
    config["limits"] = limits_for(config, "user" not in missing or own_user_namespace and kernel_version() >= (5, 14))
    if "user" not in missing and not config["process_1"]:
        os.chown(config["scratch"], config["user"], config["user"])
    return config, missing


def describe_protection(missing):
    lines = {}
    for name, layers in PROPERTIES.items():
        active = [text for layer, text in layers.items() if layer not in missing]
        lines[name] = "; ".join(active) or "NOT ACTIVE: " + "; ".join(missing[layer] for layer in layers)
    return lines
