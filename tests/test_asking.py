"""What a review of the hooks found: who is asked when, for whom, for how long; and what else came to light with it.

Each test is about something that has been wrong.
"""

import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from structlog.testing import capture_logs

from apis import ALL, BackEnd, open_api
from backend import Backend, Request, open_backend, response
from dialect_driver import Driver, small_settings
from hubbub.config import Settings
from hubbub.config_types import Namespace
from hubbub.core.frames import CLOSE, CONTINUATION, TEXT
from hubbub.core.history import PUBLICATION_OVERHEAD_BYTES
from hubbub.dialects.centrifugo.conversation import CentrifugoConversation
from hubbub.hooks import back_end as back_end_module
from hubbub.hooks.answers import read_answer
from hubbub.hooks.back_end import HookError
from hubbub.model.command import Answer, Publish, Subscribe, Unsubscribe
from hubbub.model.publication import Kind, Member
from hubbub.model.question import Allowed, Ask, Denied, Unanswered, Verdict
from peers import (
    SECONDS_MAX,
    Closed,
    HandshakeRefused,
    close_payload,
    connect,
    handshake,
    open_peer,
    reset,
    shake_hands,
)
from servers import Server, open_daemon, open_server, until_quiet
from signing import SECRET, sign
from structured import PATH, Client, Message, open_structured
from test_engine_memory import make_engine
from test_hooks import CONNECT, asking, open_hooks
from test_hooks_server import hooks, refusal, status_of
from test_rates import look_in

SLOW = 0.3
"""How long the back end takes for each of `MANY` questions: long enough for all of them to be noticed."""
MANY = 20

TOKENS: dict[str, Any] = {"token_hmac_secret": SECRET, "anonymous": True}
STRICT: dict[str, Any] = {**TOKENS, "insecure": False, "allow_publish": "anonymous"}


async def send_frame(client: Client, commands: Sequence[Message], *, fragmented: bool) -> None:
    """Send commands as one message: in one frame, which the reader takes, or in two: those are the body's."""
    if not fragmented:
        await client.send(*commands)
        return
    data = "\n".join(map(json.dumps, commands)).encode()
    await client.peer.send_frame(TEXT, data[:10], fin=False)
    await client.peer.send_frame(CONTINUATION, data[10:])


async def say_much(client: Client, backend: Backend, *, fragmented: bool) -> None:
    """Publish so much in one message that the back end has long to think about it; and something that isn't asked."""
    rooms = ["room"] * MANY + ["free:room"]
    before = len(backend.requests)
    commands = [client.number({"publish": {"channel": room, "data": n}}) for n, room in enumerate(rooms)]
    await send_frame(client, commands, fragmented=fragmented)
    await backend.until(before + 1)


async def users_in(client: Client, room: str) -> list[str]:
    """Who is there."""
    return sorted(one["user"] for one in (await client.ask("presence", channel=room))["presence"].values())


def with_a_slow_publish(backend: Backend, **others: object) -> dict[str, Any]:
    """Return settings with which publications wait for the back end, but in rooms of one namespace."""
    backend.delay(SLOW)
    namespaces = {"free": Namespace(ask_publish=False)}
    return hooks(backend, "publish", namespaces=namespaces, close_seconds_max=10.0, drain_seconds_max=10.0, **others)


@contextlib.asynccontextmanager
async def open_listener(port: int) -> AsyncIterator[Client]:
    """Connect a stranger that hears both rooms."""
    async with open_structured(port) as listener:
        for room in ("room", "free:room"):
            await listener.ask("subscribe", channel=room)
        yield listener


async def check_silence(backend: Backend, listener: Client, asked_max: int) -> None:
    """See that nothing more is asked or published, and that only what the back end let through was."""
    asked = len(backend.requests)
    assert asked <= asked_max
    heard = len(listener.pushes)
    await trio.sleep(3 * SLOW)
    await listener.goes_on()
    assert len(backend.requests) == asked
    assert len(listener.pushes) == heard
    pushes = list(listener.pushes)
    assert [push["pub"]["data"] for push in pushes] == list(range(len(pushes))), "nothing overtakes"
    assert len(pushes) < asked, "the last one asked for was dropped"
    assert {push["channel"] for push in pushes} <= {"room"}


# -- who is gone isn't asked for any more


@pytest.mark.parametrize("fragmented", [False, True])
async def test_who_is_thrown_out_is_silent_at_once(fragmented: bool) -> None:
    """However much of its message waits for the back end."""
    async with open_backend() as backend:
        settings = with_a_slow_publish(backend, **TOKENS)
        async with (
            open_api(**settings) as api,
            open_listener(api.port) as listener,
            open_structured(api.port, connected=False) as ann,
        ):
            await ann.connect(token=sign(sub="ann"))
            await ann.ask("subscribe", channel="room")
            await say_much(ann, backend, fragmented=fragmented)
            await trio.sleep(1.5 * SLOW)
            await api.call("disconnect", user="ann", disconnect={"code": 4100, "reason": "out"})
            assert await users_in(listener, "room") == [""]
            with trio.fail_after(2 * SLOW):
                closed = await ann.ended()
            assert (closed.code, closed.reason) == (4100, "out")
            await check_silence(backend, listener, asked_max=4)
            assert (await api.call("history", channel="room"))["offset"] == len(listener.pushes)
            assert api.node is not None
            assert {connection.member.user for connection in api.node.connections} == {""}


