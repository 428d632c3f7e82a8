"""SFT (paper 3 and C.3): fine-tune a model on the instruction-response pairs of an sft.jsonl, in one plain PyTorch loop.

    python train.py --model MODEL --data runs/first/sft.jsonl --out runs/first/model
    torchrun --nproc-per-node 8 train.py --model MODEL --data runs/first/sft.jsonl --out runs/first/model

The defaults are the paper's recipe. `--out` becomes a checkpoint folder that transformers and vLLM load as it is: safetensors, the
tokenizer with prompts/chat.jinja as its chat template, and a generation config that stops at the end-of-text token; beside them train.json
(the settings), log.jsonl (a row per step) and loss.png. It appears only when training is complete. Until then everything is in
OUT.unfinished: the same command given again goes on from the last checkpoint there, on any number of GPUs, to the same result.

Where the numbers come from:
- The loss covers the response and its end-of-text token, nothing of the prompt. It is the sum of the token losses of a step over the number
  of its learned tokens, however the step is cut into packs and dealt to GPUs: never a mean of means.
- Examples are packed: several stand in one row, without padding, and attention never leaves an example (`packed_attention`).
- Logits exist for the learned tokens only, and only a chunk at a time (`LinearCrossEntropy`).
- Every random choice comes from --seed and the step's number, so a checkpoint holds no random state.

Bytes per parameter, gradient included: bf16 and stochastic 4, mixed 6, fp32 8; AdamW adds 8 to each, Adafactor next to nothing. So a
7.6B model with the defaults takes 30 GB before activations, with --precision mixed 46 GB, and either leaves room on one GPU of 80 GB.

Differs from the paper: epochs, which it does not state for its main model (timings fit 2); packing; the first step is not at rate 0.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import random
import re
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Replicate

CHAT_TEMPLATE = Path(__file__).parent / "prompts" / "chat.jinja"
# Settings that change speed and memory only. Training may go on with others of these.
FIT = ["out", "pack_tokens", "attention", "recompute", "compile", "shard", "checkpoint_every", "tracker"]
# Dense bf16 operations per second, as NVIDIA states them, for the share of them that is reached.
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "B200": 2250e12}
warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a checkpoint of a single process
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class BadInput(Exception):
    """A mistake of the user's that ends the program with one line and exit status 2."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint folder or a hub id")
    parser.add_argument("--data", required=True, type=Path, help="JSON Lines with `instruction` and `response`")
    parser.add_argument("--out", required=True, type=Path, help="the checkpoint folder to make")
    recipe = parser.add_argument_group("recipe, the paper's values (appendix C.3)")
    recipe.add_argument("--epochs", type=int, default=2)
    recipe.add_argument("--optimizer", choices=["adafactor", "adamw"], default="adafactor")
    recipe.add_argument("--lr", type=float, default=1e-5, help="peak learning rate; the paper takes 2e-5 for data of another model")
    recipe.add_argument("--warmup", type=float, default=0.05, help="share of the steps in which the rate rises; then it falls linearly")
    recipe.add_argument("--batch-size", type=int, default=64, help="examples per step, over all GPUs")
    recipe.add_argument("--max-length", type=int, default=1280, help="tokens per example; the rest is cut off")
    recipe.add_argument("--precision", choices=["bf16", "stochastic", "mixed", "fp32"], default="bf16",
                        help="bf16: weights and all (the paper); adding a small step to such weights mostly rounds it away. stochastic: "
                             "the same, rounded up or down by chance so that steps add up on average. mixed: bf16 arithmetic, weights "
                             "kept exactly as in fp32. fp32: all. The last three learn more at the same rate")  # fmt: skip
    recipe.add_argument("--chat-template", choices=["new", "keep"], default="new",
                        help="new: prompts/chat.jinja, for a base model. keep: the one that the tokenizer has, for a chat model")  # fmt: skip
    recipe.add_argument("--lora", type=int, default=0, metavar="RANK", help="train adapters of low rank, merged at the end; try --lr 1e-4")
    recipe.add_argument("--heldout", type=float, default=0.0, help="share of the instructions, by hash, that is not learned but measured")
    recipe.add_argument("--seed", type=int, default=0, help="of the order of the examples and of stochastic rounding")
    fit = parser.add_argument_group("fit and speed; the result is the same but for rounding")
    fit.add_argument("--pack-tokens", type=int, default=4096, help="tokens per forward pass and GPU, at least --max-length")
    fit.add_argument("--attention", default="packed", help="packed, or one of transformers' own: sdpa, eager, flash_attention_2, ..")
    fit.add_argument("--recompute", choices=["auto", "on", "off"], default="auto", help="gradient checkpointing: activations are computed again, not kept")
    fit.add_argument("--shard", choices=["auto", "on", "off"], default="auto", help="split the weights over the GPUs; auto: by fit")
    fit.add_argument("--compile", action="store_true", help="torch.compile each layer")
    fit.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS")
    fit.add_argument("--tracker", help="also log to wandb, trackio, tensorboard, mlflow, ..: whatever accelerate knows and you installed")
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------------------------- data


