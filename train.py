"""SFT (paper 3, C.3): fine-tune a model on instruction-response pairs, in one plain PyTorch loop.

    python train.py --model MODEL --data runs/first/sft.jsonl --out runs/first/model
    torchrun --standalone --nproc-per-node 8 train.py ...

--out becomes a checkpoint folder that transformers and vLLM load: safetensors, the tokenizer with its chat
template, a generation config that stops at the end-of-text token; beside them train.json (the settings),
log.jsonl (a row per step) and loss.png. It appears when training is complete. Until then everything is in
OUT.unfinished, and the same command, on any number of GPUs, goes on from the last checkpoint there.

- The loss covers the target tokens: the response and its end-of-text token. It is the sum of a step's token
  losses over their number, however the step is cut into packs and split over GPUs: never a mean of means.
- Several examples are packed in one row, without padding; attention stays within each (`packed_attention`).
- Logits are computed at the target tokens only, a chunk at a time (`LinearCrossEntropy`).
- --precision bf16 (the paper's) takes 4 bytes per parameter, gradient included; rounding undoes most of
  a small step. mixed takes 6: bf16 arithmetic, weights kept exactly as in fp32. fp32 takes 8. The last two
  learn more at the same rate. Several GPUs share these bytes.
- The saved model is bf16 whatever the precision.
- Adafactor without relative step (C.3); the rate rises over 5 % of the steps, then falls linearly.
- Every random choice comes from --seed and the epoch, so a checkpoint holds no random state.

Differs from the paper: epochs, not stated for its main model (timings fit 2); packing; the rate never
reaches 0, so that every step learns.
"""

import argparse
import contextlib
import copy
import datetime
import functools
import hashlib
import heapq
import json
import logging
import math
import os
import random
import re
import shutil
import sys
import time
import warnings
from pathlib import Path

# Read by torch when it is imported: blocks of many sizes otherwise leave holes in a GPU's memory.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from tqdm import tqdm

CHAT_TEMPLATE = Path(__file__).parent / "prompts" / "chat.jinja"
GPU_DRIVER = Path("/dev/nvidiactl")  # there where a GPU is, whether torch can use it or not
# Dense bf16, data sheets, by the end of torch's name; NVL and Grace variants are slower or faster: none.
PEAK_FLOPS = {
    r"A100\b.*": 312e12,
    r"H100 PCIe": 756e12,
    r"H100 80GB HBM3": 989e12,
    r"H200": 989e12,
    r"B200": 2250e12,
}
BYTES = {"bf16": (2, 2), "mixed": (4, 2), "fp32": (4, 4)}  # per parameter: weight (and low half), gradient
PIECE = 1 << 20  # numbers of a matrix that a CPU's optimizer takes at a time
WARMUP = 0.05  # share of the steps in which the learning rate rises (C.3)
# Training may go on with other values of these: places, and what changes speed, memory and rounding.
MAY_CHANGE = "out data pack_tokens attention recompute reshard compile checkpoint_every".split()
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
Example = tuple[list[int], int]  # the token ids of prompt and response, and how many of them are the prompt
say = print if RANK == 0 else lambda *_, **__: None
warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a single process's checkpoint
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # Triton is missing on every CPU


# A class of its own, as train.py imports nothing of ours: with prompts/chat.jinja it can be taken elsewhere.
class BadInput(Exception):
    """A mistake of the user's, or a failing disk: ends the program with one line and exit status 2."""


@contextlib.contextmanager
def one_line(action: str):
    """A failure in the block ends the program with the line "cannot ACTION: REASON". Raises BadInput."""
    try:
        yield
    # For a full disk or a torn file, torch, safetensors and tokenizers have classes of their own or none.
    except (Exception, dcp.CheckpointException) as error:
        if isinstance(error, dcp.CheckpointException):
            error = next(iter(error.failures.values()))[0]
            error = error.__context__ or error  # torch's complaint of a torn file follows the disk's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"cannot {action}: {reason}") from None


