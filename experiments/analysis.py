"""One analysis for all experiments: planned comparisons of groups of models, and the power to find a gain.

    python experiments/analysis.py compare PLAN.json --out DIR    text, comparisons.json and .png, tasks.csv
    python experiments/analysis.py power DIR DIR ...              folders of eval.py, of models trained alike

PLAN.json is written before the run: {"suite": "both+", "comparisons": [{"name": ..., "a": [DIR, ...], "b":
[DIR, ...]}, ...]}. The models of a group differ by their training seed only. A difference is B - A of the
mean share of passing samples, with the interval and p of `compare_groups`; p is adjusted by Holm's method for
the number of comparisons in the plan.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from parts.comparison import read_scored
from parts.rows import BadInput
from parts.statistics import compare_groups

DRAWS = 4000  # of the bootstrap


def sampling(folder: str) -> set[tuple]:
    keys = "samples", "temperature", "max_tokens"
    return {tuple(map(result.get, keys)) for result in read_scored(Path(folder))["results"].values()}


def matrix(folders: list[str], suite: str) -> tuple[np.ndarray, list[str]]:
    """(models, tasks) of the shares of passing samples, and the tasks. Raises BadInput."""
    found = [read_scored(Path(folder)) for folder in folders]
    for scored in found:
        if suite not in scored["passing"]:
            raise BadInput(f"{scored['folder']} has no result in {suite}")
    rows = [scored["passing"][suite] for scored in found]
    samples = [scored["scores"][suite]["n"] / len(row) for scored, row in zip(found, rows)]
    tasks = sorted(rows[0])
    if any(sorted(row) != tasks for row in rows):
        raise BadInput(f"{', '.join(folders)} were not scored on the same tasks")
    return np.array([[row[task] for task in tasks] for row in rows]) / np.array(samples)[:, None], tasks


# ------------------------------------------------------------------------------------------------ comparisons


def holm(ps: list[float]) -> list[float]:
    """The p of each comparison, adjusted for their number."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for place, n in enumerate(sorted(range(len(ps)), key=lambda n: ps[n])):
        largest = max(largest, min(1.0, ps[n] * (len(ps) - place)))
        adjusted[n] = largest
    return adjusted


def compare(plan: dict, out: Path):
    random, rows = np.random.default_rng(0), []
    for planned in plan["comparisons"]:
        (a, tasks_a), (b, tasks_b) = (matrix(planned[side], plan["suite"]) for side in "ab")
        if tasks_a != tasks_b:
            raise BadInput(f"{planned['name']}: A and B were not scored on the same tasks")
        if len(set().union(*map(sampling, planned["a"] + planned["b"]))) > 1:
            raise BadInput(f"{planned['name']}: answers were not sampled alike")
        found = compare_groups(a, b, random, DRAWS) | {"a": a.mean(), "b": b.mean()}
        rows.append({"name": planned["name"], "models": [len(a), len(b)], **found})
    for row, p in zip(rows, holm([row["p"] for row in rows])):
        row["holm"] = p
        scores = f"A {row['a']:.2%}  B {row['b']:.2%}"
        shown = f"{row['difference']:+.2%} ({row['low']:+.2%} to {row['high']:+.2%})"
        print(f"{row['name']:<26} {scores}  B - A {shown}  Holm p {p:.3g}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparisons.json").write_text(json.dumps({"suite": plan["suite"], "comparisons": rows}, indent=1))
    plot(rows, plan["suite"], out / "comparisons.png")
    write_tasks(plan, out / "tasks.csv")


def write_tasks(plan: dict, file: Path):
    """Of every model of the plan the share of passing samples, task by task."""
    folders = dict.fromkeys(folder for row in plan["comparisons"] for folder in (*row["a"], *row["b"]))
    found, tasks = matrix(list(folders), plan["suite"])
    with file.open("w", newline="", encoding="utf-8") as opened:
        table = csv.writer(opened)
        table.writerow(["task", *(Path(folder).name for folder in folders)])
        table.writerows([task, *(f"{share:.3g}" for share in shares)] for task, shares in zip(tasks, found.T))


