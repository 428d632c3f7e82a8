"""Engines behind HTTP: OpenAI-compatible servers, and vLLM's, which this program starts, watches and ends."""

import asyncio
import contextlib
import functools
import gc
import http.client
import itertools
import json
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
import urllib.parse
import urllib.request
from pathlib import Path

from parts.request import Completion, Request
from parts.rows import BadInput, one_line, progress, whole

WINDOW = 1024  # requests at a time for each copy of the model: as many as vLLM runs on a GPU of 80 GB
RETRIES, PAUSE = 90, 0.5  # s, then twice as long each time up to 8 s: a server may be away for 12 minutes
FAILURES = 5  # tries of a request that a server fails at though it is there: 7.5 s
REQUEST_SECONDS = 3600  # of one request at a server, its time in the server's queue included
TRIAL_SECONDS = 120  # of one request of the trial, at a server that others may use too
START_SECONDS = 7200  # until our own server answers: a large model is downloaded, loaded and compiled
POINTS_UP = r"[Ss]ee (root cause|stack trace) \(?above"  # an error that only says where the other is
GOES_ON = "the same command goes on from here"
TRIAL = "def f(x: dict) -> None:\n\t\tassert x['naïve'] >= 12345  # 不\n\n### Concepts in one sentence: " * 3
STOPS = 16  # stop strings of a request: more than any of ours has, and than many a server takes


class Refused(Exception):
    """An answer that is no completion. `tries`: how often such an answer is taken before it is an error."""

    def __init__(self, problem: object, tries: int = FAILURES):
        super().__init__(" ".join(str(problem).split())[:300])
        self.tries = tries


