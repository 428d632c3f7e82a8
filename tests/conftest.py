import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from parts.benchmarks import OVERRIDES, load_benchmark  # noqa: E402
from parts.rows import BadInput  # noqa: E402


@pytest.fixture(scope="session")
def embedded() -> str:
    """The embedded model's checkpoint folder, which test.sh makes."""
    folder = ROOT / "models" / "smollm2-135m"
    assert folder.is_dir(), f"make it first: python extras/embedded.py {folder}"
    return str(folder)


@pytest.fixture(scope="session")
def model(embedded, tmp_path_factory) -> str:
    """A checkpoint folder for all tests whose point is not the text: fast, and every row is well-formed."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    # In a process of its own: the sandbox's tests start from one that has no threads
    subprocess.run([sys.executable, Path(__file__).parent / "tiny_model.py", embedded, folder], check=True)
    return str(folder)


@pytest.fixture(scope="session")
def benchmarks() -> dict[str, dict[str, dict]]:
    """The tasks of HumanEval+ and MBPP+; the test is skipped where neither files nor a network are there."""
    try:
        found = [load_benchmark(name) for name in OVERRIDES]
    except BadInput as problem:
        pytest.skip(str(problem))
    if found[0].missing:
        pytest.skip(found[0].missing)
    return {name: benchmark.tasks for name, benchmark in zip(OVERRIDES, found)}


@pytest.fixture
def command():
    """Runs one of the scripts and gives the finished process; `prefix` goes before the interpreter, `env` is
    added to ours."""

    def run(script: str, *arguments, prefix=(), env={}):
        return subprocess.run(
            [*prefix, sys.executable, str(ROOT / script), *map(str, arguments)],
            capture_output=True, text=True, cwd=ROOT, env=os.environ | env,
        )  # fmt: skip

    return run
