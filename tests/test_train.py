"""train.py against independent truth: transformers' own loss, logits and Adafactor, one process for two."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.optimization import Adafactor

import train


@pytest.fixture(scope="module")
def tokenizer(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = train.CHAT_TEMPLATE.read_text()
    return tokenizer


@pytest.fixture(scope="module")
def tiny(tokenizer, tmp_path_factory):
    """The folder of a random model: two layers, grouped-query attention, the embedded model's tokenizer."""
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    config = LlamaConfig(**size, tie_word_embeddings=True, attention_dropout=0.1)
    folder = tmp_path_factory.mktemp("tiny")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def network(tiny):
    def load(attention="packed", precision="fp32"):
        settings = {"precision": precision, "attention": attention, "chat_template": "new"}
        return train.load(SimpleNamespace(model=str(tiny), **settings))[0].train()

    return load


EXAMPLES = [
    ("Add two numbers.", "def add(a, b):\n    return a + b"),
    ("Say no.", "no"),
    ("Double each of the values.", "[2 * v for v in values]"),
    ("Count.", "one, two, three, four"),
    ("Give the square of a number.", "def square(x):\n    return x * x"),
    ("Say yes.", "yes"),
    ("Name a colour.", "Blue, or green, or red."),
    ("Is it late?", "It is never too late to sleep."),
]


@pytest.fixture
def encoded(tokenizer):
    return [train.encode_example(tokenizer, *example) for example in EXAMPLES]


def test_the_prompt_of_training_is_the_prompt_of_the_saved_template(tokenizer):
    ids, prompt_length = train.encode_example(tokenizer, "Add.", "def add(): ...")
    messages = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "def add(): ..."}]
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(ids[:prompt_length]) == asked
    assert whole.startswith(tokenizer.decode(ids))
    assert ids[-1] == tokenizer.eos_token_id and ids[0] == tokenizer.bos_token_id


def test_what_is_learned_is_the_response_and_its_end_and_nothing_of_a_prompt(encoded):
    pack = train.make_pack(encoded, "cpu")
    ids = pack["inputs"]["input_ids"][0]
    assert torch.equal(ids[pack["predicting"] + 1], pack["targets"])
    learned = [token for example, prompt_length in encoded for token in example[prompt_length:]]
    assert pack["targets"].tolist() == learned
    assert all(example[-1] in example[prompt_length:] for example, prompt_length in encoded)
    by_position = train.make_pack([([7, 7, 7, 7], 2)], "cpu")["predicting"]  # whatever the token's id
    assert by_position.tolist() == [1, 2]


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

    def leaky(*states, cu_seq_lens_q=None, **options):
        return train.packed_attention(*states, cu_seq_lens_q=cu_seq_lens_q[[0, -1]], **options)

    AttentionInterface.register("leaky", leaky)
    with pytest.raises(train.BadInput, match="see each other"):
        train.check_architecture(network("leaky"), encoded[:2])


def test_packed_attention_refuses_what_it_would_do_wrong_and_names_the_way_out():
    states = [torch.randn(1, 2, 8, 4) for _ in range(3)]
    bounds = {"cu_seq_lens_q": torch.tensor([0, 8], dtype=torch.int32), "max_length_q": 8}
    train.packed_attention(None, *states, None, sliding_window=8, softcap=None, **bounds)
    for option, way_out in (({"softcap": 50.0}, "eager"), ({"sliding_window": 7}, "sdpa")):
        with pytest.raises(train.BadInput, match=f"--attention {way_out}"):
            train.packed_attention(None, *states, None, **option, **bounds)


def test_the_loss_in_chunks_is_the_loss_at_once():
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 16, requires_grad=True), torch.randn(99, 16, requires_grad=True)
    targets = torch.randint(0, 99, (50,))
    ours = train.LinearCrossEntropy.apply(hidden, weight, targets, 7)
    theirs = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    assert torch.allclose(ours, theirs)
    gradients = (torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (ours, theirs))
    for mine, other in zip(*gradients):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5)


def test_packs_hold_every_example_once_and_waste_little():
    examples = [([number] * length, 1) for number, length in enumerate([7, 3, 5, 5, 2, 8, 1, 9])]
    packs = train.best_fit(examples, 10)
    assert sorted(example for pack in packs for example in pack) == sorted(examples)
    assert all(sum(len(ids) for ids, _ in pack) <= 10 for pack in packs) and len(packs) == 4


