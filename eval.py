"""How good is a model? HumanEval+ and MBPP+ with EvalPlus (paper 3.1, T1), and tasks kept out of the data.

Where HumanEval+ cannot be had, `humaneval` is HumanEval with its own tests, run in the sandbox (`base` only).

    python eval.py --model MODEL --benchmark humaneval --out DIR               generate, then score
    python eval.py --model BASE ALIGNED --benchmark humaneval mbpp self --data heldout.jsonl --out DIR_A DIR_B
    python eval.py --samples FILE.jsonl --benchmark humaneval --out DIR        score samples that exist
    python eval.py --compare DIR_A DIR_B [DIR_B2 ...]                          paired: is B better than A?
    python eval.py --table DIR DIR ...                                         pass@1 of several models

Without --model, --samples is a file; with it, a number: the answers per task, for pass@k. A result folder
holds answers.jsonl (prompts, raw outputs), solutions.jsonl (of completions, sanitized), samples.jsonl
(EvalPlus's format), verdicts.jsonl, result.json; a folder for each of several benchmarks. Killed, it resumes.

    --prompt     asks a model for                                its answer is
    completion   the rest of the bare prompt, as EvalPlus does   prompt + output through EvalPlus's sanitizer
    evalplus     code after an opened fence, as EvalPlus does    what stands in the fence
    paper        a fenced block, through the chat template       the fenced block that defines the function
    auto         evalplus if the tokenizer has a chat template, as EvalPlus does, else completion

A base model may carry a chat template it was never trained on: give it `--prompt completion`, or its score is
too low and every gain over it too high. A self-made task (`self`) is the instruction through the chat
template, or after one example in the paper's response prompt (layout `tags`, whatever the run's); its code
and tests must pass in the sandbox, at the default limits.

Differs from EvalPlus's command: fenced blocks are taken whole, where its sanitizer loses decorated functions
and guarded imports; a completion that takes its sanitizer more than 60 s fails; at least 4 s per test input,
not 1 s (its own default, too, since commit af49138, which is not released); load changes no verdict
(parts/scoring.py). Its guard is no sandbox: score only models whose output you would run.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from parts.benchmarks import VERSIONS, load_benchmark
from parts.code import code_blocks, parses, program, python_code, runnable_code
from parts.comparison import compare, table
from parts.engine import check_model, check_name, side_by_side, start_engine, stream
from parts.examples import load_examples
from parts.folder import positive
from parts.pool import end_with_parent
from parts.request import Request, chat_ids, prompt_ids
from parts.rows import (
    Appender,
    BadInput,
    draw,
    fingerprint,
    lock_folder,
    progress,
    read_object,
    read_objects,
    read_rows,
    row_id,
    write_atomically,
    write_json,
)
from parts.scoring import LOAD_FACTOR, MIN_TIME_LIMIT, SPAWN, check_all, sanitized
from parts.statistics import summary
from sandbox import Sandbox, SandboxError
from selfcodealign import ENGINE, METHOD, PROMPTS, add_engine_options, prompt_of

CONTEXT = 2048  # tokens of prompt and answer, as in EvalPlus
EVALPLUS_PREFIXES = (  # of its instruct prompt and of the answer: facts of EvalPlus, local variables there
    "Please provide a self-contained Python script that solves the following problem in a markdown code "
    "block:",
    "Below is a Python script with a self-contained function that solves the problem and passes "
    "corresponding tests:",
)
PAPER_PROMPT = (
    "Write a Python function that solves the task below. "
    "Answer with the complete code in one fenced block.\n\n```python\n{}```"
)


# --------------------------------------------------------------------------------------------- tasks, samples


@dataclass
class Job:
    """One result folder: a model, or a samples file, on one benchmark."""

    folder: Path
    settings: dict  # all that the result depends on
    tasks: dict[str, dict]
    samples: list[tuple[str, str]] | None = None  # (task id, solution); a model's are made from its answers

    @property
    def benchmark(self) -> str:
        return self.settings["benchmark"]

    def missing_answers(self) -> list[tuple[str, str, int]]:
        """(answer id, task id, sample index) of the answers that are not on disk."""
        on_disk = {row["id"] for row in read_rows(self.folder / "answers.jsonl")}
        wanted = itertools.product(self.tasks, range(self.settings["samples"]))
        answers = [(row_id("answer", task_id, index), task_id, index) for task_id, index in wanted]
        return [answer for answer in answers if answer[0] not in on_disk]


def load_tasks(benchmark: str, data: Path | None) -> tuple[dict[str, dict], str]:
    """The tasks by id, each with its `prompt`, and the MD5 of their file. Raises BadInput."""
    if benchmark != "self":
        found = load_benchmark(benchmark)
        if found.missing:
            print(f"eval.py: {found.missing}", file=sys.stderr)
        return found.tasks, found.md5
    if not data:
        raise BadInput("--benchmark self needs --data FILE: rows with `id`, `instruction` and `tests`")
    tasks = {}
    for place, row in read_objects(data, "id", "instruction", "tests"):
        if row["id"] in tasks or not python_code(row["tests"]):
            raise BadInput(f"{place}: a task needs an id of its own, and `tests` in a ```python block")
        tasks[row["id"]] = {"prompt": row["instruction"], "tests": row["tests"]}
    if not tasks:
        raise BadInput(f"no tasks in {data}")
    return tasks, fingerprint(data)


def by_evalplus(tasks: dict[str, dict]) -> bool:
    """Whether EvalPlus scores the tasks: those of HumanEval+ and MBPP+. Others run in the sandbox."""
    return "plus_input" in next(iter(tasks.values()))


def read_samples(path: Path, tasks: dict[str, dict], chosen: dict[str, dict]) -> list[tuple[str, str]]:
    """(task id, solution) of each sample of the chosen tasks, in their order. The file is one of EvalPlus's:
    rows of `task_id` and `solution`, or `completion`, which follows the task's prompt. Raises BadInput."""
    samples = {task_id: [] for task_id in tasks}
    for place, row in read_objects(path, "task_id"):
        if (task_id := row["task_id"]) not in tasks:
            raise BadInput(f"{place}: the benchmark has no task {task_id}")
        solution = row.get("solution", row.get("completion"))
        if not isinstance(solution, str):
            raise BadInput(f"{place}: neither `solution` nor `completion` is a text")
        samples[task_id].append(solution if "solution" in row else tasks[task_id]["prompt"] + solution)
    counts = {len(samples[task_id]): task_id for task_id in chosen}
    few, many = min(counts), max(counts)
    if few == 0 or few < many:
        problem = f"{few} samples of {counts[few]} and {many} of {counts[many]}"
        raise BadInput(f"{path} has {problem}: each task needs the same number")
    return [(task_id, solution) for task_id in chosen for solution in samples[task_id]]


