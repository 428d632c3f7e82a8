"""What the client of a server costs: milliseconds of a core for each request, and requests a second.

    python tests/bench_client.py [--windows 256 1024 8192] [--rounds 3]

`ours` is parts/server.py; `openai` sends the same requests by the openai package, whose client it was before;
`floor` sends the same bytes, made once, through asyncio's sockets, and counts those that come back; `responses` is the whole stage, from instructions.jsonl to responses.jsonl, ten samples each: prompts,
tokens, client, parser, rows on disk. They take turns against a stand-in that answers after 0.2 s, in a
process of its own. Prompts are 1,118 token ids, those of the stage 500 to 1,500, by their few-shot example;
answers are 1,693 characters.
"""

import argparse
import asyncio
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import selfcodealign  # noqa: E402
from parts.engine import Request, stream  # noqa: E402
from parts.rows import replacing  # noqa: E402
from parts.server import Server  # noqa: E402

MODEL = str(ROOT / "models" / "smollm2-135m")
DELAY = 0.2
FENCE, LINE = "```", "    x = x + 1  # some text of the answer\n"
RESPONSE = f"""The text of the answer, some words at first.

{FENCE}python
def f(x):
{LINE * 38}    return x
{FENCE}
</response>

<tests>
{FENCE}python
assert f(0) == 38
{FENCE}"""
ANSWER = {
    "choices": [{"index": 0, "text": RESPONSE, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1118, "completion_tokens": 400, "total_tokens": 1518},
    "id": "c", "object": "text_completion", "created": 0, "model": "m",
}  # fmt: skip
BODY = json.dumps(ANSWER).encode()
ANSWERED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)
PROMPT = list(range(1000, 2118))


class StandIn(asyncio.Protocol):
    """Just enough of HTTP that it takes little of the core that it shares with the client."""

    def connection_made(self, transport):
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes):
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(self.received) < end + 4 + length:
                return
            self.received = self.received[end + 4 + length :]
            asyncio.get_running_loop().call_later(DELAY, self.answer)

    def answer(self):
        if not self.transport.is_closing():
            self.transport.write(ANSWERED)


async def stand_in():
    server = await asyncio.get_running_loop().create_server(StandIn, "127.0.0.1", 0, backlog=20_000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def floor(port: int, window: int, count: int):
    """Send `count` requests, `window` at a time."""
    asked = {"model": "m", "prompt": PROMPT, "max_tokens": 1536, "seed": 1, "stop": ["</tests>"]}
    body, loop = json.dumps(asked).encode(), asyncio.get_running_loop()
    request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    left, done = iter(range(count)), loop.create_future()

    class Line(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
            self.ask()

        def ask(self):
            self.received = 0
            if (number := next(left, None)) is not None:
                self.transport.write(request)
            self.last = number == count - 1

        def data_received(self, data: bytes):
            self.received += len(data)
            if self.received == len(ANSWERED):
                if self.last:
                    done.set_result(None)
                self.ask()

    for _ in range(window):
        await loop.create_connection(Line, "127.0.0.1", port)
    await done


def client(name: str, port: int, window: int):
    """Prints milliseconds of this process for a request, and requests a second."""

    class Known(Server):
        """Without the trial, which this stand-in would not stand."""

        def connect(self, urls):
            return [(url, "m") for url in urls]

    class OpenAI(Known):
        async def complete(self, request, url, name):
            answer = await package.completions.create(
                model=name, prompt=request.prompt, max_tokens=request.max_tokens, seed=request.seed,
                temperature=request.temperature, top_p=request.top_p, stop=request.stop,
                extra_body={"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
            )  # fmt: skip
            return answer.choices[0].text

    if name == "openai":
        import httpx
        import openai

        unlimited = openai.DefaultAsyncHttpxClient(limits=httpx.Limits(max_connections=None))
        package = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", http_client=unlimited, max_retries=90
        )
    kind = OpenAI if name == "openai" else Known
    engine = kind([f"http://127.0.0.1:{port}"], MODEL, 8192)
    engine.window = window
    make = lambda number: Request(str(number), PROMPT, 1536, number, ["</tests>"], temperature=0.7)
    count = 10 * math.ceil(max(window, 2000) / 10)
    for _ in stream(engine, map(make, range(100))):  # connections, imports
        pass
    with tempfile.TemporaryDirectory() as folder:
        run = planted_run(Path(folder, "run"), engine, count) if name == "responses" else None
        wall, core = time.perf_counter(), time.process_time()
        if run:
            selfcodealign.generate(run, "responses")
            answered = sum(1 for _ in run.kept("responses"))
        elif name == "floor":
            asyncio.run(floor(port, window, answered := count))
        else:
            answered = sum(1 for _ in stream(engine, map(make, range(100, 100 + count))))
        wall, core = time.perf_counter() - wall, time.process_time() - core
    assert answered == count
    engine.close()
    print(json.dumps([1000 * core / count, count / wall]), flush=True)


def planted_run(folder: Path, engine, count: int):
    """A run whose next stage asks for so many responses, and executes none of them."""
    run = selfcodealign.open_run(folder, {"model": MODEL, "seed": 1}, {})
    run.engine = engine
    run.stages = {name: stage for name, stage in run.stages.items() if name != "executions"}
    with replacing(run.path("instructions")) as write:
        for n in range(count // 10):
            task = f"Write a function number {n} that takes a number and adds one to it again and again. " * 8
            fields = {"category": "function", "difficulty": "easy", "instruction": task}
            write({"id": f"i{n}", "seed_id": f"s{n}", "concepts_id": f"c{n}", **fields})
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--windows", nargs="+", type=int, default=[256, 1024, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    kinds = ["floor", "openai", "ours", "responses"]
    parser.add_argument("--clients", nargs="+", choices=kinds, default=kinds, help="those that take turns")
    parser.add_argument("--client", nargs=3, metavar=("NAME", "PORT", "WINDOW"), help=argparse.SUPPRESS)
    parser.add_argument("--stand-in", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stand_in:
        return asyncio.run(stand_in())
    if given.client:
        return client(given.client[0], *map(int, given.client[1:]))
    me = [sys.executable, __file__]
    with subprocess.Popen([*me, "--stand-in"], stdout=subprocess.PIPE, text=True) as server:
        port = server.stdout.readline().strip()
        for window, _ in itertools.product(given.windows, range(given.rounds)):
            found = {}
            for name in given.clients:
                command = [*me, "--client", name, port, str(window)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[name] = json.loads(done.stdout)
            cells = (f"{name} {ms:.2f} ms, {rate:.0f}/s" for name, (ms, rate) in found.items())
            print(f"window {window}: {'; '.join(cells)}", flush=True)
        server.terminate()


if __name__ == "__main__":
    main()
