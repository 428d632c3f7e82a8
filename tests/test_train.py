"""train.py against independent truth: transformers' own loss, logits and Adafactor, one batch for many, one process for two."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.optimization import Adafactor

import train


@pytest.fixture(scope="module")
def tokenizer(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = train.CHAT_TEMPLATE.read_text()
    return tokenizer


@pytest.fixture(scope="module")
def tiny(tokenizer, tmp_path_factory):
    """The checkpoint folder of a random model of two layers, grouped-query attention and the embedded model's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, tie_word_embeddings=True, attention_dropout=0.1)  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def network(tiny):
    def load(attention="packed", precision="fp32"):
        return train.load(SimpleNamespace(model=str(tiny), precision=precision, attention=attention, chat_template="new"))[0].train()

    return load


EXAMPLES = [("Add two numbers.", "def add(a, b):\n    return a + b"), ("Say no.", "no"),
            ("Double each of the values.", "[2 * v for v in values]"), ("Count.", "one, two, three, four"),
            ("Give the square of a number.", "def square(x):\n    return x * x"), ("Say yes.", "yes"),
            ("Name a colour.", "Blue, or green, or red."), ("Is it late?", "It is never too late to sleep.")]  # fmt: skip


@pytest.fixture
def encoded(tokenizer):
    return [train.encode_example(tokenizer, *example) for example in EXAMPLES]


def test_the_prompt_of_training_is_the_prompt_of_the_saved_template(tokenizer):
    ids, prompt_length = train.encode_example(tokenizer, "Add.", "def add(): ...")
    messages = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "def add(): ..."}]
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(ids[:prompt_length]) == asked
    assert whole.startswith(tokenizer.decode(ids)) and ids[-1] == tokenizer.eos_token_id and ids[0] == tokenizer.bos_token_id


def test_what_is_learned_is_the_response_and_its_end_and_nothing_of_a_prompt(encoded):
    pack = train.make_pack(encoded, "cpu")
    ids = pack["inputs"]["input_ids"][0]
    assert torch.equal(ids[pack["predicting"] + 1], pack["targets"])
    learned = [token for example, prompt_length in encoded for token in example[prompt_length:]]
    assert pack["targets"].tolist() == learned and all(example[-1] in example[prompt:] for example, prompt in encoded)
    assert train.make_pack([([7, 7, 7, 7], 2)], "cpu")["predicting"].tolist() == [1, 2]  # by position, whatever the token's id


@pytest.mark.parametrize("attention", ["packed", "sdpa", "eager"])
def test_the_packed_loss_and_gradient_are_those_of_transformers_alone(network, encoded, attention):
    ours, theirs = network(attention), network("eager")
    loss = train.Learner(ours)(train.make_pack(encoded, "cpu"))
    loss.backward()
    total = 0.0
    for ids, prompt_length in encoded:
        labels = torch.tensor([[-100] * prompt_length + ids[prompt_length:]])
        total += theirs(input_ids=torch.tensor([ids]), labels=labels).loss * (len(ids) - prompt_length)
    total.backward()
    assert math.isclose(loss.item(), total.item(), rel_tol=1e-5)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters()):
        assert torch.allclose(mine.grad, other.grad, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("attention", ["packed", "sdpa", "eager"])
def test_packed_logits_are_unpacked_logits(network, encoded, attention):
    model = network(attention).eval()
    with torch.no_grad():
        packed = model(**train.make_pack(encoded, "cpu")["inputs"], use_cache=False).logits[0]
        alone = [network("eager").eval()(input_ids=torch.tensor([ids])).logits[0] for ids, _ in encoded]
    assert torch.allclose(packed, torch.cat(alone), atol=1e-5)


def test_a_model_that_does_more_than_ours_or_lets_examples_see_each_other_is_refused(network, encoded):
    train.check_architecture(network(), encoded[:2])
    scaled = network()
    scaled.lm_head.forward = lambda hidden: 3 * torch.nn.functional.linear(hidden, scaled.lm_head.weight)
    with pytest.raises(train.BadInput, match="logits"):
        train.check_architecture(scaled, encoded[:2])

    def leaky(module, query, key, value, mask, cu_seq_lens_q=None, **options):
        return train.packed_attention(module, query, key, value, mask, cu_seq_lens_q=cu_seq_lens_q[[0, -1]], **options)

    AttentionInterface.register("leaky", leaky)
    with pytest.raises(train.BadInput, match="see each other"):
        train.check_architecture(network("leaky"), encoded[:2])


def test_the_loss_in_chunks_is_the_loss_at_once():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(50, 16, requires_grad=True), torch.randn(99, 16, requires_grad=True), torch.randint(0, 99, (50,))
    ours = train.LinearCrossEntropy.apply(hidden, weight, targets, 7)
    theirs = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    assert torch.allclose(ours, theirs)
    for mine, other in zip(torch.autograd.grad(3 * ours, (hidden, weight)), torch.autograd.grad(3 * theirs, (hidden, weight))):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5)


