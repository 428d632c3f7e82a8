#!/usr/bin/env bash
# minijinja 3.1.0 (Python's door to the engine of servers written in Rust) against Jinja2 3.1.6 in the environment
# chat templates get (an immutable sandbox, trim_blocks and lstrip_blocks on).
#
# One chat template, two prompts. A JSON schema of a tool says the type of a list's elements under "items".
# {{ field.items.type }} reads that key in minijinja; in Jinja2 the dot finds the dictionary's method first, which has
# no "type", and an undefined value renders as nothing: the model is never told the type. field["items"]["type"] is
# the same in both. A float of 16 zeros is 1e+16 in one and 10000000000000000.0 in the other. The filter tojson
# sorts the keys in Jinja2 and writes \u00e9, where minijinja keeps their order and the letter é; both write the
# sign < of a code as \u003c. (transformers 4.57.6 brings a third tojson of its own, which keeps all of them.)
#
# Seen (Jinja2, then minijinja): '' and 'string'; {"a": "\u00e9", "b": "x \u003c 1"} and
# {"b": "x \u003c 1", "a": "é"}; 1e+16 and 10000000000000000.0; 'string' and 'string'.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-deps --no-compile --target "$folder" \
    minijinja==3.1.0 jinja2==3.1.6 markupsafe==3.0.4

PYTHONPATH="$folder" python3 - <<'PY'
import sys

import jinja2.sandbox
import minijinja

schema = {"type": "array", "items": {"type": "string"}}
cases = [
    ("{{ x.items.type }}", schema, "", "string"),
    (
        "{{ x | tojson }}",
        {"b": "x < 1", "a": "é"},
        '{"a": "\\u00e9", "b": "x \\u003c 1"}',
        '{"b": "x \\u003c 1", "a": "é"}',
    ),
    ("{{ x }}", 1e16, "1e+16", "10000000000000000.0"),
    ('{{ x["items"]["type"] }}', schema, "string", "string"),
]
python = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
for template, value, python_seen, rust_seen in cases:
    rust = minijinja.Environment(templates={"chat": template}, trim_blocks=True, lstrip_blocks=True)
    now = python.from_string(template).render(x=value), rust.render_template("chat", x=value)
    print(template, *map(repr, now))
    if now != (python_seen, rust_seen):
        sys.exit(f"changed: {python_seen!r} and {rust_seen!r} were seen")
PY
