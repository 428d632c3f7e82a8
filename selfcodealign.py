"""SelfCodeAlign (arXiv 2410.24198): a base code model makes its own instruction-tuning data.

    python selfcodealign.py run --model MODEL --source stdlib --out runs/first --limit 50    every stage
    python selfcodealign.py {seeds|concepts|instructions|responses|executions|selection} --out runs/first
    python selfcodealign.py {report|trace|quality|pilot|export|card|doctor} ...              see extras/

    stage         paper   in -> out                                             file in the run folder
    seeds         2.1, B  Python source -> functions that stand alone           seeds.jsonl
    concepts      2.2     seed -> the programming concepts in it, 8-shot        concepts.jsonl
    instructions  2.2     concepts + category + difficulty -> a task, 8-shot    instructions.jsonl
    responses     2.3     task -> 10 responses, each with its tests, 1-shot     responses.jsonl
    executions    2.3     response + tests -> passed, or why not (sandbox.py)   executions.jsonl
    selection     2.3, C  -> one passing response a task, no near-duplicates    selection.jsonl, sft.jsonl

A stage makes rows from the kept rows of its parent stage (`METHOD`, below the stages). A row is on disk as
soon as it is made, with the ids of all that it was made from; a rejected row stays, with its reason in
`reject`. If a run is killed, run it again: only missing rows are made. What is drawn for a row depends on the
run's seed and on ids only (`draw`), never on order or time. The model's text depends on its engine, too.

Three parts of these steps stand elsewhere: parts/seeds.py says which functions stand alone, with its reasons,
parts/contamination.py what is text of a benchmark, and parts/behaviour.py what solves a benchmark's task.

Differs from the paper: the few-shot examples are our own. They are drawn as a few fixed sets, so that the
engine prefills each set once (`--shot-sets 0` draws them for each prompt). Each sample has its own seed.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import functools
import importlib
import itertools
import math
import os
import queue
import random
import re
import sys
import time
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from parts import behaviour, code, mutants, seeds
from parts.code import program, python_code, runnable_code
from parts.contamination import Decontaminator
from parts.duplicates import NearDuplicates
from parts.engine import check_engine, start_engine, stream
from parts.examples import CATEGORIES, DIFFICULTIES, Example, load_examples
from parts.filters import Filters, contaminated
from parts.folder import Folder, merge_settings, positive, read_run, share
from parts.request import Request, prompt_ids
from parts.rows import Appender, BadInput, KeptRows, digest, draw, progress, read_rows, replacing, row_id
from sandbox import Sandbox, SandboxError, check_limits

PROMPTS = Path(__file__).parent / "prompts"
CONTEXT = 8192  # tokens of prompt and output together; lowered to what the model has

# --------------------------------------------------------------------------------------------------- settings


def add_settings(parser: argparse.ArgumentParser) -> dict:
    """Add the settings of a run; returns their defaults, the paper's values where it has one."""
    defaults = {}

    def add(flag: str, default, help: str, **options):
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        note = "" if default is None else f" (default: {shown})"
        group.add_argument(flag, default=argparse.SUPPRESS, help=help + note, **options)
        defaults[flag.removeprefix("--").replace("-", "_")] = default

    group = parser.add_argument_group("model and seeds (paper 2.1, B)")
    add("--model", None, "checkpoint folder or hub id")
    add("--source", "stdlib", "folder of Python files, .jsonl or .parquet file, hub dataset, or stdlib")
    add("--limit", None, "stop at this many kept seeds", type=positive(int))
    add("--judge", 0.5, "keep a seed if P(Yes) / (P(Yes) + P(No)) is at least this; 0: not asked", type=share)
    add("--seed", 0, "what every random choice is drawn from", type=int)
    group = parser.add_argument_group("prompts (2.2, 2.3)", argument_default=argparse.SUPPRESS)
    add("--shots", "8,8,1", "few-shot examples for concepts, instructions, responses")
    add("--categories", "function,function,class,program", "what a task's category is drawn from")
    add("--difficulties", "easy,medium,hard", "what a task's difficulty is drawn from")
    add("--shot-sets", 16, "fixed few-shot draws per stage; 0: one per prompt, as in the paper", type=int)
    group.add_argument("--decks", dest="shot_sets", type=int, help=argparse.SUPPRESS)  # its former name
    add("--layout", "tags", "headings: for a base model that does not follow tags", choices=list(LAYOUTS))
    group = parser.add_argument_group("sampling (2.2, 2.3)")
    add("--samples", 10, "responses per instruction", type=positive(int))
    add("--temperature", 0.7, "of every stage", type=float)
    add("--top-p", 1.0, "of every stage; 1: off, as in the paper", type=share)
    add("--top-k", 0, "of every stage; 0: off, as in the paper", type=int)
    add("--max-tokens", 1536, "new tokens at most; a longer output is rejected", type=positive(int))
    group = parser.add_argument_group("execution (2.3)")
    add("--timeout", 10.0, "seconds a program may run", type=positive(float))
    add("--memory-mb", 4096, "megabytes a program may use", type=positive(int))
    add("--workers", None, "programs run at a time (default: one per core)", type=positive(int))
    group = parser.add_argument_group("selection (2.3, C)")
    add("--test-in-instruction", 0.5, "share of examples that show a short test", type=share)
    add("--heldout", 0.0, "share of tasks kept out of sft.jsonl, in heldout.jsonl, for scoring", type=share)
    bounds = {"nargs": 2, "type": share, "metavar": ("LOW", "HIGH")}
    add("--pass-rate", [0.0, 1.0], "keep tasks of which such a share of samples pass", **bounds)
    add("--min-killed", 0.0, "keep responses whose tests kill this share of their code's mutants", type=share)
    return defaults


