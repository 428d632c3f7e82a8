"""The worked forks of docs/forks: each still applies, changes few lines, and does what it says."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import train
from parts.rows import read_rows

pytestmark = pytest.mark.usefixtures("few_tasks")
FORKS = sorted((ROOT / "docs" / "forks").glob("*.diff"))


def forked(name: str, tmp_path):
    """A copy of the project with the diff applied."""
    copy = tmp_path / "project"
    left_out = shutil.ignore_patterns(
        ".git", ".venv", "models", "runs", "__pycache__", ".pytest_cache", ".ruff_cache"
    )
    shutil.copytree(ROOT, copy, ignore=left_out)
    subprocess.run(["git", "apply", copy / "docs" / "forks" / f"{name}.diff"], cwd=copy, check=True)
    return copy


def run(copy, code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("path", FORKS, ids=lambda path: path.stem)
def test_a_fork_is_small_and_leaves_extras_alone(path):
    file, changed = "", 0
    for line in path.read_text().splitlines():
        if line.startswith("+++ "):
            file = line.removeprefix("+++ b/")
        elif line[:1] in "+-" and not line.startswith("---"):
            changed += not file.startswith("prompts/")
            assert not file.startswith("extras/")
    assert 0 < changed <= {"lora": 30}.get(path.stem, 15)


def test_a_new_filter_gives_its_reason(tmp_path):
    sentence = "The sum is the sum. "
    code = f"""
import selfcodealign as s
text = {sentence * 9!r} + "\\n```python\\nx = 1\\n```\\n</response>\\n\\n<tests>\\n```python\\nassert x\\n```\\n"
for sample in (text, text[20 * 8 :]):
    print(s.parse_response(sample, {{}}, {{}}, s.argparse.Namespace(layout="tags")).get("reject"))
"""
    assert run(forked("filter", tmp_path), code).split() == ["repeats_itself", "None"]


def test_methods_of_classes_become_seeds(tmp_path):
    source = 'class A:\n    def double(self, x):\n        """Twice x."""\n        return 2 * x\n'
    code = f"import json\nfrom parts.seeds import functions\nprint(json.dumps(functions('a.py', {source!r})))"
    [row] = json.loads(run(forked("methods", tmp_path), code))
    assert row["name"] == "double" and row["code"].startswith("def double") and "reject" not in row


def test_adapters_are_learned_and_merged_into_an_ordinary_checkpoint(model, tmp_path):
    copy, base = forked("lora", tmp_path), load_file(Path(model, "model.safetensors"))
    rows = [{"instruction": f"Give {n}.", "response": f"def f():\n    return {n}"} for n in range(8)]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = f"--model {model} --data {tmp_path}/sft.jsonl --out {tmp_path}/model --precision fp32".split()
    command = [sys.executable, "train.py", *options, "--epochs", "10", "--batch-size", "8", "--lr", "1e-2"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [json.loads(row)["loss"] for row in (tmp_path / "model" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]
    learned = load_file(tmp_path / "model" / "model.safetensors")
    assert learned.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], learned[name])}
    assert changed == {name for name in base if "_proj" in name}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    examples = [train.encode_example(tokenizer, row["instruction"], row["response"]) for row in rows]
    ids, labels = zip(*((ids, [-100] * length + ids[length:]) for ids, length in examples))
    with torch.no_grad():
        each = [
            merged(input_ids=torch.tensor([i]), labels=torch.tensor([t])).loss for i, t in zip(ids, labels)
        ]
    assert sum(each) / len(each) < 1.02 * losses[-1]  # of the weights before the last step


def test_a_new_stage_between_two_others_is_counted_traced_and_selected(model, tmp_path):
    """Its rows are planted, as are those before it; what follows runs as always."""
    code = f"""
import selfcodealign as s
from extras import report, trace
from pathlib import Path
from parts.rows import replacing
run = s.open_run(Path("run"), dict(model={model!r}, samples=1, max_tokens=32, judge=0.0), {{}})
ids = dict(seed_id="s")
code = "```python\\ndef f(x):\\n    return x + {{}}\\n```"
rows = dict(
    seeds=[dict(id="s", where="m.py:1", code="def g(x): ...")],
    concepts=[dict(id="c", seed_id="s", concepts=["sums"])],
    instructions=[dict(id="i", **ids, concepts_id="c", instruction="Add one to a number.", category="function", difficulty="easy")],
    responses=[dict(id="r", **ids, concepts_id="c", instruction_id="i", sample=0, response=code.format(2), tests="```python\\nassert f(1) == 2\\n```")],
)
for stage, lines in rows.items():
    with replacing(run.path(stage)) as write:
        for line in lines:
            write(line)
prompt = run.stages["critiques"].prompt([], dict(), rows["responses"][0], run.settings)
assert "return x + 2" in prompt and prompt.endswith("<response>\\n")
with replacing(run.path("critiques")) as write:
    write(dict(id="q", **s.origin(rows["responses"][0], "response_id"), sample=0, response=code.format(1), tests="```python\\nassert f(1) == 2\\n```"))
s.run_stages(run, ["executions", "selection"])
[example] = s.read_rows(run.path("sft"))
trace.trace(run.folder, example["id"])
print(report.table(s.funnel(run.folder)))
"""
    copy = forked("critique", tmp_path)
    printed = run(copy, code)
    assert "CRITIQUES q" in printed and "RESPONSES r" in printed and "SEEDS s: m.py:1" in printed
    assert "instructions by number of passing samples: 1: 1" in printed
    [example] = read_rows(copy / "run" / "sft.jsonl")
    assert "x + 1" in example["response"] and example["seed_id"] == "s" and example["instruction_id"] == "i"