class Server:
    """OpenAI-compatible completions servers that take token ids as prompts (vLLM, SGLang, llama.cpp, ...)."""

    on_cpu, cores = False, 0  # not on this machine's, as far as we know
    stops = STOPS  # that each server takes; `complete` sees to the others

    def __init__(self, urls: list[str], model: str, context: int, key: str | None = None):
        from transformers import AutoTokenizer

        for url in urls:
            if not re.match(r"https?://[^/]", url):
                raise BadInput(f"--server takes addresses such as http://127.0.0.1:8000, not {url!r}")
        with one_line(f"cannot load the tokenizer of {model}"):
            self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model, self.context, self.window = model, context, WINDOW * len(urls)
        self.key, self.away = key or os.environ.get("OPENAI_API_KEY", "none"), set()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each request in flight is a connection
        self.servers = itertools.cycle(self.connect([re.sub(r"(/v1)?/*$", "/v1", url) for url in urls]))
        self.finished, self.tasks, self.loop = queue.SimpleQueue(), set(), asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        gc.freeze()  # collections would walk through the libraries' objects again and again

    def connect(self, urls: list[str]) -> list[tuple[str, str]]:
        """(address, its name of the model) of each server, after a trial of each. Raises BadInput."""

        async def try_all():
            try:
                return [(url, await self.try_out(url)) for url in urls]
            finally:
                await self.session.close()
                del self.session  # its event loop ends

        return asyncio.run(try_all())

    async def try_out(self, url: str) -> str:
        """The name under which a server has the model; lowers `context` and `stops` to what it takes. Raises
        BadInput where it cannot do what is asked of it."""
        ask = functools.partial(self.fetch, url, tries=2, seconds=TRIAL_SECONDS)
        served = await ask("/models", None, models)
        if self.model not in served and len(served) != 1:
            raise BadInput(f"the server {url} serves {', '.join(served) or 'no model'}, not {self.model}")
        name = self.model if self.model in served else next(iter(served))
        if name != self.model:
            print(f"the server {url} calls its model {name}: taken for {self.model}", file=sys.stderr)
        entry, ids = served[name], self.tokenizer(TRIAL).input_ids
        meta = entry.get("meta")  # llama.cpp's
        limits = entry.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None
        self.context = min([self.context, *(n for n in limits if isinstance(n, int) and n > 0)])
        counted = await ask("/completions", {"model": name, "prompt": TRIAL, "max_tokens": 1}, prompt_tokens)
        if counted is not None and abs(counted - len(ids)) > 2:  # special tokens at both ends
            counts = f"a text of {len(ids)} tokens by the tokenizer of {self.model} has {counted} there"
            raise BadInput(f"the server {url} has another vocabulary: {counts}; give the model it serves")
        for self.stops in (stops for stops in (STOPS, 4, 1) if stops <= self.stops):
            strings, texts = [f"</{number}>" for number in range(self.stops)], []
            try:
                for seed in (1, 1, 2):
                    request = Request("", ids, 16, seed, strings, temperature=1.0)
                    texts.append((await ask("/completions", self.body(request, name), completion)).text)
                break
            except BadInput as error:
                problem = error
        else:
            raise BadInput(f"{problem}: a server is needed that takes token ids as a prompt, such as vLLM's")
        for wrong, note in (
            (texts[0] == texts[2], "gives one text for different seeds: the samples of a task may be alike"),
            (texts[0] != texts[1], "gives other text for the same seed: a run cannot be repeated"),
        ):
            if wrong:
                print(f"the server {url} {note}", file=sys.stderr)
        return name

    @functools.cached_property
    def session(self):
        """Made where it is first asked for, in the event loop that uses it."""
        import aiohttp

        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        every = aiohttp.TCPConnector(limit=0)
        return aiohttp.ClientSession(connector=every, headers=headers, cookie_jar=aiohttp.DummyCookieJar())

    def submit(self, request: Request):
        self.loop.call_soon_threadsafe(self.begin, request)

    def begin(self, request: Request):
        task = self.loop.create_task(self.ask(request, *next(self.servers)))
        self.tasks.add(task)  # the loop itself keeps no task from being collected
        task.add_done_callback(self.tasks.discard)

    async def ask(self, request: Request, url: str, name: str):
        try:
            self.finished.put((request.id, await self.complete(request, url, name)))
        except Exception as error:  # raised where the main thread collects
            self.finished.put(error)

    async def complete(self, request: Request, url: str, name: str) -> Completion:
        found = await self.fetch(url, "/completions", self.body(request, name), completion)
        if request.logprobs and not found.first:
            raise BadInput(f"the server {url} gives no logprobs, for --judge: take --judge 0")
        found.tokens = found.tokens or len(self.tokenizer(found.text).input_ids)
        ends = [found.text.find(stop) for stop in request.stop[self.stops :]]
        if ends := [end for end in ends if end >= 0]:
            found.text, found.finished = found.text[: min(ends)], True
        return found

    def body(self, request: Request, name: str) -> dict:
        asked = {
            "model": name,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stop": request.stop[: self.stops] or None,
            "logprobs": request.logprobs or None,
            # What is not sent would come from the model's generation_config.
            "top_k": request.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        return {key: value for key, value in asked.items() if value is not None}

    async def fetch(
        self, url: str, path: str, body: dict | None, read, tries=RETRIES, seconds=REQUEST_SECONDS
    ):
        """What `read` makes of the server's answer, asked again where that may help. Raises BadInput."""
        spent, pause = 0, PAUSE
        while True:
            try:
                found = read(await self.exchange(url + path, body, seconds))
                self.away.discard(url)
                return found
            except Refused as error:
                spent += 1 / min(error.tries, tries)
                if spent > 0.999:
                    raise BadInput(f"the server {url} failed: {error}; {GOES_ON}") from None
                if pause > 4 and url not in self.away:
                    self.away.add(url)
                    print(f"waiting for the server {url}: {error}", file=sys.stderr)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 8)

    async def exchange(self, address: str, body: dict | None, seconds: int) -> dict:
        """One request and its answer. Raises Refused."""
        import aiohttp
        import msgspec

        # json takes ten times as long for token ids
        options = {"data": msgspec.json.encode(body)} if body else {}
        options |= {"timeout": aiohttp.ClientTimeout(total=seconds), "proxy": proxy(address)}
        try:
            async with self.session.request("POST" if body else "GET", address, **options) as answer:
                text = (await answer.read()).decode(errors="replace")
        except TimeoutError:
            raise Refused(f"no answer within {seconds} s") from None
        except aiohttp.ClientError as error:
            raise Refused(str(error) or type(error).__name__, RETRIES) from None
        if answer.status != 200:
            tries = {429: RETRIES, 502: RETRIES, 503: RETRIES, 504: RETRIES}  # busy, or not there
            usual = FAILURES if answer.status >= 500 or answer.status == 408 else 1
            raise Refused(f"HTTP {answer.status}: {complaint(text)}", tries.get(answer.status, usual))
        try:
            return json.loads(text)
        except ValueError:
            raise Refused(f"not JSON: {text[:100]}") from None

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
        async def end():
            for task in self.tasks:
                task.cancel()
            await self.session.close()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()


def models(answer: dict) -> dict[str, dict]:
    """{name: what is said of it} of the models that a server has. Raises Refused."""
    try:
        return {entry["id"]: entry for entry in answer["data"]}
    except (TypeError, KeyError):
        raise Refused(f"no list of models: {json.dumps(answer)[:100]}") from None


