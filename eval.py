"""HumanEval+ and MBPP+ with EvalPlus (paper 3.1, T1), and the paired comparison of two models.

    python eval.py --model MODEL --benchmark humaneval --out runs/first/eval-base        generate, then score
    python eval.py --samples FILE.jsonl --benchmark humaneval --out DIR                  score samples that exist, in EvalPlus's formats
    python eval.py --compare runs/first/eval-base runs/first/eval-aligned                paired: is the second better?

Prompts, sanitizer and checks are EvalPlus's own. As there, a model whose tokenizer has a chat template is asked through it, any other
completes the bare prompt. Some base models carry a template they were never trained on: give them `--prompt completion`, or their score
is too low and every gain over it too high. Decoding is greedy. `--out` gets samples.jsonl, in EvalPlus's format, and result.json.

EvalPlus 0.3.1 fails HumanEval/32 for every answer, its own reference included, so 163 of 164 is the best score there is. Its guard is for
honest answers and is no sandbox: score only models whose output you would run.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from unittest import mock

from scipy.stats import binomtest

from decontamination import load_benchmark
from engine import Request, check_model, start_engine, stream
from rows import BadInput, digest, progress, write_atomically

MIN_TIME_LIMIT = 4.0  # seconds per test input; at EvalPlus's 1.0 a right answer fails on a loaded machine


# ------------------------------------------------------------------------------------------------------------- generation


def instruct_prefixes() -> dict[str, str]:
    """The two sentences of EvalPlus's instruct prompt, caught on their way from its command to a model, since it names them nowhere else."""
    import evalplus.codegen

    caught = {}
    with mock.patch.multiple(evalplus.codegen, make_model=lambda **settings: caught.update(settings), codegen=lambda **_: None):
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
            evalplus.codegen.run_codegen(model="any", dataset="humaneval", root=scratch)
    return {key: caught[key] for key in ("instruction_prefix", "response_prefix")}


def generate(model: str, benchmark: str, tasks: dict[str, dict], prompt: str, max_tokens: int) -> tuple[list[dict], str]:
    """One greedy sample {task_id, solution, raw} for each task, all in one engine run, and the prompt used (chat or completion).

    `solution` is sanitized, `raw` is not."""
    from evalplus.provider.utility import EOS, extra_eos_for_direct_completion, make_raw_chat_prompt
    from evalplus.sanitize import sanitize

    engine = start_engine(model, context=2048)  # EvalPlus's own
    tokenizer = engine.tokenizer
    if prompt == "auto":
        prompt = "chat" if tokenizer.chat_template else "completion"
    if prompt == "chat" and not tokenizer.chat_template:
        raise BadInput(f"{model} has no chat template: use --prompt completion")
    stop = EOS + (["\n```\n"] if prompt == "chat" else extra_eos_for_direct_completion(benchmark))
    requests, prefixes = [], instruct_prefixes()
    for task_id, task in tasks.items():
        text = task["prompt"].strip() + "\n"
        if prompt == "chat":
            text = make_raw_chat_prompt(text, tokenizer=tokenizer, **prefixes)
        ids = tokenizer(text, add_special_tokens=prompt == "completion").input_ids
        room = engine.context - len(ids)
        if room < 1:
            raise BadInput(f"the prompt of {task_id} does not fit the context of {model}")
        requests.append(Request(task_id, ids, min(max_tokens, room), 0.0, None, stop, {}))
    samples, tokens, started = {}, 0, time.monotonic()
    bar = progress(stream(engine, requests), total=len(requests), desc=f"generate {benchmark}", unit="task")
    for request, completion in bar:
        task, answer = tasks[request.id], completion.text.replace("\t", "    ")
        raw = answer if prompt == "chat" else task["prompt"].strip() + "\n" + answer
        samples[request.id] = {"task_id": request.id, "solution": sanitize(raw, entrypoint=task["entry_point"]), "raw": raw}
        tokens += completion.tokens
        bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tokens/s", refresh=False)
    return [samples[task_id] for task_id in tasks], prompt


