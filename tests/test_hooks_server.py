"""Hooks with clients of both dialects: what the back end says is what happens, and whoever doesn't ask doesn't wait."""

import contextlib
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

import hubbub
from backend import Backend, Request, open_backend, response
from hubbub.config_types import Namespace
from hubbub.hooks.signature import sign
from peers import HandshakeRefused, open_peer
from servers import Server, open_daemon, open_server, until_quiet
from structured import Client, Refused, open_structured
from test_hooks import events_of
from test_hostile import Bystanders, p99


def hooks(backend: Backend, *names: str, **others: object) -> dict[str, Any]:
    """Return settings with these hooks of that back end."""
    return {**{f"hook_{name}_url": backend.url(f"/{name}") for name in names}, **others}


async def status_of(port: int, path: str = "/chat/room") -> int:
    """What a plain handshake is answered with."""
    try:
        async with open_peer(port, path):
            return 101
    except HandshakeRefused as refused:
        return refused.status


async def sentence_of(port: int, path: str = "/chat/room") -> str:
    """What a refused plain handshake is told."""
    with pytest.raises(HandshakeRefused) as refused:
        async with open_peer(port, path):
            pass
    return refused.value.response.decode().rpartition("\r\n\r\n")[2].strip()


async def refusal(client: Client, method: str, **body: object) -> tuple[int, str, bool]:
    """Return the error that a command is answered with."""
    with pytest.raises(Refused) as refused:
        await client.ask(method, **body)
    return refused.value.code, refused.value.message, refused.value.temporary


# -- connect


async def test_connect() -> None:
    """The back end says who a client is, what others see of it, where it is, and something to itself."""
    async with open_backend() as backend, open_server(**hooks(backend, "connect")) as server:
        subs = {"both": {"info": {"here": 1}, "data": "welcome"}}
        result = {"user": "ann", "info": {"n": 1}, "data": {"hello": [1]}, "channels": ["news"], "subs": subs}
        backend.give({"result": result})
        async with open_structured(server.port, connected=False) as ann:
            reply = await ann.connect(data={"why": 1})
            assert reply["data"] == {"hello": [1]}
            assert set(reply["subs"]) == {"news", "both"}
            assert reply["subs"]["both"]["data"] == "welcome"
            presence = (await ann.ask("presence", channel="news"))["presence"]
            assert presence == {ann.client: {"user": "ann", "client": ann.client, "conn_info": {"n": 1}}}
        (request,) = backend.requests
        assert request.json["client"] == ann.client
        assert request.json["data"] == {"why": 1}
        assert (request.json["dialect"], request.json["user"]) == ("centrifugo", "")


async def test_connect_of_a_plain_client() -> None:
    """It is who the back end says."""
    async with open_backend() as backend, open_server(**hooks(backend, "connect")) as server:
        backend.give({"result": {"user": "bob", "info": {"n": 2}}})
        async with open_structured(server.port) as watcher:
            await watcher.ask("subscribe", channel="room")
            async with open_peer(server.port, "/chat/room") as bob:
                await bob.send("hello")
                info = (await watcher.publication("room"))["info"]
                assert (info["user"], info["conn_info"]) == ("bob", {"n": 2})
        assert [request.json["dialect"] for request in backend.requests] == ["centrifugo", "plain"]


async def test_connect_denied() -> None:
    """Error and disconnect with their codes; plain clients get 403, or 503 when nobody answers."""
    async with open_backend() as backend, open_server(**hooks(backend, "connect")) as server:
        backend.give({"error": {"code": 1999, "message": "not today", "temporary": True}})
        async with open_structured(server.port, connected=False) as client:
            assert await refusal(client, "connect") == (1999, "not today", True)
        assert await sentence_of(server.port) == "403 Forbidden: not permitted to connect"
        backend.give({"disconnect": {"code": 4501, "reason": "banned"}})
        async with open_structured(server.port, connected=False) as client:
            await client.say("connect")
            closed = await client.ended()
            assert (closed.code, closed.reason) == (4501, "banned")
        assert await sentence_of(server.port) == "403 Forbidden: not permitted to connect"
        backend.give(b"what?")
        async with open_structured(server.port, connected=False) as client:
            await client.say("connect")
            assert (await client.ended()).code == 3004
        assert await sentence_of(server.port) == "503 Service Unavailable: the back end gave no usable answer"
        server.node.settings.hook_connect_on_failure = "allow"
        assert await status_of(server.port) == 101
        async with open_structured(server.port) as client:
            await client.goes_on()
        await until_quiet(server.node)


