"""The funnel of a run: what went into each stage, what came out, and why the rest did not.

    python selfcodealign.py report --out runs/first      writes funnel.json and report.html, as every command that runs a stage does at its end

`funnel` counts the rows on disk, so it is true at any moment of a run, an interrupted one included. It reads each file once and keeps
no more than counters and a few examples, however many rows there are; what links one row to another goes into a temporary database.
"""

import collections
import contextlib
import io
import itertools
import json
import re
import sqlite3
import time
import warnings
from pathlib import Path

import jinja2
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.stats import binomtest

from prompting import DIFFICULTIES
from recipes import UNTESTED, stages
from rows import BadInput, read_rows, write_atomically

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
    recipe = config.get("recipe", "selfcodealign")
    chain, counted, parents_of_examples, wanted, contaminated = stages(recipe), {}, {}, set(), set()
    lengths = {what: collections.Counter() for what in LENGTHS}
    with contextlib.closing(sqlite3.connect("")) as links:
        links.executescript(LINKS)
        for stage in reversed(chain):  # from the end, so that an example can ask for the rows that it comes from
            rejects, examples, total, tokens = collections.Counter(), {}, 0, 0
            for row in read_rows(folder / f"{stage}.jsonl"):
                total += 1
                tokens += row.get("tokens", 0)
                if reason := row.get("reject"):
                    rejects[reason] += 1
                    contaminated.update(row.get("benchmark", ()))
                is_example = reason and rejects[reason] <= EXAMPLES_PER_REASON
                if is_example:
                    examples.setdefault(reason, []).append(row)
                if row["id"] in wanted:
                    parents_of_examples[row["id"]] = row
                if stage != "seeds" and (is_example or stage == "responses" and row["id"] in wanted):
                    wanted.add(row[chain[stage][1]])
                measure(stage, row, total, lengths, links)
            counted[stage] = {
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
    for stage, (parent, _) in chain.items():
        each = config.get("samples", 1) if stage == "responses" and recipe != "oss-instruct" else 1
        expected = counted[parent]["kept"] * each if parent else 0
        counted[stage]["waiting"] = max(0, expected - counted[stage]["in"])
    if config.get("limit") and not counted[list(chain)[1]]["in"]:  # later, the source may have had no more
        counted["seeds"]["waiting"] = max(0, config["limit"] - counted["seeds"]["kept"])
    sft = 0
    for row in read_rows(folder / "sft.jsonl"):
        sft += 1
        tasks[row["category"], row["difficulty"]]["sft"] += 1
        lengths["sft_words"][len(row["response"].split())] += 1
        lengths["sft_assertions"][assertions(row["tests"])] += 1
    return {
        "stages": [counted[stage] for stage in chain],
        "tested": recipe not in UNTESTED,
        "sft": sft,
        "instructions_by_passing_samples": {count: passing[count] for count in sorted(passing)},
        "tasks": [{"category": kind, "difficulty": level, **tasks[kind, level]} for kind, level in sorted(tasks, key=from_easy_to_hard)],
        "lengths": {what: {length: counts[length] for length in sorted(counts)} for what, counts in lengths.items()},
        "concepts": concepts,
        "quality": read_object(folder / "quality.json"),
        "contaminated_tasks": sorted(contaminated),
        "parents_of_examples": parents_of_examples,
        "sandbox": config.get("sandbox", {}),
        "decontamination": config.get("decontamination", "not run yet"),
    }


def from_easy_to_hard(task: tuple[str, str]) -> tuple[str, int]:
    category, difficulty = task
    return category, DIFFICULTIES.index(difficulty) if difficulty in DIFFICULTIES else -1


def read_config(folder: Path) -> dict:
    """What config.json of a run folder says, {} where there is none. Raises BadInput."""
    return read_object(folder / "config.json")


def read_object(path: Path) -> dict:
    try:
        found = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path}: not a JSON object")
    return found


