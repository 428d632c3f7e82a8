"""The run folder's JSON Lines files: one row per item, kept or rejected, on disk as soon as it is known.

A row has an `id` that comes from what it is made of, so the same input gives the same id anywhere, and a run that was killed
knows from the ids on disk what is left to do. Every random choice of the method is a `draw` from such ids, never from a position.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
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


def read_rows(path: Path) -> Iterator[dict]:
    """Yield the rows of a JSON Lines file, none if there is no file. A torn last line is left out, any other is BadInput."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                row["id"]
            except (ValueError, KeyError, TypeError):
                raise BadInput(f"{path}:{number}: not a JSON row with an `id`") from None
            yield row


class Appender:
    """Appends rows to a JSON Lines file, each written whole before the next; `ids` are those already on disk.

    Opening the file drops a torn last line, so that the item it belonged to is done again.
    """

    def __init__(self, path: Path):
        self.ids = {row["id"] for row in read_rows(path)}
        self.file = path.open("ab")
        size = self.file.tell()
        with path.open("rb") as written:
            while size and (written.seek(size - 1), written.read(1))[1] != b"\n":
                size -= 1
        self.file.truncate(size)

    def append(self, row: dict):
        assert row["id"] not in self.ids, f"row {row['id']} would stand twice in {self.file.name}"
        self.file.write(json.dumps(row).encode() + b"\n")
        self.file.flush()
        self.ids.add(row["id"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def write_atomically(path: Path, text: str):
    """Write the whole file or leave the old one: a kill between the two never leaves half a file."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def write_lines(path: Path, rows: list[dict]):
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
