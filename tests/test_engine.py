"""The server back end against a server that leaves out what the protocol allows it to leave out."""

import http.server
import json
import threading

import pytest

from parts.engine import Request, start_engine, stream
from parts.rows import BadInput


class Sparse(http.server.BaseHTTPRequestHandler):
    """Gives neither logprobs nor usage."""

    def answer(self, body: dict):
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.answer(
            {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "us"}]}
        )

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "text": "Yes", "finish_reason": "stop", "logprobs": None}
        self.answer({"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]})

    def log_message(self, *_):
        pass


@pytest.fixture
def engine(model):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sparse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield start_engine(model, 512, server=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_server_without_usage_or_logprobs_hangs_nothing(engine):
    request = Request("1", [1, 2, 3], 4, None, [])
    [(_, completion)] = stream(engine, [request])
    assert completion.text == "Yes" and completion.finished and completion.tokens > 0
    with pytest.raises(BadInput, match="--judge 0"):
        list(stream(engine, [Request("2", [1, 2, 3], 1, None, [], logprobs=20)]))
