"""What leaves a run folder is read by `datasets` as it is, and carries a card that the hub understands."""

import json
import os
import subprocess

import datasets
import pytest
from conftest import ROOT
from huggingface_hub import DatasetCard

from extras import outcomes
from extras.export import export
from parts.rows import BadInput

STAGES = {  # of a run's config.json
    "seeds": [None, None, False],
    "concepts": ["seeds", "seed_id", False],
    "instructions": ["concepts", "concepts_id", False],
    "responses": ["instructions", "instruction_id", True],
}
EXECUTED = {
    "executions": ["responses", "response_id", False],
    "selection": ["executions", "response_id", False],
}
NOT_EXECUTED = {"selection": ["responses", "response_id", False]}
IDS = {"instruction_id": "i", "response_id": "r"}
EXAMPLES = [
    {
        "id": f"x{n}",
        "instruction": f"Add {n} | *two* numbers.",
        "response": "Grüße\u2028\n```python\nx = 1\n```",
        "tests": "assert x == 1",
        "category": "function",
        "difficulty": "easy",
        "concepts": ["lists"] * (n % 3),
        "seed": "def f(x): ...",
        "seed_id": "s0",
        "shown": n % 2 == 0,
    }
    for n in range(2500)
]


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    config = {
        "model": "owner/model",
        "source": "stdlib",
        "stages": STAGES | EXECUTED,
        # Longer than a file name may be, as where no benchmark file can be had
        "decontamination": "substrings of humaneval+; mbpp+ NOT SEARCHED: offline" + " and no way there" * 20,
        "sandbox": {"network": "loopback only"},
        "versions": {"vllm": None, "torch": "2.13.0"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in EXAMPLES))
    (folder / "seeds.jsonl").write_text(
        '{"id": "s0", "where": "m.py:1", "code": "x"}\n{"id": "s1", "reject": "no_docstring"}\n'
    )
    return folder


def load(folder, tmp_path) -> list[dict]:
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache")).to_list()


def test_parquet_holds_every_column_of_every_example(run_folder, tmp_path):
    assert export(run_folder, tmp_path / "out", "parquet")["rows"] == 2500
    assert load(tmp_path / "out", tmp_path) == EXAMPLES


