#!/usr/bin/env bash
# gguf 0.19.0 (llama.cpp's Python package) with numpy 2.3.5: quants.quantize to Q8_0 and to Q4_0.
#
# Each block of 32 weights has one scale, kept as a 16-bit float: the greatest magnitude over 127 for Q8_0, over 8 for
# Q4_0. The 16-bit float's least number is 6e-8, so that the finer step of Q8_0 underflows to zero where the coarser
# one of Q4_0 still holds: a block whose weights stay under 3e-6 comes back as zeros from 8 bits and nearly right
# from 4. No warning is given. From 1e-3 on the order is the expected one.
#
# Seen, as the greatest error over the greatest weight: weights up to 3e-6: Q8_0 1.00 (all zeros), Q4_0 0.10;
# up to 1e-5: 0.26 and 0.06; up to 1e-3: under 0.01 and above 0.05.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-deps --no-compile --target "$folder" \
    gguf==0.19.0 numpy==2.3.5 pyyaml==6.0.4 tqdm==4.70.1 requests==2.34.2 urllib3==2.8.0 \
    idna==3.20 charset-normalizer==3.5.3 certifi==2026.10.19.post1

PYTHONPATH="$folder" python3 - <<'PY'
import sys

import numpy
from gguf import GGMLQuantizationType, quants

ramp = (numpy.arange(256, dtype=numpy.float32) - 128) / 128
errors = {}
for greatest in (3e-6, 1e-5, 1e-3):
    weights = (ramp * numpy.float32(greatest))[None]
    for name in ("Q8_0", "Q4_0"):
        kind = GGMLQuantizationType[name]
        back = quants.dequantize(quants.quantize(weights, kind), kind)
        errors[greatest, name] = float(numpy.abs(back - weights).max() / greatest)
        print(f"{name}, weights up to {greatest}: error {errors[greatest, name]:.3f}, zeros {int((back == 0).sum())}")
if errors[3e-6, "Q8_0"] != 1 or errors[3e-6, "Q4_0"] > 0.11:
    sys.exit("changed: for weights up to 3e-6 Q8_0 gave zeros and Q4_0 was within 0.11")
if errors[1e-5, "Q8_0"] < 0.2 or errors[1e-5, "Q4_0"] > 0.07:
    sys.exit("changed: for weights up to 1e-5 Q8_0 was off by 0.26 and Q4_0 by 0.06")
if errors[1e-3, "Q8_0"] > 0.01 or errors[1e-3, "Q4_0"] < 0.05:
    sys.exit("changed: for weights up to 1e-3 Q8_0 was the finer one by far")
PY
