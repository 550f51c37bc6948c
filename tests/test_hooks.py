"""Hooks by themselves, with a real back end: what it is asked and what its answers mean, what it is told and when not.

With clients around them they are in `test_hooks_server`.
"""

import contextlib
import gc
import hmac
import itertools
import json
import random
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from structlog.testing import capture_logs

from backend import Backend, Request, open_backend, response
from hubbub.config import Settings
from hubbub.config_types import Namespace
from hubbub.hooks import back_end as back_end_module
from hubbub.hooks import notices as notices_module
from hubbub.hooks.answers import read_answer
from hubbub.hooks.back_end import ANSWER_BYTES_MAX, HookError
from hubbub.hooks.hooks import Hooks
from hubbub.hooks.queue import EVENTS_BYTES_MAX, EVENTS_MAX, OVERHEAD_BYTES, Queue
from hubbub.hooks.signature import sign, verify
from hubbub.model.publication import Member
from hubbub.model.question import Allowed, Asked, Denied, Dismissed, Question, Unanswered, Verdict

CONNECT = Question("connect", "c1", "", "plain")
SUBSCRIBE = Question("subscribe", "c1", "ann", "centrifugo", "room", b'{"why":1}')
PUBLISH = Question("publish", "c1", "ann", "centrifugo", "room", b'"hello"')
QUESTIONS: dict[Asked, Question] = {"connect": CONNECT, "subscribe": SUBSCRIBE, "publish": PUBLISH}

ANN = Member("ann", "c1", b'{"n":1}')
STRANGER = Member("", "c2")