def test_packs_hold_every_example_once_and_waste_little():
    lengths = [7, 3, 5, 5, 2, 8, 1, 9]
    packs = train.best_fit(lengths, 10)
    assert sorted(index for pack in packs for index in pack) == list(range(8))
    assert all(sum(lengths[index] for index in pack) <= 10 for pack in packs) and len(packs) == 4


def test_eight_packs_of_one_give_the_gradient_of_one_pack_of_eight(network, encoded):
    def gradients(packs):
        model = network()
        for pack in packs:
            train.Learner(model)(train.make_pack(pack, "cpu")).backward()
        return [weight.grad for weight in model.parameters()]

    for mine, other in zip(gradients([[example] for example in encoded]), gradients([encoded])):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_optimizer_is_that_of_the_library(name, dtype):
    if name == "adamw" and dtype == torch.bfloat16:
        pytest.skip("torch's keeps its moments in bf16")
    torch.manual_seed(0)
    ours = {"matrix": torch.randn(12, 5).to(dtype), "vector": torch.randn(9).to(dtype)}
    theirs = {key: torch.nn.Parameter(weight.clone()) for key, weight in ours.items()}
    options = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    library = torch.optim.AdamW(theirs.values(), 0.01, weight_decay=0) if name == "adamw" else Adafactor(theirs.values(), 0.01, **options)
    states = {key: train.new_state(weight, name, "bf16") for key, weight in ours.items()}
    for step in range(1, 21):
        for key in ours:
            ours[key].grad = torch.randn_like(ours[key])
            theirs[key].grad = ours[key].grad.clone()
        train.optimize(ours, states, step, 0.01, SimpleNamespace(optimizer=name, precision="bf16", seed=0))
        library.step()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]) if name == "adafactor" else torch.allclose(ours[key], theirs[key], atol=1e-6)


def test_halves_are_exactly_fp32():
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (1_000_000,), dtype=torch.int32)
    exact = bits.view(torch.float32)
    exact = exact[exact.abs() < 3e38]  # all signs and sizes, subnormal ones too
    high, low = train.split_halves(exact)
    assert torch.equal(train.join_halves(high, low), exact)
    assert ((high.float() - exact).abs() <= (exact.to(torch.bfloat16).float() - exact).abs()).all()  # no bf16 is nearer
    kept, half = exact.clone(), (high, low)
    for step in range(20):
        update = torch.randn_like(exact) * 1e-5 * exact.abs().clamp(max=1)
        kept -= update
        train.subtract(half[0], update, "mixed", half[1])
    assert torch.equal(train.join_halves(*half), kept)


def test_stochastic_rounding_is_right_on_average_and_nearest_loses_the_step():
    weight, nearest = torch.ones(200_000, dtype=torch.bfloat16), torch.ones(10, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        train.subtract(weight, torch.full(weight.shape, 1e-4), "stochastic", generator=generator)
        train.subtract(nearest, torch.full(nearest.shape, 1e-4), "bf16")
    assert abs(weight.float().mean().item() - 0.999) < 5e-5 and (nearest == 1).all()


def test_the_rate_rises_falls_and_is_never_zero():
    rates = [train.learning_rate(step, 100, 2.0, 0.05) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0]) and max(rates) == 2.0
    assert rates[5:] == pytest.approx([2.0 * (100 - step) / 95 for step in range(5, 100)]) and min(rates) > 0


