"""Selection of many rows: seconds and peak memory, beside those of a tenth as many, and beside the floor: every
row that it reads is read once, and every row that it writes is written, by `json` alone.

    python tests/bench_selection.py [--rows 500000]

Each row is the one passing response to an instruction of its own: the worst case, in which nearly every row
is looked at in full and kept. One in ten is a near-duplicate of another. The trial of each kept response on
the benchmarks' inputs is left out: it is the sandbox's work, a program for each response, and done once.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def write_run(run, rows: int):
    from parts.rows import replacing

    words = [f"word{n}" for n in range(20_000)]

    def text(generator, count):
        return " ".join(generator.choices(words, k=count))

    files = ("seeds", "concepts", "instructions", "responses", "executions")
    with (
        replacing(run.path(files[0])) as seed,
        replacing(run.path(files[1])) as concepts,
        replacing(run.path(files[2])) as instruction,
    ):
        with replacing(run.path(files[3])) as response, replacing(run.path(files[4])) as execution:
            for n in range(rows):
                generator = random.Random(n - 1 if n % 10 == 9 else n)
                task, reasoning = text(generator, 60), text(generator, 60)
                lines = "".join(
                    f"    {word} = {generator.random()} * x\n" for word in generator.sample(words, 15)
                )
                code = f"```python\ndef f{n}(x):\n    # {text(generator, 10)}\n{lines}    return x\n```"
                seed({"id": f"s{n}", "code": text(generator, 50)})
                concepts({"id": f"c{n}", "seed_id": f"s{n}", "concepts": ["loops", "lists"]})
                instruction(
                    {
                        "id": f"i{n}",
                        "seed_id": f"s{n}",
                        "concepts_id": f"c{n}",
                        "instruction": task,
                        "category": "function",
                        "difficulty": "easy",
                    }
                )
                response(
                    {
                        "id": f"r{n}",
                        "seed_id": f"s{n}",
                        "concepts_id": f"c{n}",
                        "instruction_id": f"i{n}",
                        "response": f"{reasoning}\n\n{code}",
                        "tests": "```python\nassert f\n```",
                    }
                )
                ids = {"instruction_id": f"i{n}", "response_id": f"r{n}"}
                execution({"id": f"e{n}", **ids, "outcome": "passed"})


def measure(rows: int):
    import selfcodealign

    with tempfile.TemporaryDirectory() as folder:
        run = selfcodealign.open_run(
            Path(folder, "run"), {"model": str(ROOT / "models" / "smollm2-135m")}, {}
        )
        write_run(run, rows)
        run.decontaminator.runnable = {}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.monotonic()
        selfcodealign.select(run)
        seconds, peak = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kept = sum(1 for _ in run.path("sft").open())
        started = time.monotonic()
        for name in ("instructions", "responses", "executions"):
            for line in run.path(name).open():
                json.loads(line)
        with Path(folder, "again.jsonl").open("w") as file:
            for name in ("selection", "sft"):
                for line in run.path(name).open():
                    file.write(json.dumps(json.loads(line)) + "\n")
        floor = time.monotonic() - started
        per_row = [f"{1000 * spent / rows:>13.2f}" for spent in (seconds, floor)]
        print(
            f"{rows:>10}{kept:>10}{seconds:>10.0f}{''.join(per_row)}{before / 1024:>12.0f}{peak / 1024:>12.0f}"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--once", action="store_true", help="this many only, in this process")
    options = parser.parse_args()
    if options.once:
        return measure(options.rows)
    print(
        f"{'rows':>10}{'kept':>10}{'seconds':>10}{'ms per row':>13}{'floor':>13}{'MB before':>12}{'MB at most':>12}",
        flush=True,
    )
    for rows in (options.rows // 10, options.rows):
        subprocess.run([sys.executable, __file__, "--once", "--rows", str(rows)], check=True)


if __name__ == "__main__":
    main()