def parse_arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--model", required=True, help="a checkpoint folder or a hub id")
    add("--data", required=True, type=Path, help="JSON Lines with `instruction` and `response`")
    add("--out", required=True, type=Path, help="the checkpoint folder to make")

    add = parser.add_argument_group("recipe; the defaults are the paper's (C.3)").add_argument
    add("--epochs", type=int, default=2, help="4 for StarCoder2-15B, not stated for the main model")
    add("--lr", type=float, default=1e-5, help="peak (C.3); 2e-5 for data made by another model")
    add("--batch-size", type=int, default=64, help="examples per step, over all GPUs (C.3)")
    add("--max-length", type=int, default=1280, help="tokens per example; the rest is cut off (C.3)")
    add("--precision", choices=["bf16", "mixed", "fp32"], default="bf16", help="see above (C.3: bf16)")
    template = "new: prompts/chat.jinja, for a base model. keep: the tokenizer's own, for a chat model"
    add("--chat-template", choices=["new", "keep"], default="new", help=template)
    share = "share of the instructions, by hash, not learned; its loss is measured each epoch"
    add("--validation-share", type=float, default=0.0, metavar="SHARE", help=share)
    add("--seed", type=int, default=0, help="of the order of the examples")

    add = parser.add_argument_group("speed and memory; they change the result by rounding only").add_argument
    add("--pack-tokens", type=int, default=4096, help="tokens per forward pass, at least --max-length")
    add("--attention", default="packed", help="packed, or one of transformers' own: sdpa, eager, ..")
    add("--recompute", choices=["auto", "on", "off"], default="auto", help="gradient checkpointing")
    add("--reshard", choices=["auto", "on", "off"], default="auto", help="no GPU keeps the whole weights")
    backend = "inductor" if torch.cuda.is_available() else "off"
    add("--compile", default=backend, metavar="BACKEND", help="off, or torch.compile's, inductor on a GPU")
    add("--checkpoint-every", type=float, default=15, metavar="MINUTES", help="0: after every step")
    arguments = parser.parse_args()
    for name, least in {"epochs": 1, "batch_size": 1, "max_length": 1, "checkpoint_every": 0}.items():
        if not getattr(arguments, name) >= least:
            raise BadInput(f"--{name.replace('_', '-')} must be at least {least}")
    arguments.pack_tokens = max(arguments.pack_tokens, arguments.max_length)
    return arguments


# ------------------------------------------------------------------------------------------------------ data
def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The instructions and responses of a JSON Lines file. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"no such data file: {path}")
    pairs = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            pairs.append((row["instruction"], row["response"]))
            "".join(pairs[-1]).encode()  # fails where the tokenizer would: a number, half a surrogate pair
        except (ValueError, KeyError, TypeError):
            problem = "not a JSON object with the texts `instruction` and `response`"
            raise BadInput(f"{path}:{number}: {problem}") from None
    if not pairs:
        raise BadInput(f"{path} holds no examples to train on")
    return pairs


