"""SFT (paper 3 and C.3): fine-tune a model on the instruction-response pairs of an sft.jsonl, in one plain PyTorch loop.

    python train.py --model MODEL --data runs/first/sft.jsonl --out runs/first/model

The defaults are the paper's recipe. `--out` becomes a checkpoint folder that transformers and vLLM load as it is: safetensors, the
tokenizer with prompts/chat.jinja as its chat template, and a generation config that stops at the end-of-text token. It appears only when
training is complete; loss and speed of each step are in its log.jsonl, the settings in its train.json.

The loss covers the response and its end-of-text token, nothing of the prompt, and is the sum of the token losses of a step over the number
of its supervised tokens, however the step is cut into micro-batches.

Differs from the paper: epochs, which it does not state for its main model (timings fit 2). One process, no packing yet.
"""

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import sys
import time
from pathlib import Path

CHAT_TEMPLATE = Path(__file__).parent / "prompts" / "chat.jinja"


class BadInput(Exception):
    """A mistake of the user's that ends the program with one line and exit status 2."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint folder or a hub id")
    parser.add_argument("--data", required=True, type=Path, help="JSON Lines with `instruction` and `response`")
    parser.add_argument("--out", required=True, type=Path, help="the checkpoint folder to make")
    # Optimisation (appendix C.3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-5, help="peak learning rate; the paper takes 2e-5 for data of another model")
    parser.add_argument("--warmup", type=float, default=0.05, help="share of the steps in which the rate rises; then it falls linearly")
    parser.add_argument("--batch-size", type=int, default=64, help="examples per step")
    parser.add_argument("--max-length", type=int, default=1280, help="tokens per example; the rest is cut off")
    parser.add_argument("--precision", choices=["bf16", "mixed", "fp32"], default="bf16",
                        help="bf16: weights and all (the paper); mixed: fp32 weights, bf16 arithmetic; fp32: all. Adding a small step to "
                             "bf16 weights mostly rounds it away, so mixed learns more at the same rate")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the order of the examples")
    # Fit
    parser.add_argument("--micro-batch", type=int, default=4, help="examples per forward pass; changes speed and memory, not the result")
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
    """The token ids of prompt + response + end of text, and how many of them are prompt and so not learned."""
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": instruction}], tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    response_ids = tokenizer(response, add_special_tokens=False).input_ids
    return prompt_ids + response_ids + [tokenizer.eos_token_id], len(prompt_ids)


def pad_batch(examples: list[tuple[list[int], int]], device):
    """(B, T) token ids, attention mask, and labels: the id where it is learned, -100 elsewhere. Masked by position, never by token."""
    import torch

    longest = max(len(ids) for ids, _ in examples)
    input_ids = torch.zeros(len(examples), longest, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, (ids, prompt_length) in enumerate(examples):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
        labels[row, prompt_length : len(ids)] = input_ids[row, prompt_length : len(ids)]
    return input_ids.to(device), attention_mask.to(device), labels.to(device)


def token_loss(model, input_ids, attention_mask, labels):
    """The sum of the cross-entropies of the labelled tokens, each predicted from the tokens before it. (B, T) in, a scalar out."""
    import torch.nn.functional as F

    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]  # (B, T-1, V)
    learned = labels[:, 1:] != -100
    return F.cross_entropy(logits[learned].float(), labels[:, 1:][learned], reduction="sum")


# --------------------------------------------------------------------------------------------------------------- training


def load(arguments):
    """Model and tokenizer, the chat template set and every dropout at 0. Raises BadInput."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(arguments.model)
        for name, value in config.to_dict().items():
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                setattr(config, name, 0.0)
        dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(arguments.model, config=config, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot load the model {arguments.model}: {str(error).strip().splitlines()[0]}") from None
    if tokenizer.eos_token_id is None:
        raise BadInput(f"the tokenizer of {arguments.model} has no end-of-text token")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise BadInput(f"the tokenizer of {arguments.model} has {len(tokenizer)} tokens, its model fewer")
    tokenizer.chat_template = CHAT_TEMPLATE.read_text()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def train(arguments):
    pairs = read_pairs(arguments.data)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    settings["data_sha256"] = hashlib.sha256(arguments.data.read_bytes()).hexdigest()
    record = arguments.out / "train.json"
    if record.exists():
        recorded = json.loads(record.read_text())
        if changed := [key for key in settings if recorded.get(key) != settings[key]]:
            raise BadInput(f"{arguments.out} was trained with another {', '.join(changed)}: take another --out")
        print(f"{arguments.out} is trained already")
        return
    if arguments.out.exists():
        raise BadInput(f"{arguments.out} exists and was not made by train.py: take another --out")

    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one line of ours instead of its retries
    import torch
    from tqdm import tqdm
    from transformers.optimization import Adafactor, get_linear_schedule_with_warmup
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model, tokenizer = load(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()

    encoded = [encode_example(tokenizer, **pair) for pair in pairs]
    examples = [(ids[: arguments.max_length], prompt) for ids, prompt in encoded if prompt < arguments.max_length]
    truncated = sum(len(ids) > arguments.max_length for ids, _ in encoded)
    if not examples:
        raise BadInput(f"every prompt of {arguments.data} is longer than --max-length {arguments.max_length}")
    print(f"{len(examples)} examples, {truncated} cut at {arguments.max_length} tokens, {len(encoded) - len(examples)} with no room "
          f"for a response left out; precision {arguments.precision} on {device}")  # fmt: skip

    optimizer = Adafactor(model.parameters(), lr=arguments.lr, scale_parameter=False, relative_step=False, warmup_init=False)
    steps = arguments.epochs * math.ceil(len(examples) / arguments.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(arguments.warmup * steps), steps)
    unfinished = arguments.out.with_name(arguments.out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)

    bar = tqdm(total=steps, desc="train", unit="step", dynamic_ncols=True)
    with (unfinished / "log.jsonl").open("w") as log:
        for epoch in range(arguments.epochs):
            order = list(range(len(examples)))
            random.Random(f"{arguments.seed}/{epoch}").shuffle(order)
            for start in range(0, len(order), arguments.batch_size):
                started = time.monotonic()
                batch = sorted((examples[i] for i in order[start : start + arguments.batch_size]), key=lambda example: len(example[0]))
                supervised = sum(len(ids) - prompt for ids, prompt in batch)
                step_loss = 0.0
                for first in range(0, len(batch), arguments.micro_batch):
                    with torch.autocast(device, torch.bfloat16, enabled=arguments.precision == "mixed"):
                        loss = token_loss(model, *pad_batch(batch[first : first + arguments.micro_batch], device)) / supervised
                    loss.backward()
                    step_loss += loss.item()
                learning_rate = schedule.get_last_lr()[0]
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                tokens = sum(len(ids) for ids, _ in batch)
                row = {"step": bar.n + 1, "epoch": epoch, "loss": step_loss, "lr": learning_rate, "tokens": tokens,
                       "tokens_per_second": tokens / (time.monotonic() - started)}  # fmt: skip
                log.write(json.dumps(row) + "\n")
                log.flush()
                bar.set_postfix_str(f"loss {step_loss:.3f}, lr {learning_rate:.1e}, {row['tokens_per_second']:.0f} tokens/s", refresh=False)
                bar.update()
    bar.close()

    model.to(torch.bfloat16).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    (unfinished / "train.json").write_text(json.dumps(settings, indent=2))
    os.replace(unfinished, arguments.out)
    print(f"trained model: {arguments.out}")


def main():
    try:
        train(parse_arguments())
    except BadInput as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted, nothing saved", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
