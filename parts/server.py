"""Engines behind HTTP: OpenAI-compatible servers, and vLLM's, which this program starts, watches and ends."""

import asyncio
import contextlib
import itertools
import math
import os
import queue
import re
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from parts.request import Completion, Request
from parts.rows import BadInput, one_line

WINDOW = 1024  # requests at a time for each copy of the model: as many as vLLM runs on a GPU of 80 GB
RETRIES = 90  # after 0.5 s, then twice as long each time up to 8 s: a server may be away for 12 minutes
REQUEST_SECONDS = 3600  # of one request at a server, its time in the server's queue included
GOES_ON = "the same command goes on from here"


class Server:
    """OpenAI-compatible completions servers that take token ids as prompts (vLLM, SGLang, ...)."""

    on_cpu, cores = False, 0  # not on this machine's, as far as we know

    def __init__(self, urls: list[str], model: str, context: int, key: str | None = None):
        import httpx
        import openai
        from transformers import AutoTokenizer

        with one_line(f"cannot load the tokenizer of {model}"):
            self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model, self.context, self.window = model, context, WINDOW * len(urls)
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each request in flight is a connection
        unlimited = openai.DefaultAsyncHttpxClient(limits=httpx.Limits(max_connections=None))
        options = {"api_key": key or os.environ.get("OPENAI_API_KEY", "none"), "http_client": unlimited}
        options |= {"max_retries": RETRIES, "timeout": REQUEST_SECONDS}
        urls = [re.sub(r"(/v1)?/*$", "/v1", url) for url in urls]
        names = [self.served_name(url, options["api_key"]) for url in urls]
        clients = (openai.AsyncOpenAI(base_url=url, **options) for url in urls)
        self.servers = itertools.cycle(list(zip(clients, names)))
        self.finished, self.loop = queue.SimpleQueue(), asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def served_name(self, url: str, key: str) -> str:
        """The name under which a server has the model; lowers `context` to what it takes. Raises BadInput."""
        import openai

        try:
            with openai.OpenAI(base_url=url, api_key=key) as client:
                served = {entry.id: entry for entry in client.models.list()}
        except openai.OpenAIError as error:
            raise BadInput(f"no answer from the server {url}: {error}") from None
        if self.model not in served and len(served) != 1:
            raise BadInput(f"the server {url} serves {', '.join(served) or 'no model'}, not {self.model}")
        name = self.model if self.model in served else next(iter(served))
        self.context = min(self.context, getattr(served[name], "max_model_len", None) or self.context)
        return name

    def submit(self, request: Request):
        asyncio.run_coroutine_threadsafe(self.ask(request, *next(self.servers)), self.loop)

    async def ask(self, request: Request, client, name: str):
        try:
            self.finished.put((request.id, await self.complete(request, client, name)))
        except Exception as error:  # raised where the main thread collects
            self.finished.put(error)

    async def complete(self, request: Request, client, name: str) -> Completion:
        import openai

        # What is not sent would come from the model's generation_config.
        plain = {"top_k": request.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
        try:
            answer = await client.completions.create(
                model=name,
                prompt=request.prompt,
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                extra_body=plain,
                seed=request.seed,
                stop=request.stop or None,
                logprobs=request.logprobs or None,
            )
        except openai.OpenAIError as error:
            raise BadInput(f"the server {client.base_url} failed: {error}; {GOES_ON}") from None
        choice, first = answer.choices[0], {}
        if request.logprobs:
            if not (choice.logprobs and choice.logprobs.top_logprobs):
                raise BadInput(f"the server {client.base_url} gives no logprobs, for --judge: take --judge 0")
            first = {token: math.exp(logprob) for token, logprob in choice.logprobs.top_logprobs[0].items()}
        usage = answer.usage
        tokens = usage.completion_tokens if usage else len(self.tokenizer(choice.text).input_ids)
        return Completion(choice.text, choice.finish_reason == "stop", tokens, first)

    def collect(self) -> list[tuple[str, Completion]]:
        """What has finished; waits until something has."""
        finished = []
        while not finished or not self.finished.empty():
            with contextlib.suppress(queue.Empty):
                finished.append(self.finished.get(timeout=1))
            self.check()
        for result in finished:
            if isinstance(result, Exception):
                raise result
        return finished

    def check(self):
        """Raises BadInput where it is known that nothing will come."""

    def close(self):
        pass


class OwnServer(Server):
    """`vllm serve` on this machine, on a port and with a key of its own (parts/serve.py)."""

    def __init__(
        self, model: str, context: int, options: dict, tensor_parallel: int, copies: int, on_cpu: bool
    ):
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port, key = free.getsockname()[1], secrets.token_hex(16)
        options = options | {"host": "127.0.0.1", "port": port, "tensor_parallel_size": tensor_parallel}
        options |= {
            "data_parallel_size": copies,
            "disable_log_stats": True,
            "disable_uvicorn_access_log": True,
        }
        command = [sys.executable, str(Path(__file__).with_name("serve.py")), model, *flags(options)]
        self.log = tempfile.NamedTemporaryFile(prefix="vllm-", suffix=".log")
        pipes = {"stdin": subprocess.PIPE, "stdout": self.log, "stderr": self.log, "start_new_session": True}
        self.process = subprocess.Popen(command, env=os.environ | {"VLLM_API_KEY": key}, **pipes)
        while not is_up(port):
            self.check()
        super().__init__([f"http://127.0.0.1:{port}"], model, context, key)
        self.window, self.on_cpu = WINDOW * copies, on_cpu
        self.cores = 0 if on_cpu else 1 + 2 * copies + tensor_parallel * copies

    def check(self):
        if self.process.poll() is not None:
            lines = Path(self.log.name).read_text(errors="replace").splitlines()
            errors = [line for line in lines if re.search(r"\w*(Error|Exception)\b: ", line)]
            reason = re.sub(r"^.*?(\w*(Error|Exception)\b: )", r"\1", (errors or lines or ["no reason"])[-1])
            raise BadInput(f"vLLM ended: {reason}; {GOES_ON}")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def flags(options: dict) -> list[str]:
    """The options of vLLM's classes as those of its command line."""
    spelled = {name.replace("_", "-"): value for name, value in options.items()}
    switches = [
        f"--{'' if value else 'no-'}{name}" for name, value in spelled.items() if isinstance(value, bool)
    ]
    return switches + [f"--{name}={value}" for name, value in spelled.items() if not isinstance(value, bool)]


def is_up(port: int) -> bool:
    """Whether the server there answers; takes a second if not."""
    import httpx

    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200
    except httpx.HTTPError:
        time.sleep(1)
        return False