def encode_example(tokenizer, instruction: str, response: str) -> Example:
    """Prompt + response + end of text, tokenized apart: as when the model is asked, no token spans both."""
    messages = [{"role": "user", "content": instruction}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    response_ids = tokenizer(response, add_special_tokens=False).input_ids
    return prompt_ids + response_ids + [tokenizer.eos_token_id], len(prompt_ids)


def encode_pairs(pairs, tokenizer, max_length: int, share: float) -> tuple[list[Example], list[Example]]:
    """The examples to learn and those to validate on, cut at `max_length` tokens. Raises BadInput."""
    examples, validation, longer = [], [], 0
    for instruction, response in pairs:
        ids, prompt_length = encode_example(tokenizer, instruction, response)
        if response.strip() and prompt_length < max_length:
            longer += len(ids) > max_length
            # By hash, the same instruction is never on both sides, and more data moves none across.
            digest = hashlib.sha256(instruction.encode()).hexdigest()
            side = validation if int(digest[:8], 16) < share * 2**32 else examples
            side.append((ids[:max_length], prompt_length))
    left_out = len(pairs) - len(examples) - len(validation)
    counts = f"{len(validation)} for validation, {left_out} without a response or with too long a prompt"
    if not examples:
        raise BadInput(f"none of {len(pairs)} examples is left to learn: {counts}")
    say(f"{len(examples)} examples to learn, {counts}; {longer} cut at {max_length} tokens")
    ids, prompt_length = examples[0]
    prompt, response = tokenizer.decode(ids[:prompt_length]), tokenizer.decode(ids[prompt_length:])
    say("--- not learned:", prompt, "--- learned:", response, "---", sep="\n")
    return examples, validation


def count_targets(examples: list[Example]) -> int:
    return sum(len(ids) - prompt_length for ids, prompt_length in examples)


def balanced_packs(examples: list[Example], capacity: int, multiple: int) -> list[list[Example]]:
    """Close to the fewest packs of at most `capacity` tokens, of similar size, largest first. Their number is
    a multiple of `multiple`, the number of GPUs.

    Longest example first, each into the emptiest pack. Some packs are empty where examples are too few.
    """
    longest_first = sorted(examples, key=lambda example: -len(example[0]))
    fewest = sum(len(ids) for ids, _ in examples) / capacity
    number = multiple * max(1, math.ceil(fewest / multiple))
    while True:
        packs = [(0, place, []) for place in range(number)]
        for example in longest_first:
            tokens, place, pack = packs[0]
            heapq.heapreplace(packs, (tokens + len(example[0]), place, [*pack, example]))
        packs.sort(reverse=True)
        if packs[0][0] <= capacity:
            return [pack for _, _, pack in packs]
        number += multiple


def make_pack(examples: list[Example], device) -> dict:
    """One row of T tokens, the examples one after another, positions starting anew with each; `predicting`,
    the N places whose next token is learned, by position and never by token id; `targets`, those N tokens."""
    ids, positions, predicting, bounds = [], [], [], [0]
    for example, prompt_length in examples:
        predicting += range(len(ids) + prompt_length - 1, len(ids) + len(example) - 1)
        ids += example
        positions += range(len(example))
        bounds.append(len(ids))
    predicting = torch.tensor(predicting, dtype=torch.long, device=device)
    inputs = {"input_ids": torch.tensor([ids], device=device)}
    inputs["position_ids"] = torch.tensor([positions], device=device)
    # The names by which transformers' attention functions know the examples' bounds.
    inputs["cu_seq_lens_q"] = torch.tensor(bounds, dtype=torch.int32, device=device)
    inputs["cu_seq_lens_k"] = inputs["cu_seq_lens_q"]
    inputs["max_length_q"] = inputs["max_length_k"] = max(len(example) for example, _ in examples)
    return {"inputs": inputs, "predicting": predicting, "targets": inputs["input_ids"][0, predicting + 1]}


def my_packs(examples: list[Example], pack_tokens: int, device) -> list[dict]:
    """This GPU's packs of a step. Every GPU gets equally many, and packs that run at the same time are of
    similar size, since GPUs wait for each other."""
    nothing_to_learn = [([0], 1)]
    packs = balanced_packs(examples, pack_tokens, WORLD)
    return [make_pack(pack or nothing_to_learn, device) for pack in packs[RANK::WORLD]]


# ------------------------------------------------------------------------------------------------------ loss
def packed_attention(module, query, key, value, mask, scaling=None, **options):
    """Causal attention within each example of a pack. Raises BadInput for a model that needs more than that.

    Called by transformers: (1, H, T, D) queries, (1, H or fewer, T, D) keys and values; gives (1, T, H, D).
    transformers' own way for a row of several examples is a T x T mask, which computes what it then hides.
    """
    bounds, longest = options["cu_seq_lens_q"], options["max_length_q"]
    if unsupported := [name for name in ("softcap", "s_aux") if options.get(name) is not None]:
        raise BadInput(f"packed attention does not do this model's {unsupported[0]}: take --attention eager")
    if (options.get("sliding_window") or longest) < longest:
        raise BadInput("packed attention does not do this model's sliding window: take --attention sdpa")
    sharing = query.shape[1] // key.shape[1]  # so many query heads share a key head
    if query.is_cuda and query.dtype == torch.bfloat16:
        return varlen_attention(query, key, value, bounds, longest, scaling), None
    key, value = (states.repeat_interleave(sharing, dim=1) for states in (key, value))
    lengths = bounds.diff().tolist()
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)))
    attended = [F.scaled_dot_product_attention(*part, is_causal=True, scale=scaling) for part in parts]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def varlen_attention(query, key, value, bounds, longest: int, scaling):
    """packed_attention by one kernel of torch's own, for CUDA and bf16. Gives (1, T, H, D)."""
    from torch.nn.attention.varlen import varlen_attn

    shared = query.shape[1] > key.shape[1]
    states = [states[0].transpose(0, 1).contiguous() for states in (query, key, value)]  # (T, H, D)
    causal = {"window_size": (-1, 0), "scale": scaling, "enable_gqa": shared}
    return varlen_attn(*states, bounds, bounds, longest, longest, **causal)[None]


class LinearCrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropies of `targets` (N) under the logits hidden @ weight.T, (N, D) by (V, D).

    The backward pass only scales the gradients of a sum, so they are formed while a chunk's logits exist.
    """

    @staticmethod
    def forward(context, hidden, weight, targets, chunk=1024):
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight) if context.needs_input_grad[1] else None
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            logits = (hidden[rows] @ weight.T).float()  # (C, V), the largest tensor of all
            log_partition = logits.logsumexp(dim=-1, keepdim=True)
            target = targets[rows, None]
            total += (log_partition - logits.gather(1, target)).sum()
            gradient = logits.sub_(log_partition).exp_()
            gradient = gradient.scatter_add_(1, target, -torch.ones_like(log_partition)).to(hidden.dtype)
            hidden_gradient[rows] = gradient @ weight
            if weight_gradient is not None:
                weight_gradient.addmm_(gradient.T, hidden[rows])
        context.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    def backward(context, scale):
        hidden, weight = (None if saved is None else saved * scale for saved in context.saved_tensors)
        return hidden, weight, None, None


class Learner(torch.nn.Module):
    """The model as a function from a pack to the sum of its token losses: the unit that FSDP splits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pack):
        hidden = self.model.base_model(**pack["inputs"], use_cache=False).last_hidden_state[0]  # (T, D)
        head = self.model.get_output_embeddings().weight
        return LinearCrossEntropy.apply(hidden[pack["predicting"]], head, pack["targets"])