LENGTHS = {  # what is counted, and of what
    "seed_lines": "lines: kept seeds",
    "instruction_words": "words: kept instructions",
    "response_tokens": "tokens: all samples",
    "response_assertions": "assertions: well-formed samples",
    "sft_words": "words: final responses",
    "sft_assertions": "assertions: final examples",
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
        links.executemany("insert or ignore into concepts values (?, ?)", [(number, whole(concept)) for concept in row["concepts"]])
    elif kept and stage == "instructions":
        lengths["instruction_words"][len(row["instruction"].split())] += 1
        links.execute("insert or ignore into instructions values (?, ?, ?)", (row["id"], row["category"], row["difficulty"]))
    elif kept and stage == "executions":
        links.execute("insert or ignore into passed values (?)", (row["response_id"],))


def whole(text: str) -> str:
    """`text` with a question mark for half a surrogate pair, which no file can hold."""
    return text.encode(errors="replace").decode()


def assertions(tests: str) -> int:
    return len(re.findall(r"^\s*(?:assert\b|self\.assert)", tests, re.MULTILINE))


def count_passes(links: sqlite3.Connection) -> tuple[dict[tuple[str, str], dict[str, int]], collections.Counter]:
    """For each category and difficulty {instructions, samples, passed, solved, sft: 0}; and the instructions by number of passing samples.

    Instructions that have no sample yet are not among them. `solved` are those with a passing sample.
    """
    tasks = collections.defaultdict(lambda: dict.fromkeys(("instructions", "samples", "passed", "solved", "sft"), 0))
    passing = collections.Counter()
    for category, difficulty, passed, samples, number in links.execute("""
        select category, difficulty, passed, sum(samples), count(*) from (
            select instruction, count(*) as samples, count(passed.response) as passed
            from responses left join passed on passed.response = responses.id group by instruction
        ) join instructions on instructions.id = instruction group by category, difficulty, passed
    """):
        counts = tasks[category, difficulty]
        counts["instructions"] += number
        counts["samples"] += samples
        counts["passed"] += passed * number
        counts["solved"] += number if passed else 0
        passing[passed] += number
    return tasks, passing


def common_concepts(links: sqlite3.Connection) -> dict:
    """How many concepts there are, and clusters of the most common: those that stand beside the same others, largest first, lone ones last.

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
    return {"distinct": distinct, "clusters": sorted(members.values(), key=lambda cluster: (len(cluster) == 1, -sum(cluster.values())))}


HINTS = {  # reject: what a user can do about it
    "length": "outputs run into --max-tokens: raise it, or give shorter few-shot examples",
    "prompt_too_long": "prompts leave no room in the model's context: fewer --instruction-shots or --response-shots, or less --max-tokens",
    "not_a_list_of_concepts": "read a few below, and give more --concept-shots or examples closer to your code",
    "not_a_task": "read a few below, and give more --instruction-shots",
    "no_response_tests_boundary": "the model leaves the layout: `pilot` compares both; or more --response-shots",
    "no_code_block": "the model leaves the layout: `pilot` compares both; or more --response-shots",
    "tests_assert_nothing": "the model writes tests that are never called: examples with plain assertions, more --response-shots",
    "syntax_error": "code breaks off or is no Python: a lower --temperature, or a stronger model",
    "failed": "code and tests disagree: easier tasks (--difficulties), a lower --temperature, or more --samples",
    "timeout": "programs do not end: read a few below, and raise --timeout if they are right but slow",
    "insufficient_docstring": "the judge finds the docstrings too thin: a better documented source, or a lower --judge",
} | dict.fromkeys(
    ("same_instruction", "same_function_names", "same_class_names", "near_duplicate_instruction", "near_duplicate_code"),
    "tasks repeat one another: more and more varied seeds, more --decks",
)
WEAK_TESTS = 0.6  # share of killed mutants


def advice(counts: dict) -> list[str]:
    """What to improve first: the rejects that cost the most final examples, and weak tests. A reason that rejects a row for each row kept
    costs half of what its stage could give."""
    costs = []
    for stage in counts["stages"]:
        for reason, count in stage["rejects"].items():
            by_model = stage["stage"] != "seeds" or reason == "insufficient_docstring"  # other seeds are what the source has
            if reason in HINTS and by_model and count > 0.1 * stage["in"]:
                loss = f"{stage['stage']}: {count:,} of {stage['in']:,} end as {reason} ({count / stage['in']:.0%}); {HINTS[reason]}"
                costs.append((count / max(1, stage["kept"]), loss))
    worst = [loss for _, loss in sorted(costs, reverse=True)[:3]]
    quality = counts["quality"]
    if quality.get("mutants") and quality["killed"] < WEAK_TESTS * quality["mutants"]:
        killed = f"{quality['killed'] / quality['mutants']:.0%}"
        worst.append(f"tests: they notice {killed} of small mistakes in the code; read some, and give stricter few-shot examples")
    return worst


def under_way(counts: dict) -> str:
    """Where an unfinished run is: what is done of its stage, how fast, how long still, and what fails most; empty for a finished run."""
    stage = next((stage for stage in counts["stages"] if stage["waiting"]), None)
    if not stage:
        return ""
    done, seconds = stage["kept"] if stage["stage"] == "seeds" else stage["in"], stage["seconds"]
    says = [f"{stage['stage']}: {done:,} of {done + stage['waiting']:,} done ({done / (done + stage['waiting']):.0%})"]
    if done and seconds:
        says.append(f"{clock(seconds)} so far, about {clock(stage['waiting'] * seconds / done)} to go")
        says += [f"{stage['tokens'] / seconds:,.0f} new tokens/s"] if stage["tokens"] else []
    rejects = [f"{reason} {count / stage['in']:.0%}" for reason, count in list(stage["rejects"].items())[:3]]
    return "; ".join(says + ([f"most rejects: {', '.join(rejects)}"] if rejects else []))


def table(counts: dict) -> str:
    """The funnel as plain text, one line per stage."""
    lines = [f"under way: {under_way(counts)}"] if under_way(counts) else []
    lines += [f"{'stage':<13}{'in':>8}{'kept':>8}{'share':>8}{'tokens':>10}{'seconds':>9}  most common rejects"]
    for stage in counts["stages"]:
        share = f"{stage['kept'] / stage['in']:.0%}" if stage["in"] else "-"
        reasons = ", ".join(f"{reason} {count}" for reason, count in list(stage["rejects"].items())[:3])
        lines.append(
            f"{stage['stage']:<13}{stage['in']:>8}{stage['kept']:>8}{share:>8}{stage['tokens']:>10}{stage['seconds']:>9}  {reasons}"
        )
    histogram = ", ".join(f"{passing}: {number}" for passing, number in counts["instructions_by_passing_samples"].items()) or "none"
    fates = f"instructions by number of passing samples: {histogram}" if counts["tested"] else "responses were not executed"
    lines.append(f"sft examples {counts['sft']}; {fates}")
    lines.append(f"decontamination: {counts['decontamination']}")
    lines += [f"improve first: {hint}" for hint in advice(counts)[:1]]
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
    return "{:.1%} to {:.1%}".format(*wilson(k, n)) if n else "-"


def wilson(k: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of the share k of n > 0."""
    interval = binomtest(k, n).proportion_ci(method="wilson")
    return interval.low, interval.high


# ------------------------------------------------------------------------------------------------------------------- page

FINAL_EXAMPLES = 10  # on the page
CLIP = 1500  # characters of a text on the page; funnel.json and the stage's file have it whole


def write_report(folder: Path) -> dict:
    """Write funnel.json and report.html of the run folder; returns the funnel."""
    counts = funnel(folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"clip": clip, "clock": clock}
    config = read_config(folder)
    page = environment.get_template("report.html").render(
        name=folder.resolve().name,
        funnel=counts,
        stages={stage["stage"]: stage for stage in counts["stages"]},
        advice=advice(counts),
        under_way=under_way(counts),
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        solved=sum(task["solved"] for task in counts["tasks"]),
        instructions=sum(task["instructions"] for task in counts["tasks"]),
        plots=plots(counts, config.get("samples", 1)),
        config=config,
        origin=lambda row: origin(row, counts["parents_of_examples"]),
        final=list(itertools.islice(read_rows(folder / "sft.jsonl"), FINAL_EXAMPLES)),
    )
    write_atomically(folder / "report.html", whole(page))
    write_atomically(folder / "funnel.json", json.dumps(counts, indent=2))
    return counts


def origin(row: dict, parents: dict[str, dict]) -> list[dict]:
    """The example and what it was made from, as far as the funnel kept it, oldest first."""
    nearest_first = ("response_id", "instruction_id", "evolved_from", "concepts_id", "seed_id")
    parent = next((parents[row[key]] for key in nearest_first if row.get(key) in parents), None)
    return [*(origin(parent, parents) if parent else []), row]


def clip(value) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= CLIP else f"{text[:CLIP]}\n… {len(text) - CLIP:,} more characters"


def clock(seconds: float) -> str:
    """Such as 0.4 s, 45 s, 5.6 min or 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# ------------------------------------------------------------------------------------------------------------------ plots

WIDTH = 760  # of every plot, in the page's pixels
INK, MUTED, SOFT, ACCENT, PAPER = (f"#00000{n}" for n in range(1, 6))  # stand for the colours of the page's style sheet, light or dark
COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", SOFT: "var(--soft)", ACCENT: "var(--accent)", PAPER: "var(--paper)"}
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "", "text.parse_math": False, "font.size": 13, "text.color": INK, "axes.labelcolor": MUTED,
    "axes.edgecolor": SOFT, "axes.titlesize": 13, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.spines.left": False, "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelcolor": MUTED, "ytick.labelcolor": INK,
    "xtick.labelsize": 12, "ytick.left": False, "patch.linewidth": 0, "savefig.transparent": True,
}  # fmt: skip


def plots(counts: dict, samples: int) -> dict[str, str]:
    """The page's plots by name, as SVG that takes its colours and its font from the page."""
    import matplotlib

    drawn = {}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the page's font has what the measuring one lacks
        for name, draw, data in (
            ("fates", draw_fates, counts["stages"]),
            ("passes", draw_passes, [counts["instructions_by_passing_samples"].get(n, 0) for n in range(samples + 1)]),
            ("tasks", draw_tasks, [task for task in counts["tasks"] if task["instructions"]]),
            ("lengths", draw_lengths, counts["lengths"]),
            ("effort", draw_effort, counts["stages"]),
            ("concepts", draw_concepts, counts["concepts"]["clusters"]),
        ):
            matplotlib.rcParams["svg.hashsalt"] = name  # ids of one plot are no other's
            svg = io.StringIO()
            draw(data).savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
            text = re.sub(r' id="[\w.]+_\d+"', "", "<svg" + svg.getvalue().partition("<svg")[2])
            drawn[name] = re.sub("|".join(COLOURS), lambda colour: COLOURS[colour[0]], text)
    return drawn


def blank(height: int, columns: int = 1, rows: int = 1):
    """A figure `height` pixels high, and its axes: one, or an array of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    return figure, figure.subplots(rows, columns)


def rows_of_bars(axes, labels: list[str]):
    """Prepare horizontal bars, the first on top, with their labels at the left and no scale: each bar will carry its number."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def draw_fates(stages: list[dict]):
    """The share of each stage's rows that was kept, and of each reason to reject."""
    figure, axes = blank(30 * len(stages) + 20)
    rows_of_bars(axes, [stage["stage"] for stage in stages])
    axes.set_xlim(0, 1)
    for y, stage in enumerate(stages):
        left = 0
        for number, (fate, count) in enumerate([("kept", stage["kept"]), *stage["rejects"].items()]):
            share = count / stage["in"] if stage["in"] else 0
            axes.barh(y, share, 0.75, left, color=SOFT if number else ACCENT, edgecolor=PAPER, linewidth=1)
            label = f"{fate} {count:,}"
            if share * WIDTH * 0.85 > 7 * len(label) + 8:
                axes.text(left + 0.008, y, label, va="center", color=INK if number else PAPER, fontsize=12)
            left += share
    return figure


def draw_passes(instructions: list[int]):
    """Instructions by their number of passing samples, from none up."""
    figure, axes = blank(200)
    bars = axes.bar(range(len(instructions)), instructions, 0.75, color=[SOFT] + [ACCENT] * (len(instructions) - 1))
    axes.bar_label(bars, [f"{number:,}" for number in instructions], padding=3)
    axes.set_xticks(range(len(instructions)), [f"{n} of {len(instructions) - 1}" for n in range(len(instructions))])
    axes.set_yticks([])
    axes.tick_params(length=0)
    return figure


def draw_tasks(tasks: list[dict]):
    """The share of solved instructions for each category and difficulty, with its 95 % Wilson interval."""
    figure, axes = blank(30 * len(tasks) + 60)
    rows_of_bars(axes, [f"{task['category']}, {task['difficulty']}" for task in tasks])
    for y, task in enumerate(tasks):
        axes.plot(wilson(task["solved"], task["instructions"]), [y, y], color=ACCENT, linewidth=1.5, solid_capstyle="butt")
        axes.plot(task["solved"] / task["instructions"], y, "o", color=ACCENT, markersize=7, clip_on=False)
        axes.text(1.02, y, f"{task['solved']:,} of {task['instructions']:,}", va="center")
    axes.set_xlim(0, 1.18)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(axis="x", color=SOFT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    return figure


def draw_lengths(lengths: dict[str, dict[int, int]]):
    """A histogram of each length, its median marked; the longest thousandth is left out."""
    import numpy as np

    figure, panels = blank(400, columns=3, rows=2)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    for axes, (what, title) in zip(panels.flat, LENGTHS.items()):
        axes.set_title(title, color=MUTED, fontsize=12)
        axes.set_yticks([])
        if not lengths[what]:
            axes.set_xticks([])
            continue
        values, counts = np.array(list(lengths[what])), np.array(list(lengths[what].values()))
        median, longest = (int(values[np.searchsorted(counts.cumsum(), share * counts.sum())]) for share in (0.5, 0.999))
        width = max(1, -(-(longest + 1) // 40))
        heights, *_ = axes.hist(values, np.arange(0, longest + 2 * width, width) - 0.5, weights=counts, color=SOFT, rwidth=0.9)
        axes.set_ylim(0, 1.2 * heights.max())
        axes.axvline(median, color=ACCENT, linewidth=1.5)
        side, distance = ("left", 4) if 2 * median < longest else ("right", -4)
        axes.annotate(f"median {median:,}", (median, 1), (distance, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                      color=ACCENT, ha=side, va="top")
    return figure


def draw_effort(stages: list[dict]):
    """Seconds and generated tokens of each stage."""
    figure, panels = blank(30 * len(stages) + 40, columns=2)
    for axes, what, unit in zip(panels, ("seconds", "tokens"), ("time", "generated tokens")):
        values = [stage[what] for stage in stages]
        rows_of_bars(axes, [stage["stage"] for stage in stages] if what == "seconds" else [""] * len(stages))
        bars = axes.barh(range(len(stages)), values, 0.75, color=SOFT)
        axes.bar_label(bars, [(clock(value) if what == "seconds" else f"{value:,}") if value else "" for value in values], padding=4)
        axes.set_xlim(0, 1.25 * max(values) or 1)
        axes.set_title(unit, color=MUTED)
    return figure


def draw_concepts(clusters: list[dict[str, int]]):
    """The most common concepts by the number of their seeds, cluster by cluster, and those that are in none."""
    rows = []
    for cluster in clusters:
        rows += [*cluster.items(), *([("", 0)] if len(cluster) > 1 else [])]
    figure, axes = blank(20 * len(rows) + 20)
    rows_of_bars(axes, [concept for concept, _ in rows])
    bars = axes.barh(range(len(rows)), [seeds for _, seeds in rows], 0.75, color=ACCENT)
    axes.bar_label(bars, [f"{seeds:,}" if seeds else "" for _, seeds in rows], padding=4)
    return figure