def add_engine_options(parser: argparse.ArgumentParser):
    title = "engine of this start"
    add = parser.add_argument_group(title, argument_default=argparse.SUPPRESS).add_argument
    add("--server", help="addresses, a comma between, of OpenAI-compatible servers that have the model")
    add("--tensor-parallel", type=positive(int), help="GPUs per copy of the model (default: 1)")
    add(
        "--data-parallel",
        type=positive(int),
        help="copies of the model (default: as many as GPUs hold; eval.py: 1)",
    )
    help = "any option of vLLM's; the last start's are recorded"
    add("--engine-option", action="append", metavar="NAME=VALUE", help=help)


# May change when a run is resumed: rows on disk do not depend on them, but selection's, which are rebuilt
ADJUSTABLE = ("limit", "workers", "pass_rate", "min_killed")
ENGINE = ("server", "tensor_parallel", "data_parallel", "engine_option")

# ------------------------------------------------------------------------------------------------- run folder


@dataclass(frozen=True)
class Stage:
    """A row of the table of stages, `METHOD`. It asks the model for each row, unless `make` makes them."""

    parent: str | None  # the stage whose kept rows it reads
    parent_id: str | None  # the field of its rows for the id of such a row
    text: str | Path | None = None  # what its prompts begin with: the file of this name in prompts/
    prompt: "Callable[[list[Example], dict, dict, Namespace], str] | None" = None
    # (few-shot examples, the row's drawn fields, its parent row, settings) -> the rest of its prompt
    parse: "Callable[[str, dict, dict, Namespace], dict] | None" = None
    # (the model's text, the row so far, its parent row, settings) -> further fields of the row, or `reject`
    stop: Sequence[str] = ()  # strings that end the model's text; none: those of the layout
    shots: int | None = None  # which of the numbers of --shots it takes; None: no examples
    draw_fields: "Callable[[dict, Namespace], dict]" = lambda parent, settings: {}
    # (parent row, settings) -> fields of the row that are drawn before the model is asked
    max_tokens: int | None = None  # at most so many new ones, if --max-tokens allows more
    several: bool = False  # whether a parent row gets --samples rows, not one
    make: "Callable[[Run], object] | None" = None


class Run(Folder):
    """A run folder with its settings, its table of stages, and the engine, started on first use."""

    def __init__(self, folder: Path, config: dict, engine_options: dict, stages: dict[str, Stage]):
        table = {name: (stage.parent, stage.parent_id, stage.several) for name, stage in stages.items()}
        super().__init__(folder, config | {"stages": table})
        self.settings = Namespace(**config)
        self.engine_options, self.stages = engine_options, stages

    @functools.cached_property
    def engine(self):
        stage = self.timed
        self.time_for("engine_start")
        self.save(engine_option=self.engine_options.get("engine_option", []))
        log = self.folder / "vllm.log"
        engine = start_engine(self.settings.model, CONTEXT, log=log, **self.engine_options)
        self.time_for(stage)
        return engine

    @functools.cached_property
    def decontaminator(self) -> Decontaminator:
        return Decontaminator()

    @functools.cached_property
    def examples(self) -> list[Example]:
        return wanted_examples(self.settings)

    @property
    def answers(self) -> tuple[str, str]:
        """The stage whose rows are executed and selected, and the field for their ids in later rows."""
        last = self.stages.get("executions") or self.stages["selection"]
        return last.parent, last.parent_id

    def sandbox(self) -> Sandbox:
        """Uses the cores that a running engine leaves."""
        engine_cores = self.engine.cores if "engine" in vars(self) else 0
        workers = self.settings.workers or max(1, len(os.sched_getaffinity(0)) - engine_cores)
        return Sandbox(workers, self.settings.timeout, self.settings.memory_mb)

    def close(self):
        """End the engine: no process of it is left, no memory of the GPU taken."""
        if "engine" in vars(self):
            self.engine.close()


def open_run(
    folder: Path,
    given: dict,
    engine_options: dict,
    stages: dict[str, Stage] | None = None,
    facts: dict | None = None,
    read_source: Callable[[str], Iterator[dict]] = seeds.read_sources,
) -> Run:
    """Start a run folder, or resume it. `stages` is the table, if it is not METHOD; `facts` are recorded
    besides the settings; `read_source` tells whether the source of a new run can be read. Raises BadInput."""
    stages, defaults = stages or METHOD, add_settings(argparse.ArgumentParser())
    config, is_new = merge_settings(folder, defaults, given, ADJUSTABLE, {"baseline": None} | (facts or {}))
    check_settings(config, stages)
    prompts, recorded = prompt_digests(config, stages), config.get("prompts", {})
    for name in prompts:
        if recorded.get(name, prompts[name]) != prompts[name] and (folder / f"{name}.jsonl").exists():
            files = f"{stages[name].text}.md or examples than those in {PROMPTS}"
            raise BadInput(f"{folder}: its {name} were made with another {files}: take another --out")
    if is_new:
        next(read_source(config["source"]), None)  # a bad source leaves no run folder behind
        check_engine(config["model"], **engine_options)
    return Run(folder, config | {"prompts": recorded | prompts}, engine_options, stages)


def prompt_digests(config: dict, stages: dict[str, Stage]) -> dict[str, str]:
    """{stage: hash of the text and the examples that its prompts are made of}."""
    examples = wanted_examples(Namespace(**config))
    used = {name: examples if stage.shots is not None else [] for name, stage in stages.items() if stage.text}
    return {name: digest(text_of(stages[name]), *of)[:16] for name, of in used.items()}