# -- subscribe


async def test_subscribe() -> None:
    """Where the namespace wants it, the back end decides."""
    quiet = Namespace(ask_subscribe=False)
    async with open_backend() as backend:
        settings = hooks(backend, "subscribe", namespaces={"quiet": quiet})
        async with open_server(**settings) as server, open_structured(server.port) as client:
            await client.ask("subscribe", channel="quiet:room")
            assert backend.requests == []
            backend.give({"result": {"info": {"vip": True}, "data": [1]}})
            assert (await client.ask("subscribe", channel="room", data="x"))["data"] == [1]
            assert backend.requests[0].json["channel"] == "room"
            assert backend.requests[0].json["data"] == "x"
            presence = (await client.ask("presence", channel="room"))["presence"]
            assert presence[client.client]["chan_info"] == {"vip": True}
            backend.give({"error": {"code": 403, "message": "members only"}})
            assert await refusal(client, "subscribe", channel="other") == (403, "members only", False)
            assert await status_of(server.port) == 403
            backend.give(status="500 Internal Server Error")
            assert (await refusal(client, "subscribe", channel="other"))[::2] == (100, True)
            assert await status_of(server.port) == 503
            assert await status_of(server.port, "/chat/quiet:room") == 101
            await client.goes_on()
            backend.give({"disconnect": {"code": 3500, "reason": "bye"}})
            await client.say("subscribe", channel="other")
            closed = await client.ended()
            assert (closed.code, closed.reason) == (3500, "bye")


async def test_commands_stay_in_order() -> None:
    """What a client says after a question waits for its answer; another client doesn't."""
    async with (
        open_backend() as backend,
        open_server(**hooks(backend, "subscribe")) as server,
        open_structured(server.port) as slow,
        open_structured(server.port) as other,
    ):
        backend.delay(0.5)
        first = await slow.say("subscribe", channel="room")
        second = await slow.say("publish", channel="room", data=1)
        with trio.fail_after(0.3):
            await other.goes_on()
        await slow.reply(first)
        assert "publish" in await slow.reply(second)


# -- publish


async def test_publish() -> None:
    """Data is replaced, history is skipped, and what is denied isn't said."""
    async with (
        open_backend() as backend,
        open_server(**hooks(backend, "publish")) as server,
        open_structured(server.port) as client,
        open_peer(server.port, "/chat/room") as plain,
    ):
        await client.ask("subscribe", channel="room")
        assert "offset" in await client.ask("publish", channel="room", data=1)
        assert (await client.publication("room"))["data"] == 1
        backend.give({"result": {"data": {"text": "****"}, "skip_history": True}})
        assert "offset" not in await client.ask("publish", channel="room", data={"text": "damn"})
        assert (await client.publication("room"))["data"] == {"text": "****"}
        backend.give({"error": {"code": 400, "message": "no"}})
        assert await refusal(client, "publish", channel="room", data=2) == (400, "no", False)
        backend.give(status="500 Internal Server Error")
        assert (await refusal(client, "publish", channel="room", data=3))[::2] == (100, True)
        backend.give({"result": {"data": "said by the back end"}})
        await plain.send("said by a plain one")
        assert (await client.publication("room"))["data"] == "said by the back end"
        history = (await client.ask("history", channel="room", limit=-1))["publications"]
        assert [publication["data"] for publication in history] == [1, "said by the back end"]
        texts = await plain.receive_texts(3)  # a string is its text
        assert texts == ["1", '{"text":"****"}', "said by the back end"]
        asked = [request.json["data"] for request in backend.requests]
        assert asked == [1, {"text": "damn"}, 2, 3, "said by a plain one"]
        backend.give({"error": {"code": 400, "message": "no"}})
        await plain.send("denied")
        _, closed = await plain.receive_until_closed()
        assert closed.code == 1008


