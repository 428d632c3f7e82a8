"""How much memory training takes on each GPU, known before a GPU is there.

    python selfcodealign.py memory [--model MODEL] [--gpus 1 2 4 8] [--pack-tokens 4096]

The parts of train.py are built from a model's config alone, as tensors without contents, and take one step,
while torch's own trackers count what each GPU would hold at its peak. Counted: weights, gradients, the low
halves of `mixed`, the optimizer's means, activations, temporary tensors, and what `fully_shard` gathers. Not
counted: CUDA's context (about 0.5 GB a GPU), NCCL's buffers, what the allocator loses between blocks.
"""

import argparse
import contextlib
import warnings

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import train

EXAMPLE_TOKENS, PROMPT_TOKENS = 512, 128
CONFIGS = {  # the shapes that decide on memory, from the models' own config.json
    "StarCoder2-3B": ("starcoder2", 3072, 12288, 30, 24, 2, 49152),
    "Qwen2.5-Coder-7B": ("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "StarCoder2-15B": ("starcoder2", 6144, 24576, 40, 48, 4, 49152),
    "DeepSeek-Coder-33B": ("llama", 7168, 19200, 62, 56, 8, 32256),
}


def config_of(name: str):
    from transformers import AutoConfig

    kind, hidden, mlp, layers, heads, key_heads, vocabulary = CONFIGS[name]
    return AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )


class Attention(torch.autograd.Function):
    """What the kernel for packed examples keeps for its backward pass, and nothing else of it."""

    @staticmethod
    def forward(context, query, key, value):
        output = torch.empty_like(query)
        context.save_for_backward(
            query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32)
        )
        return output

    @staticmethod
    def backward(context, gradient):
        return tuple(torch.empty_like(saved) for saved in context.saved_tensors[:3])


def attention(module, query, key, value, mask, **_):
    return Attention.apply(query, key, value).transpose(1, 2), None


def peak(
    config, gpus: int, precision: str, recompute: bool, reshard: bool = True, pack_tokens: int = 4096
) -> dict[str, int]:
    """Bytes on one GPU at the peak of a training step: by kind, and "Total"."""
    from transformers import AttentionInterface

    AttentionInterface.register("counted", attention)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    options = {"config": config, "dtype": dtype, "attn_implementation": "counted"}
    dist.init_process_group("fake", rank=0, world_size=gpus, store=FakeStore())
    train.WORLD = gpus
    try:
        mesh = init_device_mesh(
            "cpu", (gpus,)
        )  # real tensors, which the fake mode refuses to mix with its own
        with FakeTensorMode():
            model = train.build(options, "cpu")
            if recompute:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            learner = train.shard(model, mesh, reshard) if gpus > 1 else train.Learner(model)
            return step_peak(learner.train(), precision, pack_tokens)
    finally:
        train.WORLD = 1
        dist.destroy_process_group()


def step_peak(learner, precision: str, pack_tokens: int) -> dict[str, int]:
    sharded = train.WORLD > 1
    tracker = FSDPMemTracker(learner) if sharded else MemTracker()
    weights = {name: weight for name, weight in learner.model.named_parameters()}
    states = {name: train.new_state(weight, precision) for name, weight in weights.items()}
    local = [train.local(tensor) for state in states.values() for tensor in state.values()]
    pack = train.make_pack([([0] * EXAMPLE_TOKENS, PROMPT_TOKENS)] * (pack_tokens // EXAMPLE_TOKENS), "cpu")
    tracker.track_external(*local, *([] if sharded else [learner]))
    with tracker, contextlib.suppress(DataDependentOutputException):  # the gradient's norm, at the very end
        learner(pack).backward()
        train.optimize(weights, states, 1, 1e-5)
    return next(iter(tracker.get_tracker_snapshot("peak").values()))


def main(words: list[str]):
    parser = argparse.ArgumentParser("selfcodealign.py memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a checkpoint folder or hub id, of which only the config is read")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--pack-tokens", type=int, default=4096)
    arguments = parser.parse_args(words)
    warnings.filterwarnings("ignore")
    if arguments.model:
        from transformers import AutoConfig

        configs = {arguments.model: AutoConfig.from_pretrained(arguments.model)}
    else:
        configs = {name: config_of(name) for name in CONFIGS}
    print("GiB on each GPU, activations kept / computed again; a GPU of 80 GB has 79 GiB\n")
    print(f"| model | precision | {' | '.join(f'{gpus} GPU' for gpus in arguments.gpus)} |")
    print(f"|---|---|{'---|' * len(arguments.gpus)}")
    for name, config in configs.items():
        for precision in ("bf16", "mixed"):
            cells = []
            for gpus in arguments.gpus:
                totals = [
                    peak(config, gpus, precision, recompute, pack_tokens=arguments.pack_tokens)["Total"]
                    for recompute in (False, True)
                ]
                cells.append(" / ".join(f"{total / 2**30:.0f}" for total in totals))
            print(f"| {name} | {precision} | {' | '.join(cells)} |", flush=True)
