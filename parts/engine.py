"""The engine: requests in, completions out as each finishes, and the model kept busy all the while.

    engine = start_engine(model, context)
    for request, completion in stream(engine, requests): ...

Three back ends stand behind these two functions, with the same prompts (token ids) and the same sampling
seeds:

    InProcess         vLLM in this process                                       one GPU, or none
    WorkerProcesses   an InProcess engine in a child process per GPU, one queue  several GPUs
    Server            any OpenAI-compatible server, or a fleet behind one        --server URL

A back end has `tokenizer`, `context` (tokens), `window` (requests it should hold to stay busy), `on_cpu`,
`submit` and `collect`.
"""

import asyncio
import atexit
import itertools
import logging
import math
import multiprocessing
import os
import queue
import re
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from parts.rows import BadInput

WINDOW = 2048  # requests waiting or running in an engine; their text is in memory
IN_FLIGHT = 512  # the same for a server: each is an open connection
STEP_WINDOW = 64  # requests submitted between two collections, so that the first do not wait for the last
SERVER_RETRIES = (
    90  # after 0.5 s, then twice as long each time up to 8 s: a server may be away for 12 minutes
)
REQUEST_SECONDS = 3600  # of one request at a server, its time in the server's queue included


@dataclass
class Request:
    """What the engine is asked for: `prompt` in token ids, the sampling `seed` of this one request, and the
    `row` it will become."""

    id: str
    prompt: list[int]
    max_tokens: int
    temperature: float
    seed: int | None
    stop: list[str]
    row: dict = field(default_factory=dict)
    logprobs: int = 0  # how many of the likeliest first tokens to tell


@dataclass
class Completion:
    text: str
    finished: bool  # by a stop string or the end-of-text token, not by running out of tokens
    tokens: int
    first: dict[str, float] = field(
        default_factory=dict
    )  # the likeliest first tokens and their probabilities, where asked for