@contextlib.asynccontextmanager
async def open_hooks(settings: Settings) -> AsyncIterator[Hooks]:
    """Run the hooks of a node that isn't there."""
    hooks = Hooks(settings, random.Random(0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hooks.run)
        yield hooks
        nursery.cancel_scope.cancel()


def asking(backend: Backend, **others: object) -> Settings:
    """Return settings with which that back end is asked everything."""
    urls = {f"hook_{what}_url": backend.url(f"/{what}") for what in QUESTIONS}
    return Settings(**{**urls, **others})  # type: ignore[arg-type]


def telling(backend: Backend, **others: object) -> Settings:
    """Return settings with which that back end is told everything."""
    return Settings(**{"hook_notices_url": backend.url("/notices"), **others})  # type: ignore[arg-type]


# -- the signature


def test_signature() -> None:
    """It fits that body, that secret and that time only."""
    header = sign("secret", b'{"a":1}', 1_700_000_000.9)
    digest = hmac.new(b"secret", b'1700000000.{"a":1}', "sha256").hexdigest()
    assert header == f"t=1700000000,v1={digest}"
    assert verify("secret", header, b'{"a":1}', 1_700_000_000)
    assert verify("secret", header, b'{"a":1}', 1_700_000_300)
    assert not verify("secret", header, b'{"a":2}', 1_700_000_000)
    assert not verify("Secret", header, b'{"a":1}', 1_700_000_000)
    assert not verify("secret", header, b'{"a":1}', 1_700_000_301)
    assert not verify("secret", header, b'{"a":1}', 1_699_999_699)
    assert not verify("secret", header.replace("t=17", "t=18"), b'{"a":1}', 1_800_000_000)
    for malformed in ("", "t=1", header + " ", header.replace("v1", "v2"), header.upper(), "t=x,v1=" + "0" * 64):
        assert not verify("secret", malformed, b'{"a":1}', 1_700_000_000)


# -- questions


async def test_what_is_asked() -> None:
    """The format of Centrifugo's proxy, signed where there is a secret, and nothing that nobody wants."""
    async with open_backend() as backend:
        settings = asking(backend, hook_secret="the secret")
        async with open_hooks(settings) as hooks:
            for question in QUESTIONS.values():
                assert await hooks.ask(question) == Allowed()
            settings.hook_secret = ""
            await hooks.ask(CONNECT)
        connect, subscribe, publish, unsigned = backend.requests
    always = {"client": "c1", "transport": "websocket", "protocol": "json", "encoding": "json"}
    assert connect.json == always | {"user": "", "dialect": "plain"}
    ann = always | {"user": "ann", "dialect": "centrifugo", "channel": "room"}
    assert subscribe.json == ann | {"data": {"why": 1}}
    assert publish.json == ann | {"data": "hello"}
    assert [request.path for request in backend.requests] == ["/connect", "/subscribe", "/publish", "/connect"]
    for request in (connect, subscribe, publish):
        assert verify("the secret", request.headers["x-hubbub-signature"], request.body, time.time())
        assert not verify("the secret", request.headers["x-hubbub-signature"], request.body + b" ", time.time())
        assert request.headers["content-type"] == "application/json"
        assert request.headers["accept-encoding"] == "identity"
        assert "cookie" not in request.headers
    assert "x-hubbub-signature" not in unsigned.headers
    assert backend.connections == 1


async def test_who_is_asked() -> None:
    """Where there is a URL, and the room's namespace wants it; a reload counts at once."""
    settings = Settings(namespaces={"quiet": Namespace(ask_subscribe=False, ask_publish=False)})
    hooks = Hooks(settings, random.Random(0))
    assert not any(hooks.asks(what, "room") for what in QUESTIONS)
    settings.hook_connect_url = settings.hook_subscribe_url = settings.hook_publish_url = "http://localhost/"
    assert hooks.asks("connect")
    for room, expected in {"room": True, "quiet:room": False, "$quiet:room": False, "nowhere:room": False}.items():
        assert hooks.asks("subscribe", room) == hooks.asks("publish", room) == expected
    settings.hook_connect_url = ""
    assert not hooks.asks("connect")
    assert await hooks.ask(CONNECT) == Allowed(), "taken away after it was looked at"


def rooms_of(allowed: Verdict) -> dict[str, Any]:
    """Return the rooms of a verdict as Python objects."""
    assert isinstance(allowed, Allowed)
    return {room: json.loads(bytes(raw)) for room, raw in allowed.rooms.items()}


async def test_allowed() -> None:
    """Everything that an answer may hold."""
    async with open_backend() as backend, open_hooks(asking(backend)) as hooks:
        for nothing in (
            "{}",
            '{"result": {}}',
            '{"result": null, "error": null}',
            '{"result": {"data": null}, "x": 1}',
        ):
            backend.give(nothing.encode())
            for question in QUESTIONS.values():
                assert await hooks.ask(question) == Allowed()
        backend.give_raw(
            response(
                b'{"result": {"user": "ann", "info": {"n":\n 1}, "data": [1, "a b"], "channels": ["news", "both"],'
                b'"subs": {"both": {"info": {"x": "\\n"}, "data": 1, "other": 2}, "none": {}, "null": null},'
                b' "expire_at": %d}}' % (time.time() + 100)
            )
        )
        allowed = await hooks.ask(CONNECT)
        assert isinstance(allowed, Allowed)
        assert (allowed.user, allowed.info, allowed.data) == ("ann", b'{"n":1}', b'[1,"a b"]')
        assert rooms_of(allowed) == {"news": {}, "both": {"info": {"x": "\n"}, "data": 1}, "none": {}, "null": {}}
        assert allowed.ends_at == pytest.approx(trio.current_time() + 100, abs=2)
        backend.give({"result": {"info": {"n": 1}, "data": 5, "expire_at": 0, "channels": ["not here"]}})
        assert await hooks.ask(SUBSCRIBE) == Allowed(info=b'{"n":1}', data=b"5")
        backend.give({"result": {"data": {"text": "****"}, "skip_history": True}})
        assert await hooks.ask(PUBLISH) == Allowed(data=b'{"text":"****"}', keep=False)
        assert set(hooks.questions.outcomes) == {(what, "allowed") for what in QUESTIONS}


async def test_denied_and_dismissed() -> None:
    """Codes and words are the back end's; a disconnect outweighs an error, and that a result."""
    async with open_backend() as backend, open_hooks(asking(backend)) as hooks:
        for question in QUESTIONS.values():
            backend.give({"error": {"code": 403, "message": "no", "temporary": True}, "result": {"user": 1}})
            assert await hooks.ask(question) == Denied(403, "no", True)
            backend.give({"error": {"code": 1999}, "disconnect": None})
            assert await hooks.ask(question) == Denied(1999, "", False)
            backend.give({"error": {"code": 109, "message": "token expired"}})
            assert await hooks.ask(question) == Denied(109, "token expired")
            backend.give({"disconnect": {"code": 4500, "reason": "gone"}, "error": {"code": 403}})
            assert await hooks.ask(question) == Dismissed(4500, "gone")
            backend.give({"disconnect": {"code": 3000, "reason": "é" * 100}})
            assert await hooks.ask(question) == Dismissed(3000, "é" * 61)
        assert hooks.questions.outcomes == {
            (what, outcome): count for what in QUESTIONS for outcome, count in (("denied", 3), ("dismissed", 2))
        }


NO_ANSWERS: dict[str, tuple[bytes | None, str]] = {
    "another status": (response({}, "500 Internal Server Error"), "it answers 500"),
    "a redirect": (response(b"", "307 Temporary Redirect", "Location: /elsewhere\r\n"), "it answers 307"),
    "even with a result": (response({"result": {}}, "403 Forbidden"), "it answers 403"),
    "nothing": (response(b""), "its answer: "),
    "no JSON": (response(b"<html>"), "its answer: "),
    "more than JSON": (response(b"{} {}"), "its answer: "),
    "no UTF-8": (response(b'{"other":"\xff"}'), "its answer isn't JSON"),
    "no object": (response([]), "its answer: "),
    "packed, unasked": (response(b"\x1f\x8b{}", headers="Content-Encoding: gzip\r\n"), "its answer isn't JSON"),
    "result of a wrong type": (response({"result": []}), "its answer: "),
    "code of a wrong type": (response({"error": {"code": "403"}}), "its answer: "),
    "no code": (response({"error": {"message": "no"}}), "its answer: "),
    "error 0": (response({"error": {"code": 0}}), "an error's code"),
    "error 113": (response({"error": {"code": 113}}), "an error's code"),
    "error 200": (response({"error": {"code": 200}}), "an error's code"),
    "error 399": (response({"error": {"code": 399}}), "an error's code"),
    "error 2000": (response({"error": {"code": 2000}}), "an error's code"),
    "disconnect 1000": (response({"disconnect": {"code": 1000}}), "a disconnect's code"),
    "disconnect 2999": (response({"disconnect": {"code": 2999}}), "a disconnect's code"),
    "disconnect 5000": (response({"disconnect": {"code": 5000}}), "a disconnect's code"),
    "too deep": (response(b'{"result":{"data":' + b"[" * 200 + b"]" * 200 + b"}}"), "nested deeper"),
    "much too deep": (response(b'{"result":{"data":' + b"[" * 9_999 + b"]" * 9_999 + b"}}"), "its answer"),
    "too many digits": (response(b'{"result":{"data":%s}}' % (b"1" * 5_000)), "digits"),
    "too large for a client": (response({"result": {"data": "x" * 65_535}}), "message_bytes_max"),
    "too large": (response(b" " * ANSWER_BYTES_MAX + b"{}"), "its answer is too large"),
    "huge": (response(b" " * 20_000_000 + b"{}"), "its answer is too large"),
    "not HTTP": (b"\x00\x01\r\n\r\n", "RemoteProtocolError"),
    "half an answer": (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", "no answer in time"),
    "half a head": (b"HTTP/1.1 200", "no answer in time"),
    "a closed connection": (None, "RemoteProtocolError"),
}

NO_ANSWERS_TO: dict[Asked, dict[str, object]] = {
    "connect": {
        "user": 1,
        "channels": ["a\0"],
        "subs": {"": {}},
        "expire_at": "soon",
        "info": "x" * 70_000,
    },
    "subscribe": {"expire_at": True},
    "publish": {"skip_history": "no"},
}


async def test_no_answer() -> None:
    """Whatever goes wrong, on_failure decides; the next question is answered."""
    async with open_backend() as backend:
        settings = asking(backend, hook_publish_on_failure="allow", hook_publish_seconds_max=1.5)
        settings.hook_subscribe_seconds_max = 1.5  # a good answer in 0.3 s is too much to ask of a busy machine
        async with open_hooks(settings) as hooks:
            for count, (name, (answer, why)) in enumerate(NO_ANSWERS.items(), 1):
                backend.give_raw(answer)
                with capture_logs() as entries:
                    for complaints in hooks.questions._complaints.values():
                        complaints._known.clear()
                    assert await hooks.ask(SUBSCRIBE) == Unanswered(), name
                    assert await hooks.ask(PUBLISH) == Allowed(), name
                assert [entry["hook"] for entry in entries] == ["subscribe", "publish"], name
                assert all(why in entry["why"] for entry in entries), (name, entries)
                backend.give()
                assert await hooks.ask(SUBSCRIBE) == Allowed()
                assert hooks.questions.outcomes["publish", "unanswered"] == count
            assert [request.path for request in backend.requests].count("/elsewhere") == 0
            for what, members in NO_ANSWERS_TO.items():
                for name, value in members.items():
                    backend.give({"result": {name: value}})
                    expected = Allowed() if what == "publish" else Unanswered()
                    assert await hooks.ask(QUESTIONS[what]) == expected, (name, value)
        assert hooks.questions.under_way == hooks.questions.waiting == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "http://nowhere.invalid/",
        "http://[/",
        "http://localhost:99999999/",
        "https://127.0.0.1:{port}/",
        "http://\udcff/",
        "http://x" + "x" * 70_000,
        "http://.../",
    ],
)
async def test_nobody_is_there(url: str) -> None:
    """Nor is there an answer from a URL that can't be one."""
    async with open_backend() as backend:
        url = url.format(port=backend.port)
        settings = Settings(hook_connect_url=url, hook_publish_url=url, hook_publish_on_failure="allow")
        settings.hook_connect_seconds_max = settings.hook_publish_seconds_max = 0.5
        async with open_hooks(settings) as hooks:
            assert await hooks.ask(CONNECT) == Unanswered()
            assert await hooks.ask(PUBLISH) == Allowed()
    gc.collect()  # which would complain of a socket that nobody has closed


