"""An OpenAI-compatible server on loopback that misbehaves as it is told, and counts what it was asked and has charged."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[list[dict[str, str]]], str]


class TeacherServer(ThreadingHTTPServer):
    """`fault(prompt, number)` names what happens to the try `number` (from 0) of a prompt: see `Handler`; "" for an
    answer. `charged`: tokens of everything that a real model would have been run for."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, fault: Callable[[str, int], str], reply: Reply, tokens: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.reply, self.tokens = fault, reply, tokens
        self.tries: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.arrivals: list[tuple[str, float]] = []
        self.keys_seen: set[str] = set()
        self.charged = 0
        self.under_way = self.most_under_way = 0
        self.held = threading.Semaphore(0)
        self.release = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is no error here."""


class Handler(BaseHTTPRequestHandler):
    server: TeacherServer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = " | ".join(_words(message["content"]) for message in asked["messages"])
        server = self.server
        with server.lock:
            number = server.tries[prompt]
            server.tries[prompt] += 1
            server.arrivals.append((prompt, time.monotonic()))
            server.keys_seen.add(self.headers["Authorization"])
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            self._behave(server.fault(prompt, number), asked, prompt)
        finally:
            with server.lock:
                server.under_way -= 1

    def _behave(self, fault: str, asked: dict[str, Any], prompt: str) -> None:
        server = self.server
        text = server.reply(asked["messages"])
        body = json.dumps(
            {
                "id": "1", "object": "chat.completion", "created": 0, "model": asked["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
                "usage": {"prompt_tokens": server.tokens, "completion_tokens": 5, "total_tokens": server.tokens + 5},
            }
        ).encode()  # fmt: skip
        if fault == "hold":
            server.held.release()
            server.release.wait(30)
            return
        if fault.isdecimal():
            self._send(
                int(fault),
                b'{"error": {"message": "no, ' + self.headers["Authorization"].encode() + b'"}}',
            )
            return
        if fault == "429 after":
            self._send(429, b"{}", {"Retry-After": "0.3"})
            return
        with server.lock:
            server.charged += server.tokens + 5
        bodies = {
            "garbage": b"<html>gateway</html>",
            "truncated": body[: len(body) // 2],
            "empty": b'{"choices": []}',
            "null": b'{"choices": [{"message": {"content": null}}]}',
            "list": b"[]",
            "nested": b"[" * 100_000,
        }
        if fault == "slow":
            server.release.wait(30)
        elif fault == "broken":
            self._send(200, body[:20], {"Content-Length": str(len(body))})
            self.close_connection = True
        elif fault in bodies:
            self._send(200, bodies[fault])
        else:
            with server.lock:
                server.answered[prompt] += 1
            self._send(200, body)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        chosen = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        for name, value in chosen.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def _words(content: str | list[Any]) -> str:
    """What a message says; parts, pictures among them, as JSON."""
    return content if isinstance(content, str) else json.dumps(content)


def echo(messages: list[dict[str, str]]) -> str:
    """The reply of a teacher that says what it was asked."""
    return f"answer to {messages[-1]['content']}"


@contextmanager
def teacher_server(
    fault: Callable[[str, int], str] = lambda prompt, number: "", reply: Reply = echo, tokens: int = 7
) -> Iterator[TeacherServer]:
    """A running server."""
    server = TeacherServer(fault, reply, tokens)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