def read_pairs(path: Path) -> list[dict]:
    if not path.is_file():
        raise BadInput(f"no such data file: {path}")
    pairs = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                pairs.append({"instruction": row["instruction"] + "", "response": row["response"] + ""})
            except (ValueError, KeyError, TypeError):
                raise BadInput(f"{path}:{number}: not a JSON object with the texts `instruction` and `response`") from None
    if not pairs:
        raise BadInput(f"{path} holds no examples to train on")
    return pairs


def encode_example(tokenizer, instruction: str, response: str) -> tuple[list[int], int]:
    """The token ids of prompt + response + end of text, and how many of them are prompt and so not learned.

    The two are tokenized apart, as when the model is asked: it then never sees a token that spans both.
    """
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": instruction}], tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    response_ids = tokenizer(response, add_special_tokens=False).input_ids
    return prompt_ids + response_ids + [tokenizer.eos_token_id], len(prompt_ids)


def is_held_out(instruction: str, share: float) -> bool:
    """By the instruction's hash: the same one never stands on both sides, and more data moves none from side to side."""
    return int(hashlib.sha256(instruction.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) < share * 2**32


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in packs of at most `capacity` tokens: longest first, each into the fullest pack that has room for it."""
    packs, room = [], []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        open_packs = [pack for pack in range(len(packs)) if room[pack] >= lengths[index]]
        if not open_packs:
            packs.append([])
            room.append(capacity)
            open_packs = [len(packs) - 1]
        fullest = min(open_packs, key=lambda pack: room[pack])
        packs[fullest].append(index)
        room[fullest] -= lengths[index]
    return packs


def make_pack(examples: list[tuple[list[int], int]], device) -> dict:
    """One row of T tokens, the examples one after another, positions starting anew with each; and what is to be learned from it:
    `predicting` (N), the places whose next token is learned, by position and never by token id, and `targets` (N), those tokens."""
    ids, positions, predicting, targets, bounds = [], [], [], [], [0]
    for example, prompt_length in examples:
        predicting += range(len(ids) + prompt_length - 1, len(ids) + len(example) - 1)
        targets += example[prompt_length:]
        ids += example
        positions += range(len(example))
        bounds.append(len(ids))
    bounds_tensor = torch.tensor(bounds, dtype=torch.int32, device=device)
    longest = max(end - start for start, end in zip(bounds, bounds[1:]))
    return {
        "inputs": {
            "input_ids": torch.tensor([ids], device=device), "position_ids": torch.tensor([positions], device=device),
            # the names by which transformers' attention functions know the examples' bounds
            "cu_seq_lens_q": bounds_tensor, "cu_seq_lens_k": bounds_tensor, "max_length_q": longest, "max_length_k": longest,
        },
        "predicting": torch.tensor(predicting, dtype=torch.long, device=device),
        "targets": torch.tensor(targets, dtype=torch.long, device=device),
    }  # fmt: skip


def my_packs(examples: list[tuple[list[int], int]], pack_tokens: int, device) -> list[dict]:
    """This GPU's packs of a step. Every GPU gets as many, of like size at the same time, since they wait for each other."""
    packs = [[examples[index] for index in pack] for pack in best_fit([len(ids) for ids, _ in examples], pack_tokens)]
    nothing_to_learn = [([0], 1)]
    packs += [nothing_to_learn] * (-len(packs) % WORLD)
    packs.sort(key=lambda pack: -sum(len(ids) for ids, _ in pack))
    return [make_pack(pack, device) for pack in packs[RANK::WORLD]]


# ------------------------------------------------------------------------------------------------------------------- loss


def packed_attention(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, max_length_q=None, **options):
    """Causal attention within each example of a pack. (1, H, T, D) queries, (1, H or fewer, T, D) keys and values; gives (1, T, H, D).

    transformers' own way for a row of several examples is a T x T mask, which computes what it then hides.
    """
    unlike = [name for name in ("softcap", "s_aux") if options.get(name) is not None]
    if unlike or (options.get("sliding_window") or math.inf) < max_length_q:
        raise BadInput(f"packed attention does not do this model's {', '.join(unlike) or 'sliding window'}: take --attention eager")
    if query.is_cuda and query.dtype == torch.bfloat16:
        from torch.nn.attention.varlen import varlen_attn

        query, key, value = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))  # (T, H, D)
        causal = (-1, 0)
        return varlen_attn(query, key, value, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=causal,
                           enable_gqa=key.shape[1] != query.shape[1])[None], None  # fmt: skip
    key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], dim=1) for states in (key, value))
    lengths = cu_seq_lens_q.diff().tolist()
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)))
    return torch.cat([F.scaled_dot_product_attention(*part, is_causal=True, scale=scaling) for part in parts], dim=2).transpose(1, 2), None


class LinearCrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropies of `targets` (N) under the logits hidden @ weight.T, of (N, D) and (V, D), `chunk` rows at a time.

    The backward pass only scales the gradients of a sum, so they are formed at once, while a chunk's logits are there.
    """

    @staticmethod
    def forward(context, hidden, weight, targets, chunk=1024):
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight) if context.needs_input_grad[1] else None
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            logits = (hidden[rows] @ weight.T).float()  # (C, V), the largest tensor of all
            log_partition = logits.logsumexp(dim=-1, keepdim=True)
            target = targets[rows, None]
            total += (log_partition - logits.gather(1, target)).sum()
            gradient = logits.sub_(log_partition).exp_().scatter_add_(1, target, -torch.ones_like(log_partition)).to(hidden.dtype)
            hidden_gradient[rows] = gradient @ weight
            if weight_gradient is not None:
                weight_gradient.addmm_(gradient.T, hidden[rows])
        context.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    def backward(context, scale):
        return *(gradient if gradient is None else gradient * scale for gradient in context.saved_tensors), None, None


class Learner(torch.nn.Module):
    """The model as a function from a pack to its loss, the sum of the cross-entropies of its learned tokens: what DDP and FSDP wrap."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pack):
        hidden = self.model.base_model(**pack["inputs"], use_cache=False).last_hidden_state[0]  # (T, D)
        return LinearCrossEntropy.apply(hidden[pack["predicting"]], self.model.get_output_embeddings().weight, pack["targets"])


