#!/usr/bin/env bash
# mistral-common 1.13.1: encode_chat_completion with two of the tokenizers that the package itself brings, Tekken
# of version 3 and SentencePiece of version 7.
#
# The content of a tool message is a text, and for the tokenizers up to version 3 it is first tried as JSON. A text
# that happens to be a number is read as one and written anew: the tool said 3.10, the model is told 3.1, which is
# another version of Python. A short commit id of digits with one "e" is a float, 7e12345 even Infinity. Of two
# equal keys in a JSON text the first is gone. A text that is no JSON (007) comes through as it was, and the
# tokenizer of version 7 gives every text as it is. So traces of an agent that are right on the disk are trained
# with other tool results, and only in some of the rows.
#
# Seen, version 3 and version 7: 3.10 -> 3.1 and 3.10; 7e12345 -> Infinity and 7e12345; 1234e12 ->
# 1234000000000000.0 and 1234e12; {"a": 1, "a": 2} -> {"a": 2} and both keys; 007 -> "007" and 007; of 2000 random
# commit ids of seven letters, version 3 gives 41 as a float.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install -q mistral-common==1.13.1 sentencepiece==0.2.3 tiktoken==0.14.0 numpy==2.3.5

"$folder/bin/python" - <<'PY'
import pathlib
import random
import re
import sys

import mistral_common
from mistral_common.protocol.instruct import messages, request, tool_calls
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

data = pathlib.Path(mistral_common.__file__).parent / "data"
version3 = MistralTokenizer.from_file(str(data / "tekken_240911.json"))
version7 = MistralTokenizer.from_file(str(data / "mistral_instruct_tokenizer_241114.model.v7"))


def prompted(tokenizer, result):
    call = tool_calls.ToolCall(id="123456789", function=tool_calls.FunctionCall(name="shell", arguments="{}"))
    chat = [
        messages.UserMessage(content="Which version?"),
        messages.AssistantMessage(tool_calls=[call]),
        messages.ToolMessage(content=result, tool_call_id="123456789", name="shell"),
    ]
    text = tokenizer.encode_chat_completion(request.ChatCompletionRequest(messages=chat)).text
    text = text.replace("▁", " ")
    found = re.search(r'\{"content": (.*), "call_id"|\[TOOL_CONTENT\] ?(.*)\[/TOOL', text)
    return found[1] or found[2]


seen = {
    "3.10": "3.1",
    "7e12345": "Infinity",
    "1234e12": "1234000000000000.0",
    '{"a": 1, "a": 2}': '{"a": 2}',
    "007": '"007"',
}
for result, expected in seen.items():
    now = prompted(version3, result), prompted(version7, result)
    print(result, "->", *now)
    if now != (expected, result):
        sys.exit(f"changed: {expected} and {result} were seen with mistral-common 1.13.1")
ids = ["".join(random.Random(seed).choices("0123456789abcdef", k=7)) for seed in range(2000)]
floats = [commit for commit in ids if prompted(version3, commit) not in (commit, f'"{commit}"')]
print(len(floats), "of 2000 commit ids, such as", *floats[:5])
if len(floats) != 41:
    sys.exit("changed: 41 of 2000 commit ids became a float")
PY
