"""One final example of a run, back to its seed; with --prompts, the exact prompt of each step, too.

python selfcodealign.py trace runs/first ID [--prompts]
"""

import argparse
import sys
from pathlib import Path

from parts.examples import load_examples
from parts.folder import read_run
from parts.rows import BadInput, digest, read_rows
from selfcodealign import METHOD, PROMPTS, Stage, prompt_of

UNKNOWN = "not what the files of prompts make now: they have changed, or a baseline made it"


def trace(folder: Path, example_id: str, prompts: bool = False, tables: dict | None = None):
    """Print every row that led to an example, and what became of its siblings. `tables` has the stages of
    baselines, by name. Raises BadInput."""
    if not folder.is_dir():
        raise BadInput(f"no such run folder: {folder}")
    example = next((row for row in read_rows(folder / "sft.jsonl") if row["id"] == example_id), None)
    if example is None:
        raise BadInput(f"{folder / 'sft.jsonl'} has no example {example_id}")
    config = read_run(folder)
    stages = {name: row for name, row in config["stages"].items() if name not in ("executions", "selection")}
    last, key, _ = config["stages"].get("executions") or config["stages"]["selection"]
    ids = {parent: example[key] for parent, key, _ in stages.values() if parent} | {last: example[key]}
    found = {stage: row_of(folder, stage, identity) for stage, identity in ids.items()}
    for stage, row in found.items():
        if prompts and row.get("prompt"):
            parent, table = found[stages[stage][0]], (tables or {}).get(config.get("baseline"), METHOD)
            prompt = rebuild_prompt(table.get(stage), row, parent, argparse.Namespace(**config))
            print(f"PROMPT\n\n{prompt or UNKNOWN}\n")
        if row["id"] == example["instruction_id"]:  # with the test that it shows, if it shows one
            row = row | {"instruction": example["instruction"]}
        print(f"{stage.upper()} {row['id']}{describe(row)}\n")
    print("SAMPLES\n")
    outcomes = {row[key]: row["outcome"] for row in read_rows(folder / "executions.jsonl")}
    selected = {row[key]: row.get("reject", "kept") for row in read_rows(folder / "selection.jsonl")}
    siblings = (
        row
        for row in read_rows(folder / f"{last}.jsonl")
        if row["instruction_id"] == example["instruction_id"]
    )
    for row in sorted(siblings, key=lambda row: row["sample"]):
        known = [row.get("reject") or outcomes.get(row["id"], "not executed"), selected.get(row["id"], "")]
        print(f"{row['sample']:>3}  {row['id']}  {'; '.join(filter(None, known))}")


def row_of(folder: Path, stage: str, identity: str) -> dict:
    """The row of a stage's file. Raises BadInput."""
    path = folder / f"{stage}.jsonl"
    if found := next((row for row in read_rows(path) if row["id"] == identity), None):
        return found
    raise BadInput(f"{path} has no row {identity}, which the example was made from")


def describe(row: dict) -> str:
    """What a row holds, whatever its stage."""
    head = ", ".join(str(row[key]) for key in ("where", "category", "difficulty") if key in row)
    concepts = [", ".join(row["concepts"])] if "concepts" in row else []
    texts = [row[key] for key in ("code", "instruction", "response", "tests") if row.get(key)]
    return "\n\n".join([f": {head}" if head else "", *concepts, *texts])


def rebuild_prompt(stage: Stage | None, row: dict, parent: dict, settings: argparse.Namespace) -> str | None:
    """The prompt that a row answers, built again from the names of its few-shot examples; None if it cannot
    be."""
    if not stage or not stage.prompt:
        return None
    known = {example.name: example for example in load_examples(PROMPTS / "examples")}
    shots = [known[name] for name in row["examples"] if name in known]
    prompt = prompt_of(stage, shots, row, parent, settings)
    return prompt if digest(prompt)[:16] == row["prompt"] else None


def main(argv: list[str], tables: dict | None = None):
    parser = argparse.ArgumentParser("selfcodealign.py trace", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("id")
    parser.add_argument("--prompts", action="store_true", help="show the whole prompt of each step, too")
    arguments = parser.parse_args(argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # a source or a model may write half a surrogate pair
    trace(arguments.run, arguments.id, arguments.prompts, tables)
