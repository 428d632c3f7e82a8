"""train.py beside TRL's SFTTrainer: tokens per second, peak memory and loss of the same steps.

    pip install trl==1.16.0
    python tests/bench_train.py --model models/smollm2-135m --data runs/first/sft.jsonl [--steps 3]

Each run is a process of its own and the two alternate. A step learns all of the examples, so both take the
same gradient, and their losses must agree but for rounding. The first step, which warms up, is not timed.
TRL packs into rows of --max-length, best fit, a row at a time, without gradient checkpointing; ours gets
packs of as many tokens; `padded` is TRL without packing, 4 examples at a time. Pure bf16, Adafactor, no
clipping and no warm-up in all. `--clock cpu` counts processor seconds, for a busy machine, with
OMP_NUM_THREADS=1.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import train

CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}


def count_best_fit(examples, capacity: int) -> int:
    """Of TRL's rows: longest example first, each into the fullest row with room."""
    room = []
    for length in sorted((len(ids) for ids, _ in examples), reverse=True):
        best = min((left for left in room if left >= length), default=capacity)
        if best in room:
            room.remove(best)
        room.append(best - length)
    return len(room)


def ours(arguments, data: Path, out: Path) -> list[dict]:
    train.time = SimpleNamespace(monotonic=CLOCKS[arguments.clock])
    train.WARMUP = 0
    options = {"model": arguments.model, "data": data, "out": out / "model", "epochs": arguments.steps}
    options |= {"batch-size": arguments.examples, "max-length": arguments.max_length, "pack-tokens": 1}
    options["recompute"] = "off"  # as TRL's
    sys.argv = ["train.py", *(f"--{name}={value}" for name, value in options.items())]
    train.train(train.parse_arguments())
    rows = [json.loads(line) for line in (out / "model" / "log.jsonl").read_text().splitlines()]
    return [row | {"seconds": row["tokens"] / row["tokens_per_second"]} for row in rows]


def floor(log: list[dict]) -> float:
    """Tokens per second of the logged steps if all their operations ran as fast as those of a product of two
    large matrices in bf16 do here."""
    import torch

    matrix, seconds = torch.randn(4096, 4096).to(torch.bfloat16), []
    for _ in range(5):
        started = time.monotonic()
        matrix @ matrix
        seconds.append(time.monotonic() - started)
    tflops = 2 * 4096**3 / min(seconds) / 1e12
    return statistics.median(row["tokens_per_second"] * tflops / row["tflops"] for row in log)


def trl(arguments, data: Path, out: Path, packing: bool) -> list[dict]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    settings = {"precision": "bf16", "attention": "sdpa", "chat_template": "new"}
    options, tokenizer = train.read_model(SimpleNamespace(model=arguments.model, **settings))
    model = AutoModelForCausalLM.from_pretrained(arguments.model, **options)
    encoded = [train.encode_example(tokenizer, *pair) for pair in train.read_pairs(data)]
    encoded = [(ids[: arguments.max_length], prompt) for ids, prompt in encoded]
    tokens = sum(len(ids) for ids, _ in encoded)
    mask = [[0] * prompt + [1] * (len(ids) - prompt) for ids, prompt in encoded]
    columns = [{"input_ids": ids, "completion_mask": learned} for (ids, _), learned in zip(encoded, mask)]
    rows = count_best_fit(encoded, arguments.max_length) if packing else len(encoded)
    at_once = 1 if packing else 4
    settings = SFTConfig(
        output_dir=str(out),
        packing=packing,
        max_length=arguments.max_length,
        completion_only_loss=True,
        gradient_checkpointing=False,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=rows // at_once,
        num_train_epochs=arguments.steps,
        use_cpu=not torch.cuda.is_available(),
        optim="adafactor",
        learning_rate=1e-5,
        lr_scheduler_type="linear",
        warmup_steps=0,
        max_grad_norm=0,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    clock, log = CLOCKS[arguments.clock], []

    class Steps(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.started = clock()

        def on_step_end(self, *_, **__):
            log.append({"tokens": tokens, "seconds": clock() - self.started})

    data_options = {"train_dataset": Dataset.from_list(columns), "processing_class": tokenizer}
    trainer = SFTTrainer(model, settings, callbacks=[Steps()], **data_options)
    assert len(trainer.train_dataset) == rows, "TRL packs into other rows: a step is not the whole data"
    trainer.train()
    for row, told in zip(log, (row for row in trainer.state.log_history if "loss" in row), strict=True):
        row["loss"] = told["loss"]
    return log


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--data", required=True, type=Path, help="as for train.py")
    parser.add_argument("--examples", type=int, default=32, help="a multiple of 4")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=1280)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    # one run, in a process of its own
    parser.add_argument("--only", choices=["ours", "trl", "padded"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "sft.jsonl")
        lines = arguments.data.read_text().splitlines(keepends=True)[: arguments.examples]
        data.write_text("".join(lines))
        if arguments.only:
            out = Path(folder)
            if arguments.only == "ours":
                log = ours(arguments, data, out)
            else:
                log = trl(arguments, data, out, packing=arguments.only == "trl")
            timed = log[1:]
            speed = sum(row["tokens"] for row in timed) / sum(row["seconds"] for row in timed)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
            losses = [row["loss"] for row in log]
            found = {"speed": speed, "peak_gb": memory, "losses": losses}
            print("\n" + json.dumps(found | ({"floor": floor(timed)} if arguments.only == "ours" else {})))
            return

    speeds = {"ours": [], "trl": [], "padded": []}
    print(f"load {os.getloadavg()[0]:.1f}, {arguments.clock} seconds")
    for _ in range(arguments.rounds):
        for name in speeds:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result = json.loads(run.stdout.splitlines()[-1])
            speeds[name].append(result["speed"])
            losses = " ".join(f"{loss:.4f}" for loss in result["losses"])
            rates = f"{result['speed']:8.1f} tokens/s  peak {result['peak_gb']:5.2f} GB"
            print(f"{name:6} {rates}  losses {losses}", flush=True)
            if "floor" in result:
                print(f"floor  {result['floor']:8.1f} tokens/s: all at the speed of a matrix product")
    for name in ("trl", "padded"):
        ratio = statistics.median(a / b for a, b in zip(speeds["ours"], speeds[name]))
        print(f"ours / {name}: {ratio:.2f} (median of {arguments.rounds} rounds)")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
