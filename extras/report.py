"""The report of a run: its counts in funnel.json, and report.html; pages of eval.py's comparisons, too.

    python selfcodealign.py report --out runs/first      every command that runs a stage does this at its end
    python selfcodealign.py report --out DIR             compare.html and table.html, where DIR has the .json

Pages need no network. `write_report` counts the rows, reads them once more for what only the page shows, and
writes both files. `advice` says what to improve first, `projection` what a larger run would give.
"""

import collections
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import jinja2

from parts.folder import parse_folder, read_config
from parts.rows import BadInput, read_object, read_rows, whole, write_atomically, write_json
from parts.statistics import wilson
from selfcodealign import funnel

REPEATED = (
    "same_instruction same_function_names same_class_names near_duplicate_instruction near_duplicate_code"
)
HINTS = {  # reject: what a user can do about it
    "length": "outputs run into --max-tokens: raise it, or give shorter few-shot examples",
    "prompt_too_long": "prompts do not fit the context: fewer --shots",
    "not_a_list_of_concepts": "read a few below; more --shots, or examples closer to your code",
    "not_a_task": "read a few below, and give more --shots",
    "no_response_tests_boundary": "the model leaves the layout: `pilot` compares both; or more --shots",
    "no_code_block": "the model leaves the layout: `pilot` compares both; or more --shots",
    "tests_assert_nothing": "tests are never called: examples with plain assertions, more --shots",
    "syntax_error": "code breaks off or is no Python: a lower --temperature, or a stronger model",
    "failed": "code and tests disagree: easier --difficulties, a lower --temperature, or more --samples",
    "timeout": "programs do not end: read a few below, and raise --timeout if they are right but slow",
    "insufficient_docstring": "docstrings are too thin: a better documented source, or a lower --judge",
    **dict.fromkeys(REPEATED.split(), "tasks repeat: more and more varied seeds, more --shot-sets"),
}
COMPARED = ("compare.json", "table.json")  # of eval.py
SECONDS_BETWEEN = 60  # between two reports of a run that goes on; more where a report takes long
WEAK_TESTS = 0.6  # tests that notice a smaller share of the mistakes in the code are weak


def write_report(folder: Path) -> dict:
    """Write funnel.json and report.html of the run folder; returns the counts. Raises BadInput."""
    counts = funnel(folder) | {"quality": read_object(folder / "quality.json")}
    write_atomically(folder / "report.html", whole(render(folder, counts, read_config(folder))))
    write_json(folder / "funnel.json", counts)
    return counts


def show(folder: Path):
    """Write the report and print its counts."""
    counts = write_report(folder)
    if where := under_way(counts):
        print(f"under way: {where}")
    print(table(counts))
    for hint in advice(counts)[:1]:
        print(f"improve first: {hint}")
    print(f"report: {folder / 'report.html'}")


@contextlib.contextmanager
def live(run):
    """While a stage of `run` goes on, write the report again and again, in a process of its own at the lowest
    priority, so that it holds up nothing."""
    ended = threading.Event()

    def work():
        pause = SECONDS_BETWEEN
        while not ended.wait(pause):
            run.record_time()  # so that config.json has what the stage has taken so far
            started = time.monotonic()
            script = Path(__file__).parent.parent / "selfcodealign.py"
            command = ["nice", "-n", "19", sys.executable, script, "report", "--out", run.folder]
            writer = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)  # no Ctrl-C
            while writer.poll() is None and not ended.wait(0.5):
                pass
            writer.terminate()
            writer.wait()
            pause = max(SECONDS_BETWEEN, 20 * (time.monotonic() - started))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def main(argv: list[str]):
    does = "of a run, finished or not, or pages of what eval.py --compare or --table wrote"
    folder = parse_folder("report", does, argv, ("config.json", *COMPARED))
    if (folder / "config.json").exists():
        show(folder)
    for file in filter(Path.is_file, map(folder.joinpath, COMPARED)):
        write_comparison(file)


