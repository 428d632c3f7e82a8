#!/usr/bin/env bash
# datasets 5.2.0 (pyarrow 26.0.1), load_dataset("json"), also with features that say the column is a string.
#
# pyarrow's JSON reader takes a column of texts that all look like dates for timestamps. datasets lets it guess for
# each file and each 10 MB of a file, and only then casts to the type of the column. Where that is string, whether
# by features or by the first rows, the cast writes the timestamp as pyarrow writes it: "2024-01-01" becomes
# "2024-01-01 00:00:00", "2024-01-01T12:00:00+02:00" becomes "2024-01-01 10:00:00". Nothing is said. One text among
# the 10 MB that is no date keeps all of them as they were, so that the same answer comes out in two forms within
# one column of one file. An expected output, a test's argument or a release's date is then another text than the
# one on the disk.
#
# Seen, column of type string: "2024-01-01" -> "2024-01-01 00:00:00"; with "unknown" in another row -> unchanged;
# in a file of 24 MB with "unknown" in the first row alone, 104 dates as on the disk and the other 135 changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1
cd "$folder"

HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import collections
import json
import pathlib
import sys

import datasets

datasets.disable_progress_bars()
text = datasets.Value("string")


def loaded(name, answers, code=""):
    rows = (json.dumps({"answer": answer, "code": code}) + "\n" for answer in answers)
    pathlib.Path(name).write_text("".join(rows))
    features = datasets.Features({"answer": text, "code": text})
    return datasets.load_dataset("json", data_files=name, features=features, split="train")["answer"][:]


date, zone = "2024-01-01", "2024-01-01T12:00:00+02:00"
cases = {
    "dates": ([date], ["2024-01-01 00:00:00"]),
    "zones": ([zone], ["2024-01-01 10:00:00"]),
    "mixed": ([date, zone, "unknown"], [date, zone, "unknown"]),
}
for name, (answers, seen) in cases.items():
    now = loaded(f"{name}.jsonl", answers)
    print(name, answers, "->", now)
    if now != seen:
        sys.exit(f"changed: {seen} were seen with datasets 5.2.0")

now = dict(collections.Counter(loaded("long.jsonl", ["unknown"] + [date] * 239, code="#" * 100_000)))
print("a long file:", now)
if now != {"unknown": 1, date: 104, "2024-01-01 00:00:00": 135}:
    sys.exit("changed: 104 dates as they were and 135 others were seen with datasets 5.2.0")
PY
