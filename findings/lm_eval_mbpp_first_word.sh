#!/usr/bin/env bash
# lm_eval 0.4.13, tasks/mbpp/utils.py (mbpp_instruct, mbpp_plus_instruct).
#
# The prompt of mbpp_instruct ends in "```python" and a line break, so a completion begins with its first line of
# code. The filter puts three backticks before the completion and takes the word that follows them for the name of
# a language. That word is the code's own first word: "def" or "import" is cut off, and the program that is scored
# is no Python any more. A completion which repeats the fence, as a chat model behind a server that
# knows no prefill does, becomes the empty program, and so does one which stops before a closing fence. A
# completion comes through whole when it begins with a line break or with a comment. (lm-evaluation-harness issue
# 3447 reports the scores of 0 that follow.)
#
# Seen:
#   'def f(x):...```'              -> ' f(x):\n    return x + 1'         not Python
#   'import math...```'            -> ' math\n\n\ndef f(x): ...'         not Python
#   '```python\ndef f(x):...```'   -> ''
#   'def f(x):...' without a fence -> ''
#   '\ndef f(x):...```'            -> 'def f(x):\n    return x + 1'      whole
#   '# doc\ndef f(x):...```'       -> '# doc\ndef f(x): ...'             whole
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-deps --target "$folder" lm_eval==0.4.13

python3 - "$folder" <<'PY'
import ast
import pathlib
import re
import sys

# The module asks a hub for a metric when it is imported, so only its filter is taken.
path = pathlib.Path(sys.argv[1], "lm_eval/tasks/mbpp/utils.py")
function = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "extract_code_blocks"]
names = {"re": re}
exec(compile(ast.Module(function, []), str(path), "exec"), names)

code = "def f(x):\n    return x + 1"
seen = {
    f"{code}\n```": code.removeprefix("def"),
    f"import math\n\n\n{code}\n```": f" math\n\n\n{code}",
    f"```python\n{code}\n```": "",
    code: "",
    f"\n{code}\n```": code,
    f"# doc\n{code}\n```": f"# doc\n{code}",
}
now = {completion: names["extract_code_blocks"](completion) for completion in seen}
for completion, program in now.items():
    print(f"{completion!r} -> {program!r}")
if now != seen:
    sys.exit("changed: the filter of lm_eval's MBPP gives other programs than were seen with 0.4.13")
PY