def make_job(given, model: str | None, prompt: str, benchmark: str, tasks: dict, md5: str, folder: Path):
    """The job of one model, or of the samples file, on one benchmark. Raises BadInput, with nothing done."""
    settings = {"benchmark": benchmark, "dataset_md5": md5, "limit": given.limit, "model": model}
    chosen, samples = dict(itertools.islice(tasks.items(), given.limit)), None
    if model:
        settings |= {"samples_file": None, "fingerprint": fingerprint(Path(model)), "prompt": prompt}
        settings |= {"samples": int(given.samples or 1), "temperature": given.temperature}
        settings |= {"seed": given.seed, "max_tokens": given.max_tokens}
        settings |= {"engine_option": given.engine_option} if "engine_option" in given else {}
    else:
        settings |= {"samples_file": given.samples, "fingerprint": fingerprint(Path(given.samples))}
        samples = read_samples(Path(given.samples), tasks, chosen)
    if by_evalplus(tasks):
        settings |= {"min_time_limit": MIN_TIME_LIMIT, "load_factor": LOAD_FACTOR}
        settings["evalplus"] = importlib.metadata.version("evalplus")
    check_folder(folder, settings)
    return Job(folder, settings, chosen, samples)


def check_folder(folder: Path, settings: dict):
    """Refuse a folder that holds more than a result, or part of one, of these settings. Raises BadInput."""
    file, mark = folder / "settings.json", folder / ".lock.machine"
    if not any(other.stat().st_size for other in folder.glob("*") if other not in (file, mark)):
        return  # nothing was done yet
    recorded = read_object(file)
    if not recorded:
        raise BadInput(f"{folder} exists and is not a result folder: take another --out")
    if changed := [key for key in settings | recorded if recorded.get(key) != settings.get(key)]:
        raise BadInput(f"{folder} holds the result of another {', '.join(changed)}: take another --out")


