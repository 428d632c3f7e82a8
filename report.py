"""The funnel of a run: what went into each stage, what came out, and why the rest did not.

    python selfcodealign.py report --out runs/first      writes funnel.json and report.html, as every other command does at its end

`funnel` counts the rows on disk, so it is true at any moment of a run, an interrupted one included. It reads each file once and keeps
no more than counters and a few examples, however many rows there are; what links one row to another goes into a temporary database.
"""

import collections
import contextlib
import json
import re
import sqlite3
from pathlib import Path

import jinja2
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.stats import binomtest

from rows import read_rows, write_atomically

PARENT = {  # stage: (the stage its rows come from, the key that names the row)
    "seeds": (None, None),
    "concepts": ("seeds", "seed_id"),
    "instructions": ("concepts", "concepts_id"),
    "responses": ("instructions", "instruction_id"),
    "executions": ("responses", "response_id"),
    "selection": ("executions", "response_id"),
}
STAGES = tuple(PARENT)
EXAMPLES_PER_REASON = 3
COMMON_CONCEPTS = 40
LINKS = """
    create table concepts (seed integer, concept text, primary key (seed, concept)) without rowid;
    create table instructions (id text primary key, category text, difficulty text) without rowid;
    create table responses (id text, instruction text);
    create table passed (response text primary key) without rowid;
"""


def funnel(folder: Path) -> dict:
    """Count the rows of every stage file under `folder`, and add what config.json knows of the run."""
    config = read_config(folder)
    stages, parents_of_examples, wanted = {}, {}, set()
    lengths = {what: collections.Counter() for what in LENGTHS}
    with contextlib.closing(sqlite3.connect("")) as links:
        links.executescript(LINKS)
        for stage in reversed(STAGES):  # from the end, so that an example can ask for the rows that it comes from
            rejects, examples, total, tokens = collections.Counter(), {}, 0, 0
            for row in read_rows(folder / f"{stage}.jsonl"):
                total += 1
                tokens += row.get("tokens", 0)
                if reason := row.get("reject"):
                    rejects[reason] += 1
                is_example = reason and rejects[reason] <= EXAMPLES_PER_REASON
                if is_example:
                    examples.setdefault(reason, []).append(row)
                if row["id"] in wanted:
                    parents_of_examples[row["id"]] = row
                if stage != "seeds" and (is_example or stage == "responses" and row["id"] in wanted):
                    wanted.add(row[PARENT[stage][1]])
                measure(stage, row, total, lengths, links)
            stages[stage] = {
                "stage": stage,
                "in": total,
                "kept": total - rejects.total(),
                "rejects": dict(rejects.most_common()),
                "examples": examples,
                "tokens": tokens,
                "seconds": round(config.get("seconds", {}).get(stage, 0), 1),
            }
        tasks, passing = count_passes(links)
        concepts = common_concepts(links)
    for stage, (parent, _) in PARENT.items():
        expected = stages[parent]["kept"] * (config.get("samples", 1) if stage == "responses" else 1) if parent else 0
        stages[stage]["waiting"] = max(0, expected - stages[stage]["in"])
    sft = 0
    for row in read_rows(folder / "sft.jsonl"):
        sft += 1
        tasks[row["category"], row["difficulty"]]["sft"] += 1
        lengths["sft_words"][len(row["response"].split())] += 1
        lengths["sft_assertions"][assertions(row["tests"])] += 1
    return {
        "stages": [stages[stage] for stage in STAGES],
        "sft": sft,
        "instructions_by_passing_samples": {count: passing[count] for count in sorted(passing)},
        "tasks": [{"category": kind, "difficulty": level, **counts} for (kind, level), counts in sorted(tasks.items())],
        "lengths": {what: {length: counts[length] for length in sorted(counts)} for what, counts in lengths.items()},
        "concepts": concepts,
        "parents_of_examples": parents_of_examples,
        "sandbox": config.get("sandbox", {}),
        "decontamination": config.get("decontamination", "not run yet"),
    }


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}


LENGTHS = {  # what is measured, and of which rows
    "seed_lines": "lines of a kept seed",
    "instruction_words": "words of a kept instruction",
    "response_tokens": "tokens of a sample, rejected or not",
    "response_assertions": "assertions in the tests of a well-formed sample",
    "sft_words": "words of a final response",
    "sft_assertions": "assertions in the tests of a final example",
}


