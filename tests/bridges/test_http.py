"""A line keeps asking while another try may help, waits as it is told, and says what went wrong; against a real server."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from tests.served import Reply, Server, gives

from limbeck.bridges.http import Line
from limbeck.core.errors import DataError, RecipeError


def breaks_off(handler: BaseHTTPRequestHandler) -> None:
    """Promise a hundred bytes, send ten, and hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"answer":1')


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def says_nothing(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(0.6)


def mumbles(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "6")
    handler.end_headers()
    handler.wfile.write(b"<html>")


def in_turn(*script: Any) -> Callable[[Any], Any]:
    """Answers one after another, the last one again and again."""
    left = list(script)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


def line(server: Server, waited: list[float] | None = None, **how: Any) -> Line:
    return Line(server.url, sleep=(waited if waited is not None else []).append, **how)


def test_json_goes_there_and_comes_back(server: Server) -> None:
    assert line(server, headers={"Authorization": "Bearer x"}).post({"inputs": [1.5]}) == {"answer": 1}
    (headers,) = server.headers
    assert server.asked == [{"inputs": [1.5]}]
    assert headers["Authorization"] == "Bearer x" and headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("trouble", [breaks_off, hangs_up, mumbles, gives("busy", 503), gives("late", 408), gives("slow down", 429)])
def test_what_may_pass_is_tried_again_each_time_later(server: Server, trouble: Reply) -> None:
    server.answer = in_turn(trouble, trouble, trouble, gives({"answer": 2}))
    waited: list[float] = []
    assert line(server, waited, backoff=0.5).post({}) == {"answer": 2}
    assert waited == [0.5, 1.0, 2.0] and len(server.asked) == 4


def test_a_silence_is_given_up_and_tried_again(server: Server) -> None:
    server.answer = in_turn(says_nothing, gives({"answer": 3}))
    assert line(server, timeout=0.2).post({}) == {"answer": 3}


def test_the_wait_never_grows_beyond_a_minute(server: Server) -> None:
    server.answer = in_turn(*[gives("busy", 503)] * 9, 1)
    waited: list[float] = []
    line(server, waited, retries=9).post({})
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_it_waits_as_long_as_the_server_asks(server: Server) -> None:
    server.answer = in_turn(
        gives("later", 429, Retry_After="7"),
        gives("later", 503, Retry_After=format_datetime(datetime.now(UTC) + timedelta(seconds=30))),
        gives(1),
    )
    waited: list[float] = []
    line(server, waited).post({})
    assert waited[0] == 7 and 20 < waited[1] <= 30


def test_it_does_not_wait_for_hours(server: Server) -> None:
    server.answer = in_turn(gives("quota", 429, Retry_After="86400"))
    with pytest.raises(DataError, match=r"after 1 try: status 429 Too Many Requests: \"quota\", and asks to be left alone for 86400 s; run again"):
        line(server).post({})
    assert len(server.asked) == 1


def test_it_gives_up_after_the_last_try(server: Server) -> None:
    server.answer = in_turn(gives("down", 500))
    with pytest.raises(DataError, match=r"/say gave no answer after 3 tries: status 500 Internal Server Error: \"down\"; run again when it is back"):
        line(server, retries=2).post({})
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_cannot_pass_is_said_at_once(server: Server, status: int) -> None:
    server.answer = in_turn(gives({"error": "no such model"}, status))
    with pytest.raises(DataError, match=rf"refuses with status {status} .*no such model"):
        line(server).post({})
    assert len(server.asked) == 1


def test_no_redirect_is_followed_with_the_key(server: Server) -> None:
    server.answer = in_turn(gives({}, 302, Location="http://127.0.0.1:1/other"))
    with pytest.raises(DataError, match=r"redirects to http://127.0.0.1:1/other: give the address itself"):
        line(server, headers={"Authorization": "Bearer x"}).post({})


def test_nobody_there(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataError, match="after 2 tries: ConnectionRefusedError"):
        Line(f"http://127.0.0.1:{port}", retries=1, backoff=0).post({})


def test_requests_keep_their_distance_whoever_sends_them(server: Server) -> None:
    asked = Line(server.url, per_second=50)
    start = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(asked.post, range(11))] == [{"answer": 1}] * 11
    assert time.monotonic() - start >= 0.2


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "host:80", "http://", "http://me:secret@host/"])
def test_only_http_and_no_password_in_the_url(url: str) -> None:
    with pytest.raises(RecipeError, match=r"is no http:// or https:// address|holds a password") as raised:
        Line(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("how", [{"timeout": 0}, {"retries": -1}, {"backoff": -1}, {"per_second": 0}])
def test_numbers_that_cannot_be_meant(how: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="none may be negative"):
        Line("http://host", **how)


def test_nan_is_not_sent(server: Server) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        line(server).post([float("nan")])