def mean_loss(learner, examples: list[Example], pack_tokens: int, device, learn: bool) -> float:
    """The loss per target token, over all GPUs; with `learn`, its gradient is left in the weights."""
    targets = count_targets(examples)
    total = torch.zeros((), dtype=torch.float64, device=device)
    learner.train(learn)
    for pack in my_packs(examples, pack_tokens, device):
        with torch.set_grad_enabled(learn):
            loss = learner(pack)
        if learn:
            (loss * (WORLD / targets)).backward()  # FSDP takes the mean over the GPUs
        total += loss.detach()
    if WORLD > 1:
        dist.all_reduce(total)
    return total.item() / targets


def step_flops(model, examples: list[Example]) -> tuple[int, int]:
    """Floating-point operations of a step, forward and backward: as commonly published, 6 N + 12 L d T per
    token of an example of T tokens, and those needed: causal attention, the head at target tokens only."""
    config = model.config.get_text_config()
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    parameters = sum(weight.numel() for weight in model.parameters())
    embeddings = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}  # one if tied
    head = model.get_output_embeddings().weight.numel()
    body = parameters - sum(weight.numel() for weight in embeddings)
    tokens = sum(len(ids) for ids, _ in examples)
    attention = 12 * layers * width * sum(len(ids) ** 2 for ids, _ in examples)
    needed = 6 * body * tokens + 6 * head * count_targets(examples) + attention // 2
    return 6 * parameters * tokens + attention, needed


# ------------------------------------------------------------------------------------------------- optimizer
def learning_rate(step: int, steps: int, peak: float) -> float:
    """Of a step, counted from 1: linear up over the first WARMUP, then linear down, never 0 (C.3)."""
    rising = math.ceil(WARMUP * steps)
    return peak * (step / rising if step <= rising else (steps - step + 1) / (steps - rising))


def new_state(weight, precision: str) -> dict:
    """What is kept of a weight: fp32 means of squared gradients and, if `mixed`, the low half of its bits."""
    zeros_like = lambda tensor, dtype: torch.zeros_like(tensor, dtype=dtype, requires_grad=False)
    if weight.dim() >= 2:
        state = {"row": zeros_like(weight[..., 0], torch.float32)}
        state["column"] = zeros_like(weight[..., 0, :], torch.float32)
    else:
        state = {"square": zeros_like(weight, torch.float32)}
    if precision == "mixed" and weight.dtype == torch.bfloat16:
        state["low"] = zeros_like(weight, torch.int16)
    return state


def split_halves(exact):
    """An fp32 tensor as the nearest bf16 tensor and, as int16, the distance to it in fp32's last place."""
    bits = exact.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def join_halves(high, low):
    """What split_halves split, exactly."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low).view(torch.float32)


def split_rows(weight, gradient, state: dict) -> list[tuple]:
    """On a CPU, a matrix in pieces of a few rows: the temporaries of a whole one take 8 times as long."""
    if gradient.dim() != 2 or gradient.device.type != "cpu":
        return [(weight, gradient, state)]
    rows = max(1, PIECE // gradient.shape[1])
    return [
        (weight[at], gradient[at], {key: state[key] if key == "column" else state[key][at] for key in state})
        for at in (slice(first, first + rows) for first in range(0, max(1, len(gradient)), rows))
    ]


# Adafactor with an external rate: no relative step, no scaling by the weights (C.3). Three passes over the
# rows that this GPU has of a weight; between them the GPUs add up their sums, for all weights at once.
def update_moments(gradient, state: dict, fresh):
    """Update the second moments, with weight `fresh` = 1 - beta2; a matrix's columns wait for the sums of all
    rows. Gives a matrix's sums over rows: of each column's squares (C) and, last, of the rows' moments."""
    square = gradient.float() ** 2 + 1e-30
    if gradient.dim() < 2:
        state["square"].mul_(1 - fresh).add_(square * fresh)
        return square.new_zeros(0)
    state["row"].mul_(1 - fresh).add_(square.mean(dim=-1) * fresh)
    return torch.cat([square.sum(dim=-2), state["row"].sum(dim=-1, keepdim=True)], dim=-1)


def update_columns(state: dict, fresh, sums, rows: int):
    state["column"].mul_(1 - fresh).add_(sums[..., :-1] / rows * fresh)


def unclipped(gradient, state: dict, sums, rows: int):
    if gradient.dim() < 2:
        return state["square"].rsqrt() * gradient.float()
    row = (state["row"] / (sums[..., -1:] / rows)).rsqrt()
    return row.unsqueeze(-1) * state["column"].rsqrt().unsqueeze(-2) * gradient.float()


def squared_norms(gradient, state: dict, sums, rows: int):
    """The sums of squares of the update and of the gradient."""
    update = unclipped(gradient, state, sums, rows)
    return torch.stack([update.square().sum(), gradient.float().square().sum()])


def apply_update(weight, gradient, state: dict, rate, sums, size, rows: int):
    """Subtract the update, divided by the root of its mean square, `size`, where that is over 1."""
    update = unclipped(gradient, state, sums, rows) * (rate / size.clamp(min=1.0))
    if "low" in state:
        high, low = split_halves(join_halves(weight, state["low"]) - update)
        weight.copy_(high)
        state["low"].copy_(low)
    else:
        weight.copy_(weight.float() - update)


