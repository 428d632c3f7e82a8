"""What the paper compares the method with: rows of its tables T1, T9, T10 and T11.

    python experiments/baselines.py snippet-to-instruction --model M --match RUN --out runs/t10a ...
    python experiments/baselines.py failing --out RUN
    python experiments/baselines.py trace RUN ID --prompts      as selfcodealign.py's, with their prompts

    failing, random, random-subset  T9: of a finished run, other than passing responses, in sft-NAME.jsonl
    snippet-to-instruction          T10: the instruction is written from the seed, without concepts
    random-snippets                 T10: random snippets are the seeds
    teacher                         T11: another model answers the instructions of the run that --from names
    oss-instruct                    T11: a teacher writes problem and solution from a snippet; not executed
    evol-instruct                   T11: a teacher makes the instructions of --from harder, twice, and answers
                                    them; not executed
    octopack                        T1: commits of the git repository or CommitPackFT file --source, as pairs;
                                    the model only counts tokens
    given-tasks                     the `instruction`s of a JSON Lines file, --source; `random` after it takes
                                    the answers whether they pass or not

Each is the method with other rows in its table of stages, or with another choice of responses. `--match RUN`
keeps no more examples than RUN has, and none like the tasks that RUN keeps out, so that both can be scored on
them. The prompts are our own: experiments/prompts/.
"""

import argparse
import math
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import selfcodealign as method
from experiments import commits
from extras import pilot, trace
from parts.examples import Example
from parts.folder import read_config
from parts.rows import Appender, BadInput, digest, draw, one_line, read_objects, read_rows, row_id, whole
from parts.seeds import read_sources
from sandbox import OUTCOMES, SandboxError
from selfcodealign import METHOD, Filters, KeptRows, Run, Stage, few_shot, origin

TEXTS = Path(__file__).parent / "prompts"

# --------------------------------------------------------------------------------------------------------- T9

JUDGED_OUTCOMES = set(OUTCOMES) - {"error"}
CHOICES = {  # the outcomes of the responses that may be chosen
    "random": JUDGED_OUTCOMES,
    "random-subset": JUDGED_OUTCOMES,
    "failing": JUDGED_OUTCOMES - {"passed"},
}


def choose(run: Run, choice: str) -> int:
    """Make sft-CHOICE.jsonl of a run; `random-subset` and `failing` are no larger than sft.jsonl."""
    if run.stages["selection"].parent != "executions":
        raise BadInput(f"{choice} needs executed responses: {run.config['baseline']} executes none")
    size_of = run.config.get("match") if choice == "random" else run.folder
    most = count_examples(Path(size_of)) if size_of else math.inf
    heldout = heldout_of(str(run.folder), run.config.get("match"), run.config.get("instructions_from"))
    rows = [row for row in read_rows(run.path("executions")) if row["outcome"] in CHOICES[choice]]
    verdicts = method.choose(run, method.in_drawn_order(run, rows), filters_after(run, heldout))
    method.reject_solved(run, verdicts)
    failing = {row[run.answers[1]] for row in rows if row["outcome"] != "passed"}
    return write_at_most(run, verdicts, most, f"-{choice}", failing)


def write_at_most(
    run: Run, verdicts: dict[str, dict], most: float, suffix: str, untested: Collection[str]
) -> int:
    """Write the selection with at most `most` examples. Returns their number."""
    responses = KeptRows(run.path(run.answers[0]))
    offered = [one for one, verdict in verdicts.items() if not verdict]
    is_held_out = lambda one: (
        method.chance(run, "held out", responses[one]["instruction_id"]) < run.settings.heldout
    )
    kept = [one for one in offered if not is_held_out(one)]
    surplus = kept[min(most, len(kept)) :]
    method.write_selection(run, verdicts | dict.fromkeys(surplus, {"reject": "enough"}), suffix, untested)
    return len(kept) - len(surplus)