async def test_a_plain_client_is_disconnected_for_what_it_publishes() -> None:
    """With the back end's own code and reason, as it has been let in."""
    async with (
        open_backend() as backend,
        open_server(**hooks(backend, "publish")) as server,
        open_peer(server.port, "/chat/room") as plain,
    ):
        backend.give({"disconnect": {"code": 4501, "reason": "banned"}})
        await plain.send("damn")
        texts, closed = await plain.receive_until_closed()
        assert texts == []
        assert (closed.code, closed.reason) == (4501, "banned")


# -- notices


async def test_notices() -> None:
    """Who comes and goes, in the order in which the hub saw it, a disconnect with its code."""
    async with open_backend() as backend:
        async with open_server(**hooks(backend, "notices")) as server:
            async with open_structured(server.port) as ann:
                await ann.ask("subscribe", channel="room")
                async with open_peer(server.port, "/chat/room") as bob:
                    await bob.close()
                await ann.ask("unsubscribe", channel="room")
            await until_quiet(server.node)
            with trio.fail_after(5):
                while len(told := events_of(backend.requests)) < 8:
                    await trio.sleep(0.01)
        for event in told:
            if event.get("client") == ann.client:
                event["client"] = "ann"
        room = [(event["event"], event.get("client") == "ann") for event in told if event.get("channel") == "room"]
        assert room == [
            ("room_opened", False),
            ("join", True),
            ("join", False),
            ("leave", False),
            ("leave", True),
            ("room_emptied", False),
        ]
        ends = {event["client"] == "ann": event for event in told if event["event"] == "disconnect"}
        assert len(ends) == 2
        assert ends[False]["code"] == 1000


async def test_notices_of_a_crowd() -> None:
    """Each room's joins and leaves alternate as they happened, while the back end fails now and then."""
    async with open_backend() as backend:
        taken: list[Request] = []
        count = 0

        async def answer(request: Request) -> bytes | None:
            nonlocal count
            count += 1
            if count % 3 == 0:
                return response({}, "503 Service Unavailable")
            taken.append(request)
            return None if count % 3 == 1 else response({})

        backend.behaviour = answer
        async with open_server(**hooks(backend, "notices")) as server:

            async def come_and_go(server: Server, number: int) -> None:
                for _ in range(5):
                    async with open_peer(server.port, f"/chat/room{number % 3}") as peer:
                        await peer.close()

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(come_and_go, server, number)
            await until_quiet(server.node)
            with trio.fail_after(20):
                await server.node.hooks.flush()
        check_rooms(events_of(taken))


def check_rooms(events: Sequence[dict[str, Any]]) -> None:
    """See that what is told of rooms could have happened, and ends with nobody in any."""
    inside: dict[str, set[str]] = {}
    for event in events:
        room, client = event.get("channel", ""), event.get("client", "")
        match event["event"]:
            case "room_opened":
                assert room not in inside
                inside[room] = set()
            case "join":
                assert client not in inside[room]
                inside[room].add(client)
            case "leave":
                inside[room].remove(client)
            case "room_emptied":
                assert inside.pop(room) == set()
    assert inside == {}
    assert sum(event["event"] == "join" for event in events) == sum(event["event"] == "disconnect" for event in events)


async def test_notices_at_a_stop() -> None:
    """The drain waits until the back end has been told of the last one, also if it fails at first."""
    async with open_backend() as backend:
        taken: list[Request] = []

        async def answer(request: Request) -> bytes | None:
            if len(backend.requests) < 4:
                return response({}, "503 Service Unavailable")
            taken.append(request)
            return response({})

        backend.behaviour = answer
        with open_daemon(**hooks(backend, "notices"), insecure=True, close_seconds_max=1) as daemon:
            async with contextlib.AsyncExitStack() as stack:
                for number in range(10):
                    await stack.enter_async_context(open_peer(daemon.port, f"/chat/room{number % 3}"))
                daemon.process.terminate()
                await trio.to_thread.run_sync(daemon.process.wait)
        events = events_of(taken)
        check_rooms(events)
        assert [event["code"] for event in events if event["event"] == "disconnect"] == [1001] * 10


