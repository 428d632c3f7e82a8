"""SFT (paper 3, C.3): fine-tune a model on instruction-response pairs, in one plain PyTorch loop.

    python train.py --model MODEL --data runs/first/sft.jsonl --out runs/first/model
    torchrun --standalone --nproc-per-node 8 train.py ...

--out becomes a checkpoint folder that transformers and vLLM load: safetensors, the tokenizer with its chat
template, a generation config that stops at the end-of-text token; beside them train.json (the settings),
log.jsonl (a row per step) and loss.png. It appears when training is complete. Until then everything is in
OUT.unfinished, and the same command, on any number of GPUs, resumes from the last checkpoint there.

- The loss covers the target tokens: the response and its end-of-text token. It is the sum of a step's token
  losses over their number, however the step is cut into packs and split over GPUs: never a mean of means.
- Several examples are packed in one row, without padding; attention stays within each (`packed_attention`).
- Logits are computed at the target tokens only, a chunk at a time (`LinearCrossEntropy`).
- Weights, gradients and optimizer are split over the GPUs by FSDP; a single process is a mesh of one.
- --precision bf16 (the paper's) takes 4 bytes per parameter, gradient included; rounding undoes most of
  a small step. mixed takes 8: bf16 arithmetic on weights kept in fp32. fp32 takes 8. The last two learn
  more at the same rate. The saved model is bf16 whatever the precision.
- Adafactor without relative step (C.3); the rate rises over 5 % of the steps, then falls linearly.
- Every random choice comes from --seed and the epoch, so a checkpoint holds no random state.

Differs from the paper: epochs, not stated for its main model (timings fit 2); packing; the rate never
reaches 0, so that every step learns.
"""

import argparse
import contextlib
import datetime
import functools
import hashlib
import heapq
import itertools
import json
import logging
import math
import os
import random
import re
import shutil
import sys
import textwrap
import time
import warnings
from pathlib import Path

# Read by torch when it is imported: blocks of many sizes otherwise leave holes in a GPU's memory.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch.distributed.checkpoint import state_dict as state_dicts
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from tqdm import tqdm

CHAT_TEMPLATE = Path(__file__).parent / "prompts" / "chat.jinja"
GPU_DRIVER = Path("/dev/nvidiactl")  # there where a GPU is, whether torch can use it or not
VARLEN_DEVICE = "cuda"  # where torch has a kernel for packed examples
WARMUP = 0.05  # share of the steps in which the learning rate rises (C.3)
# A training may be resumed with other values of these: places, and what changes speed, memory and rounding.
MAY_CHANGE = "out data pack_tokens attention recompute reshard compile checkpoint_every".split()
RANK, WORLD = int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)
Example = tuple[list[int], int]  # the token ids of prompt and response, and how many of them are the prompt
say = print if RANK == 0 else lambda *_, **__: None
warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a single process's checkpoint
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # Triton is missing on every CPU


# A class of its own, as train.py imports nothing of ours: with prompts/chat.jinja it can be taken elsewhere.
class BadInput(Exception):
    """A mistake of the user's, or a failing disk: ends the program with one line and exit status 2."""


@contextlib.contextmanager
def as_bad_input(action: str):
    """A failure in the block ends the program with the line "cannot ACTION: REASON". Raises BadInput."""
    try:
        yield
    # For a full disk or a torn file, torch, safetensors and tokenizers have classes of their own or none.
    except (Exception, dcp.CheckpointException) as error:
        if isinstance(error, dcp.CheckpointException):
            error = next(iter(error.failures.values()))[0]
            error = error.__context__ or error  # torch's complaint of a torn file follows the disk's
        said = repr(error) if isinstance(error, KeyError) else str(error)  # its text is the key alone
        reason = textwrap.shorten(said, 500) or type(error).__name__
        raise BadInput(f"cannot {action}: {reason}") from None