async def test_log_line_about_a_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """One now, one when it's time, with the number of failures; nothing secret."""
    monkeypatch.setattr(back_end_module, "COMPLAINT_SECONDS", 0.3)
    async with open_backend() as backend:
        backend.give(b"secret", "503 Service Unavailable", "X: secret\r\n")
        url = backend.url("/hook?key=secret").replace("//", "//name:password@")
        async with open_hooks(Settings(hook_connect_url=url, hook_secret="secret")) as hooks:
            with capture_logs() as entries:
                for _ in range(10):
                    await hooks.ask(CONNECT)
                await trio.sleep(0.35)
                await hooks.ask(CONNECT)
        assert backend.requests[0].headers["authorization"] == "Basic bmFtZTpwYXNzd29yZA=="
        expected = {"event": "hook failed", "log_level": "warning", "hook": "connect", "why": "it answers 503"}
        assert entries == [{**expected, "url": backend.url(), "count": count} for count in (1, 10)]


async def test_another_reason_is_another_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What went wrong before doesn't hide what goes wrong now, nor is it counted there."""
    monkeypatch.setattr(back_end_module, "COMPLAINT_SECONDS", 0.3)
    answers = ((b"{}", "503 Service Unavailable"), (b"{}", "500 Internal Server Error"))
    async with open_backend() as backend, open_hooks(asking(backend)) as hooks:
        with capture_logs() as entries:
            for _ in range(2):
                for body, status in answers:
                    backend.give(body, status)
                    for _ in range(5):
                        await hooks.ask(CONNECT)
                await trio.sleep(0.35)
    reasons = [(entry["why"], entry["count"]) for entry in entries]
    assert reasons == [(why, count) for count in (1, 5) for why in ("it answers 503", "it answers 500")]


