#!/usr/bin/env bash
# sentencepiece 0.2.3, trained for code: no normalization (identity), blanks kept, no dummy prefix, byte fallback.
#
# With these settings every text should come back: a letter that the training never saw is written as its bytes. One
# character does not: U+2581, the sign that SentencePiece writes a blank as, is read as a blank in the input too, and
# there is no escape. It is the first step of the bars in progress lines and sparklines, so that
# BARS = "▁▂▃▄▅▆▇█" comes back with a blank in front and one level of the plot is gone; the length stays the same.
#
# Seen: 'BARS = "▁▂▃▄▅▆▇█"' -> 'BARS = " ▂▃▄▅▆▇█"'; the same line from ▂ on, line breaks, tabs, a NUL and
# 'x²' come back as they were.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-deps --no-compile --target "$folder" sentencepiece==0.2.3

PYTHONPATH="$folder" python3 - <<'PY'
import io
import sys

import sentencepiece

code = ["def f(x):", "    return x + 1", "if a == b:", "for i in range(10):", "print('x')"] * 20
model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(code),
    model_writer=model,
    model_type="bpe",
    vocab_size=320,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
    minloglevel=2,
)
processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
seen = {
    'BARS = "▁▂▃▄▅▆▇█"': 'BARS = " ▂▃▄▅▆▇█"',
    'BARS = "▂▃▄▅▆▇█"': 'BARS = "▂▃▄▅▆▇█"',
    "if a:\n\treturn  x²\r\n\x00": "if a:\n\treturn  x²\r\n\x00",
}
for text, expected in seen.items():
    decoded = processor.decode(processor.encode(text))
    print(f"{text!r} -> {decoded!r}")
    if decoded != expected:
        sys.exit(f"changed: {expected!r} was seen with sentencepiece 0.2.3")
PY