# ------------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "sft.jsonl"
    rows = [{"instruction": f"{i} {n}", "response": r * (1 + n % 3)} for n in range(5) for i, r in EXAMPLES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(tiny, data, out, *more):
    return ["--model", tiny, "--data", data, "--out", out, "--batch-size", 8, "--lr", 1e-2, "--max-length", 128, "--pack-tokens", 256,
            *more]  # fmt: skip


def weights(folder):
    return load_file(folder / "model.safetensors")


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("step", "loss", "heldout_loss", "gradient_norm", "lr") if key in row} for row in rows]


@pytest.mark.parametrize("precision", ["mixed", "stochastic"])
def test_killed_at_any_time_and_given_again_it_ends_bit_for_bit_the_same(tiny, data, tmp_path, command, precision):
    more = ["--precision", precision, "--checkpoint-every", 3, "--heldout", 0.1]
    whole = command("train.py", *options(tiny, data, tmp_path / "whole", *more))
    assert whole.returncode == 0, whole.stderr[-2000:]
    words = [sys.executable, train.__file__, *map(str, options(tiny, data, tmp_path / "killed", *more))]
    log = tmp_path / "killed.unfinished" / "log.jsonl"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.read_text().count("learned_tokens") >= 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists() and list(log.parent.glob("checkpoint-*"))
    refused = command("train.py", *options(tiny, data, tmp_path / "killed", *more, "--seed", 1))
    assert refused.returncode == 2 and "another seed" in refused.stderr
    resumed = command("train.py", *options(tiny, data, tmp_path / "killed", *more))
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole") and not log.parent.exists()
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_processes_do_what_one_does(tiny, data, tmp_path, command):
    more = ["--precision", "fp32", "--epochs", 1, "--heldout", 0.1]
    alone = command("train.py", *options(tiny, data, tmp_path / "one", *more))
    assert alone.returncode == 0, alone.stderr[-2000:]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(29000 + os.getpid() % 900)]
    for shard in ("off", "on"):  # copies of the weights, and parts of them
        words = map(str, options(tiny, data, tmp_path / shard, *more, "--shard", shard))
        both = subprocess.run([*torchrun, train.__file__, *words], capture_output=True, text=True)
        assert both.returncode == 0, both.stderr[-3000:]
        for one, two in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / shard), strict=True):
            assert one == pytest.approx(two, rel=1e-4)
        ours, theirs = weights(tmp_path / shard), weights(tmp_path / "one")
        assert ours.keys() == theirs.keys()
        # Adafactor divides by the gradient's own size: where that is all rounding, so is the sign of a step.
        assert all((ours[name] - theirs[name]).float().norm() < 1e-2 * theirs[name].float().norm() for name in theirs)


def test_low_rank_adapters_are_merged_into_a_model_that_loads(tiny, data, tmp_path, command):
    done = command("train.py", *options(tiny, data, tmp_path / "model", "--lora", 4, "--precision", "mixed"))
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = weights(tiny), weights(tmp_path / "model")
    changed = {name for name in after if not torch.equal(after[name], before[name].to(torch.bfloat16))}
    assert after.keys() == before.keys() and changed == {name for name in before if "proj" in name}
    losses = [row["loss"] for row in rows_of(tmp_path / "model")]
    assert losses[-1] < losses[0]


def test_a_chat_model_may_keep_its_template(model, tmp_path, command):
    data, out = tmp_path / "sft.jsonl", tmp_path / "model"
    data.write_text(json.dumps(dict(zip(("instruction", "response"), EXAMPLES[0]))) + "\n")
    done = command("train.py", "--model", model, "--data", data, "--out", out, "--epochs", 1, "--chat-template", "keep")
    assert done.returncode == 0 and "<|im_start|>user\nAdd two numbers.<|im_end|>" in done.stdout, done.stderr[-2000:]
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(model).chat_template


def test_a_fine_tune_learns_and_leaves_a_model_that_loads(model, tmp_path, command):
    data, out = tmp_path / "sft.jsonl", tmp_path / "model"
    data.write_text("".join(json.dumps({"instruction": i, "response": r}) + "\n" for i, r in EXAMPLES[:2]))
    options = ["--model", model, "--data", data, "--out", out, "--epochs", 6, "--batch-size", 2, "--lr", 5e-5, "--precision", "mixed"]
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