def prompt_tokens(answer: dict) -> int | None:
    """The tokens of the prompt by a server's count, if it tells."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return usage.get("prompt_tokens") if isinstance(usage, dict) else None


def completion(answer: dict) -> Completion:
    """Raises Refused: an `abort`, say, is no end of a text."""
    try:
        choice = answer["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
        tokens, logprobs = (answer.get("usage") or {}).get("completion_tokens"), choice.get("logprobs") or {}
        first = (logprobs.get("top_logprobs") or [{}])[0]
        if logprobs.get("content"):  # as in the chat protocol: llama.cpp
            likely = logprobs["content"][0]["top_logprobs"]
            first = {token["token"]: token["logprob"] for token in likely}
        first = {token: math.exp(logprob) for token, logprob in first.items()}
        if not isinstance(text, str) or reason not in ("stop", "length"):
            raise TypeError
    except (TypeError, KeyError, IndexError, AttributeError):
        raise Refused(f"no completion: {json.dumps(answer)[:200]}") from None
    return Completion(whole(text), reason == "stop", tokens or 0, first)


def complaint(text: str) -> str:
    """The message in a server's error, or its first words."""
    try:
        error = json.loads(text)
        return error["error"]["message"] if "error" in error else error["message"]
    except (ValueError, TypeError, KeyError):
        return text[:200]


@functools.cache
def proxy(address: str) -> str | None:
    """The proxy that the environment names for an address; this machine is asked directly in any case."""
    parts = urllib.parse.urlsplit(address)
    if parts.hostname in ("127.0.0.1", "::1", "localhost") or urllib.request.proxy_bypass(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme)


class OwnServer(Server):
    """`vllm serve` on this machine, on a port and with a key of its own (parts/serve.py)."""

    def __init__(
        self,
        model: str,
        context: int,
        options: dict,
        tensor_parallel: int,
        copies: int,
        on_cpu: bool,
        log: Path | None,
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port, key = free.getsockname()[1], secrets.token_hex(16)
        self.options = options | {
            "host": "127.0.0.1",
            "port": self.port,
            "tensor_parallel_size": tensor_parallel,
            "data_parallel_size": copies,
            "disable_log_stats": True,
            "disable_uvicorn_access_log": True,
        }
        self.log = log.open("wb") if log else tempfile.NamedTemporaryFile(prefix="vllm-", suffix=".log")
        super().__init__([f"http://127.0.0.1:{self.port}"], model, context, key)
        self.window, self.on_cpu = WINDOW * copies, on_cpu
        self.cores = 0 if on_cpu else 1 + 2 * copies + tensor_parallel * copies

    def connect(self, urls: list[str]) -> list[tuple[str, str]]:
        """Starts the server, and waits until it is up."""
        environment = {
            "VLLM_MAX_STOP_STRINGS": str(STOPS),
            "VLLM_ENGINE_READY_TIMEOUT_S": str(START_SECONDS),
            # No request needs FlashInfer's sampler, which wants a compiler for CUDA
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
        }
        environment |= os.environ | {"VLLM_API_KEY": self.key, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
        command = [
            sys.executable,
            str(Path(__file__).with_name("serve.py")),
            self.model,
            *flags(self.options),
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": self.log, "stderr": self.log, "start_new_session": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        end = time.monotonic() + START_SECONDS
        with progress(desc="vLLM starts", unit="s") as bar:
            while not is_up(self.port):
                self.check()
                if time.monotonic() > end:
                    self.end_process()
                    raise BadInput(
                        f"vLLM is not up after {START_SECONDS} s (log: {self.log.name}); {GOES_ON}"
                    )
                bar.update()
        return [(url, self.model) for url in urls]

    def check(self):
        if self.process.poll() is not None:
            lines = Path(self.log.name).read_text(errors="replace").splitlines()
            errors = [re.search(r"(^|\] )((\w+\.)*\w*(Error|Exception): .*)", line) for line in lines]
            errors = [found[2] for found in errors if found and not re.search(POINTS_UP, found[2])]
            reason = (errors or lines or ["no reason"])[-1][:500]
            raise BadInput(f"vLLM ended: {reason} (log: {self.log.name}); {GOES_ON}")

    def end_process(self):
        self.process.stdin.close()
        self.process.wait()

    def close(self):
        super().close()
        self.end_process()


def flags(options: dict) -> list[str]:
    """The options of vLLM's classes as those of its command line."""
    spelled = {name.replace("_", "-"): value for name, value in options.items()}
    switches = [
        f"--{'' if value else 'no-'}{name}" for name, value in spelled.items() if isinstance(value, bool)
    ]
    text = lambda value: json.dumps(value) if isinstance(value, dict | list) else value
    return switches + [
        f"--{name}={text(value)}" for name, value in spelled.items() if type(value) is not bool
    ]


def is_up(port: int) -> bool:
    """Whether the server there answers; takes a second if not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)  # never through a proxy
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health")
        if connection.getresponse().status == 200:
            return True
    time.sleep(1)
    return False
