"""What this machine has: GPUs, memory, disk, sandbox, benchmarks; with a model, whether and how it fits.

python selfcodealign.py doctor [--model MODEL]
"""

import argparse
import os
import resource
import shutil
import subprocess
import sysconfig
import warnings
from pathlib import Path

from parts.benchmarks import OVERRIDES, load_benchmark
from parts.engine import check_model, quiet_libraries
from parts.folder import versions
from parts.rows import BadInput, one_line
from sandbox import Sandbox, SandboxError

LARGEST_SHARE = 0.9  # of a GPU's memory: the rest is CUDA's, and lost between blocks
GB = 1e9
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def say(topic: str, found: str):
    print(f"{topic + ':':14}{found}")


def gpus() -> list[tuple[str, float]]:
    """(name, GB) of each GPU that torch can use; says what there is."""
    import torch

    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True) if shutil.which(query[0]) else None
    there = listed.stdout.splitlines() if listed and listed.returncode == 0 else []
    for line in there or ["none found"]:
        say("GPU", line)
    usable = torch.cuda.is_available()
    if there and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        say("torch", "uses none of them: CUDA_VISIBLE_DEVICES hides them")
    elif there and not usable:
        needed = f"it is built for CUDA {torch.version.cuda}, which needs driver 580 or newer"
        say("torch", f"CANNOT USE THEM: {needed}")
    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count() if usable else 0))
    return [(found.name, found.total_memory / GB) for found in properties]


def describe_machine(folder: Path) -> float:
    """Say what runs programs and holds data; gives the memory in GB."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
    say("cores", f"{len(os.sched_getaffinity(0))}, with {memory:.0f} GB of memory")
    say("disk", f"{shutil.disk_usage(folder).free / GB:.0f} GB free in {folder}")
    say("packages", ", ".join(f"{name} {number}" for name, number in versions().items()))
    try:
        with Sandbox(workers=1) as box:
            missing = [line for line in box.protection.values() if line.startswith("NOT ACTIVE")]
            all_there = "every layer is active (python sandbox.py --check tests them)"
            say("sandbox", "; ".join(missing) or all_there)
    except SandboxError as error:
        say("sandbox", f"NOT USABLE: {error}")
    for name in OVERRIDES:
        try:
            benchmark = load_benchmark(name)
            say(benchmark.suite, f"{len(benchmark.tasks)} tasks")
            if benchmark.missing:
                say(f"{name}+", f"NOT FOUND: {benchmark.missing}")
        except BadInput as error:
            say(f"{name}+", f"NOT FOUND: {error}")
    return memory


def describe_system():
    """Say what a GPU's libraries ask of the system, and what keeps servers from being reached."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    say("compiler", compiler or "none: Triton needs a C compiler on a GPU")
    say("Python.h", str(header) if header.exists() else "none: Triton needs it on a GPU (python3-dev)")
    say("nvcc", shutil.which("nvcc") or "none, and none is needed")
    say("/dev/shm", f"{shutil.disk_usage('/dev/shm').free / GB:.1f} GB free")
    say("open files", "at most {}, {} if raised".format(*resource.getrlimit(resource.RLIMIT_NOFILE)))
    proxies = sorted(name for name in os.environ if name.lower() in PROXIES and os.environ[name])
    say("proxy", ", ".join(proxies) or "none")


def fit(model: str, found: list[tuple[str, float]], memory: float):
    """Say with which settings the model fits to generate, to train and to be scored."""
    from transformers import AutoConfig

    import train
    from extras.memory import peak

    with one_line(f"cannot load the model {model}"):
        config = AutoConfig.from_pretrained(model)
    weights = sum(weight.numel() for weight in train.build({"config": config}, "meta").parameters())
    say("model", f"{model}: {weights / GB:.2f} billion parameters, {2 * weights / GB:.1f} GB to generate")
    room = LARGEST_SHARE * min((size for _, size in found), default=memory)
    count = max(1, len(found))
    copies = [n for n in (1, 2, 4, 8) if n <= count and 2 * weights / GB / n < 0.75 * room]
    parallel = f" --tensor-parallel {copies[0]}" if copies and copies[0] > 1 else ""
    say("generate", f"fits{parallel or ' as it is'}" if copies else "DOES NOT FIT this machine")
    say("score", f"as generate: eval.py --model {model}{parallel}" if copies else "DOES NOT FIT this machine")
    launch = f"torchrun --standalone --nproc-per-node {count}" if count > 1 else "python"
    for precision in ("mixed", "bf16"):
        for recompute in (False, True):
            needed = peak(config, count, precision, recompute)["Total"] / GB
            if needed < room:
                flags = f"--model {model} --precision {precision} --recompute {'on' if recompute else 'off'}"
                return say("train", f"{needed:.1f} GB on each of {count}: {launch} train.py {flags}")
    say("train", f"DOES NOT FIT: {needed:.0f} GB on each of {count}, even with bf16 and recomputation")


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser("selfcodealign.py doctor", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a checkpoint folder or hub id, whose weights are not read")
    model = parser.parse_args(words).model
    quiet_libraries()
    warnings.filterwarnings("ignore")
    if model:
        check_model(model)
    found = gpus()
    memory = describe_machine(Path.cwd())
    describe_system()
    if model:
        fit(model, found, memory)
    return 0
