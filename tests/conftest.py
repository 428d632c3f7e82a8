import contextlib
import gzip
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from filelock import FileLock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, on small models
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB, which an engine clears when it starts
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from parts.benchmarks import OVERRIDES, load_benchmark  # noqa: E402
from parts.rows import BadInput  # noqa: E402

GIVEN = {name: os.environ[name] for name in OVERRIDES.values() if name in os.environ}


@pytest.fixture(scope="session")
def embedded() -> str:
    """The embedded model's checkpoint folder, which test.sh makes."""
    folder = ROOT / "models" / "smollm2-135m"
    assert folder.is_dir(), f"make it first: python extras/embedded.py {folder}"
    return str(folder)


@pytest.fixture(scope="session")
def model(embedded, tmp_path_factory) -> str:
    """A checkpoint folder for all tests whose point is not the text: fast, and every row is well-formed. The
    first process of the test run makes it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            made = folder.with_name("tiny.unfinished")
            # In a process of its own: the sandbox's tests start from one that has no threads
            command = [sys.executable, Path(__file__).parent / "tiny_model.py", embedded, made]
            subprocess.run(command, check=True)
            made.rename(folder)
    return str(folder)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items):
    """Tests that share a run folder, which one process locks at a time, stay in one process. They come first:
    that process makes the model, while the others run tests that do without it."""
    for item in items:
        if "whole" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("whole"))
    items.sort(key=lambda item: "whole" not in item.fixturenames)


@pytest.fixture(scope="session")
def benchmarks() -> dict[str, dict[str, dict]]:
    """The tasks of HumanEval+ and MBPP+; the test is skipped where neither files nor a network are there."""
    try:
        with mock.patch.dict(os.environ, GIVEN):
            found = [load_benchmark(name) for name in OVERRIDES]
    except BadInput as problem:
        pytest.skip(str(problem))
    if found[0].missing:
        pytest.skip(found[0].missing)
    return {name: benchmark.tasks for name, benchmark in zip(OVERRIDES, found)}


def first_tasks(benchmark: str, number: int, folder: Path) -> dict[str, str]:
    """The environment in which a benchmark has only its first tasks, and HumanEval/32."""
    path = Path(os.environ[OVERRIDES[benchmark]])
    lines = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).splitlines(
        keepends=True
    )
    lines = [line for n, line in enumerate(lines) if n < number or b'"HumanEval/32"' in line]
    (folder / f"{benchmark}.jsonl").write_bytes(b"".join(lines))
    return {OVERRIDES[benchmark]: str(folder / f"{benchmark}.jsonl")}


@pytest.fixture(scope="module")
def few_tasks(tmp_path_factory):
    """For tests that select again and again: each time all references run on their inputs, 4 s of a core."""
    with pytest.MonkeyPatch.context() as patch:
        for name, variable in OVERRIDES.items():
            if os.environ.get(variable):
                patch.setenv(*first_tasks(name, 40, tmp_path_factory.mktemp(name)).popitem())
        yield


@pytest.fixture(scope="session")
def command():
    """Runs one of the scripts and gives the finished process; `prefix` goes before the interpreter, `env` is
    added to ours."""

    def run(script: str, *arguments, prefix=(), env={}):
        return subprocess.run(
            [*prefix, sys.executable, str(ROOT / script), *map(str, arguments)],
            capture_output=True, text=True, cwd=ROOT, env=os.environ | env,
        )  # fmt: skip

    return run


@pytest.fixture
def inside(monkeypatch):
    """As `command`, in this process, which has imported the libraries: for all that starts no engine and needs
    no interpreter of its own."""

    def run(script: str, *arguments, env={}):
        words = [script, *map(str, arguments)]
        printed = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in ("stdout", "stderr")]
        with monkeypatch.context() as patch, mock.patch.dict(os.environ, env):
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", words)
            patch.setattr(sys, "unraisablehook", sys.unraisablehook)
            with contextlib.redirect_stdout(printed[0]), contextlib.redirect_stderr(printed[1]):
                try:
                    status = importlib.import_module(script.removesuffix(".py")).main()
                except SystemExit as ended:
                    status = ended.code
        for file in printed:
            file.flush()
        return subprocess.CompletedProcess(
            words, status or 0, *(file.buffer.getvalue().decode() for file in printed)
        )

    return run