async def test_a_plain_client_is_silent_at_once() -> None:
    """Each of its messages is asked for by itself."""
    async with open_backend() as backend:
        settings = with_a_slow_publish(backend, **TOKENS)
        async with (
            open_api(**settings) as api,
            open_listener(api.port) as listener,
            open_peer(api.port, f"/chat/room?token={sign(sub='ann')}") as ann,
        ):
            for number in range(MANY):
                await ann.send(str(number))
            await trio.sleep(1.5 * SLOW)
            await api.call("disconnect", user="ann", disconnect={"code": 4100, "reason": "out"})
            with trio.fail_after(2 * SLOW):
                _, closed = await ann.receive_until_closed()
            assert (closed.code, closed.reason) == (4100, "out")
            asked = len(backend.requests)
            await trio.sleep(3 * SLOW)
            await listener.goes_on()
            assert len(backend.requests) == asked <= 4
            assert [push["pub"]["data"] for push in listener.pushes] == [str(n) for n in range(asked - 1)]
            assert await users_in(listener, "room") == [""]


@pytest.mark.parametrize("fragmented", [False, True])
async def test_a_drain_does_not_wait_for_questions(fragmented: bool) -> None:
    """Who has much to ask for is told like everybody else."""
    async with open_backend() as backend:
        settings = with_a_slow_publish(backend)
        async with open_server(**settings) as server, open_structured(server.port) as ann:
            await ann.ask("subscribe", channel="room")
            await say_much(ann, backend, fragmented=fragmented)
            async with trio.open_nursery() as nursery:
                with trio.fail_after(5 * SLOW):
                    nursery.start_soon(server.node.drain)
                    closed = await ann.ended()
            assert closed.code == 3001
            asked = len(backend.requests)
            await trio.sleep(2 * SLOW)
            assert len(backend.requests) == asked <= 3
            await until_quiet(server.node)


@pytest.mark.parametrize("fragmented", [False, True])
async def test_who_has_reset_its_connection_is_missed(fragmented: bool) -> None:
    """Also while its message waits for the back end: no ghost stays in the room, and speaks there."""
    async with open_backend() as backend:
        settings = with_a_slow_publish(backend, **TOKENS)
        async with open_server(**settings) as server, open_listener(server.port) as listener:
            async with open_structured(server.port, connected=False) as ann:
                await ann.connect(token=sign(sub="ann"))
                await ann.ask("subscribe", channel="free:room")
                assert await users_in(listener, "free:room") == ["", "ann"]
                await say_much(ann, backend, fragmented=fragmented)
                assert isinstance(ann.peer.stream, trio.SocketStream)
                await reset(ann.peer.stream)
            with trio.fail_after(5 * SLOW):
                while "ann" in await users_in(listener, "free:room") or len(server.node.connections) > 1:
                    await trio.sleep(0.02)
            asked = len(backend.requests)
            await trio.sleep(3 * SLOW)
            await listener.goes_on()
            assert len(backend.requests) == asked <= 3
            assert [push["channel"] for push in listener.pushes] in ([], ["room"], ["room"] * 2)


@pytest.mark.parametrize("fragmented", [False, True])
async def test_nothing_overtakes_what_waits(fragmented: bool) -> None:
    """Of who stays: everything is said in its order, what is asked for and what isn't."""
    async with open_backend() as backend:
        backend.delay(0.02)
        namespaces = {"free": Namespace(ask_publish=False)}
        settings = hooks(backend, "publish", namespaces=namespaces)
        async with open_server(**settings) as server, open_listener(server.port) as listener:
            async with open_structured(server.port) as ann:
                rooms = ["room", "free:room"] * 5
                commands = [ann.number({"publish": {"channel": room, "data": n}}) for n, room in enumerate(rooms)]
                await send_frame(ann, commands, fragmented=fragmented)
                pushes = [await listener.push() for _ in rooms]
            heard = [(push["channel"], push["pub"]["data"]) for push in pushes]
            assert heard == [(room, number) for number, room in enumerate(rooms)]


@pytest.mark.parametrize("fragmented", [False, True])
async def test_what_was_said_before_a_close_is_said(fragmented: bool) -> None:
    """Who says something, and then Close, without waiting, has said it; the back end may take its time."""
    async with open_backend() as backend:
        backend.delay(0.2)
        settings = hooks(backend, "publish")
        async with open_server(**settings) as server, open_structured(server.port) as listener:
            await listener.ask("subscribe", channel="room")
            async with open_structured(server.port) as ann:
                commands = [ann.number({"publish": {"channel": "room", "data": number}}) for number in range(2)]
                await send_frame(ann, commands, fragmented=fragmented)
                await ann.peer.send_frame(CLOSE, close_payload(1000))
                assert (await ann.ended()).code == 1000
            await trio.sleep(0.6)  # its Close may be answered first
            await listener.goes_on()
            assert [push["pub"]["data"] for push in listener.pushes] == [0, 1]


