"""One final example of a run, back to its seed; with --prompts, the exact prompt of each step, too.

python selfcodealign.py trace runs/first ID [--prompts]
"""

import argparse
import sys
from pathlib import Path

from parts.examples import load_examples
from parts.folder import read_config
from parts.rows import BadInput, digest, read_rows
from selfcodealign import PROMPTS, Origins, Stage, stages_of

UNKNOWN = "not that of the files in prompts/: they have changed since"


def trace(folder: Path, example_id: str, prompts: bool = False):
    """Print every row that led to an example, and what became of its siblings. Raises BadInput."""
    if not folder.is_dir():
        raise BadInput(f"no such run folder: {folder}")
    example = next((row for row in read_rows(folder / "sft.jsonl") if row["id"] == example_id), None)
    if example is None:
        raise BadInput(f"{folder / 'sft.jsonl'} has no example {example_id}")
    settings = argparse.Namespace(**read_config(folder))
    stages = stages_of(vars(settings))
    origins = Origins(folder, stages)
    response_stage = origins.response_stage
    found = origins.of(origins.responses[example["response_id"]])
    for stage, row in reversed(found.items()):
        if prompts and row.get("prompt"):
            prompt = prompt_of(stages[stage], row, found[stages[stage].parent], settings)
            print(f"PROMPT\n\n{prompt or UNKNOWN}\n")
        if row["id"] == example["instruction_id"]:  # with the test that it shows, if it shows one
            row = row | {"instruction": example["instruction"]}
        print(f"{stage.upper()} {row['id']}{describe(row)}\n")
    print("SAMPLES\n")
    outcomes = {row["response_id"]: row["outcome"] for row in read_rows(folder / "executions.jsonl")}
    verdicts = read_rows(folder / "selection.jsonl")
    selected = {row["response_id"]: row.get("reject", "kept") for row in verdicts}
    key = stages[response_stage].key
    samples = read_rows(folder / f"{response_stage}.jsonl")
    siblings = [row for row in samples if row[key] == found[response_stage][key]]
    for row in sorted(siblings, key=lambda row: row["sample"]):
        known = [row.get("reject") or outcomes.get(row["id"], "not executed"), selected.get(row["id"], "")]
        print(f"{row['sample']:>3}  {row['id']}  {'; '.join(filter(None, known))}")


def describe(row: dict) -> str:
    """What a row holds, whatever its stage."""
    head = ", ".join(str(row[key]) for key in ("where", "category", "difficulty") if key in row)
    concepts = [", ".join(row["concepts"])] if "concepts" in row else []
    texts = [row[key] for key in ("code", "instruction", "response", "tests") if row.get(key)]
    return "\n\n".join([f": {head}" if head else "", *concepts, *texts])


def prompt_of(stage: Stage, row: dict, parent: dict, settings: argparse.Namespace) -> str | None:
    """The prompt that a row answers, built again from the names of its few-shot examples; None if it cannot
    be."""
    known = {example.name: example for example in load_examples(PROMPTS / "examples")}
    prompt = stage.prompt([known[name] for name in row["examples"] if name in known], row, parent, settings)
    return prompt if digest(prompt)[:16] == row["prompt"] else None


def main(words: list[str]):
    parser = argparse.ArgumentParser("selfcodealign.py trace", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("id")
    parser.add_argument("--prompts", action="store_true", help="show the whole prompt of each step, too")
    arguments = parser.parse_args(words)
    sys.stdout.reconfigure(errors="backslashreplace")  # a source or a model may write half a surrogate pair
    trace(arguments.run, arguments.id, arguments.prompts)
