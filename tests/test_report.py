"""The funnel against rows counted by hand, and the page as a browser without a network sees it."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree

import pytest

from report import funnel, table, write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def task(number: int, category: str = "function", difficulty: str = "easy", **more) -> dict:
    row = {"id": f"t{number}", "concepts_id": f"c{number}", "category": category, "difficulty": difficulty, "tokens": 10}
    return row | (more or {"instruction": "Write a function f that adds its two numbers."})


def sample(number: int, of: int, tests: int = 2, **more) -> dict:
    row = {"id": f"r{number}", "instruction_id": f"t{of}", "sample": 0, "tokens": 100 + number}
    tests = "```python\n" + "assert f(1, 2) == 3  # assert\n" * tests + "```"
    return row | (more or {"response": "```python\ndef f(a, b):\n    return a + b\n```", "tests": tests})


def verdict(number: int, outcome: str = "passed") -> dict:
    return {"id": f"e{number}", "response_id": f"r{number}", "outcome": outcome} | ({"reject": outcome} if outcome != "passed" else {})


ROWS = {
    "seeds": [{"id": f"s{n}", "where": f"m.py:{n}", "code": "def f(x):\n    return x"} for n in range(4)]
    + [{"id": f"s{n}", "where": f"m.py:{n}", "reject": "no_docstring"} for n in range(4, 9)]
    + [{"id": "s9", "where": "m.py:9", "code": "x <script>alert(1)</script>", "reject": "type_error"}],
    "concepts": [{"id": f"c{n}", "seed_id": f"s{n}", "concepts": ["lists", "$\\frac{<b>&☃"], "tokens": 5} for n in range(3)]
    + [{"id": "c3", "seed_id": "s3", "text": "half \ud800", "tokens": 7, "reject": "length"}],
    "instructions": [task(0), task(1), task(2, "class", "hard")],
    "responses": [sample(0, 0), sample(1, 0), sample(2, 1), sample(3, 1, 5), sample(4, 2, text="no", reject="no_code_block")],
    "executions": [verdict(0), verdict(1), verdict(2, "failed"), verdict(3, "timeout")],
    "selection": [{"id": "x0", "response_id": "r0"}, {"id": "x1", "response_id": "r1", "reject": "not_chosen"}],
    "sft": [{"id": "f0", "category": "function", "difficulty": "easy", "response": "One two three.", "tests": "assert f(1, 2) == 3\n",
             "instruction": "Add <b>two</b> numbers.", "concepts": ["lists", "loops"]}],
}  # fmt: skip


@pytest.fixture
def planted(tmp_path):
    """A run folder whose last sample of six is still to come."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for stage, rows in ROWS.items():
        (folder / f"{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"model": "m/<b>", "samples": 2, "seconds": {"responses": 12.34}, "decontamination": "not yet", "sandbox": {"files": "own"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_counts_are_those_counted_by_hand(planted):
    counts = funnel(planted)
    stages = {stage["stage"]: stage for stage in counts["stages"]}
    assert list(stages) == ["seeds", "concepts", "instructions", "responses", "executions", "selection"]
    assert [(stage["in"], stage["kept"], stage["waiting"]) for stage in stages.values()] == [
        (10, 4, 0), (4, 3, 0), (3, 3, 0), (5, 4, 1), (4, 2, 0), (2, 1, 0),
    ]  # fmt: skip
    assert stages["seeds"]["rejects"] == {"no_docstring": 5, "type_error": 1}
    assert [row["id"] for row in stages["seeds"]["examples"]["no_docstring"]] == ["s4", "s5", "s6"]
    assert stages["executions"]["rejects"] == {"failed": 1, "timeout": 1}
    assert [stage["tokens"] for stage in stages.values()] == [0, 22, 30, 510, 0, 0] and stages["responses"]["seconds"] == 12.3
    assert counts["sft"] == 1 and counts["instructions_by_passing_samples"] == {0: 2, 2: 1}
    assert counts["tasks"] == [
        {"category": "class", "difficulty": "hard", "instructions": 1, "samples": 1, "passed": 0, "solved": 0, "sft": 0},
        {"category": "function", "difficulty": "easy", "instructions": 2, "samples": 4, "passed": 2, "solved": 1, "sft": 1},
    ]
    assert counts["lengths"] == {
        "seed_lines": {2: 4}, "instruction_words": {9: 3}, "response_tokens": {100: 1, 101: 1, 102: 1, 103: 1, 104: 1},
        "response_assertions": {2: 3, 5: 1}, "sft_words": {3: 1}, "sft_assertions": {1: 1},
    }  # fmt: skip
    assert counts["concepts"] == {"distinct": 2, "clusters": [{"$\\frac{<b>&☃": 3, "lists": 3}]}
    assert counts["parents_of_examples"].keys() == {"s3", "t2", "r1", "r2", "r3", "t0", "t1"}
    assert len(table(counts).splitlines()) < 15


def test_concepts_that_stand_beside_the_same_others_are_one_cluster(tmp_path):
    lists = [["slicing", "sorting"], ["slicing", "loops"], ["sorting", "loops"], ["shifts", "masks"], ["shifts", "masks"], ["half \ud800"]]
    rows = [{"id": f"c{n}", "seed_id": f"s{n}", "concepts": concepts} for n, concepts in enumerate(lists)]
    (tmp_path / "concepts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert funnel(tmp_path)["concepts"] == {
        "distinct": 6, "clusters": [{"loops": 2, "slicing": 2, "sorting": 2}, {"masks": 2, "shifts": 2}],
    }  # fmt: skip


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(planted):
    counts = write_report(planted)
    page = (planted / "report.html").read_text()
    assert json.loads((planted / "funnel.json").read_text()) == json.loads(json.dumps(counts))
    references = re.findall(r"""(?:src|href|action|data)\s*=\s*["']?([^"'\s>]*)|url\(["']?([^"')]*)|(@import)""", page)
    assert references and all("".join(reference).startswith("#") for reference in references)
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "<b>" not in page
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 6 and all(xml.etree.ElementTree.fromstring(plot) is not None for plot in plots)
    ids = re.findall(r' id="([^"]*)"', "".join(plots))
    assert len(ids) == len(set(ids)), "two plots would share a clip path"
    assert len(page) < 200_000 and "#00000" not in page


@pytest.mark.skipif(not BROWSER, reason="no browser")
def test_the_page_opens_in_a_browser(planted, tmp_path):
    write_report(planted)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]  # fmt: skip
    opened = subprocess.run([BROWSER, *options, (planted / "report.html").as_uri()], capture_output=True, text=True, timeout=120)
    assert opened.returncode == 0 and opened.stdout.count("</svg>") == 6 and opened.stdout.count("<details") == 8, opened.stderr[-2000:]
    assert "$\\frac{&lt;b&gt;&amp;☃" in opened.stdout


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    counts = write_report(tmp_path)
    assert (tmp_path / "report.html").read_text().count("</svg>") == 6
    assert counts["sft"] == 0 and all(stage["in"] == stage["kept"] == 0 for stage in counts["stages"])
