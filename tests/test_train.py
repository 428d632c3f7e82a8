"""train.py against independent truth: transformers' own loss, and what it leaves loaded by transformers."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import train


@pytest.fixture(scope="module")
def tokenizer(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = train.CHAT_TEMPLATE.read_text()
    return tokenizer


@pytest.fixture(scope="module")
def network(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(config).eval()


EXAMPLES = [("Add two numbers.", "def add(a, b):\n    return a + b"), ("Say no.", "no"), ("Double each of the values.", "[2 * v for v in values]")]


def test_the_prompt_of_training_is_the_prompt_of_the_saved_template(tokenizer):
    ids, prompt_length = train.encode_example(tokenizer, "Add.", "def add(): ...")
    messages = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "def add(): ..."}]
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(ids[:prompt_length]) == asked
    assert whole.startswith(tokenizer.decode(ids)) and ids[-1] == tokenizer.eos_token_id and ids[0] == tokenizer.bos_token_id


def test_the_loss_is_transformers_own_and_padding_changes_nothing(tokenizer, network):
    encoded = [train.encode_example(tokenizer, *example) for example in EXAMPLES]
    with torch.no_grad():
        ours = train.token_loss(network, *train.pad_batch(encoded, "cpu")).item()
        theirs = 0.0
        for ids, prompt_length in encoded:
            labels = torch.tensor([[-100] * prompt_length + ids[prompt_length:]])
            theirs += network(input_ids=torch.tensor([ids]), labels=labels).loss.item() * (len(ids) - prompt_length)
    assert math.isclose(ours, theirs, rel_tol=1e-5)


def test_the_end_of_text_token_is_learned_and_the_prompt_is_not(tokenizer):
    encoded = [train.encode_example(tokenizer, *example) for example in EXAMPLES]
    input_ids, attention_mask, labels = train.pad_batch(encoded, "cpu")
    for row, (ids, prompt_length) in enumerate(encoded):
        assert labels[row, len(ids) - 1] == tokenizer.eos_token_id
        assert (labels[row] != -100).nonzero().flatten().tolist() == list(range(prompt_length, len(ids)))
        assert attention_mask[row].sum() == len(ids)


def test_micro_batches_change_nothing(tokenizer, network):
    encoded = [train.encode_example(tokenizer, *example) for example in EXAMPLES]
    supervised = sum(len(ids) - prompt_length for ids, prompt_length in encoded)

    def gradient(size):
        network.zero_grad()
        for first in range(0, len(encoded), size):
            (train.token_loss(network, *train.pad_batch(encoded[first : first + size], "cpu")) / supervised).backward()
        return network.model.layers[0].mlp.up_proj.weight.grad.clone()

    assert torch.allclose(gradient(1), gradient(3), rtol=1e-4, atol=1e-7)


def test_a_fine_tune_learns_and_leaves_a_model_that_loads(model, tmp_path, command):
    data, out = tmp_path / "sft.jsonl", tmp_path / "model"
    data.write_text("".join(json.dumps({"instruction": i, "response": r}) + "\n" for i, r in EXAMPLES[:2]))
    options = ["--model", model, "--data", data, "--out", out, "--epochs", 6, "--batch-size", 2, "--lr", 1e-4, "--precision", "mixed"]
    first = command("train.py", *options)
    assert first.returncode == 0, first.stderr[-2000:]
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 6 and losses[-1] < 0.5 * losses[0]
    assert "trained already" in command("train.py", *options).stdout
    data.write_text(data.read_text() * 2)
    assert "another data_sha256" in command("train.py", *options).stderr  # never an old model for new data

    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == train.CHAT_TEMPLATE.read_text() and loaded.dtype == torch.bfloat16
    ids, prompt_length = train.encode_example(tokenizer, *EXAMPLES[1])
    answer = loaded.generate(torch.tensor([ids[:prompt_length]]), max_new_tokens=8, do_sample=False)[0, prompt_length:]
    assert answer.tolist() == ids[prompt_length:]  # the taught answer, ended by the end-of-text token
