#!/usr/bin/env bash
# tiktoken 0.14.0 against tokenizers 0.23.3, both with a vocabulary of the 256 bytes and one pattern of words.
#
# A pattern splits the text into pieces before the merges. Text that the pattern does not match is a piece of its own
# for tokenizers' Split (isolated). tiktoken only takes what matches and drops the rest, with no message, although
# the vocabulary could write every byte. A pattern that is carried from a tokenizer.json to tiktoken without an
# alternative for the rest (here: operators and blanks) loses that text at training time: a sum turns into a name.
# With the alternative "|." in the pattern's end and (?s) before it both give the whole text.
#
# Seen for 'x_1 = a+b\n': tiktoken decodes to 'x1ab', tokenizers to the whole text; both to the whole text with the
# complete pattern.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Neither package's other requirements (a client of a hub, of the web) are needed offline, but for tiktoken's regex.
python3 -m pip install --quiet --no-deps --no-compile --target "$folder" \
    tiktoken==0.14.0 regex==2026.11.19 tokenizers==0.23.3

PYTHONPATH="$folder" python3 - <<'PY'
import sys

import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

text = "x_1 = a+b\n"
gap = r"\p{L}+|\p{N}+"
for pattern, seen in ((gap, "x1ab"), (rf"(?s){gap}|.", text)):
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    by_tiktoken = encoding.decode(encoding.encode(text))

    letters = {letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(letters, []))
    split = pre_tokenizers.Split(Regex(pattern.replace("(?s)", "(?m)")), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    by_tokenizers = tokenizer.decode(tokenizer.encode(text).ids)

    print(pattern, repr(by_tiktoken), repr(by_tokenizers))
    if (by_tiktoken, by_tokenizers) != (seen, text):
        sys.exit(f"changed: {seen!r} by tiktoken and the whole text by tokenizers were seen")
PY
