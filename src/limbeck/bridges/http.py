"""HTTP: JSON to one address and JSON back, tried again when the line or the server fails, never faster than agreed."""

import email.utils
import json
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.message import Message
from http.client import HTTPException
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from limbeck.core.errors import DataError, RecipeError

__all__ = ["Line"]

_PASSING = {408, 425, 429, 500, 502, 503, 504, 529}
"""Statuses that another try may not meet again."""
_LONGEST = 600.0
"""Seconds that a server may ask to be left alone and be waited for."""
_MOST = 256 << 20
"""Bytes of an answer that are read."""
_TURN = threading.Lock()


class _Stay(HTTPRedirectHandler):
    """Follow no redirect: the body would be lost, and the key would go to an address that nobody named."""

    def redirect_request(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str) -> None:
        return None


class Line:
    """One address that takes JSON by POST; may be used by several threads at once.

    A request is tried `retries` times more when the connection fails, breaks off or times out (`timeout` seconds without a byte), when the answer is cut off or
    is no JSON, and on status 408, 425, 429, 500, 502, 503, 504 and 529: after `backoff` seconds, twice that, four times that and so on to a minute, or after
    what the server's `Retry-After` says where that is longer. `per_second` is how many requests may begin in a second, tries included.

    Raises:
        RecipeError: a URL that is not http or https, or numbers that cannot be meant.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 1.0,
        per_second: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise RecipeError(f"the URL {url!r} is no http:// or https:// address")
        if parts.username or parts.password:
            raise RecipeError(f"the URL of {parts.hostname} holds a password, which a recipe would keep: name an environment variable that holds the key")
        if timeout <= 0 or retries < 0 or backoff < 0 or (per_second is not None and per_second <= 0):
            raise RecipeError(f"timeout {timeout}, retries {retries}, backoff {backoff}, per_second {per_second}: none may be negative, nor a limit zero")
        self.url, self._headers = url, {"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._gap = 1 / per_second if per_second else 0.0
        self._next, self._sleep = 0.0, sleep

    def post(self, asked: Any) -> Any:
        """Send a JSON-able value and return the answer's.

        Raises:
            DataError: a refusal that another try would meet again, with what the server said of it; or no answer after every try.
        """
        body = json.dumps(asked, allow_nan=False).encode()
        for attempt in range(self._retries + 1):
            self._turn()
            try:
                return self._once(body)
            except _Passing as trouble:
                if attempt == self._retries or trouble.wait > _LONGEST:
                    tries = f"{attempt + 1} {'try' if attempt == 0 else 'tries'}"
                    asks = f", and asks to be left alone for {trouble.wait:.0f} s" if trouble.wait > _LONGEST else ""
                    raise DataError(f"{self.url} gave no answer after {tries}: {trouble}{asks}; run again when it is back") from None
                self._sleep(max(trouble.wait, min(60.0, self._backoff * 2**attempt)))
        raise AssertionError("the last try returns or raises")

    def _turn(self) -> None:
        """Wait until the next request may begin."""
        if not self._gap:
            return
        with _TURN:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + self._gap
        if begin > now:
            self._sleep(begin - now)

    def _once(self, body: bytes) -> Any:
        request = Request(self.url, data=body, headers=self._headers, method="POST")
        try:
            with build_opener(_Stay).open(request, timeout=self._timeout) as reply:
                told = reply.read(_MOST + 1)
        except HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except (URLError, HTTPException, OSError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise _Passing(f"{type(reason).__name__} {reason}".strip()) from None
        if len(told) > _MOST:
            raise DataError(f"{self.url} answers with more than {_MOST >> 20} MiB: ask about fewer rows at a time")
        try:
            return json.loads(told)
        except (ValueError, RecursionError):
            raise _Passing(f"an answer that is no JSON ({_line(told)})") from None

    def _refusal(self, error: HTTPError) -> "DataError | _Passing":
        if 300 <= error.code < 400:
            return DataError(f"{self.url} redirects to {error.headers.get('Location', 'nowhere')}: give the address itself")
        try:
            said = _line(error.read(4096))
        except (HTTPException, OSError):
            said = ""
        told = f"status {error.code} {error.reason}{f': {said}' if said else ''}"
        if error.code in _PASSING:
            return _Passing(told, _seconds(error.headers.get("Retry-After")))
        return DataError(f"{self.url} refuses with {told}")


class _Passing(Exception):
    """Trouble that another try may not meet again; `wait`: seconds that the server asks for."""

    def __init__(self, told: str, wait: float = 0.0) -> None:
        super().__init__(told)
        self.wait = wait


def _seconds(told: str | None) -> float:
    """Read `Retry-After`: seconds, or a date; zero where it is neither.

    >>> _seconds("2.5"), _seconds(None), _seconds("soon"), _seconds("Thu, 01 Jan 1970 00:00:00 GMT")
    (2.5, 0.0, 0.0, 0.0)
    """
    if told is None:
        return 0.0
    try:
        wait = float(told)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(told)
        except ValueError:
            return 0.0
        wait = ((until if until.tzinfo else until.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return wait if wait > 0 else 0.0


def _line(told: bytes) -> str:
    """The beginning of an answer as one line."""
    text = " ".join(told[:400].decode(errors="replace").split())
    return text if len(text) <= 160 else f"{text[:157]}..."
