import errno
import fcntl
import json
import os
import tempfile
from pathlib import Path

import pytest

from parts.folder import is_leftover
from parts.rows import (
    Appender,
    BadInput,
    draw,
    lock_folder,
    one_line,
    read_rows,
    row_id,
    write_atomically,
)


def test_a_torn_last_line_is_dropped_and_done_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a"}\n{"id": "b", "tex')
    assert [row["id"] for row in read_rows(path)] == ["a"]
    with Appender(path) as rows:
        assert rows.ids == {"a"}
        rows.append({"id": "b"})
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_a_file_that_is_all_one_torn_line_starts_empty(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a"')
    with Appender(path) as rows:
        rows.append({"id": "a"})
    assert path.read_text() == '{"id": "a"}\n'


def test_a_corrupt_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a"}\n{"id"\n{"id": "b"}\n')
    with pytest.raises(BadInput, match=f"{path}:2: "):
        list(read_rows(path))


@pytest.mark.parametrize(
    "error, says",
    [(KeyError("rope"), "KeyError('rope')"), (ValueError("two\nlines"), "two lines"), (OSError(), "OSError")],
)
def test_what_a_library_raises_is_one_line_that_says_what_it_is(error, says):
    with pytest.raises(BadInput) as raised, one_line("cannot load it"):
        raise error
    assert str(raised.value) == f"cannot load it: {says}"


def test_ids_and_draws_never_change():
    """They stand in people's run folders: another value would make every finished row look undone."""
    assert row_id("concepts", "0123456789abcdef", 0) == "66503d4de93b4301"
    assert draw(0, "instructions", "deck", 7) == 1705724786
    assert row_id("a", "bc") != row_id("ab", "c")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_keeps_other_processes_and_other_machines_out(
    number, tmp_path, monkeypatch
):
    folder, flock = tmp_path / "run", fcntl.flock
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def flock_of_tmp_alone(file, operation):
        if Path(file.name).parent == folder:
            raise OSError(number, os.strerror(number))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_tmp_alone)
    lock = lock_folder(folder)
    with pytest.raises(BadInput, match="another process"):
        lock_folder(folder)
    lock.close()
    lock_folder(folder).close()  # this machine goes on, after a kill too
    assert all(map(is_leftover, folder.iterdir()))
    mark = folder / ".lock.machine"
    mark.write_text("other-host 1 2 3")
    with pytest.raises(BadInput, match="other-host works there: delete that file"):
        lock_folder(folder)
    mark.unlink()
    lock_folder(folder).close()


def test_a_file_is_replaced_and_never_written_in_place(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("old")
    with file.open() as before:
        write_atomically(file, "new")
        assert before.read() == "old" and file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]
