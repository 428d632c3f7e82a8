"""Is one model better than another? Statistics and pages over the result folders of eval.py, which calls this.

    python eval.py --compare DIR_A DIR_B [--flagged FILE] [--out DIR]     paired: difference, exact test, every task fixed or broken
    python eval.py --compare DIR_A DIR_B1 DIR_B2 ...                      the same, of several runs of one experiment, and all of them pooled
    python eval.py --table DIR DIR DIR ... [--out DIR]                    pass@1 of several models (the layout of the paper's T1 and T9)

A folder is one model's: a result.json of one benchmark, or a subfolder with one for each. Both print text; --out gets the same as JSON and
as one page, compare.html with both answers of each task side by side. HumanEval+ has 164 tasks, so one score's standard error is near
4 points; the paired test, on both benchmarks together, sees much smaller differences.
"""

import json
import math
from pathlib import Path

import jinja2
import numpy as np
from scipy.stats import binomtest

from rows import BadInput, read_rows, write_atomically

Z = 1.959964  # of a 95 % interval
SUITES = ("humaneval", "humaneval+", "mbpp", "mbpp+", "self")
TEMPLATES = Path(__file__).parent / "templates"


# ------------------------------------------------------------------------------------------------------------- statistics


def pass_at(k: int, n: int, passing: int) -> float:
    """The chance that of k samples, drawn from n of which some pass, at least one does: unbiased for pass@k."""
    return 1 - math.comb(n - passing, k) / math.comb(n, k)


def summary(passes: list[list[bool]]) -> dict:
    """Of a task's samples, task by task, whether they pass: passing k of n in all, pass@1 with its 95 % interval, and other pass@k.

    One sample per task: Wilson's interval. Several: tasks are what is sampled, so the normal interval of the tasks' means."""
    samples = len(passes[0])
    k, n = sum(map(sum, passes)), samples * len(passes)
    if samples == 1 or len(passes) == 1:
        wilson = binomtest(k, n).proportion_ci(method="wilson")
        interval = [wilson.low, wilson.high]
    else:
        spread = sum((sum(task) / samples - k / n) ** 2 for task in passes) / (len(passes) - 1)
        half = Z * math.sqrt(spread / len(passes))
        interval = [max(0.0, k / n - half), min(1.0, k / n + half)]
    larger = {size: [pass_at(size, samples, sum(task)) for task in passes] for size in (5, 10, 100) if size <= samples}
    return {"k": k, "n": n, "pass@1": k / n, "interval": interval} | {f"pass@{size}": sum(at) / len(at) for size, at in larger.items()}


def paired(pairs: list[tuple[bool, bool]]) -> dict:
    """Difference of two paired proportions, with Agresti and Min's adjusted Wald interval (2005) and the exact two-sided McNemar p."""
    fixed, broken = sum(b > a for a, b in pairs), sum(a > b for a, b in pairs)
    n, gained, lost = len(pairs) + 2, fixed + 0.5, broken + 0.5
    centre = (gained - lost) / n
    half = Z * ((gained + lost - (gained - lost) ** 2 / n) ** 0.5) / n
    p = binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    difference = {"difference": (fixed - broken) / len(pairs), "low": centre - half, "high": centre + half}
    return difference | {"fixed": fixed, "broken": broken, "p": p}


def pooled(runs: list[list[tuple[bool, bool]]]) -> dict:
    """Mean difference over `runs`, each the same tasks in the same order, with a 95 % interval for other tasks and other runs.

    Bootstrap: tasks and runs are both drawn anew, so runs of the same tasks do not count as more tasks.
    """
    changed = np.array([[float(b) - float(a) for a, b in pairs] for pairs in runs])  # (runs, tasks)
    random = np.random.default_rng(0)
    run_weights, task_weights = (random.multinomial(n, np.full(n, 1 / n), size=10_000) / n for n in changed.shape)
    low, high = np.quantile(((run_weights @ changed) * task_weights).sum(axis=1), [0.025, 0.975])
    return {"difference": changed.mean(), "low": low, "high": high}


# ----------------------------------------------------------------------------------------------------------------- reading


def suites(result: dict) -> list[tuple[str, str]]:
    """(key, name) of what a result scores: the benchmark's own tests, and those that EvalPlus added."""
    return [(suite, result["benchmark"] + ("+" if suite == "plus" else "")) for suite in next(iter(result["tasks"].values()))]


def read_results(folder: Path) -> dict[str, dict]:
    """The results of a folder by benchmark, each with its own `folder`."""
    files = [folder / "result.json"] if (folder / "result.json").is_file() else sorted(folder.glob("*/result.json"))
    found = {}
    for file in files:
        try:
            result = json.loads(file.read_text())
            for verdict in result["tasks"].values():
                if verdict.keys() not in ({"base"}, {"base", "plus"}):
                    raise ValueError("a task's verdict is {base} or {base, plus}")
            for suite, name in suites(result):
                SUITES.index(name)
                result[suite] = result.get(suite) or summary([[verdict[suite]] for verdict in result["tasks"].values()])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
            raise BadInput(f"no result in {file}: {error!r}") from None
        if result["benchmark"] in found:
            raise BadInput(f"{folder} holds two results of {result['benchmark']}: name the folder of one")
        found[result["benchmark"]] = result | {"folder": str(file.parent)}
    if not found:
        raise BadInput(f"no result in {folder}: neither it nor a subfolder has a result.json")
    return {name: found[name] for name in SUITES if name in found}