def parse_arguments() -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
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
    off = "off is faster; `selfcodealign.py doctor --model M` says where it fits"
    add("--recompute", choices=["on", "off"], default="on", help=f"gradient checkpointing; {off}")
    add("--reshard", choices=["on", "off"], default="on", help="a GPU keeps no layer's whole weights")
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
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pairs.append((row["instruction"], row["response"]))
            "".join(pairs[-1]).encode()  # fails where the tokenizer would: a number, half a surrogate pair
        except (ValueError, KeyError, TypeError, RecursionError):
            problem = "not a JSON object with the texts `instruction` and `response`"
            raise BadInput(f"{path}:{number}: {problem}") from None
    if not pairs:
        raise BadInput(f"{path} holds no examples to train on")
    return pairs


def encode_text(tokenizer, text: str) -> list[int]:
    """The tokens of a text, in which the name of a control token, <|im_end|> say, is text like any other."""
    # split_special_tokens leaves out those that a tokenizer does not call special: Qwen's <|fim_prefix|>.
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if not token.special)
    names = "|".join(re.escape(name[1:]) for name in added if re.fullmatch("<.+>", name))
    parts = re.split(f"(?<=<)(?={names})", text) if names else [text]
    encode = functools.partial(tokenizer, add_special_tokens=False, split_special_tokens=True)
    return [token for part in parts for token in encode(part).input_ids]


