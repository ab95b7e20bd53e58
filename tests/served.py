"""A real server on this machine, which answers as a test says."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[BaseHTTPRequestHandler], None]


def gives(value: Any, status: int = 200, **headers: str) -> Reply:
    """A reply with a JSON value; an underscore in a header's name stands for a hyphen."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        told = json.dumps(value).encode()
        handler.send_response(status)
        for name, text in headers.items():
            handler.send_header(name.replace("_", "-"), text)
        handler.send_header("Content-Length", str(len(told)))
        handler.end_headers()
        handler.wfile.write(told)

    return reply


class Server:
    """Answers with `answer(what it was asked)`, a JSON value or a reply; notes what it was asked, and the headers."""

    def __init__(self) -> None:
        self.answer: Callable[[Any], Any] = lambda asked: {"answer": 1}
        self.asked: list[Any] = []
        self.headers: list[dict[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(asked)
                server.headers.append(dict(self.headers))
                said = server.answer(asked)
                (said if callable(said) else gives(said))(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/say"
