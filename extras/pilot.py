"""A small run in each layout, from the same instructions; then what a full run would give with the better
one.

    python selfcodealign.py pilot --model MODEL --source S --out runs/pilot --full 20000
"""

import argparse
import shutil
from pathlib import Path

import selfcodealign as method
from extras import quality, report
from parts.folder import positive

SEEDS = 200
SHARED = ("seeds", "concepts", "instructions")  # the stages whose rows both runs have


def run_everything(run: method.Run) -> int:
    """Every stage, the quality of the tests, the report. Returns the exit status: 0 where all was done."""
    method.run_stages(run, run.stages, report.live)
    quality.measure(run)
    report.show(run.folder)
    return method.report_problems(run)


def pilot(folder: Path, given: dict, engine_options: dict, full: int) -> int:
    """Run both layouts under `folder` and print the counts and the projection. Raises BadInput."""
    passing, first, status = {}, None, 0
    for layout in method.LAYOUTS:
        run = method.open_run(folder / layout, {"limit": SEEDS} | given | {"layout": layout}, engine_options)
        if first:
            for stage in SHARED:
                shutil.copyfile(first.path(stage), run.path(stage))
            if "engine" in vars(first):
                run.engine = first.engine
        first = first or run
        print(f"\nlayout {layout}")
        status = max(status, run_everything(run))
        passing[layout] = sum(1 for _ in run.kept("executions"))
    layout = max(passing, key=passing.get)
    counted = ", ".join(f"{name} {count}" for name, count in passing.items())
    print(f"\nresponses that pass: {counted}; take --layout {layout} for a full run")
    counts, paid = method.funnel(folder / layout), method.funnel(first.folder)
    counts["stages"][: len(SHARED)] = paid["stages"][: len(SHARED)]
    print(f"\nprojection to {full} seeds, from {folder / layout}\n{report.projection(counts, full)}")
    return status


def main(argv: list[str]):
    parser = argparse.ArgumentParser("selfcodealign.py pilot", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder of both runs")
    number = {"type": positive(int), "default": 10_000}
    parser.add_argument("--full", help="seeds of the run to project to", **number)
    method.add_settings(parser)
    method.add_engine_options(parser)
    arguments = parser.parse_args(argv)
    return pilot(arguments.out, *method.given_settings(arguments), arguments.full)