def encode_example(tokenizer, instruction: str, response: str) -> Example:
    """Prompt + response + end of text, tokenized apart: as when the model is asked, no token spans both."""
    messages = [{"role": "user", "content": instruction}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    prompt_ids = encode(prompt)
    if encode(instruction) != encode_text(tokenizer, instruction):  # it names a control token
        before, text, after = prompt.partition(instruction.strip())
        prompt_ids = encode(before) + encode_text(tokenizer, text) + encode(after)
    return prompt_ids + encode_text(tokenizer, response) + [tokenizer.eos_token_id], len(prompt_ids)


def encode_pairs(pairs, tokenizer, max_length: int, share: float) -> tuple[list[Example], list[Example]]:
    """The examples to learn and those to validate on, cut at `max_length` tokens. Raises BadInput."""
    examples, validation, n_truncated = [], [], 0
    for instruction, response in pairs:
        with as_bad_input("use the chat template"):
            ids, prompt_length = encode_example(tokenizer, instruction, response)
        if response.strip() and prompt_length < max_length:
            n_truncated += len(ids) > max_length
            # By hash, the same instruction is never on both sides, and more data moves none across.
            digest = hashlib.sha256(instruction.encode()).hexdigest()
            side = validation if int(digest[:8], 16) < share * 2**32 else examples
            side.append((ids[:max_length], prompt_length))
    left_out = len(pairs) - len(examples) - len(validation)
    counts = f"{len(validation)} for validation, {left_out} without a response or with too long a prompt"
    if not examples:
        raise BadInput(f"none of {len(pairs)} examples is left to learn: {counts}")
    say(f"{len(examples)} examples to learn, {counts}; {n_truncated} cut at {max_length} tokens")
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
    """One row of T tokens, the examples one after another, positions starting anew with each; the N
    `loss_positions` whose next token is learned, by position and never by token id; those N `targets`."""
    ids, positions, loss_positions, bounds = [], [], [], [0]
    for example, prompt_length in examples:
        loss_positions += range(len(ids) + prompt_length - 1, len(ids) + len(example) - 1)
        ids += example
        positions += range(len(example))
        bounds.append(len(ids))
    loss_positions = torch.tensor(loss_positions, dtype=torch.long, device=device)
    inputs = {"input_ids": torch.tensor([ids], device=device)}
    inputs["position_ids"] = torch.tensor([positions], device=device)
    # The names by which transformers' attention functions know the examples' bounds.
    inputs["cu_seq_lens_q"] = torch.tensor(bounds, dtype=torch.int32, device=device)
    inputs["cu_seq_lens_k"] = inputs["cu_seq_lens_q"]
    inputs["max_length_q"] = inputs["max_length_k"] = max(len(example) for example, _ in examples)
    targets = inputs["input_ids"][0, loss_positions + 1]
    return {"inputs": inputs, "loss_positions": loss_positions, "targets": targets}


def rank_packs(examples: list[Example], pack_tokens: int, device) -> list[dict]:
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
    if query.device.type == VARLEN_DEVICE and query.dtype == torch.bfloat16:
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
    F.linear_cross_entropy of torch 2.13 returns the sum in bf16, which is 0.2 % too high for 4,096 tokens.
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

    def forward(self, pack, plain=False):
        if plain:  # by transformers' own logits, whatever it does to them
            logits = self.model(**pack["inputs"], use_cache=False).logits[0, pack["loss_positions"]]
            return F.cross_entropy(logits.float(), pack["targets"], reduction="sum")
        hidden = self.model.base_model(**pack["inputs"], use_cache=False).last_hidden_state[0]  # (T, D)
        head = self.model.get_output_embeddings().weight
        return LinearCrossEntropy.apply(hidden[pack["loss_positions"]], head, pack["targets"])


def mean_loss(learner, examples: list[Example], pack_tokens: int, device, learn: bool) -> float:
    """The loss per target token, over all GPUs; with `learn`, its gradient is left in the weights."""
    targets = count_targets(examples)
    total = torch.zeros((), dtype=torch.float64, device=device)
    learner.train(learn)
    for pack in rank_packs(examples, pack_tokens, device):
        with torch.set_grad_enabled(learn):
            loss = learner(pack)
        if learn:
            (loss * (WORLD / targets)).backward()  # FSDP takes the mean over the GPUs
        total += loss.detach()
    return add_over_gpus(total).item() / targets


def step_flops(model, examples: list[Example]) -> int:
    """Floating-point operations of a step, forward and backward, as commonly published: 6 N + 12 L d T per
    token of an example of T tokens."""
    config = model.config.get_text_config()
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    parameters = sum(weight.numel() for weight in model.parameters())
    tokens, squares = (sum(len(ids) ** power for ids, _ in examples) for power in (1, 2))
    return 6 * parameters * tokens + 12 * layers * width * squares


# ------------------------------------------------------------------------------------------------- optimizer
def learning_rate(step: int, steps: int, peak: float) -> float:
    """Of a step, counted from 1: linear up over the first WARMUP, then linear down, never 0 (C.3)."""
    rising = math.ceil(WARMUP * steps)
    return peak * (step / rising if step <= rising else (steps - step + 1) / (steps - rising))


def local(tensor):
    """What this GPU has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def add_over_gpus(tensor):
    dist.all_reduce(tensor)
    return tensor


def new_moments(weight) -> dict:
    """Means of a weight's squared gradients; of a matrix, those of its rows and of its columns."""
    parts = {"row": weight[..., 0], "column": weight[..., 0, :]} if weight.dim() > 1 else {"all": weight}
    return {name: torch.zeros_like(part, dtype=torch.float32) for name, part in parts.items()}


@torch.no_grad()
def adafactor_step(weights: dict, moments: dict, step: int, rate: float) -> float:
    """One step, counted from 1, of Adafactor without relative step or scaling by the weights (C.3). Uses up
    the gradients, gives their norm. Each GPU has rows of every weight, and adds up what needs all rows."""
    one_minus_beta2, squared_norms = step**-0.8, []
    for name, weight in weights.items():
        gradient = local(weight.grad).float()
        square = gradient.square().add_(1e-30)
        squared_norms.append(square.sum())
        if weight.dim() < 2:
            mean = local(moments[name]["all"]).lerp_(square, one_minus_beta2)
            update = gradient.mul_(mean.rsqrt())
        else:
            # A stack of matrices is split between them: all rows of each are here.
            rows, add = weight.shape[-2], add_over_gpus if weight.dim() == 2 else lambda sums: sums
            row, column = local(moments[name]["row"]), local(moments[name]["column"])
            row.lerp_(square.mean(-1), one_minus_beta2)
            column.lerp_(add(square.sum(-2)) / rows, one_minus_beta2)
            scale = (row / (add(row.sum(-1, keepdim=True)) / rows)).rsqrt()
            update = gradient.mul_(scale.unsqueeze(-1)).mul_(column.rsqrt().unsqueeze(-2))
        rms = (add_over_gpus(update.norm().square()) / weight.numel()).sqrt()
        local(weight).sub_(update.mul_(rate / rms.clamp(min=1.0)))
        weight.grad = None
    return add_over_gpus(torch.stack(squared_norms).sum()).sqrt().item()


# ----------------------------------------------------------------------------------------------------- model
def read_model(arguments) -> tuple[dict, object]:
    """What transformers builds the model from, every dropout at 0 (C.3), and the tokenizer with its chat
    template. Raises BadInput."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one line of ours instead of its retries
    from transformers import AttentionInterface, AutoConfig, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    AttentionInterface.register("packed", packed_attention)
    name, dtype = arguments.model, torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    with as_bad_input(f"load the model {name}"):
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
        tokenizer.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    with as_bad_input(f"use the chat template of {name} (or take --chat-template new)"):
        if "Add." not in tokenizer.apply_chat_template([{"role": "user", "content": "Add."}], tokenize=False):
            raise ValueError("it leaves out a message whose content is a text")
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

    with as_bad_input("build the model"), torch.device(device):
        return AutoModelForCausalLM.from_config(**options)


def layers_of(model):
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))


def shard(model, arguments, mesh) -> Learner:
    """The learner with the rows of every weight split over the GPUs."""
    # `mixed`: weights, gradients and sums in fp32; a layer's weights become bf16 while it is at work.
    precision = {"param_dtype": torch.bfloat16} if arguments.precision == "mixed" else {}
    settings = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(**precision, reduce_dtype=torch.float32)}
    for layer in layers_of(model):
        fully_shard(layer, reshard_after_forward=arguments.reshard == "on", **settings)
    return fully_shard(Learner(model), reshard_after_forward=False, **settings)


def make_learner(options: dict, arguments, device) -> Learner:
    """The learner on its device. Only the first rank loads the whole model, in host memory."""
    from transformers import AutoModelForCausalLM

    model, state = build(options, "meta"), {}
    if arguments.recompute == "on":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if arguments.compile != "off":
        with as_bad_input(f"compile with {arguments.compile}"):
            for layer in layers_of(model):
                layer.compile(backend=arguments.compile, dynamic=True)
    learner = shard(model, arguments, init_device_mesh(device.type, (WORLD,)))
    learner.to_empty(device=device)
    if RANK == 0:
        with as_bad_input(f"load the model {arguments.model}"):
            loaded = AutoModelForCausalLM.from_pretrained(arguments.model, **options)
        model.generation_config, state = loaded.generation_config, loaded.state_dict()
        for buffer, value in zip(model.buffers(), loaded.buffers()):
            buffer.copy_(value)
    whole = state_dicts.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    state_dicts.set_model_state_dict(model, state, options=whole)
    for buffer in model.buffers():  # some are in no state dict
        dist.broadcast(buffer, 0)
    return learner


@torch.no_grad()
def check_loss(learner: Learner, examples: list[Example], device):
    """Refuse a model whose logits are more than the product with one matrix, which LinearCrossEntropy takes
    them for, or in which packed examples see each other. Raises BadInput."""
    (ids, _), last = examples[0], examples[-1]
    unlearned = [(part, len(part)) for part in (ids[:256], ids[:256][::-1])]
    pack, changed = (make_pack([other, last], device) for other in unlearned)
    learner.eval()
    with torch.compiler.set_stance("force_eager"):  # compiling takes longer than three passes
        loss, by_transformers, after_another = learner(pack), learner(pack, plain=True), learner(changed)
    if not torch.isclose(loss, by_transformers, rtol=1e-3):
        raise BadInput("train.py cannot train this model: its logits are more than a product with one matrix")
    if not torch.isclose(loss, after_another, rtol=1e-4):
        raise BadInput("packed examples see each other in this model: take --attention sdpa or eager")
    for module in learner.modules():  # whole weights would hide those of a checkpoint
        if isinstance(module, FSDPModule):
            module.reshard()


# ----------------------------------------------------------------------------------------------- checkpoints
def check_out_folder(folder: Path, settings: dict):
    """Refuse a folder that train.py did not make, or made with other settings. Raises BadInput."""
    if not (folder / "train.json").exists():
        raise BadInput(f"{folder} exists and was not made by train.py: take another --out")
    made = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    compared = settings.keys() - MAY_CHANGE
    if changed := sorted(key for key in compared if made.get(key) != settings[key]):
        raise BadInput(f"{folder} was made with another {', '.join(changed)}: take another --out")


def is_trained(out: Path, unfinished: Path, settings: dict) -> bool:
    if (folder := out if out.exists() else unfinished).exists():
        check_out_folder(folder, settings)
    if out.exists() and RANK == 0 and (unfinished / "train.json").exists():  # killed before the last clean-up
        shutil.rmtree(unfinished)
    return out.exists()


def append_row(log: Path, row: dict):
    if RANK == 0:
        with as_bad_input(f"write {log}"), log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def checkpoint_is_due(saved: float, minutes: float, device) -> bool:
    """By the first rank's clock, as all ranks must save together."""
    due = torch.tensor(int(time.monotonic() - saved >= 60 * minutes), device=device)
    dist.broadcast(due, 0)
    return bool(due)


def save_checkpoint(unfinished: Path, step: int, tensors: dict):
    """All that the next step depends on. The folder gets its name when it is whole; then older ones go."""
    made, writing = unfinished / f"checkpoint-{step}", unfinished / "checkpoint.writing"
    with as_bad_input(f"write {made}"):
        dcp.save(tensors, checkpoint_id=writing, no_dist=WORLD == 1)  # ranks' errors lose their cause
        if RANK == 0:
            os.replace(writing, made)
            for older in set(unfinished.glob("checkpoint-*")) - {made}:
                shutil.rmtree(older)


def resume(unfinished: Path, settings: dict, tensors: dict) -> int:
    """Begin, or load the last checkpoint into the tensors. Gives the number of steps done.

    Later steps are done again: their rows go from the log, as do a torn line and a torn checkpoint.
    """
    if RANK == 0 and not unfinished.exists():
        with as_bad_input(f"write {unfinished}"):  # by renaming: a folder of ours always holds its settings
            writing = Path(f"{unfinished}.writing")
            writing.mkdir(parents=True, exist_ok=True)
            (writing / "train.json").write_text(json.dumps(settings, indent=2))
            os.replace(writing, unfinished)
    step = max((int(path.name.split("-")[1]) for path in unfinished.glob("checkpoint-*")), default=0)
    checkpoint = unfinished / f"checkpoint-{step}"
    if step:
        with as_bad_input(f"read {checkpoint}"):
            dcp.load(tensors, checkpoint_id=checkpoint, no_dist=WORLD == 1)
    if RANK == 0:
        with as_bad_input(f"write {unfinished}"):
            shutil.rmtree(unfinished / "checkpoint.writing", ignore_errors=True)
            log, writing = unfinished / "log.jsonl", unfinished / "log.jsonl.writing"
            rows = log.read_text(encoding="utf-8").splitlines(keepends=True) if step else []
            done = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step]
            writing.write_text("".join(done), encoding="utf-8")
            os.replace(writing, log)
    return step


