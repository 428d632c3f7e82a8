#!/usr/bin/env bash
# radon 6.0.1, metrics.mi_visit: the maintainability index, from 0 to 100, a mark to filter code data by.
#
# The index falls with the length, the branches and Halstead's volume. radon counts as operators only arithmetic,
# "and", "or", "not", comparisons and assignments such as +=; a call, an index, an attribute and = are none. A file
# without any of these has the volume 0, whose logarithm does not exist, and such a file is given 100: the best
# mark, whatever its length and its branches. A file of calls alone, of if and call, or of plain data thus passes
# as the best of a corpus. One harmless "+ 1" at the end takes the mark from 100 to 21. The complexity
# that radon itself reports for the same function, 151, is not looked at.
#
# Seen: 150 branches in 301 lines without an operator: index 100.0, complexity 151; the same with "return n + 1" as
# the last line: 20.8; "def f(x): return x + 1" on two lines: 88.6.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install -q radon==6.0.1 mando==0.7.1 colorama==0.4.6

"$folder/bin/python" - <<'PY'
import sys

from radon.complexity import cc_visit
from radon.metrics import mi_visit

branches = "def handle(event, n):\n" + "".join(
    f'    if event.has("{name}"):\n        event.send({name})\n' for name in range(150)
)
seen = {
    "150 branches": (branches, 100.0, 151),
    "150 branches and a sum": (branches + "    return n + 1\n", 20.8, 151),
    "a sum": ("def f(x):\n    return x + 1\n", 88.6, 1),
}
for name, (code, index, complexity) in seen.items():
    now = round(mi_visit(code, multi=True), 1), cc_visit(code)[0].complexity
    print(f"{name}: lines {code.count(chr(10))}, index {now[0]}, complexity {now[1]}")
    if now != (index, complexity):
        sys.exit(f"changed: index {index} and complexity {complexity} were seen with radon 6.0.1")
PY
