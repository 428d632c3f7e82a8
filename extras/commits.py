"""Commits as instruction data, after OctoPack (arXiv 2308.07124, C): which commits of a history are kept.

The message is the instruction, with the file before the commit; the response is the file after it. The
reasons to reject, and their bounds, are those of CommitPackFT. Differs from it: tokens are those of the
run's own tokenizer; the list of verbs and of empty phrases is our own.
"""

import itertools
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from parts.rows import BadInput, read_objects

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


def read_commits(source: str) -> Iterator[dict]:
    """Yield {where, message, code, new_code, files, parents, author} of each commit of a git repository, or
    of each row of a JSON Lines file with CommitPackFT's columns, which has no merges and no authors. Raises
    BadInput."""
    if Path(source).is_dir():
        yield from read_repository(Path(source))
        return
    for where, row in read_objects(Path(source), "subject", "old_contents", "new_contents"):
        texts = {"message": row["subject"], "code": row["old_contents"], "new_code": row["new_contents"]}
        yield {"where": where, **texts, "files": [row.get("new_file", "file.py")], "parents": 1, "author": ""}


def read_repository(repository: Path) -> Iterator[dict]:
    """Commands that read objects only: none runs what a repository's own settings name."""
    shown = "--stdin --always --root -r --raw --no-renames --no-abbrev --format=%x01%H%x02%P%x02%an%x02%s"
    check = subprocess.run([*git(repository), "rev-parse", "HEAD"], capture_output=True, text=True)
    if check.returncode:
        raise BadInput(f"{repository}: {check.stderr.strip().splitlines()[0]}")
    pipe = {"stdout": subprocess.PIPE}
    with (
        subprocess.Popen([*git(repository), "rev-list", "--reverse", "HEAD"], **pipe) as listed,
        subprocess.Popen(
            [*git(repository), "diff-tree", *shown.split()], stdin=listed.stdout, **pipe
        ) as told,
        subprocess.Popen([*git(repository), "cat-file", "--batch"], stdin=subprocess.PIPE, **pipe) as blobs,
    ):
        lines = (line.decode(errors="replace").rstrip("\n") for line in told.stdout)
        for head, changes in grouped(lines):
            name, parents, author, message = head[1:].split("\x02", 3)
            commit = {"where": name, "message": message, "parents": len(parents.split()), "author": author}
            texts = changes[0].split()[2:4] if len(changes) == 1 else ()
            code, new_code = (text_of(blobs, blob) for blob in texts) if texts else ("", "")
            files = [change.partition("\t")[2] for change in changes]
            yield commit | {"code": code, "new_code": new_code, "files": files}


def git(repository: Path) -> list[str]:
    return ["env", "GIT_NO_LAZY_FETCH=1", "git", "-C", str(repository)]


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
    """The text of a file's version; none where it is not there, or in another repository."""
    blobs.stdin.write(f"{blob}\n".encode())
    blobs.stdin.flush()
    found = blobs.stdout.readline().split()  # name, type, size; or name, "missing"
    return blobs.stdout.read(int(found[2]) + 1)[:-1].decode(errors="replace") if len(found) == 3 else ""


def clean(message: str) -> str:
    """The message without marks for machines, and without what stands before a colon at its beginning."""
    return re.sub(MARKS, "", message).strip()


def reason_against(commit: dict, count_tokens: Callable[[str], int]) -> str | None:
    """Why a commit, its message cleaned, is no example; None if it is one."""
    message, words = commit["message"], commit["message"].split()
    old, new = commit["code"], commit["new_code"]
    if commit["parents"] > 1:
        return "merge"
    if re.search(r"\[bot\]|bot$", commit["author"].lower()):
        return "bot"
    if len(commit["files"]) != 1 or not commit["files"][0].endswith(".py"):
        return "not_one_python_file"
    if not new.strip() or old == new:
        return "no_new_code"
    if "#" in message or Path(commit["files"][0]).name in message:
        return "names_issue_or_file"
    if not 10 < len(message) < 1000 or not 4 < len(words) < 1000:
        return "message_length"
    if not message[0].isupper() or words[0].lower() not in VERBS:
        return "no_imperative_verb"
    if any(phrase in message.lower() for phrase in EMPTY_PHRASES):
        return "empty_phrase"
    if max(len(old), len(new)) > 50_000 or not 50 <= count_tokens(old + new) <= 768:
        return "code_size"
    return None