# --------------------------------------------------------------------------------------------------------------- optimizer


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear up over the first `warmup` share of the steps, then linear down; no step, counted from 0, is at rate 0."""
    rising = math.ceil(warmup * steps)
    return peak * ((step + 1) / rising if step < rising else (steps - step) / (steps - rising))


def adafactor(gradient, state, step, rate):
    """The update of Adafactor with an external rate (no relative step, no scaling by the weights), step counted from 1."""
    decay = 1 - step**-0.8
    square = gradient**2 + 1e-30
    if gradient.dim() >= 2:
        state["row"].mul_(decay).add_(square.mean(dim=-1), alpha=1 - decay)
        state["column"].mul_(decay).add_(square.mean(dim=-2), alpha=1 - decay)
        row = (state["row"] / state["row"].mean(dim=-1, keepdim=True)).rsqrt_()
        update = row.unsqueeze(-1) * state["column"].rsqrt().unsqueeze(-2) * gradient
    else:
        update = state["square"].mul_(decay).add_(square, alpha=1 - decay).rsqrt() * gradient
    size = update.norm(2) / update.numel() ** 0.5
    return update.div_(size.clamp_(min=1.0)).mul_(rate)


def adamw(gradient, state, step, rate):
    """The update of AdamW with its usual 0.9, 0.999 and no weight decay, step counted from 1."""
    mean = state["mean"].mul_(0.9).add_(gradient, alpha=0.1)
    square = state["square"].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    return mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt_().add_(1e-8)) * rate


def new_state(weight, optimizer: str, precision: str) -> dict:
    """What is kept for one weight besides itself, all of it in fp32 but `low`."""
    zeros = torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
    if optimizer == "adamw":
        state = {"mean": zeros, "square": zeros.clone()}
    else:
        state = {"row": zeros.mean(dim=-1), "column": zeros.mean(dim=-2)} if weight.dim() >= 2 else {"square": zeros}
        for name, tensor in state.items():
            if isinstance(tensor, DTensor) and tensor.placements[0].is_partial():  # each GPU has its part of a sum over the rows
                state[name] = tensor.redistribute(placements=[Replicate()])
    if precision == "mixed" and weight.dtype == torch.bfloat16:
        state["low"] = torch.zeros_like(weight, dtype=torch.int16, requires_grad=False)
    return state


def split_halves(exact):
    """An fp32 tensor as the nearest bf16 tensor and, as int16, the distance to it in units of fp32's last place."""
    bits = exact.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def join_halves(high, low):
    """What split_halves split, exactly."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low).view(torch.float32)


def subtract(weight, update, precision: str, low=None, generator=None):
    """weight -= update, where bf16 weights are rounded as `precision` says."""
    if weight.dtype != torch.bfloat16:
        weight.sub_(update)
    elif precision == "mixed":
        high, rest = split_halves(join_halves(weight, low) - update)
        weight.copy_(high)
        low.copy_(rest)
    elif precision == "stochastic":
        bits = (weight.float() - update).view(torch.int32)
        bits += torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
        weight.copy_((bits >> 16).to(torch.int16).view(torch.bfloat16))
    else:
        weight.copy_(weight.float() - update)


@torch.no_grad()
def optimize(weights: dict, states: dict, step: int, rate: float, arguments):
    """One step, counted from 1, on every weight that has a gradient, which is used up."""
    local = lambda tensor: tensor.to_local() if isinstance(tensor, DTensor) else tensor  # noqa: E731
    generator = torch.Generator(next(iter(weights.values())).device)
    # The same numbers on GPUs that hold copies of the weights, others on those that hold parts.
    sharded = isinstance(next(iter(weights.values())), DTensor)
    generator.manual_seed((arguments.seed * 1_000_003 + step) * 1_000_003 + (RANK if sharded else 0))
    rule = {"adafactor": adafactor, "adamw": adamw}[arguments.optimizer]
    for name, weight in weights.items():
        update = rule(weight.grad.float(), states[name], step, rate)
        low = states[name].get("low")
        subtract(local(weight), local(update), arguments.precision, None if low is None else local(low), generator)
        weight.grad = None


# ------------------------------------------------------------------------------------------------------------------- model


def load(arguments):
    """Model and tokenizer, the chat template set and every dropout at 0. Raises BadInput."""
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer

    AttentionInterface.register("packed", packed_attention)
    try:
        config = AutoConfig.from_pretrained(arguments.model)
        for name, value in config.to_dict().items():
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                setattr(config, name, 0.0)
        dtype = torch.float32 if arguments.precision == "fp32" else torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(arguments.model, config=config, dtype=dtype, attn_implementation=arguments.attention)
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    except (OSError, ValueError, ImportError) as error:
        raise BadInput(f"cannot load the model {arguments.model}: {str(error).strip().splitlines()[0]}") from None
    if tokenizer.eos_token_id is None:
        raise BadInput(f"the tokenizer of {arguments.model} has no end-of-text token")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise BadInput(f"the tokenizer of {arguments.model} has {len(tokenizer)} tokens, its model fewer")
    if arguments.chat_template == "new":
        tokenizer.chat_template = CHAT_TEMPLATE.read_text()
    elif not tokenizer.chat_template:
        raise BadInput(f"the tokenizer of {arguments.model} has no chat template to keep")
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


@torch.no_grad()
def check_architecture(model, examples: list[tuple[list[int], int]]):
    """Refuse a model whose logits are not one matrix product, which LinearCrossEntropy takes them for, or in which packed examples see
    each other. Raises BadInput."""
    inputs = make_pack(examples, model.get_input_embeddings().weight.device)["inputs"]
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
    product = F.linear(hidden, model.get_output_embeddings().weight)
    if not torch.allclose(model(**inputs, use_cache=False).logits.float(), product.float(), rtol=0.02, atol=0.02):
        raise BadInput("this model's logits are more than a product with one matrix, which train.py does not do")
    first = len(examples[0][0])
    inputs["input_ids"][:, :first] = inputs["input_ids"][:, :first].flip(1)
    changed = model.base_model(**inputs, use_cache=False).last_hidden_state
    if not torch.allclose(changed[:, first:].float(), hidden[:, first:].float(), rtol=1e-3, atol=1e-3):
        raise BadInput(f"packed examples see each other in this model with --attention {model.config._attn_implementation}: take another")


def fits(model, arguments, device) -> tuple[bool, bool]:
    """Whether weights, gradients and optimizer state fit one GPU, and whether the activations of a pack fit beside them."""
    config, trained = model.config.get_text_config(), sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    width = 4 if arguments.precision == "fp32" else 2
    still = width * sum(weight.numel() for weight in model.parameters())
    still += trained * (width + 2 * (arguments.precision == "mixed") + 8 * (arguments.optimizer == "adamw"))
    # what a layer of the usual kind keeps of each token: its inputs, queries, keys, values, output, and four rows as wide as the MLP
    activations = width * arguments.pack_tokens * config.num_hidden_layers * (14 * config.hidden_size + 4 * config.intermediate_size)
    return still < 0.8 * memory, still + activations < 0.8 * memory


def operations(model, examples: list[tuple[list[int], int]]) -> float:
    """Floating-point operations that the loss of these examples and its gradient need: 6 for each weight a token meets (the output
    layer's are met by learned tokens only), and causal attention. What is computed twice to save memory is not counted."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight.numel()
    body = sum(weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2 and "layers" in name)
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    inside = config.num_hidden_layers * config.num_attention_heads * head_width
    return sum(6 * body * len(ids) + 6 * head * (len(ids) - prompt) + 6 * inside * len(ids) ** 2 for ids, prompt in examples)


# -------------------------------------------------------------------------------------------------------------- checkpoints


def tensors(weights: dict, states: dict) -> dict:
    return {"weights": {name: weight.detach() for name, weight in weights.items()}, "states": states}


def save_checkpoint(unfinished: Path, step: int, weights: dict, states: dict):
    """Everything that step + 1 depends on. The folder has its name only when it is whole; then those before it go."""
    import torch.distributed.checkpoint as dcp

    writing = unfinished / f"checkpoint-{step}.writing"
    dcp.save(tensors(weights, states), checkpoint_id=writing, no_dist=not dist.is_initialized())
    if RANK == 0:
        os.replace(writing, unfinished / f"checkpoint-{step}")
        for path in unfinished.glob("checkpoint-*"):
            if path.name != f"checkpoint-{step}":
                shutil.rmtree(path)


def resume(unfinished: Path, weights: dict, states: dict) -> int:
    """Loads the last checkpoint, if there is one, into the tensors; the log ends with it. Gives the number of steps done."""
    import torch.distributed.checkpoint as dcp

    found = [path for path in unfinished.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    steps = {int(path.name.removeprefix("checkpoint-")): path for path in found}
    step = max(steps, default=0)
    if steps:
        dcp.load(tensors(weights, states), checkpoint_id=steps[step], no_dist=not dist.is_initialized())
    if RANK == 0:  # the steps after the checkpoint are done again; torn lines and checkpoints go
        for torn in unfinished.glob("checkpoint-*.writing"):
            shutil.rmtree(torn)
        log = unfinished / "log.jsonl"
        rows = log.read_text().splitlines(keepends=True) if log.exists() else []
        write_atomically(log, "".join(row for row in rows if step and row.endswith("\n") and json.loads(row)["step"] <= step))
    return step


def write_atomically(path: Path, text: str):
    writing = path.with_name(path.name + ".writing")
    writing.write_text(text)
    os.replace(writing, path)


def is_trained(arguments, settings: dict) -> bool:
    """Whether --out is there already, made with these settings. Raises BadInput where it, or what was begun of it, is another thing."""
    unfinished = arguments.out.with_name(arguments.out.name + ".unfinished")
    if arguments.out.exists() and not (arguments.out / "train.json").exists():
        raise BadInput(f"{arguments.out} exists and was not made by train.py: take another --out")
    for folder, was in ((arguments.out, "trained"), (unfinished, "begun")):
        if not (folder / "train.json").exists():
            continue
        recorded = json.loads((folder / "train.json").read_text())
        if changed := [key for key in settings if key not in FIT and recorded.get(key) != settings[key]]:
            raise BadInput(f"{folder} was {was} with another {', '.join(changed)}: take another --out")
    return arguments.out.exists()


# ---------------------------------------------------------------------------------------------------------------- the loop


def show(tokenizer, example: tuple[list[int], int]):
    """One example as the model gets it, and where learning begins."""
    ids, prompt_length = example
    print("--- not learned:", tokenizer.decode(ids[:prompt_length]), "--- learned:", tokenizer.decode(ids[prompt_length:]), "---", sep="\n")


def plot(log: Path, image: Path):
    """The loss of the steps, and of what was held out, from the log."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    axes = (figure := Figure(figsize=(8, 4.5))).subplots()
    for name, style in (("loss", "-"), ("heldout_loss", "o--")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points), style, label=name)
    axes.set(xlabel="step", ylabel="loss per learned token")
    axes.legend()
    figure.savefig(image)


def start_tracker(arguments, settings: dict):
    """A function that logs a row under its step. Raises BadInput."""
    if not arguments.tracker or RANK > 0:
        return lambda row: None
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    try:
        kind = LOGGER_TYPE_TO_CLASS[arguments.tracker]
        folder = [str(arguments.out.parent)] if kind.requires_logging_directory else []
        tracker = kind(arguments.out.name, *folder)
        tracker.start()
    except (KeyError, ImportError, NameError) as error:
        raise BadInput(f"--tracker {arguments.tracker}: accelerate does not know it or it is not installed ({error})") from None
    tracker.store_init_configuration(settings)
    return lambda row: tracker.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])


def all_sum(number: float, device) -> float:
    """The sum over all GPUs."""
    total = torch.tensor(number, dtype=torch.float64, device=device)
    if WORLD > 1:
        dist.all_reduce(total)
    return total.item()


def distribute(model, arguments, device):
    """The learner, on its GPU or split over all of them; what it can do without is computed again where memory is short."""
    whole, with_activations = fits(model, arguments, device)
    if arguments.recompute == "on" or (arguments.recompute == "auto" and not with_activations):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    if arguments.compile:
        for layer in layers:
            layer.compile(dynamic=True)
    if WORLD > 1 and (arguments.shard == "on" or (arguments.shard == "auto" and not whole and not arguments.lora)):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        options = {"mesh": init_device_mesh(device.type, (WORLD,)), "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32)}
        for layer in layers:
            fully_shard(layer, **options)
        return fully_shard(Learner(model), **options)
    learner = Learner(model.to(device))
    return torch.nn.parallel.DistributedDataParallel(learner, gradient_as_bucket_view=True) if WORLD > 1 else learner


def train(arguments):
    say = print if RANK == 0 else lambda *_: None
    pairs = read_pairs(arguments.data)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    settings["data_sha256"] = hashlib.sha256(arguments.data.read_bytes()).hexdigest()
    unfinished = arguments.out.with_name(arguments.out.name + ".unfinished")
    if is_trained(arguments, settings):
        return say(f"{arguments.out} is trained already")

    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one line of ours instead of its retries
    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if WORLD > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    model, tokenizer = load(arguments)

    examples, heldout, longer = [], [], 0
    for pair in pairs:
        ids, prompt_length = encode_example(tokenizer, **pair)
        if pair["response"].strip() and prompt_length < arguments.max_length:
            longer += len(ids) > arguments.max_length
            side = heldout if is_held_out(pair["instruction"], arguments.heldout) else examples
            side.append((ids[: arguments.max_length], prompt_length))
    if not examples:
        raise BadInput(f"nothing of {arguments.data} is left to learn: every prompt is longer than --max-length {arguments.max_length}, "
                       "every response empty, or everything held out")  # fmt: skip
    arguments.pack_tokens = max(arguments.pack_tokens, arguments.max_length)
    check_architecture(model, [(ids[: prompt + 64], prompt) for ids, prompt in examples[:2]])

    adapted = None
    if arguments.lora:
        if arguments.shard == "on":
            raise BadInput("--lora trains too little to be worth --shard on")
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(model, LoraConfig(r=arguments.lora, lora_alpha=2 * arguments.lora, target_modules="all-linear"))
    learner = distribute(model.train(), arguments, device)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    states = {name: new_state(weight, arguments.optimizer, arguments.precision) for name, weight in weights.items()}

    per_epoch = math.ceil(len(examples) / arguments.batch_size)
    steps = arguments.epochs * per_epoch
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak_flops = next((flops for name, flops in PEAK_FLOPS.items() if name in kind), None)
    idle = len(pairs) - len(examples) - len(heldout)
    say(f"{len(examples)} examples to learn, {len(heldout)} held out, {longer} cut at {arguments.max_length} tokens, {idle} with nothing "
        f"to learn left out; {steps} steps; {arguments.optimizer}, precision {arguments.precision}, on {WORLD} x {kind}")  # fmt: skip
    if RANK == 0:
        show(tokenizer, examples[0])
        unfinished.mkdir(parents=True, exist_ok=True)
        write_atomically(unfinished / "train.json", json.dumps(settings, indent=2))
    done = resume(unfinished, weights, states)
    track = start_tracker(arguments, settings)
    log = (unfinished / "log.jsonl").open("a") if RANK == 0 else None

    def record(row):
        if log:
            log.write(json.dumps(row) + "\n")
            log.flush()
        track(row)

    def measure_heldout(step):
        learner.eval()
        with torch.no_grad():
            total = sum(learner(pack).item() for pack in my_packs(heldout, arguments.pack_tokens, device))
        learner.train()
        loss = all_sum(total, device) / sum(len(ids) - prompt for ids, prompt in heldout)
        record({"step": step, "heldout_loss": loss})
        say(f"\nstep {step}: held-out loss {loss:.4f}")

    if heldout and done == 0:
        measure_heldout(0)
    bar = tqdm(total=steps, initial=done, desc="train", unit="step", dynamic_ncols=True, disable=RANK > 0)
    for step in range(done, steps):
        started = time.monotonic()
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == done:
            order = random.Random(f"{arguments.seed}/{epoch}").sample(range(len(examples)), len(examples))
        batch = [examples[index] for index in order[place * arguments.batch_size : (place + 1) * arguments.batch_size]]
        learned = sum(len(ids) - prompt for ids, prompt in batch)
        packs = my_packs(batch, arguments.pack_tokens, device)
        total = torch.zeros((), device=device)
        for number, pack in enumerate(packs):
            waiting = hasattr(learner, "no_sync") and number < len(packs) - 1
            with learner.no_sync() if waiting else contextlib.nullcontext():
                loss = learner(pack)
                (loss * (WORLD / learned)).backward()  # DDP and FSDP take the mean over the GPUs
            total += loss.detach()
        step_loss = all_sum(total.item(), device) / learned
        if not math.isfinite(step_loss):
            raise BadInput(f"the loss of step {step + 1} is {step_loss}: --lr {arguments.lr} is too high, or the model is broken")
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights.values()])
        norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
        rate = learning_rate(step, steps, arguments.lr, arguments.warmup)
        optimize(weights, states, step + 1, rate, arguments)

        tokens, seconds = sum(len(ids) for ids, _ in batch), time.monotonic() - started
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        row = {"step": step + 1, "epoch": epoch, "loss": step_loss, "lr": rate, "gradient_norm": norm, "tokens": tokens,
               "learned_tokens": learned, "tokens_per_second": tokens / seconds, "peak_gb": memory / 1e9}  # fmt: skip
        if peak_flops:
            row["mfu"] = operations(model, batch) / seconds / WORLD / peak_flops
        record(row)
        bar.set_postfix_str(f"loss {step_loss:.3f}, lr {rate:.1e}, {row['tokens_per_second']:.0f} tokens/s", refresh=False)
        bar.update()
        if heldout and (step + 1) % per_epoch == 0:
            measure_heldout(step + 1)
        if (step + 1) % arguments.checkpoint_every == 0 or step + 1 == steps:
            save_checkpoint(unfinished, step + 1, weights, states)
    bar.close()
    save_model(arguments, settings, adapted.merge_and_unload() if adapted else model, tokenizer, unfinished)
    say(f"trained model: {arguments.out}")


def save_model(arguments, settings: dict, model, tokenizer, unfinished: Path):
    """The trained model in --out, all of it at once, and nothing in OUT.unfinished."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if RANK > 0:
        return
    made = unfinished / "model"
    shutil.rmtree(made, ignore_errors=True)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(made, state_dict={name: weight.to(torch.bfloat16) for name, weight in whole.items()})
    tokenizer.save_pretrained(made)
    shutil.copy(unfinished / "log.jsonl", made)
    plot(made / "log.jsonl", made / "loss.png")
    (made / "train.json").write_text(json.dumps(settings, indent=2))
    os.replace(made, arguments.out)
    shutil.rmtree(unfinished)


def main():
    try:
        train(parse_arguments())
    except BadInput as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
