"""How good is a model? HumanEval+ and MBPP+ with EvalPlus (paper 3.1, T1), and instructions kept out of the training data.

    python eval.py --model MODEL --benchmark humaneval --out DIR                         generate, then score
    python eval.py --model BASE ALIGNED --out DIR_A DIR_B --benchmark humaneval mbpp self --data heldout.jsonl     everything at once
    python eval.py --samples FILE.jsonl --benchmark humaneval --out DIR                  score samples that exist, in EvalPlus's formats
    python eval.py --compare DIR_A DIR_B                                                 paired: is the second better? (compare.py)
    python eval.py --table DIR DIR DIR ...                                               several models, in the paper's layout (compare.py)

A result folder holds answers.jsonl (every prompt and raw output), samples.jsonl (EvalPlus's format), verdicts.jsonl and result.json; with
several benchmarks, a folder for each. All tasks of a model go through one engine run; a command that was killed goes on when given again.

    prompt       asks a model for                                               its answer is
    completion   the rest of the bare prompt, EvalPlus's protocol               prompt + output through EvalPlus's sanitizer
    evalplus     code after a prefilled fence, EvalPlus's instruct prompt       what stands in the fence
    paper        a solution in a fenced block, through the chat template        the fenced block that defines the function
    auto         evalplus if the tokenizer has a chat template, as EvalPlus does, else completion

Some base models carry a template they were never trained on: give them `--prompt completion`, or their score is too low and every gain
over it too high. A self-made task is the instruction through the chat template, or after one example in the paper's response prompt
(completion); it passes if the code of the answer and the task's own tests run through in the sandbox.

Differs from EvalPlus's command: fenced blocks are taken whole, where its sanitizer loses decorated functions and guarded imports; at least
4 s per test input instead of 1 s; and a busy machine does not change a verdict (scoring.py). EvalPlus 0.3.1 fails HumanEval/32 for every
answer, its reference included: 163 of 164 is the best there is. Its guard is no sandbox: score only models whose output you would run.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib.metadata
import io
import itertools
import json
import multiprocessing
import os
import re
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import compare
from decontamination import load_benchmark
from engine import Request, check_model, start_engine, stream
from prompting import LAYOUTS, PROMPTS, load_examples, python_code, response_prompt
from rows import Appender, BadInput, digest, draw, lock_folder, progress, read_rows, row_id, write_atomically
from sandbox import SandboxError
from scoring import ALWAYS_FAILS, LOAD_FACTOR, MIN_TIME_LIMIT, check_all, run_all

CONTEXT = 2048  # tokens of prompt and answer, EvalPlus's own
KNOWN_VERSIONS = {"fe585eb4df8c88d844eeb463ea4d0302": "HumanEval+ v0.1.10", "ee43ecabebf20deef4bb776a405ac5b1": "MBPP+ v0.2.0"}

PROMPT_KINDS = ("auto", "completion", "evalplus", "paper")
PAPER_PROMPT = "Write a Python function that solves the task below. Answer with the complete code in one fenced block.\n\n```python\n{}```"


@dataclass
class Benchmark:
    name: str  # humaneval, mbpp or self
    tasks: dict[str, dict]  # by task id; each has a `prompt`
    md5: str  # of the file

    def first(self, limit: int | None) -> "Benchmark":
        return Benchmark(self.name, dict(list(self.tasks.items())[:limit]), self.md5)


def load(name: str, data: Path | None) -> Benchmark:
    """A benchmark with all its tasks; those of `self` are the rows {id, instruction, tests} of `data`. Raises BadInput."""
    if name != "self":
        return Benchmark(name, *load_benchmark(name))
    if data is None:
        raise BadInput("--benchmark self needs --data FILE: rows with `id`, `instruction` and `tests`")
    if not data.is_file():
        raise BadInput(f"no such data file: {data}")
    tasks = {}
    for number, line in enumerate(data.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            task = {"prompt": row["instruction"], "tests": row["tests"]}
            assert all(isinstance(text, str) for text in (row["id"], *task.values())) and python_code(row["tests"])
        except (ValueError, KeyError, TypeError, AssertionError):
            raise BadInput(f"{data}:{number}: a task needs the texts `id`, `instruction` and `tests`, these in a ```python block") from None
        if row["id"] in tasks:
            raise BadInput(f"{data}:{number}: a second task {row['id']}")
        tasks[row["id"]] = task
    if not tasks:
        raise BadInput(f"no tasks in {data}")
    return Benchmark(name, tasks, hashlib.md5(data.read_bytes()).hexdigest())


# ------------------------------------------------------------------------------------------------------------- generation


@functools.cache
def instruct_prefixes() -> dict[str, str]:
    """The two sentences of EvalPlus's instruct prompt, caught on their way from its command to a model: it names them nowhere else."""
    import evalplus.codegen

    caught = {}
    stand_ins = mock.patch.multiple(evalplus.codegen, make_model=lambda **settings: caught.update(settings), codegen=lambda **_: None)
    with stand_ins, tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        evalplus.codegen.run_codegen(model="any", dataset="humaneval", root=scratch)
    return {key: caught[key] for key in ("instruction_prefix", "response_prefix")}


