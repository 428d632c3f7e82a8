"""Export a run's data: a folder that `datasets.load_dataset` reads as it is, and its card.

    python selfcodealign.py export --out runs/first --format parquet       train.parquet: all of sft.jsonl
    python selfcodealign.py export --out runs/first --format messages      train.jsonl: chats, to fine-tune on
    python selfcodealign.py export --out runs/first --format preference    pairs, for preference tuning
    python selfcodealign.py export --out runs/first --format rl            tasks and tests, for GRPOTrainer

See extras/outcomes.py for the last two, and extras/reward.py for the reward of the last. TRL and
LLaMA-Factory read messages and preference as they are, and learn the responses only: the card says how.

The folder, `--to DIR` or export-FORMAT in the run folder, appears when it is whole. Seeds keep the licence of
the code they come from, which a run does not know: the card says `unknown` unless `--license` gives one.
"""

import argparse
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from extras import outcomes
from extras.report import table
from parts.folder import positive, read_config, share
from parts.rows import BadInput, read_rows, whole
from selfcodealign import funnel

FORMATS = ("parquet", "messages", "preference", "rl")
# LLaMA-Factory's dataset_info.json: where its form of the rows stands. Its `openai` adds a system prompt.
TURNS = {
    "formatting": "sharegpt",
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}
PAIRS = {"messages": "prompt", "chosen": "chosen_turn", "rejected": "rejected_turn"}
LLAMA_FACTORY = {
    "messages": TURNS | {"columns": {"messages": "messages"}},
    "preference": TURNS | {"columns": PAIRS, "ranking": True},
}


def export(
    run_folder: Path,
    out: Path,
    format: str,
    license: str = "unknown",
    pairs: int = 1,
    pass_rate: Sequence[float] = (0.0, 1.0),
) -> dict[str, int]:
    """Write rows made of the final examples of a run, which are held in memory, and their card to the new
    folder `out`. Returns what became of the examples, in numbers. Raises BadInput."""
    source, out = run_folder / "sft.jsonl", out.resolve()
    if not source.is_file():
        raise BadInput(f"no sft.jsonl in {run_folder}: no run folder, or `selection` has not been run")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} exists: remove it, or take another --to")
    if not (examples := list(read_examples(source))):
        raise BadInput(f"{source} has no examples")
    rows, counts = examples, {"examples": len(examples)}
    match format:
        case "messages":
            rows = list(map(messages, examples))
        case "preference":
            rows, counts = outcomes.preference_pairs(run_folder, pairs)
        case "rl":
            rows, counts = outcomes.reward_tasks(run_folder, *pass_rate)
    if not rows:
        told = ", ".join(f"{number} {what}" for what, number in counts.items())
        raise BadInput(f"{run_folder} gives no rows: {told}")
    file, write = ("train.parquet", write_parquet) if format == "parquet" else ("train.jsonl", write_lines)
    made = counts | {"rows": len(rows)}
    description = card(run_folder, file, format, list(rows[0]), made, license)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            folder = Path(scratch, "data")
            folder.mkdir()
            write(rows, folder / file)
            if format in LLAMA_FACTORY:
                entry = LLAMA_FACTORY[format] | {"file_name": file}
                (folder / "dataset_info.json").write_text(json.dumps({"selfcodealign": entry}, indent=2))
            description.save(folder / "README.md")
            os.replace(folder, out)
    except OSError as error:
        raise BadInput(f"cannot write to {out}: {error}") from None
    return made


def read_examples(path: Path) -> Iterator[dict]:
    """The rows of an sft.jsonl, as other formats can hold them (see `whole`). Raises BadInput."""
    for row in read_rows(path):
        if not isinstance(row.get("instruction"), str) or not isinstance(row.get("response"), str):
            raise BadInput(f"{path}: example {row['id']} has no text `instruction` and `response`")
        yield json.loads(whole(json.dumps(row, ensure_ascii=False)))


def write_parquet(rows: list[dict], path: Path):
    from pyarrow import ArrowException, Table, parquet

    try:
        parquet.write_table(Table.from_pylist(rows), path, row_group_size=1000, compression="zstd")
    except ArrowException as error:
        raise BadInput(f"the examples are not all of the same types: {error}") from None


def write_lines(rows: list[dict], path: Path):
    with path.open("w", encoding="utf-8") as file:
        file.writelines(whole(json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


def messages(example: dict) -> dict:
    """The chat whole, for LLaMA-Factory, and in two parts: TRL would learn all of a whole one."""
    prompt = outcomes.says("user", example["instruction"])
    completion = outcomes.says("assistant", example["response"])
    return {
        "id": example["id"],
        "messages": prompt + completion,
        "prompt": prompt,
        "completion": completion,
    }


# --------------------------------------------------------------------------------------------------- the card

ABSOLUTE_PATH = r"(?<![\w.:/])/(?:[^\s/]+/)*([^\s/]+)"  # in a sentence; its group is the last part


def card(run_folder: Path, file: str, format: str, columns: list[str], made: dict[str, int], license: str):
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
        made=made,
        format=format,
        origin=origin_of(config.get("baseline"), source),
        models=writers(settings, model),
        columns=columns,
        counts=counts,
        table=table(counts),
        settings=settings,
    )


def origin_of(baseline: str | None, source: str) -> str:
    """What the data was made from, in words."""
    if baseline in ("octopack", "given-tasks"):
        return f"{'commits' if baseline == 'octopack' else 'tasks'} of {source}"
    library = "Python's standard library"
    return f"code of {library if source == 'stdlib' else source}"


def writers(config: dict, model: str) -> str:
    if config.get("baseline") == "octopack":  # the model only counted tokens
        return "the authors of the commits"
    return " and ".join(dict.fromkeys(filter(None, (config.get("instructions_by"), model))))


def without_folders(value):
    """The value of a setting; of each path on this machine that it names only the last part."""
    if not isinstance(value, str):
        return value
    names = value.split(" and ")  # as several models are written
    local = (name.startswith(("/", ".", "~")) or os.path.exists(name) for name in names)
    return " and ".join(Path(name).name if is_local else name for name, is_local in zip(names, local))


def main(argv: list[str]):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("selfcodealign.py export", description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True, help="the run folder")
    parser.add_argument("--format", choices=FORMATS, required=True, help="see above")
    parser.add_argument("--to", type=Path, help="a new folder (default: export-FORMAT in the run folder)")
    parser.add_argument("--license", default="unknown", help="the hub's name of the data's licence")
    parser.add_argument("--pairs", type=positive(int), help="preference: so many of an example (default: 1)")
    bounds = {"nargs": 2, "type": share, "metavar": ("LOW", "HIGH")}
    parser.add_argument("--pass-rate", help="rl: tasks of whose samples such a share passed", **bounds)
    arguments = parser.parse_args(argv)
    for option, format in (("pairs", "preference"), ("pass_rate", "rl")):
        if getattr(arguments, option) and arguments.format != format:
            raise BadInput(f"--{option.replace('_', '-')} is for --format {format}")
    folder = arguments.to or arguments.out / f"export-{arguments.format}"
    options = arguments.license, arguments.pairs or 1, arguments.pass_rate or (0.0, 1.0)
    made = export(arguments.out, folder, arguments.format, *options)
    print(f"{', '.join(f'{number} {what}' for what, number in made.items())}: {folder}")
