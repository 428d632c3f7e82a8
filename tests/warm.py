"""An interpreter that has the libraries, and forks for each command: a test that starts a script pays for a
fork, not for the seconds that importing torch, transformers and vLLM takes.

Reads a JSON object a line: {"words": script and arguments, "cwd", "env", "files": for output and errors}. Answers
each with the exit status, negative for a signal, once the command has ended.
"""

import json
import os
import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)
from parts.engine import quiet_libraries

quiet_libraries()
import evalplus.evaluate
import torch.distributed.checkpoint
import transformers.models.llama
from vllm import LLM, SamplingParams


def serve() -> dict | None:
    """In a forked process the command to run; in the first one None, once there are no more."""
    for line in sys.stdin:
        if not (process := os.fork()):
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    return None


def become(command: dict):
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["env"])
    for number, path in enumerate((os.devnull, *command["files"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.argv = command["words"]
    runpy.run_path(sys.argv[0], run_name="__main__")


if command := serve():
    become(command)
