"""Export a run's data: a folder that `datasets.load_dataset` reads as it is, and a card that says how the data was made.

    python selfcodealign.py export --out runs/first --format parquet       train.parquet: every column of sft.jsonl
    python selfcodealign.py export --out runs/first --format messages      train.jsonl: {"id", "messages"}, as chat trainers take it

The folder, `--to DIR` or export-FORMAT in the run folder, appears when it is whole. Its README.md is the card, with the header that the
hub understands. The licence is `unknown` unless `--license` gives one: seeds keep the licence of the code they come from, and nothing in
a run says what that is.
"""

import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jinja2

from report import funnel, read_config, table, whole
from rows import BadInput, read_rows

COLUMNS = {
    "id": "of the example, made from that of its response",
    "instruction": "the task, as the model wrote it; followed by a test where `test_in_instruction` says so",
    "response": "reasoning and code, as the model wrote it",
    "tests": "written by the model together with the response; empty where the recipe asks for none",
    "program": "the response's code and its tests, as one program",
    "category": "function, class or program; drawn",
    "difficulty": "easy, medium or hard; drawn, and what the model was asked for, not what was measured",
    "concepts": "what the model named in the seed, and what the instruction was made from; empty where the recipe names none",
    "seed": "the code that everything came from: of others, under their licence",
    "test_in_instruction": "whether the instruction shows one of the tests",
    "messages": "the instruction as user, the response as assistant",
}
ROWS_AT_A_TIME = 1000  # in memory, and in a row group of the Parquet file


def export(run_folder: Path, out: Path, format: str, license: str = "unknown") -> int:
    """Write the final examples of a run and their card to the new folder `out`; returns how many there are. Raises BadInput."""
    source = run_folder / "sft.jsonl"
    if not source.is_file():
        raise BadInput(f"no sft.jsonl in {run_folder}: it is not a run folder, or `select` has not been run")
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} exists: remove it, or take another --to")
    first = next(read_examples(source), None)
    if first is None:
        raise BadInput(f"{source} has no examples")
    columns = list(first) if format == "parquet" else ["id", "messages"]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            folder = Path(scratch, "data")
            folder.mkdir()
            file, write = FORMATS[format]
            examples = write(read_examples(source), folder / file)
            text = card(run_folder, run_folder.resolve().name, file, columns, examples, license)
            (folder / "README.md").write_text(text, encoding="utf-8")
            os.replace(folder, out)
    except OSError as error:
        raise BadInput(f"cannot write to {out}: {error}") from None
    return examples


def read_examples(path: Path) -> Iterator[dict]:
    """The rows of an sft.jsonl. Half a surrogate pair, which no other format can hold, becomes a question mark. Raises BadInput."""
    for row in read_rows(path):
        if not isinstance(row.get("instruction"), str) or not isinstance(row.get("response"), str):
            raise BadInput(f"{path}: example {row['id']} has no text `instruction` and `response`")
        yield json.loads(whole(json.dumps(row, ensure_ascii=False)))


def write_parquet(rows: Iterator[dict], path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    examples, batches = 0, iter(lambda: list(itertools.islice(rows, ROWS_AT_A_TIME)), [])
    first = next(batches)
    schema = pyarrow.Table.from_pylist(first).schema
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in itertools.chain([first], batches):
            try:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
            except pyarrow.ArrowException as error:
                raise BadInput(f"an example from {batch[0]['id']} on is not like those before it: {error}") from None
            examples += len(batch)
    return examples


def write_messages(rows: Iterator[dict], path: Path) -> int:
    examples = 0
    with path.open("w", encoding="utf-8") as file:
        for examples, row in enumerate(rows, 1):
            messages = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["response"]}]
            file.write(json.dumps({"id": row["id"], "messages": messages}, ensure_ascii=False) + "\n")
    return examples


FORMATS = {"parquet": ("train.parquet", write_parquet), "messages": ("train.jsonl", write_messages)}


# ------------------------------------------------------------------------------------------------------------------- card

SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}  # the hub's words

CARD = """---
{{ header }}
---

# {{ name }}

{{ "{:,}".format(examples) }} instructions for Python code with a response each, made with a reimplementation of SelfCodeAlign
([arXiv 2410.24198](https://arxiv.org/abs/2410.24198)) from code of {{ source }} by {{ models }}, recipe `{{ recipe }}`.

{% if funnel.tested %}
Every response passed the tests that came with it. No person has read the data: a response that passes weak tests may be wrong, and an
instruction may be unclear.
{% else %}
No response was executed, and no person has read the data: responses may be wrong, and instructions unclear.
{% endif %}

| column | what it is |
|---|---|
{% for column in columns %}
| `{{ column }}` | {{ descriptions.get(column, "the row of the run that it comes from" if column.endswith("_id") else "") }} |
{% endfor %}

## Licence

{% if license == "unknown" %}
Unknown: nobody has said under which licence this data may be used.

{% else %}
Given by whoever exported it: {{ license }}.

{% endif %}
The seeds come from {{ source }} and keep the licence of that code
{%- if "seed" in columns %}; the column `seed` holds them as they are{% endif %}. Instructions and responses are the output of
{{ models }}, whose licence may say what output may be used for. Look at both before you publish or train.

## Counts

```
{{ table }}
```

## Contamination{{ " and execution" if funnel.tested }}

Decontamination: {{ funnel.decontamination }}. A benchmark's task that is told in other words may still be in the data.

{% if funnel.tested %}
Programs were executed under these protections:

{% for property, layer in funnel.sandbox.items() %}
- {{ property }}: {{ layer }}
{% else %}
- the run does not say which
{% endfor %}
{% endif %}

## Settings

| setting | value |
|---|---|
{% for key, value in settings %}
| {{ key }} | {{ value|string|replace("|", "\\\\|")|replace("\\n", " ") }} |
{% endfor %}
"""


def card(run_folder: Path, name: str, file: str, columns: list[str], examples: int, license: str) -> str:
    """The dataset card, in Markdown."""
    from huggingface_hub import DatasetCardData

    config, counts = read_config(run_folder), funnel(run_folder)
    header = DatasetCardData(
        pretty_name=name,
        license=license,
        language=["en"],
        tags=["code", "python", "synthetic", "instruction-tuning", "self-alignment"],
        task_categories=["text-generation"],
        size_categories=[next((size for limit, size in SIZES.items() if examples < limit), "n>10M")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": file}]}],
    )
    settings = [(key, value) for key, value in config.items() if not isinstance(value, dict) and key != "decontamination"]
    versions = [(package, number) for package, number in config.get("versions", {}).items() if number]
    models = [config.get("instructions_by"), config.get("model", "a model that the run does not name")]
    source = config.get("source", "a source that the run does not name")
    source = "Python's standard library" if source == "stdlib" else source
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string(CARD).render(
        header=header.to_yaml().strip(), name=name, examples=examples, columns=columns, descriptions=COLUMNS, license=license,
        models=" and ".join(dict.fromkeys(filter(None, models))), source=source, recipe=config.get("recipe", "selfcodealign"),
        table=table(counts), funnel=counts, settings=settings + versions,
    )  # fmt: skip