def choose_prompt(wanted: str, benchmark: str, tokenizer, model: str) -> str:
    if wanted in ("evalplus", "paper") and not tokenizer.chat_template:
        raise BadInput(f"{model} has no chat template: use --prompt completion")
    if wanted == "completion" or not tokenizer.chat_template:
        return "completion"
    return "paper" if benchmark == "self" else "evalplus" if wanted == "auto" else wanted


def write_prompt(benchmark: str, task: str, prompt: str, tokenizer) -> tuple[str, list[str]]:
    """The text that the model goes on from, and the strings that end its answer. `task` is the benchmark's prompt, or the instruction."""
    from evalplus.provider.utility import EOS, extra_eos_for_direct_completion, make_raw_chat_prompt

    if prompt == "completion" and benchmark == "self":
        return response_prompt(load_examples(PROMPTS / "examples")[:1], task, LAYOUTS["tags"]), ["</response>", "\n### Example"]
    function = task.strip() + "\n"
    if prompt == "completion":
        return function, EOS + extra_eos_for_direct_completion(benchmark)
    if prompt == "evalplus":
        return make_raw_chat_prompt(function, tokenizer=tokenizer, **instruct_prefixes()), EOS + ["\n```\n"]
    message = {"role": "user", "content": task if benchmark == "self" else PAPER_PROMPT.format(function)}
    return tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True), []


@dataclass
class Job:
    """One result folder: the tasks, and what answers them."""

    benchmark: Benchmark
    settings: dict
    folder: Path
    samples: list[tuple[str, str]] | None  # (task id, solution) of a samples file; None where a model is asked

    def missing_answers(self) -> list[tuple[str, str, int]]:
        """(answer id, task id, sample index) of the answers that are not on disk."""
        on_disk = {row["id"] for row in read_rows(self.folder / "answers.jsonl")}
        wanted = itertools.product(self.benchmark.tasks, range(self.settings["samples"]))
        answers = [(row_id("answer", task_id, index), task_id, index) for task_id, index in wanted]
        return [answer for answer in answers if answer[0] not in on_disk]