# ---------------------------------------------------------------------------------------------------- answers


def choose_prompt(wanted: str, benchmark: str, tokenizer, model: str) -> str:
    if wanted in ("evalplus", "paper") and not tokenizer.chat_template:
        raise BadInput(f"{model} has no chat template: use --prompt completion")
    if wanted == "completion" or not tokenizer.chat_template:
        return "completion"
    if benchmark == "self":
        return "paper"
    return "evalplus" if wanted == "auto" else wanted


def write_prompt(benchmark: str, task: str, prompt: str, tokenizer) -> tuple[str, list[str]]:
    """The text that the model continues, and the strings that end its answer. `task` is the task's prompt."""
    from evalplus.provider.utility import EOS, extra_eos_for_direct_completion, make_raw_chat_prompt

    if prompt == "completion" and benchmark == "self":
        example = load_examples(PROMPTS / "examples")[:1]
        tags = argparse.Namespace(layout="tags")
        text = prompt_of(METHOD["responses"], example, {}, {"instruction": task}, tags)
        return text, ["</response>", "\n### Example"]
    function = task.strip() + "\n"
    if prompt == "completion":
        return function, EOS + extra_eos_for_direct_completion(benchmark)
    message = {"role": "user", "content": task if benchmark == "self" else PAPER_PROMPT.format(function)}
    try:
        if prompt == "evalplus":
            text, stop = make_raw_chat_prompt(function, *EVALPLUS_PREFIXES, tokenizer), EOS + ["\n```\n"]
        else:
            text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
            stop = []
        if task.strip() not in text:
            raise ValueError("it leaves out a message whose content is a text")
    except Exception as error:  # jinja2's, and whatever a template's own code raises
        problem = f"cannot use the model's chat template ({error}): take --prompt completion"
        raise BadInput(" ".join(problem.split())) from None
    return text, stop


def check_prompts(jobs: list[Job]):
    """Write a prompt of each job: a chat template that refuses it costs no engine. Raises BadInput."""
    for job in jobs:
        if model := job.settings["model"]:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(model)
            prompt = choose_prompt(job.settings["prompt"], job.benchmark, tokenizer, model)
            write_prompt(job.benchmark, next(iter(job.tasks.values()))["prompt"], prompt, tokenizer)