def test_a_list_that_is_empty_in_the_first_thousand_examples_keeps_its_type(run_folder, tmp_path):
    rows = [row | {"concepts": []} for row in EXAMPLES[:1000]] + EXAMPLES[1:2]
    (run_folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert export(run_folder, tmp_path / "out", "parquet")["rows"] == 1001
    assert load(tmp_path / "out", tmp_path)[-1]["concepts"] == ["lists"]


def test_messages_are_what_chat_trainers_take(run_folder, tmp_path, inside):
    made = inside(
        "selfcodealign.py",
        "export",
        "--out",
        run_folder,
        "--format",
        "messages",
        "--to",
        tmp_path / "deep" / "out",
        "--license",
        "apache-2.0",
    )
    assert made.returncode == 0 and made.stdout.startswith("2500 examples"), made.stderr
    for row, example in zip(load(tmp_path / "deep" / "out", tmp_path), EXAMPLES, strict=True):
        prompt = [{"role": "user", "content": example["instruction"]}]
        completion = [{"role": "assistant", "content": example["response"]}]
        # TRL learns the response only of the two parts, and all of `messages`
        assert row["prompt"] == prompt and row["completion"] == completion
        assert row["messages"] == prompt + completion and row["id"] == example["id"]
    assert DatasetCard.load(tmp_path / "deep" / "out" / "README.md").data.license == "apache-2.0"


@pytest.mark.parametrize("format", ["messages", "preference"])
def test_llama_factory_finds_its_form_of_the_rows(run_folder, tmp_path, monkeypatch, format):
    example = EXAMPLES[0] | IDS
    pair = outcomes.pair_of(example, {"id": "w", "response": "wrong", "outcome": "failed"})
    monkeypatch.setattr(outcomes, "preference_pairs", lambda *_: ([pair], {"examples": 1}))
    export(run_folder, tmp_path / "out", format)
    entry = json.loads((tmp_path / "out" / "dataset_info.json").read_text())["selfcodealign"]
    row = json.loads((tmp_path / "out" / entry["file_name"]).open().readline())
    turns = row[entry["columns"]["messages"]]
    if format == "preference":  # one message each, where TRL has lists
        turns += [row[entry["columns"][name]] for name in ("chosen", "rejected")]
        assert entry["ranking"] and row["rejected"] == [row["rejected_turn"]]
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    assert entry["formatting"] == "sharegpt" and entry["tags"] == tags
    assert {turn["role"] for turn in turns} == {"user", "assistant"}
    assert "LLaMA-Factory" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.skipif(not os.environ.get("SLOW"), reason="installs TRL and LLaMA-Factory: set SLOW=1")
def test_other_trainers_learn_the_tokens_that_train_py_learns(run_folder, tmp_path, model, monkeypatch):
    (run_folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in EXAMPLES[:20]))
    export(run_folder, tmp_path / "messages", "messages")
    pairs = [
        outcomes.pair_of(row | IDS, {"id": "w", "response": "Wrong.", "outcome": "failed"})
        for row in EXAMPLES[:20]
    ]
    monkeypatch.setattr(outcomes, "preference_pairs", lambda *_: (pairs, {"examples": 20}))
    export(run_folder, tmp_path / "preference", "preference")
    command = [ROOT / "tests" / "works_with.sh", model, tmp_path / "messages", tmp_path / "preference"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("20 examples") == 5, done.stdout + done.stderr


def test_the_card_states_what_is_known_and_no_more(run_folder, tmp_path):
    export(run_folder, tmp_path / "out", "parquet")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "unknown" and card.data.configs[0]["data_files"][0]["path"] == "train.parquet"
    stated = (
        "2,500 rows",
        "owner/model",
        "Python's standard library",
        "keep the licence",
        "no_docstring 1",
    )
    for text in (*stated, "mbpp+ NOT SEARCHED", "loopback only", "| torch | 2.13.0 |"):
        assert text in card.text, card.text
    assert "vllm" not in card.text and all(f"| `{column}` |" in card.text for column in EXAMPLES[0])


def test_the_card_names_whoever_wrote_the_instructions_and_claims_no_tests_of_a_baseline_without(
    run_folder, tmp_path
):
    config = json.loads((run_folder / "config.json").read_text())
    config |= {"baseline": "evol-instruct", "instructions_by": "owner/first", "stages": STAGES | NOT_EXECUTED}
    (run_folder / "config.json").write_text(json.dumps(config))
    export(run_folder, tmp_path / "out", "messages")
    text = DatasetCard.load(tmp_path / "out" / "README.md").text
    assert "by owner/first and owner/model" in text and "passed" not in text and "protections" not in text


def test_the_card_shows_no_folders_of_this_machine(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tuned").mkdir(parents=True)
    config = {
        "model": "models/tuned",
        "source": "~/private code/a|b.jsonl",
        "stages": STAGES | EXECUTED,
        "instructions_from": "/home/me/runs/first",
        "instructions_by": "/home/me/my models/base and owner/model",
        "match": f"{tmp_path}/other",
        "decontamination": "mbpp+ NOT SEARCHED: no file /home/me/Mbpp.jsonl; and/or 3",
    }
    (run_folder / "config.json").write_text(json.dumps(config))
    export(run_folder, tmp_path / "out", "parquet")
    text = (tmp_path / "out" / "README.md").read_text()
    for folder in ("/home", "me/", "private", "my models", "models/tuned", str(tmp_path), "pytest-of"):
        assert folder not in text, text
    assert "from code of a|b.jsonl by base and owner/model and tuned" in text
    for shown in ("| instructions_from | first |", "| source | a\\|b.jsonl |", "| match | other |"):
        assert shown in text, text
    assert "no file Mbpp.jsonl; and/or 3" in text


def test_half_a_surrogate_pair_becomes_a_question_mark(run_folder, tmp_path):
    (run_folder / "sft.jsonl").write_text(json.dumps(EXAMPLES[0] | {"seed": "half \ud800"}) + "\n")
    for format in ("parquet", "messages"):
        export(run_folder, tmp_path / format, format)
    assert load(tmp_path / "parquet", tmp_path)[0]["seed"] == "half ?"


@pytest.mark.parametrize("format", ["parquet", "messages"])
def test_what_cannot_be_exported_leaves_nothing_behind(run_folder, tmp_path, inside, format):
    sft, left = run_folder / "sft.jsonl", sorted(path.name for path in tmp_path.iterdir())
    half = sft.read_text() + '{"id": "y", "instruction": "alone"}\n'
    for contents, says in [("", "no examples"), ("{\n", "sft.jsonl:1:"), (half, "example y")]:
        sft.write_text(contents)
        with pytest.raises(BadInput, match=says):
            export(run_folder, tmp_path / "out", format)
    ended = inside(
        "selfcodealign.py", "export", "--out", run_folder, "--format", format, "--to", tmp_path / "out"
    )
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "example y" in ended.stderr
    sft.write_text(json.dumps(EXAMPLES[0]) + "\n")
    (run_folder / "config.json").write_text("{")
    with pytest.raises(BadInput, match="config.json"):
        export(run_folder, tmp_path / "out", format)
    sft.unlink()
    with pytest.raises(BadInput, match="no sft.jsonl"):
        export(run_folder, tmp_path / "out", format)
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_a_column_of_several_types_and_a_taken_folder_are_refused(run_folder, tmp_path):
    with (run_folder / "sft.jsonl").open("a") as file:
        file.write(json.dumps(EXAMPLES[0] | {"concepts": 3}) + "\n")
    with pytest.raises(BadInput, match="not all of the same types"):
        export(run_folder, tmp_path / "out", "parquet")
    with pytest.raises(BadInput, match="take another --to"):
        export(run_folder, run_folder, "parquet")
    assert not (tmp_path / "out").exists() and len(list(run_folder.iterdir())) == 3
