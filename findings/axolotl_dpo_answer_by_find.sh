#!/usr/bin/env bash
# axolotl 0.19.0, prompt_strategies/dpo/chat_template.py with its template llama3 (Jinja2 3.1.6).
#
# The chosen text of a preference row is rendered as a chat of two messages, and then everything before the answer is
# cut off: the answer is looked for with str.find in the whole rendered text, and the result is not looked at.
# The template trims the content of a message. An answer that begins with an indentation or ends in a line break, as
# a completion of code does, is hence not in the rendered text: find says -1, and the chosen text becomes the last
# character, the ">" of <|eot_id|>. An answer of one letter such as "a" is found in the markers before it, and the
# whole chat is trained as the answer.
#
# Seen: 'return a + b' -> 'return a + b<|eot_id|>'; '    return a + b' -> '>'; 'return a + b\n' -> '>';
# 'a' -> 'art_header_id|>user<|end_header_id|>\n\n[[dummy_message]]<|eot_id|> ... \n\na<|eot_id|>'.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-deps --no-compile --target "$folder" \
    axolotl==0.19.0 jinja2==3.1.6 markupsafe==3.0.4

PYTHONPATH="$folder" python3 - "$folder/axolotl" <<'PY'
import ast
import pathlib
import sys

import jinja2.sandbox

# The module's imports lead to torch, so only its function is taken; the three helpers it calls choose the template
# and rename old columns, for which there is nothing to do here.
package = pathlib.Path(sys.argv[1])
path = package / "prompt_strategies/dpo/chat_template.py"
function = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "default"]
template = (package / "utils/chat_templates/templates/llama3.jinja").read_text()
names = {
    "extract_chat_template_args": lambda cfg, ds_cfg: ("llama3", None),
    "get_chat_template": lambda **_: template,
    "handle_legacy_message_fields_logic": lambda ds_cfg: ds_cfg,
}
exec(compile(ast.Module(function, []), str(path), "exec"), names)


class Tokenizer:
    def apply_chat_template(self, messages, add_generation_prompt, chat_template, tokenize):
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        chat = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        return environment.from_string(chat_template).render(bos_token="<|begin_of_text|>", **chat)


transform, _ = names["default"]({"datasets": [{}]})
whole_chat = (
    "art_header_id|>user<|end_header_id|>\n\n[[dummy_message]]<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
)
seen = {
    "return a + b": "return a + b<|eot_id|>",
    "    return a + b": ">",
    "return a + b\n": ">",
    "a": whole_chat,
}
for answer, expected in seen.items():
    row = {
        "messages": [{"role": "user", "content": "Add a and b."}],
        "chosen": {"role": "assistant", "content": answer},
        "rejected": {"role": "assistant", "content": "pass"},
    }
    chosen = transform(row, tokenizer=Tokenizer())["chosen"]
    print(repr(answer), "->", repr(chosen))
    if chosen != expected:
        sys.exit(f"changed: {expected!r} was seen with axolotl 0.19.0")
PY
