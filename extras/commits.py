"""Commits as instruction data, after OctoPack (arXiv 2308.07124, C): which commits of a history are kept.

The message is the instruction, with the file before the commit; the response is the file after it. The
reasons to reject, and their bounds, are those of CommitPackFT. Differs from it: tokens are those of the
run's own tokenizer; the list of verbs and of empty phrases is our own.
"""

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


def git(repository: Path, *words: str, **options) -> bytes:
    """What a command of git's prints; only such as read objects. Raises BadInput."""
    ended = subprocess.run(["git", "-C", str(repository), *words], capture_output=True, **options)
    if ended.returncode:
        raise BadInput(f"{repository}: {ended.stderr.decode(errors='replace').strip().splitlines()[0]}")
    return ended.stdout


def read_repository(repository: Path) -> Iterator[dict]:
    shown = "--always --root -r --raw --no-renames --no-abbrev --format=%x01%H%x02%P%x02%an%x02%s".split()
    listed = git(repository, "rev-list", "--reverse", "HEAD")
    text = git(repository, "diff-tree", "--stdin", *shown, input=listed).decode(errors="replace")
    for entry in text.split("\x01")[1:]:
        head, *changes = filter(None, entry.split("\n"))
        name, parents, author, message = head.split("\x02")
        changes = [change.split("\t") for change in changes if change.startswith(":")]
        commit = {"where": name, "message": message, "code": "", "new_code": ""}
        if len(changes) == 1:
            blobs = changes[0][0].split()[2:4]
            contents = ["" if set(blob) == {"0"} else text_of(repository, blob) for blob in blobs]
            commit |= {"code": contents[0], "new_code": contents[1]}
        files = [path for _, path in changes]
        yield commit | {"files": files, "parents": len(parents.split()), "author": author}


def text_of(repository: Path, blob: str) -> str:
    return git(repository, "cat-file", "blob", blob).decode(errors="replace")


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