async def test_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy comes in between; and cookies don't carry from one question to the next."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with open_backend() as backend, open_hooks(asking(backend)) as hooks:
        backend.give({}, headers="Set-Cookie: session=ann\r\n")
        for _ in range(2):
            assert await hooks.ask(CONNECT) == Allowed()
        assert "cookie" not in backend.requests[1].headers


async def ask_at_once(hooks: Hooks, count: int) -> list[tuple[Verdict, float]]:
    """Ask so many questions; return the verdicts, each with how long it took."""
    verdicts: list[tuple[Verdict, float]] = []

    async def ask() -> None:
        start = trio.current_time()
        verdict = await hooks.ask(CONNECT)
        verdicts.append((verdict, trio.current_time() - start))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(ask)
    return verdicts


async def test_questions_at_once() -> None:
    """No more than hook_requests_max, which a reload may change; the others wait, and all are answered."""
    async with open_backend() as backend:
        settings = asking(backend, hook_requests_max=4)
        async with open_hooks(settings) as hooks:
            backend.delay(0.1)
            assert [verdict for verdict, _ in await ask_at_once(hooks, 20)] == [Allowed()] * 20
            assert backend.most_under_way == 4
            settings.hook_requests_max = 7
            await ask_at_once(hooks, 20)
            assert backend.most_under_way == 7


async def test_time_is_kept() -> None:
    """Also with 64 under way and twice as many waiting; waiting counts. Whoever comes later is served."""
    async with open_backend() as backend, open_hooks(asking(backend, hook_connect_seconds_max=1.0)) as hooks:
        await hooks.ask(CONNECT)
        most = 0

        async def hang(request: Request) -> bytes | None:
            nonlocal most
            most = max(most, hooks.questions.under_way)
            await trio.sleep_forever()

        backend.behaviour = hang
        verdicts = await ask_at_once(hooks, 192)
        assert [verdict for verdict, _ in verdicts] == [Unanswered()] * 192
        assert most == 64
        assert all(0.9 <= seconds <= 2.0 for _, seconds in verdicts), sorted(seconds for _, seconds in verdicts)
        backend.give()
        assert await hooks.ask(CONNECT) == Allowed()


