#!/usr/bin/env bash
# lm_eval 0.4.13: the filters of gsm8k_cot_self_consistency (maj@8), read from the task's own file and run in its order.
#
# The answer is taken out of each sample by a regular expression, then the most frequent one of a problem is voted for.
# A sample without an answer is not left out: it becomes the text "[invalid]", and that text votes too. Three samples
# that were cut off before their answer outvote two right ones among eight, and the problem counts as failed. The vote
# is on the text as it was written: 1,000 and 1000 are two answers, though the metric that follows ignores the comma.
#
# Seen: two of 42, one each of 1, 2 and 3, three without an answer -> '[invalid]'; three of 7, two of 1,000, two of
# 1000 and one of 2 -> '7'; the same with all four written 1000 -> '1000'.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-deps --no-compile --target "$folder" lm_eval==0.4.13 pyyaml==6.0.4

PYTHONPATH="$folder" python3 - "$folder/lm_eval/tasks/gsm8k/gsm8k-cot-self-consistency.yaml" <<'PY'
import pathlib
import sys

import yaml
from lm_eval.filters import extraction, selection

kinds = {
    "take_first_k": selection.TakeKFilter,
    "regex": extraction.RegexFilter,
    "majority_vote": selection.MajorityVoteFilter,
    "take_first": selection.TakeFirstFilter,
}
task = yaml.safe_load(pathlib.Path(sys.argv[1]).read_text())
[steps] = [filters["filter"] for filters in task["filter_list"] if filters["name"] == "maj@8"]


def voted(answers):
    samples = [f"So it is. The answer is {answer}." if answer else "First, we count" for answer in answers]
    results = [samples]
    for step in steps:
        options = {name: value for name, value in step.items() if name != "function"}
        results = list(kinds[step["function"]](**options).apply(results, [{}]))
    return results[0]


cases = [
    (["42", None, "1", None, "42", None, "2", "3"], "[invalid]"),
    (["7", "1,000", "7", "1000", "7", "1,000", "2", "1000"], "7"),
    (["7", "1000", "7", "1000", "7", "1000", "2", "1000"], "1000"),
]
for answers, seen in cases:
    answer = voted(answers)
    print(answers, "->", repr(answer))
    if answer != seen:
        sys.exit(f"changed: {seen!r} was seen with lm_eval 0.4.13")
PY