def generate(jobs: list[Job], engine_options: dict, number: int, engines: int):
    """Add a model's missing answers to its jobs' files as they finish. The cores are shared by `engines`."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[number::engines])
    model = jobs[0].settings["model"]
    with contextlib.ExitStack() as stack:
        options = engine_options | {"log": jobs[0].folder / "vllm.log", "engines": engines}
        engine = start_engine(model, CONTEXT, every_gpu=False, **options)
        stack.enter_context(contextlib.closing(engine))
        requests, file_of = [], {}
        for job in jobs:
            file = stack.enter_context(Appender(job.folder / "answers.jsonl"))
            of_job = list(make_requests(job, model, engine))
            requests, file_of = requests + of_job, file_of | {request.id: file for request in of_job}
        tokens, started = 0, time.monotonic()
        shown = {"desc": f"generate {Path(model).name}", "unit": "answer", "position": number}
        bar = progress(stream(engine, requests), total=len(requests), **shown)
        for request, completion in bar:
            answer = {"raw": completion.text, "finished": completion.finished}
            file_of[request.id].append(request.row | answer | {"tokens": completion.tokens})
            tokens += completion.tokens
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tokens/s", refresh=False)


def make_requests(job: Job, model: str, engine) -> Iterator[Request]:
    """The requests for the missing answers of a job."""
    settings, tokenizer = job.settings, engine.tokenizer
    prompt = choose_prompt(settings["prompt"], job.benchmark, tokenizer, model)
    for answer_id, task_id, index in job.missing_answers():
        task = job.tasks[task_id]["prompt"]
        text, stop = write_prompt(job.benchmark, task, prompt, tokenizer)
        if prompt == "completion":
            ids = prompt_ids(tokenizer, text)
        else:
            ids = chat_ids(tokenizer, text, task.strip())
        if len(ids) >= engine.context:
            raise BadInput(f"the prompt of {task_id} does not fit the context of {model}")
        room = min(settings["max_tokens"], engine.context - len(ids))
        seed = draw(settings["seed"], "eval", task_id, index) if settings["temperature"] else None
        row = {"id": answer_id, "task_id": task_id, "sample": index, "prompt": prompt, "prompt_text": text}
        # A model may be asked for the same answers twice, by two prompts.
        request_id = f"{job.folder}/{answer_id}"
        yield Request(request_id, ids, room, seed, stop, row, temperature=settings["temperature"])


def fenced_block(text: str, entry_point: str) -> str:
    """The first fenced block, closed or not, that defines `entry_point`; else the first; else the text."""
    blocks = [code for _, code in code_blocks(text)]
    defines = re.compile(rf"^\s*(?:async\s+)?(?:def|class)\s+{entry_point}\b", re.MULTILINE)
    return next(filter(defines.search, blocks), (blocks or [text])[0])


def solution_of(answer: dict, task: dict, benchmark: str) -> str:
    """The code in a chat answer; of a self-made task all of it, whose code is taken out where it runs."""
    text = answer["raw"]
    if benchmark == "self":
        return text
    if answer["prompt"] == "evalplus" and not text.lstrip().startswith(("```", "~~~")):
        text = "```python\n" + text  # the prompt opened the fence
    return fenced_block(text, task["entry_point"])


def samples_of(job: Job, workers: int) -> list[tuple[str, str]]:
    """(task id, solution) of each answer on disk, by task and sample. What the sanitizer made of completions
    is kept in solutions.jsonl: some take it a minute."""
    place = {task_id: number for number, task_id in enumerate(job.tasks)}
    answers = list(read_rows(job.folder / "answers.jsonl"))
    answers.sort(key=lambda answer: (place[answer["task_id"]], answer["sample"]))
    kept, running = job.folder / "solutions.jsonl", {}
    with ProcessPoolExecutor(workers, SPAWN, end_with_parent) as pool, Appender(kept) as file:
        for answer in answers:
            task = job.tasks[answer["task_id"]]
            if answer["prompt"] == "completion" and job.benchmark != "self" and answer["id"] not in file.ids:
                code = task["prompt"].strip() + "\n" + answer["raw"].replace("\t", "    ")
                running[pool.submit(sanitized, code, task["entry_point"])] = answer["id"]
        for done in progress(as_completed(running), total=len(running), desc="sanitize", unit="answer"):
            file.append({"id": running[done], "solution": done.result()})
    found = {row["id"]: row["solution"] for row in read_rows(kept)}
    for answer in answers:
        if answer["id"] not in found:
            found[answer["id"]] = solution_of(answer, job.tasks[answer["task_id"]], job.benchmark)
    return [(answer["task_id"], found[answer["id"]]) for answer in answers]


# --------------------------------------------------------------------------------------------------- verdicts


def evaluate(jobs: list[Job], workers: int, engine_options: dict):
    """Generate what is missing; then score all models on a benchmark together."""
    with contextlib.ExitStack() as locks:
        for job in jobs:
            locks.enter_context(lock_folder(job.folder))
            write_json(job.folder / "settings.json", job.settings)
        waiting = [job for job in jobs if not (job.folder / "result.json").exists()]
        asked = {}
        for job in waiting:
            if job.settings["model"] and job.missing_answers():
                asked.setdefault(job.settings["model"], []).append(job)
        one_by_one, together = [[jobs] for jobs in asked.values()], [[*asked.values()]]
        for group in together if side_by_side([*asked], engine_options) else one_by_one:
            n = len(group)
            with ProcessPoolExecutor(n, SPAWN, end_with_parent) as pool:  # the engine ends with us
                list(pool.map(generate, group, [engine_options] * n, range(n), [n] * n))
        for benchmark in dict.fromkeys(job.benchmark for job in waiting):
            score([job for job in waiting if job.benchmark == benchmark], workers)


def score(jobs: list[Job], workers: int):
    """Write samples.jsonl, verdicts.jsonl and result.json of jobs on one benchmark. Verdicts on disk stand;
    equal solutions of a task are checked once, whichever model they are from."""
    missing = {}  # (task id, solution): the verdict files that lack it
    with contextlib.ExitStack() as files:
        for job in jobs:
            job.samples = job.samples or samples_of(job, workers)
            rows = [{"task_id": task_id, "solution": solution} for task_id, solution in job.samples]
            write_atomically(job.folder / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            file = files.enter_context(Appender(job.folder / "verdicts.jsonl"))
            for sample in dict.fromkeys(job.samples):
                if row_id("verdict", *sample) not in file.ids:
                    missing.setdefault(sample, []).append(file)
        verdicts = check_samples(jobs[0].benchmark, jobs[0].tasks, list(missing), workers)
        bar = progress(verdicts, total=len(missing), desc=f"score {jobs[0].benchmark}", unit="answer")
        for sample, verdict in bar:
            for file in missing[sample]:
                file.append({"id": row_id("verdict", *sample), "task_id": sample[0], **verdict})
    for job in jobs:
        write_result(job)


def check_samples(benchmark: str, tasks: dict, samples: list[tuple], workers: int) -> Iterator[tuple]:
    """Yield (sample, verdict) as they are known. What the load of the machine may have made fail is checked
    again, alone."""
    check = check_all if by_evalplus(tasks) else check_in_sandbox
    again = []
    for sample, verdict, maybe_load in check(benchmark, tasks, samples, workers) if samples else ():
        if maybe_load:
            again.append(sample)
        else:
            yield sample, verdict
    if again:
        for sample, verdict, _ in check(benchmark, tasks, again, 1):
            if verdict["base"] == "error":
                raise SandboxError(f"the sandbox gave no verdict: {verdict['detail']}")
            yield sample, verdict | {"retried": True}


def check_in_sandbox(_, tasks: dict, samples: list[tuple], workers: int) -> Iterator[tuple]:
    """`check_all` for tasks that come with the text of their tests, HumanEval's or self-made."""
    programs = {}
    for sample in samples:
        if code := tested_program(tasks[sample[0]], sample[1]):
            programs[sample] = code
        else:
            yield sample, {"base": "no program"}, False
    with Sandbox(workers=workers) as sandbox:
        for sample, result in sandbox.map(programs.items()):
            outcome = "pass" if result.outcome == "passed" else result.outcome
            yield sample, {"base": outcome, "detail": result.detail}, outcome in ("timeout", "error")


