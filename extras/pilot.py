"""A small run in each layout, from the same instructions; then what a full run would give with the better
one.

    python selfcodealign.py pilot --model MODEL --source S --out runs/pilot --full 20000
"""

import argparse
from pathlib import Path

import selfcodealign as method
from extras import report, rivals

SEEDS = 200


def pilot(folder: Path, given: dict, engine_options: dict, full: int) -> int:
    """Run both layouts under `folder` and print the counts and the projection. Raises BadInput."""
    passing, first, status = {}, None, 0
    for layout in method.LAYOUTS:
        settings = {"limit": SEEDS} | given | {"layout": layout}
        if first:
            settings = {key: value for key, value in settings.items() if key not in rivals.SHAPE_INSTRUCTIONS}
            run = rivals.start("teacher", folder / layout, settings, engine_options, first.folder, None)
            if "engine" in vars(first):
                run.engine = first.engine
        else:
            first = run = method.open_run(folder / layout, settings, engine_options)
        print(f"\nlayout {layout}")
        status = max(status, method.run_everything(run))
        passing[layout] = sum(1 for _ in run.kept("executions"))
    layout = max(passing, key=passing.get)
    counted = ", ".join(f"{name} {count}" for name, count in passing.items())
    print(f"\nresponses that pass: {counted}; take --layout {layout} for a full run")
    counts, paid = method.funnel(folder / layout), method.funnel(first.folder)
    copied = len(rivals.COPIED)
    counts["stages"][:copied] = paid["stages"][:copied]
    print(f"\nprojection to {full} seeds, from {folder / layout}\n{report.projection(counts, full)}")
    return status


def main(words: list[str]):
    parser = argparse.ArgumentParser("selfcodealign.py pilot", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder of both runs")
    number = {"type": method.positive(int), "default": 10_000}
    parser.add_argument("--full", help="seeds of the run to project to", **number)
    method.add_settings(parser)
    method.add_engine_options(parser)
    arguments = parser.parse_args(words)
    return pilot(arguments.out, *method.given_settings(arguments), arguments.full)
