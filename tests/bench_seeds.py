"""Seeds per second at each step, and type checkers side by side on the same functions.

    python tests/bench_seeds.py [--source stdlib] [--functions 1000] [--checkers pyrefly basedpyright ty mypy]

The steps run one after the other on one core (the first two, reading and parsing, are the floor), then the
whole extraction on all. Then each checker that is
installed gets the first `--functions` candidates, in the order of their hashes, as one folder; a verdict is
"no error" or "some", and basedpyright with Pyright's standard rules, which were the paper's, is the
reference. Processor seconds count more than seconds where others use the machine.
"""

import argparse
import ast
import collections
import hashlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from parts import seeds

# Name: (command in the folder of programs, its configuration file and text, one match per error in its
# output)
CHECKERS = {
    "basedpyright": (
        ["basedpyright", "--pythonpath", sys.executable, "."], "pyrightconfig.json", '{"typeCheckingMode": "standard"}',
        r"seed_(\d+)\.py:\d+:\d+ - error",
    ),
    "pyrefly": (
        ["pyrefly", "check", "--output-format", "min-text", "--python-interpreter-path", sys.executable], "pyrefly.toml", seeds.PYREFLY,
        r"ERROR .*?seed_(\d+)\.py:\d+",
    ),
    "ty": (["ty", "check", "--python", sys.executable, "--output-format", "concise", "."], "ty.toml", "", r"seed_(\d+)\.py:\d+:\d+: error"),
    "mypy": (
        ["mypy", "--check-untyped-defs", "--python-executable", sys.executable, "--cache-dir", os.devnull, "."], "mypy.ini", "[mypy]\n",
        r"seed_(\d+)\.py:\d+: error",
    ),
}  # fmt: skip


def processor_seconds():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def timed(step, function, *arguments):
    """The function's result, and a line of how long it took for how many."""
    wall, processor = time.perf_counter(), processor_seconds()
    result = function(*arguments)
    wall, processor = time.perf_counter() - wall, processor_seconds() - processor
    print(f"{step:34}{len(result):9}{wall:10.1f}{processor:12.1f}{len(result) / processor:14.0f}", flush=True)
    return result


def parse(text):
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def bench_steps(source):
    print(f"{'':34}{'items':>9}{'seconds':>10}{'processor s':>12}{'items/proc. s':>14}")
    files = timed("files read", lambda: list(seeds.read_sources(source)))
    modules = timed("files parsed", lambda: [parse(text) for _, text in files])
    tops = [
        node
        for module in modules
        if module
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    shapes = timed("functions: shape", lambda: [seeds.shape_reject(node) for node in tops])
    fit = [node for node, reject in zip(tops, shapes) if reject is None]
    codes = [(ast.unparse(node), node) for node in fit]
    timed("functions: names and imports", lambda: [seeds.stand_alone(*code, {}, set()) for code in codes])
    rows = timed("functions: all of it, all cores", lambda: list(seeds.extract(source)))
    counts = collections.Counter(row.get("reject", "to the type checker") for row in rows)
    print("; ".join(f"{reason} {count}" for reason, count in counts.most_common()))
    return list({row["code"]: row for row in rows if "reject" not in row})


def bench_checkers(codes, names):
    verdicts = {}
    print(
        f"\n{len(codes)} functions\n{'':34}{'errors in':>9}{'seconds':>10}{'processor s':>12}{'per thousand':>14}"
    )
    for name in names:
        command, config, text, error = CHECKERS[name]
        with tempfile.TemporaryDirectory() as folder:
            for number, code in enumerate(codes):
                Path(folder, f"seed_{number}.py").write_text(code + "\n", encoding="utf-8")
            Path(folder, config).write_text(text)
            wall, processor = time.perf_counter(), processor_seconds()
            try:
                output = subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout
            except FileNotFoundError:
                print(f"{name}: left out, it is not installed", file=sys.stderr)
                continue
            wall, processor = time.perf_counter() - wall, processor_seconds() - processor
        verdicts[name] = {int(number) for number in re.findall(error, output)}
        print(
            f"{name:34}{len(verdicts[name]):9}{wall:10.1f}{processor:12.1f}{1000 * processor / len(codes):14.1f}",
            flush=True,
        )
    if reference := verdicts.pop("basedpyright", None):
        print(
            f"\n{'against basedpyright':34}{'same':>9}{'its errors found':>20}{'errors it does not have':>25}"
        )
        for name, found in verdicts.items():
            same = 1 - len(found ^ reference) / len(codes)
            print(
                f"{name:34}{same:9.1%}{len(found & reference):14}/{len(reference):<5}{len(found - reference):25}"
            )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="stdlib", help="as of selfcodealign.py")
    parser.add_argument("--functions", type=int, default=1000, help="that each checker gets")
    parser.add_argument("--checkers", nargs="*", choices=CHECKERS, default=list(CHECKERS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # other people's invalid escapes
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    codes = bench_steps(options.source)
    codes.sort(key=lambda code: hashlib.sha256(code.encode()).hexdigest())
    bench_checkers(codes[: options.functions], options.checkers)


if __name__ == "__main__":
    main()