def filters_after(run: Run, examples: Iterator[dict], kind: type[Filters] = Filters) -> Filters:
    """The filters, as if the examples had been kept before."""
    filters = kind(run.decontaminator)
    for example in examples:
        filters.remember(*filters.hashes(example["instruction"], example["response"]))
    return filters


def count_examples(folder: Path) -> int:
    if not (folder / "sft.jsonl").is_file():
        raise BadInput(f"{folder} has no sft.jsonl to match in size: `selection` makes it")
    return sum(1 for _ in read_rows(folder / "sft.jsonl"))


def heldout_of(*folders: str | None) -> Iterator[dict]:
    """The held-out examples of runs that a set is scored beside: nothing like them may be learned. Raises
    BadInput."""
    for folder in sorted(set(filter(None, folders))):
        if not (Path(folder) / "heldout.jsonl").is_file():
            raise BadInput(f"{folder} has no heldout.jsonl: run `selection` there first")
        yield from read_rows(Path(folder) / "heldout.jsonl")


# ------------------------------------------------------------------------------------------- T10, T11: stages


SNIPPET_LINES = 15
LINES_PER_SNIPPET = 50


def gather_snippets(run: Run):
    """T10, T11: random snippets; neither type-checked nor judged."""

    def candidates(on_disk: set[str]) -> Iterator[dict]:
        found = method.ordered(run, snippets(run.settings.source, run.settings.seed))
        return method.reject_known_texts(run, method.new_candidates(found, on_disk))

    method.keep_seeds(run, candidates)


