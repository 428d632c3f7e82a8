"""Export a run's data: a folder that `datasets.load_dataset` reads as it is, and its card.

    python selfcodealign.py export --out runs/first --format parquet     train.parquet: all of sft.jsonl
    python selfcodealign.py export --out runs/first --format messages    train.jsonl: {"id", "messages"}

The folder, `--to DIR` or export-FORMAT in the run folder, appears when it is whole. Seeds keep the licence of
the code they come from, which a run does not know: the card says `unknown` unless `--license` gives one.
"""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from parts.folder import read_config
from parts.rows import BadInput, read_rows, whole
from selfcodealign import funnel, table


def export(run_folder: Path, out: Path, format: str, license: str = "unknown") -> int:
    """Write the final examples of a run, which are held in memory, and their card to the new folder `out`.
    Returns how many there are. Raises BadInput."""
    source, out = run_folder / "sft.jsonl", out.resolve()
    if not source.is_file():
        raise BadInput(f"no sft.jsonl in {run_folder}: no run folder, or `selection` has not been run")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} exists: remove it, or take another --to")
    examples = list(read_examples(source))
    if not examples:
        raise BadInput(f"{source} has no examples")
    file, write = FORMATS[format]
    columns = list(examples[0]) if format == "parquet" else ["id", "messages"]
    description = card(run_folder, file, columns, len(examples), license)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            folder = Path(scratch, "data")
            folder.mkdir()
            write(examples, folder / file)
            description.save(folder / "README.md")
            os.replace(folder, out)
    except OSError as error:
        raise BadInput(f"cannot write to {out}: {error}") from None
    return len(examples)


def read_examples(path: Path) -> Iterator[dict]:
    """The rows of an sft.jsonl, as other formats can hold them (see `whole`). Raises BadInput."""
    for row in read_rows(path):
        if not isinstance(row.get("instruction"), str) or not isinstance(row.get("response"), str):
            raise BadInput(f"{path}: example {row['id']} has no text `instruction` and `response`")
        yield json.loads(whole(json.dumps(row, ensure_ascii=False)))


def write_parquet(rows: list[dict], path: Path):
    import pyarrow
    import pyarrow.parquet

    try:
        columns = pyarrow.Table.from_pylist(rows)
    except pyarrow.ArrowException as error:
        raise BadInput(f"the examples are not all of the same types: {error}") from None
    pyarrow.parquet.write_table(columns, path, row_group_size=1000, compression="zstd")


def write_messages(rows: list[dict], path: Path):
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            turns = [("user", row["instruction"]), ("assistant", row["response"])]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"id": row["id"], "messages": messages}, ensure_ascii=False) + "\n")


FORMATS = {"parquet": ("train.parquet", write_parquet), "messages": ("train.jsonl", write_messages)}

# --------------------------------------------------------------------------------------------------- the card

COLUMNS = {
    "instruction": "the task, as the model wrote it; with a test where `test_in_instruction` says so",
    "response": "reasoning and code, as the model wrote it",
    "tests": "written by the model together with the response; empty where none were asked for",
    "program": "the response's code and its tests",
    "difficulty": "drawn: what the model was asked for, not what was measured",
    "concepts": "what the model named in the seed; empty where none were named",
    "seed": "the code that everything came from: of others, under their licence",
    "messages": "the instruction as user, the response as assistant",
}
ABSOLUTE_PATH = r"(?<![\w.:/])/(?:[^\s/]+/)*([^\s/]+)"  # in a sentence; its group is the last part


def card(run_folder: Path, file: str, columns: list[str], examples: int, license: str):
    """The dataset card, with the header that the hub understands. It shows no folders of this machine."""
    from huggingface_hub import DatasetCard, DatasetCardData

    config, counts = read_config(run_folder), funnel(run_folder)
    counts["decontamination"] = re.sub(ABSOLUTE_PATH, r"\1", counts["decontamination"])
    settings = {key: without_folders(value) for key, value in config.items() if not isinstance(value, dict)}
    settings.pop("decontamination", None)  # the table has it
    settings |= {package: number for package, number in config.get("versions", {}).items() if number}
    if counts["tested"]:
        settings |= {f"sandbox: {property}": layer for property, layer in counts["sandbox"].items()}
    source, model = (settings.get(key, f"a {key} that the run does not name") for key in ("source", "model"))
    header = DatasetCardData(
        pretty_name=run_folder.resolve().name,
        license=license,
        language=["en"],
        tags=["code", "python", "synthetic", "instruction-tuning", "self-alignment"],
        task_categories=["text-generation"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": file}]}],
    )
    return DatasetCard.from_template(
        header,
        template_path=Path(__file__).parent / "pages" / "card.md",
        examples=examples,
        source="Python's standard library" if source == "stdlib" else source,
        models=" and ".join(dict.fromkeys(filter(None, (settings.get("instructions_by"), model)))),
        columns=columns,
        descriptions=COLUMNS,
        counts=counts,
        table=table(counts),
        settings=settings,
    )


def without_folders(value):
    """The value of a setting; of each path on this machine that it names only the last part."""
    if not isinstance(value, str):
        return value
    names = value.split(" and ")  # as several models are written
    local = (name.startswith(("/", ".", "~")) or Path(name).exists() for name in names)
    return " and ".join(Path(name).name if is_local else name for name, is_local in zip(names, local))


def main(words: list[str]):
    parser = argparse.ArgumentParser("selfcodealign.py export", description="the final examples for others")
    parser.add_argument("--out", type=Path, required=True, help="the run folder")
    parser.add_argument("--format", choices=FORMATS, required=True, help="every column, or chat messages")
    parser.add_argument("--to", type=Path, help="a new folder (default: export-FORMAT in the run folder)")
    parser.add_argument("--license", default="unknown", help="the hub's name of the data's licence")
    arguments = parser.parse_args(words)
    folder = arguments.to or arguments.out / f"export-{arguments.format}"
    examples = export(arguments.out, folder, arguments.format, arguments.license)
    print(f"{examples} examples: {folder}")
