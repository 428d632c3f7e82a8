"""Does the suite find a fault? Plants 26, one at a time, in a copy of the project, and runs the tests that should.

    python tests/planted_faults.py [NUMBER ...]

Prints for each whether a test failed, and which.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FAULTS = [  # (what is wrong, file, text, its replacement, tests)
    ("a torn line stays", "parts/rows.py", "self.file.truncate(size)", "pass", "test_rows.py"),
    ("a file is written in place", "parts/rows.py", "        os.replace(unfinished, path)\n\n\ndef read_object", "        path.write_text(text, encoding='utf-8')\n\n\ndef read_object", "test_rows.py"),
    ("ids of different parts collide", "parts/rows.py", '"\\x1f".join', '"".join', "test_rows.py"),
    ("a run folder is not locked", "parts/rows.py", "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n        except", "pass\n        except", "test_rows.py test_selfcodealign.py"),
    ("samples of a task share a seed", "selfcodealign.py", '"sampling", row["id"])', '"sampling", parent["id"])', "test_selfcodealign.py"),
    ("any number of boundaries", "selfcodealign.py", "if len(parts) != 2 or any(", "if len(parts) < 2 or any(", "test_selfcodealign.py"),
    ("tests without an assert are kept", "selfcodealign.py", "if not code.has_reachable_assert(python_code(tests)):", "if False:", "test_selfcodealign.py"),
    ("several responses of a task are kept", "selfcodealign.py", "            offered.add(task_id)\n", "", "test_selfcodealign.py"),
    ("near-duplicates are kept", "parts/filters.py", "if self.near[part].seen.has_any(bands):", "if False:", "test_selfcodealign.py test_decontamination.py"),
    ("benchmark text in a response is kept", "parts/filters.py", "find(instruction) or find(response)", "find(instruction)", "test_selfcodealign.py test_decontamination.py"),
    ("a whole task must be shared", "parts/contamination.py", "share >= MIN_SHARE else", "share >= 1.0 else", "test_decontamination.py"),
    ("functions without a docstring are seeds", "parts/seeds.py", "if not ast.get_docstring(node):", "if False:", "test_seeds.py"),
    ("imports of the system are seeds", "parts/seeds.py", "None if packages.isdisjoint(BANNED_IMPORTS) else", "None if True else", "test_seeds.py"),
    ("a swallowed assertion passes", "parts/program.py", '            raise AssertionError(f"swallowed: {self.swallowed!r}")', "            pass", "test_sandbox.py"),
    ("unittest may fail", "parts/program.py", "or not all(result.wasSuccessful() for result in results)", "", "test_sandbox.py"),
    ("the first token of a response is not learned", "train.py", "range(len(ids) + prompt_length - 1,", "range(len(ids) + prompt_length,", "test_train.py"),
    ("positions go on from example to example", "train.py", "positions += range(len(example))", "positions += range(len(ids) - len(example), len(ids))", "test_train.py"),
    ("a mean over ranks is taken for a sum", "train.py", "(loss * (WORLD / targets)).backward()", "(loss / targets).backward()", "test_train.py -k several_processes"),
    ("the rate falls to 0", "train.py", "(steps - step + 1) / (steps - rising)", "(steps - step) / (steps - rising)", "test_train.py"),
    ("Adafactor's beta2", "train.py", "step**-0.8", "step**-0.7", "test_train.py"),
    ("the rotary base is left out", "train.py", 'config["rope_theta"] = rope["rope_theta"]', "pass", "test_train.py -k transformers_4_reads"),
    ("steps after the last checkpoint stay in the log", "train.py", 'json.loads(row)["step"] <= step]', 'json.loads(row)["step"] <= step + 9]', "test_train.py -k killed"),
    ("the first fenced block is the answer", "eval.py", "next(filter(defines.search, blocks), (blocks or [text])[0])", "(blocks or [text])[0]", "test_eval.py"),
    ("the difference has the wrong sign", "parts/statistics.py", '"difference": (fixed - broken) / len(pairs)', '"difference": (broken - fixed) / len(pairs)', "test_eval.py"),
    ("stop strings beyond the server's limit are forgotten", "parts/server.py", "request.stop[self.stops :]]", "[]]", "test_engine.py"),
    ("a trainer learns the prompt of an export", "extras/export.py", '"prompt": prompt,', '"prompt": prompt + completion,', "test_export.py"),
]  # fmt: skip


def failed(copy: Path, tests: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    done = subprocess.run(command, cwd=copy / "tests", capture_output=True, text=True)
    found = re.findall(r"^(?:FAILED|ERROR) \S*?::(\S+)", done.stdout, re.MULTILINE)
    assert found or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return found


def main():
    wanted = list(map(int, sys.argv[1:])) or range(1, len(FAULTS) + 1)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "project")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "models", "runs"))
        (copy / "models").symlink_to(ROOT / "models")
        for number in wanted:
            what, name, text, other, tests = FAULTS[number - 1]
            file = copy / name
            whole = file.read_text(encoding="utf-8")
            assert whole.count(text) == 1, f"{number}: {text!r} stands {whole.count(text)} times in {name}"
            file.write_text(whole.replace(text, other), encoding="utf-8")
            found = failed(copy, tests)
            print(f"{number:2} {what}: {f'found by {found[0]}' if found else 'NOT FOUND'}", flush=True)
            file.write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    main()
