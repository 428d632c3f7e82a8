"""The analysis of the experiments against what is known of it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments"))
import analysis

from parts.statistics import compare_groups


def test_p_values_are_adjusted_as_holm_did():
    assert analysis.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_one_model_a_group_has_the_interval_of_a_paired_difference():
    random = np.random.default_rng(1)
    a, b = (random.random((1, 500)) < share for share in (0.3, 0.4))
    found = compare_groups(a.astype(float), b.astype(float), random)
    changed = b.astype(float) - a
    half = 1.96 * changed.std() / np.sqrt(500)
    assert found["difference"] == pytest.approx(changed.mean())
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.06)


def test_no_gain_is_found_where_there_is_none_and_a_large_one_always(monkeypatch):
    monkeypatch.setattr(analysis, "DRAWS", 400)
    random, odds = np.random.default_rng(2), np.full(300, -1.0)
    found = lambda gain: [analysis.simulate(odds, gain, 3, 1, 0.0, random)["p"] < 0.05 for _ in range(100)]
    assert np.mean(found(0.0)) < 0.08 and np.mean(found(0.15)) > 0.95


def test_the_noise_of_trainings_is_found_again_from_three_samples_a_task():
    random, odds = np.random.default_rng(3), np.full(2000, -1.0)
    for noise in (0.0, 1.0):
        chances = analysis.chance(odds + noise * random.standard_normal((9, 2000)))
        seen = random.binomial(3, chances) / 3
        assert analysis.seed_noise(seen, odds, 3) == pytest.approx(noise, abs=0.25)


def test_a_plan_gives_its_comparisons_and_another_set_of_tasks_is_refused(tmp_path):
    for name, solved in {"a0": 1, "a1": 2, "b0": 5, "other": 5}.items():
        tasks = {f"T/{n}": {"base": True, "plus": n < solved} for n in range(10 + (name == "other"))}
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({"benchmark": "mbpp", "tasks": tasks}))
    folder = lambda name: str(tmp_path / name)
    comparison = {"name": "b - a", "a": [folder("a0"), folder("a1")], "b": [folder("b0")]}
    command = [sys.executable, ROOT / "experiments" / "analysis.py", "compare", tmp_path / "plan.json"]
    greedy = json.loads((tmp_path / "b0" / "result.json").read_text()) | {"samples": 1, "temperature": 0.0}
    (tmp_path / "greedy").mkdir()
    (tmp_path / "greedy" / "result.json").write_text(json.dumps(greedy))
    for b, status, said in (("b0", 0, ""), ("greedy", 2, "not sampled alike"), ("other", 2, "same tasks")):
        plan = {"suite": "mbpp+", "comparisons": [comparison | {"b": [folder(b)]}]}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        done = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True)
        assert done.returncode == status and said in done.stderr, done.stderr
    [row] = json.loads((tmp_path / "out" / "comparisons.json").read_text())["comparisons"]
    assert row["difference"] == pytest.approx(0.5 - 0.15) and (tmp_path / "out" / "comparisons.png").exists()
    per_task = (tmp_path / "out" / "tasks.csv").read_text().splitlines()
    assert per_task[:3] == ["task,a0,a1,b0", "T/0,1,1,1", "T/1,0,1,1"]
    assert done.stderr.count("\n") == 1