def generate(model: str, jobs: list[Job]):
    """Add the missing answers of all `jobs` to their files, in one engine run, each as soon as it is finished."""
    engine = start_engine(model, context=CONTEXT)
    tokenizer = engine.tokenizer
    requests = []
    with contextlib.ExitStack() as files:
        for job in jobs:
            name, settings = job.benchmark.name, job.settings
            prompt = choose_prompt(settings["prompt"], name, tokenizer, model)
            answers = files.enter_context(Appender(job.folder / "answers.jsonl"))
            for answer_id, task_id, index in job.missing_answers():
                text, stop = write_prompt(name, job.benchmark.tasks[task_id]["prompt"], prompt, tokenizer)
                ids = tokenizer(text, add_special_tokens=prompt == "completion").input_ids  # a chat template writes its own
                room = engine.context - len(ids)
                if room < 1:
                    raise BadInput(f"the prompt of {task_id} does not fit the context of {model}")
                row = {"id": answer_id, "task_id": task_id, "sample": index, "prompt": prompt, "asked": text}
                seed = draw(settings["seed"], "eval", task_id, index) if settings["temperature"] else None
                requests.append(Request(
                    id=f"{name} {answer_id}", prompt=ids, max_tokens=min(settings["max_tokens"], room), temperature=settings["temperature"],
                    seed=seed, stop=stop, row={"answers": answers, "row": row},
                ))  # fmt: skip
        tokens, started = 0, time.monotonic()
        bar = progress(stream(engine, requests), total=len(requests), desc="generate", unit="answer")
        for request, completion in bar:
            answer = {"raw": completion.text, "finished": completion.finished, "tokens": completion.tokens}
            request.row["answers"].append(request.row["row"] | answer)
            tokens += completion.tokens
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tokens/s", refresh=False)


def generate_in_child(model: str, jobs: list[Job]):
    """`generate` in a process that ends with its engine, since EvalPlus forks this one for each answer it checks."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(generate, model, jobs).result()


def fenced_block(text: str, entry_point: str) -> str:
    """The first fenced block that defines `entry_point`, else the first of all, else the text; a block without end goes to the end."""
    blocks = [textwrap.dedent(block) for block in re.findall(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", text, re.MULTILINE | re.DOTALL)]
    defining = [block for block in blocks if re.search(rf"^\s*(?:async\s+)?(?:def|class)\s+{entry_point}\b", block, re.MULTILINE)]
    return (defining or blocks or [text])[0]


def solution_of(benchmark: Benchmark, answer: dict) -> str:
    """The program that a raw answer stands for; a self-made task's is taken out of the whole response where it is run."""
    task, raw = benchmark.tasks[answer["task_id"]], answer["raw"]
    if benchmark.name == "self":
        return raw
    if answer["prompt"] == "completion":
        from evalplus.sanitize import sanitize

        return sanitize(task["prompt"].strip() + "\n" + raw.replace("\t", "    "), entrypoint=task["entry_point"])
    prefilled = answer["prompt"] == "evalplus" and not raw.lstrip().startswith("```")
    return fenced_block("```python\n" + raw if prefilled else raw, task["entry_point"])


# ------------------------------------------------------------------------------------------------------- samples that exist


def read_samples(path: Path, benchmark: Benchmark) -> list[tuple[str, str]]:
    """(task id, solution) of each sample of a file in one of EvalPlus's formats, in the benchmark's order: rows of task_id and `solution`,
    or `completion`, which follows the task's prompt. Every task has the same number of samples. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"no such samples file: {path}")
    samples = {task_id: [] for task_id in benchmark.tasks}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                task_id = row["task_id"]
                answer = row["solution"] if "solution" in row else row["completion"]
                assert isinstance(answer, str) and isinstance(task_id, str)
            except (ValueError, KeyError, TypeError, AssertionError):
                raise BadInput(f"{path}:{number}: not a JSON object with the texts `task_id` and `solution` or `completion`") from None
            if task_id not in samples:
                raise BadInput(f"{path}:{number}: the benchmark has no task {task_id}")
            samples[task_id].append(answer if "solution" in row else benchmark.tasks[task_id]["prompt"] + answer)
    if missing := [task_id for task_id, found in samples.items() if not found]:
        raise BadInput(f"{path} has no sample of {len(missing)} of {len(samples)} tasks, {missing[0]} the first")
    counts = {len(found): task_id for task_id, found in samples.items()}
    if len(counts) > 1:
        (fewer, task_a), (more, task_b) = min(counts.items()), max(counts.items())
        raise BadInput(f"{path} has {fewer} samples of {task_a} and {more} of {task_b}: give each task as many")
    return [(task_id, solution) for task_id, found in samples.items() for solution in found]


# ----------------------------------------------------------------------------------------------------------- result folders


def fingerprint(path: Path) -> str | None:
    """What changes when the file, or the checkpoint folder, is another; None for a hub id."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        return digest(*((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))
    return None


