#!/usr/bin/env bash
# tiktoken 0.14.0 against tokenizers 0.23.3, both with a vocabulary of the 256 bytes and the same special tokens.
#
# One special token may be the beginning of another: <|im_start|> and <|im_start|>tool, or a line break and a line
# break with an indentation. tokenizers takes the longest that fits. tiktoken joins the special tokens to one
# regular expression of alternatives in the order of its hash table, and the first that fits wins: not the longest,
# not the lowest id, and where two names share a place in the table, the order of the dictionary. So of seven
# tokens made alike some are found and the others never, and the ids of those are never trained. Both encodings
# decode to the text, so that no round trip shows it.
#
# Seen, each role with <|im_start|> beside it: user, system one token in both; tool, developer one token for
# tokenizers, <|im_start|> and the letters for tiktoken; assistant one or the other by which of the two names comes
# first in the dictionary. The same for a line break with 4 blanks (found) and with 8 (never found).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
# Neither package's other requirements (a client of a hub, of the web) are needed offline, but for tiktoken's regex.
"$folder/bin/pip" install -q --no-deps tiktoken==0.14.0 regex==2026.11.19 tokenizers==0.23.3

"$folder/bin/python" - <<'PY'
import sys

import tiktoken
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def by_tiktoken(special, text):
    ranks = {bytes([byte]): byte for byte in range(256)}
    numbers = {token: 256 + number for number, token in enumerate(special)}
    encoding = tiktoken.Encoding("bytes", pat_str=r"(?s).", mergeable_ranks=ranks, special_tokens=numbers)
    ids = encoding.encode(text, allowed_special="all")
    if encoding.decode(ids) != text:
        sys.exit("changed: tiktoken no longer gives the text back")
    return len(ids)


def by_tokenizers(special, text):
    letters = {letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return len(tokenizer.encode(text).ids)


cases = [("<|im_start|>", role) for role in ("user", "system", "tool", "developer", "assistant")]
cases += [("\n", " " * 4), ("\n", " " * 8)]
# How many tokens the long one becomes: tiktoken in both orders of the dictionary, then tokenizers in both.
seen = [(1, 1, 1, 1), (1, 1, 1, 1), (5, 5, 1, 1), (10, 10, 1, 1), (10, 1, 1, 1), (1, 1, 1, 1), (9, 9, 1, 1)]
for (short, rest), expected in zip(cases, seen, strict=True):
    orders = [short, short + rest], [short + rest, short]
    now = tuple(encode(names, short + rest) for encode in (by_tiktoken, by_tokenizers) for names in orders)
    print(repr(short + rest), *now)
    if now != expected:
        sys.exit(f"changed: {expected} tokens were seen with tiktoken 0.14.0 and tokenizers 0.23.3")
PY