def snippets(source: str, seed: int) -> Iterator[dict]:
    """Yield random snippets of 1 to 15 lines as rows {where, code}, one for each 50 lines of a file, drawn
    with the seed. Files that break their encoding are left out."""
    for where, text in read_sources(source):
        try:
            text.encode()
        except UnicodeEncodeError:
            continue
        lines, content_id = text.splitlines(), digest(text)
        for number in range(-(-len(lines) // LINES_PER_SNIPPET)):
            start = draw(seed, "snippet", content_id, number) % len(lines)
            length = 1 + draw(seed, "length", content_id, number) % SNIPPET_LINES
            code = "\n".join(lines[start : start + length]).strip("\n")
            if code.strip():
                yield {"where": f"{where}:{start + 1}", "code": code}


def gather_commits(run: Run):
    """T1, OctoPack: single-file Python commits."""
    from transformers import AutoTokenizer

    with one_line(f"cannot load the tokenizer of {run.settings.model}"):
        tokenizer = AutoTokenizer.from_pretrained(run.settings.model)
    count_tokens = lambda text: len(tokenizer(text).input_ids)

    def candidates(on_disk: set[str]) -> Iterator[dict]:
        for commit in commits.read_commits(run.settings.source, run.settings.seed):
            texts, message = commit.pop("texts"), commits.clean(commit["message"])
            row = {"id": row_id("seeds", commit["where"], message)} | commit | {"message": message}
            if row["id"] not in on_disk:
                on_disk.add(row["id"])
                if not (reason := commits.reason_against(row)):
                    row["code"], row["new_code"] = map(whole, texts)
                    reason = commits.reason_against_code(row["code"], row["new_code"], count_tokens)
                yield row | ({"reject": reason} if reason else {})

    method.keep_seeds(run, candidates)


def commit_task(row: dict) -> dict:
    """OctoPack's instruction: the message, then the code as it was."""
    code = f"\n\n{commits.fenced(row['code'])}" if row["code"].strip() else ""
    task = {"instruction": row["message"] + code, "category": "commit", "difficulty": "not drawn"}
    return task | {"solution": commits.fenced(row["new_code"])}


def given_tasks(source: str) -> Iterator[dict]:
    for where, row in read_objects(Path(source), "instruction"):
        empty = {} if row["instruction"].strip() else {"reject": "not_a_task"}
        yield {"where": where, "code": whole(row["instruction"])} | empty


def gather_tasks(run: Run):
    """Instead of seeds: the tasks of a file. As always, `selection` leaves out those of a benchmark."""
    method.keep_seeds(run, lambda on_disk: method.new_candidates(given_tasks(run.settings.source), on_disk))


def given_task(row: dict) -> dict:
    return {"instruction": row["code"], "category": "given", "difficulty": "not drawn"}


def copy_rows(stage: str, copied: str | None = None) -> Callable[[Run], None]:
    """T11: the rows of a stage of the run that --from names, perhaps as those of another stage."""

    def make(run: Run):
        copy = run.path(copied or stage)
        if not copy.exists():
            unfinished = copy.with_suffix(".unfinished")
            shutil.copyfile(Path(run.config["instructions_from"]) / f"{stage}.jsonl", unfinished)
            unfinished.replace(copy)

    return make


def compute(stage: str, build: Callable[[dict], dict]) -> Callable[[Run], None]:
    """A stage that needs no model: `build(parent)` gives the row."""

    def make(run: Run):
        parent_stage, key = run.stages[stage].parent, run.stages[stage].parent_id
        with Appender(run.path(stage)) as file:
            for parent in run.kept(parent_stage):
                if (identity := row_id(stage, parent["id"], 0)) not in file.ids:
                    file.append({"id": identity, **origin(parent, key), "sample": 0, **build(parent)})

    return make


def direct_prompt(shots: list[Example], fields: dict, concepts: dict, settings: argparse.Namespace) -> str:
    """T10, S->I: the instruction from the code itself."""

    def state(code: str, values: dict[str, str]) -> str:
        stated = "\n".join(f"{key}: {values[key]}" for key in ("language", "difficulty", "category"))
        return f"[Code]\n{code}\n\n[Properties]\n{stated}\n\n[Instruction]\n"

    texts = [state(example.code, example.properties) + example.instruction for example in shots]
    return few_shot(texts, state(f"```python\n{concepts['code']}\n```", fields | {"language": "Python"}))


def oss_prompt(shots: list[Example], fields: dict, concepts: dict, settings: argparse.Namespace) -> str:
    """T11, OSS-Instruct: problem and solution at once, from a snippet."""
    texts = [f"[Code]\n{e.code}\n\n[Problem]\n{e.instruction}\n\n[Solution]\n{e.response}" for e in shots]
    return few_shot(texts, f"[Code]\n```python\n{concepts['code']}\n```\n\n[Problem]\n")


def parse_problem(text: str, row: dict, concepts: dict, settings: argparse.Namespace) -> dict:
    """{instruction, solution} of a completion, or {text, reject}."""
    parts = re.split(r"^\[Solution\][ \t]*\n", text, flags=re.MULTILINE)
    problem, *solutions = map(str.strip, parts)
    if len(solutions) != 1 or not problem:
        return {"text": text, "reject": "no_problem_solution_boundary"}
    if reason := method.malformed_code(solutions[0]):
        return {"text": text, "reject": reason}
    return {"instruction": problem, "solution": solutions[0]}


CHANGES = (  # evolve.md has an example of each
    "add one rule that the result must obey",
    "replace an everyday requirement by a less usual one",
    "ask for a better bound on time or memory",
    "let the solution need one more step of thought",
)


def evolve(stage: str, parent: str, parent_id: str) -> Stage:
    """T11, Evol-Instruct, one step: each task of the stage before is made harder in a way that is drawn."""

    def draw_fields(task: dict, settings: argparse.Namespace) -> dict:
        change = CHANGES[draw(settings.seed, stage, "change", task["id"]) % len(CHANGES)]
        return {"category": task["category"], "difficulty": task["difficulty"], "change": change}

    stop = ("\n### Example", "\n[Change]", "\n[Task]")
    return Stage(
        parent,
        parent_id,
        TEXTS / "evolve",
        evolve_prompt,
        method.parse_task,
        stop,
        draw_fields=draw_fields,
    )


def evolve_prompt(shots: list[Example], fields: dict, task: dict, settings: argparse.Namespace) -> str:
    opening = f"[Task]\n{task['instruction']}\n\n[Change]\n{fields['change']}\n\n[New task]\n"
    return f"### Example 5\n{opening}"  # the file has four


def select_matched(run: Run, kind: type[Filters] = Filters):
    """`select`, with no more examples than the run to match, and none like what is scored beside it."""
    match = run.config.get("match")
    most = count_examples(Path(match)) if match else math.inf
    heldout = heldout_of(match, run.config.get("instructions_from"))
    verdicts = method.filter_passing(run, filters_after(run, heldout, kind))
    untested = () if "executions" in run.stages else verdicts.keys()
    examples = write_at_most(run, verdicts, most, "", untested)
    if examples < most < math.inf:
        print(f"{examples} examples, fewer than the {most} to match: there are no more")


class CommitFilters(Filters):
    """Benchmark text and exact copies only: an instruction holds code, and commits to a file are alike."""

    longest = math.inf

    def hashes(self, instruction: str, response: str) -> tuple[dict, dict]:
        exact = {"same_instruction": instruction, "same_response": response}
        return {reason: int(digest(reason, text)[:16], 16) for reason, text in exact.items()}, {}


def no_concepts(*fields: str) -> Stage:
    """No list of concepts for each seed, but the fields of it that the next stage needs."""
    pass_on = lambda seed: {"concepts": [], **{field: seed[field] for field in fields}}
    return Stage("seeds", "seed_id", make=compute("concepts", pass_on))


# ----------------------------------------------------------------------------------------------------- tables

CODE_ALONE = no_concepts("code")
SNIPPETS = Stage(None, None, make=gather_snippets)
SOLUTIONS = Stage(
    "instructions",
    "instruction_id",
    make=compute("responses", lambda task: {"response": task["solution"], "tests": ""}),
)
COPIED = {name: replace(METHOD[name], make=copy_rows(name)) for name in ("seeds", "concepts", "instructions")}
MATCHED = METHOD | {"selection": replace(METHOD["selection"], make=select_matched)}
UNTESTED = {"selection": Stage("responses", "response_id", make=select_matched)}
TABLES = {
    "snippet-to-instruction": MATCHED
    | {
        "concepts": CODE_ALONE,
        "instructions": replace(METHOD["instructions"], text=TEXTS / "direct", prompt=direct_prompt),
    },
    "random-snippets": MATCHED | {"seeds": SNIPPETS},
    "teacher": MATCHED | COPIED,
    "oss-instruct": {
        "seeds": SNIPPETS,
        "concepts": CODE_ALONE,
        "instructions": replace(
            METHOD["instructions"], text=TEXTS / "oss", prompt=oss_prompt, parse=parse_problem
        ),
        "responses": SOLUTIONS,
    }
    | UNTESTED,
    "evol-instruct": {
        "seeds": COPIED["seeds"],
        "concepts": COPIED["concepts"],
        "evolution-0": replace(METHOD["instructions"], make=copy_rows("instructions", "evolution-0")),
        "evolution-1": evolve("evolution-1", "evolution-0", "evolution_0_id"),
        "instructions": evolve("instructions", "evolution-1", "evolution_1_id"),
        "responses": METHOD["responses"],
    }
    | UNTESTED,
    "octopack": {
        "seeds": Stage(None, None, make=gather_commits),
        "concepts": no_concepts("message", "code", "new_code"),
        "instructions": Stage("concepts", "concepts_id", make=compute("instructions", commit_task)),
        "responses": SOLUTIONS,
        "selection": Stage("responses", "response_id", make=lambda run: select_matched(run, CommitFilters)),
    },
    "given-tasks": MATCHED
    | {
        "seeds": Stage(None, None, make=gather_tasks),
        "concepts": CODE_ALONE,
        "instructions": Stage("concepts", "concepts_id", make=compute("instructions", given_task)),
    },
}
NEED_INSTRUCTIONS = ("teacher", "evol-instruct")
# Settings that belong to the run that wrote the instructions
SHAPE_INSTRUCTIONS = ("source", "limit", "judge")
OTHER_SOURCES = {"octopack": commits.read_commits, "given-tasks": given_tasks}  # than Python files


def start(
    name: str, out: Path, given: dict, engine_options: dict, origin: Path | None, match: Path | None
) -> Run:
    """Start the run of a baseline, or resume it. Raises BadInput."""
    recorded = {"baseline": name}
    if match:
        count_examples(match)
        if match.resolve() == out.resolve():
            raise BadInput(f"--match takes another run than {out}")
        recorded["match"] = str(match.resolve())
    if origin and name not in NEED_INSTRUCTIONS:
        raise BadInput(f"{name} makes its own instructions: no --from")
    if not origin and name in NEED_INSTRUCTIONS:
        raise BadInput(f"{name} needs --from: the run whose tasks it takes")
    if origin:
        if surplus := [key for key in SHAPE_INSTRUCTIONS if key in given]:
            raise BadInput(f"no --{surplus[0]} with --from: it is that of {origin}")
        recorded |= {"instructions_from": str(origin.resolve())} | facts_of(origin)
    read_source = OTHER_SOURCES.get(name, (lambda source: iter(())) if origin else read_sources)
    return method.open_run(out, given, engine_options, TABLES[name], recorded, read_source)


def facts_of(folder: Path) -> dict:
    """What a run's config.json says of the run whose instructions it takes. Raises BadInput."""
    for stage in (*COPIED, "heldout"):
        if not (folder / f"{stage}.jsonl").is_file():
            raise BadInput(f"{folder} is no finished run: it has no {stage}.jsonl")
    config = read_config(folder)
    writers = [config.get("instructions_by"), config.get("model")]
    if writers[0] and config.get("baseline") != "evol-instruct":  # its model only answered
        writers.pop()
    shaped = {key: config[key] for key in SHAPE_INSTRUCTIONS if key in config}
    return shaped | {"instructions_by": " and ".join(filter(None, writers))}


def parse_arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("name", choices=[*CHOICES, *TABLES])
    parser.add_argument("--out", type=Path, required=True, help="the run folder")
    of_run = {"type": Path, "metavar": "RUN"}
    parser.add_argument("--from", dest="origin", help="the run whose instructions are taken", **of_run)
    parser.add_argument("--match", help="keep no more examples than this run has", **of_run)
    method.add_settings(parser)
    method.add_engine_options(parser)
    return parser.parse_args()


def work(arguments: argparse.Namespace) -> int:
    given, engine_options = method.given_settings(arguments)
    if arguments.name in CHOICES:
        if not (config := read_config(arguments.out)):
            raise BadInput(f"{arguments.out} is not a run folder")
        if arguments.origin or arguments.match:
            raise BadInput(f"{arguments.name} takes neither --from nor --match, only --out")
        table, facts = TABLES.get(config.get("baseline")), {"baseline": config.get("baseline")}
        run = method.open_run(arguments.out, given, engine_options, table, facts)
        with closing(run):
            print(f"{choose(run, arguments.name)} examples: {run.path(f'sft-{arguments.name}')}")
        return 0
    run = start(arguments.name, arguments.out, given, engine_options, arguments.origin, arguments.match)
    with closing(run):
        return pilot.run_everything(run)


def main() -> int:
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack letters that a text has
    try:
        if sys.argv[1:2] == ["trace"]:
            return trace.main(sys.argv[2:], TABLES)
        return work(parse_arguments())
    except (BadInput, SandboxError, OSError) as error:
        print(f"baselines.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("baselines.py: interrupted; run the same command to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