def settings_of(model: str | None, prompt: str, benchmark: Benchmark, arguments) -> dict:
    """All that a result depends on."""
    asked = {"prompt": prompt, "samples": int(arguments.samples), "temperature": arguments.temperature, "seed": arguments.seed,
             "max_tokens": arguments.max_tokens} if model else {}  # fmt: skip
    return {
        "benchmark": benchmark.name,
        "dataset_md5": benchmark.md5,
        "model": model,
        "samples_file": None if model else arguments.samples,
        "fingerprint": fingerprint(Path(model or arguments.samples)),
        **asked,
        "limit": arguments.limit,
        "min_time_limit": MIN_TIME_LIMIT,
        "load_factor": LOAD_FACTOR,
        "evalplus": importlib.metadata.version("evalplus"),
    }


def plan(model: str | None, prompt: str, benchmark: Benchmark, folder: Path, arguments) -> Job:
    """The job of one model, or samples file, and one benchmark. Raises BadInput before anything is done."""
    samples = None if model else read_samples(Path(arguments.samples), benchmark)
    settings = settings_of(model, prompt, benchmark, arguments)
    check_folder(folder, settings)
    benchmark = benchmark.first(arguments.limit)
    if samples:
        samples = [(task_id, solution) for task_id, solution in samples if task_id in benchmark.tasks]
    return Job(benchmark, settings, folder, samples)


def check_folder(folder: Path, settings: dict):
    """Refuse a folder that holds something else than a result, or part of one, of these very settings. Raises BadInput."""
    file = folder / "settings.json"
    if not folder.exists() or folder.is_dir() and not any(other.stat().st_size for other in folder.iterdir() if other != file):
        return
    try:
        recorded = json.loads(file.read_text())
    except (OSError, ValueError):
        raise BadInput(f"{folder} exists and is not a result folder: take another --out") from None
    if changed := [key for key in settings | recorded if recorded.get(key) != settings.get(key)]:
        raise BadInput(f"{folder} holds the result of another {', '.join(changed)}: take another --out")


def evaluate(model: str | None, jobs: list[Job], workers: int | None):
    """Generate, where it is not done, and score: one model, all its benchmarks."""
    locks = [lock_folder(job.folder) for job in jobs]
    for job in jobs:
        write_atomically(job.folder / "settings.json", json.dumps(job.settings, indent=2))
    waiting = [job for job in jobs if not (job.folder / "result.json").exists()]
    if model and any(job.missing_answers() for job in waiting):
        generate_in_child(model, waiting)
    for job in waiting:
        write_result(job, workers or idle_cores())
    for job in jobs:
        report(json.loads((job.folder / "result.json").read_text()), job.folder)
    for lock in locks:
        lock.close()


def idle_cores() -> int:
    """How many cores nobody uses at the moment, at least 1."""
    import psutil

    busy = psutil.cpu_percent(interval=0.5, percpu=True)
    return max(1, round(sum(1 - busy[core] / 100 for core in os.sched_getaffinity(0))))


