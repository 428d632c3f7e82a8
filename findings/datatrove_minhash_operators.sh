#!/usr/bin/env bash
# datatrove 0.10.1, utils/text.py: simplify_text with TextNormConfig as it is by default, which is what MinhashConfig
# normalizes a document with before it is cut into n-grams.
#
# The defaults suit web pages. On source code they take away all operators and brackets (they are punctuation), the
# case, the indentation and every number (a run of digits becomes one 0). Two functions that compute different
# things become the same text, so that the deduplication of a code corpus with the defaults holds a function, its
# counterpart and each variant with other constants for copies. With all five switches off the texts stay apart.
#
# Seen: 'return a + b' and 'return a - b' -> 'return a b'; 'if x <= LIMIT[0]:' and 'if x > limit(99):' ->
# 'if x limit 0'; a function of six lines and its inverse -> one text.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
# What the module reads at its import; the package's other requirements are not needed for it.
"$folder/bin/pip" install --quiet --no-deps datatrove==0.10.1 huggingface_hub==0.36.0 regex==2026.11.19 \
    loguru==0.7.3 numpy==2.3.5

"$folder/bin/python" - <<'PY'
import dataclasses
import sys

from datatrove.utils.text import TextNormConfig, simplify_text

encode = """
def shift(text, key=3):
    moved = []
    for letter in text:
        code = ord(letter) + key
        moved.append(chr(code % 1114112))
    return "".join(moved)
"""
pairs = [
    ("return a + b", "return a - b"),
    ("if x <= LIMIT[0]:", "if x > limit(99):"),
    (encode, encode.replace("+ key", "- key").replace("key=3", "key=13")),
]
plain = TextNormConfig(**{switch.name: False for switch in dataclasses.fields(TextNormConfig)})
for pair in pairs:
    first, second = (simplify_text(text) for text in pair)
    print(repr(first), repr(second))
    if first != second:
        sys.exit("changed: datatrove's default normalization tells these two apart, 0.10.1 did not")
    if simplify_text(pair[0], plain) == simplify_text(pair[1], plain):
        sys.exit("changed: without its switches the normalization no longer tells these two apart")
if simplify_text("return a + b") != "return a b":
    sys.exit("changed: datatrove's normal form of 'return a + b' was 'return a b'")
PY
