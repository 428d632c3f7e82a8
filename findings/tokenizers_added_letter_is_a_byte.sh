#!/usr/bin/env bash
# tokenizers 0.23.3, a byte-level BPE (the kind of GPT-2, Llama 3, Qwen, StarCoder).
#
# A byte-level vocabulary writes each byte as a printable character: the byte A7 is the entry "§", the byte E9 the
# entry "é". Whoever adds "§" as a separator gets no new id, though add_special_tokens answers that it added 1: it
# makes the byte A7 special. The separator is then the same id as the last byte of "ç" (C3 A7), and a decode that
# skips special tokens, as servers do, takes the letter's half away. "é" as an ordinary added token decodes to a
# broken character, as its id is the lone byte E9. A separator outside that alphabet ("❖") has none of this.
#
# Seen: add_special_tokens(["§"]): 1, vocabulary 256, 'ça va' -> '\ufffda va'; add_tokens(["é"]): 1, vocabulary 256,
# 'été' -> '\ufffdt\ufffd'; add_special_tokens(["❖"]): 1, vocabulary 257, 'ça va' -> 'ça va'.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-deps --no-compile --target "$folder" tokenizers==0.23.3

PYTHONPATH="$folder" python3 - <<'PY'
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def byte_level():
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


cases = [
    ("add_special_tokens", "§", "ça va", 256, "\ufffda va"),
    ("add_tokens", "é", "été", 256, "\ufffdt\ufffd"),
    ("add_special_tokens", "❖", "ça va", 257, "ça va"),
]
for add, token, text, size_seen, decoded_seen in cases:
    tokenizer = byte_level()
    if tokenizer.decode(tokenizer.encode(text).ids) != text:
        sys.exit("changed: the byte-level vocabulary alone no longer gives the text back")
    added = getattr(tokenizer, add)([token])
    size = tokenizer.get_vocab_size()
    decoded = tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=True)
    print(f"{add}([{token!r}]): {added}, vocabulary {size}, {text!r} -> {decoded!r}")
    if (added, size, decoded) != (1, size_seen, decoded_seen):
        sys.exit(f"changed: 1, {size_seen} and {decoded_seen!r} were seen with tokenizers 0.23.3")
PY