# -- bystanders


@pytest.mark.alone
@pytest.mark.parametrize("seconds", [5.0, 10_000.0])
async def test_bystanders_do_not_wait(seconds: float) -> None:
    """While a hundred clients wait for a slow back end, or a dead one, others are heard as soon as before."""
    figures: list[tuple[float, float]] = []
    for number in range(4):
        # How it is without such a back end matters only where it is felt: it is measured from the second time on.
        figures.append(await _attempt(seconds, compare=number > 0))
        quiet, meanwhile = figures[-1]
        if meanwhile <= max(0.03, 3 * quiet):
            break
    else:
        pytest.fail(f"bystanders' p99 without and with such a back end: {figures}")
    sys.stdout.write(f"bystanders' p99 without and with a back end of {seconds} s: {figures}\n")  # shown by pytest -rP


async def _attempt(seconds: float, *, compare: bool) -> tuple[float, float]:
    """Return the bystanders' p99 without such a back end, 0 unless they are to be compared, and with it."""
    async with open_backend() as backend:
        settings = hooks(backend, "connect", "subscribe", "notices", ask_publish="false", log_level="error")
        with open_daemon(**settings, drain_seconds_max=1) as daemon:
            async with (
                open_peer(daemon.port, "/chat/quiet") as talker,
                open_peer(daemon.port, "/chat/quiet") as listener,
                trio.open_nursery() as nursery,
            ):
                bystanders, rng = Bystanders(talker, listener), random.Random(0)
                quiet = await bystanders.talk(2.0) if compare else [0.0, 0.0]
                backend.delay(seconds, {})

                async def come_and_wait() -> None:
                    while True:
                        await trio.sleep(rng.uniform(0.0, 1.0))  # as SDKs do
                        with contextlib.suppress(HandshakeRefused):
                            async with open_peer(daemon.port, "/chat/asked"):
                                pass

                before = len(backend.requests)
                for _ in range(100):
                    nursery.start_soon(come_and_wait)
                await trio.sleep(1.0)
                meanwhile = await bystanders.talk(4.0)
                assert len(backend.requests) >= before + 64
                nursery.cancel_scope.cancel()
    return p99(quiet), p99(meanwhile)


# -- what is written about them


async def test_metrics() -> None:
    """What was asked and told is counted."""
    async with open_backend() as backend:
        async with open_server(**hooks(backend, "connect", "notices")) as server:
            async with open_peer(server.port, "/chat/room") as peer:
                await peer.close()
            await until_quiet(server.node)
            with trio.fail_after(5):
                await server.node.hooks.flush()
            text = server.node.metrics.text().decode()
        for line in (
            'hubbub_hook_questions_total{hook="connect",outcome="allowed"} 1.0',
            "hubbub_hook_notices_total 5.0",
            "hubbub_hook_notices_waiting 0.0",
            "hubbub_hook_notices_lost_total 0.0",
        ):
            assert f"\n{line}\n" in text


def test_signature_as_the_guide_verifies_it() -> None:
    """The code that back ends copy says what ours says."""
    text = (Path(hubbub.__file__).parent / "guide" / "hooks.md").read_text()
    code = text.partition("## The signature")[2].partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    header = sign("secret", b"{}", time.time())
    assert names["is_genuine"]("secret", header, b"{}")
    assert not names["is_genuine"]("secret", header, b"[]")
    assert not names["is_genuine"]("other", header, b"{}")
    assert not names["is_genuine"]("secret", sign("secret", b"{}", time.time() - 400), b"{}")
    assert not names["is_genuine"]("secret", "", b"{}")