def generate_in_child(*arguments) -> tuple[list[dict], str]:
    """`generate` in a process that ends with its engine, since EvalPlus forks this one for each answer it checks."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(generate, *arguments).result()


def read_samples(path: Path, tasks: dict[str, dict]) -> list[dict]:
    """The samples of a file in one of EvalPlus's formats: rows of task_id and `solution`, or `completion`, which follows the task's prompt."""
    if not path.is_file():
        raise BadInput(f"no such samples file: {path}")
    samples = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                task_id = row["task_id"]
                answer = row["solution"] if "solution" in row else row["completion"]
                assert isinstance(answer, str)
            except (ValueError, KeyError, TypeError, AssertionError):
                raise BadInput(f"{path}:{number}: not a JSON object with the texts `task_id` and `solution` or `completion`") from None
            if task_id not in tasks:
                raise BadInput(f"{path}:{number}: the benchmark has no task {task_id}")
            if task_id in samples:
                raise BadInput(f"{path}:{number}: a second sample of {task_id}; one per task is scored")
            samples[task_id] = {"task_id": task_id, "solution": answer if "solution" in row else tasks[task_id]["prompt"] + answer}
    if missing := [task_id for task_id in tasks if task_id not in samples]:
        raise BadInput(f"{path} has no sample of {len(missing)} of {len(tasks)} tasks, {missing[0]} the first")
    return [samples[task_id] for task_id in tasks]


# ---------------------------------------------------------------------------------------------------------------- scoring


def score(benchmark: str, tasks: dict[str, dict], file_hash: str, samples: list[dict], out: Path) -> dict[str, dict[str, bool]]:
    """EvalPlus's verdicts {task id: {base, plus}}; plus counts only where base passes too."""
    import evalplus.evaluate
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS

    # Expected outputs and reference times of this run's own: a cache from a busy moment would give lax limits for ever.
    evalplus.evaluate.CACHE_DIR = str(out / "expected")
    expected = evalplus.evaluate.get_groundtruth(tasks, file_hash, MBPP_OUTPUT_NOT_NONE_TASKS if benchmark == "mbpp" else [])
    verdicts = {}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        futures = [
            pool.submit(
                evalplus.evaluate.check_correctness, benchmark, 0, tasks[sample["task_id"]], sample["solution"],
                expected[sample["task_id"]], fast_check=True, min_time_limit=MIN_TIME_LIMIT,
            )
            for sample in samples
        ]  # fmt: skip
        for future in progress(as_completed(futures), total=len(futures), desc=f"score {benchmark}", unit="task"):
            checked = future.result()
            base = checked["base"][0] == evalplus.evaluate.PASS
            verdicts[checked["task_id"]] = {"base": base, "plus": base and checked["plus"][0] == evalplus.evaluate.PASS}
    return {task_id: verdicts[task_id] for task_id in tasks}


def summary(verdicts: dict[str, dict[str, bool]], suite: str) -> dict:
    """k, n, pass@1 and its 95 % Wilson interval."""
    k, n = sum(verdict[suite] for verdict in verdicts.values()), len(verdicts)
    interval = binomtest(k, n).proportion_ci(method="wilson")
    return {"k": k, "n": n, "pass@1": k / n, "interval": [interval.low, interval.high]}


def fingerprint(path: Path) -> str | None:
    """What changes when the file, or the checkpoint folder, is another; None for a hub id."""
    if path.is_file():
        return digest(path.read_text())
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        return digest(*((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))
    return None


def evaluate(arguments):
    out, benchmark = arguments.out, arguments.benchmark
    settings = {
        "benchmark": benchmark,
        "model": arguments.model,
        "samples_file": arguments.samples and str(arguments.samples),
        "fingerprint": fingerprint(arguments.samples or Path(arguments.model)),
        "prompt": arguments.prompt if arguments.model else None,
        "max_tokens": arguments.max_tokens,
        "limit": arguments.limit,
        "min_time_limit": MIN_TIME_LIMIT,
        "evalplus": importlib.metadata.version("evalplus"),
    }
    if (out / "result.json").exists():
        recorded = json.loads((out / "result.json").read_text())
        if changed := [key for key in settings if recorded.get(key) != settings[key]]:
            raise BadInput(f"{out} holds the result of another {', '.join(changed)}: take another --out")
        return report(recorded, out)
    if arguments.model:
        check_model(arguments.model)
    tasks, file_hash = load_benchmark(benchmark)
    tasks = dict(list(tasks.items())[: arguments.limit])
    if arguments.samples:
        samples, prompt_used = read_samples(arguments.samples, tasks), None
    else:
        samples, prompt_used = generate_in_child(arguments.model, benchmark, tasks, arguments.prompt, arguments.max_tokens)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "samples.jsonl", "".join(json.dumps(sample) + "\n" for sample in samples))
    started = time.monotonic()
    verdicts = score(benchmark, tasks, file_hash, samples, out)
    result = settings | {
        "prompt_used": prompt_used,
        "dataset_md5": file_hash,
        "scoring_seconds": round(time.monotonic() - started, 1),
        "base": summary(verdicts, "base"),
        "plus": summary(verdicts, "plus"),
        "tasks": verdicts,
    }
    write_atomically(out / "result.json", json.dumps(result, indent=2))
    report(result, out)


