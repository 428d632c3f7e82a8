#!/usr/bin/env bash
# datasets 5.2.0, Dataset.map with a cache on the disk (its default for rows loaded from a file).
#
# The name of map's cache file is a hash of the function. A function written in the script is hashed with its code,
# so that an edit runs it again. A function imported from a module is hashed by its module and name alone, and so is
# all that the script's function calls in another module: after an edit there, the next run is given the rows of
# the old code, with no message. A filter or a prompt builder that lives in a package is thus never run again.
#
# Seen: rows [2]; after the edit from "+ 1" to "+ 100" in the imported module again [2], also for a function of the
# script which calls it; the same edit in the script itself gives [101].
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
cd "$folder"

export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
echo '{"a": 1}' >rows.jsonl

# What the map of rows.jsonl gives, with the function that the script's first lines define.
rows() {
    PYTHONDONTWRITEBYTECODE=1 "$folder/venv/bin/python" "$1"
}
last_lines='
import datasets

datasets.disable_progress_bars()
print(datasets.load_dataset("json", data_files="rows.jsonl", split="train").map(score)["score"][:])'

write() {
    printf 'def add(row):\n    return {"score": row["a"] + %s}\n' "$1" >module.py
    printf 'from module import add as score\n%s\n' "$last_lines" >imported.py
    printf 'import module\ndef score(row):\n    return module.add(row)\n%s\n' "$last_lines" >calls.py
    printf 'def score(row):\n    return {"score": row["a"] + %s}\n%s\n' "$1" "$last_lines" >own.py
}

for seen in "imported.py [2] [2]" "calls.py [2] [2]" "own.py [2] [101]"; do
    read -r script before after <<<"$seen"
    write 1
    first=$(rows "$script")
    write 100
    second=$(rows "$script")
    echo "$script: $first before the edit, $second after it"
    if [ "$first $second" != "$before $after" ]; then
        echo "changed: $before and $after were seen with datasets 5.2.0"
        exit 1
    fi
done