def check_settings(config: dict, stages: dict[str, Stage]):
    """Refuse now what a stage would refuse after hours. Raises BadInput, and SandboxError."""
    if config["model"] is None:
        raise BadInput("a new run needs --model: a checkpoint folder or a hub id")
    for key, known in {"categories": CATEGORIES, "difficulties": DIFFICULTIES}.items():
        if unknown := set(config[key].split(",")) - set(known):
            raise BadInput(f"--{key} takes {', '.join(known)}, not {', '.join(sorted(unknown))!r}")
    for key in ("temperature", "top_k"):
        if not config[key] >= 0:
            raise BadInput(f"--{key.replace('_', '-')} takes 0 or more, not {config[key]}")
    if not config["top_p"]:
        raise BadInput("--top-p takes more than 0, at most 1")
    low, high = config["pass_rate"]
    if low > high:
        raise BadInput(f"--pass-rate takes LOW and HIGH, not {low} and {high}")
    if (low > 0 or high < 1 or config["min_killed"]) and "executions" not in stages:
        raise BadInput(f"--pass-rate and --min-killed: {config['baseline']} executes no responses")
    if not re.fullmatch(r"\d+,\d+,\d+", config["shots"]):
        raise BadInput(f"--shots takes three numbers such as 8,8,1, not {config['shots']!r}")
    check_limits(config["workers"] or 1, config["timeout"], config["memory_mb"])
    examples = len(wanted_examples(Namespace(**config)))
    shots = list(map(int, config["shots"].split(",")))
    asked = [stage for stage in stages.values() if not stage.make and stage.shots is not None]
    if max((shots[stage.shots] for stage in asked), default=0) > examples:
        found = f"{PROMPTS / 'examples'} has {examples} of the wanted categories and difficulties"
        raise BadInput(f"--shots {config['shots']}: {found}")


# ------------------------------------------------------------------------------------------- few-shot prompts


def wanted_examples(settings: Namespace) -> list[Example]:
    """The few-shot examples of the wanted categories and difficulties."""
    categories, difficulties = settings.categories.split(","), settings.difficulties.split(",")
    wanted = lambda values: values["category"] in categories and values["difficulty"] in difficulties
    return [example for example in load_examples(PROMPTS / "examples") if wanted(example.properties)]


def few_shot(shots: list[str], opening: str) -> str:
    """The numbered examples, and the opening of one more, which the model is to finish."""
    return "\n\n".join(f"### Example {number}\n{text}" for number, text in enumerate([*shots, opening], 1))


def prompt_of(stage: Stage, shots: list[Example], fields: dict, parent: dict, settings: Namespace) -> str:
    return f"{text_of(stage).strip()}\n\n{stage.prompt(shots, fields, parent, settings)}"