# -- certificates that can't be read


@pytest.mark.parametrize("content", [None, "this is no certificate"])
@pytest.mark.parametrize("wanted_for", ["hooks", "token_jwks"])
async def test_a_daemon_lives_without_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted_for: str, content: str | None
) -> None:
    """SSL_CERT_FILE that isn't there, or is something else: whoever needs no back end doesn't notice."""
    file = tmp_path / "authorities.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    settings: dict[str, Any] = {"token_jwks": "http://127.0.0.1:9/jwks.json", "anonymous": True, "insecure": True}
    async with open_backend() as backend:
        if wanted_for == "hooks":
            settings = hooks(backend, "subscribe", hook_subscribe_seconds_max=0.3, insecure=True)
        with open_daemon(**settings) as daemon:
            async with open_structured(daemon.port) as client:
                if wanted_for == "hooks":
                    assert (await refusal(client, "subscribe", channel="room"))[::2] == (100, True)
                else:
                    await client.ask("subscribe", channel="room")
                await trio.sleep(0.3)
                await client.goes_on()
                assert daemon.process.poll() is None
        assert backend.requests == []


async def test_authorities_that_can_be_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for again."""
    file = tmp_path / "authorities.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setattr(back_end_module, "COMPLAINT_SECONDS", 0.1)
    async with open_backend() as backend:
        settings = asking(backend, hook_connect_seconds_max=0.3)
        with capture_logs() as logs:
            async with open_hooks(settings) as asked:
                assert await asked.ask(CONNECT) == Unanswered()
                trustme.CA().cert_pem.write_to_path(str(file))
                settings.hook_connect_seconds_max = 5.0
                assert await asked.ask(CONNECT) == Allowed()
        errors = [line["event"] for line in logs if line["log_level"] == "error"]
        assert any("certificates" in event for event in errors)


# -- what waits in a room is for those who were there


@pytest.mark.parametrize("room", ["north", "loud:1", "mute:1", "tiny:1"])
@pytest.mark.parametrize("how", ["unsubscribes", "is removed", "goes"])
def test_a_room_that_is_opened_anew_has_no_gap(room: str, how: str) -> None:
    """In one pass: something is published, the last member leaves, someone comes in; and hears all from then on."""
    driver = Driver(small_settings())
    ann, bob = driver.connect("ann"), driver.connect("bob")
    ann.ask("subscribe", channel=room)
    driver.carry_out_all(ann)
    driver.carry_out_all(bob)
    ann.wire, bob.wire = [], []

    def publish(number: int) -> None:
        driver.carry_out(Publish(room, b"%d" % number, Kind.JSON, reply=answers.append))

    answers: list[Answer] = []
    publish(1)
    match how:
        case "unsubscribes":
            ann.ask("unsubscribe", channel=room)
            for command, _ in ann.send():
                driver.carry_out(command)
        case "is removed":
            driver.carry_out(Unsubscribe(ann, room, answers.append, by_server=True))
        case "goes":
            ann.gone = True
            driver.hub.leave(ann)
    subscribed = bob.ask("subscribe", channel=room)
    driver.carry_out_all(bob)
    publish(2)
    driver.hand_out_all()
    publish(3)
    driver.hand_out_all()
    assert driver.hub.statistics().gaps == 0
    assert [push["push"]["pub"]["data"] for push in ann.wire if "pub" in push.get("push", {})] == (
        [] if how == "goes" else [1]
    )
    replies = [item for item in bob.wire if item.get("id") == subscribed["id"]]
    assert len(replies) == 1
    assert replies[0]["subscribe"].get("offset", 0) in (0, 1)
    pushes = [item["push"] for item in bob.wire if "push" in item]
    assert not any("unsubscribe" in push for push in pushes)
    assert [push["pub"]["data"] for push in pushes if "pub" in push] == [2, 3]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_room_that_is_opened_anew_in_one_frame(count: int) -> None:
    """The same with a server around it."""
    async with open_server() as server, open_structured(server.port) as client:
        await client.ask("subscribe", channel="room")
        (connection,) = server.node.connections
        for number in range(count):
            assert server.node.inbox.put_nowait(Publish("room", b"%d" % number, Kind.JSON))
        again = [{"id": 900, "unsubscribe": {"channel": "room"}}, {"id": 901, "subscribe": {"channel": "room"}}]
        await connection.session.receive("\n".join(map(json.dumps, again)).encode(), False)
        assert (await client.reply(901))["subscribe"]["offset"] == count
        assert [(await client.publication("room"))["data"] for _ in range(count)] == list(range(count))
        await client.ask("publish", channel="room", data="more")
        assert (await client.publication("room"))["data"] == "more"
        assert server.node.hub.statistics().gaps == 0


# -- turns


class Gate:
    """A back end that answers plain clients, and who sends "slow" along, only when it is opened."""

    def __init__(self, backend: Backend) -> None:
        self.opened = trio.Event()
        backend.behaviour = self.answer

    async def answer(self, request: Request) -> bytes | None:
        if request.json["dialect"] == "plain" or request.json.get("data") == "slow":
            await self.opened.wait()
        return response({})


async def test_turns_of_an_address() -> None:
    """A quarter is the most that one has; the rest is there for others; all get their turn in the end."""
    async with open_backend() as backend, open_hooks(asking(backend, hook_requests_max=8)) as asked:
        gate, verdicts = Gate(backend), list[Verdict]()

        async def ask(address: str) -> None:
            verdicts.append(await asked.ask(CONNECT, address))

        async def count_of(count: int) -> None:
            await backend.until(count)
            await trio.sleep(0.1)
            assert len(backend.requests) == count

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask, "192.0.2.1")
            await count_of(2)
            nursery.start_soon(ask, "2001:db8::1")
            await count_of(3)
            for _ in range(3):
                nursery.start_soon(ask, "127.0.0.1")
            nursery.start_soon(ask, "")
            await count_of(7)
            assert asked.questions.under_way == 7
            gate.opened.set()
        assert verdicts == [Allowed()] * 25
        assert backend.most_under_way <= 8
        assert not asked.questions._turns, "addresses are forgotten"


async def test_turns_of_an_address_that_gives_up() -> None:
    """Whoever no longer waits has no turn; whose time is over while it waits gets no answer."""
    async with open_backend() as backend:
        settings = asking(backend, hook_requests_max=4, hook_connect_seconds_max=0.5)
        async with open_hooks(settings) as asked:
            gate, verdicts = Gate(backend), list[Verdict]()

            async def ask() -> None:
                verdicts.append(await asked.ask(CONNECT, "192.0.2.1"))

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(ask)
                await backend.until(1)
                nursery.cancel_scope.cancel()
            assert verdicts == []
            assert not asked.questions._turns
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(ask)
            assert verdicts == [Unanswered()] * 4
            assert not asked.questions._turns
            gate.opened.set()
            await ask()
            assert verdicts[-1] == Allowed()


@pytest.mark.parametrize("kept", [False, True], ids=["new connections", "kept connections"])
@pytest.mark.parametrize("dialect", ["plain", "structured"])
async def test_one_address_does_not_take_all_turns(dialect: str, kept: bool) -> None:
    """As many as it opens connections; here the addresses are those that a proxy names, with the request that counts.

    Kept: the connections between the proxy and us have served others before.
    """
    bad, good = (("X-Forwarded-For", "192.0.2.1"),), (("X-Forwarded-For", "192.0.2.2"),)

    async def attack(server: Server, number: int) -> None:
        stream = await connect(server.port)
        if kept:
            await look_in(stream, f"192.0.2.{10 + number}")
        with contextlib.suppress(HandshakeRefused, Closed):
            if dialect == "plain":
                await shake_hands(stream, handshake("/chat/room", headers=bad))
            else:
                client = Client(await shake_hands(stream, handshake(PATH, headers=bad)))
                await client.connect(data="slow")
        await trio.aclose_forcefully(stream)

    async with open_backend() as backend:
        gate = Gate(backend)
        settings = hooks(backend, "connect", hook_requests_max=4, trusted_proxies=["127.0.0.1"])
        async with open_server(**settings) as server, trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(attack, server, number)
            await backend.until(1)
            await trio.sleep(0.2)
            headers = (("Sec-WebSocket-Protocol", "centrifuge-json"), *good)
            with trio.fail_after(1):
                async with open_structured(server.port, headers=headers) as client:
                    await client.goes_on()
            assert len(backend.requests) == 2
            gate.opened.set()


# -- who isn't let in


async def open_frame(client: Client, *, fragmented: bool, **connect_body: object) -> int:
    """Connect, and say much more in the same message; return the number of `connect`."""
    more: list[Message] = [{"subscribe": {"channel": "room"}}]
    more += [{"publish": {"channel": "room", "data": number}} for number in range(MANY)]
    commands = [client.number(command) for command in [{"connect": connect_body}, *more]]
    await send_frame(client, commands, fragmented=fragmented)
    return int(commands[0]["id"])


@pytest.mark.parametrize("fragmented", [False, True])
@pytest.mark.parametrize("by", ["token", "back end"])
async def test_a_refused_connect_stops_its_frame(by: str, fragmented: bool) -> None:
    """A room of its token isn't there: it gets that answer, and nothing else of its message is carried out."""
    async with open_backend() as backend:
        settings = hooks(backend, "connect") if by == "back end" else {}
        async with open_server(**{**STRICT, **settings}) as server, open_structured(server.port) as listener:
            await listener.ask("subscribe", channel="room")
            claims = {"channels": ["fine", "nope:x"]} if by == "token" else {}
            backend.give({"result": {"channels": ["fine", "nope:x"]}})
            async with open_structured(server.port, connected=False) as client:
                token = sign(claims, sub="bob")
                number = await open_frame(client, fragmented=fragmented, token=token)
                assert (await client.reply(number))["error"]["code"] == 102
                await trio.sleep(0.2)
                assert len(client.frames) == 1
                await listener.goes_on()
                assert not listener.pushes
                assert server.node.hub.statistics().subscriptions == 1
                assert server.node.hub.statistics().publications == 0