def test_eight_packs_of_one_give_the_gradient_of_one_pack_of_eight(network, encoded):
    def gradients(packs):
        model = network()
        for pack in packs:
            train.Learner(model)(train.make_pack(pack, "cpu")).backward()
        return [weight.grad for weight in model.parameters()]

    for mine, other in zip(gradients([[example] for example in encoded]), gradients([encoded])):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------------------- optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_optimizer_is_that_of_the_library(dtype):
    torch.manual_seed(0)
    ours = {"matrix": torch.randn(12, 5).to(dtype), "vector": torch.randn(9).to(dtype)}
    theirs = {key: torch.nn.Parameter(weight.clone()) for key, weight in ours.items()}
    options = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    library = Adafactor(theirs.values(), 0.01, **options)
    states = {key: train.new_state(weight, "bf16") for key, weight in ours.items()}
    for step in range(1, 21):
        for key in ours:
            ours[key].grad = torch.randn_like(ours[key])
            theirs[key].grad = ours[key].grad.clone()
        train.optimize(ours, states, step, 0.01)
        library.step()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_halves_are_exactly_fp32():
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (1_000_000,), dtype=torch.int32)
    exact = bits.view(torch.float32)
    exact = exact[exact.abs() < 3e38]  # all signs and sizes, subnormal ones too
    high, low = train.split_halves(exact)
    assert torch.equal(train.join_halves(high, low), exact)
    nearest = exact.to(torch.bfloat16).float()
    assert ((high.float() - exact).abs() <= (nearest - exact).abs()).all()


def test_mixed_precision_keeps_the_weights_of_fp32_where_bf16_loses_small_steps():
    torch.manual_seed(0)
    start = torch.randn(50, 20).to(torch.bfloat16)
    kept = {"fp32": start.float(), "mixed": start.clone(), "bf16": start.clone()}
    states = {precision: {"weight": train.new_state(kept[precision], precision)} for precision in kept}
    for step in range(1, 21):
        gradient = torch.randn_like(start)
        for precision, weight in kept.items():
            weight.grad = gradient.to(weight.dtype)
            train.optimize({"weight": weight}, states[precision], step, 1e-5)
    joined = train.join_halves(kept["mixed"], states["mixed"]["weight"]["low"])
    assert torch.equal(joined, kept["fp32"]) and not torch.equal(joined, start.float())
    assert (kept["bf16"] == start).float().mean() > 0.8


def test_the_rate_rises_falls_and_is_never_zero():
    rates = [train.learning_rate(step, 100, 2.0) for step in range(1, 101)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0]) and max(rates) == 2.0
    assert rates[5:] == pytest.approx([2.0 * (100 - step) / 95 for step in range(5, 100)]) and min(rates) > 0


# ------------------------------------------------------------------------------------------------ whole runs


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "sft.jsonl"
    rows = [{"instruction": f"{i} {n}", "response": r * (1 + n % 3)} for n in range(5) for i, r in EXAMPLES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(tiny, data, out, *more):
    recipe = "--batch-size 8 --lr 1e-2 --max-length 128 --pack-tokens 256".split()
    return ["--model", tiny, "--data", data, "--out", out, *recipe, *more]


def weights(folder):
    return load_file(folder / "model.safetensors")


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row.keys() - {"tokens_per_second", "peak_gb"}} for row in rows]


def test_killed_at_any_time_and_given_again_it_ends_bit_for_bit_the_same(tiny, data, tmp_path, command):
    more = ["--precision", "mixed", "--checkpoint-every", 3, "--validation-share", 0.1]
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
    more = ["--precision", "fp32", "--epochs", 1, "--validation-share", 0.1]
    alone = command("train.py", *options(tiny, data, tmp_path / "one", *more))
    assert alone.returncode == 0, alone.stderr[-2000:]
    port = 29000 + os.getpid() % 900
    torchrun = f"{sys.executable} -m torch.distributed.run --nproc-per-node 2 --master-port {port}".split()
    for shard in ("off", "on"):  # copies of the weights, and parts of them
        words = map(str, options(tiny, data, tmp_path / shard, *more, "--shard", shard))
        both = subprocess.run([*torchrun, train.__file__, *words], capture_output=True, text=True)
        assert both.returncode == 0, both.stderr[-3000:]
        for one, two in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / shard), strict=True):
            assert one == pytest.approx(two, rel=1e-4)
        ours, theirs = weights(tmp_path / shard), weights(tmp_path / "one")
        assert ours.keys() == theirs.keys()
        # Adafactor divides by the gradient's own size: where that is all rounding, so is the sign of a step.
        for name in theirs:
            assert (ours[name] - theirs[name]).float().norm() < 1e-2 * theirs[name].float().norm()