def tested_program(task: dict, solution: str) -> str | None:
    """The solution followed by the task's tests: HumanEval's function `check`, given the solution's function,
    or a self-made task's block, where the solution is a response. None if the response holds no program."""
    if "entry_point" in task:
        return f"{solution}\n\n{task['test']}\n\ncheck({task['entry_point']})\n"
    code = runnable_code(solution) if parses(python_code(solution)) else ""
    return program(code, python_code(task["tests"])) if code else None


def searched_for(model: str | None) -> list[str] | None:
    """The benchmarks that the data of a model that train.py made here was searched for; None: not known."""
    data = read_object(Path(model, "train.json")).get("data") if model else None
    return read_object(Path(data).with_name("config.json")).get("searched") if data else None


def write_result(job: Job):
    verdicts = {row["id"]: row for row in read_rows(job.folder / "verdicts.jsonl")}
    found = {task_id: [] for task_id in job.tasks}
    for task_id, solution in job.samples:
        found[task_id].append(verdicts[row_id("verdict", task_id, solution)])
    kinds = ["base", "plus"] if by_evalplus(job.tasks) else ["base"]
    passing, samples = {}, len(job.samples) // len(found)
    for task_id, rows in found.items():
        passing[task_id] = {kind: sum(row[kind] == "pass" for row in rows) for kind in kinds}
    result = job.settings | {
        "prompt_used": next((row["prompt"] for row in read_rows(job.folder / "answers.jsonl")), None),
        "dataset_version": VERSIONS.get(job.settings["dataset_md5"]),
        "searched": searched_for(job.settings.get("model")),
        "checked_again": [key for key, rows in found.items() if any("retried" in row for row in rows)],
        **{kind: summary([counts[kind] for counts in passing.values()], samples) for kind in kinds},
        "tasks": {key: {kind: n > 0 for kind, n in counts.items()} for key, counts in passing.items()},
    }
    if samples > 1:
        result["passing_samples"] = passing
    write_json(job.folder / "result.json", result)