@pytest.mark.parametrize("fragmented", [False, True])
@pytest.mark.parametrize("by", ["token", "back end"])
async def test_one_connection_too_many_says_nothing(by: str, fragmented: bool) -> None:
    """Over connections_per_user_max: nothing of the message with which it comes is carried out."""
    async with open_backend() as backend:
        settings = {**STRICT, "connections_per_user_max": 1, "allow_subscribe": "anonymous"}
        token = {"token": sign(sub="ann")} if by == "token" else {}

        async def answer(request: Request) -> bytes:
            user = "" if request.json.get("data") == "stranger" else "ann"
            return response({"result": {"user": user}})

        backend.behaviour = answer
        if by == "back end":
            settings |= hooks(backend, "connect")
        async with (
            open_server(**settings) as server,
            open_structured(server.port, connected=False) as listener,
            open_structured(server.port, connected=False) as first,
            open_structured(server.port, connected=False) as second,
        ):
            await listener.connect(data="stranger")
            await listener.ask("subscribe", channel="room")
            await first.connect(**token)
            await open_frame(second, fragmented=fragmented, **token)
            closed = await second.ended()
            assert (closed.code, closed.reason) == (3504, "connection limit")
            assert second.frames == []
            await first.goes_on()
            await trio.sleep(0.1)
            await listener.goes_on()
            assert not listener.pushes
            assert server.node.hub.statistics().publications == 0
            assert server.node.hub.statistics().subscriptions == 1


