#!/usr/bin/env bash
# safetensors 0.8.0 against 0.7.0, safetensors.numpy with numpy 2.3.5.
#
# A converter that turns GPT-2's Conv1D weights into Linear weights saves weight.T. In numpy that is a view of the same
# memory. 0.7.0 writes the transposed values. 0.8.0 hands the array's memory to the writer as it lies, under the view's
# shape: the file is valid, has the right names, shapes and size, and its weights are shuffled, without an error. The
# docstrings of both say that arrays need to be contiguous; the functions for torch raise, these do not.
# numpy.ascontiguousarray before the save gives the right file in both. (Reported as safetensors issue 825.)
#
# Seen for the transpose of [[0, 1, 2], [3, 4, 5]]: 0.7.0 [[0, 3], [1, 4], [2, 5]], 0.8.0 [[0, 1], [2, 3], [4, 5]].
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-deps --no-compile --target "$folder/numpy" numpy==2.3.5
for version in 0.7.0 0.8.0; do
    python3 -m pip install --quiet --no-deps --no-compile --target "$folder/$version" safetensors==$version
done

cat >"$folder/convert.py" <<'PY'
import sys

import numpy
from safetensors.numpy import load_file, save_file

conv1d = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
linear = conv1d.T
save_file({"view": linear, "copy": numpy.ascontiguousarray(linear)}, sys.argv[1])
loaded = load_file(sys.argv[1])
print(loaded["view"].astype(int).tolist())
if not numpy.array_equal(loaded["copy"], linear):
    sys.exit("changed: a contiguous copy no longer comes back as it was")
PY

for seen in "0.7.0 [[0, 3], [1, 4], [2, 5]]" "0.8.0 [[0, 1], [2, 3], [4, 5]]"; do
    read -r version values <<<"$seen"
    now=$(PYTHONPATH="$folder/numpy:$folder/$version" python3 "$folder/convert.py" "$folder/$version.safetensors")
    echo "$version: $now"
    if [ "$now" != "$values" ]; then
        echo "changed: safetensors $version gave $values"
        exit 1
    fi
done