def table(counts: dict) -> str:
    """The funnel as plain text, one line per stage."""
    line = "{:<13}{:>8}{:>8}{:>8}{:>10}{:>9}  {}".format
    lines = [line("stage", "in", "kept", "share", "tokens", "seconds", "most common rejects")]
    for stage in counts["stages"]:
        share = f"{stage['kept'] / stage['in']:.0%}" if stage["in"] else "-"
        rejects = ", ".join(f"{reason} {count}" for reason, count in list(stage["rejects"].items())[:3])
        numbers = stage["in"], stage["kept"], share, stage["tokens"], stage["seconds"]
        lines.append(line(stage["stage"], *numbers, rejects))
    passing = counts["instructions_by_passing_samples"].items()
    instructions = ", ".join(f"{samples}: {number}" for samples, number in passing) or "none"
    tested = f"instructions by number of passing samples: {instructions}"
    outcome = tested if counts["tested"] else "responses were not executed"
    lines.append(f"sft examples {counts['sft']}; {outcome}")
    lines.append(f"decontamination: {counts['decontamination']}")
    return "\n".join(lines)


def advice(counts: dict) -> list[str]:
    """What to improve first: the three rejects that cost the most final examples, and weak tests.

    A reason that rejects a row for each row kept costs half of what its stage could give.
    """
    costs = []
    for stage in counts["stages"]:
        for reason, count in stage["rejects"].items():
            share = count / stage["in"]
            by_model = stage["stage"] != "seeds" or reason == "insufficient_docstring"  # else the source's
            if reason in HINTS and by_model and share > 0.1:
                found = f"{stage['stage']}: {count:,} of {stage['in']:,} end as {reason} ({share:.0%})"
                costs.append((count / max(1, stage["kept"]), f"{found}; {HINTS[reason]}"))
    hints = [hint for _, hint in sorted(costs, reverse=True)[:3]]
    quality = counts.get("quality", {})
    if quality.get("mutants") and quality["killed"] < WEAK_TESTS * quality["mutants"]:
        noticed = f"tests notice {quality['killed'] / quality['mutants']:.0%} of small mistakes in the code"
        hints.append(f"{noticed}; read some, and give stricter few-shot examples")
    return hints


def under_way(counts: dict) -> str:
    """Where an unfinished run is: rows done of its stage, time, speed, rejects; "" if it is finished."""
    stage = next((stage for stage in counts["stages"] if stage["waiting"]), None)
    if not stage:
        return ""
    done, seconds = stage["kept"] if stage["stage"] == "seeds" else stage["in"], stage["seconds"]
    total = done + stage["waiting"]
    facts = [f"{stage['stage']}: {done:,} of {total:,} done ({done / total:.0%})"]
    if done and seconds:
        facts.append(f"{clock(seconds)} so far, about {clock(stage['waiting'] * seconds / done)} to go")
        facts += [f"{stage['tokens'] / seconds:,.0f} new tokens/s"] if stage["tokens"] else []
    if stage["rejects"]:
        most_common = list(stage["rejects"].items())[:3]
        shares = ", ".join(f"{reason} {count / stage['in']:.0%}" for reason, count in most_common)
        facts.append(f"most rejects: {shares}")
    return "; ".join(facts)