async def test_a_refresh_while_one_too_many_is_closing() -> None:
    """It isn't counted with those that stay, and the one that was there first stays."""
    async with (
        open_server(**TOKENS, connections_per_user_max=1, close_seconds_max=10.0) as server,
        open_structured(server.port, connected=False) as first,
        open_structured(server.port, connected=False) as second,
    ):
        await first.connect(token=sign(sub="ann"))
        await second.say("connect", token=sign(sub="ann"))  # and it doesn't read what comes
        with trio.fail_after(5):
            while all(connection.ended is None for connection in server.node.connections):
                await trio.sleep(0.01)
        assert len(server.node.connections.of_user("ann")) == 2
        for number in range(3):
            await first.ask("refresh", token=sign(sub="ann", info={"n": number}))
        await first.ask("subscribe", channel="room")
        presence = (await first.ask("presence", channel="room"))["presence"]
        assert presence[first.client]["conn_info"] == {"n": 2}
        assert (await second.ended()).code == 3504
        await first.goes_on()


@pytest.mark.parametrize("by", ["token", "back end"])
async def test_one_plain_connection_too_many(by: str) -> None:
    """429, whoever says who it is; and whether it may join is no question then."""
    async with open_backend() as backend:
        backend.give({"result": {"user": "ann"}})
        names = ("subscribe",) if by == "token" else ("connect", "subscribe")
        settings = hooks(backend, *names, **TOKENS, connections_per_user_max=1)
        path = "/chat/room" + (f"?token={sign(sub='ann')}" if by == "token" else "")
        async with open_server(**settings) as server:
            async with open_peer(server.port, path) as first:
                before = len(backend.requests)
                assert await status_of(server.port, path) == 429
                asked = [request.path for request in backend.requests[before:]]
                assert asked == ([] if by == "token" else ["/connect"])
                await first.send("still here")
                assert await first.receive() == "still here"
            with trio.fail_after(5):
                while len(server.node.connections):
                    await trio.sleep(0.01)
            assert await status_of(server.port, path) == 101
            await until_quiet(server.node)


# -- the back end's word


async def test_a_refresh_does_not_undo_what_the_back_end_said() -> None:
    """The client's own token holds for longer, and has other info: it ends when the back end wants it to end."""
    async with open_backend() as backend:
        settings = hooks(backend, "connect", **TOKENS, token_grace_seconds_max=1.0)
        async with open_server(**settings) as server, open_structured(server.port, connected=False) as client:
            backend.give({"result": {"expire_at": int(time.time()) + 2, "info": {"role": "guest"}}})
            token = sign(sub="ann", exp=int(time.time()) + 86400, info={"role": "admin"})
            assert (await client.connect(token=token))["ttl"] <= 2
            refreshed = await client.ask("refresh", token=token)
            assert refreshed["expires"]
            assert refreshed["ttl"] <= 2
            await client.ask("subscribe", channel="room")
            (seen,) = (await client.ask("presence", channel="room"))["presence"].values()
            assert seen["conn_info"] == {"role": "guest"}
            with trio.fail_after(6):
                closed = await client.ended()
            assert closed.code == 3005