# ----------------------------------------------------------------------------------------------- command line


def parse_arguments() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    add = parser.add_argument
    add("--model", nargs="+", default=[], help="checkpoint folders or hub ids")
    add("--samples", help="with --model, answers per task (default: 1); without, the file to score")
    add("--benchmark", nargs="+", default=[], choices=["humaneval", "mbpp", "self"])
    add("--data", type=Path, help="the tasks of --benchmark self: rows of `id`, `instruction`, `tests`")
    add("--out", nargs="+", type=Path, default=[], help="a folder for each model, or for a comparison's JSON")
    kinds = ["auto", "completion", "evalplus", "paper"]
    add("--prompt", nargs="+", choices=kinds, default=["auto"], help="one for all models, or one each")
    add("--temperature", type=float, default=0.0, help="0 is greedy; no top-p")
    add("--seed", type=int, default=0, help="of the sampling")
    add("--max-tokens", type=positive(int), default=768, help="new tokens per answer (EvalPlus: 768)")
    add("--limit", type=positive(int), help="only the first tasks, for a quick look")
    workers = len(os.sched_getaffinity(0))
    add("--workers", type=positive(int), default=workers, help="answers checked at a time")
    add("--compare", nargs="+", type=Path, metavar="DIR", help="the folder of A, then of one or more B")
    add("--table", nargs="+", type=Path, metavar="DIR", help="the folders of several models")
    add_engine_options(parser)
    return parser.parse_args()


def check_arguments(given: argparse.Namespace):
    """Raises BadInput where options do not fit together."""
    models, wanted = bool(given.model), max(1, len(given.model))
    usage = "give --benchmark, --out, and --model or --samples; or --compare DIR_A DIR_B; or --table DIR DIR"
    counted = re.fullmatch("[1-9][0-9]*", given.samples or "1")
    same = models and not given.temperature and given.samples not in (None, "1")
    for wrong, problem in (
        (not (given.benchmark and given.out and (models or given.samples)), usage),
        (not len(given.out) == len(set(given.out)) == wanted, f"{wanted} --out wanted, each model its own"),
        (len(given.prompt) not in (1, wanted), f"one --prompt wanted, or {wanted}, one for each model"),
        (not models and len(given.benchmark) > 1, "a samples file is of one --benchmark"),
        (models and not counted, "with --model, --samples is a number of answers per task"),
        (given.temperature < 0 or same, "several samples need a --temperature above 0, or they are the same"),
    ):
        if wrong:
            raise BadInput(problem)


def run(given: argparse.Namespace):
    if given.compare or given.table:
        if len(given.out) > 1 or given.compare and len(given.compare) < 2:
            raise BadInput("--compare takes the folders of A and of each B, and like --table one --out")
        out = given.out[0] if given.out else None
        if given.table:
            return table(given.table, out)
        return compare(given.compare[0], given.compare[1:], out)
    check_arguments(given)
    for model in given.model:
        check_name(model)
    if not given.model and not Path(given.samples).is_file():
        raise BadInput(f"no such file: {given.samples}")
    loaded = {benchmark: load_tasks(benchmark, given.data) for benchmark in given.benchmark}
    if single := [out for out in given.out if len(loaded) > 1 and (out / "result.json").exists()]:
        raise BadInput(f"{single[0]} holds the result of one benchmark: move it away, or take another --out")
    for model in given.model:
        check_model(model)
    prompts = given.prompt if len(given.prompt) > 1 else given.prompt * len(given.out)
    jobs = []
    for model, prompt, out in zip(given.model or [None], prompts, given.out):
        for benchmark, (tasks, md5) in loaded.items():
            folder = out / benchmark if len(loaded) > 1 else out
            jobs.append(make_job(given, model, prompt, benchmark, tasks, md5, folder))
    check_prompts(jobs)
    evaluate(jobs, given.workers, {name: value for name, value in vars(given).items() if name in ENGINE})
    table(given.out, None)


def main() -> int:
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack letters that a text has
    given = parse_arguments()
    try:
        run(given)
    except (BadInput, SandboxError, OSError, BrokenExecutor) as error:
        print(f"eval.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