def plot(rows: list[dict], suite: str, image: Path):
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(8, 1 + 0.5 * len(rows)), layout="constrained")).subplots()
    for place, row in enumerate(reversed(rows)):
        axes.plot([100 * row["low"], 100 * row["high"]], [place, place], color="black")
        axes.plot(100 * row["difference"], place, "o", color="black")
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set(yticks=range(len(rows)), yticklabels=[row["name"] for row in reversed(rows)])
    axes.set_xlabel(f"difference in {suite}, points, with 95 % intervals")
    figure.savefig(image, dpi=110)


# ------------------------------------------------------------------------------------------------------ power


def chance(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))


def simulate(odds: np.ndarray, gain: float, models: int, samples: int, noise: float, random) -> dict:
    """One comparison of two groups whose true difference is `gain`, of tasks with these log odds.

    `noise`: standard deviation, over training seeds, of a task's log odds.
    """
    noisy = odds + noise * random.standard_normal((models, len(odds)))
    other = odds + noise * random.standard_normal((models, len(odds)))
    low, high = 0.0, 20.0
    for _ in range(40):  # the shift of the log odds that gives the gain
        shift = (low + high) / 2
        low, high = (shift, high) if (chance(other + shift) - chance(other)).mean() < gain else (low, shift)
    groups = [random.binomial(samples, chance(group)) / samples for group in (noisy, other + shift)]
    return compare_groups(*groups, random, DRAWS)


def power(folders: list[str], suite: str, trials: int):
    """Print by models and samples the smallest gain that is found (p < 0.05) in 80 % of the trials."""
    global DRAWS
    DRAWS = 400
    seen, _ = matrix(folders, suite)
    rates = (seen.sum(axis=0) + 0.5 * seen.mean()) / (len(seen) + 0.5)  # no task is always or never solved
    odds = np.log(rates / (1 - rates))
    taken = max(samples or 1 for folder in folders for samples, *_ in sampling(folder))
    noise = seed_noise(seen, odds, taken)
    told = f"{seen.shape[1]} tasks, {seen.mean():.1%} solved by {len(seen)} models"
    print(f"{told}; noise of a task's log odds {noise:.2f}")
    print(f"{'models a group':>15}{'samples':>9}{'smallest gain':>15}{'half an interval':>18}")
    for models in (1, 2, 3, 5):
        for samples in (1, 3, 5):
            random = np.random.default_rng(0)
            for gain in np.arange(0.005, 0.2, 0.0025):
                found = [simulate(odds, gain, models, samples, noise, random) for _ in range(trials)]
                if np.mean([row["p"] < 0.05 and row["difference"] > 0 for row in found]) >= 0.8:
                    break
            half = np.mean([(row["high"] - row["low"]) / 2 for row in found])
            print(f"{models:>15}{samples:>9}{100 * gain:>12.2f} pt{100 * half:>15.2f} pt", flush=True)


def seed_noise(seen: np.ndarray, odds: np.ndarray, samples: int) -> float:
    """The noise at which simulated models, scored with as many samples, disagree on a task as much as those
    that were seen."""
    if len(seen) < 2:
        return 1.0
    random, disagreement = np.random.default_rng(0), seen.var(axis=0, ddof=1).mean()

    def distance(noise: float) -> float:
        drawn = random.binomial(samples, chance(odds + noise * random.standard_normal((200, len(odds)))))
        return abs((drawn / samples).var(axis=0).mean() - disagreement)

    return min(np.arange(0, 5, 0.25), key=distance)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    comparison = commands.add_parser("compare", help="the planned comparisons")
    comparison.add_argument("plan", type=Path)
    comparison.add_argument("--out", type=Path, required=True)
    powers = commands.add_parser("power", help="the smallest gain that can be found")
    powers.add_argument("folders", nargs="+")
    powers.add_argument("--suite", default="both+")
    powers.add_argument("--trials", type=int, default=200)
    arguments = parser.parse_args()
    try:
        if arguments.command == "compare":
            compare(json.loads(arguments.plan.read_text(encoding="utf-8")), arguments.out)
        else:
            power(arguments.folders, arguments.suite, arguments.trials)
    except (OSError, ValueError, KeyError, BadInput) as error:
        print(f"analysis.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
