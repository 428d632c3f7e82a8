"""Commits as instruction data, after OctoPack (arXiv 2308.07124, C): which commits of a history are kept.

The message is the instruction, with the file before the commit; the response is the file after it. The
reasons to reject, and their bounds, are those of CommitPackFT. Differs from it: tokens are those of the
run's own tokenizer; the list of verbs and of empty phrases is our own.
"""

import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from parts.code import parses, python_code
from parts.rows import BadInput, digest, read_objects

VERBS = set(
    """
    add allow apply avoid build bump cache change check clarify clean cleanup close collect combine
    compute convert correct create cut define delete deprecate detect disable document drop enable
    ensure exclude expand export expose extend extract factor fill filter fix format generate give
    guard handle hide ignore implement import improve include increase indent initialize inline
    insert install introduce join keep let limit link list load lock log make mark merge migrate
    mock modify move normalize omit open optimize order override parse pass patch permit pin
    populate port prefer prepare prevent print process provide pull put raise read record redirect
    reduce refactor refine reformat register reject relax remove rename reorder reorganize repair
    replace report require reset resolve restore restrict return reuse rewrite run save scale select
    send separate set show shorten simplify skip sort specify split start stop store strip support
    suppress swap switch sync take tell test tidy trim try turn tweak unify update upgrade use
    validate verify warn wrap write
    """.split()
)
EMPTY_PHRASES = (
    "initial commit",
    "first commit",
    "small fix",
    "minor change",
    "various fixes",
    "work in progress",
)
MARKS = r"\[(skip ci|ci skip)\]|^\s*[\[(][^\])]*[\])]|[\[(][^\])]*[\])]\s*$|^[\w()./-]+:\s"


def read_commits(source: str, seed: int = 0) -> Iterator[dict]:
    """Yield {where, message, files, parents, author, texts} of each commit of a git repository, in an order
    drawn from the seed, or of each row of a JSON Lines file with CommitPackFT's columns, which has no merges
    and no authors. `texts()` reads the file before and after; there are no `files` where one was deleted, or
    is a link or a submodule. Raises BadInput."""
    if Path(source).is_dir():
        yield from read_repository(Path(source), seed)
        return
    for where, row in read_objects(Path(source), "subject", "old_contents", "new_contents"):
        commit = {"where": where, "message": row["subject"], "parents": 1, "author": ""}
        texts = row["old_contents"], row["new_contents"]
        yield commit | {"files": [str(row.get("new_file") or "file.py")], "texts": lambda texts=texts: texts}


def git(repository: Path, *words: str, **pipes) -> subprocess.Popen:
    """A command that reads objects. The repository may be anyone's: what its settings name is not run."""
    settings = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "core.quotePath=false")
    options = [word for setting in settings for word in ("-c", setting)]
    environment = os.environ | {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}
    command = ["git", *options, "-C", str(repository), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, **pipes)


def read_repository(repository: Path, seed: int) -> Iterator[dict]:
    with git(repository, "rev-list", "HEAD", stderr=subprocess.PIPE) as listing:
        listed, errors = listing.communicate()
    if listing.returncode:
        raise BadInput(f"{repository}: {(errors.decode().strip() or 'git fails').splitlines()[0]}")
    names = sorted(listed.decode().split(), key=lambda name: digest(seed, "commit", name))
    shown = "--stdin --always --root -r --raw --no-renames --no-abbrev --format=%x01%H%x02%P%x02%an%x02%s"
    with tempfile.TemporaryFile() as wanted:
        wanted.write("".join(f"{name}\n" for name in names).encode())
        wanted.seek(0)
        with (
            git(repository, "diff-tree", *shown.split(), stdin=wanted) as told,
            git(repository, "cat-file", "--batch", stdin=subprocess.PIPE) as blobs,
        ):
            lines = (line.decode(errors="replace").rstrip("\n") for line in told.stdout)
            for head, changes in grouped(lines):
                name, parents, author, message = head[1:].split("\x02", 3)
                commit = {
                    "where": name,
                    "message": message,
                    "parents": len(parents.split()),
                    "author": author,
                }
                paths = [change.partition("\t")[2] for change in changes]
                commit["files"] = paths if all(map(is_file, changes)) else []
                old_and_new = changes[0].split()[2:4] if changes else ()
                yield commit | {"texts": lambda ids=old_and_new: [text_of(blobs, blob) for blob in ids]}


def is_file(change: str) -> bool:
    """Whether a file changed that is one after the change: no link, no submodule, not deleted."""
    return change.split()[1] in ("100644", "100755")


def grouped(lines: Iterator[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each commit's first line and the lines of its changes."""
    head, changes = None, []
    for line in itertools.chain(lines, ["\x01"]):
        if line.startswith("\x01"):
            if head:
                yield head, changes
            head, changes = line, []
        elif line.startswith(":"):
            changes.append(line)


def text_of(blobs: subprocess.Popen, blob: str) -> str:
    """The text of a file's version; none where there was no file."""
    blobs.stdin.write(f"{blob}\n".encode())
    blobs.stdin.flush()
    found = blobs.stdout.readline().split()  # name, type, size; or name, "missing"
    return blobs.stdout.read(int(found[2]) + 1)[:-1].decode(errors="replace") if len(found) == 3 else ""


def clean(message: str) -> str:
    """The message without marks for machines, and without what stands before a colon at its beginning."""
    return re.sub(MARKS, "", message).strip()


def reason_against(commit: dict) -> str | None:
    """Why a commit, its message cleaned, is no example, whatever its file says; None if it may be one."""
    message, words = commit["message"], commit["message"].split()
    if commit["parents"] > 1:
        return "merge"
    if re.search(r"\[bot\]|bot$", commit["author"].lower()):
        return "bot"
    if len(commit["files"]) != 1 or not commit["files"][0].endswith(".py"):
        return "not_one_python_file"
    if "#" in message or Path(commit["files"][0]).name in message:
        return "names_issue_or_file"
    if not 10 < len(message) < 1000 or not 4 < len(words) < 1000:
        return "message_length"
    if not message[0].isupper() or words[0].lower() not in VERBS:
        return "no_imperative_verb"
    return "empty_phrase" if any(phrase in message.lower() for phrase in EMPTY_PHRASES) else None


def reason_against_code(old: str, new: str, count_tokens: Callable[[str], int]) -> str | None:
    """Why a file before and after a commit is no example; None if it is one."""
    if not new.strip() or old == new:
        return "no_new_code"
    if max(len(old), len(new)) > 50_000 or not 50 <= count_tokens(old + new) <= 768:
        return "code_size"
    # A fence in a docstring would end the block that the code stands in
    return None if parses(new) and python_code(fenced(new)) == new.strip() else "syntax_error"


def fenced(code: str) -> str:
    return f"```python\n{code.rstrip()}\n```"
