"""Generation by eval.py beside EvalPlus's own loop: the same model, tasks, prompts and greedy decoding.

    python tests/bench_eval.py [--model models/smollm2-135m] [--tasks 16] [--backend {vllm,hf}] [--rounds 1]

EvalPlus asks its model (vLLM by default, or transformers) for one task at a time; eval.py gives all tasks
to the engine at once. Both run in processes of their own, one after the other, with the same engine
settings; starting the engine is timed by itself. The floor is the engine alone on the requests of eval.py.
"""

import argparse
import contextlib
import functools
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench_generation import raw

import eval as ours
from parts.rows import read_rows


def open_job(folder: str, model: str, tasks: int, max_tokens: int) -> ours.Job:
    settings = {
        "benchmark": "humaneval",
        "model": model,
        "prompt": "auto",
        "samples": 1,
        "temperature": 0.0,
        "seed": 0,
        "max_tokens": max_tokens,
    }
    chosen = dict(list(ours.load_tasks("humaneval", None)[0].items())[:tasks])
    return ours.Job(Path(folder), settings, chosen)


def run_ours(model: str, tasks: int, max_tokens: int) -> tuple[float, float, dict[str, str]]:
    """Seconds to start, seconds to generate, and the raw answers by task id."""
    started = []

    def start(*arguments, **options):
        begun = time.monotonic()
        engine = start_engine(*arguments, **options)
        started.append(time.monotonic() - begun)
        return engine

    start_engine = ours.start_engine
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(ours, "start_engine", start):
        job = open_job(folder, model, tasks, max_tokens)
        begun = time.monotonic()
        ours.generate([job], {}, 0, 1)
        seconds = time.monotonic() - begun
        answers = {
            row["task_id"]: row["raw"].replace("\t", "    ")
            for row in read_rows(Path(folder) / "answers.jsonl")
        }
    return started[0], seconds - started[0], answers


def run_floor(model: str, tasks: int, max_tokens: int) -> float:
    """Seconds of the engine alone: LLM.generate on the same requests, nothing on disk."""
    with tempfile.TemporaryDirectory() as folder:
        job = open_job(folder, model, tasks, max_tokens)
        with contextlib.closing(ours.start_engine(model, ours.CONTEXT)) as engine:
            requests = list(ours.make_requests(job, model, engine))
            return raw(engine, requests, len(requests))[0]


def run_evalplus(
    model: str, tasks: int, max_tokens: int, backend: str
) -> tuple[float, float, dict[str, str]]:
    os.environ |= {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "3",
    }
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # all as engine.py sets them
    import torch
    from evalplus.codegen import codegen
    from evalplus.provider import make_model

    if backend == "vllm" and not torch.cuda.is_available():
        import evalplus.provider.vllm

        evalplus.provider.vllm.LLM = functools.partial(evalplus.provider.vllm.LLM, enforce_eager=True)
    prompt = dict(zip(("instruction_prefix", "response_prefix"), ours.EVALPLUS_PREFIXES))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        begun = time.monotonic()
        decoder = make_model(model, backend, "humaneval", batch_size=1, temperature=0.0, **prompt)
        decoder.max_new_tokens = max_tokens
        ready = time.monotonic()
        codegen(f"{folder}/out.jsonl", decoder, "humaneval", greedy=True, id_range=(0, tasks))
        done = time.monotonic()
        rows = [json.loads(line) for line in Path(folder, "out.raw.jsonl").open()]
    return ready - begun, done - ready, {row["task_id"]: row["solution"] for row in rows}


def alone(function, *arguments):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--backend", choices=["vllm", "hf"], default="vllm")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    for _ in range(arguments.rounds):
        start, seconds, answers = alone(run_ours, arguments.model, arguments.tasks, arguments.max_tokens)
        their_start, their_seconds, theirs = alone(
            run_evalplus, arguments.model, arguments.tasks, arguments.max_tokens, arguments.backend
        )
        floor = alone(run_floor, arguments.model, arguments.tasks, arguments.max_tokens)
        equal = sum(answers[task_id] == theirs[task_id] for task_id in answers)
        print(f"{arguments.tasks} tasks, {equal} answers equal, load {os.getloadavg()[0]:.1f}")
        print(f"eval.py               {seconds:7.1f} s, start {start:.1f} s")
        print(f"EvalPlus, {arguments.backend:<5}       {their_seconds:7.1f} s, start {their_start:.1f} s")
        print(f"floor, LLM.generate   {floor:7.1f} s, all requests at once")
        print(f"ratio {their_seconds / seconds:.1f}")


if __name__ == "__main__":
    main()
