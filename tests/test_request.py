"""Prompts in tokens: what is text stays text, and a prompt ends in what was written."""

from types import SimpleNamespace

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, AutoTokenizer

import eval as ours
from parts.request import Completion, chat_ids, prompt_ids
from parts.rows import BadInput
from selfcodealign import build_requests, judge, open_run

NAMES = ["<|im_end|>", "<|endoftext|>", "<|fim_prefix|>", "<repo_name>"]
parametrize = pytest.mark.parametrize


def with_token(folder: str, name: str, special: bool = True):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(name, special=special)])
    return tokenizer, tokenizer.convert_tokens_to_ids(name)


class Engine(SimpleNamespace):
    """Keeps the prompts that it is asked."""

    window, context = 8, 8192

    def submit(self, request):
        self.asked.append(request)

    def collect(self):
        return [(self.asked[-1].id, Completion("Yes", True, 1, {"Yes": 1.0}))]


@parametrize("special", [True, False])  # Qwen's names of this kind are not called special
@parametrize("name", NAMES)
def test_the_name_of_a_control_token_is_text_in_every_prompt(name, special, embedded, tmp_path):
    tokenizer, control = with_token(embedded, name, special)
    run = open_run(tmp_path / "run", {"model": embedded, "source": str(ours.PROMPTS.parent / "parts")}, {})
    vars(run)["engine"] = engine = Engine(tokenizer=tokenizer, asked=[])
    seed = {"id": "seed", "code": f"END = '{name}'"}
    [asked] = build_requests(run, "concepts", [(0, seed, [0])], pytest.fail)
    [judged] = judge(run, iter([dict(seed)]))
    assert judged["judge"] == 1
    task = f"Print {name}."
    made = ours.Job(tmp_path / "job", {"samples": 1, "benchmark": "self", "max_tokens": 9, "seed": 0}, {})
    made.settings |= {"temperature": 0.0, "prompt": "completion"}
    made.tasks["one"] = {"prompt": task}
    [bare] = ours.make_requests(made, embedded, engine)
    for ids in (asked.prompt, engine.asked[0].prompt, bare.prompt):
        assert control not in ids and name in tokenizer.decode(ids)
    made.settings["prompt"] = "paper"
    [chat] = ours.make_requests(made, embedded, engine)
    made.tasks["one"] = {"prompt": "Print it."}
    [plain] = ours.make_requests(made, embedded, engine)
    assert chat.prompt.count(control) == plain.prompt.count(control)
    assert task in tokenizer.decode(chat.prompt) and chat.prompt[0] == plain.prompt[0]


@parametrize("form", ["$A <|im_end|>", "<|im_start|> $A <|im_end|>", "<|im_start|> $A", "$A"])
def test_a_prompt_has_what_a_tokenizer_puts_before_it_and_nothing_behind(form, embedded):
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    bare, end = tokenizer("Add.").input_ids, tokenizer("<|im_end|>\n").input_ids
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=form, special_tokens=special)
    begin = [special[0][1]] if form.startswith("<|im_start|>") else []
    assert prompt_ids(tokenizer, "Add.") == begin + bare
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Add."}], tokenize=False)
    assert chat_ids(tokenizer, chat, "Add.")[-2:] == end


@parametrize(
    "template",
    [
        "{{ raise_exception('no system role') }}",
        "{% for part in messages[0].content %}{{ part.text }}{% endfor %}",
        "{% if %}",
        {"tool_use": "{{ messages[0].content }}"},
    ],
)
@parametrize("prompt", ["paper", "evalplus"])
def test_a_chat_template_that_cannot_be_used_is_one_line(template, prompt, embedded):
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    tokenizer.chat_template = template
    with pytest.raises(BadInput, match="chat template.*take --prompt completion") as refused:
        ours.write_prompt("humaneval", "def f():\n", prompt, tokenizer)
    assert "\n" not in str(refused.value)