def write_result(job: Job, workers: int):
    """Turn the answers of a folder, or the samples of a file, into samples.jsonl, verdicts.jsonl and result.json."""
    benchmark, samples, answers = job.benchmark, job.samples, []
    if samples is None:
        by_task = {task_id: [] for task_id in benchmark.tasks}
        answers = sorted(read_rows(job.folder / "answers.jsonl"), key=lambda row: row["sample"])
        for answer in answers:
            by_task[answer["task_id"]].append(answer)
        samples = [(task_id, solution_of(benchmark, answer)) for task_id, found in by_task.items() for answer in found]
    rows = ({"task_id": task_id, "solution": solution} for task_id, solution in samples)
    write_atomically(job.folder / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    started = time.monotonic()
    verdicts = score(benchmark, samples, job.folder / "verdicts.jsonl", workers)
    suites = ["base"] if benchmark.name == "self" else ["base", "plus"]
    passes = {task_id: {suite: [] for suite in suites} for task_id in benchmark.tasks}
    for (task_id, _), verdict in zip(samples, verdicts):
        for suite in suites:
            passes[task_id][suite].append(verdict[suite] == "pass")
    prompt_used = answers[0]["prompt"] if answers else None
    sanitized = prompt_used == "completion" and benchmark.name != "self"
    result = job.settings | {
        "prompt_used": prompt_used,
        "code_from": "the file" if job.samples else "evalplus.sanitize" if sanitized else "fenced block",
        "dataset_version": KNOWN_VERSIONS.get(benchmark.md5, "self-made" if benchmark.name == "self" else "unknown"),
        "workers": workers,
        "checked_again": sorted({task_id for (task_id, _), verdict in zip(samples, verdicts) if verdict["doubtful"]}),
        "scoring_seconds": round(time.monotonic() - started, 1),
        **{suite: compare.summary([found[suite] for found in passes.values()]) for suite in suites},
        "tasks": {task_id: {suite: any(found[suite]) for suite in suites} for task_id, found in passes.items()},
    }
    if len(samples) > len(passes):
        result["passing_samples"] = {task_id: {suite: sum(found[suite]) for suite in suites} for task_id, found in passes.items()}
    write_atomically(job.folder / "result.json", json.dumps(result, indent=2))


def score(benchmark: Benchmark, samples: list[tuple[str, str]], path: Path, workers: int) -> list[dict]:
    """The verdict of each sample (task id, solution); those in the file `path` stand, and equal solutions of a task are checked once."""
    with Appender(path) as file:
        ids = {(task_id, solution): row_id("verdict", task_id, solution) for task_id, solution in samples}
        waiting = {}
        for (task_id, solution), verdict_id in ids.items():
            if verdict_id not in file.ids:
                waiting.setdefault(task_id, []).append(solution)
        missing = sum(map(len, waiting.values()))
        check = run_all if benchmark.name == "self" else check_all
        checked = check(benchmark.name, benchmark.tasks, waiting, workers) if waiting else ()
        bar = progress(checked, total=len(ids), initial=len(ids) - missing, desc=f"score {benchmark.name}", unit="answer")
        for task_id, solution, verdict in bar:
            file.append({"id": ids[task_id, solution], "task_id": task_id, **verdict})
    verdicts = {row["id"]: row for row in read_rows(path)}
    return [verdicts[ids[sample]] for sample in samples]


def report(result: dict, folder: Path):
    if result["model"]:
        decoding = f"temperature {result['temperature']:g}, {result['samples']} samples per task" if result["temperature"] else "greedy"
        print(f"{result['model']}, {result['prompt_used']} prompt, {decoding}")
    else:
        print(result["samples_file"])
    for suite, name in compare.suites(result):
        part = result[suite]
        low, high = part["interval"]
        others = "".join(f", {value:.1%} {key}" for key, value in part.items() if key.startswith("pass@") and key != "pass@1")
        print(f"{name:<11} {part['k']:>3} of {part['n']} = {part['pass@1']:.1%} pass@1 (95 % interval {low:.1%} to {high:.1%}){others}")
    if (task_id := ALWAYS_FAILS.get(result["benchmark"])) in (tasks := result["tasks"]):
        print(f"EvalPlus {result['evalplus']} fails {task_id} for every answer: {len(tasks) - 1} of {len(tasks)} is the best there is")
    print(f"result: {folder / 'result.json'}")


# ------------------------------------------------------------------------------------------------------------- command line


def at_least(minimum: int):
    def parse(text: str) -> int:
        if int(text) < minimum:
            raise ValueError
        return int(text)

    parse.__name__ = f"number from {minimum} up"
    return parse


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", help="checkpoint folders or hub ids")
    parser.add_argument("--samples", help="with --model, answers per task (default: 1); without, the file to score instead of a model")
    parser.add_argument("--benchmark", nargs="+", choices=["humaneval", "mbpp", "self"])
    parser.add_argument("--data", type=Path, help="the tasks of --benchmark self: rows of `id`, `instruction`, `tests`")
    parser.add_argument("--out", nargs="+", type=Path, help="a folder for each model; with --compare or --table, for its JSON and its page")
    parser.add_argument("--prompt", nargs="+", choices=PROMPT_KINDS, default=["auto"], help="one for all models, or one each")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy; no top-p")
    parser.add_argument("--seed", type=int, default=0, help="what the sampling seeds are drawn from")
    parser.add_argument("--max-tokens", type=at_least(1), default=768, help="new tokens per answer (EvalPlus: 768)")
    parser.add_argument("--limit", type=at_least(1), help="only the first tasks, for a quick look")
    parser.add_argument("--workers", type=at_least(1), help="answers checked at a time (default: as many as cores are idle)")
    parser.add_argument("--compare", nargs="+", type=Path, metavar="DIR", help="the folder of one model, and of one or more to compare with it")
    parser.add_argument("--table", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--flagged", type=Path,
                        help="with --compare: a JSON list of contaminated tasks, or a run's funnel.json; scores without them, too")
    return parser.parse_args()


def run(arguments):
    outs, models, benchmarks = arguments.out or [], arguments.model or [], arguments.benchmark or []
    if arguments.compare or arguments.table:
        if len(outs) > 1:
            raise BadInput("one --out for the comparison")
        out = outs[0] if outs else None
        if arguments.table:
            return compare.table(arguments.table, out)
        if len(arguments.compare) < 2 or len(arguments.compare) > 2 and out:
            raise BadInput("--compare takes two folders; or more, and then no --out")
        if len(arguments.compare) > 2:
            return compare.compare_runs(arguments.compare[0], arguments.compare[1:], arguments.flagged)
        return compare.compare(*arguments.compare, out, arguments.flagged)
    if not benchmarks or not outs or not (models or arguments.samples):
        raise BadInput("give --benchmark, --out and --model or --samples; or --compare DIR_A DIR_B; or --table DIR DIR ...")
    if len(set(benchmarks)) < len(benchmarks) or len(set(outs)) < len(outs):
        raise BadInput("a benchmark or an --out folder is given twice")
    if len(outs) != max(1, len(models)):
        raise BadInput(f"{max(1, len(models))} --out folders wanted, one for each model, not {len(outs)}")
    if len(arguments.prompt) not in (1, len(outs)):
        raise BadInput(f"one --prompt, or one for each model, not {len(arguments.prompt)}")
    if models:
        arguments.samples = arguments.samples or "1"
        if not arguments.samples.isdecimal() or int(arguments.samples) < 1:
            raise BadInput(f"with --model, --samples is a number of answers per task, not {arguments.samples!r}")
        if arguments.temperature < 0 or int(arguments.samples) > 1 and not arguments.temperature:
            raise BadInput("several samples of a task need a --temperature above 0, or they are all the same")
    elif len(benchmarks) > 1:
        raise BadInput("a samples file is of one --benchmark")
    for model in models:
        check_model(model)
    loaded = [load(name, arguments.data) for name in benchmarks]
    prompts = arguments.prompt * len(outs) if len(arguments.prompt) == 1 else arguments.prompt
    work = {}
    for model, prompt, out in zip(models or [None], prompts, outs):
        work[out] = [plan(model, prompt, benchmark, out / benchmark.name if len(loaded) > 1 else out, arguments) for benchmark in loaded]
    for model, jobs in zip(models or [None], work.values()):
        evaluate(model, jobs, arguments.workers)
    if len(outs) > 1:
        print()
        compare.table(outs, None)


def main():
    arguments = parse_arguments()
    try:
        run(arguments)
    except (BadInput, SandboxError) as error:
        print(f"eval.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
