"""A stand-in for the GPU's kernel of packed attention, so that train.py's branch for GPUs runs on a CPU."""

import torch
from torch.nn.attention import varlen

calls = []


def probabilities(query, key, scale):
    """Of causal attention: (T, H, D) queries and keys give (H, T, T)."""
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def each_example(bounds, *states):
    """Of each example the states in fp32, with as many heads of each as there are of the first."""
    heads = states[0].shape[1]
    wide = [state.float().repeat_interleave(heads // state.shape[1], dim=1) for state in states]
    return zip(*(state.split(bounds.diff().tolist()) for state in wide))


def forward(query, key, value, bounds, bounds_k, longest, longest_k, is_causal, scale, *_, **__):
    assert is_causal and bounds.dtype == torch.int32 and all(s.is_contiguous() for s in (query, key, value))
    calls.append(len(bounds) - 1)
    parts = [
        torch.einsum("hqk,khd->qhd", probabilities(q, k, scale), v)
        for q, k, v in each_example(bounds, query, key, value)
    ]
    sums = torch.zeros(query.shape[1], len(query))  # the kernel's own, for its backward pass
    return torch.cat(parts).to(query.dtype), sums, torch.zeros(2, dtype=torch.uint64)


def backward(
    gradient,
    query,
    key,
    value,
    output,
    sums,
    bounds,
    bounds_k,
    longest,
    longest_k,
    is_causal,
    state,
    scale,
    *_,
):
    gradients = []
    for q, k, v, d in each_example(bounds, query, key, value, gradient):
        p = probabilities(q, k, scale)
        dp = torch.einsum("qhd,khd->hqk", d, v)
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
        dq, dk = torch.einsum("hqk,khd->qhd", ds, k), torch.einsum("hqk,qhd->khd", ds, q)
        gradients.append((dq, dk, torch.einsum("hqk,qhd->khd", p, d)))
    wide = map(torch.cat, zip(*gradients))
    shared = lambda wide, state: wide.unflatten(1, (state.shape[1], -1)).sum(2).to(state.dtype)
    return tuple(shared(each, state) for each, state in zip(wide, (query, key, value)))


varlen._varlen_attn.register_kernel("cpu")(forward)
varlen._varlen_attn_backward.register_kernel("cpu")(backward)
