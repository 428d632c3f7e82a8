"""Commits as instruction data, after OctoPack (arXiv 2308.07124, C): which commits of a history are kept.

The message is the instruction, with the file before the commit; the response is the file after it. The
reasons to reject, and their bounds, are those of CommitPackFT. Differs from it: tokens are those of the
run's own tokenizer; the list of verbs and of empty phrases is our own.
"""

import contextlib
import functools
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from parts.code import parses, python_code
from parts.rows import BadInput, digest, read_objects

VERBS = """
add allow apply avoid build bump cache change check clarify clean cleanup close collect combine compute
convert correct create cut define delete deprecate detect disable document drop enable ensure exclude expand
export expose extend extract factor fill filter fix format generate give guard handle hide ignore implement
import improve include increase indent initialize inline insert install introduce join keep let limit link
list load lock log make mark merge migrate mock modify move normalize omit open optimize order override parse
pass patch permit pin populate port prefer prepare prevent print process provide pull put raise read record
redirect reduce refactor refine reformat register reject relax remove rename reorder reorganize repair replace
report require reset resolve restore restrict return reuse rewrite run save scale select send separate set
show shorten simplify skip sort specify split start stop store strip support suppress swap switch sync take
tell test tidy trim try turn tweak unify update upgrade use validate verify warn wrap write
""".split()
EMPTY_PHRASES = r"initial commit|first commit|small fix|minor change|various fixes|work in progress"
MARKS = r"\[(skip ci|ci skip)\]|^\s*[\[(][^\])]*[\])]|[\[(][^\])]*[\])]\s*$|^[\w()./-]+:\s"


def read_commits(source: str, seed: int = 0) -> Iterator[dict]:
    """Yield {where, message, files, parents, author, texts} of each commit of a git repository, in an order
    drawn from the seed, or of each row of a JSON Lines file with CommitPackFT's columns, which has no merges
    and no authors. `texts` are the one file before and after, "" where there is none. No
    `files`: one was deleted, or is a link or a submodule. `reject`: it cannot be read. Raises BadInput."""
    if Path(source).is_dir():
        yield from read_repository(Path(source), seed)
        return
    for where, row in read_objects(Path(source), "subject", "old_contents", "new_contents"):
        commit = {"where": where, "message": row["subject"], "parents": 1, "author": ""}
        commit |= {"files": [str(row.get("new_file") or "file.py")]}
        yield commit | {"texts": (row["old_contents"], row["new_contents"])}


def read_repository(path: Path, seed: int) -> Iterator[dict]:
    # Read without git, which runs what the settings of a repository name, whoever wrote them
    from dulwich.repo import Repo

    try:
        repository = Repo.discover(str(path))
        waiting, names, store = [repository.refs.follow(b"HEAD")[1]], set(), repository.object_store
        parse = functools.partial(parse_commit, store, repository.get_shallow())
    except Exception as error:  # the library's have no class in common
        raise BadInput(f"{path} is no git repository that can be read: {error!r}") from None
    if waiting == [None]:
        raise BadInput(f"{path} is a git repository without a commit")
    while waiting:
        if (name := waiting.pop()) not in names:
            names.add(name)
            with contextlib.suppress(Exception):  # it is rejected below
                waiting += parse(name)[1]
    for name in sorted(names, key=lambda name: digest(seed, "commit", name.decode())):
        try:
            commit = read_commit(store, parse, name)
        except Exception as error:  # a lost object, bytes of no commit: what, says the row
            commit = {"message": repr(error), "reject": "unreadable_commit", "texts": ()}
        yield {"where": name.decode()} | commit


def parse_commit(store, shallow: set[bytes], name: bytes) -> tuple[dict, list[bytes], bytes]:
    """Headers, parents and message of a commit. dulwich's own reading, which it does for all that is in no
    pack, refuses authors and times that git reads over."""
    loose = Path(store.path, name[:2].decode(), name[2:].decode())
    raw = zlib.decompress(loose.read_bytes()) if loose.exists() else store.get_raw(name)[1]
    head, _, message = re.sub(rb"^commit \d+\0", b"", raw).partition(b"\n\n")
    parents = [] if name in shallow else re.findall(rb"^parent (\w+)", head, re.MULTILINE)
    return dict(re.findall(rb"^(\w+) (.*)", head, re.MULTILINE)), parents, message


def read_commit(store, parse: Callable, name: bytes) -> dict:
    from dulwich.diff_tree import tree_changes

    headers, parents, message = parse(name)
    decode = functools.partial(text, encoding=text(headers.get(b"encoding", b"utf-8")))
    trees = parse(parents[0])[0][b"tree"] if parents else None, headers[b"tree"]
    changes = list(tree_changes(store, *trees)) if len(parents) < 2 else []
    are_files = all(change.new and stat.S_ISREG(change.new.mode) for change in changes)
    shas = [entry and entry.sha for entry in changes[0][1:]] if are_files and len(changes) == 1 else []
    return {
        "message": re.sub(r"\s*\n", " ", re.split(r"\n\s*\n", decode(message).strip())[0]),
        "parents": len(parents),
        "author": re.sub(r"( <.*)?( \d+ [+-]\d+)?$", "", decode(headers.get(b"author", b""))),
        "files": [text(change.new.path) for change in changes] if are_files else [],
        "texts": [text(store[sha].data) if sha and sha in store else "" for sha in shas],
    }


def text(read: bytes, encoding: str = "utf-8") -> str:
    try:
        return read.decode(encoding, errors="replace")
    except (LookupError, ValueError):  # no encoding that Python has
        return read.decode(errors="replace")


def clean(message: str) -> str:
    """The message without marks for machines, and without what stands before a colon at its beginning."""
    return re.sub(MARKS, "", message).strip()


def reason_against(commit: dict) -> str | None:
    """Why a commit, its message cleaned, is no example, whatever its file says; None if it may be one."""
    message, words = commit["message"], commit["message"].split()
    if "reject" in commit:
        return commit["reject"]
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
    return "empty_phrase" if re.search(EMPTY_PHRASES, message.lower()) else None


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
