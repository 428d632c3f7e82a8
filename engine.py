"""The engine: requests in, completions out as they finish, and the model kept busy all the while."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rows import BadInput


@dataclass
class Request:
    """What the engine is asked for: `prompt` in token ids, the sampling `seed` of this one request, and the `row` it will become."""

    id: str
    prompt: list[int]
    max_tokens: int
    temperature: float
    seed: int | None
    stop: list[str]
    row: dict


@dataclass
class Completion:
    text: str
    finished: bool  # by a stop string or the end-of-text token, not by running out of tokens
    tokens: int


def check_model(model: str):
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise BadInput(f"{model} is not a checkpoint folder: it holds no config.json")
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) or model.count("/") != 1:
        raise BadInput(f"no such model folder: {model}")


def start_engine(model: str, context: int):
    """A vLLM engine for `model` in this process, with the settings that this machine needs. Raises BadInput."""
    check_model(model)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one line of ours instead of its retries
    import torch

    if torch.cuda.is_available():
        options = {}
    else:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # 4 s to start instead of 17, and no slower
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "3")  # GiB
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin stand still when another program takes a core
    from transformers import AutoConfig
    from vllm import LLM

    try:
        config = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot load the model {model}: {str(error).strip().splitlines()[0]}") from None
    context = min(context, getattr(config, "max_position_embeddings", context))
    if not torch.cuda.is_available():
        # Seeded sampling dies on a prompt that the CPU engine prefills in two parts; compiling costs a minute to gain a tenth.
        options = {
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": context,
            "max_num_seqs": 160,
        }
    quiet = {"disable_log_stats": True, "use_tqdm_on_load": False}
    return LLM(model=model, dtype="bfloat16", max_model_len=context, generation_config="vllm", **quiet, **options)


def stream(engine, requests: Iterable[Request], window: int = 2048) -> Iterator[tuple[Request, Completion]]:
    """Yield each request with its completion as it finishes, and keep the engine full: up to `window` requests wait or run in it."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    requests, pending = iter(requests), {}
    while True:
        for request in itertools.islice(requests, window - len(pending)):
            sampling = SamplingParams(
                temperature=request.temperature,
                max_tokens=request.max_tokens,
                seed=request.seed,
                stop=request.stop,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.llm_engine.add_request(request.id, {"prompt_token_ids": request.prompt}, sampling)
            pending[request.id] = request
        if not pending:
            return
        for output in engine.llm_engine.step():
            if output.finished:
                done = output.outputs[0]
                yield pending.pop(output.request_id), Completion(done.text, done.finish_reason == "stop", len(done.token_ids))
