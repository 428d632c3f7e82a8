"""The funnel against rows counted by hand, and the page as a browser without a network sees it."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest

import selfcodealign
from extras.report import Details, advice, projection, table, under_way, write_report
from parts.rows import BadInput, read_rows
from selfcodealign import METHOD, funnel

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def task(number: int, category: str = "function", difficulty: str = "easy", **more) -> dict:
    row = {
        "id": f"t{number}",
        "seed_id": f"s{number}",
        "concepts_id": f"c{number}",
        "category": category,
        "difficulty": difficulty,
        "tokens": 10,
    }
    return row | (more or {"instruction": "Write a function f that adds its two numbers."})


def sample(number: int, of: int, tests: int = 2, **more) -> dict:
    ids = {"id": f"r{number}", "seed_id": f"s{of}", "concepts_id": f"c{of}", "instruction_id": f"t{of}"}
    row = ids | {"sample": 0, "tokens": 100 + number}
    tests = "```python\n" + "assert f(1, 2) == 3  # assert\n" * tests + "```"
    return row | (more or {"response": "```python\ndef f(a, b):\n    return a + b\n```", "tests": tests})


def verdict(number: int, of: int, outcome: str = "passed") -> dict:
    row = {"id": f"e{number}", "instruction_id": f"t{of}", "response_id": f"r{number}", "outcome": outcome}
    return row | ({"reject": outcome} if outcome != "passed" else {})


ROWS = {
    "seeds": [{"id": f"s{n}", "where": f"m.py:{n}", "code": "def f(x):\n    return x"} for n in range(4)]
    + [{"id": f"s{n}", "where": f"m.py:{n}", "reject": "no_docstring"} for n in range(4, 9)]
    + [
        {
            "id": "s9",
            "code": "x <script>alert(1)</script>",
            "reject": "type_error",
            "benchmark": ["HumanEval/1"],
        }
    ],
    "concepts": [
        {"id": f"c{n}", "seed_id": f"s{n}", "concepts": ["lists", "$\\frac{<b>&☃"], "tokens": 5}
        for n in range(3)
    ]
    + [{"id": "c3", "seed_id": "s3", "text": "half \ud800", "tokens": 7, "reject": "length"}],
    "instructions": [task(0), task(1), task(2, "class", "hard")],
    "responses": [sample(0, 0), sample(1, 0), sample(2, 1), sample(3, 1, 5)]
    + [sample(4, 2, text="no", reject="no_code_block")],
    "executions": [verdict(0, 0), verdict(1, 0), verdict(2, 1, "failed"), verdict(3, 1, "timeout")],
    "selection": [
        {"id": "x0", "instruction_id": "t0", "response_id": "r0"},
        {"id": "x1", "instruction_id": "t0", "response_id": "r1", "reject": "not_chosen"},
    ],
    "sft": [
        {
            "id": "f0",
            "category": "function",
            "difficulty": "easy",
            "instruction": "Add <b>two</b> numbers.",
            "response": "One two three.",
            "tests": "assert f(1, 2) == 3\n",
        }
    ],
}


STAGES = {name: (stage.parent, stage.parent_id, stage.several) for name, stage in METHOD.items()}


@pytest.fixture
def planted(tmp_path):
    """A run folder whose last sample of six is still to come."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for stage, rows in ROWS.items():
        (folder / f"{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"model": "m/<b>", "samples": 2, "difficulties": "easy,hard", "seconds": {"responses": 12.34}}
    config |= {"decontamination": "not yet", "sandbox": {"files": "own"}, "stages": STAGES}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_counts_are_those_counted_by_hand(planted):
    counts = funnel(planted)
    rows = {stage["stage"]: stage for stage in counts["stages"]}
    assert list(rows) == ["seeds", "concepts", "instructions", "responses", "executions", "selection"]
    assert [(stage["in"], stage["kept"], stage["waiting"]) for stage in rows.values()] == [
        (10, 4, 0),
        (4, 3, 0),
        (3, 3, 0),
        (5, 4, 1),
        (4, 2, 0),
        (2, 1, 0),
    ]
    assert list(rows["seeds"]["rejects"].items()) == [("no_docstring", 5), ("type_error", 1)]
    assert rows["executions"]["rejects"] == {"failed": 1, "timeout": 1}
    assert [stage["tokens"] for stage in rows.values()] == [0, 22, 30, 510, 0, 0]
    assert rows["responses"]["seconds"] == 12.3
    assert counts["sft"] == 1 and counts["instructions_by_passing_samples"] == {0: 2, 2: 1}
    tasks = sorted(counts["tasks"], key=lambda task: task["category"])
    assert tasks == [
        {
            "category": "class",
            "difficulty": "hard",
            "instructions": 1,
            "samples": 1,
            "passed": 0,
            "solved": 0,
        },
        {
            "category": "function",
            "difficulty": "easy",
            "instructions": 2,
            "samples": 4,
            "passed": 2,
            "solved": 1,
        },
    ]
    assert counts["contaminated_tasks"] == ["HumanEval/1"] and counts["tested"]
    assert len(table(counts).splitlines()) == 9
    assert under_way(counts).startswith(
        "responses: 5 of 6 done (83%); 12 s so far, about 2.5 s to go; 41 new"
    )


def test_the_counts_fit_together_while_the_run_goes_on(planted, monkeypatch):
    """Between any two files that are read, another sample is written, executed and passes."""
    made = iter(range(100, 200))

    def read_while_it_goes_on(path):
        n = next(made)
        for stage, row in (("responses", sample(n, 1)), ("executions", verdict(n, 1))):
            with (planted / f"{stage}.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        return list(read_rows(path))

    monkeypatch.setattr(selfcodealign, "read_rows", read_while_it_goes_on)
    counts = funnel(planted)
    rows = {stage["stage"]: stage for stage in counts["stages"]}
    passed = sum(samples * number for samples, number in counts["instructions_by_passing_samples"].items())
    assert passed == rows["executions"]["kept"] and rows["executions"]["in"] <= rows["responses"]["kept"]


def test_what_only_the_page_shows_is_what_was_counted_by_hand(planted):
    details = Details(planted, STAGES)
    assert [row["id"] for row in details.rejected["seeds", "no_docstring"]] == ["s4", "s5", "s6"]
    origins = {
        reason: [row["id"] for row in details.with_origins(rows[0])]
        for (_, reason), rows in details.rejected.items()
    }
    assert origins["timeout"] == ["t1", "r3", "e3"] and origins["not_chosen"] == ["t0", "r1", "x1"]
    assert origins["no_code_block"] == ["t2", "r4"] and origins["length"] == ["s3", "c3"]
    assert details.final_by_task == {("function", "easy"): 1}
    assert details.concepts == {"lists": 3, "$\\frac{<b>&☃": 3} and [row["id"] for row in details.final] == [
        "f0"
    ]


def test_advice_names_first_what_costs_most_examples_and_a_projection_is_to_scale():
    stages = [
        {"stage": "seeds", "in": 1000, "kept": 100, "rejects": {"length": 900}, "tokens": 0, "seconds": 36.0},
        {
            "stage": "responses",
            "in": 100,
            "kept": 50,
            "rejects": {"length": 9, "no_code_block": 41},
            "tokens": 5,
            "seconds": 0.0,
        },
        {"stage": "executions", "in": 50, "kept": 10, "rejects": {"failed": 40}, "tokens": 0, "seconds": 0.0},
    ]
    counts = {"stages": stages, "sft": 10, "quality": {"mutants": 100, "killed": 30}}
    assert [hint.split()[0] for hint in advice(counts)] == ["executions:", "responses:", "tests"]
    lines = projection(counts, 20_000).splitlines()
    assert lines[1].split() == ["seeds", "200000", "20000", "10.0%", "8.3%", "to", "12.0%", "0", "2.0"]
    assert lines[-1].startswith("expected: 2000 examples, 5.5% to 17.4% of the seeds, in 2.0 hours")


class Tags(html.parser.HTMLParser):
    """Checks that tags which must be closed are, and in their order; keeps the names of all tags."""

    OPTIONAL = {"meta", "html", "tr", "td", "th", "li"}

    def __init__(self, page: str):
        super().__init__()
        self.names, self.open = [], []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, name, attributes):
        self.names.append(name)
        if name not in self.OPTIONAL:
            self.open.append(name)

    def handle_endtag(self, name):
        assert name in self.OPTIONAL or self.open.pop() == name, (name, self.getpos())


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(planted):
    counts = write_report(planted)
    page = (planted / "report.html").read_text()
    assert json.loads((planted / "funnel.json").read_text()) == json.loads(json.dumps(counts))
    assert not re.findall(r"(?:src|href|action|data)\s*=|url\(|@import|<script|javascript:|\son\w+\s*=", page)
    assert "&lt;script&gt;alert(1)" in page and "<b>" not in page and "half ?" in page
    assert Tags(page).names.count("details") == 8 and len(page) < 30_000
    assert "Under way" in page and "41 new tokens/s" in page and 'http-equiv="refresh"' in page
    assert page.index("function<td") > page.index("class<td") and "--low: 9.5%; --high: 90.5%" in page


@pytest.mark.skipif(not BROWSER, reason="no browser")
def test_the_page_opens_in_a_browser(planted, tmp_path):
    write_report(planted)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [BROWSER, *options, f"--user-data-dir={tmp_path}/browser", (planted / "report.html").as_uri()]
    opened = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert opened.returncode == 0 and opened.stdout.count("<details") == 8, opened.stderr[-2000:]
    assert "$\\frac{&lt;b&gt;&amp;☃" in opened.stdout


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"stages": STAGES}))
    counts = write_report(tmp_path)
    Tags((tmp_path / "report.html").read_text())
    assert counts["sft"] == 0 and all(stage["in"] == stage["kept"] == 0 for stage in counts["stages"])


def test_a_folder_whose_rows_have_no_ancestors_is_refused_in_one_line(planted, inside):
    config = json.loads((planted / "config.json").read_text())
    del config["stages"]
    (planted / "config.json").write_text(json.dumps(config))
    for arguments in (
        ("report", "--out", planted),
        ("trace", planted, "f0"),
        ("selection", "--out", planted),
    ):
        refused = inside("selfcodealign.py", *arguments)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr


def test_a_report_that_cannot_be_written_is_one_line(planted):
    (planted / "report.html").mkdir()
    with pytest.raises(BadInput, match="cannot write .*report.html: Is a directory"):
        write_report(planted)