def measure(stage: str, row: dict, number: int, lengths: dict[str, collections.Counter], links: sqlite3.Connection):
    """Add the row, the `number`th of its stage, to the lengths, and what others must know of it to the links."""
    kept = "reject" not in row
    if stage == "responses":
        lengths["response_tokens"][row.get("tokens", 0)] += 1
        links.execute("insert or ignore into responses values (?, ?)", (row["id"], row["instruction_id"]))
        if kept:
            lengths["response_assertions"][assertions(row["tests"])] += 1
    elif kept and stage == "seeds":
        lengths["seed_lines"][row["code"].count("\n") + 1] += 1
    elif kept and stage == "concepts":
        links.executemany("insert or ignore into concepts values (?, ?)", [(number, concept) for concept in set(row["concepts"])])
    elif kept and stage == "instructions":
        lengths["instruction_words"][len(row["instruction"].split())] += 1
        links.execute("insert or ignore into instructions values (?, ?, ?)", (row["id"], row["category"], row["difficulty"]))
    elif kept and stage == "executions":
        links.execute("insert or ignore into passed values (?)", (row["response_id"],))


def assertions(tests: str) -> int:
    return len(re.findall(r"^\s*(?:assert\b|self\.assert)", tests, re.MULTILINE))


def count_passes(links: sqlite3.Connection) -> tuple[dict[tuple[str, str], dict[str, int]], collections.Counter]:
    """For each category and difficulty {instructions, samples, passed, solved, sft: 0}; and the instructions by number of passing samples.

    Instructions that have no sample yet are not among them. `solved` are those with a passing sample.
    """
    tasks, passing = {}, collections.Counter()
    for category, difficulty, passed, samples, number in links.execute("""
        select category, difficulty, passed, sum(samples), count(*) from (
            select instruction, count(*) as samples, count(passed.response) as passed
            from responses left join passed on passed.response = responses.id group by instruction
        ) join instructions on instructions.id = instruction group by category, difficulty, passed
    """):
        counts = tasks.setdefault((category, difficulty), dict.fromkeys(("instructions", "samples", "passed", "solved", "sft"), 0))
        counts["instructions"] += number
        counts["samples"] += samples
        counts["passed"] += passed * number
        counts["solved"] += number if passed else 0
        passing[passed] += number
    return tasks, passing


def common_concepts(links: sqlite3.Connection) -> dict:
    """How many concepts there are, and clusters of the most common: those that stand beside the same others, largest first.

    Average linkage of the cosine between the concepts' counts of one another, cut at 0.75.
    """
    links.execute(f"""
        create table common as select concept, count(*) as seeds from concepts
        group by concept having seeds > 1 order by seeds desc, concept limit {COMMON_CONCEPTS}
    """)
    common = dict(links.execute("select concept, seeds from common order by seeds desc, concept"))
    place = {concept: number for number, concept in enumerate(common)}
    together = [[0] * len(common) for _ in common]
    for one, other, seeds in links.execute("""
        select one.concept, other.concept, count(*) from concepts as one join concepts as other using (seed)
        where one.concept in (select concept from common) and other.concept in (select concept from common) group by 1, 2
    """):
        together[place[one]][place[other]] = seeds
    clusters = fcluster(linkage(together, "average", "cosine"), 0.75, "distance") if len(common) > 1 else [1] * len(common)
    members = collections.defaultdict(dict)
    for cluster, (concept, seeds) in zip(clusters, common.items()):
        members[cluster][concept] = seeds
    distinct, = links.execute("select count(distinct concept) from concepts").fetchone()
    return {"distinct": distinct, "clusters": sorted(members.values(), key=lambda cluster: -sum(cluster.values()))}


def table(counts: dict) -> str:
    """The funnel as plain text, one line per stage."""
    lines = [f"{'stage':<13}{'in':>8}{'kept':>8}{'share':>8}{'tokens':>10}{'seconds':>9}  most common rejects"]
    for stage in counts["stages"]:
        share = f"{stage['kept'] / stage['in']:.0%}" if stage["in"] else "-"
        reasons = ", ".join(f"{reason} {count}" for reason, count in list(stage["rejects"].items())[:3])
        lines.append(
            f"{stage['stage']:<13}{stage['in']:>8}{stage['kept']:>8}{share:>8}{stage['tokens']:>10}{stage['seconds']:>9}  {reasons}"
        )
    histogram = counts["instructions_by_passing_samples"]
    lines.append(f"sft examples {counts['sft']}; instructions by number of passing samples: "
                 + (", ".join(f"{passing}: {number}" for passing, number in histogram.items()) or "none"))
    lines.append(f"decontamination: {counts['decontamination']}")
    return "\n".join(lines)