@functools.cache
def compiled(function, backend: str):
    return function if backend == "off" else torch.compile(function, backend=backend, dynamic=True)


def add_over_gpus(tensors: list):
    """Replace each by its sum over the GPUs, with one all-reduce."""
    if WORLD > 1:
        whole = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(whole)
        for tensor, total in zip(tensors, whole.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view_as(tensor))


def local(tensor):
    """What this GPU has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def optimize(weights: dict, states: dict, step: int, rate: float, backend: str = "off") -> float:
    """One step, counted from 1, on every weight; uses up the gradients. Gives their common norm."""
    pieces = []  # of each weight
    for name, weight in weights.items():
        state = {key: local(tensor) for key, tensor in states[name].items()}
        # Detached, since a function is compiled anew for every shape of a Parameter.
        pieces.append(split_rows(local(weight.detach()), local(weight.grad), state))
    rows = [weight.shape[-2] if weight.dim() > 1 else 1 for weight in weights.values()]
    # As tensors, since a function is compiled anew for another number.
    device = next(iter(weights.values())).device
    rate, fresh = (torch.tensor(value, device=device) for value in (rate, step**-0.8))
    functions = (update_moments, update_columns, squared_norms, apply_update)
    moments, columns, norm, apply = (compiled(function, backend) for function in functions)
    sums = [sum(moments(gradient, state, fresh) for _, gradient, state in each) for each in pieces]
    # Weights are split by their first dimension: with more than two, every matrix is whole on one GPU.
    add_over_gpus([total for total in sums if total.dim() == 1])
    for each, total, row in zip(pieces, sums, rows):
        _, _, state = each[0]  # all pieces of a matrix share its columns
        if "column" in state:
            columns(state, fresh, total, row)
    norms = [
        sum(norm(gradient, state, total, row) for _, gradient, state in each)
        for each, total, row in zip(pieces, sums, rows)
    ]
    add_over_gpus(norms)
    for weight, each, total, squares, row in zip(weights.values(), pieces, sums, norms, rows):
        size = (squares[0] / weight.numel()).sqrt()
        for piece, gradient, state in each:
            apply(piece, gradient, state, rate, total, size, row)
        weight.grad = None
    return torch.stack(norms)[:, 1].sum().sqrt().item()


# ----------------------------------------------------------------------------------------------------- model
def read_model(arguments) -> tuple[dict, object]:
    """What transformers builds the model from, every dropout at 0 (C.3), and the tokenizer with its chat
    template. Raises BadInput."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one line of ours instead of its retries
    from transformers import AttentionInterface, AutoConfig, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    AttentionInterface.register("packed", packed_attention)
    name, dtype = arguments.model, torch.float32 if arguments.precision == "fp32" else torch.bfloat16
    with one_line(f"load the model {name}"):
        config = AutoConfig.from_pretrained(name)
        for key, value in config.to_dict().items():
            if isinstance(value, float) and ("dropout" in key or key.endswith("pdrop")):
                setattr(config, key, 0.0)
        tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.eos_token_id is None:
        raise BadInput(f"the tokenizer of {name} has no end-of-text token")
    if len(tokenizer) > config.get_text_config().vocab_size:
        raise BadInput(f"the tokenizer of {name} has {len(tokenizer)} tokens, its model fewer")
    if arguments.chat_template == "new":
        tokenizer.chat_template = CHAT_TEMPLATE.read_text()
    elif not tokenizer.chat_template:
        raise BadInput(f"the tokenizer of {name} has no chat template to keep")
    return {"config": config, "dtype": dtype, "attn_implementation": arguments.attention}, tokenizer


