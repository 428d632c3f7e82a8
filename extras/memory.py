"""How much memory training takes on each GPU, known before a GPU is there.

    python selfcodealign.py doctor --model MODEL      says with what settings a model fits
    python tests/bench_memory.py                      the table in docs/gpu-node.md

The parts of train.py are built from a model's config alone, as tensors without contents, and take one step,
while torch's own trackers count what each GPU would hold at its peak. Counted: weights, gradients, the low
halves of `mixed`, the optimizer's means, activations, temporary tensors, and what `fully_shard` gathers. Not
counted: CUDA's context (about 0.5 GB a GPU), NCCL's buffers, what the allocator loses between blocks.
"""

import contextlib

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
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
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    options = {"config": config, "dtype": dtype, "attn_implementation": "counted"}
    dist.init_process_group("fake", rank=0, world_size=gpus, store=FakeStore())
    piece, train.WORLD, train.PIECE = train.PIECE, gpus, 1 << 62  # a GPU takes a matrix whole
    try:
        # Made of real tensors, which the fake mode refuses to mix with its own
        mesh = init_device_mesh("cpu", (gpus,))
        with FakeTensorMode():
            model = train.build(options, "cpu")
            if recompute:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            learner = train.shard(model, mesh, reshard) if gpus > 1 else train.Learner(model)
            return step_peak(learner.train(), precision, pack_tokens)
    finally:
        train.WORLD, train.PIECE = 1, piece
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
