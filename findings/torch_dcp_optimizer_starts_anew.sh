#!/usr/bin/env bash
# torch 2.13.0, torch.distributed.checkpoint: dcp_to_torch_save, the converter that torch brings, and load.
#
# An optimizer's state_dict numbers the parameters: {0: ..., 1: ...}. A distributed checkpoint names every value by
# a path of text, and the converter back to a file of torch.save gives {"0": ..., "1": ...}. The optimizer's
# load_state_dict takes that file without a word: it knows no parameter "0", keeps the entries beside the
# parameters and begins at step 0 with empty moments. The weights and the learning rate are the saved ones, so that
# the resumed run looks right and goes another way. load has the same flaw for what is no tensor (Adafactor of
# transformers 5.19.0 counts its steps in a number): the saved one lands under "0", and 0 keeps the old one. With
# get_optimizer_state_dict, whose names are texts from the start, nothing is lost.
#
# Seen after 5 steps of AdamW and 1 more: from torch.save steps [6, 6], the weights of the straight run; from the
# converted checkpoint [5, 5, 1, 1], other weights; a number under 0 after load: the old 1, under "0" the saved 5.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5
cd "$folder"

OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save


def new():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def step(model, optimizer, inputs):
    for value in inputs:
        optimizer.zero_grad()
        model(torch.tensor([[1.0, float(value)]])).square().sum().backward()
        optimizer.step()


model, optimizer = new()
step(model, optimizer, range(5))
saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
torch.save(saved, "plain.pt")
dcp.save(saved, checkpoint_id="distributed")
dcp_to_torch_save("distributed", "converted.pt")
step(model, optimizer, [5])

for file, expected in {"plain.pt": ([6, 6], True), "converted.pt": ([5, 5, 1, 1], False)}.items():
    saved = torch.load(file)
    resumed, its_optimizer = new()
    resumed.load_state_dict(saved["model"])
    its_optimizer.load_state_dict(saved["optimizer"])
    step(resumed, its_optimizer, [5])
    steps = [int(entry["step"]) for entry in its_optimizer.state.values()]
    same = torch.allclose(resumed.weight, model.weight, rtol=0, atol=1e-5)
    print(file, "states", list(saved["optimizer"]["state"]), "steps", steps, "same weights", same)
    if (steps, same) != expected:
        sys.exit(f"changed: {expected} were seen with torch 2.13.0")

dcp.save({"state": {0: {"step": 5, "moment": torch.ones(1)}}}, checkpoint_id="numbers")
target = {"state": {0: {"step": 1, "moment": torch.zeros(1)}}}
dcp.load(target, checkpoint_id="numbers")
print(target)
if target["state"] != {0: {"step": 1, "moment": torch.ones(1)}, "0": {"step": 5}}:
    sys.exit("changed: under 0 were the old step and the saved moment, under '0' the saved step")
PY