async def test_a_refresh_of_a_room_does_not_undo_it_either() -> None:
    """The same for a subscription, and its token."""
    async with open_backend() as backend:
        settings = hooks(backend, "subscribe", **TOKENS, token_grace_seconds_max=1.0)
        async with open_server(**settings) as server, open_structured(server.port, connected=False) as client:
            backend.give({"result": {"expire_at": int(time.time()) + 2}})
            await client.connect(token=sign(sub="ann"))
            token = sign(sub="ann", channel="room", exp=int(time.time()) + 86400)
            assert (await client.ask("subscribe", channel="room", token=token))["ttl"] <= 2
            assert (await client.ask("sub_refresh", channel="room", token=token))["ttl"] <= 2


async def test_what_the_back_end_said_of_a_subscription_goes_with_it() -> None:
    """Whoever ends it, and where it never began: a client that visits one room after the other leaves nothing."""
    async with open_backend() as backend:
        settings = hooks(backend, "subscribe", **TOKENS, rooms_per_connection_max=2)
        async with open_server(**settings) as server, open_structured(server.port) as client:
            (connection,) = server.node.connections
            backend.give({"result": {"expire_at": int(time.time()) + 100}})
            assert isinstance(connection.conversation, CentrifugoConversation)
            tenure = connection.conversation.tenure
            await client.ask("subscribe", channel="stays")
            for number in range(5):
                await client.ask("subscribe", channel=f"left {number}")
                assert (await refusal(client, "subscribe", channel="one too many"))[0] == 106
                await client.ask("unsubscribe", channel=f"left {number}")
            await client.ask("subscribe", channel="taken")
            assert (await refusal(client, "subscribe", channel="stays"))[0] == 105
            assert tenure._bounds.keys() == {"stays", "taken"}
            answers: list[Answer] = []
            await server.node.inbox.put(Unsubscribe(connection, "taken", answers.append, by_server=True))
            assert (await client.push())["unsubscribe"]["code"] == 2000
            assert tenure._bounds.keys() == {"stays"}


def test_what_the_back_end_said_of_a_subscription_is_not_taken_away_by_the_last_one() -> None:
    """It was said while the end of the one before was still on its way to the hub; and a refused one says nothing."""
    driver = Driver(small_settings())
    ann = driver.connect("ann")
    driver.carry_out_all(ann)
    talk = ann.conversation
    talk.asks = lambda what, room: what == "subscribe"

    def subscribe(ends_at: float) -> Subscribe:
        (step,) = talk.receive(json.dumps({"id": 9, "subscribe": {"channel": "north"}}).encode(), False)
        assert isinstance(step, Ask)
        command = step.then(Allowed(ends_at=ends_at))
        assert isinstance(command, Subscribe)
        return command

    driver.carry_out(subscribe(100.0))
    ann.ask("unsubscribe", channel="north")
    ((leave, _),) = ann.send()
    again = subscribe(50.0)
    driver.carry_out(leave)
    driver.carry_out(again)
    driver.carry_out(subscribe(75.0))  # already subscribed
    assert (talk.tenure.rooms, talk.tenure.bounded("north", 1000.0)) == ({"north": 50.0}, 50.0)


async def test_a_refresh_where_the_back_end_said_nothing() -> None:
    """Then the token counts, as ever; and the sooner of the two."""
    async with open_backend() as backend:
        settings = hooks(backend, "connect", **TOKENS)
        async with open_server(**settings) as server:
            for end in (None, time.time() + 9000):
                backend.give({"result": {} if end is None else {"expire_at": end}})
                async with open_structured(server.port, connected=False) as client:
                    await client.connect(token=sign(sub="ann", exp=time.time() + 100))
                    token = sign(sub="ann", exp=time.time() + 500, info={"n": 2})
                    assert 400 < (await client.ask("refresh", token=token))["ttl"] <= 500
                    await client.ask("subscribe", channel="room")
                    (seen,) = (await client.ask("presence", channel="room"))["presence"].values()
                    assert seen["conn_info"] == {"n": 2}