def fingerprint(name: str, config) -> str:
    """The hub's commit, or a hash of a folder's config.json and of 16 places in each file of weights."""
    if not (folder := Path(name)).is_dir():
        return str(getattr(config, "_commit_hash", None))
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(16):
                file.seek(size * part // 16)
                digest.update(file.read(4096))
    return digest.hexdigest()


def build(options: dict, device):
    """A model of these options with random weights, or on the meta device with none. Raises BadInput."""
    from transformers import AutoModelForCausalLM

    with one_line("build the model"), torch.device(device):
        return AutoModelForCausalLM.from_config(**options)


@torch.no_grad()
def check_architecture(options: dict, examples: list[Example], device):
    """Refuse a model whose logits are more than the product with one matrix, which LinearCrossEntropy takes
    them for, or in which packed examples see each other. Raises BadInput.

    Checked on the device of training, with a small random model of the same kind.
    """
    options = options | {"config": copy.deepcopy(options["config"])}
    config = options["config"].get_text_config()
    kinds = getattr(config, "layer_types", None) or [None]
    config.num_hidden_layers = max(2, *(kinds.index(kind) + 1 for kind in kinds))  # one layer of each kind
    model = build(options, device).eval()
    for weight in model.parameters():
        if weight.dim() < 2:
            weight.uniform_(0.5, 1.5)  # a bias begins at 0, and would not be seen
        else:
            weight.normal_(std=weight.shape[-1] ** -0.5)  # so that what attention brings is not small
    model.get_output_embeddings().weight.normal_()  # logits so large that a limit on them shows

    examples = [(ids[: prompt_length + 64], prompt_length) for ids, prompt_length in examples[:2]]
    inputs = make_pack(examples, device)["inputs"]
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
    product = F.linear(hidden, model.get_output_embeddings().weight)
    logits = model(**inputs, use_cache=False).logits
    if not torch.allclose(logits.float(), product.float(), rtol=0.02, atol=0.02):
        raise BadInput("train.py cannot train this model: its logits are more than a product with one matrix")
    first = len(examples[0][0])
    inputs["input_ids"][:, :first] = inputs["input_ids"][:, :first].flip(1)
    changed = model.base_model(**inputs, use_cache=False).last_hidden_state
    if not torch.allclose(changed[:, first:].float(), hidden[:, first:].float(), rtol=1e-3, atol=1e-3):
        attention = f"--attention {options['attn_implementation']}"
        raise BadInput(f"packed examples see each other in this model with {attention}: take sdpa or eager")


def memory_settings(model, arguments, memory: int) -> tuple[bool, bool]:
    """Whether to reshard and to recompute where the arguments leave it open, given bytes per GPU. An estimate
    that leaves 30 % for what it does not count. extras/memory.py counts."""
    parameters = sum(weight.numel() for weight in model.parameters())
    weight, gradient = BYTES[arguments.precision]
    kept, gradients = weight * parameters / WORLD, gradient * parameters / WORLD
    whole = model.dtype.itemsize * parameters * (WORLD > 1)
    # The usual layer keeps its inputs, queries, keys, values, output, and four rows as wide as the MLP.
    config = model.config.get_text_config()
    per_token = config.num_hidden_layers * (14 * config.hidden_size + 4 * config.intermediate_size)
    activations = model.dtype.itemsize * arguments.pack_tokens * per_token
    # Gradients appear as the backward pass frees activations
    needs = lambda activations: kept + max(gradients, activations)
    recompute, reshard = arguments.recompute, arguments.reshard
    recompute = recompute == "on" or (recompute == "auto" and needs(activations) > 0.7 * memory)
    needed = needs(activations * (not recompute)) + whole
    return reshard == "on" or (reshard == "auto" and needed > 0.7 * memory), recompute


def layers_of(model):
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))


def shard(model, mesh, reshard: bool) -> Learner:
    """The learner with the rows of every weight split over the GPUs."""
    settings = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32)}
    for layer in layers_of(model):
        fully_shard(layer, reshard_after_forward=reshard, **settings)
    return fully_shard(Learner(model), reshard_after_forward=False, **settings)


@torch.no_grad()
def scatter_weights(loaded, model, device):
    """Give each GPU its part of the weights, and the buffers, of the model that rank 0 has loaded."""
    tensors = lambda model: dict(model.named_parameters()) | dict(model.named_buffers())
    source = tensors(loaded) if RANK == 0 else {}
    model.to_empty(device=device)
    for name, tensor in tensors(model).items():
        whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        if RANK == 0:
            whole.copy_(source[name])
        dist.broadcast(whole, 0)
        if isinstance(tensor, DTensor):
            whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.copy_(whole)


def make_learner(options: dict, arguments, device) -> Learner:
    """The learner on its device. Of several ranks, only the first holds the whole model, in host memory."""
    from transformers import AutoModelForCausalLM

    if RANK == 0:
        with one_line(f"load the model {arguments.model}"):
            model = loaded = AutoModelForCausalLM.from_pretrained(arguments.model, **options)
    if WORLD > 1:
        model = build(options, "meta")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / WORLD
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    reshard, recompute = memory_settings(model, arguments, memory)
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if arguments.compile != "off":
        for layer in layers_of(model):
            layer.compile(backend=arguments.compile, dynamic=True)
    if WORLD == 1:
        return Learner(model.to(device))
    learner = shard(model, init_device_mesh(device.type, (WORLD,)), reshard)
    scatter_weights(loaded if RANK == 0 else None, model, device)
    if RANK == 0:
        model.generation_config = loaded.generation_config
    return learner


# ----------------------------------------------------------------------------------------------- checkpoints
def is_trained(out: Path, unfinished: Path, settings: dict) -> bool:
    """Whether --out is complete. Raises BadInput if it, or OUT.unfinished, was made with other settings."""
    for folder in [out] if (out / "train.json").exists() else filter(Path.exists, (out, unfinished)):
        if not (folder / "train.json").exists():
            raise BadInput(f"{folder} exists and was not made by train.py: take another --out")
        made = json.loads((folder / "train.json").read_text())
        compared = settings.keys() - MAY_CHANGE
        if changed := sorted(key for key in compared if made.get(key) != settings[key]):
            raise BadInput(f"{folder} was made with another {', '.join(changed)}: take another --out")
    return out.exists()