async def test_answer_that_drips() -> None:
    """A byte at a time doesn't make the time any longer."""
    async with open_backend() as backend, trio.open_nursery() as nursery:

        async def serve(stream: trio.SocketStream) -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                for byte in itertools.chain(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", itertools.repeat(32)):
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(0.002)

        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        settings = asking(backend, hook_connect_url=f"http://127.0.0.1:{port}/", hook_connect_seconds_max=0.4)
        async with open_hooks(settings) as hooks:
            ((verdict, seconds),) = await ask_at_once(hooks, 1)
            assert verdict == Unanswered()
            assert 0.36 <= seconds <= 0.8
        nursery.cancel_scope.cancel()


async def test_whoever_asks_may_be_cancelled() -> None:
    """While it waits, and while it is asked; nothing is left of it."""
    async with open_backend() as backend, open_hooks(asking(backend, hook_requests_max=2)) as hooks:
        backend.delay(30.0)
        with trio.move_on_after(0.2) as scope:
            await ask_at_once(hooks, 5)
        assert scope.cancelled_caught
        assert hooks.questions.under_way == hooks.questions.waiting == 0
        backend.give()
        assert await hooks.ask(CONNECT) == Allowed()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = ["user", "info", "data", "channels", "subs", "expire_at", "skip_history", "code", "message", "reason"]
PARTS = st.dictionaries(st.sampled_from(NAMES), JSON | st.sampled_from([403, 4000, "x"]) | st.lists(st.text()))
ANSWERS = st.dictionaries(st.sampled_from(["result", "error", "disconnect"]), PARTS | JSON)


@given(st.sampled_from(list(QUESTIONS)), ANSWERS, st.sampled_from([None, 1, "\t"]))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_answer(what: Asked, answer: object, indent: int | str | None) -> None:
    """It has a meaning or it hasn't; what is passed on is JSON on one line."""
    try:
        verdict = read_answer(what, json.dumps(answer, indent=indent).encode(), Settings(), 0.0)
    except HookError:
        return
    if isinstance(verdict, Allowed):
        for data in (verdict.info, verdict.data, *map(bytes, verdict.rooms.values())):
            assert b"\n" not in data
            assert not data or json.loads(data) is not None


@given(st.sampled_from(list(QUESTIONS)), st.binary() | st.text().map(str.encode))
def test_garbage(what: Asked, content: bytes) -> None:
    """Nothing else is raised."""
    with contextlib.suppress(HookError):
        read_answer(what, content, Settings(), 0.0)


# -- the queue of notices


def decoded(batch: list[bytes]) -> list[dict[str, Any]]:
    """Return events as they are told."""
    return [json.loads(data) for data in batch]


def make_queue() -> Queue:
    """Return a queue whose ids are numbers."""
    numbers = itertools.count(1)
    return Queue(lambda: (str(next(numbers)), 0))


def test_batches() -> None:
    """Up to 100 events, or 64 KiB, or one that is larger."""
    queue = make_queue()
    for number in range(EVENTS_MAX + 20):
        queue.offer("join", 0.0, 10**9, room=str(number))
    batch = queue.front()
    assert [event["channel"] for event in decoded(batch)] == [str(number) for number in range(EVENTS_MAX)]
    assert batch == queue.front()
    queue.remove(EVENTS_MAX)
    assert len(queue.front()) == len(queue) == 20
    for number in range(4):
        queue.offer("disconnect", 0.0, 10**9, reason=str(number) + "x" * (EVENTS_BYTES_MAX // 2))
    queue.offer("disconnect", 0.0, 10**9, reason="x" * (2 * EVENTS_BYTES_MAX))
    sizes = []
    while len(queue):
        batch = queue.front()
        sizes.append(len(batch))
        queue.remove(len(batch))
    assert sizes == [21, 1, 1, 1, 1]
    assert queue.weight == 0
    assert queue.told == EVENTS_MAX + 25


def test_front_stays_the_same() -> None:
    """What was given out once has its id for good; a `lost` doesn't grow any more."""
    queue = make_queue()
    queue.offer("join", 0.0, 10**9, room="a")
    for _ in range(3):
        queue.offer("join", 0.0, 0, room="b")
    before = queue.front()
    assert decoded(before)[1] | {"id": "?"} == {"id": "?", "time": 0, "event": "lost", "count": 3}
    queue.offer("join", 0.0, 0, room="c")
    assert queue.front()[:2] == before
    assert decoded(queue.front())[2]["count"] == 1
    queue.give_up(0.0)
    assert queue.front()[:2] == before
    assert queue.lost == 4


def test_lost_is_told_where_it_was_lost() -> None:
    """Old ones at the front are one `lost`, with those that were lost before."""
    queue = make_queue()
    queue.offer("join", 0.0, 10**9, room="a")
    queue.offer("join", 1.0, 0, room="b")
    queue.offer("join", 2.0, 10**9, room="c")
    queue.offer("join", 3.0, 10**9, room="d")
    queue.front()
    queue.give_up(0.5)
    assert [(event["event"], event.get("count")) for event in decoded(queue.front())][:2] == [("lost", 1), ("lost", 1)]
    queue.give_up(2.5)
    events = decoded(queue.front())
    assert [(event["event"], event.get("count")) for event in events] == [("lost", 3), ("join", None)]
    same = queue.front()
    queue.give_up(2.9)
    assert queue.front() == same, "a `lost` isn't given up by itself"
    queue.give_up(100.0)
    assert [event["count"] for event in decoded(queue.front())] == [4]
    assert (queue.lost, queue.told, queue.weight) == (4, 0, 0)


class NoticesLife(RuleBasedStateMachine):
    """Offers, deliveries that succeed or don't, and age, against a list of all that was ever offered."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = make_queue()
        self.now = 0.0
        self.offered: list[str] = []
        self.accounted = 0  # of `offered`, that have been told or told to be lost
        self.ids: set[str] = set()
        self.shown: dict[str, bytes] = {}

    @rule(count=st.integers(1, 5), room=st.sampled_from([0, 3 * (OVERHEAD_BYTES + 50), 10**6]))
    def offer(self, count: int, room: int) -> None:
        for _ in range(count):
            name = str(len(self.offered))
            self.offered.append(name)
            self.queue.offer("join", self.now, room, room=name)

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(seconds=st.integers(0, 6))
    def give_up(self, seconds: int) -> None:
        self.queue.give_up(self.now - seconds)

    @rule()
    def fail(self) -> None:
        for data in self.queue.front():
            assert self.shown.setdefault(json.loads(data)["id"], data) == data, "another event with that id"

    @rule()
    def succeed(self) -> None:
        self.fail()
        batch = self.queue.front()
        for event in decoded(batch):
            assert event["id"] not in self.ids
            self.ids.add(event["id"])
            if event["event"] == "lost":
                assert event["count"] > 0
                self.accounted += event["count"]
            else:
                assert event["channel"] == self.offered[self.accounted], "out of order, or lost without a word"
                self.accounted += 1
        self.queue.remove(len(batch))

    @invariant()
    def nothing_is_forgotten(self) -> None:
        waiting = sum(entry.lost or 1 for entry in self.queue._entries)
        assert self.accounted + waiting == len(self.offered)
        assert self.queue.told + self.queue.lost + sum(not e.lost for e in self.queue._entries) == len(self.offered)
        assert self.queue.weight == sum(entry.weight for entry in self.queue._entries)
        since = [entry.since for entry in self.queue._entries]
        assert since == sorted(since)

    def teardown(self) -> None:
        while len(self.queue):
            self.succeed()
        assert self.accounted == len(self.offered)


NoticesLife.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_notices_life = NoticesLife.TestCase


# -- notices


def events_of(requests: list[Request]) -> list[dict[str, Any]]:
    """Return all events of deliveries, the repeated ones once."""
    seen: dict[str, dict[str, Any]] = {}
    for request in requests:
        assert set(request.json) == {"events"}
        assert 1 <= len(request.json["events"]) <= EVENTS_MAX
        for event in request.json["events"]:
            assert seen.setdefault(event["id"], event) == event
    return list(seen.values())


async def flush(hooks: Hooks, seconds_max: float = 10.0) -> None:
    """Wait until all is told."""
    with trio.fail_after(seconds_max):
        await hooks.flush()


async def test_what_is_told() -> None:
    """Each kind of event with what belongs to it, in their order, signed."""
    async with open_backend() as backend, open_hooks(telling(backend, hook_secret="the secret")) as hooks:
        hooks.notices.opened("room")
        hooks.notices.joined("room", ANN)
        hooks.notices.joined("room", STRANGER)
        hooks.notices.left("room", ANN)
        hooks.notices.emptied("room")
        hooks.notices.disconnected(ANN, 3001, "shutdown")
        hooks.notices.disconnected(STRANGER, None, "")
        await flush(hooks)
        (request,) = backend.requests
        assert verify("the secret", request.headers["x-hubbub-signature"], request.body, time.time())
        events = events_of([request])
        ids = [event.pop("id") for event in events]
        assert ids == [f"{ids[0].split('-')[0]}-{number}" for number in range(1, 8)]
        assert all(abs(event.pop("time") - time.time() * 1000) < 5_000 for event in events)
        assert events == [
            {"event": "room_opened", "channel": "room"},
            {"event": "join", "channel": "room", "user": "ann", "client": "c1"},
            {"event": "join", "channel": "room", "client": "c2"},
            {"event": "leave", "channel": "room", "user": "ann", "client": "c1"},
            {"event": "room_emptied", "channel": "room"},
            {"event": "disconnect", "user": "ann", "client": "c1", "code": 3001, "reason": "shutdown"},
            {"event": "disconnect", "client": "c2"},
        ]
        assert (hooks.notices.queue.told, hooks.notices.queue.lost, hooks.notices.failed) == (7, 0, 0)


async def test_what_is_not_told() -> None:
    """Events that aren't in hook_notices, and rooms of namespaces without notify; both may change at any time."""
    async with open_backend() as backend:
        settings = telling(backend, hook_notices=["join", "disconnect"], namespaces={"quiet": Namespace(notify=False)})
        async with open_hooks(settings) as hooks:
            for room in ("room", "quiet:room", "$quiet:room", "nowhere:room"):
                hooks.notices.opened(room)
                hooks.notices.joined(room, ANN)
            settings.hook_notices = ["room_emptied"]
            settings.namespaces["quiet"] = Namespace()
            for room in ("room", "quiet:room"):
                hooks.notices.left(room, ANN)
                hooks.notices.emptied(room)
            hooks.notices.disconnected(ANN, None, "")
            await flush(hooks)
        told = [(event["event"], event["channel"]) for event in events_of(backend.requests)]
        assert told == [("join", "room"), ("room_emptied", "room"), ("room_emptied", "quiet:room")]


async def test_without_a_url() -> None:
    """There is no client, no queue, and nothing to wait for."""
    hooks = Hooks(Settings(), random.Random(0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hooks.run)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(100):
            hooks.notices.joined(str(number), ANN)
            hooks.notices.disconnected(ANN, None, "")
        await trio.testing.wait_all_tasks_blocked()
        assert len(hooks.notices.queue) == 0
        assert hooks._back_end._client is None
        await flush(hooks, 0.1)
        nursery.cancel_scope.cancel()


async def test_events_are_gathered() -> None:
    """A trickle of events is few deliveries; a flood is full ones."""
    async with open_backend() as backend, open_hooks(telling(backend)) as hooks:
        for number in range(100):
            hooks.notices.opened(str(number))
            await trio.sleep(0.005)
        await flush(hooks)
        assert len(backend.requests) <= 20
        before = len(backend.requests)
        for number in range(1_000):
            hooks.notices.opened(str(number))
        await flush(hooks)
        assert len(backend.requests) == before + 10


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed deliveries are repeated soon."""
    monkeypatch.setattr(notices_module, "GATHER_SECONDS", 0.002)
    monkeypatch.setattr(notices_module, "PAUSE_SECONDS_MAX", 0.02)


@pytest.mark.usefixtures("quickly")
async def test_order_whatever_happens() -> None:
    """5,000 events, while the back end takes and forgets to say so, refuses, hangs, dies and comes back."""
    rng = random.Random(1)
    settings = Settings(hook_notices_seconds_max=0.1)
    async with open_backend() as backend, open_hooks(settings) as hooks:
        settings.hook_notices_url = backend.url()
        taken: list[Request] = []

        async def answer(request: Request) -> bytes | None:
            chance = rng.random()
            if chance < 0.3:
                taken.append(request)  # and then there is no answer
                return None
            if chance < 0.5:
                return response({}, "503 Service Unavailable")
            if chance < 0.55:
                taken.append(request)
                await trio.sleep(0.2)
            else:
                taken.append(request)
            return response(b"", rng.choice(["200 OK", "202 Accepted", "299 Taken"]))

        backend.behaviour = answer

        async def die_and_come_back() -> None:
            for _ in range(5):
                await trio.sleep(0.2)
                await backend.die()
                await trio.sleep(0.1)
                await backend.start()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(die_and_come_back)
            for number in range(5_000):
                hooks.notices.joined(f"room {number % 7}", Member(str(number), "c"))
                if number % 5 == 0:
                    await trio.sleep(0.0005)
        await flush(hooks, 30.0)
        assert [event["user"] for event in events_of(taken)] == [str(number) for number in range(5_000)]
        assert hooks.notices.failed > 10
        assert hooks.notices.queue.lost == 0
        assert backend.most_under_way == 1


@pytest.mark.usefixtures("quickly")
async def test_full_queue() -> None:
    """What doesn't fit is lost, which is told in its place; memory is bounded."""
    async with open_backend() as backend:
        settings = telling(backend, hook_notices_bytes_max=20_000)
        async with open_hooks(settings) as hooks:
            backend.give(status="500 Internal Server Error")
            for number in range(1_000):
                hooks.notices.opened(str(number))
            assert hooks.notices.queue.weight <= 20_000
            waiting = len(hooks.notices.queue) - 1
            assert hooks.notices.queue.lost == 1_000 - waiting
            await backend.until(3)
            backend.give()
            refused = len(backend.requests)
            while len(hooks.notices.queue) > waiting - 50:
                await trio.sleep(0.001)
            hooks.notices.opened("later")
            await flush(hooks)
            events = events_of(backend.requests[refused:])
            rooms = [str(number) for number in range(waiting)]
            assert [event.get("channel") for event in events] == [*rooms, None, "later"]
            assert (events[-2]["event"], events[-2]["count"]) == ("lost", 1_000 - waiting)


@pytest.mark.usefixtures("quickly")
async def test_age() -> None:
    """What is too old is given up, and that is told before what isn't."""
    async with open_backend() as backend:
        settings = telling(backend, hook_notices_age_seconds_max=0.4)
        async with open_hooks(settings) as hooks:
            await backend.die()
            for number in range(10):
                hooks.notices.opened(str(number))
            await trio.sleep(0.6)
            hooks.notices.opened("young")
            await trio.sleep(0.05)
            await backend.start()
            await flush(hooks)
            lost, young = events_of(backend.requests)
            assert (lost["event"], lost["count"], young["channel"]) == ("lost", 10, "young")


@pytest.mark.usefixtures("quickly")
async def test_url_that_a_reload_takes_away() -> None:
    """What waits is given up, and nobody waits for it; the next back end is told how many they were."""
    async with open_backend() as backend, open_backend() as other:
        settings = telling(backend)
        async with open_hooks(settings) as hooks:
            backend.give(status="500 Internal Server Error")
            hooks.notices.opened("a")
            hooks.notices.opened("b")
            await backend.until(2)
            settings.hook_notices_url = ""
            await flush(hooks)
            hooks.notices.opened("nobody hears this")
            await trio.sleep(0.1)
            settings.hook_notices_url = other.url()
            hooks.notices.opened("c")
            await flush(hooks)
            lost, heard = events_of(other.requests)
            assert (lost["event"], lost["count"], heard["channel"]) == ("lost", 2, "c")


async def test_pauses_grow() -> None:
    """From a tenth of a second on, each about twice as long as the one before; a drain cuts them short."""
    async with open_backend() as backend, open_hooks(telling(backend)) as hooks:
        backend.give(status="500 Internal Server Error")
        hooks.notices.opened("a")
        requests = await backend.until(5)
        pauses = [later.time - earlier.time for earlier, later in itertools.pairwise(requests)]
        for pause, wanted in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True):
            assert wanted / 2 <= pause <= wanted + 0.6, pauses  # other tests keep the machine busy
        while hooks.notices.failed < 5:
            await trio.sleep(0.01)
        hooks.notices._pause = 30.0  # the one after the next
        while hooks.notices.failed < 6:
            await trio.sleep(0.01)
        backend.give()
        start = trio.current_time()
        await flush(hooks, 10.0)  # a pause would be longer
        assert trio.current_time() - start >= 0.3


async def test_end_with_notices_left() -> None:
    """A flush ends when its caller says; the log says how many weren't told."""
    async with open_backend() as backend:
        backend.delay(30.0)
        with capture_logs() as entries:
            async with open_hooks(telling(backend)) as hooks:
                for number in range(7):
                    hooks.notices.opened(str(number))
                with trio.move_on_after(0.3) as scope:
                    await hooks.flush()
                assert scope.cancelled_caught
        assert entries == [{"event": "notices not told", "count": 7, "log_level": "warning"}]
