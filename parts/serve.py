"""vLLM's server, which ends with the program that started it, however that ends, and leaves no process.

    python parts/serve.py MODEL [options of `vllm serve`]

vLLM's processes do not notice the death of the one that started them. So this one watches both: its standard
input, which closes when the program that holds the other end has gone, and the server. When either ends, it
ends the server's whole process group.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

SECONDS_TO_END = 5  # after SIGTERM; then SIGKILL


def serve():
    """What `vllm serve` does. That command itself asks for the version of a distribution named vllm, and the
    build for CPUs has another name."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    command = ServeSubcommand()
    parser = FlexibleArgumentParser()
    command.subparser_init(parser.add_subparsers())
    arguments = parser.parse_args(["serve", *sys.argv[2:]])
    command.validate(arguments)
    command.cmd(arguments)


def watch() -> int:
    command = [sys.executable, os.path.abspath(__file__), "--server", *sys.argv[1:]]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    ended = threading.Event()
    for wait in (server.wait, sys.stdin.buffer.read):
        threading.Thread(target=lambda wait=wait: (wait(), ended.set()), daemon=True).start()
    ended.wait()
    with contextlib.suppress(ProcessLookupError):  # no process is left in the group
        os.killpg(server.pid, signal.SIGTERM)
        end = time.monotonic() + SECONDS_TO_END
        while time.monotonic() < end:
            os.killpg(server.pid, 0)
            time.sleep(0.1)
        os.killpg(server.pid, signal.SIGKILL)
    return server.wait()


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules must not hide others of the same names
    if sys.argv[1] == "--server":
        serve()
    else:
        os._exit(watch())  # a thread still reads standard input
