"""The memory of training known beforehand, beside what a step takes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from bench_memory import CONFIGS, config_of
from conftest import ROOT

from extras import memory

# A small step first, so that no library is loaded while it is measured. Every block of malloc goes back to the system.
REAL = """
import copy, sys, torch, train
from types import SimpleNamespace
from torch.distributed.device_mesh import init_device_mesh
from transformers import AttentionInterface, AutoConfig
precision, recompute = sys.argv[1], sys.argv[2] == "True"
AttentionInterface.register("packed", train.packed_attention)
mesh = init_device_mesh(train.start_processes().type, (1,))

def build(config):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = train.build({"config": config, "dtype": dtype, "attn_implementation": "packed"}, "cpu")
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return train.shard(model, SimpleNamespace(precision=precision, reshard="on"), mesh).train()

def step(learner, pack):
    weights = dict(learner.model.named_parameters())
    moments = {name: train.new_moments(weight) for name, weight in weights.items()}
    learner(pack).backward()
    train.adafactor_step(weights, moments, 1, 1e-5)

def resident(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

config = AutoConfig.from_pretrained(sys.argv[3])
config.num_hidden_layers = 8
small = copy.deepcopy(config)
small.num_hidden_layers, small.vocab_size = 1, 1000
step(build(small), train.make_pack([([0] * 64, 16)] * 2, "cpu"))
before, learner = resident("VmRSS"), build(config)
open("/proc/self/clear_refs", "w").write("5")
step(learner, train.make_pack([([0] * 256, 64)] * 2, "cpu"))
print(resident("VmHWM") - before)
"""


@pytest.mark.parametrize("precision, recompute", [("mixed", False), ("fp32", True)])
def test_the_predicted_peak_is_what_a_step_takes(precision, recompute, embedded):
    from transformers import AutoConfig

    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", REAL, precision, str(recompute), embedded]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = AutoConfig.from_pretrained(embedded)
    config.num_hidden_layers = 8
    predicted = memory.peak(config, 1, precision, recompute, pack_tokens=512)["Total"]
    # The CPU's attention copies keys and values for every query head, which the GPU's kernel does not
    assert 0.8 < int(done.stdout) / predicted < 1.3


def test_gpus_share_weights_gradients_and_optimizer():
    config = config_of(*CONFIGS["StarCoder2-3B"])
    config.num_hidden_layers = 4
    weights = {gpus: memory.peak(config, gpus, "mixed", True, pack_tokens=512) for gpus in (1, 4)}
    assert weights[4]["Total"] < 0.6 * weights[1]["Total"]


def test_the_doctor_says_what_does_not_fit_and_what_cannot_be_used(inside, embedded, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA H100, 81559 MiB, 570.86.10\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = inside("selfcodealign.py", "doctor", "--model", embedded, env=path)
    assert done.returncode == 0 and "CANNOT USE THEM" in done.stdout and "train.py --model" in done.stdout
    large = tmp_path / "large"
    shutil.copytree(embedded, large, ignore=shutil.ignore_patterns("*.safetensors"))
    config = config_of(*CONFIGS["DeepSeek-Coder-33B"])
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 2, 57344, 229376
    (large / "config.json").write_text(json.dumps(config.to_dict()))
    assert inside("selfcodealign.py", "doctor", "--model", large).stdout.count("DOES NOT FIT") == 3


def test_the_doctor_looks_at_what_a_gpu_asks_of_the_system(inside, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA H100, 81559 MiB, 580.86.10\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    hidden = path | {"CUDA_VISIBLE_DEVICES": "", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    said = dict(
        line.split(":", 1) for line in inside("selfcodealign.py", "doctor", env=hidden).stdout.splitlines()
    )
    assert "CUDA_VISIBLE_DEVICES hides them" in said["torch"] and said["proxy"].strip() == "http_proxy"
    assert {"compiler", "Python.h", "nvcc", "/dev/shm", "open files"} <= said.keys()
