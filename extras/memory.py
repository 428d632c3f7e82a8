"""How much memory training takes on each GPU, known before a GPU is there.

    python selfcodealign.py doctor --model MODEL      says with what settings a model fits
    python tests/bench_memory.py                      the table in docs/gpu-node.md

The parts of train.py are built from a model's config alone, as tensors without contents, and take one step,
while torch's own tracker counts what each GPU would hold at its peak. Counted: weights, gradients, the
optimizer's means, activations, temporary tensors, and what `fully_shard` gathers. Not counted: CUDA's
context (about 0.5 GB a GPU), NCCL's buffers, what the allocator loses between blocks.
"""

import contextlib
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import train

EXAMPLE_TOKENS, PROMPT_TOKENS = 512, 128


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
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    options = {"config": config, "dtype": dtype, "attn_implementation": "counted"}
    arguments = SimpleNamespace(precision=precision, reshard="on" if reshard else "off")
    dist.init_process_group("fake", rank=0, world_size=gpus, store=FakeStore())
    train.WORLD = gpus
    try:
        # Made of real tensors, which the fake mode refuses to mix with its own
        mesh = init_device_mesh("cpu", (gpus,))
        with FakeTensorMode():
            model = train.build(options, "cpu")
            if recompute:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            return step_peak(train.shard(model, arguments, mesh).train(), pack_tokens)
    finally:
        train.WORLD = 1
        dist.destroy_process_group()


def step_peak(learner, pack_tokens: int) -> dict[str, int]:
    tracker = FSDPMemTracker(learner)
    weights = dict(learner.model.named_parameters())
    moments = {name: train.new_moments(weight) for name, weight in weights.items()}
    local = [train.local(mean) for each in moments.values() for mean in each.values()]
    pack = train.make_pack([([0] * EXAMPLE_TOKENS, PROMPT_TOKENS)] * (pack_tokens // EXAMPLE_TOKENS), "cpu")
    tracker.track_external(*local)
    with tracker, contextlib.suppress(DataDependentOutputException):  # the gradient's norm, at the very end
        learner(pack).backward()
        train.adafactor_step(weights, moments, 1, 1e-5)
    return next(iter(tracker.get_tracker_snapshot("peak").values()))