def make_folder(folder: Path):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error}") from None


def read_flagged(file: Path | None) -> set[str]:
    """The task ids of a JSON list, or those that a run's funnel.json calls contaminated."""
    try:
        flagged = json.loads(file.read_text()) if file else []
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: {error}") from None
    if isinstance(flagged, dict):
        flagged = flagged.get("contaminated_tasks")
    if not isinstance(flagged, list) or not all(isinstance(task_id, str) for task_id in flagged):
        raise BadInput(f"{file} is neither a JSON list of task ids nor the funnel.json of a run")
    return set(flagged)


def read_answers(result: dict) -> dict[str, dict]:
    """{task id: the answer, why it failed, and what was asked} of a result folder."""
    folder = Path(result["folder"])
    try:
        samples, verdicts = ([json.loads(line) for line in (folder / name).open()] for name in ("samples.jsonl", "verdicts.jsonl"))
        answers = {row["task_id"]: {"solution": row["solution"], "failure": ""} for row in samples}
        for row in read_rows(folder / "answers.jsonl"):  # none where a samples file was scored
            answers[row["task_id"]]["asked"] = row["asked"]
        for row in verdicts:
            suite, status = [(suite, row[suite]) for suite in ("base", "plus") if row.get(suite)][-1]
            if status != "pass":
                where = f", input {row['failed_input']}" if row.get("failed_input") else ""
                answers[row["task_id"]]["failure"] = f"{suite} tests: {status}{where} {row.get('detail', '')}".rstrip()
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BadInput(f"cannot read the answers of {folder}: {error!r}") from None
    return answers


# -------------------------------------------------------------------------------------------------------------- comparison


def compare(folder_a: Path, folder_b: Path, out: Path | None = None, flagged_file: Path | None = None):
    """Print the paired comparison of two result folders, and write it to compare.json and compare.html of `out`. Raises BadInput."""
    a, b = read_results(folder_a), read_results(folder_b)
    check_comparable(folder_a, a, folder_b, b)
    flagged = read_flagged(flagged_file)
    comparison = {"a": side(folder_a, a), "b": side(folder_b, b), "suites": compare_suites(a, b, set())}
    if flagged_file:
        comparison |= {"flagged": sorted(flagged), "without_flagged": compare_suites(a, b, flagged)}
    comparison["changes"] = changes(a, b)
    print_comparison(comparison)
    if out:
        for name in a:
            add_answers([change for change in comparison["changes"] if change["benchmark"] == name], a[name], b[name])
        write_page(out, "compare", comparison)


def compare_runs(folder_a: Path, folders_b: list[Path], flagged_file: Path | None = None):
    """Print the paired comparison of a folder with each of several, and with all of them pooled. Raises BadInput."""
    a, runs, flagged = read_results(folder_a), [], read_flagged(flagged_file)
    for folder in folders_b:
        b = read_results(folder)
        check_comparable(folder_a, a, folder, b)
        runs.append(task_pairs(a, b, flagged))
        print(f"A = {folder_a}, B = {folder}")
        for suite, pairs in runs[-1].items():
            print(line(compare_pairs(suite, pairs)))
    print(f"B - A over {len(runs)} runs" + (f", without {len(flagged)} flagged tasks" if flagged_file else ""))
    for suite in runs[0]:
        found = pooled([pairs[suite] for pairs in runs])
        print(f"{suite:<11} {found['difference']:+.2%} (95 % interval {found['low']:+.2%} to {found['high']:+.2%})")


def check_comparable(folder_a: Path, a: dict[str, dict], folder_b: Path, b: dict[str, dict]):
    if {name: asked(result) for name, result in a.items()} != {name: asked(result) for name, result in b.items()}:
        raise BadInput(f"{folder_a} and {folder_b} were not scored on the same tasks")
    if any("passing_samples" in result for result in [*a.values(), *b.values()]):
        raise BadInput("the paired comparison takes one sample per task; --table shows results with several")


def asked(result: dict) -> tuple[str | None, list[str]]:
    """What a result was scored on: the hash of the benchmark's file, and the ids of its tasks."""
    return result.get("dataset_md5"), sorted(result["tasks"])


def side(folder: Path, results: dict[str, dict]) -> dict:
    names = dict.fromkeys(result.get("model") or result.get("samples_file") or "no model named" for result in results.values())
    prompts = dict.fromkeys(result["prompt_used"] for result in results.values() if result.get("prompt_used"))
    return {"folder": str(folder), "what": ", ".join(names) + (f", {' and '.join(prompts)} prompt" if prompts else "")}


