"""The back end, as hooks reach it: one HTTP client for all of them.

Rules:
1. There is no client until there is something to send: whoever has no hooks pays nothing for them.
2. A request goes where the URL says and nowhere else: no redirects, no proxies of the environment, no cookies.
3. At most `ANSWER_BYTES_MAX` of an answer are read.
4. Whatever goes wrong is a `HookError`, whose text may be logged: the URL's user, password and query aren't in it.
5. Log lines about one hook are `COMPLAINT_SECONDS` apart.
"""

import contextlib
import ssl
import time
from collections.abc import Iterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx
import msgspec
import structlog
import trio

from hubbub import __version__
from hubbub.config import Settings
from hubbub.hooks.signature import HEADER, sign

ANSWER_BYTES_MAX = 1_048_576
COMPLAINT_SECONDS = 10.0
REASONS_MAX = 100
"""How many reasons for complaints are remembered; with one more, all are new again."""
KEEPALIVE_SECONDS = 1.0
"""How long an idle connection is used again: shorter than a back end keeps it (gunicorn: 2 s), or it would be closed
while a question is on its way."""

log = structlog.get_logger()


class HookError(Exception):
    """No answer, or none that makes sense; the text says why."""


class Answer(msgspec.Struct, frozen=True):
    """What has come back: the status, and the body unless it was too large."""

    status: int
    content: bytes | None


class BackEnd:
    """Sends what hooks have to say.

    Args:
        settings: hook_secret.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._wanted = trio.Event()
        self._opened = trio.Event()
        self._client: httpx.AsyncClient | None = None

    async def run(self) -> None:
        """Keep a client open from the first request on, until cancelled."""
        await self._wanted.wait()
        while (tls := await self._read_authorities()) is None:
            await trio.sleep(COMPLAINT_SECONDS)
        async with httpx.AsyncClient(
            verify=tls,
            trust_env=False,
            timeout=None,
            # Without a limit of its own, as a request that is cancelled while it waits there is never forgotten.
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_SECONDS),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"User-Agent": f"hubbub/{__version__}", "Accept-Encoding": "identity"},
        ) as self._client:
            self._opened.set()
            await trio.sleep_forever()

    async def _read_authorities(self) -> ssl.SSLContext | None:
        """Read the certificates of all authorities, or those that SSL_CERT_FILE names: some 20 ms."""
        try:
            return await trio.to_thread.run_sync(httpx.create_ssl_context)
        except OSError as error:
            log.error(
                "no hook can be called: the authorities' certificates can't be read; see SSL_CERT_FILE", why=str(error)
            )
            return None

    async def post(self, url: str, body: bytes) -> Answer:
        """Send JSON, and return what comes back. The caller limits the time, and takes whatever is raised."""
        self._wanted.set()
        await self._opened.wait()
        assert self._client is not None
        headers = {"Content-Type": "application/json"}
        if secret := self._settings.hook_secret:
            headers[HEADER] = sign(secret, body, time.time())
        content = b""
        with _closing_what_it_connects() as extensions, trio.CancelScope() as scope:
            request = self._client.build_request("POST", url, content=body, headers=headers, extensions=extensions)
            request.stream = _Body(body)
            response = await self._client.send(request, stream=True)
            status = response.status_code
            try:
                async for piece in response.aiter_raw():
                    content += piece
                    if len(content) > ANSWER_BYTES_MAX:
                        scope.cancel()  # httpx can't be left halfway in any other way
            finally:
                await response.aclose()
        return Answer(status, content if len(content) <= ANSWER_BYTES_MAX else None)


class _Body(httpx.AsyncByteStream):
    """A request's body. httpx's own is a generator, which a request that is cancelled leaves to the collector."""

    def __init__(self, body: bytes) -> None:
        self._left = [body]

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


@contextlib.contextmanager
def _closing_what_it_connects() -> Iterator[dict[str, Any]]:
    """Give a request's extensions with which a socket that it opens is closed if it fails.

    httpcore leaves that to the garbage collector if it is cancelled in a TLS handshake, and ours seldom looks.
    """
    sockets: list[trio.socket.SocketType] = []

    async def note(event: str, details: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            sockets.append(details["return_value"].get_extra_info("socket"))

    try:
        yield {"trace": note}
    except BaseException:
        for one in sockets:
            one.close()
        raise


@contextlib.contextmanager
def within(seconds_max: float) -> Iterator[None]:
    """Make a `HookError` of whatever goes wrong inside, and of taking longer than that."""
    try:
        with trio.fail_after(seconds_max):
            yield
    except HookError:
        raise
    except trio.TooSlowError as error:
        raise HookError("no answer in time") from error
    except Exception as error:
        raise HookError(type(error).__name__) from error  # its text may hold the URL


class Complaints:
    """Says in the log what goes wrong with one hook: at once, then each reason at most every ten seconds."""

    def __init__(self, hook: str) -> None:
        self._hook = hook
        self._known: dict[str, tuple[float, int]] = {}  # why -> until when it is quiet, failures since

    def add(self, url: str, why: str) -> None:
        """Note a failure; the next line about that reason has the number of those since the last one."""
        now = trio.current_time()
        quiet_until, count = self._known.get(why, (now, 0))
        if now < quiet_until:
            self._known[why] = quiet_until, count + 1
            return
        log.warning("hook failed", hook=self._hook, url=_without_secrets(url), why=why, count=count + 1)
        if len(self._known) >= REASONS_MAX:
            self._known.clear()
        self._known[why] = now + COMPLAINT_SECONDS, 0


def _without_secrets(url: str) -> str:
    try:
        return str(httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None))
    except (httpx.InvalidURL, ValueError):
        return "not a URL"
