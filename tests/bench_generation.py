"""Generation side by side in one run: seconds and tokens/s for the same step in four shapes, or a table of
what the number of shot sets changes.

    python tests/bench_generation.py [--model models/smollm2-135m] [--items 48] [--shot-sets 2]
    python tests/bench_generation.py --shot-sets-table 1,4,16,64,0

    raw             LLM.generate on all requests of the step at once, nothing on disk before the last: the floor
    ours            the stage of selfcodealign.py with shot sets
    ours, sets 0    the same with few-shot examples drawn for each prompt, as in the paper
    chunks          the shape of the public scripts: LLM.generate on 32 requests at a time, few-shot examples drawn for each prompt

Steps are S->C and C->I with the full 8-shot prompts, on functions of the standard library. What counts is
items per set: a real run has thousands of them, and pays for its shot sets once.
"""

import argparse
import dataclasses
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import selfcodealign
from parts.engine import start_engine
from parts.rows import read_rows

STEPS = ("concepts", "instructions")
CHUNK = 32


def open_run(folder: Path, engine, options: argparse.Namespace, shot_sets: int) -> selfcodealign.Run:
    settings = {
        "model": options.model,
        "judge": 0.0,
        "limit": options.items,
        "max_tokens": options.max_tokens,
        "shot_sets": shot_sets,
    }
    run = selfcodealign.open_run(folder, settings, {})
    run.engine = engine  # one for all
    return run


def timed(run: selfcodealign.Run, step: str) -> tuple[float, list]:
    """Seconds of the stage from an empty prefix cache, and its requests."""
    requests, stream = [], selfcodealign.stream

    def recording(engine, given):
        for request, completion in stream(engine, given):
            requests.append(dataclasses.replace(request, row={"tokens": completion.tokens}))
            yield request, completion

    run.engine.llm.reset_prefix_cache()
    selfcodealign.stream = recording
    started = time.monotonic()
    selfcodealign.generate(run, step)
    selfcodealign.stream = stream
    return time.monotonic() - started, requests


def raw(engine, requests: list, size: int) -> tuple[float, int]:
    """Seconds and generated tokens of LLM.generate on `size` requests at a time."""
    from vllm import SamplingParams

    engine.llm.reset_prefix_cache()
    started, tokens = time.monotonic(), 0
    for first in range(0, len(requests), size):
        part = requests[first : first + size]
        sampling = [
            SamplingParams(temperature=r.temperature, max_tokens=r.max_tokens, seed=r.seed, stop=r.stop)
            for r in part
        ]
        outputs = engine.llm.generate(
            [{"prompt_token_ids": r.prompt} for r in part], sampling, use_tqdm=False
        )
        tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
    return time.monotonic() - started, tokens


def compare_shapes(options, engine, folder: Path):
    ours, warm_up, paper = (
        open_run(folder / name, engine, options, shot_sets)
        for name, shot_sets in (("ours", options.shot_sets), ("warm-up", options.shot_sets), ("paper", 0))
    )
    selfcodealign.gather_seeds(ours)
    for run in (warm_up, paper):
        shutil.copy(ours.path("seeds"), run.path("seeds"))
    print(
        f"{'step':14}{'shape':16}{'items':>7}{'prompt tokens':>15}{'new tokens':>12}{'seconds':>9}{'x ours':>8}{'new tokens/s':>14}"
    )
    for step in options.steps.split(","):
        timed(warm_up, step)  # the first pass pays for what the engine allocates
        ours_seconds, requests = timed(ours, step)
        shapes = {
            "ours": (ours_seconds, sum(r.row["tokens"] for r in requests)),
            "raw": raw(engine, requests, len(requests)),
        }
        paper_seconds, paper_requests = timed(paper, step)
        shapes["ours, sets 0"] = (paper_seconds, sum(r.row["tokens"] for r in paper_requests))
        shapes["chunks"] = raw(engine, paper_requests, CHUNK)
        for shape, (seconds, tokens) in shapes.items():
            prompt_tokens = sum(
                len(r.prompt) for r in (requests if shape in ("ours", "raw") else paper_requests)
            )
            line = f"{step:14}{shape:16}{len(requests):>7}{prompt_tokens:>15}{tokens:>12}{seconds:>9.1f}"
            print(f"{line}{seconds / ours_seconds:>8.2f}{tokens / seconds:>14.0f}", flush=True)
        for run in (warm_up, paper):
            shutil.copy(ours.path(step), run.path(step))  # the next step has the same parents


def shot_sets_table(options, engine, folder: Path):
    print(
        f"{'sets':>6}{'S->C s':>9}{'C->I s':>9}{'concepts':>10}{'distinct':>10}{'instructions':>14}{'similarity':>12}",
        flush=True,
    )
    for shot_sets in map(int, options.shot_sets_table.split(",")):
        run = open_run(folder / str(shot_sets), engine, options, shot_sets)
        first = folder / options.shot_sets_table.split(",")[0] / "seeds.jsonl"
        if first.exists():
            shutil.copy(first, run.path("seeds"))
        else:
            selfcodealign.gather_seeds(run)
        seconds = [timed(run, step)[0] for step in STEPS]
        concepts = [concept for row in run.kept("concepts") for concept in row["concepts"]]
        rows = read_rows(run.path("instructions"))  # those cut at --max-tokens are instructions, too
        texts = [set(row.get("instruction", row.get("text")).lower().split()) for row in rows]
        nearest = [max(len(a & b) / len(a | b) for b in texts if b is not a) for a in texts]
        line = f"{shot_sets:>6}{seconds[0]:>9.1f}{seconds[1]:>9.1f}{len(concepts):>10}{len(set(concepts)) / len(concepts):>10.1%}"
        print(f"{line}{len(texts):>14}{sum(nearest) / len(nearest):>12.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "models" / "smollm2-135m"))
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--shot-sets", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument(
        "--shot-sets-table",
        metavar="K,K,...",
        help="similarity: the mean over instructions of the largest word overlap (Jaccard) with another",
    )
    options = parser.parse_args()
    engine = start_engine(options.model, 8192)
    with tempfile.TemporaryDirectory() as folder:
        (shot_sets_table if options.shot_sets_table else compare_shapes)(options, engine, Path(folder))


if __name__ == "__main__":
    main()