def compare_suites(a: dict[str, dict], b: dict[str, dict], without: set[str]) -> list[dict]:
    """Both scores and their paired difference of each suite, and of HumanEval+ and MBPP+ together where both are there."""
    return [compare_pairs(suite, pairs) for suite, pairs in task_pairs(a, b, without).items() if pairs]


def compare_pairs(suite: str, pairs: list[tuple[bool, bool]]) -> dict:
    return {"suite": suite, "a": summary([[a] for a, _ in pairs]), "b": summary([[b] for _, b in pairs]), **paired(pairs)}


def task_pairs(a: dict[str, dict], b: dict[str, dict], without: set[str]) -> dict[str, list[tuple[bool, bool]]]:
    """{suite: (A's verdict, B's) of each task}, `both+` included."""
    pairs = {}
    for benchmark, result in a.items():
        tasks_b = b[benchmark]["tasks"]
        for suite, name in suites(result):
            counted = {task_id: verdict for task_id, verdict in result["tasks"].items() if task_id not in without}
            pairs[name] = [(verdict[suite], tasks_b[task_id][suite]) for task_id, verdict in counted.items()]
    if {"humaneval+", "mbpp+"} <= pairs.keys():
        pairs["both+"] = pairs["humaneval+"] + pairs["mbpp+"]
    return pairs


def changes(a: dict[str, dict], b: dict[str, dict]) -> list[dict]:
    """The tasks whose verdict differs by the benchmark's strictest tests."""
    found = []
    for benchmark in a:
        suite, _ = suites(a[benchmark])[-1]
        for task_id, verdict in a[benchmark]["tasks"].items():
            if verdict[suite] != b[benchmark]["tasks"][task_id][suite]:
                found.append({"benchmark": benchmark, "task_id": task_id, "change": "broken" if verdict[suite] else "fixed"})
    return found


def add_answers(found: list[dict], a: dict, b: dict):
    for key, answers in (("a", read_answers(a)), ("b", read_answers(b))):
        for change in found:
            change[key] = answers[change["task_id"]]


def print_comparison(comparison: dict):
    for name in ("a", "b"):
        print(f"{name.upper()} = {comparison[name]['folder']} ({comparison[name]['what']})")
    for suite in comparison["suites"]:
        print(line(suite))
    if "flagged" in comparison:
        print(f"without the tasks among {len(comparison['flagged'])} flagged as contaminated:")
        for suite in comparison["without_flagged"]:
            print(line(suite))
    for kind in ("fixed", "broken"):
        ids = [change["task_id"] for change in comparison["changes"] if change["change"] == kind]
        if ids:
            print(f"{kind}: {', '.join(ids[:20])}" + (f" and {len(ids) - 20} more" if len(ids) > 20 else ""))


def line(suite: dict) -> str:
    a, b = suite["a"], suite["b"]
    return (
        f"{suite['suite']:<11} A {a['k']}/{a['n']} = {a['pass@1']:.1%}   B {b['k']}/{b['n']} = {b['pass@1']:.1%}   "
        f"B - A {suite['difference']:+.1%} (95 % interval {suite['low']:+.1%} to {suite['high']:+.1%})   "
        f"fixed {suite['fixed']}, broken {suite['broken']}, exact McNemar p = {suite['p']:.3g}"
    )


# ------------------------------------------------------------------------------------------------------------------- table


def table(folders: list[Path], out: Path | None = None):
    """Print pass@1 (k/n) of each folder's model on each suite, as a Markdown table; write it to table.json and table.html of `out`."""
    models = [(folder, read_results(folder)) for folder in folders]
    rows = []
    for folder, results in models:
        scores = {name: result[suite] for result in results.values() for suite, name in suites(result)}
        rows.append(side(folder, results) | {"scores": scores})
    names = [name for name in SUITES if any(name in row["scores"] for row in rows)]
    width = max(len(row["folder"]) for row in rows)
    cells = [["folder".ljust(width), *names], ["-" * width, *("-" * 13 + ":" for _ in names)]]
    for row in rows:
        scores = [row["scores"].get(name) for name in names]
        texts = [f"{100 * part['pass@1']:.1f} ({part['k']}/{part['n']})" if part else "-" for part in scores]
        cells.append([row["folder"].ljust(width), *texts])
    for first, *others in cells:
        print("| " + " | ".join([first, *(cell.rjust(14) for cell in others)]) + " |")
    if out:
        highest = {name: max(row["scores"][name]["interval"][1] for row in rows if name in row["scores"]) for name in names}
        write_page(out, "table", {"suites": names, "rows": rows, "highest": highest})


def write_page(out: Path, name: str, contents: dict):
    """NAME.json and NAME.html of `out`."""
    page = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True).get_template(f"{name}.html").render(contents)
    make_folder(out)
    write_atomically(out / f"{name}.json", json.dumps(contents, indent=2))
    write_atomically(out / f"{name}.html", page.encode("utf-8", "replace").decode())  # an answer may hold half a surrogate pair
    print(f"page: {out / name}.html")
