#!/usr/bin/env bash
# codebleu 0.7.0 (tree-sitter 0.22.3, tree-sitter-python 0.21.0), calc_codebleu with the weights it has by default.
#
# CodeBLEU is the mean of four scores: words, weighted words, syntax, data flow. The last enters the sum as "score
# or 1", so that a data flow of exactly 0 counts as full marks. An answer which scores 0 four times, be it empty or
# "I cannot help with that.", gets 0.25. A right solution that is written in another way than the reference has a
# data flow a little above 0 and loses that gift: sum(items) for a loop gets 0.09. Of two answers, the one that
# shares less with the reference may win, and where answers are scored one by one a refusal raises the mean. There
# is a warning where the reference has no data flow, none here, where it has one. The dictionary that is returned
# shows the 0: the mean of its own four scores is another number than its "codebleu".
#
# Seen, "codebleu" and the mean of the four, for a function that sums a list by a loop: empty 0.25 and 0.0; a
# refusal 0.25 and 0.0; "pass" as the body 0.279 and 0.029; the half of the loop's function 0.174 and 0.174; return
# sum(items) 0.087 and 0.087; the reference itself 1.0 and 1.0.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install -q codebleu==0.7.0 tree-sitter==0.22.3 tree-sitter-python==0.21.0

"$folder/bin/python" - <<'PY'
import sys

from codebleu import calc_codebleu

reference = """def f(items):
    total = 0
    for item in items:
        total = total + item
    return total
"""
seen = {
    "": (0.25, 0.0),
    "I cannot help with that.": (0.25, 0.0),
    "def f(items):\n    pass\n": (0.279, 0.029),
    "def f(items):\n    total = 0\n": (0.174, 0.174),
    "def f(items):\n    return sum(items)\n": (0.087, 0.087),
    reference: (1.0, 1.0),
}
for answer, expected in seen.items():
    scores = calc_codebleu([reference], [answer], "python")
    total = scores.pop("codebleu")
    now = round(total, 3), round(sum(scores.values()) / 4, 3)
    print(repr(answer), *now)
    if now != expected:
        sys.exit(f"changed: {expected} were seen with codebleu 0.7.0")
PY