# ---------------------------------------------------------------------------------------------------- errors


def refused(process, *says):
    """Exit status 2 and one clear line, after the progress bar's."""
    assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr[-2000:]
    line = process.stderr.strip().splitlines()[-1]
    assert line.startswith("train.py: ") and all(str(text) in line for text in says), process.stderr[-2000:]


def test_a_model_that_is_cut_short_is_refused(tiny, data, tmp_path, command):
    cut = shutil.copytree(tiny, tmp_path / "cut")
    with (cut / "model.safetensors").open("rb+") as file:
        file.truncate(100_000)
    refused(command("train.py", *options(cut, data, tmp_path / "model")), cut)
    assert not list(tmp_path.glob("model*"))


def test_after_a_full_disk_the_same_command_goes_on(tiny, data, tmp_path, command):
    words = options(tiny, data, tmp_path / "model", "--epochs", 1, "--precision", "mixed")
    limited = {"log.jsonl": 600, "checkpoint-5": 5_000_000}  # bytes of the largest file that can be written
    for name, limit in limited.items():
        stopped = command("train.py", *words, prefix=["prlimit", f"--fsize={limit}"])
        refused(stopped, "cannot write", tmp_path / "model.unfinished" / name, "File too large")
    finished = command("train.py", *words)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert [row["step"] for row in rows_of(tmp_path / "model")] == [1, 2, 3, 4, 5]


def test_a_model_that_cannot_be_saved_is_one_line(network, tokenizer, tmp_path):
    (tmp_path / "out.unfinished").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(train.BadInput, match="cannot write .*out.unfinished/model"):
            train.save_model(tmp_path / "out", tmp_path / "out.unfinished", {}, network(), tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(tiny, data, tmp_path, command):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "model"
    refused(command("train.py", *options(tiny, data, out)), out)


def test_a_folder_of_the_users_is_left_alone(tmp_path):
    for name in ("model", "model.unfinished"):
        (tmp_path / name).mkdir()
        with pytest.raises(train.BadInput, match=f"{name} exists and was not made"):
            train.is_trained(tmp_path / "model", tmp_path / "model.unfinished", {})
        (tmp_path / name).rmdir()


def test_settings_and_texts_that_cannot_be_are_refused(tiny, data, tmp_path, command):
    words = options(tiny, data, tmp_path / "model", "--checkpoint-every", 0)
    refused(command("train.py", *words), "--checkpoint-every")
    data.write_text(json.dumps({"instruction": "half a surrogate pair: \ud800", "response": "b"}) + "\n")
    with pytest.raises(train.BadInput, match=f"{data}:1: "):
        train.read_pairs(data)


# ---------------------------------------------------------------------------------------- the embedded model


def test_a_chat_model_may_keep_its_template(tiny, tmp_path, command):
    chat, data, out = tmp_path / "chat", tmp_path / "sft.jsonl", tmp_path / "model"
    shutil.copytree(tiny, chat)
    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.chat_template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %} "
    tokenizer.save_pretrained(chat)
    data.write_text(json.dumps(dict(zip(("instruction", "response"), EXAMPLES[0]))) + "\n")
    words = ["--model", chat, "--data", data, "--out", out, "--epochs", 1, "--chat-template", "keep"]
    done = command("train.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[Add two numbers.]" in done.stdout
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template


def test_a_fine_tune_learns_and_leaves_a_model_that_loads(model, tmp_path, command):
    data, out = tmp_path / "sft.jsonl", tmp_path / "model"
    data.write_text("".join(json.dumps({"instruction": i, "response": r}) + "\n" for i, r in EXAMPLES[:2]))
    recipe = "--epochs 6 --batch-size 2 --lr 5e-5 --precision mixed".split()
    options = ["--model", model, "--data", data, "--out", out, *recipe]
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
    prompt = torch.tensor([ids[:prompt_length]])
    answer = loaded.generate(prompt, max_new_tokens=8, do_sample=False)[0]
    assert answer.tolist() == ids  # the taught answer, ended by the end-of-text token
