"""train.py against independent truth: transformers' own loss, logits and Adafactor, one process for two."""

import contextlib
import datetime
import io
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import varlen_on_cpu
from conftest import ROOT
from safetensors.torch import load_file
from torch.distributed import distributed_c10d
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AddedToken,
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    Gemma2Config,
    LlamaConfig,
    PhiConfig,
)
from transformers.optimization import Adafactor

import train


@pytest.fixture(scope="module")
def tokenizer(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = train.CHAT_TEMPLATE.read_text()
    return tokenizer


def tiny_model(folder, tokenizer, tied: bool):
    """A random model: two layers, grouped-query attention, the embedded model's tokenizer."""
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    config = LlamaConfig(**size, tie_word_embeddings=tied, attention_dropout=0.1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tokenizer, tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"), tokenizer, tied=True)


@pytest.fixture(scope="module")
def untied(tokenizer, tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("untied"), tokenizer, tied=False)


def options_of(folder, attention="packed", precision="fp32"):
    settings = {"precision": precision, "attention": attention, "chat_template": "new"}
    return train.read_model(SimpleNamespace(model=str(folder), **settings))[0]


@pytest.fixture
def network(tiny):
    def load(attention="packed", precision="fp32"):
        return AutoModelForCausalLM.from_pretrained(tiny, **options_of(tiny, attention, precision)).train()

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


@pytest.mark.parametrize("special", [True, False])  # Qwen's names of this kind are not called special
@pytest.mark.parametrize("name", ["<|im_end|>", "<|fim_prefix|>", "<repo_name>"])
def test_the_name_of_a_control_token_in_a_text_is_text(name, special, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = train.CHAT_TEMPLATE.read_text()
    tokenizer.add_tokens([AddedToken(name, special=special)])
    control = tokenizer.convert_tokens_to_ids(name)
    plain, _ = train.encode_example(tokenizer, "Say it.", "END = ''")
    ids, prompt_length = train.encode_example(tokenizer, f"Say {name}.", f"END = '{name}'")
    assert ids.count(control) == plain.count(control)
    assert tokenizer.decode(ids[prompt_length:-1]) == f"END = '{name}'"
    assert f"Say {name}." in tokenizer.decode(ids[:prompt_length]) and ids[0] == plain[0]


def test_what_is_learned_is_the_response_and_its_end_and_nothing_of_a_prompt(encoded):
    pack = train.make_pack(encoded, "cpu")
    ids = pack["inputs"]["input_ids"][0]
    assert torch.equal(ids[pack["loss_positions"] + 1], pack["targets"])
    learned = [token for example, prompt_length in encoded for token in example[prompt_length:]]
    assert pack["targets"].tolist() == learned
    assert all(example[-1] in example[prompt_length:] for example, prompt_length in encoded)
    by_position = train.make_pack([([7, 7, 7, 7], 2)], "cpu")["loss_positions"]  # whatever the token's id
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


def trained_like(config):
    """A learner of random weights as large as a trained model's."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="packed")
    for weight in model.parameters():
        torch.nn.init.uniform_(weight, 0.5, 1.5) if weight.dim() < 2 else torch.nn.init.normal_(
            weight, std=0.3
        )
    return train.Learner(model)


SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 50_000}
SIZE |= {"num_attention_heads": 4, "num_key_value_heads": 2}
LIMITED = {"head_dim": 16, "final_logit_softcapping": 30.0, "attn_logit_softcapping": None}


@pytest.mark.parametrize(
    "config", [CohereConfig(**SIZE, logit_scale=0.5), PhiConfig(**SIZE), Gemma2Config(**SIZE, **LIMITED)]
)
def test_a_model_whose_logits_are_more_than_a_product_is_refused(config, encoded, tiny):
    options_of(tiny)  # makes packed attention known
    with pytest.raises(train.BadInput, match="logits"):
        train.check_loss(trained_like(config), encoded[:2], "cpu")


def test_examples_that_see_each_other_are_noticed(encoded, tiny):
    options_of(tiny)
    learner = trained_like(LlamaConfig(**SIZE))
    train.check_loss(learner, encoded[:2], "cpu")

    def leaky(*states, cu_seq_lens_q=None, **options):
        return train.packed_attention(*states, cu_seq_lens_q=cu_seq_lens_q[[0, -1]], **options)

    AttentionInterface.register("leaky", leaky)
    learner.model.set_attn_implementation("leaky")
    with pytest.raises(train.BadInput, match="see each other"):
        train.check_loss(learner, encoded[:2], "cpu")


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


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_packs_hold_every_example_once_and_keep_every_gpu_busy(gpus):
    draw = random.Random(0)
    examples = [([number] * draw.randint(400, 600), 1) for number in range(64)]
    packs = train.balanced_packs(examples, 4096, gpus)
    assert sorted(example for pack in packs for example in pack) == sorted(examples)
    sizes = [sum(len(ids) for ids, _ in pack) for pack in packs]
    assert max(sizes) <= 4096 and sizes == sorted(sizes, reverse=True) and len(sizes) == 8
    slowest = sum(max(sizes[first : first + gpus]) for first in range(0, len(sizes), gpus))
    print(f"{gpus} GPUs: efficiency {sum(sizes) / gpus / slowest:.1%}")
    assert sum(sizes) / gpus / slowest > 0.97


def test_packs_of_few_or_of_awkward_examples():
    one = ([7] * 10, 1)
    assert train.balanced_packs([one] * 3, 10, 1) == [[one]] * 3
    assert sorted(train.balanced_packs([one] * 3, 20, 4)) == [[], [one], [one], [one]]
    awkward = [([0] * length, 1) for length in (7, 7, 6, 4)]  # 24 tokens, yet no two packs of 12
    assert len(train.balanced_packs(awkward, 12, 1)) == 3


def test_eight_packs_of_one_give_the_gradient_of_one_pack_of_eight(network, encoded):
    def gradients(packs):
        model = network()
        for pack in packs:
            train.Learner(model)(train.make_pack(pack, "cpu")).backward()
        return [weight.grad for weight in model.parameters()]

    for mine, other in zip(gradients([[example] for example in encoded]), gradients([encoded])):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------------------- optimizer


@pytest.fixture
def alone():
    """This process as a group of one, as train.py makes it."""
    yield train.start_processes()
    dist.destroy_process_group()


def library_adafactor(weights, rate):
    return Adafactor(weights, rate, scale_parameter=False, relative_step=False, warmup_init=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_optimizer_is_that_of_the_library(dtype, alone):
    torch.manual_seed(0)
    shapes = {"matrix": (12, 5), "vector": (9,), "stack": (3, 4, 5)}
    ours = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    theirs = {name: torch.nn.Parameter(weight.clone()) for name, weight in ours.items()}
    library = library_adafactor(theirs.values(), 0.01)
    moments = {name: train.new_moments(weight) for name, weight in ours.items()}
    for step in range(1, 21):
        for name, weight in ours.items():
            weight.grad = torch.randn_like(weight)
            theirs[name].grad = weight.grad.clone()
        norm = torch.cat([weight.grad.float().flatten() for weight in ours.values()]).norm()
        assert train.adafactor_step(ours, moments, step, 0.01) == pytest.approx(norm.item())
        library.step()
    rounding = 1e-5 if dtype == torch.float32 else 2**-8  # the last place of bf16
    assert all(torch.allclose(ours[name], theirs[name], rtol=rounding, atol=1e-6) for name in ours)


def settings_of(folder, precision, **options):
    defaults = {"attention": "packed", "chat_template": "new", "recompute": "on", "reshard": "on"}
    defaults |= {"compile": "off", "model": str(folder), "precision": precision}
    return SimpleNamespace(**defaults | options)


def some_steps(folder, precision, rate=1e-3, steps=3, **more):
    """Loss and gradient norm of some steps with train.py's own parts, and the learner."""
    settings, device = settings_of(folder, precision, **more), torch.device("cpu")
    options, tokenizer = train.read_model(settings)
    examples = [train.encode_example(tokenizer, *example) for example in EXAMPLES]
    learner = train.make_learner(options, settings, device)
    weights = dict(learner.model.named_parameters())
    moments = {name: train.new_moments(weight) for name, weight in weights.items()}
    train.check_loss(learner, examples, device)
    rows = []
    for step in range(1, steps + 1):
        loss = train.mean_loss(learner, examples, 128, device, learn=True)
        rows += [loss, train.adafactor_step(weights, moments, step, rate)]
    return rows, learner


def test_mixed_precision_keeps_small_steps_that_bf16_loses(tiny, alone):
    start = {
        name: weight.to(torch.bfloat16).float()
        for name, weight in load_file(tiny / "model.safetensors").items()
    }
    moved, losses = {}, {}
    for precision in ("bf16", "mixed"):
        rows, learner = some_steps(tiny, precision, rate=1e-6, steps=1)
        losses[precision], weights = rows[0], dict(learner.model.named_parameters())
        name = "model.layers.0.mlp.up_proj.weight"
        after = weights[name].full_tensor().float()
        before = start[name] if precision == "bf16" else load_file(tiny / "model.safetensors")[name]
        moved[precision] = (after != before).float().mean().item()
    assert losses["bf16"] == losses["mixed"]  # the same arithmetic
    assert moved["bf16"] < 0.2 and moved["mixed"] > 0.9


@pytest.mark.xdist_group("compiled")  # the first compilation in a process takes as long as all others
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["bf16", "mixed"])
def test_the_branch_for_gpus_gives_the_losses_of_the_cpus(precision, tied, tiny, untied, alone, monkeypatch):
    folder = tiny if tied else untied
    expected, _ = some_steps(folder, precision, steps=2)
    varlen_on_cpu.calls.clear()
    monkeypatch.setattr(train, "VARLEN_DEVICE", "cpu")
    found, _ = some_steps(folder, precision, compile="aot_eager", steps=2)
    assert found == pytest.approx(expected, rel=0.02) and max(varlen_on_cpu.calls) > 2
    assert len(varlen_on_cpu.calls) > 6  # in two layers, of which check_loss has three passes


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
    measured = {"tokens_per_second", "tflops", "peak_gb"}
    return [{key: row[key] for key in row.keys() - measured} for row in rows]


def test_killed_at_any_time_and_given_again_it_ends_bit_for_bit_the_same(tiny, data, tmp_path, inside):
    more = ["--precision", "mixed", "--checkpoint-every", 0, "--validation-share", 0.1]
    whole = inside("train.py", *options(tiny, data, tmp_path / "whole", *more))
    assert whole.returncode == 0, whole.stderr[-2000:]
    words = [sys.executable, train.__file__, *map(str, options(tiny, data, tmp_path / "killed", *more))]
    log = tmp_path / "killed.unfinished" / "log.jsonl"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.read_text().count("target_tokens") >= 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists() and list(log.parent.glob("checkpoint-*"))
    with log.open("a") as file:
        file.write('{"step": 9}\n{"ste')  # done after the last checkpoint, and torn
    refused = inside("train.py", *options(tiny, data, tmp_path / "killed", *more, "--seed", 1))
    assert refused.returncode == 2 and "another seed" in refused.stderr
    resumed = inside("train.py", *options(tiny, data, tmp_path / "killed", *more))
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole") and not log.parent.exists()
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_several_processes_do_what_one_does(tiny, data, tmp_path, inside):
    more = ["--precision", "fp32", "--epochs", 1, "--validation-share", 0.1]
    alone = inside("train.py", *options(tiny, data, tmp_path / "one", *more))
    assert alone.returncode == 0, alone.stderr[-2000:]
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2".split()
    more += "--reshard on --recompute on --compile off --checkpoint-every 0".split()
    words = map(str, options(tiny, data, tmp_path / "several", *more))
    several = subprocess.run([*torchrun, train.__file__, *words], capture_output=True, text=True)
    assert several.returncode == 0, several.stderr[-3000:]
    for one, row in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "several"), strict=True):
        assert one == pytest.approx(row, rel=1e-4)
    ours, theirs = weights(tmp_path / "several"), weights(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    # Adafactor divides by the gradient's own size: where that is all rounding, so is the sign of a step.
    for name in theirs:
        assert (ours[name] - theirs[name]).float().norm() < 1e-2 * theirs[name].float().norm()


def start_ranks(function, world, arguments):
    """Call function(rank, *arguments) in forks of a process that has the libraries, imported once."""
    multiprocessing.set_forkserver_preload(["train", "transformers.models.llama.modeling_llama"])
    torch.multiprocessing.start_processes(function, arguments, nprocs=world, start_method="forkserver")


def a_rank(rank, world, folder, expected, expected_by_kernel):
    torch.set_num_threads(1)
    train.RANK, train.WORLD = rank, world
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/{world}", world), rank=rank, world_size=world
    )
    if rank > 0:
        AutoModelForCausalLM.from_pretrained = None  # one rank loads the weights
    rows, learner = some_steps(folder, "fp32", reshard="off" if world == 2 else "on")
    assert rows == pytest.approx(expected, rel=1e-4)
    buffers = dict(AutoModelForCausalLM.from_config(learner.model.config).named_buffers())
    assert buffers and all(torch.equal(one, buffers[name]) for name, one in learner.model.named_buffers())
    if world == 2:
        train.VARLEN_DEVICE = "cpu"
        rows, _ = some_steps(folder, "mixed", compile="eager", steps=1)
        assert rows == pytest.approx(expected_by_kernel, rel=0.02) and varlen_on_cpu.calls

    torch.manual_seed(0)
    shapes = {
        "matrix": (7, 5),
        "vector": (3,),
        "stack": (6, 4, 5),
    }  # 4 ranks: 2, 2, 2 and 1 rows; one has no number
    wholes = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    mesh, split = learner.model.lm_head.weight.device_mesh, [Shard(0)]
    parts = {name: distribute_tensor(whole.detach().clone(), mesh, split) for name, whole in wholes.items()}
    library, moments = (
        library_adafactor(wholes.values(), 0.01),
        {n: train.new_moments(p) for n, p in parts.items()},
    )
    for step in (1, 2, 3):
        for name, whole in wholes.items():
            whole.grad = torch.randn_like(whole)
            parts[name].grad = distribute_tensor(whole.grad, mesh, split)
        norm = torch.cat([whole.grad.flatten() for whole in wholes.values()]).norm()
        assert train.adafactor_step(parts, moments, step, 0.01) == pytest.approx(norm.item())
        library.step()
    for name, whole in wholes.items():
        assert torch.allclose(parts[name].full_tensor(), whole, rtol=1e-5, atol=1e-6), name

    # By the clock of the first rank, whatever the others' clocks say.
    long_ago = time.monotonic() - 3600
    assert train.checkpoint_is_due(long_ago if rank == 0 else time.monotonic(), 30, "cpu")
    assert not train.checkpoint_is_due(time.monotonic() if rank == 0 else long_ago, 30, "cpu")
    dist.barrier()  # no rank leaves while another still talks to it
    dist.destroy_process_group()