def append_row(log: Path, row: dict):
    if RANK == 0:
        with one_line(f"write {log}"), log.open("a") as file:
            file.write(json.dumps(row) + "\n")


def checkpoint_is_due(saved: float, minutes: float, device) -> bool:
    """By the first rank's clock, as all ranks must save together."""
    due = torch.tensor(int(time.monotonic() - saved >= 60 * minutes), device=device)
    if WORLD > 1:
        dist.broadcast(due, 0)
    return bool(due)


def save_checkpoint(unfinished: Path, step: int, tensors: dict):
    """All that the next step depends on. The folder gets its name when it is whole; then older ones go."""
    made, writing = unfinished / f"checkpoint-{step}", unfinished / "checkpoint.writing"
    with one_line(f"write {made}"):
        dcp.save(tensors, checkpoint_id=writing, no_dist=not dist.is_initialized())
        if RANK == 0:
            os.replace(writing, made)
            for older in set(unfinished.glob("checkpoint-*")) - {made}:
                shutil.rmtree(older)


def resume(unfinished: Path, settings: dict, tensors: dict) -> int:
    """Begin, or load the last checkpoint into the tensors. Gives the number of steps done.

    Later steps are done again: their rows go from the log, as do a torn line and a torn checkpoint.
    """
    if RANK == 0 and not unfinished.exists():
        with one_line(f"write {unfinished}"):  # by renaming: a folder of ours always holds its settings
            writing = Path(f"{unfinished}.writing")
            writing.mkdir(parents=True, exist_ok=True)
            (writing / "train.json").write_text(json.dumps(settings, indent=2))
            os.replace(writing, unfinished)
    step = max((int(path.name.split("-")[1]) for path in unfinished.glob("checkpoint-*")), default=0)
    checkpoint = unfinished / f"checkpoint-{step}"
    if step:
        with one_line(f"read {checkpoint}"):
            dcp.load(tensors, checkpoint_id=checkpoint, no_dist=not dist.is_initialized())
    if RANK == 0:
        with one_line(f"write {unfinished}"):
            shutil.rmtree(unfinished / "checkpoint.writing", ignore_errors=True)
            log, writing = unfinished / "log.jsonl", unfinished / "log.jsonl.writing"
            rows = log.read_text().splitlines(keepends=True) if step else []
            done = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step]
            writing.write_text("".join(done))
            os.replace(writing, log)
    return step


def save_model(out: Path, unfinished: Path, settings: dict, model, tokenizer):
    """The trained model in --out, all of it at once, and nothing in OUT.unfinished."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    if RANK > 0:
        return
    made = unfinished / "model"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    weights = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    model.config.dtype = torch.bfloat16
    with one_line(f"write {made}"):
        shutil.rmtree(made, ignore_errors=True)
        model.save_pretrained(made, state_dict=weights)
        tokenizer.save_pretrained(made)
        add_older_forms(made)
        shutil.copy(unfinished / "log.jsonl", made)
        plot(made / "log.jsonl", made / "loss.png")
        (made / "train.json").write_text(json.dumps(settings, indent=2))
        os.replace(made, out)
        shutil.rmtree(unfinished)


def add_older_forms(folder: Path):
    """Write into a checkpoint folder of transformers 5 what version 4 reads, and the libraries built on it:
    without it they take another rotary base, fp32, no chat template or no tokenizer, mostly in silence."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:  # not there where each kind of layer has its own: version 4 has no form for that
        config["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    file, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = json.loads(file.read_text())
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if template.is_file():
        config["chat_template"] = template.read_text()
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def plot(log: Path, image: Path):
    """The loss of the steps, and of the validation, from the log."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    axes = (figure := Figure(figsize=(8, 4.5))).subplots()
    for name, style in (("loss", "-"), ("validation_loss", "o--")):
        if points := [(row["step"], row[name]) for row in rows if name in row]:
            axes.plot(*zip(*points), style, label=name)
    axes.set(xlabel="step", ylabel="loss per target token")
    axes.legend()
    figure.savefig(image)


# -------------------------------------------------------------------------------------------------- the loop
def start_processes() -> torch.device:
    """This process's device; where torchrun started several processes, they are connected. Raises BadInput
    where a GPU is there that torch cannot use: no training on the CPU that nobody asked for."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
        torch.cuda.set_device(device)
    elif GPU_DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        with one_line("use the GPU (to train on the CPU, set CUDA_VISIBLE_DEVICES=-1)"):
            torch.cuda.init()  # says why
            raise RuntimeError("torch finds none")
    if WORLD > 1:
        # The other ranks wait while the first downloads and loads the model.
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=6))
    return device