def projection(counts: dict, seeds: int) -> str:
    """What a run of `seeds` kept seeds would give if it went on like this one: rows, 95 % Wilson intervals of the shares, tokens, hours."""
    scale = seeds / max(1, counts["stages"][0]["kept"])
    lines = [f"{'stage':<13}{'in':>12}{'kept':>12}{'share':>8}{'95 % interval':>18}{'new tokens':>14}{'hours':>8}"]
    for stage in counts["stages"]:
        interval = share_interval(stage["kept"], stage["in"])
        lines.append(
            f"{stage['stage']:<13}{stage['in'] * scale:>12.0f}{stage['kept'] * scale:>12.0f}{stage['kept'] / max(1, stage['in']):>8.1%}"
            f"{interval:>18}{stage['tokens'] * scale:>14.0f}{stage['seconds'] * scale / 3600:>8.1f}"
        )
    hours = sum(stage["seconds"] for stage in counts["stages"]) * scale / 3600
    lines.append(
        f"expected: {counts['sft'] * scale:.0f} examples, {share_interval(counts['sft'], counts['stages'][0]['kept'])} of the seeds, in "
        f"{hours:.1f} hours on this machine; a larger run finds more duplicates, so take the examples as an upper end"
    )
    return "\n".join(lines)


def share_interval(k: int, n: int) -> str:
    if not n:
        return "-"
    interval = binomtest(k, n).proportion_ci(method="wilson")
    return f"{interval.low:.1%} to {interval.high:.1%}"


def write_report(folder: Path) -> dict:
    """Write funnel.json and report.html of the run folder; returns the funnel."""
    counts = funnel(folder)
    page = jinja2.Environment(autoescape=True).from_string(PAGE).render(
        name=folder.name,
        funnel=counts,
        config=json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {},
        samples=[row for row, _ in zip(read_rows(folder / "sft.jsonl"), range(20))],
    )
    write_atomically(folder / "report.html", page)
    write_atomically(folder / "funnel.json", json.dumps(counts, indent=2))
    return counts


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ name }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
  table { border-collapse: collapse; width: 100% } td, th { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
  td:first-child, th:first-child, .text { text-align: left } pre { background: #f6f6f4; padding: .8rem; overflow-x: auto; white-space: pre-wrap }
  .bar { background: #4a7; height: .7rem } summary { cursor: pointer }
</style>
<h1>{{ name }}</h1>
<p>{{ funnel.sft }} examples in sft.jsonl, written by {{ config.model }}. Decontamination: {{ funnel.decontamination }}.</p>
<h2>Funnel</h2>
<table><tr><th>stage<th>in<th>kept<th>share<th>tokens<th>seconds<th class="text">rejects</tr>
{% for stage in funnel.stages %}<tr><td>{{ stage.stage }}<td>{{ stage["in"] }}<td>{{ stage.kept }}
<td>{% if stage["in"] %}{{ "%.0f%%" % (100 * stage.kept / stage["in"]) }}<div class="bar" style="width: {{ 100 * stage.kept / stage["in"] }}%"></div>{% endif %}
<td>{{ stage.tokens }}<td>{{ stage.seconds }}<td class="text">{% for reason, count in stage.rejects.items() %}{{ reason }} {{ count }}{{ ", " if not loop.last }}{% endfor %}</tr>
{% endfor %}</table>
<h2>Instructions by number of passing samples</h2>
<table><tr>{% for passing in funnel.instructions_by_passing_samples %}<th>{{ passing }}{% endfor %}</tr>
<tr>{% for number in funnel.instructions_by_passing_samples.values() %}<td>{{ number }}{% endfor %}</tr></table>
<h2>Rejects, up to three of each reason</h2>
{% for stage in funnel.stages %}{% for reason, rows in stage.examples.items() %}
<details><summary>{{ stage.stage }}: {{ reason }}</summary>{% for row in rows %}<pre>{% for key, value in row.items() %}{{ key }}: {{ value }}
{% endfor %}</pre>{% endfor %}</details>{% endfor %}{% endfor %}
<h2>Kept examples</h2>
{% for row in samples %}<details><summary>{{ row.id }}: {{ row.category }}, {{ row.difficulty }}</summary>
<h3>Instruction</h3><pre>{{ row.instruction }}</pre><h3>Response</h3><pre>{{ row.response }}</pre><h3>Tests</h3><pre>{{ row.tests }}</pre></details>{% endfor %}
<h2>Protection of the sandbox</h2>
<table>{% for property, layer in funnel.sandbox.items() %}<tr><td>{{ property }}<td class="text">{{ layer }}</tr>{% endfor %}</table>
<h2>Settings</h2>
<table>{% for key, value in config.items() %}<tr><td>{{ key }}<td class="text">{{ value }}</tr>{% endfor %}</table>
"""
