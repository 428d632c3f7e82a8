"""The funnel of a run: what went into each stage, what came out, and why the rest did not.

`funnel` counts the rows on disk, so it is true at any moment of a run, an interrupted one included.
"""

import collections
import json
from pathlib import Path

import jinja2
from scipy.stats import binomtest

from rows import read_rows, write_atomically

STAGES = ("seeds", "concepts", "instructions", "responses", "executions", "selection")
EXAMPLES_PER_REASON = 3


def funnel(folder: Path) -> dict:
    """Count the rows of every stage file under `folder`, and add what config.json knows of the run."""
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
    stages = []
    response_parent, attempts, passes = {}, collections.Counter(), collections.Counter()
    for stage in STAGES:
        rejects, examples, total, tokens = collections.Counter(), {}, 0, 0
        for row in read_rows(folder / f"{stage}.jsonl"):
            total += 1
            tokens += row.get("tokens", 0)
            if reason := row.get("reject"):
                rejects[reason] += 1
                if rejects[reason] <= EXAMPLES_PER_REASON:
                    examples.setdefault(reason, []).append(row)
            if stage == "responses":
                response_parent[row["id"]] = row["instruction_id"]
                attempts[row["instruction_id"]] += 1
            elif stage == "executions" and row["outcome"] == "passed":
                passes[response_parent[row["response_id"]]] += 1
        stages.append({
            "stage": stage,
            "in": total,
            "kept": total - rejects.total(),
            "rejects": dict(rejects.most_common()),
            "examples": examples,
            "tokens": tokens,
            "seconds": round(config.get("seconds", {}).get(stage, 0), 1),
        })
    pass_histogram = collections.Counter(passes[instruction] for instruction in attempts)
    return {
        "stages": stages,
        "sft": sum(1 for _ in read_rows(folder / "sft.jsonl")),
        "instructions_by_passing_samples": {count: pass_histogram[count] for count in sorted(pass_histogram)},
        "sandbox": config.get("sandbox", {}),
        "decontamination": config.get("decontamination", "not run yet"),
    }


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
