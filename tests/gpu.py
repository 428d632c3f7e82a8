"""One step of tests/gpu.sh; see there.

speed   train.py's own parts on random weights of a 7B model: tokens/s, share of the GPU's FLOPS, peak memory
learn   train.py on a 0.5B model of random weights and functions of the standard library: the loss falls
resume  the same, killed in the middle and given again: the losses of an undisturbed training
engine  vLLM: start, tokens/s beside LLM.generate, and no process left after a kill
"""

import argparse
import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import bench_memory
import torch

import train

TINY = bool(os.environ.get("TINY"))
STEPS = 4  # the first two are not timed: they compile
SHAPES = {"7B": bench_memory.CONFIGS["Qwen2.5-Coder-7B"], "0.5B": ("qwen2", 896, 4864, 24, 14, 2, 8192)}


def config_of(size: str):
    shape = ("qwen2", 256, 512, 2, 4, 2, 8192) if TINY else SHAPES[size]
    return bench_memory.config_of(*shape, tied=size != "7B")


def speed(given) -> dict:
    import transformers

    from extras.memory import peak

    transformers.AttentionInterface.register("packed", train.packed_attention)
    device, config = train.start_processes(), config_of("7B")
    random_weights = lambda name, **options: train.build(options, device)
    transformers.AutoModelForCausalLM.from_pretrained = random_weights
    backend = "inductor" if device.type == "cuda" else "off"
    words = ["--model", "7B", "--data", "none", "--out", "none", "--compile", backend]
    sys.argv[1:] = [*words, "--max-length", str(given.length), "--pack-tokens", "4096"]
    arguments = train.parse_arguments()
    options = {"config": config, "dtype": torch.bfloat16, "attn_implementation": "packed"}
    learner = train.make_learner(options, arguments, device)
    weights = dict(learner.model.named_parameters())
    moments = {name: train.new_moments(weight) for name, weight in weights.items()}
    count = 16 * 4096 // given.length if not TINY else 4
    batch = [([1] * given.length, given.length // 4)] * count
    speeds = []
    for number in range(1, STEPS + 1):
        started = time.monotonic()
        train.mean_loss(learner, batch, arguments.pack_tokens, device, learn=True)
        train.adafactor_step(weights, moments, number, 1e-5)
        flops = train.step_flops(learner.model, batch)
        speeds.append(train.speed_of(batch, time.monotonic() - started, flops, device))
    found = {key: statistics.median(row[key] for row in speeds[2:]) for key in speeds[0]}
    recompute = learner.model.is_gradient_checkpointing
    predicted = peak(config, 1, "bf16", recompute, pack_tokens=arguments.pack_tokens)["Total"] / 1e9
    return found | {"length": given.length, "recompute": recompute, "predicted_gb": predicted}


def write_model(folder: Path):
    """A 0.5B model of random weights, and a tokenizer of the standard library's text."""
    import tokenizers
    import transformers

    files = [str(path) for path in sorted(Path(os.__file__).parent.glob("*.py"))]
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train(files, vocab_size=8000, special_tokens=["<|endoftext|>"], show_progress=False)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    options = {"config": config_of("0.5B"), "dtype": torch.bfloat16}
    train.build(options, "cuda" if torch.cuda.is_available() else "cpu").save_pretrained(folder)


def write_data(path: Path):
    """Docstrings and functions of the standard library."""
    from parts.seeds import functions

    rows = []
    for file in sorted(Path(os.__file__).parent.glob("*.py")):
        for row in functions(file.name, file.read_text(errors="ignore")):
            if "code" in row and "reject" not in row:
                rows.append({"instruction": f"Write the function {row['name']}.", "response": row["code"]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[: 32 if TINY else 512]))


def start_training(folder: Path, name: str, *options: str) -> tuple[subprocess.Popen, Path]:
    model, data, out = folder / "model", folder / "data.jsonl", folder / name
    if not data.exists():
        write_model(model)
        write_data(data)
    command = [sys.executable, "train.py", "--model", model, "--data", data, "--out", out, "--lr", "1e-3"]
    command += ["--batch-size", "16", "--epochs", "1", "--checkpoint-every", "0.1", *options]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT), out


def losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows]


def learn(given) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        training, out = start_training(Path(folder), "out", "--precision", given.precision)
        assert training.wait() == 0
        found = losses(out)
        assert found[-1] < found[0], found
        return {
            "precision": given.precision,
            "first_loss": found[0],
            "last_loss": found[-1],
            "steps": len(found),
        }


def resume(given) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        options = ("--precision", "mixed")
        training, whole = start_training(Path(folder), "whole", *options)
        assert training.wait() == 0
        training, out = start_training(Path(folder), "killed", *options)
        while training.poll() is None and not any(Path(f"{out}.unfinished").glob("checkpoint-[2-9]*")):
            time.sleep(0.01)
        training.send_signal(signal.SIGKILL)
        training.wait()
        training, out = start_training(Path(folder), "killed", *options)
        assert training.wait() == 0
        apart = max(abs(a - b) for a, b in zip(losses(whole), losses(out), strict=True))
        return {"steps": len(losses(out)), "largest_difference_of_losses": apart}


def engine(given) -> dict:
    import psutil

    from parts.engine import Request, start_engine, stream

    # Whatever outlives its parent becomes a child of this process: PR_SET_CHILD_SUBREAPER.
    ctypes.CDLL(None).prctl(36, 1)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        started = time.monotonic()
        # As on a GPU, where there is none
        vllm = start_engine(folder, 2048, data_parallel=1)
        found = {"seconds_to_start": time.monotonic() - started}
        prompt, count = vllm.tokenizer("import os\n" * 20).input_ids, 16 if TINY else 2000
        requests = [
            Request(str(n), prompt, 64 if TINY else 256, n, [], temperature=1.0) for n in range(count)
        ]
        started = time.monotonic()
        tokens = sum(completion.tokens for _, completion in stream(vllm, requests))
        found["tokens_per_second"] = tokens / (time.monotonic() - started)
        vllm.close()
        left = [child.cmdline() for child in psutil.Process().children(recursive=True)]
        assert not [words for words in left if "vllm" in " ".join(words).lower()]
        return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["speed", "learn", "resume", "engine"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--length", type=int, default=1280)
    parser.add_argument("--precision", default="mixed")
    given = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    found = {"device": device, "torch": torch.__version__} | globals()[given.step](given)
    given.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