def report(result: dict, out: Path):
    print(f"{result['model'] or result['samples_file']}" + (f", {result['prompt_used']} prompt, greedy" if result["model"] else ""))
    for suite, name in (("base", result["benchmark"]), ("plus", result["benchmark"] + "+")):
        part = result[suite]
        low, high = part["interval"]
        print(f"{name:<11} {part['k']:>3} of {part['n']} = {part['pass@1']:.1%} pass@1 (95 % interval {low:.1%} to {high:.1%})")
    print(f"result: {out / 'result.json'}")


# ------------------------------------------------------------------------------------------------------------- comparison


def compare(folder_a: Path, folder_b: Path):
    """Print the paired difference of two results of one benchmark: its 95 % interval and the exact McNemar p of each suite."""
    a, b = (read_result(folder) for folder in (folder_a, folder_b))
    if a["benchmark"] != b["benchmark"] or a["tasks"].keys() != b["tasks"].keys():
        raise BadInput(f"{folder_a} and {folder_b} were not scored on the same tasks")
    print(f"A = {folder_a} ({a['model'] or a['samples_file']}, {a['prompt_used']} prompt)")
    print(f"B = {folder_b} ({b['model'] or b['samples_file']}, {b['prompt_used']} prompt)")
    for suite, name in (("base", a["benchmark"]), ("plus", a["benchmark"] + "+")):
        pairs = [(a["tasks"][task_id][suite], b["tasks"][task_id][suite]) for task_id in a["tasks"]]
        test = paired(pairs)
        print(
            f"{name:<11} A {a[suite]['k']}/{a[suite]['n']} = {a[suite]['pass@1']:.1%}   B {b[suite]['k']}/{b[suite]['n']} = {b[suite]['pass@1']:.1%}   "
            f"B - A {test['difference']:+.1%} (95 % interval {test['low']:+.1%} to {test['high']:+.1%})   "
            f"fixed {test['fixed']}, broken {test['broken']}, exact McNemar p = {test['p']:.3g}"
        )


def paired(pairs: list[tuple[bool, bool]]) -> dict:
    """Difference of two paired proportions, with Agresti and Min's adjusted Wald interval (2005) and the exact two-sided McNemar p."""
    fixed, broken = sum(b > a for a, b in pairs), sum(a > b for a, b in pairs)
    n, gained, lost = len(pairs) + 2, fixed + 0.5, broken + 0.5
    centre = (gained - lost) / n
    half = 1.959964 * ((gained + lost - (gained - lost) ** 2 / n) ** 0.5) / n
    p = binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    return {"difference": (fixed - broken) / len(pairs), "low": centre - half, "high": centre + half, "fixed": fixed, "broken": broken, "p": p}


def read_result(folder: Path) -> dict:
    try:
        return json.loads((folder / "result.json").read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"no result in {folder}: {error}") from None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint folder or a hub id")
    parser.add_argument("--samples", type=Path, help="score this file instead of a model")
    parser.add_argument("--benchmark", choices=["humaneval", "mbpp"])
    parser.add_argument("--out", type=Path, help="the folder of the result")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("DIR_A", "DIR_B"))
    parser.add_argument("--prompt", choices=["auto", "completion", "chat"], default="auto")
    parser.add_argument("--max-tokens", type=int, default=768, help="new tokens per answer (EvalPlus: 768)")
    parser.add_argument("--limit", type=int, help="only the first tasks, for a quick look")
    arguments = parser.parse_args()
    try:
        if arguments.compare:
            return compare(*arguments.compare)
        if not arguments.benchmark or not arguments.out or bool(arguments.model) == bool(arguments.samples):
            raise BadInput("give --benchmark, --out and one of --model or --samples; or --compare DIR_A DIR_B")
        evaluate(arguments)
    except BadInput as error:
        print(f"eval.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
