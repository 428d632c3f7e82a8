"""eval.py against independent truth: EvalPlus's reference solutions, and statistics worked out elsewhere."""

import gzip
import json
import math
import os
from pathlib import Path

import pytest

from decontamination import OVERRIDES, load_benchmark
from eval import paired, read_samples, summary
from rows import BadInput

needs_benchmark = pytest.mark.skipif(
    not all(os.environ.get(name) for name in OVERRIDES.values()),
    reason=f"set {' and '.join(OVERRIDES.values())} to EvalPlus's files",
)


@needs_benchmark
@pytest.mark.parametrize("benchmark", ["humaneval", "mbpp"])
def test_reference_solutions_pass_and_wrong_ones_do_not(benchmark, tmp_path, command):
    tasks, file_hash = load_benchmark(benchmark)
    chosen = list(tasks)[:16]
    wrong = set(chosen[::4])
    rows = []
    for task_id in tasks:
        task = tasks[task_id]
        if task_id in wrong:
            rows.append({"task_id": task_id, "solution": f"def {task['entry_point']}(*arguments):\n    return 'no such answer'"})
        elif benchmark == "humaneval":
            rows.append({"task_id": task_id, "completion": task["canonical_solution"]})
        else:
            rows.append({"task_id": task_id, "solution": task["prompt"] + task["canonical_solution"]})
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows if row["task_id"] in chosen))
    done = command("eval.py", "--samples", samples, "--benchmark", benchmark, "--out", tmp_path / "result", "--limit", len(chosen))
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result" / "result.json").read_text())
    assert result["tasks"] == {task_id: {"base": task_id not in wrong, "plus": task_id not in wrong} for task_id in chosen}
    assert result["plus"]["k"] == 12 and result["plus"]["n"] == 16 and result["dataset_md5"] == file_hash

    again = ["--samples", samples, "--benchmark", benchmark, "--out", tmp_path / "result", "--limit", len(chosen)]
    assert "12 of 16" in command("eval.py", *again).stdout
    samples.write_text(samples.read_text() + "\n")
    assert "another fingerprint" in command("eval.py", *again).stderr  # never an old result for new samples

    itself = command("eval.py", "--compare", tmp_path / "result", tmp_path / "result")
    assert itself.returncode == 0 and "fixed 0, broken 0, exact McNemar p = 1" in itself.stdout


@needs_benchmark
def test_a_packed_benchmark_file_has_the_hash_of_its_contents(tmp_path, monkeypatch):
    path = Path(os.environ["HUMANEVAL_OVERRIDE_PATH"])
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for name, contents in (("tasks.jsonl", text), ("tasks.jsonl.gz", gzip.compress(text))):
        (tmp_path / name).write_bytes(contents)
        monkeypatch.setenv("HUMANEVAL_OVERRIDE_PATH", str(tmp_path / name))
        tasks, file_hash = load_benchmark("humaneval")
        assert len(tasks) == 164 and file_hash == "fe585eb4df8c88d844eeb463ea4d0302"


@pytest.mark.parametrize(
    "lines, says",
    [
        (['{"task_id": "A/0", "solution": "x"}', "{oops"], ":2: not a JSON object"),
        (['{"task_id": "A/0", "answer": "x"}'], ":1: not a JSON object"),
        (['{"task_id": "B/0", "solution": "x"}'], ":1: the benchmark has no task B/0"),
        (['{"task_id": "A/0", "solution": "x"}'] * 2, ":2: a second sample"),
        (['{"task_id": "A/0", "solution": "x"}'], "no sample of 1 of 2 tasks, A/1"),
    ],
)
def test_a_bad_samples_file_is_refused(lines, says, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(BadInput) as error:
        read_samples(path, {"A/0": {"prompt": ""}, "A/1": {"prompt": ""}})
    assert says in str(error.value)


def test_the_statistics_are_those_of_the_literature():
    # Agresti, Categorical Data Analysis (2002), table 10.1: approval ratings, 86 and 150 of 1600 changed their mind.
    # McNemar's chi-square is 17.36 there; the exact p is twice the binomial tail, summed by hand here.
    pairs = [(True, True)] * 794 + [(True, False)] * 150 + [(False, True)] * 86 + [(False, False)] * 570
    test = paired(pairs)
    tail = sum(math.comb(236, k) for k in range(87)) / 2**236
    assert math.isclose(test["p"], 2 * tail, rel_tol=1e-9)
    assert test["fixed"] == 86 and test["broken"] == 150 and math.isclose(test["difference"], -0.04)
    assert abs(test["low"] - -0.0587) < 2e-4 and abs(test["high"] - -0.0213) < 2e-4  # 10.1.1 gives (-0.06, -0.02)
    # Wilson's interval of 2 of 10 by its formula.
    z, p, n = 1.959964, 0.2, 10
    centre, half = (p + z * z / 2 / n) / (1 + z * z / n), z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n)
    interval = summary({str(i): {"base": i < 2} for i in range(10)}, "base")["interval"]
    assert math.isclose(interval[0], centre - half, rel_tol=1e-5) and math.isclose(interval[1], centre + half, rel_tol=1e-5)