def read_settings(arguments, options: dict, tokenizer) -> dict:
    """What train.json keeps; training goes on only where all but MAY_CHANGE are the same."""
    settings = vars(arguments) | {"data": str(arguments.data), "out": str(arguments.out), "warmup": WARMUP}
    settings["data_sha256"] = hashlib.sha256(arguments.data.read_bytes()).hexdigest()
    settings["chat_template_sha256"] = hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
    settings["model_sha256"] = fingerprint(arguments.model, options["config"])
    return settings


def speed_of(batch: list[Example], seconds: float, flops: tuple[int, int], device) -> dict:
    """Tokens per second and, on a GPU, the peak of its memory and the shares of its data sheet's FLOPS that
    both counts of `step_flops` come to."""
    speed = {"tokens_per_second": sum(len(ids) for ids, _ in batch) / seconds}
    if device.type == "cuda":
        speed["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        name = torch.cuda.get_device_name(device)
        for peak in (flops for model, flops in PEAK_FLOPS.items() if re.fullmatch(f"NVIDIA {model}", name)):
            speed["mfu"], speed["mfu_needed"] = (count / seconds / peak / WORLD for count in flops)
    return speed


def train(arguments):
    pairs = read_pairs(arguments.data)
    options, tokenizer = read_model(arguments)
    settings = read_settings(arguments, options, tokenizer)
    unfinished = Path(f"{arguments.out}.unfinished")
    if is_trained(arguments.out, unfinished, settings):
        if RANK == 0 and (unfinished / "train.json").exists():  # killed before the last clean-up
            shutil.rmtree(unfinished)
        return say(f"{arguments.out} is trained already")
    device = start_processes()
    emulated = device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if emulated and arguments.precision != "fp32":
        say("this processor has no instructions for bf16: --precision fp32 is several times as fast")
    examples, validation = encode_pairs(pairs, tokenizer, arguments.max_length, arguments.validation_share)
    check_architecture(options, examples, device)

    learner = make_learner(options, arguments, device)
    weights = {name: weight for name, weight in learner.model.named_parameters() if weight.requires_grad}
    states = {name: new_state(weight, arguments.precision) for name, weight in weights.items()}
    tensors = {"weights": {name: weight.detach() for name, weight in weights.items()}, "states": states}
    done, log = resume(unfinished, settings, tensors), unfinished / "log.jsonl"
    size, per_epoch = arguments.batch_size, math.ceil(len(examples) / arguments.batch_size)
    steps = arguments.epochs * per_epoch
    say(f"{steps} steps, precision {arguments.precision}, on {WORLD} x {device.type}")

    def validate(step):
        loss = mean_loss(learner, validation, arguments.pack_tokens, device, learn=False)
        append_row(log, {"step": step, "validation_loss": loss})
        say(f"\nstep {step}: validation loss {loss:.4f}")

    if validation and done == 0:
        validate(0)
    saved = time.monotonic()
    with tqdm(desc="train", total=steps, initial=done, unit="step", disable=RANK > 0) as bar:
        for step in range(done + 1, steps + 1):
            started = time.monotonic()
            epoch, place = divmod(step - 1, per_epoch)
            if place == 0 or step == done + 1:
                order = random.Random(f"{arguments.seed}/{epoch}").sample(examples, len(examples))
            batch = order[place * size : (place + 1) * size]
            loss = mean_loss(learner, batch, arguments.pack_tokens, device, learn=True)
            if not math.isfinite(loss):
                raise BadInput(f"the loss of step {step} is {loss}: --lr is too high, or the model is broken")
            rate = learning_rate(step, steps, arguments.lr)
            norm = optimize(weights, states, step, rate, arguments.compile)

            row = {"step": step, "epoch": epoch, "loss": loss, "lr": rate, "gradient_norm": norm}
            row |= {"tokens": sum(len(ids) for ids, _ in batch), "target_tokens": count_targets(batch)}
            row |= speed_of(batch, time.monotonic() - started, step_flops(learner.model, batch), device)
            append_row(log, row)
            shown = f"loss {loss:.3f}, lr {rate:.1e}, {row['tokens_per_second']:.0f} tokens/s"
            shown += f", MFU {row['mfu']:.0%} ({row['mfu_needed']:.0%})" if "mfu" in row else ""
            bar.set_postfix_str(shown, refresh=False)
            bar.update()
            if validation and step % per_epoch == 0:
                validate(step)
            if checkpoint_is_due(saved, arguments.checkpoint_every, device) or step == steps:
                save_checkpoint(unfinished, step, tensors)
                saved = time.monotonic()
    save_model(arguments.out, unfinished, settings, learner.model, tokenizer)
    say(f"trained model: {arguments.out}")


def main() -> int:
    try:
        train(parse_arguments())
    except (BadInput, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        ways = "add --recompute on, --reshard on or a smaller --pack-tokens, or take more GPUs, to go on"
        print(f"train.py: out of memory: {ways}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
