#!/usr/bin/env bash
# transformers 5.19.0 (tokenizers 0.23.3) against transformers 4.57.6 (tokenizers 0.22.2, huggingface_hub 0.36.0).
#
# A folder holds a tokenizer.json, a tokenizer_config.json that names PreTrainedTokenizerFast (take the file as it
# is), and a config.json with model_type qwen2. AutoTokenizer of 4.57.6 gives the ids of tokenizer.json, as the
# tokenizers library does. 5.19.0 gives a Qwen2Tokenizer: it keeps the vocabulary and the merges of the file and
# puts Qwen2's own pre-tokenizer before them, without a warning. The text still decodes to itself, so no round trip
# shows it; but a model trained with the file's ids gets others at line breaks before an indentation and at numbers.
# With model_type llama 5.19.0 takes the file as it is.
#
# Seen for 'def f(x):\n    return 10':
#   tokenizers and 4.57.6          pieces '):', '\n   ', ' return', ' 10'
#   5.19.0 with model_type qwen2   pieces '):', '\n', '  ', ' ', ' return', ' ', '1', '0'; the same text after decode
#   5.19.0 with model_type llama   the file's ids
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 4.57.6 5.19.0; do
    python3 -m venv "$folder/$version"
done
"$folder/4.57.6/bin/pip" install --quiet transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.0
"$folder/5.19.0/bin/pip" install --quiet transformers==5.19.0 tokenizers==0.23.3
cd "$folder"

"$folder/4.57.6/bin/python" - <<'PY'
import json
import pathlib

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
code = ["def f(x):\n    return 10\n", "def g(y):\n    return 20\n"] * 20
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator(code, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
for model_type in ("qwen2", "llama"):
    folder = pathlib.Path(model_type)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
PY

cat >read.py <<'PY'
import sys

from tokenizers import Tokenizer
from transformers import AutoTokenizer

text = "def f(x):\n    return 10"
folder, expected = sys.argv[1:]
file_ids = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text).ids
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer(text)["input_ids"]
found = "the file's ids" if ids == file_ids else "other ids"
print(folder, type(tokenizer).__name__, [tokenizer.decode([token]) for token in ids], found)
if tokenizer.decode(ids) != text:
    sys.exit("changed: the text no longer decodes to itself")
if found != expected:
    sys.exit(f"changed: {expected} were seen")
PY
export HF_HUB_OFFLINE=1
"$folder/4.57.6/bin/python" read.py qwen2 "the file's ids"
"$folder/5.19.0/bin/python" read.py qwen2 "other ids"
"$folder/5.19.0/bin/python" read.py llama "the file's ids"
