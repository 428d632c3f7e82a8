"""The run folder's JSON Lines files: one row per item, kept or rejected, on disk as soon as it is known.

A row has an `id` that comes from what it is made of, so the same input gives the same id anywhere, and a run
that was killed knows from the ids on disk what is left to do. Every random choice of the method is a `draw`
from such ids, never from a position.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

progress = functools.partial(tqdm, dynamic_ncols=True, mininterval=1, delay=1)


class BadInput(Exception):
    """A mistake of the user's that ends the program with one line and exit status 2."""


def digest(*parts) -> str:
    """The hexadecimal hash of the parts, in their order."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()


def row_id(*parts) -> str:
    return digest(*parts)[:16]


def draw(*parts) -> int:
    """A number below 2**31, always the same for the same parts: the seed of each random choice."""
    return int(digest(*parts)[:8], 16) >> 1


def whole(text: str) -> str:
    """`text` with a question mark for half a surrogate pair, which no other format can hold."""
    return text.encode(errors="replace").decode()


def read_rows(path: Path) -> Iterator[dict]:
    """Yield the rows of a JSON Lines file, none if there is no file. A torn last line is left out, any other
    is BadInput."""
    return (row for _, row in read_places(path))


def read_places(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield the byte at which each row begins, and the row."""
    if not path.exists():
        return
    place = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                row["id"]
            except (ValueError, KeyError, TypeError):
                raise BadInput(f"{path}:{number}: not a JSON row with an `id`") from None
            yield place, row
            place += len(line)


def read_objects(path: Path, *keys: str) -> Iterator[tuple[str, dict]]:
    """Yield (file:line, row) of a JSON Lines file of the user's whose rows have texts under `keys`. Raises
    BadInput."""
    if not path.is_file():
        raise BadInput(f"no such file: {path}")
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
                valid = all(isinstance(row[key], str) for key in keys)
            except (ValueError, KeyError, TypeError, RecursionError):
                valid = False
            if not valid:
                raise BadInput(f"{path}:{number}: not a JSON object with texts {', '.join(keys)}")
            yield f"{path}:{number}", row


def fingerprint(path: Path) -> str | None:
    """A hash of a file, or of a checkpoint folder: name, size and 64 blocks of 64 KiB of each file but its
    README.md; None for a hub id. Limit: a change that keeps the size of a file over 4 MiB, and stays between
    its evenly spread blocks, is not seen. Training changes weights everywhere."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    if not path.is_dir():
        return None
    found = hashlib.md5()
    for file in sorted(path.iterdir()):
        if not file.is_file() or file.name == "README.md":  # a card may be written later
            continue
        size = file.stat().st_size
        found.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            for number in range(64):
                content.seek(max(0, size - 2**16) * number // 63)
                found.update(content.read(2**16))
    return found.hexdigest()


class KeptRows:
    """The rows of a file that were not rejected, by their ids, in the file's order; read when asked for, so
    only the ids are in memory."""

    def __init__(self, path: Path):
        self.places = {row["id"]: place for place, row in read_places(path) if "reject" not in row}
        self.path = path
        self.file = path.open("rb") if path.exists() else None

    def __getitem__(self, row_id: str) -> dict:
        if row_id not in self.places:
            raise BadInput(f"{self.path} has no row {row_id}, which a later stage was made from")
        self.file.seek(self.places[row_id])
        return json.loads(self.file.readline())

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)


class Appender(contextlib.AbstractContextManager):
    """Appends rows to a JSON Lines file, each written whole before the next; `ids` are those already on disk.

    Opening the file drops a torn last line, so that the item it belonged to is done again.
    """

    def __init__(self, path: Path):
        self.ids, self.path = {row["id"] for row in read_rows(path)}, path
        with writing(path):
            self.file = path.open("ab", buffering=0)
            size = self.file.tell()
            with path.open("rb") as written:
                while size and (written.seek(size - 1), written.read(1))[1] != b"\n":
                    size -= 1
            self.file.truncate(size)

    def append(self, row: dict):
        assert row["id"] not in self.ids, f"row {row['id']} would stand twice in {self.path}"
        line = json.dumps(row).encode() + b"\n"
        with writing(self.path):
            while line:
                line = line[self.file.write(line) :]
        self.ids.add(row["id"])

    def __exit__(self, *_):
        self.file.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError, such as a full disk, into BadInput that names the file."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"cannot write {path}: {error.strerror or error}; the same command goes on from here"
        ) from None


@contextlib.contextmanager
def one_line(failure: str) -> Iterator[None]:
    """What a library refuses, in whatever exception, as one line. Raises BadInput."""
    try:
        yield
    except Exception as error:  # transformers, vLLM and the code that a model brings have no class in common
        said = repr(error) if isinstance(error, KeyError) else str(error)  # its text is the key alone
        raise BadInput(f"{failure}: {textwrap.shorten(said, 300) or type(error).__name__}") from error


def lock_folder(folder: Path):
    """Make the folder and lock it: an open file, and no second process gets one while it lives. Raises
    BadInput."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP):
                raise
            return lock_on_this_machine(folder)
    except BlockingIOError:
        raise BadInput(f"another process is working in {folder}") from None
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error}") from None
    return lock


def lock_on_this_machine(folder: Path):
    """`lock_folder` where a file system has no locks: a lock in this machine's own folder of temporary files,
    and in the folder the mark of the machine that may take it. A mark outlives a process that is killed: its
    machine may go on, another not before the mark is deleted."""
    name = f"selfcodealign-{os.getuid()}-{digest(os.path.realpath(folder))[:16]}.lock"
    lock = open(Path(tempfile.gettempdir(), name), "a", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    # The lock's own place tells containers of one machine apart, which do not see each other's locks
    machine = (
        f"{os.uname().nodename} {boot} {os.fstat(lock.fileno()).st_dev}:{os.fstat(lock.fileno()).st_ino}"
    )
    mark = folder / ".lock.machine"
    try:
        with mark.open("x", encoding="utf-8") as file:
            file.write(machine)
    except FileExistsError:
        if (other := mark.read_text(encoding="utf-8")) != machine:
            host = other.partition(" ")[0] or "another machine"
            problem = f"its file system has no locks, and {mark} says that {host} works there"
            raise BadInput(f"{folder}: {problem}: delete that file if it does not") from None
    print(f"{folder}: its file system has no locks; {mark} keeps other machines out", file=sys.stderr)
    return lock


def write_atomically(path: Path, text: str):
    """Write the whole file or leave the old one: a kill between the two never leaves half a file."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")  # two processes may write a report
    with writing(path):
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)


def write_json(path: Path, contents: dict):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(contents, indent=2))


def read_object(path: Path) -> dict:
    """The JSON object of a file, {} where there is no file. Raises BadInput."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path}: not a JSON object")
    return found


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Callable[[dict], None]]:
    """Gives a function that writes a row; the file is replaced by what was written when all is there, and
    only then."""
    unfinished = path.with_name(path.name + ".unfinished")
    with writing(path):
        with unfinished.open("w", encoding="utf-8") as file:
            yield lambda row: file.write(json.dumps(row) + "\n")
        os.replace(unfinished, path)