def write_model(folder: Path, model, tokenizer, weights: dict):
    """A folder that transformers and vLLM load."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with as_bad_input(f"write {folder}"):
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
        config = folder / "config.json"  # it names the dtype of the weights in memory
        text = config.read_text(encoding="utf-8").replace('"dtype": "float32"', '"dtype": "bfloat16"')
        config.write_text(text, encoding="utf-8")
        add_older_forms(folder)


def save_model(out: Path, unfinished: Path, settings: dict, model, tokenizer):
    """The trained model in --out, all of it at once, and nothing in OUT.unfinished."""
    options = state_dicts.StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = state_dicts.get_model_state_dict(model, options=options)
    if RANK > 0:
        return
    made = unfinished / "model"
    weights = {name: weights.pop(name).to(torch.bfloat16) for name in list(weights)}
    write_model(made, model, tokenizer, weights)
    with as_bad_input(f"write {made}"):
        shutil.copy(unfinished / "log.jsonl", made)
        plot(made / "log.jsonl", made / "loss.png")
        (made / "train.json").write_text(json.dumps(settings, indent=2))
        os.replace(made, out)
        shutil.rmtree(unfinished)


def add_older_forms(folder: Path):
    """Write into a checkpoint folder of transformers 5 what version 4 reads, and the libraries built on it:
    without it they take another rotary base, fp32, no chat template or no tokenizer, mostly in silence."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:  # not there where each kind of layer has its own: version 4 has no form for that
        config["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    file, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def plot(log: Path, image: Path):
    """The loss of the steps, and of the validation, from the log."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    axes = (figure := Figure(figsize=(8, 4.5))).subplots()
    for name, style in (("loss", "-"), ("validation_loss", "o--")):
        if points := [(row["step"], row[name]) for row in rows if name in row]:
            axes.plot(*zip(*points), style, label=name)
    axes.set(xlabel="step", ylabel="loss per target token")
    axes.legend()
    figure.savefig(image)


# -------------------------------------------------------------------------------------------------- the loop
def start_processes() -> torch.device:
    """This process's device, connected with those of the others. Raises BadInput where a GPU is there that
    torch cannot use: no training on the CPU that nobody asked for."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
        torch.cuda.set_device(device)
    elif GPU_DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        with as_bad_input("use the GPU (to train on the CPU, set CUDA_VISIBLE_DEVICES=-1)"):
            torch.cuda.init()  # says why
            raise RuntimeError("torch finds none")
    # torchrun sets the address at which processes meet; one alone meets nobody.
    options = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if WORLD == 1 else {}
    with as_bad_input("connect the processes (start several with torchrun, one without RANK and WORLD_SIZE)"):
        if RANK >= WORLD:
            raise ValueError(f"RANK is {RANK}, WORLD_SIZE {WORLD}")
        # The other ranks wait while the first downloads and loads the model.
        backend, hours = "nccl" if device.type == "cuda" else "gloo", datetime.timedelta(hours=6)
        dist.init_process_group(backend, timeout=hours, **options)
    return device


def read_settings(arguments, options: dict, tokenizer) -> dict:
    """What train.json keeps; training is resumed only where all but MAY_CHANGE are the same."""
    settings = vars(arguments) | {"out": str(arguments.out), "warmup": WARMUP}
    settings["data"] = str(arguments.data.absolute())  # a score asks there what the data was searched for
    settings["data_sha256"] = hashlib.sha256(arguments.data.read_bytes()).hexdigest()
    settings["chat_template_sha256"] = hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()
    settings["model_sha256"] = fingerprint(arguments.model, options["config"])
    return settings


def batches(examples: list[Example], arguments):
    """Gives (epoch, examples) of each step."""
    for epoch in range(arguments.epochs):
        order = random.Random(f"{arguments.seed}/{epoch}").sample(examples, len(examples))
        for first in range(0, len(order), arguments.batch_size):
            yield epoch, order[first : first + arguments.batch_size]


def speed_of(batch: list[Example], seconds: float, flops: int, device) -> dict:
    """Of a step: tokens per second, of all GPUs together, and the 10^12 operations per second of each, which
    its data sheet has for comparison; on a GPU the peak of the first one's memory, too."""
    speed = {"tokens_per_second": sum(len(ids) for ids, _ in batch) / seconds}
    speed["tflops"] = flops / seconds / WORLD / 1e12
    if device.type == "cuda":
        speed["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return speed


def progress(row: dict) -> str:
    speed = f"{row['tokens_per_second']:.0f} tokens/s, {row['tflops']:.3g} TFLOPS"
    return f"loss {row['loss']:.3f}, lr {row['lr']:.1e}, {speed}"


def validate(step: int, learner, validation: list[Example], arguments, device, log: Path):
    loss = mean_loss(learner, validation, arguments.pack_tokens, device, learn=False)
    append_row(log, {"step": step, "validation_loss": loss})
    say(f"\nstep {step}: validation loss {loss:.4f}")


def train(arguments):
    pairs, device = read_pairs(arguments.data), start_processes()
    options, tokenizer = read_model(arguments)
    settings = read_settings(arguments, options, tokenizer)
    out, unfinished = arguments.out, Path(f"{arguments.out}.unfinished")
    if is_trained(out, unfinished, settings):
        return say(f"{out} is trained already")
    examples, validation = encode_pairs(pairs, tokenizer, arguments.max_length, arguments.validation_share)

    learner = make_learner(options, arguments, device)
    weights = {name: weight for name, weight in learner.model.named_parameters() if weight.requires_grad}
    moments = {name: new_moments(weight) for name, weight in weights.items()}
    tensors = {"weights": {name: weight.detach() for name, weight in weights.items()}, "moments": moments}
    check_loss(learner, examples, device)
    done, log = resume(unfinished, settings, tensors), unfinished / "log.jsonl"
    if RANK == 0:  # what saving will refuse is refused now
        write_model(unfinished / "model", learner.model, tokenizer, {})
    per_epoch = math.ceil(len(examples) / arguments.batch_size)
    steps, saved = arguments.epochs * per_epoch, time.monotonic()
    emulated = device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if emulated and arguments.precision != "fp32":
        say("this processor has no instructions for bf16: --precision fp32 is several times as fast")
    say(f"{steps} steps, precision {arguments.precision}, on {WORLD} x {device.type}")

    if validation and done == 0:
        validate(0, learner, validation, arguments, device, log)
    to_do = itertools.islice(enumerate(batches(examples, arguments), 1), done, None)
    with tqdm(desc="train", total=steps, initial=done, unit="step", disable=RANK > 0) as bar:
        for step, (epoch, batch) in to_do:
            started = time.monotonic()
            loss = mean_loss(learner, batch, arguments.pack_tokens, device, learn=True)
            if not math.isfinite(loss):
                raise BadInput(f"the loss of step {step} is {loss}: --lr is too high, or the model is broken")
            rate = learning_rate(step, steps, arguments.lr)
            norm = adafactor_step(weights, moments, step, rate)

            row = {"step": step, "epoch": epoch, "loss": loss, "lr": rate, "gradient_norm": norm}
            row |= {"tokens": sum(len(ids) for ids, _ in batch), "target_tokens": count_targets(batch)}
            row |= speed_of(batch, time.monotonic() - started, step_flops(learner.model, batch), device)
            append_row(log, row)
            bar.set_postfix_str(progress(row), refresh=False)
            bar.update()
            if validation and step % per_epoch == 0:
                validate(step, learner, validation, arguments, device, log)
            if checkpoint_is_due(saved, arguments.checkpoint_every, device) or step == steps:
                save_checkpoint(unfinished, step, tensors)
                saved = time.monotonic()
    save_model(out, unfinished, settings, learner.model, tokenizer)
    say(f"trained model: {out}")


def main() -> int:
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack letters that a text has
    try:
        train(parse_arguments())
    except (BadInput, OSError) as error:
        sys.unraisablehook = lambda _: None  # Python 3.13 shows how torch's writer of a full disk fails again
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        ways = "add --recompute on, --reshard on or a smaller --pack-tokens, or take more GPUs"
        print(f"train.py: out of memory: {ways}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; run the same command to resume", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
