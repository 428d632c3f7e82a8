#!/usr/bin/env bash
# TRL 1.16.0, data_utils.py: is_conversational.
#
# A preference row of a widespread shape holds the prompt as a text, and chosen, rejected and messages as lists of
# messages. Whether TRL calls such a row conversational is read off one column, and that one is popped from a set of
# names: the order of a set of strings differs from process to process, so the same row is conversational in one run
# and plain text in the next. PYTHONHASHSEED alone decides, and no seed of the training sets it.
#
# Seen: over the hash seeds 0 to 39 both True and False for the same row; always True without the prompt.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-deps --no-compile --target "$folder" trl==1.16.0

cat >"$folder/ask.py" <<'PY'
import ast
import pathlib
from typing import Any

# The module imports datasets and transformers, which this function does not use, so only the function is taken.
path = pathlib.Path(__file__).parent / "trl/data_utils.py"
function = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "is_conversational"]
names = {"Any": Any}
exec(compile(ast.Module(function, []), str(path), "exec"), names)

question, answer = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}
lists = {"chosen": [question, answer], "rejected": [question, answer], "messages": [question, answer]}
mixed = {"prompt": "1 + 1?", **lists}
print(names["is_conversational"](mixed), names["is_conversational"](lists))
PY

answers=$(for seed in {0..39}; do PYTHONHASHSEED=$seed python3 "$folder/ask.py"; done | sort | uniq -c)
echo "times, with the prompt, without it:"
echo "$answers"
if [ "$(awk '{ print $2, $3 }' <<<"$answers")" != $'False True\nTrue True' ]; then
    echo "changed: the mixed row was True under some hash seeds and False under others"
    exit 1
fi
