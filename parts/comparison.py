"""Scores of several models side by side: a paired comparison of two result folders of eval.py, or of one with
several, and a table of any number."""

import json
from pathlib import Path

import numpy as np

from parts.rows import BadInput, read_objects, read_rows, write_json
from parts.scoring import ALWAYS_FAILS
from parts.statistics import compare_groups, paired, paired_shares, summary

# A benchmark's own tests are `base` in its result.json; `plus` are these and those that EvalPlus added.
SUITES = {
    ("humaneval", "base"): "humaneval",
    ("humaneval", "plus"): "humaneval+",
    ("mbpp", "base"): "mbpp",
    ("mbpp", "plus"): "mbpp+",
    ("self", "base"): "self",
}
SCORED_WITH = ("dataset_md5", "evalplus", "min_time_limit", "load_factor")  # equal in comparable results


def read_scored(folder: Path) -> dict:
    """What the result.json of a folder, or those of its subfolders, say of a model: `results` by benchmark,
    `scores` and `passing` {task id: samples that pass} by suite, the `folder`, and `what` was scored. Raises
    BadInput."""
    own, results, passing, samples = folder / "result.json", {}, {}, {}
    for file in [own] if own.is_file() else sorted(folder.glob("*/result.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            benchmark, tasks = result["benchmark"], result["tasks"]
            for kind in next(iter(tasks.values())):
                suite = SUITES[benchmark, kind]
                samples[suite] = result[kind]["n"] // len(tasks) if "passing_samples" in result else 1
                counts = {key: found[kind] for key, found in result.get("passing_samples", tasks).items()}
                passing[suite] = {task_id: int(count) for task_id, count in counts.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
            raise BadInput(f"no result in {file}: {error!r}") from None
        if benchmark in results:
            raise BadInput(f"{folder} holds two results of {benchmark}: name the folder of one")
        results[benchmark] = result | {"folder": file.parent}
    if not results:
        raise BadInput(f"no result in {folder}: neither it nor a subfolder has a result.json")
    if samples.get("humaneval+", 0) == samples.get("mbpp+"):
        samples["both+"] = samples["mbpp+"]
        passing["both+"] = passing["humaneval+"] | passing["mbpp+"]
    scores = {suite: summary(list(counts.values()), samples[suite]) for suite, counts in passing.items()}
    found = results.values()
    what = [result.get("model") or result.get("samples_file") or "no model named" for result in found]
    what += [f"{result['prompt_used']} prompt" for result in found if result.get("prompt_used")]
    what = ", ".join(dict.fromkeys(what))
    return {"folder": str(folder), "what": what, "results": results, "scores": scores, "passing": passing}


def read_answers(folder: Path) -> dict[str, dict]:
    """{task id: its solution, why it failed, the prompt} of a result folder with one sample per task."""
    samples = [row for _, row in read_objects(folder / "samples.jsonl", "task_id", "solution")]
    answers = {row["task_id"]: {"solution": row["solution"], "failure": ""} for row in samples}
    for row in read_rows(folder / "answers.jsonl"):  # none where a samples file was scored
        answers[row["task_id"]]["prompt_text"] = row.get("prompt_text", "")
    for row in read_rows(folder / "verdicts.jsonl"):
        kind = "plus" if row.get("plus") else "base"
        if row[kind] != "pass":
            where = f", input {row['failed_input']}" if row.get("failed_input") else ""
            failure = f"{kind} tests: {row[kind]}{where} {row.get('detail', '')}"
            answers[row["task_id"]]["failure"] = failure.rstrip()
    return answers


def differing_settings(a: dict, b: dict) -> list[str]:
    """A line for each setting that differs. Raises BadInput where the verdicts are not comparable."""
    folders, lines = f"A = {a['folder']} and B = {b['folder']}", []
    tasks_a, tasks_b = ({suite: set(found) for suite, found in side["passing"].items()} for side in (a, b))
    if tasks_a != tasks_b:
        scored = f"{', '.join(tasks_a)} and {', '.join(tasks_b)}"
        raise BadInput(f"{folders} were not scored on the same tasks: {scored}")
    if any(score["n"] != b["scores"][suite]["n"] for suite, score in a["scores"].items()):
        raise BadInput(f"{folders} cannot be compared: they have different numbers of samples")
    for name, result in a["results"].items():
        other = b["results"][name]
        for key in (*SCORED_WITH, "prompt_used", "temperature", "max_tokens"):
            values = result.get(key), other.get(key)
            if values[0] != values[1]:
                expected = " (a base and an aligned model may need it)" if key == "prompt_used" else ""
                lines.append(f"{name}: {key} is {values[0]} in A, {values[1]} in B{expected}")
                if key in SCORED_WITH and None not in values:
                    raise BadInput(f"{folders} cannot be compared: {lines[-1]}")
    return lines


def task_pairs(a: dict, b: dict, suite: str) -> list[tuple[float, float]]:
    """(share of passing samples in A, in B) of each task."""
    samples = a["scores"][suite]["n"] / len(a["passing"][suite])
    return [
        (n / samples, b["passing"][suite][task_id] / samples) for task_id, n in a["passing"][suite].items()
    ]


def changes(a: dict, b: dict, with_answers: bool) -> list[dict]:
    """The tasks whose share of passing samples by a benchmark's strictest tests differs, and both answers
    where they are wanted and one each."""
    found = []
    for benchmark in a["results"]:
        suite = f"{benchmark}+" if f"{benchmark}+" in a["passing"] else benchmark
        one_each = a["scores"][suite]["n"] == len(a["passing"][suite])
        sides = {"a": a, "b": b} if with_answers and one_each else {}
        answers = {name: read_answers(side["results"][benchmark]["folder"]) for name, side in sides.items()}
        for task_id, in_a in a["passing"][suite].items():
            if (in_b := b["passing"][suite][task_id]) != in_a:
                change = {"benchmark": benchmark, "task_id": task_id}
                change["change"] = "fixed" if in_b > in_a else "broken"
                found.append(change | {name: answers[name][task_id] for name in sides})
    return found


def compare_pair(a: dict, b: dict, with_answers: bool) -> dict:
    """By suite: both scores, their paired difference with a 95 % interval, and p (parts/statistics.py):
    for one sample a task by Agresti and Min's adjusted Wald method and McNemar's exact test, for several by
    bootstrap and permutation test over tasks. Raises BadInput."""
    comparison = {name: {key: side[key] for key in ("folder", "what")} for name, side in (("a", a), ("b", b))}
    comparison |= {"differing_settings": differing_settings(a, b), "suites": []}
    comparison["not_searched"] = not_searched(b)
    for suite in a["passing"]:
        pairs = task_pairs(a, b, suite)
        scores = {name: side["scores"][suite] for name, side in (("a", a), ("b", b))}
        row = paired_shares(pairs) if scores["a"]["n"] > len(pairs) else paired(pairs)
        comparison["suites"].append({"suite": suite, **scores, **row})
    return comparison | {"changes": changes(a, b, with_answers)}


def compare(folder_a: Path, folders_b: list[Path], out: Path | None):
    """Print the paired comparison of A with each B and, with several, the mean difference with an interval by
    bootstrap over tasks and runs; write both to compare.json of `out`. Raises BadInput."""
    a, bs, comparisons = read_scored(folder_a), [read_scored(folder) for folder in folders_b], []
    for b in bs:
        comparisons.append(compare_pair(a, b, with_answers=bool(out)))
        print_comparison(comparisons[-1])
    contents = comparisons[0]
    if len(comparisons) > 1:
        rows = []
        for suite in a["passing"]:
            shares = np.array([task_pairs(a, b, suite) for b in bs])  # (models, tasks, A and B)
            found = compare_groups(shares[:1, :, 0], shares[:, :, 1], np.random.default_rng(0))
            rows.append({"suite": suite, **found})
        contents = {"runs": comparisons, "pooled": {"suites": rows}}
        print(f"B - A over {len(comparisons)} runs")
        for row in rows:
            interval = f"95 % interval {row['low']:+.2%} to {row['high']:+.2%}"
            print(f"{row['suite']:<11} {row['difference']:+.2%} ({interval})")
    if out:
        write_json(out / "compare.json", contents)
        print(f"comparison: {out / 'compare.json'}")


def print_comparison(comparison: dict):
    for side in ("a", "b"):
        print(f"{side.upper()} = {comparison[side]['folder']} ({comparison[side]['what']})")
    for line in comparison["differing_settings"]:
        print(f"differs: {line}")
    for suite in comparison["not_searched"]:
        print(f"NOT SEARCHED for in the data of B: tasks of {suite}")
    for row in comparison["suites"]:
        a, b = (f"{row[side]['k']}/{row[side]['n']} = {row[side]['pass@1']:.1%}" for side in ("a", "b"))
        difference = f"{row['difference']:+.1%} (95 % interval {row['low']:+.1%} to {row['high']:+.1%})"
        counts = f"fixed {row['fixed']}, broken {row['broken']}, {row['test']} p = {row['p']:.3g}"
        print(f"{row['suite']:<11} A {a}   B {b}   B - A {difference}   {counts}")
    for kind in ("fixed", "broken"):
        ids = [change["task_id"] for change in comparison["changes"] if change["change"] == kind]
        if ids:
            print(f"{kind}: {', '.join(ids[:20])}" + (f" and {len(ids) - 20} more" if len(ids) > 20 else ""))


def table(folders: list[Path], out: Path | None):
    """Print a Markdown table: by folder and suite, pass@1 in percent (k/n), its 95 % interval, larger pass@k.
    Write it to table.json of `out`. Raises BadInput."""
    rows = [read_scored(folder) for folder in folders]
    suites = [suite for suite in SUITES.values() if any(suite in row["scores"] for row in rows)]
    lines = [["folder", "model", *suites], ["---", "---", *("---:" for _ in suites)]]
    for row in rows:
        scores = [row["scores"].get(suite) for suite in suites]
        lines.append([row["folder"], row["what"], *(cell(score) if score else "-" for score in scores)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths)) + " |")
    for row in rows:
        if unsearched := not_searched(row):
            print(f"{row['folder']}: the model's data was NOT SEARCHED for tasks of {', '.join(unsearched)}")
    for benchmark, task_id in ALWAYS_FAILS.items():
        found = [row["passing"].get(f"{benchmark}+", {}) for row in rows]
        for n in {len(shares) for shares in found if task_id in shares}:
            print(f"EvalPlus 0.3.1 fails {task_id} for every answer: {n - 1} of {n} is the best there is")
    if out:
        rows = [{key: row[key] for key in ("folder", "what", "scores")} for row in rows]
        write_json(out / "table.json", {"suites": suites, "rows": rows})
        print(f"table: {out / 'table.json'}")


def not_searched(scored: dict) -> list[str]:
    """The scored suites whose tasks may stand in the data that the model was trained on. HumanEval+ and MBPP+
    have the tasks of HumanEval and MBPP, with other solutions."""
    missing = []
    for benchmark, result in scored["results"].items():
        suites = [suite for suite in (f"{benchmark}+", benchmark) if suite in scored["scores"]]
        searched = result.get("searched")
        if benchmark != "self" and searched is not None and not {suites[0], f"{benchmark}+"} & set(searched):
            missing.append(suites[0])
    return missing


def cell(score: dict) -> str:
    low, high = (100 * end for end in score["interval"])
    text = f"{100 * score['pass@1']:.1f} ({score['k']}/{score['n']}), {low:.0f} to {high:.0f}"
    larger = (key for key in score if key.startswith("pass@") and key != "pass@1")
    return text + "".join(f", {key} {100 * score[key]:.1f}" for key in larger)