@pytest.mark.parametrize("tied, world", [(True, 2), (False, 4)])
def test_ranks_share_what_one_loads_and_step_as_one(tied, world, tiny, untied, alone):
    folder = tiny if tied else untied
    expected, by_kernel = some_steps(folder, "fp32")[0], some_steps(folder, "mixed", steps=1)[0]
    start_ranks(a_rank, world, (world, str(folder), expected, by_kernel))
    (folder / str(world)).unlink()


def a_rank_that_waits(rank, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    train.RANK, train.WORLD = rank, 2
    distributed_c10d.default_pg_timeout = datetime.timedelta(seconds=1)  # minutes, in earnest
    train.start_processes()
    if rank == 0:
        time.sleep(3)
    dist.broadcast(torch.zeros(1), 0)
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_wait_for_a_first_one_that_takes_long_to_load_the_model():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start_ranks(a_rank_that_waits, 2, (port,))


def test_the_allocator_is_set_before_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("import os\nprint(os.environ['PYTORCH_ALLOC_CONF'])\nraise SystemExit")
    path = f"{tmp_path}:{ROOT}"
    environment = {key: os.environ[key] for key in os.environ.keys() - {"PYTORCH_ALLOC_CONF"}}
    done = subprocess.run(
        [sys.executable, "-c", "import train"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "expandable_segments:True", done.stderr


# ---------------------------------------------------------------------------------------------------- errors


def refused(process, *says):
    """Exit status 2 and one clear line, after the progress bar's."""
    assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr[-2000:]
    line = process.stderr.strip().splitlines()[-1]
    assert line.startswith("train.py: ") and all(str(text) in line for text in says), process.stderr[-2000:]


@pytest.mark.parametrize(
    "template, says",
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for part in messages[0].content %}{{ part.text }}{% endfor %}", "leaves out"),
        ("{% if %}", "chat template"),
        ({"tool_use": "{{ messages[0].content }}"}, "chat template"),
        (None, "chat template"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused(template, says, tiny, tokenizer, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "chat")
    (folder / "chat_template.jinja").unlink()
    own = AutoTokenizer.from_pretrained(folder)
    own.chat_template = template
    own.save_pretrained(folder)
    with pytest.raises(train.BadInput, match=says):
        train.read_model(settings_of(folder, "fp32", chat_template="keep"))


def test_what_saving_refuses_is_refused_before_the_first_step(tiny, data, tmp_path, inside):
    folder = shutil.copytree(tiny, tmp_path / "odd")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_sample": False, "temperature": 0.7}))
    stopped = inside("train.py", *options(folder, data, tmp_path / "model"))
    refused(stopped, "cannot write", "GenerationConfig is invalid", "temperature")
    assert not rows_of(tmp_path / "model.unfinished")


def test_blank_lines_are_skipped_and_deep_ones_named(tmp_path):
    data = tmp_path / "sft.jsonl"
    row = json.dumps({"instruction": "a", "response": "b"})
    data.write_text(f"\n{row}\n  \n{row}\n\n")
    assert train.read_pairs(data) == [("a", "b")] * 2
    data.write_text(row + "\n" + "[" * 100_000 + "]" * 100_000)
    with pytest.raises(train.BadInput, match=f"{data}:2: "):
        train.read_pairs(data)


@pytest.mark.parametrize("env", [{"RANK": "1"}, {"WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "2"}])
def test_half_a_distributed_environment_is_one_line(env, tiny, data, tmp_path, command):
    stopped = command("train.py", *options(tiny, data, tmp_path / "model"), env=env)
    refused(stopped, "torchrun")


def test_a_checkpoint_of_an_older_format_is_refused(alone, tmp_path):
    checkpoint = tmp_path / "model.unfinished" / "checkpoint-3"
    train.dcp.save(
        {"weights": {"w": torch.ones(2)}, "states": {"w": torch.ones(2)}}, checkpoint_id=checkpoint
    )
    tensors = {"weights": {"w": torch.ones(2)}, "moments": {"w": torch.ones(2)}}
    with pytest.raises(train.BadInput, match="cannot read .*checkpoint-3: .*moments"):
        train.resume(checkpoint.parent, {}, tensors)


def test_a_model_that_is_cut_short_is_refused(tiny, data, tmp_path, inside):
    cut = shutil.copytree(tiny, tmp_path / "cut")
    with (cut / "model.safetensors").open("rb+") as file:
        file.truncate(100_000)
    refused(inside("train.py", *options(cut, data, tmp_path / "model")), cut)
    assert not list(tmp_path.glob("model*"))


def test_after_a_full_disk_the_same_command_goes_on(tiny, data, tmp_path, command, inside):
    words = options(tiny, data, tmp_path / "model", "--epochs", 1, "--precision", "mixed")
    limited = {"model": 850, "checkpoint-5": 5_000_000}  # bytes of the largest file that can be written
    for name, limit in limited.items():
        stopped = command("train.py", *words, prefix=["prlimit", f"--fsize={limit}"])
        refused(stopped, "cannot write", tmp_path / "model.unfinished" / name, "File too large")
    finished = inside("train.py", *words)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert [row["step"] for row in rows_of(tmp_path / "model")] == [1, 2, 3, 4, 5]


def test_too_little_memory_is_one_line(tiny, tmp_path, command):
    row = {"instruction": "Count.", "response": "\n".join(f"x{n} = {n}" for n in range(3000))}
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    words = options(tiny, tmp_path / "long.jsonl", tmp_path / "model", "--max-length", 8192)
    stopped = command("train.py", *words, "--recompute", "off", prefix=["prlimit", "--as=4000000000"])
    refused(stopped, "out of memory", "--recompute on")


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


def test_a_folder_that_cannot_be_made_is_named(tiny, data, tmp_path, inside):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "model"
    refused(inside("train.py", *options(tiny, data, out)), out)


def test_a_folder_of_the_users_is_left_alone(tmp_path):
    for name in ("model", "model.unfinished"):
        (tmp_path / name).mkdir()
        with pytest.raises(train.BadInput, match=f"{name} exists and was not made"):
            train.check_out_folder(tmp_path / name, {})
        (tmp_path / name).rmdir()


def test_a_changed_template_or_model_is_noticed(tiny, data, tmp_path):
    words = ["train.py", *map(str, options(tiny, data, tmp_path / "model"))]

    def settings():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            arguments = train.parse_arguments()
        return train.read_settings(arguments, *train.read_model(arguments))

    before = settings()
    changed = shutil.copytree(tiny, tmp_path / "changed")
    words[2] = str(changed)
    assert settings() | {"model": before["model"]} == before
    with (changed / "model.safetensors").open("rb+") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\2\3\4")
        file.seek(file.tell() // 16 * 7)
        file.write(b"\1\2\3\4")
    assert settings()["model_sha256"] != before["model_sha256"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        words[words.index(str(data))] = data.name
        assert settings()["data"] == str(data)
        patch.setattr(train, "CHAT_TEMPLATE", tmp_path / "chat.jinja")
        train.CHAT_TEMPLATE.write_text("{{ messages[0]['content'] }}")
        assert settings()["chat_template_sha256"] != before["chat_template_sha256"]


def test_a_gpu_that_torch_cannot_use_is_no_training_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "GPU_DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(train.BadInput, match="cannot use the GPU .*: "):
        train.start_processes()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert train.start_processes().type == "cpu"
    dist.destroy_process_group()


def test_the_published_count_of_operations_is_that_of_torch(network, encoded, monkeypatch):
    model, (ids, _) = network("eager"), encoded[0]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.tensor([ids])).logits.sum().backward()
    assert train.step_flops(model, [(ids, 0)]) == pytest.approx(counter.get_total_flops(), rel=0.01)
    monkeypatch.setattr(train, "WORLD", 4)
    speed = train.speed_of([(ids, 0)] * 8, 2.0, 16 * 10**12, torch.device("cpu"))
    assert speed == {"tokens_per_second": 4 * len(ids), "tflops": 2.0}


def test_settings_and_texts_that_cannot_be_are_refused(tiny, data, tmp_path, inside):
    words = options(tiny, data, tmp_path / "model", "--checkpoint-every", -1)
    refused(inside("train.py", *words), "--checkpoint-every")
    words = options(tiny, data, tmp_path / "model", "--compile", "inductro")
    refused(inside("train.py", *words), "cannot compile with inductro: ")
    data.write_text(json.dumps({"instruction": "half a surrogate pair: \ud800", "response": "b"}) + "\n")
    with pytest.raises(train.BadInput, match=f"{data}:1: "):
        train.read_pairs(data)


# ---------------------------------------------------------------------------------------- the embedded model


def test_a_chat_model_may_keep_its_template(tiny, tmp_path, inside):
    chat, data, out = tmp_path / "chat", tmp_path / "sft.jsonl", tmp_path / "model"
    shutil.copytree(tiny, chat)
    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.chat_template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %} "
    tokenizer.save_pretrained(chat)
    data.write_text(json.dumps(dict(zip(("instruction", "response"), EXAMPLES[0]))) + "\n")
    words = ["--model", chat, "--data", data, "--out", out, "--epochs", 1, "--chat-template", "keep"]
    done = inside("train.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[Add two numbers.]" in done.stdout
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template


def test_a_fine_tune_learns_and_leaves_a_model_that_loads(embedded, tmp_path, command, inside):
    data, out = tmp_path / "sft.jsonl", tmp_path / "model"
    data.write_text("".join(json.dumps({"instruction": i, "response": r}) + "\n" for i, r in EXAMPLES[:2]))
    recipe = "--epochs 6 --batch-size 2 --lr 5e-5 --precision mixed --recompute off".split()
    options = ["--model", embedded, "--data", data, "--out", out, *recipe]
    first = command("train.py", *options)
    assert first.returncode == 0, first.stderr[-2000:]
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 6 and losses[-1] < 0.5 * losses[0]
    assert "trained already" in inside("train.py", *options).stdout
    data.write_text(data.read_text() * 2)
    assert "another data_sha256" in inside("train.py", *options).stderr  # never an old model for new data

    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == train.CHAT_TEMPLATE.read_text() and loaded.dtype == torch.bfloat16
    ids, prompt_length = train.encode_example(tokenizer, *EXAMPLES[1])
    prompt = torch.tensor([ids[:prompt_length]])
    answer = loaded.generate(prompt, max_new_tokens=8, do_sample=False)[0]
    assert answer.tolist() == ids  # the taught answer, ended by the end-of-text token


OLDER = {
    "4.46.3": ("huggingface_hub==0.26.5", "tokenizers==0.20.3"),
    "4.57.6": ("huggingface_hub==0.36.0", "tokenizers==0.22.2"),
}
READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Add."}], tokenize=False, add_generation_prompt=True)
ids = tokenizer(prompt + "def add(a, b): <|first|>").input_ids
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype="auto")
dtype, inputs = str(model.dtype), torch.arange(50, 250)[None]
with torch.no_grad():
    loss = model.float()(inputs, labels=inputs).loss.item()
print(json.dumps([transformers.__version__, ids, dtype, loss]))
"""


@pytest.fixture(params=["llama", "qwen2", "starcoder2"])
def checkpoint(request, tokenizer, tmp_path):
    """A tiny random model as transformers 5 saves it: a rotary base and scaling of its own, an added token."""
    from transformers import AutoConfig, AutoModelForCausalLM

    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 77777.0}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer) + 8,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    config = AutoConfig.for_model(request.param, **sizes, rope_parameters=rope)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)  # so that positions matter
    model.save_pretrained(tmp_path)
    added = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    added.add_special_tokens({"additional_special_tokens": ["<|first|>"]})
    added.save_pretrained(tmp_path)
    return tmp_path


def read_checkpoint(folder, **env) -> list:
    if not env:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), mock.patch.object(sys, "argv", ["", str(folder)]):
            exec(READ, {})
        return json.loads(printed.getvalue())
    done = subprocess.run([sys.executable, "-c", READ, folder], capture_output=True, env=os.environ | env)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return json.loads(done.stdout)


def test_a_checkpoint_has_what_transformers_4_reads_and_5_reads_it_as_before(checkpoint):
    before = read_checkpoint(checkpoint)
    train.add_older_forms(checkpoint)
    assert read_checkpoint(checkpoint) == before
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["rope_theta"] == 77777.0 and config["rope_scaling"] == {
        "rope_type": "linear",
        "factor": 2.0,
    }
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|first|>"] and "extra_special_tokens" not in config
    assert config["chat_template"] == (checkpoint / "chat_template.jinja").read_text()


@pytest.mark.skipif(not os.environ.get("SLOW"), reason="installs another transformers: set SLOW=1")
@pytest.mark.parametrize("number", OLDER)
def test_transformers_4_reads_the_same_model(number, checkpoint, tmp_path_factory):
    older = tmp_path_factory.mktemp("older")
    packages = [f"transformers=={number}", *OLDER[number]]
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", older, *packages]
    subprocess.run(install, check=True)
    train.add_older_forms(checkpoint)
    version, ids, dtype, loss = read_checkpoint(checkpoint)
    older_version, older_ids, older_dtype, older_loss = read_checkpoint(checkpoint, PYTHONPATH=str(older))
    assert version.startswith("5.") and older_version == number and dtype == older_dtype
    assert abs(loss - older_loss) < 1e-3
    # Version 5 takes the tokenizer of Qwen2's kind for a model of that kind, whatever the files say: as before
    assert ids == older_ids or "qwen2" in (checkpoint / "config.json").read_text()