def stream(engine, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
    """Yield each request with its completion as it finishes; the engine holds up to its window of them."""
    requests, pending = iter(requests), {}
    while True:
        for request in itertools.islice(requests, min(STEP_WINDOW, engine.window - len(pending))):
            engine.submit(request)
            pending[request.id] = request
        if not pending:
            return
        for identity, completion in engine.collect():
            yield pending.pop(identity), completion


def check_model(model: str):
    """Refuse a name that is neither a checkpoint folder nor a hub id. Raises BadInput."""
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise BadInput(f"{model} is not a checkpoint folder: it holds no config.json")
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise BadInput(f"no such model folder: {model}")


def start_engine(
    model: str,
    context: int,
    server: str | None = None,
    engines: int | None = None,
    tensor_parallel: int = 1,
    max_num_seqs: int | None = None,
):
    """The back end for this machine. `context` is in tokens and is lowered to what the model has. Raises
    BadInput.

    `engines`: how many worker processes (default: as many as `tensor_parallel` GPUs fit into the visible
    ones).
    """
    check_model(model)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(logging.ERROR)  # for what it says before it reads its own setting
    warnings.filterwarnings("ignore", "`torch.distributed.reduce_op` is deprecated", FutureWarning)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one line of ours instead of its retries
    if server:
        return Server(server, model, context)
    import torch

    gpus = torch.cuda.device_count()
    if gpus and tensor_parallel > gpus:
        raise BadInput(f"--tensor-parallel {tensor_parallel}, but {gpus} GPUs are visible")
    engines = engines or max(1, gpus // tensor_parallel)
    if engines == 1:
        return InProcess(model, context, tensor_parallel, max_num_seqs)
    if gpus and engines * tensor_parallel > gpus:
        raise BadInput(f"{engines} engines of {tensor_parallel} GPUs each, but {gpus} are visible")
    return WorkerProcesses(engines, model, context, tensor_parallel, max_num_seqs)


# ------------------------------------------------------------------------------------------------- in process


class InProcess:
    """vLLM in this process, with the settings that this machine needs."""

    window = WINDOW

    def __init__(self, model: str, context: int, tensor_parallel: int = 1, max_num_seqs: int | None = None):
        import torch

        self.on_cpu = not torch.cuda.is_available()
        if self.on_cpu:
            # 4 s to start instead of 17, and no slower.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "3")  # GiB
            # Threads that spin stand still when another program takes a core.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            # vLLM compiles a function for logprobs, which the judge asks for: that needs a C++ compiler.
            torch.compiler.set_stance("force_eager")
        from transformers import AutoConfig
        from vllm import LLM

        try:
            config = AutoConfig.from_pretrained(model).get_text_config()
        except (OSError, ValueError) as error:
            raise BadInput(f"cannot load the model {model}: {str(error).strip().splitlines()[0]}") from None
        context = min(context, getattr(config, "max_position_embeddings", context))
        options = {
            "max_num_seqs": max_num_seqs or (160 if self.on_cpu else None),
            "tensor_parallel_size": tensor_parallel,
        }
        if self.on_cpu:
            # Seeded sampling dies on a prompt that the CPU engine prefills in two parts; compiling costs a
            # minute to gain a tenth.
            options |= {
                "enforce_eager": True,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": context,
            }
            # A shared prefix counts in whole blocks: vLLM's 128 leave more of it to each prompt.
            options |= {"block_size": 32}
        self.llm = LLM(
            model=model,
            dtype="bfloat16",
            max_model_len=context,
            generation_config="vllm",
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **{name: value for name, value in options.items() if value is not None},
        )
        self.tokenizer, self.context = self.llm.get_tokenizer(), context

    def submit(self, request: Request):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop=request.stop,
            logprobs=request.logprobs or None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.llm.llm_engine.add_request(request.id, {"prompt_token_ids": request.prompt}, sampling)

    def collect(self) -> list[tuple[str, Completion]]:
        """One step of the engine; what has finished in it."""
        return [
            (output.request_id, self.completion(output.outputs[0]))
            for output in self.llm.llm_engine.step()
            if output.finished
        ]

    def completion(self, output) -> Completion:
        first = {}
        for token in (output.logprobs or [{}])[0].values():
            first[token.decoded_token] = first.get(token.decoded_token, 0) + math.exp(token.logprob)
        return Completion(output.text, output.finish_reason == "stop", len(output.token_ids), first)


# ------------------------------------------------------------------------------------------- worker processes


class WorkerProcesses:
    """`count` InProcess engines, each in a child process with its own GPUs (or its share of the cores), fed
    from one queue."""

    def __init__(self, count: int, model: str, context: int, tensor_parallel: int, max_num_seqs: int | None):
        import torch
        from transformers import AutoTokenizer

        self.on_cpu = not torch.cuda.is_available()
        self.window = count * WINDOW
        spawn = multiprocessing.get_context("spawn")  # a fork would take the parent's CUDA state with it
        self.inbox, self.outbox = spawn.Queue(), spawn.Queue()
        self.processes = []
        atexit.register(self.close)  # before multiprocessing's own, which would wait for them for ever
        for number in range(count):
            variables = device_variables(number, count, tensor_parallel)
            process = spawn.Process(
                target=work,
                args=(variables, model, context, tensor_parallel, max_num_seqs, self.inbox, self.outbox),
            )
            process.start()
            self.processes.append(process)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.context = min(self.receive() for _ in self.processes)

    def submit(self, request: Request):
        self.inbox.put(Request(**{**vars(request), "row": {}}))

    def collect(self) -> list[tuple[str, Completion]]:
        finished = [self.receive()]
        while not self.outbox.empty():
            finished.append(self.receive())
        return finished

    def receive(self):
        while True:
            try:
                message = self.outbox.get(timeout=1)
            except queue.Empty:
                if dead := [process for process in self.processes if not process.is_alive()]:
                    status = f"an engine process ended with status {dead[0].exitcode}"
                    raise BadInput(f"{status}; the same command goes on from here") from None
            else:
                if isinstance(message, BadInput):
                    raise message
                return message

    def close(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


def device_variables(number: int, count: int, tensor_parallel: int) -> dict[str, str]:
    """The environment that gives worker `number` its GPUs, or its share of the cores."""
    import torch

    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(
                visible[number * tensor_parallel : (number + 1) * tensor_parallel]
            )
        }
    cores = sorted(os.sched_getaffinity(0))
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores[number::count] or cores))}