async def test_the_subscribe_hook_is_not_asked_in_vain() -> None:
    """Where the rules refuse anyway, they do it by themselves."""
    async with open_backend() as backend:
        namespaces = {"closed": Namespace(allow_subscribe="nobody"), "users": Namespace(allow_subscribe="users")}
        settings = hooks(backend, "subscribe", **{**STRICT, "namespaces": namespaces})
        async with (
            open_server(**settings) as server,
            open_structured(server.port) as stranger,
            open_structured(server.port, connected=False) as ann,
        ):
            await ann.connect(token=sign(sub="ann"))
            for room in ("$room", "#bob", "#bob,eve", "closed:x", "users:x", "nowhere:x"):
                assert (await refusal(stranger, "subscribe", channel=room))[0] in (102, 103), room
            for room in ("$room", "#bob", "closed:x", "$closed:x"):
                assert (await refusal(ann, "subscribe", channel=room))[0] in (102, 103), room
            assert backend.requests == []
            await ann.ask("subscribe", channel="$room", token=sign(sub="ann", channel="$room"))
            await ann.ask("subscribe", channel="#ann")
            await ann.ask("subscribe", channel="users:x")
            await stranger.ask("subscribe", channel="room")
            asked = [request.json["channel"] for request in backend.requests]
            assert asked == ["$room", "#ann", "users:x", "room"]


async def test_the_subscribe_hook_is_not_asked_in_vain_for_plain_clients() -> None:
    """Likewise."""
    async with open_backend() as backend:
        settings = hooks(backend, "subscribe", **STRICT)
        async with open_server(**settings) as server:
            assert await status_of(server.port, "/chat/%24room") in (403, 404)
            assert await status_of(server.port, "/chat/%23bob") in (403, 404)
            assert await status_of(server.port, f"/chat/%23bob?token={sign(sub='ann')}") in (403, 404)
            assert backend.requests == []
            assert await status_of(server.port, f"/chat/%23ann?token={sign(sub='ann')}") == 101
            assert [request.json["channel"] for request in backend.requests] == ["#ann"]


# -- the past


PAST_IS_CLOSED: dict[str, Any] = {**STRICT, "allow_history": "nobody"}


async def test_recovery_does_not_read_what_history_does_not_show() -> None:
    """Who can't say what it has seen has seen nothing; who can gets what it has missed."""
    async with (
        open_server(**PAST_IS_CLOSED) as server,
        open_structured(server.port) as ann,
        open_structured(server.port) as bob,
    ):
        joined = await ann.ask("subscribe", channel="room")
        for number in range(3):
            await ann.ask("publish", channel="room", data=f"secret {number}")
        assert (await refusal(bob, "history", channel="room", limit=10))[0] == 103
        for since in ({"offset": 0}, {}, {"offset": 0, "epoch": ""}, {"offset": 3}, {"offset": 0, "epoch": "x"}):
            answer = await bob.ask("subscribe", channel="room", recover=True, **since)
            assert not answer.get("publications"), since
            assert not answer.get("recovered"), since
            assert (answer["epoch"], answer["offset"]) == (joined["epoch"], 3)
            await bob.ask("unsubscribe", channel="room")
        await ann.ask("publish", channel="room", data="missed")
        known = {"epoch": joined["epoch"], "offset": 3}
        answer = await bob.ask("subscribe", channel="room", recover=True, **known)
        assert answer["recovered"]
        assert [one["data"] for one in answer["publications"]] == ["missed"]
        await bob.goes_on()
        assert not any("secret" in frame for frame in bob.frames)


async def test_recovery_with_connect_does_not_read_it_either() -> None:
    """The rooms of its token."""
    async with open_server(**PAST_IS_CLOSED) as server, open_structured(server.port) as ann:
        joined = await ann.ask("subscribe", channel="room")
        for number in range(3):
            await ann.ask("publish", channel="room", data=f"secret {number}")
        token = sign(sub="bob", channels=["room"])
        for since, told in (({"offset": 0}, []), ({"offset": 2, "epoch": joined["epoch"]}, ["secret 2"])):
            async with open_structured(server.port, connected=False) as bob:
                room = (await bob.connect(token=token, subs={"room": {"recover": True, **since}}))["subs"]["room"]
                assert [one["data"] for one in room.get("publications", ())] == told
                assert room.get("recovered", False) == bool(told)


async def test_recovery_from_the_beginning_where_history_is_open() -> None:
    """There the beginning without an epoch is as good as asking for the history."""
    async with open_server(**STRICT, allow_history="anonymous") as server, open_structured(server.port) as ann:
        await ann.ask("publish", channel="room", data="open")
        answer = await ann.ask("subscribe", channel="room", recover=True, offset=0)
        assert [one["data"] for one in answer.get("publications", ())] == ["open"]


@pytest.mark.parametrize("run", [False, True])
def test_what_publishers_show_of_themselves_is_counted(run: bool) -> None:
    """`history_bytes` holds it, and history_bytes_max bounds it."""
    ann = Member("ann", "c1", b'"' + b"i" * 998 + b'"', b'"' + b"r" * 498 + b'"')
    each = 1 + 1000 + 500 + PUBLICATION_OVERHEAD_BYTES
    engine = make_engine(history_bytes_max=3 * each, history_size=100)
    if run:
        engine.append_all("room", [b"x"] * 10, Kind.TEXT, 0.0, [ann] * 10)
    else:
        for _ in range(10):
            engine.append("room", b"x", Kind.TEXT, 0.0, ann)
    statistics = engine.statistics()
    assert (statistics.publications, statistics.history_bytes) == (3, 3 * each)
    engine.append("room", b"x", Kind.TEXT, 0.0)
    assert engine.statistics().history_bytes == 2 * each + 1 + PUBLICATION_OVERHEAD_BYTES
    engine.clear("room")
    assert engine.statistics().history_bytes == 0