def text_of(stage: Stage) -> str:
    return (PROMPTS / f"{stage.text}.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------- generation


def generate(run: Run, name: str):
    """Make the missing rows of a stage. If the next stage executes them, that begins here."""
    stage = run.stages[name]
    with Appender(run.path(name)) as file:
        waiting = missing_rows(run, name, file.ids)
        if not waiting:
            return
        parents = {parent["id"]: parent for _, parent, _ in waiting}
        bar = progress(total=sum(len(numbers) for _, _, numbers in waiting), desc=name, unit="row")

        def reject_long_prompt(row: dict):
            file.append(row | {"reject": "prompt_too_long"})
            bar.update()

        executed = "executions" in run.stages and run.stages["executions"].parent == name
        kept, tokens, started = 0, 0, time.monotonic()
        requests = build_requests(run, name, waiting, reject_long_prompt)
        with bar, BackgroundExecution(run) if executed else contextlib.nullcontext() as beside:
            for request, completion in stream(run.engine, requests):
                row = request.row | {"tokens": completion.tokens}
                if completion.finished:
                    row |= stage.parse(completion.text, row, parents[row[stage.parent_id]], run.settings)
                else:
                    row |= {"text": completion.text, "reject": "length"}
                file.append(row)
                if beside and "reject" not in row:
                    beside.add(row)
                kept, tokens = kept + ("reject" not in row), tokens + completion.tokens
                rate = f"{tokens / (time.monotonic() - started):.0f} tokens/s"
                bar.set_postfix_str(f"kept {kept / (bar.n + 1):.0%}, {rate}{beside or ''}", refresh=False)
                bar.update()


def missing_rows(run: Run, name: str, on_disk: set[str]) -> list[tuple[int | str, dict, list[int]]]:
    """(shot set, parent row, sample numbers) of the rows that are not on disk, sorted by shot set: prompts
    that begin alike follow one another and share the engine's prefix cache."""
    settings, stage, waiting = run.settings, run.stages[name], []
    for parent in run.kept(stage.parent):
        numbers = range(settings.samples if stage.several else 1)
        if numbers := [n for n in numbers if row_id(name, parent["id"], n) not in on_disk]:
            shot_set = parent["id"]
            if settings.shot_sets:
                shot_set = draw(settings.seed, name, "deck", parent["id"]) % settings.shot_sets
            waiting.append((shot_set, parent, numbers))
    return sorted(waiting, key=lambda item: (item[0], item[1]["id"]))


def draw_shots(run: Run, name: str, shot_set: int | str) -> list[Example]:
    """The few-shot examples of a shot set, in their order."""
    which = run.stages[name].shots
    count = 0 if which is None else int(run.settings.shots.split(",")[which])
    return random.Random(draw(run.settings.seed, name, "shots", shot_set)).sample(run.examples, count)


def origin(parent: dict, key: str) -> dict[str, str]:
    """The ids of what a row is made from: those that its parent row has, and, as `key`, the parent's own."""
    return {name: value for name, value in parent.items() if name.endswith("_id")} | {key: parent["id"]}


def build_requests(
    run: Run, name: str, waiting: list[tuple], reject_long_prompt: Callable[[dict], None]
) -> Iterator[Request]:
    """The request for each missing row; a row whose prompt leaves no room for an answer is rejected."""
    settings, stage = run.settings, run.stages[name]
    sampling = {key: getattr(settings, key) for key in ("temperature", "top_p", "top_k")}
    max_tokens = min(stage.max_tokens or settings.max_tokens, settings.max_tokens)
    stop = list(stage.stop or LAYOUTS[settings.layout].stop)
    for shot_set, parent, numbers in waiting:
        shots, fields = draw_shots(run, name, shot_set), stage.draw_fields(parent, settings)
        prompt = prompt_of(stage, shots, fields, parent, settings)
        token_ids = prompt_ids(run.engine.tokenizer, prompt)
        for n in numbers:
            row = {"id": row_id(name, parent["id"], n)} | origin(parent, stage.parent_id)
            row |= {"sample": n, **fields, "examples": [example.name for example in shots]}
            row |= {"prompt": digest(prompt)[:16]}
            seed = row["sampling_seed"] = draw(settings.seed, name, "sampling", row["id"])
            if len(token_ids) + max_tokens > run.engine.context:
                reject_long_prompt(row)
            else:
                yield Request(row["id"], token_ids, max_tokens, seed, stop, row, **sampling)


# ------------------------------------------------------------------------------------ 2.1, B: source -> seeds

# The judge's rejects: such code was no near-duplicate, and code after it is compared with it
JUDGE_REJECTS = ("insufficient_docstring", "prompt_too_long")
JUDGE_BATCH = 128  # of a run with a limit: more would be judged in vain once it is reached


def gather_seeds(run: Run):
    """Paper 2.1 and B: functions of the source that stand alone, type-check, are no near-duplicates, hold no
    benchmark text, and whose docstring suffices, says the model."""

    def candidates(on_disk: set[str]) -> Iterator[dict]:
        functions = new_candidates(ordered(run, seeds.extract(run.settings.source)), on_disk)
        return judge(run, reject_known_texts(run, seeds.type_checked(functions)))

    keep_seeds(run, candidates)


def keep_seeds(run: Run, candidates: Callable[[set[str]], Iterable[dict]]):
    """Write `candidates(ids on disk)` to seeds.jsonl until the limit is reached."""
    limit = run.settings.limit or math.inf
    if "decontamination" not in run.config:
        run.save(decontamination=run.decontaminator.coverage, searched=run.decontaminator.suites)
    with Appender(run.path("seeds")) as file, progress(desc="seeds", unit="function") as bar:
        kept = sum(1 for _ in run.kept("seeds"))
        for row in candidates(set(file.ids)) if kept < limit else ():
            file.append(row)
            kept += "reject" not in row
            bar.set_postfix_str(f"kept {kept}", refresh=False)
            bar.update()
            if kept >= limit:
                break


def ordered(run: Run, candidates: Iterable[dict]) -> Iterable[dict]:
    """A folder's candidates in an order drawn from the run's seed, so that --limit takes a fair sample and a
    larger limit adds to a smaller one; a file or dataset is streamed in its own order."""
    if run.settings.source == "stdlib" or Path(run.settings.source).is_dir():
        sort_key = lambda row: digest(run.settings.seed, "seed order", row["where"], row.get("code"))
        return sorted(candidates, key=sort_key)
    return candidates


def new_candidates(candidates: Iterable[dict], seen: set[str]) -> Iterator[dict]:
    """The candidates with their ids, without those `seen`: on disk, or a copy of one before."""
    for candidate in candidates:
        row = {"id": row_id("seeds", candidate.get("code") or candidate["where"]), **candidate}
        if row["id"] not in seen:
            seen.add(row["id"])
            yield row


def reject_known_texts(run: Run, candidates: Iterator[dict]) -> Iterator[dict]:
    """Reject candidates that hold benchmark text or are near-duplicates of one before."""
    duplicates = NearDuplicates(0.5)
    for row in read_rows(run.path("seeds")):
        if row.get("reject") in (None, *JUDGE_REJECTS):
            duplicates.is_new(row["code"])  # kept before a restart
    for row in candidates:
        if "reject" not in row:
            if finding := run.decontaminator.contaminated_by(row["code"]):
                row |= contaminated(finding)
            elif not duplicates.is_new(row["code"]):
                row["reject"] = "near_duplicate"
        yield row


def judge(run: Run, candidates: Iterator[dict]) -> Iterator[dict]:
    """Paper B: reject candidates whose docstring, says the model, does not suffice to write it again."""
    threshold = run.settings.judge
    size = 1 if not threshold else JUDGE_BATCH if run.settings.limit else run.engine.window
    while batch := list(itertools.islice(candidates, size)):
        requests = []
        for row in batch:
            if "reject" not in row and threshold:
                prompt = prompt_of(run.stages["seeds"], [], {}, row, run.settings)
                prompt = prompt_ids(run.engine.tokenizer, prompt)
                if len(prompt) < run.engine.context:
                    requests.append(Request(row["id"], prompt, 1, None, [], row, logprobs=20))
                else:
                    row["reject"] = "prompt_too_long"
        for request, completion in stream(run.engine, requests) if requests else ():
            request.row["judge"] = share_of_yes(completion.first)
            if request.row["judge"] < threshold:
                request.row["reject"] = "insufficient_docstring"
        yield from batch


def judge_prompt(shots: list[Example], fields: dict, seed: dict, settings: Namespace) -> str:
    """The text ends with seven judged examples; the function to judge is the eighth."""
    return f"### Example 8\n[Code]\n```python\n{seed['code']}\n```\n\n[Sufficient]\n"


def share_of_yes(first: dict[str, float]) -> float:
    """P(Yes) / (P(Yes) + P(No)) of the likeliest first tokens; 0 where neither is among them."""
    words = Counter()
    for token, probability in first.items():
        words[token.strip().lower()] += probability
    both = words["yes"] + words["no"]
    return round(words["yes"] / both, 4) if both else 0.0


# -------------------------------------------------------------------------------------- 2.2: seed -> concepts


def concepts_prompt(shots: list[Example], fields: dict, seed: dict, settings: Namespace) -> str:
    texts = [f"[Code]\n{example.code}\n\n[Concepts]\n{example.properties['concepts']}" for example in shots]
    return few_shot(texts, f"[Code]\n```python\n{seed['code']}\n```\n\n[Concepts]\n")


def parse_concepts(text: str, row: dict, seed: dict, settings: Namespace) -> dict:
    parts = [concept.strip() for concept in text.strip().lower().rstrip(".").split(",")]
    concepts = list(dict.fromkeys(filter(None, parts)))
    if not concepts or len(concepts) > 12 or max(map(len, concepts)) > 60:
        return {"text": text, "reject": "not_a_list_of_concepts"}
    return {"concepts": concepts}


# ------------------------------------------------------------------------------- 2.2: concepts -> instruction


def draw_task(concepts: dict, settings: Namespace) -> dict[str, str]:
    """The category and the difficulty of a task."""
    options = {"category": settings.categories.split(","), "difficulty": settings.difficulties.split(",")}
    return {key: of[draw(settings.seed, key, concepts["id"]) % len(of)] for key, of in options.items()}


def instruction_prompt(shots: list[Example], fields: dict, concepts: dict, settings: Namespace) -> str:
    """The drawn category decides how a task begins; it comes last, where small models heed it more often."""
    stated = {"concepts": ", ".join(concepts["concepts"]), "language": "Python"}
    stated |= {key: fields[key] for key in ("difficulty", "category")}

    def state(values: dict[str, str]) -> str:
        return "[Properties]\n" + "\n".join(f"{key}: {values[key]}" for key in stated) + "\n\n[Instruction]\n"

    return few_shot([state(example.properties) + example.instruction for example in shots], state(stated))


def parse_task(text: str, row: dict, concepts: dict, settings: Namespace) -> dict:
    instruction = text.strip()
    if len(instruction.split()) < 8 or re.search(r"^\[\w+\]$", instruction, re.MULTILINE):
        return {"text": text, "reject": "not_a_task"}
    return {"instruction": instruction}


# ------------------------------------------------------------------- 2.3: instruction -> responses with tests


@dataclass(frozen=True)
class Layout:
    """How instruction, response and tests are told apart, in a prompt and in the model's text."""

    shot: str
    boundary: str  # regular expression: where the response ends and the tests begin
    marks: tuple[str, ...]  # strings that stand nowhere else
    stop: tuple[str, ...]


LAYOUTS = {
    "tags": Layout(
        shot="<instruction>\n{instruction}\n</instruction>\n\n<response>\n{response}\n</response>\n\n"
        "<tests>\n{tests}\n</tests>",
        boundary=r"\s*</response>\s*<tests>\s*",
        marks=("</response>", "<tests>"),
        stop=("</tests>", "\n### Example"),
    ),
    "headings": Layout(
        shot="#### Instruction\n{instruction}\n\n#### Response\n{response}\n\n#### Tests\n{tests}",
        boundary=r"\s*^#### Tests[ \t]*\n",
        marks=("#### Response", "#### Tests"),
        stop=("\n#### Instruction", "\n### Example"),
    ),
}
PLACEHOLDERS = (
    "todo",
    "fixme",
    "write your code here",
    "your code here",
    "your code goes here",
    "notimplemented",
)


def response_prompt(shots: list[Example], fields: dict, task: dict, settings: Namespace) -> str:
    layout = LAYOUTS[settings.layout]
    texts = [layout.shot.format(instruction=e.instruction, response=e.response, tests=e.tests) for e in shots]
    return few_shot(texts, layout.shot.partition("{response}")[0].format(instruction=task["instruction"]))


def parse_response(text: str, row: dict, task: dict, settings: Namespace) -> dict:
    """{response, tests} of a sample, or {text, reject}: the format filter of the paper."""
    layout = LAYOUTS[settings.layout]
    parts = re.split(layout.boundary, text, flags=re.MULTILINE)
    if len(parts) != 2 or any(mark in part for mark in layout.marks for part in parts):
        return {"text": text, "reject": "no_response_tests_boundary"}
    response, tests = (part.strip() for part in parts)
    if reason := malformed_code(response) or malformed_code(tests):
        return {"text": text, "reject": reason}
    if not code.has_reachable_assert(python_code(tests)):
        return {"text": text, "reject": "tests_assert_nothing"}
    return {"response": response, "tests": tests}


def malformed_code(text: str) -> str | None:
    """Why the fenced code of `text` is rejected; None if it is kept."""
    found = python_code(text)
    if not found:
        return "no_code_block"
    if not code.parses(found):
        return "syntax_error"
    return "placeholder" if any(word in text.lower() for word in PLACEHOLDERS) else None


# --------------------------------------------------------------------------------------------- 2.3: execution


def execute(run: Run):
    """Paper 2.3: each response runs with its own tests in the sandbox; only `passed` is kept."""
    on_disk = {row["id"] for row in read_rows(run.path("executions"))}
    responses = run.kept(run.answers[0])
    waiting = [row for row in responses if row_id("executions", row["id"]) not in on_disk]
    outcomes = Counter()
    with progress(total=len(waiting), desc="executions", unit="program") as bar:
        for outcome in run_programs(run, waiting) if waiting else ():
            outcomes[outcome] += 1
            bar.set_postfix_str(f"passed {outcomes['passed'] / outcomes.total():.0%}", refresh=False)
            bar.update()
    if outcomes["error"]:
        run.problems.append(f"{outcomes['error']} programs got no verdict from the sandbox")


def run_programs(run: Run, responses: Iterable[dict]) -> Iterator[str]:
    """Yield the outcome of each response's program once it is on disk.

    `error`, the sandbox's own fault, is no verdict: it makes no row, and the next start tries again.
    """
    with Appender(run.path("executions")) as file, run.sandbox() as sandbox:
        run.save(sandbox=sandbox.protection)
        for row, result in sandbox.map((row, program_of(row)) for row in responses):
            verdict = {key: getattr(result, key) for key in ("outcome", "detail", "seconds", "peak_mb")}
            if result.outcome == "error":
                print(f"\nno verdict from the sandbox: {result.detail}", file=sys.stderr)
            else:
                rejected = {} if result.outcome == "passed" else {"reject": result.outcome}
                ids = {"id": row_id("executions", row["id"])} | origin(row, run.answers[1])
                file.append(ids | verdict | rejected)
            yield result.outcome


def code_and_tests(response: dict) -> tuple[str, str]:
    return runnable_code(response["response"]), python_code(response["tests"])


def program_of(response: dict) -> str:
    """What the sandbox runs: the code of the response, then its tests."""
    return program(*code_and_tests(response))


class BackgroundExecution:
    """Executes responses in a thread while an engine that leaves cores free goes on generating; `execute`
    does afterwards what it leaves out."""

    BACKLOG = 10_000  # responses in memory; more are left to the stage of executions

    def __init__(self, run: Run):
        self.run, self.waiting, self.outcomes, self.future = run, queue.SimpleQueue(), Counter(), None

    def __enter__(self):
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        return self

    def add(self, row: dict):
        if self.run.engine.on_cpu:
            return
        self.future = self.future or self.pool.submit(self.work)
        if self.future.done():
            self.future.result()  # raises what went wrong
        if self.waiting.qsize() < self.BACKLOG:
            self.waiting.put(row)

    def work(self):
        self.outcomes.update(run_programs(self.run, iter(self.waiting.get, None)))

    def __str__(self) -> str:
        total = self.outcomes.total()
        return f", executed {total}, passed {self.outcomes['passed'] / total:.0%}" if total else ""

    def __exit__(self, kind, *_):
        with contextlib.suppress(queue.Empty):
            while kind:  # interrupted: the rest is executed when the run is resumed
                self.waiting.get_nowait()
        self.waiting.put(None)
        self.pool.shutdown()
        if self.future and not kind:
            self.future.result()


# ------------------------------------------------------------------------------------------ 2.3, C: selection


def select(run: Run):
    """Paper 2.3 and C: one passing response for each instruction, then the filters, in a drawn order. All
    rows are made again each time."""
    write_selection(run, filter_passing(run, Filters(run.decontaminator)))


def filter_passing(run: Run, filters: Filters) -> dict[str, dict]:
    """{id of a passing response: {}, or why it is rejected}. What --pass-rate and --min-killed leave out is
    rejected first; both are off in the paper."""
    passing = in_drawn_order(run, run.kept(run.stages["selection"].parent))
    (low, high), count = run.settings.pass_rate, Counter(passing.values())
    is_left_out = lambda task: not low <= count[task] / run.settings.samples <= high
    verdicts = {one: {"reject": "pass_rate"} for one, task in passing.items() if is_left_out(task)}
    if run.settings.min_killed:
        verdicts |= weakly_tested(run, [one for one in passing if one not in verdicts])
    verdicts |= choose(run, {one: task for one, task in passing.items() if one not in verdicts}, filters)
    coverage = "; ".join(filter(None, (run.decontaminator.coverage, reject_solved(run, verdicts))))
    run.save(decontamination=coverage, searched=run.decontaminator.suites)
    return verdicts


def in_drawn_order(run: Run, rows: Iterable[dict]) -> dict[str, str]:
    """{response id: instruction id} of responses, or of their executions, in an order drawn from the seed."""
    task_of = {row.get(run.answers[1], row["id"]): row["instruction_id"] for row in rows}
    sort_key = lambda response_id: digest(run.settings.seed, "selection", response_id)
    return {response_id: task_of[response_id] for response_id in sorted(task_of, key=sort_key)}


def choose(run: Run, candidates: dict[str, str], filters: Filters) -> dict[str, dict]:
    """{response id: {}, or why it is rejected}: an instruction's first response is kept if the filters keep
    it; the others are `not_chosen`, even where the first is rejected."""
    responses, tasks = KeptRows(run.path(run.answers[0])), KeptRows(run.path("instructions"))
    offered, verdicts = set(), {}
    for response_id, task_id in progress(candidates.items(), desc="selection", unit="row"):
        if task_id in offered:
            verdicts[response_id] = {"reject": "not_chosen"}
        else:
            offered.add(task_id)
            verdicts[response_id] = filters(tasks[task_id]["instruction"], responses[response_id]["response"])
    return verdicts


def weakly_tested(run: Run, response_ids: list[str]) -> dict[str, dict]:
    """{response id: its reject} of those whose tests kill less than --min-killed of their code's mutants.
    Those without a mutant are among them, and those that take too long: nothing shows what their tests test.
    mutants.jsonl has the scores. Raises SandboxError where the sandbox gives no verdict."""
    responses = KeptRows(run.path(run.answers[0]))
    limits = run.settings.workers, mutants.TIMEOUT, run.settings.memory_mb
    with Appender(run.path("mutants")) as file, Sandbox(*limits) as sandbox:
        waiting = [one for one in response_ids if row_id("mutants", one) not in file.ids]
        examples = ((one, *code_and_tests(responses[one])) for one in waiting)
        scores = mutants.mutation_score(sandbox, examples)
        for one, score in progress(scores, total=len(waiting), desc="mutants", unit="response"):
            if not score.errors:
                counts = {"mutants": score.mutants, "killed": score.killed}
                file.append({"id": row_id("mutants", one), "response_id": one} | counts)
    scores = {row["response_id"]: row for row in read_rows(run.path("mutants"))}
    if missing := len(set(response_ids) - scores.keys()):
        raise SandboxError(f"mutants of {missing} responses got no verdict; run the same command to resume")
    kills = lambda row: row["mutants"] and row["killed"] >= run.settings.min_killed * row["mutants"]
    return {one: {"reject": "weak_tests"} for one in response_ids if not kills(scores[one])}


def reject_solved(run: Run, verdicts: dict[str, dict]) -> str:
    """Reject what is kept so far and solves a benchmark's task; each response is tried once, benchmarks.jsonl
    has the results. Returns a note: on how many tasks they were tried."""
    coverage, trials = run.decontaminator.coverage, behaviour.make_trials(run.decontaminator.runnable)
    if not trials:
        return ""
    responses = KeptRows(run.path(run.answers[0]))
    attempts = {row_id("benchmarks", coverage, one): one for one, verdict in verdicts.items() if not verdict}
    with Appender(run.path("benchmarks")) as file, Sandbox(workers=run.settings.workers) as sandbox:
        waiting = [attempt for attempt in attempts if attempt not in file.ids]
        codes = ((attempt, python_code(responses[attempts[attempt]]["response"])) for attempt in waiting)
        tried = behaviour.solved_tasks(trials, sandbox, codes)
        bar = progress(tried, total=len(waiting), desc="benchmark tasks", unit="response")
        for attempt, solves, missing in bar:
            row = {"id": attempt, "response_id": attempts[attempt], "solves": solves, "not_tried": missing}
            file.append(row)
    rows = [row for row in read_rows(run.path("benchmarks")) if row["id"] in attempts]
    for row in rows:
        if row["solves"]:
            verdicts[row["response_id"]] = {"reject": "benchmark_solved", "benchmark": row["solves"]}
    incomplete = len(attempts) - sum(not row["not_tried"] for row in rows)
    note = f"{len(attempts)} responses tried on the inputs of {len(trials)} tasks"
    return note + (f", {incomplete} of them not on all" if incomplete else "")


def write_selection(run: Run, verdicts: dict[str, dict], suffix: str = "", untested: Collection[str] = ()):
    """Write selection.jsonl, and what is kept to sft.jsonl or heldout.jsonl; with a suffix to their names.
    No example of an `untested` response shows a test."""
    stage, key = run.answers
    rows = {name: KeptRows(run.path(name)) for name in (stage, "instructions", "concepts", "seeds")}
    with (
        replacing(run.path(f"selection{suffix}")) as write_verdict,
        replacing(run.path(f"sft{suffix}")) as write_example,
        replacing(run.path(f"heldout{suffix}")) as write_heldout,
    ):
        for response_id, verdict in verdicts.items():
            response = rows[stage][response_id]
            ids = origin(response, key)
            if not verdict and chance(run, "held out", response["instruction_id"]) < run.settings.heldout:
                verdict = {"reject": "held_out"}
                write_heldout(example_of(response, ids, rows))
            elif not verdict:
                write_example(with_test(run, example_of(response, ids, rows), response_id not in untested))
            write_verdict({"id": row_id("selection", response_id)} | ids | verdict)


def example_of(response: dict, ids: dict[str, str], rows: dict[str, KeptRows]) -> dict:
    task = rows["instructions"][ids["instruction_id"]]
    return {
        "id": row_id("sft", response["id"]),
        "instruction": task["instruction"],
        "response": response["response"],
        "tests": response["tests"],
        "program": program_of(response),
        "category": task["category"],
        "difficulty": task["difficulty"],
        "concepts": rows["concepts"][ids["concepts_id"]]["concepts"],
        "seed": rows["seeds"][ids["seed_id"]]["code"],
    } | ids


def with_test(run: Run, example: dict, passed: bool) -> dict:
    """The example; a drawn share of the passing ones shows a short test in the instruction, as in the paper's
    main run (C.1)."""
    drawn = chance(run, "test in instruction", example["response_id"]) < run.settings.test_in_instruction
    test = short_test(example["tests"]) if drawn and passed else None
    if test:
        example["instruction"] += f"\n\nYour code should pass this test:\n\n```python\n{test}\n```"
    return example | {"test_in_instruction": test is not None}


def short_test(tests: str) -> str | None:
    """The beginning of the tests up to an assert, at most 5 lines."""
    test_code, end = python_code(tests), None
    for statement in ast.parse(test_code).body:
        if statement.end_lineno <= 5 and isinstance(statement, ast.Assert):
            end = statement.end_lineno
    return "\n".join(code.code_lines(test_code)[:end]) if end else None


def chance(run: Run, *parts) -> float:
    """A number from 0 to 1, always the same for the same parts."""
    return draw(run.settings.seed, *parts) / 2**31


TASK_END = ("\n### Example", "\n[Properties]", "\n[Code]")
METHOD = {
    "seeds": Stage(None, None, "judge", judge_prompt, make=gather_seeds),
    "concepts": Stage(
        "seeds", "seed_id", "concepts", concepts_prompt, parse_concepts, ("\n",), shots=0, max_tokens=256
    ),
    "instructions": Stage(
        "concepts", "concepts_id", "instructions", instruction_prompt, parse_task, TASK_END, 1, draw_task
    ),
    "responses": Stage(
        "instructions", "instruction_id", "responses", response_prompt, parse_response, shots=2, several=True
    ),
    "executions": Stage("responses", "response_id", make=execute),
    "selection": Stage("executions", "response_id", make=select),
}


# ----------------------------------------------------------------------------------------------------- funnel


def funnel(folder: Path) -> dict:
    """Count the rows of every stage file of a run, whatever it is at, and add what config.json says of it.
    Raises BadInput."""
    config, counts, contaminated_tasks = read_run(folder), {}, set()
    stages = config["stages"]
    samples, passing, tasks = Counter(), Counter(), defaultdict(Counter)  # the first two by instruction id
    for stage in reversed(stages):  # while a run goes on, no row is counted before its parent row
        rejects, total, tokens = Counter(), 0, 0
        for row in read_rows(folder / f"{stage}.jsonl"):
            total, tokens = total + 1, tokens + row.get("tokens", 0)
            if "reject" in row:
                rejects[row["reject"]] += 1
                contaminated_tasks.update(row.get("benchmark", ()))
            if stages[stage][2]:  # the samples of a task, whatever stages stand between
                samples[row["instruction_id"]] += 1
            elif stage == "executions":
                passing[row["instruction_id"]] += "reject" not in row
            elif stage == "instructions" and samples[row["id"]]:
                passed = passing[row["id"]]
                counted = {"instructions": 1, "samples": samples[row["id"]], "passed": passed}
                tasks[row["category"], row["difficulty"]].update(counted, solved=passed > 0)
        rejects = dict(rejects.most_common())
        kept = total - sum(rejects.values())
        counts[stage] = {"stage": stage, "in": total, "kept": kept, "rejects": rejects, "tokens": tokens}
    for name, (parent, _, several) in stages.items():
        expected = (config.get("samples", 1) if several else 1) * counts[parent]["kept"] if parent else 0
        counts[name]["seconds"] = round(config.get("seconds", {}).get(name, 0), 1)
        counts[name]["waiting"] = max(0, expected - counts[name]["in"])
    if config.get("limit") and not counts["concepts"]["in"]:  # later, the source may have had no more
        counts["seeds"]["waiting"] = max(0, config["limit"] - counts["seeds"]["kept"])
    return {
        "stages": [counts[stage] for stage in stages],
        "sft": sum(1 for _ in read_rows(folder / "sft.jsonl")),
        "tested": "executions" in stages,
        "instructions_by_passing_samples": dict(sorted(Counter(passing[one] for one in samples).items())),
        "tasks": [{"category": key[0], "difficulty": key[1], **counted} for key, counted in tasks.items()],
        "contaminated_tasks": sorted(contaminated_tasks),
        "sandbox": config.get("sandbox", {}),
        "decontamination": config.get("decontamination", "not run yet"),
    }


# ----------------------------------------------------------------------------------------------- command line

EXTRAS = {  # command: what it does; the file of that name in extras/, loaded when it is asked for
    "report": "the funnel and report.html of a run, finished or not; pages of eval.py's comparisons",
    "trace": "one final example back to its seed",
    "quality": "how much the tests of the final examples test",
    "pilot": "a small run in each layout, and what a full run would give",
    "export": "the final examples, pairs or tasks with tests for others, with a dataset card",
    "card": "the card of a trained model",
    "doctor": "what this machine can do with a model, and the commands for it",
}


def run_stages(run: Run, names: Iterable[str], beside: Callable = contextlib.nullcontext):
    """Make the missing rows of the stages; `beside(run)` is a context that each one runs in."""
    for name in names:
        run.time_for(name)
        try:
            with beside(run):
                stage = run.stages[name]
                stage.make(run) if stage.make else generate(run, name)
        finally:
            run.time_for(None)


def report_problems(run: Run) -> int:
    """Print why the work is not done. Returns the exit status: 0 where it is."""
    for problem in run.problems:
        print(f"selfcodealign.py: {problem}; run the same command to try again", file=sys.stderr)
    return 2 if run.problems else 0


def given_settings(arguments: Namespace) -> tuple[dict, dict]:
    """(settings, engine options) among parsed arguments."""
    given, settings = vars(arguments), add_settings(argparse.ArgumentParser())
    return tuple({key: given[key] for key in keys if key in given} for keys in (settings, ENGINE))


def parse_arguments() -> Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", *METHOD):
        does = f"{name}.jsonl from {METHOD[name].parent or '--source'}" if name in METHOD else "every stage"
        command = commands.add_parser(name, help=does, allow_abbrev=False)
        command.add_argument("--out", type=Path, required=True, help="the run folder")
        add_settings(command)
        add_engine_options(command)
    for name, help in EXTRAS.items():
        commands.add_parser(name, help=help, add_help=False)
    return parser.parse_args()


def main() -> int | None:
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack letters that a text has
    extra = lambda name: importlib.import_module(f"extras.{name}")
    try:
        if sys.argv[1:2] and sys.argv[1] in EXTRAS:
            return extra(sys.argv[1]).main(sys.argv[2:])
        arguments = parse_arguments()
        if arguments.command not in ("run", "seeds") and not (arguments.out / "config.json").exists():
            raise BadInput(f"{arguments.out} is not a run folder: start with `run` or `seeds`")
        with contextlib.closing(open_run(arguments.out, *given_settings(arguments))) as run:
            names = METHOD if arguments.command == "run" else [arguments.command]
            run_stages(run, names, extra("report").live)
            if arguments.command == "run":
                extra("quality").measure(run)
            extra("report").show(run.folder)
            return report_problems(run)
    except (BadInput, SandboxError, OSError, concurrent.futures.BrokenExecutor) as error:
        print(f"selfcodealign.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("selfcodealign.py: interrupted; run the same command to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