def work(
    variables: dict[str, str],
    model: str,
    context: int,
    tensor_parallel: int,
    max_num_seqs: int | None,
    inbox,
    outbox,
):
    """A worker process: takes requests while its engine has room, gives completions, ends with its parent."""
    os.environ |= variables
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        engine = InProcess(model, context, tensor_parallel, max_num_seqs)
    except BadInput as error:
        return outbox.put(error)
    outbox.put(engine.context)
    room = (
        2 * engine.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
    )  # enough to keep it full, no more: the others want some
    pending = 0
    while True:
        while pending < room:
            try:
                request = inbox.get(block=not pending)
            except queue.Empty:
                break
            engine.submit(request)
            pending += 1
        for finished in engine.collect():
            outbox.put(finished)
            pending -= 1


# ----------------------------------------------------------------------------------------------------- server


class Server:
    """An OpenAI-compatible completions server that takes token ids as prompts (vLLM, SGLang, ...)."""

    window = IN_FLIGHT
    on_cpu = False  # not on this machine's, as far as we know

    def __init__(self, url: str, model: str, context: int):
        import openai
        from transformers import AutoTokenizer

        url = url.rstrip("/") + ("" if url.rstrip("/").endswith("/v1") else "/v1")
        options = {"base_url": url, "api_key": os.environ.get("OPENAI_API_KEY", "none")}
        try:
            with openai.OpenAI(**options) as client:
                served = {entry.id: entry for entry in client.models.list()}
            self.tokenizer = AutoTokenizer.from_pretrained(model)
        except openai.OpenAIError as error:
            raise BadInput(f"no answer from the server {url}: {error}") from None
        except (OSError, ValueError) as error:
            raise BadInput(
                f"cannot load the tokenizer of {model}: {str(error).strip().splitlines()[0]}"
            ) from None
        if model not in served and len(served) != 1:
            raise BadInput(f"the server {url} serves {', '.join(served) or 'no model'}, not {model}")
        self.name = model if model in served else next(iter(served))
        self.context = min(context, getattr(served[self.name], "max_model_len", None) or context)
        self.client = openai.AsyncOpenAI(**options, max_retries=SERVER_RETRIES, timeout=REQUEST_SECONDS)
        self.finished = queue.SimpleQueue()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def submit(self, request: Request):
        asyncio.run_coroutine_threadsafe(self.ask(request), self.loop)

    async def ask(self, request: Request):
        try:
            self.finished.put((request.id, await self.complete(request)))
        except Exception as error:  # raised where the main thread collects
            self.finished.put(error)

    async def complete(self, request: Request) -> Completion:
        import openai

        try:
            answer = await self.client.completions.create(
                model=self.name,
                prompt=request.prompt,
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                seed=request.seed,
                stop=request.stop or None,
                logprobs=request.logprobs or None,
            )
        except openai.OpenAIError as error:
            failed = f"the server {self.client.base_url} failed: {error}"
            raise BadInput(f"{failed}; the same command goes on from here") from None
        choice, first = answer.choices[0], {}
        if request.logprobs:
            if not (choice.logprobs and choice.logprobs.top_logprobs):
                raise BadInput(
                    f"the server {self.client.base_url} gives no logprobs, which --judge needs: --judge 0"
                )
            first = {token: math.exp(logprob) for token, logprob in choice.logprobs.top_logprobs[0].items()}
        tokens = (
            answer.usage.completion_tokens if answer.usage else len(self.tokenizer(choice.text).input_ids)
        )
        return Completion(choice.text, choice.finish_reason == "stop", tokens, first)

    def collect(self) -> list[tuple[str, Completion]]:
        finished = [self.finished.get()]
        while not self.finished.empty():
            finished.append(self.finished.get())
        for result in finished:
            if isinstance(result, Exception):
                raise result
        return finished