async def test_what_is_not_kept_shows_the_same_publisher() -> None:
    """`skip_history`, by the back end's word: others see who says it as they always do."""
    async with open_backend() as backend:
        settings = hooks(backend, "publish", **TOKENS)
        async with open_server(**settings) as server, open_structured(server.port, connected=False) as ann:
            await ann.connect(token=sign(sub="ann", info={"n": 1}))
            await ann.ask("subscribe", channel="room", token=sign(sub="ann", channel="room", info={"role": "mod"}))
            seen = []
            for skip in (False, True):
                backend.give({"result": {"skip_history": skip}})
                await ann.ask("publish", channel="room", data=1)
                publication = await ann.publication("room")
                assert ("offset" in publication) != skip
                seen.append(publication["info"])
            assert (
                seen == [{"user": "ann", "client": ann.client, "conn_info": {"n": 1}, "chan_info": {"role": "mod"}}] * 2
            )


# -- what is written down


async def test_broken_heads_leave_no_key_in_the_log() -> None:
    """The client is told what is wrong with its line; the log isn't told the line."""
    key = ALL.encode()
    heads = [
        b"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nX-API-Key : %s\r\n",
        b"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nX-API-Key: %s\x01\r\n",
        b"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: apikey %s\r\nbad header\r\n",
        b"POST /api/publish HTTP/1.1\r\nHost: localhost\r\n X-API-Key: %s\r\n",
        b"POST /api/publish HTTP/1.1\r\nHost: localhost\r\n: %s\r\n",
        b"POST /api/publish HTTP/1.1\r\nHost: localhost\r\n%s: : x\r\n(: y\r\n",
        b"GET /chat/room?token=%s x HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /chat/room?token=%s\x7f HTTP/1.1\r\nHost: localhost\r\n",
        b"%s\r\n",
    ]
    with capture_logs() as logs:
        async with open_api() as api:
            for head in heads:
                before = len(logs)
                answer = await say_raw(api, head % key + b"Content-Length: 2\r\n\r\n{}")
                assert answer.startswith(b"HTTP/1.1 4"), head
                assert [line["event"] for line in logs[before:] if line["event"] == "refused"], head
                assert ALL not in repr(logs), head


async def say_raw(api: BackEnd, data: bytes) -> bytes:
    """Send bytes to the server; return all that it answers."""
    stream = await connect(api.port)
    answer = b""
    with trio.fail_after(SECONDS_MAX), contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(data)
        await stream.send_eof()
        while some := await stream.receive_some(65536):
            answer += some
    await trio.aclose_forcefully(stream)
    return answer


def read_as_connect(answer: object) -> Verdict:
    """Return what an answer to that hook means."""
    return read_answer("connect", json.dumps(answer).encode(), Settings(), 0.0)


def test_an_error_of_a_back_end_is_cut() -> None:
    """The beginning of its message is enough."""
    denied = read_as_connect({"error": {"code": 403, "message": "ä" * 900}})
    assert isinstance(denied, Denied)
    assert len(denied.message) <= 300
    assert denied.message.startswith("ä" * 100)
    assert read_as_connect({"error": {"code": 403, "message": "no"}}) == Denied(403, "no")


def test_a_user_with_a_long_name_is_no_answer() -> None:
    """It can't be cut: then it would be another one."""
    assert read_as_connect({"result": {"user": "u" * 255}}) == Allowed("u" * 255)
    with pytest.raises(HookError):
        read_as_connect({"result": {"user": "u" * 300}})


async def test_a_user_with_a_long_name_is_not_let_in() -> None:
    """As if the back end had failed."""
    async with open_backend() as backend, open_server(**hooks(backend, "connect")) as server:
        backend.give({"result": {"user": "u" * 300}})
        assert await status_of(server.port) == 503
        async with open_structured(server.port, connected=False) as client:
            await client.say("connect")
            assert (await client.ended()).code == 3004
        await until_quiet(server.node)


async def test_a_long_error_of_a_back_end_goes_nowhere() -> None:
    """Neither to clients nor into the log."""
    async with open_backend() as backend:
        settings = hooks(backend, "publish")
        with capture_logs() as logs:
            async with open_server(**settings) as server:
                async with open_structured(server.port) as client, open_peer(server.port, "/chat/room") as plain:
                    backend.give({"error": {"code": 403, "message": "m" * 900_000}})
                    code, message, _ = await refusal(client, "publish", channel="room", data=1)
                    assert code == 403
                    assert len(message) <= 300
                    await plain.send("x")
                    assert (await plain.receive_until_closed())[1].code == 1008
                await until_quiet(server.node)
        assert logs
        assert max(len(repr(line)) for line in logs) < 2000