def clock(seconds: float) -> str:
    """Such as 0.4 s, 45 s, 5.6 min or 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def projection(counts: dict, seeds: int) -> str:
    """What a run of `seeds` kept seeds would give if it went on like this one: rows, shares with their 95 %
    intervals, tokens and hours, as text."""
    scale = seeds / max(1, counts["stages"][0]["kept"])
    interval = lambda k, n: "{:.1%} to {:.1%}".format(*wilson(k, n)) if n else "-"
    line = "{:<13}{:>12}{:>12}{:>8}{:>18}{:>14}{:>8}".format
    lines = [line("stage", "in", "kept", "share", "95 % interval", "new tokens", "hours")]
    for stage in counts["stages"]:
        rows, kept, tokens = (f"{stage[key] * scale:.0f}" for key in ("in", "kept", "tokens"))
        share = f"{stage['kept'] / max(1, stage['in']):.1%}"
        hours = f"{stage['seconds'] * scale / 3600:.1f}"
        between = interval(stage["kept"], stage["in"])
        lines.append(line(stage["stage"], rows, kept, share, between, tokens, hours))
    hours = sum(stage["seconds"] for stage in counts["stages"]) * scale / 3600
    between = interval(counts["sft"], counts["stages"][0]["kept"])
    lines.append(
        f"expected: {counts['sft'] * scale:.0f} examples, {between} of the seeds, in {hours:.1f} hours on "
        "this machine; a larger run finds more duplicates, so take the examples as an upper end"
    )
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------- the page

EXAMPLES_PER_REASON = 3
FINAL_EXAMPLES = 10
COMMON_CONCEPTS = 45
NOT_SETTINGS = ("seconds", "sandbox", "decontamination", "stages", "prompts")
CLIP = 1500  # characters of a text on the page; the stage's file has it whole


class Details:
    """What only the page shows, from one pass over the rows of a run.

    The last stage is read first, so that a rejected row can ask for those it was made from.
    """

    def __init__(self, folder: Path, stages: Iterable[str]):
        self.rejected = collections.defaultdict(list)  # {(stage, reason): the first rows}
        self.origins = {}  # {id: row}: what these were made from
        self.final_by_task = collections.Counter()  # {(category, difficulty): final examples}
        self.concepts = collections.Counter()
        self.final = []
        for row in read_rows(folder / "sft.jsonl"):
            self.final_by_task[row["category"], row["difficulty"]] += 1
            if len(self.final) < FINAL_EXAMPLES:
                self.final.append(row)
        for stage in reversed(stages):
            for row in read_rows(folder / f"{stage}.jsonl"):
                if row["id"] in self.origins:
                    self.origins[row["id"]] = row
                shown = self.rejected[stage, row["reject"]] if "reject" in row else None
                if shown is not None and len(shown) < EXAMPLES_PER_REASON:
                    shown.append(row)
                    self.origins |= dict.fromkeys(shown_origins(row))
                if stage == "concepts":
                    self.concepts.update(row.get("concepts", ()))

    def with_origins(self, row: dict) -> list[dict]:
        """The row, and before it what it was made from."""
        return [*filter(None, map(self.origins.get, shown_origins(row))), row]


def shown_origins(row: dict) -> list[str]:
    """The ids of what a row was made from that the page shows: its task and what follows, or its parent."""
    ids = {key: value for key, value in row.items() if key.endswith("_id")}  # the seed's first
    return [ids[key] for key in ids if key not in ("seed_id", "concepts_id")] or [*ids.values()][-1:]


def render(folder: Path, counts: dict, config: dict) -> str:
    """The page as HTML, in which every text of the run is escaped."""
    details = Details(folder, config["stages"])
    order = config.get("difficulties", "").split(",")
    place = lambda task: order.index(task["difficulty"]) if task["difficulty"] in order else -1
    tasks = sorted(counts["tasks"], key=lambda task: (task["category"], place(task)))
    passing, samples = counts["instructions_by_passing_samples"], config.get("samples", 1)
    settings = {key: value for key, value in config.items() if key not in NOT_SETTINGS}
    versions = config.get("versions", {}).items()
    settings["versions"] = ", ".join(f"{name} {number}" for name, number in versions if number)
    return page("report.html").render(
        name=folder.resolve().name,
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        settings=settings,
        engine_start=config.get("seconds", {}).get("engine_start"),
        counts=counts,
        stages={stage["stage"]: stage for stage in counts["stages"]},
        most={key: max(stage[key] for stage in counts["stages"]) for key in ("tokens", "seconds")},
        advice=advice(counts),
        under_way=under_way(counts),
        instructions=sum(passing.values()),
        solved=sum(passing.values()) - passing.get(0, 0),
        passing=[(f"{n} of {samples}", passing.get(n, 0)) for n in range(samples + 1)],
        tasks=tasks,
        wilson=wilson,
        common=details.concepts.most_common(COMMON_CONCEPTS),
        details=details,
    )


def clip(value) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= CLIP else f"{text[:CLIP]}\n… {len(text) - CLIP:,} more characters"


def page(name: str) -> jinja2.Template:
    pages = jinja2.FileSystemLoader(Path(__file__).parent / "pages")
    environment = jinja2.Environment(loader=pages, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"clip": clip, "clock": clock, "number": "{:,}".format}
    return environment.get_template(name)


def write_comparison(file: Path):
    """Render compare.json or table.json as a page beside it. Raises BadInput."""
    contents, made = read_object(file), file.with_suffix(".html")
    runs = contents.setdefault("runs", [contents])  # compare.json of one pair is that pair
    try:
        text = page(made.name).render({"suites": runs[0]["suites"]} | contents)
    except (KeyError, TypeError, jinja2.TemplateError) as error:
        raise BadInput(f"{file} is not what eval.py writes: {error}") from None
    write_atomically(made, whole(text))
    print(f"page: {made}")
