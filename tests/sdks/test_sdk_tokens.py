"""Tokens, and what the server does to connections, as the real SDKs see it: npm's `centrifuge`, `centrifuge-python`.

What the server promises about tokens is in `test_tokens`; here the SDKs' own callbacks bring them.
"""

from functools import partial
from typing import Any

import pytest
import trio

from hubbub.connection.connection import Connection
from hubbub.model.command import Answer, Subscribed, Tell
from hubbub.model.end import Disconnect
from hubbub.model.publication import Position
from sdks.sdk import Sdk, SdkError, open_sdks
from sdks.test_sdks import drop, nothing_came, refused
from servers import Server, elsewhere, open_daemon, open_server
from signing import SECRET, in_seconds, sign
from test_by_server import carry_out, publish, remove
from test_tokens import wire_settings

pytestmark = pytest.mark.no_cover  # twice as fast; other tests reach the same lines

SOON_SECONDS = 0.05
"""How long clients stay away where nothing needs to happen meanwhile."""
TTL_SECONDS = 1.0
"""When tokens expire; the SDKs know it in whole seconds."""
GRACE_SECONDS = 1.0
FORGED = sign(sub="ann", secret="somebody else's, quite long")
UNAUTHORIZED = 1
"""The SDKs' own code, of clients and of subscriptions, for having no token that could do."""
CONNECT_TOKEN, REFRESH_TOKEN, SUBSCRIBE_TOKEN, SUB_REFRESH_TOKEN = 5, 6, 8, 9
"""The SDKs' own codes for callbacks that fail."""


def token(user: str, seconds: float | None = None, **claims: object) -> str:
    """Return a user's token, which expires then, or never."""
    return sign({"sub": user, **({} if seconds is None else {"exp": in_seconds(seconds)}), **claims})


async def connection_of(server: Server, user: str = "ann") -> Connection:
    """Return the server's side of the user's only connection, once there is no other."""
    with trio.fail_after(5):
        while len(server.node.connections.of_user(user)) != 1:
            await trio.sleep(0.01)
    return server.node.connections.of_user(user)[0]


async def admit(server: Server, room: str, **how: Any) -> Answer:
    """Subscribe ann by the server."""
    answers: list[Answer] = []
    command = (await connection_of(server)).conversation.admit(room, answers.append, **how)
    assert command is not None
    return await carry_out(server, command, answers)


async def dismiss(server: Server, words: Disconnect) -> None:
    """End ann's connection."""
    connection = await connection_of(server)
    await server.node.inbox.put(Tell(connection, partial(connection.dismiss, words), ends=True))


async def kept_out(sdk: Sdk, port: int, code: int, **options: object) -> None:
    """Connect, and see that the SDK gives up with that code."""
    with pytest.raises(SdkError) as error:
        await sdk.connect(port, retry_seconds=SOON_SECONDS, **options)
    assert error.value.code == code
    await sdk.event("disconnected", code=code)


async def once_more(sdk: Sdk) -> None:
    """See that it is connected for the second time."""
    await sdk.event("connected")
    await sdk.event("connected")


# -- connections


async def test_a_user_is_seen(kind: str) -> None:
    """By the token's user and info: in presence, and with what it says."""
    with open_daemon(token_hmac_secret=SECRET) as daemon:
        async with open_sdks(kind, 2) as (one, two):
            first = await one.connect(daemon.port, token=token("ann", 60, info={"name": "Ann"}))
            second = await two.connect(daemon.port, token=token("bob"))
            for sdk in (one, two):
                await sdk.subscribe("room")
            await one.do("publish", room="room", data="hello")
            seen = {"client": first, "user": "ann", "info": {"name": "Ann"}}
            assert (await two.event("publication", room="room"))["info"] == seen
            present = await two.do("presence", room="room")
            assert present == {first: seen, second: {"client": second, "user": "bob"}}
            assert await two.do("presence_stats", room="room") == {"clients": 2, "users": 2}


async def test_wrong_tokens_are_the_end(kind: str) -> None:
    """3500 and its like: the SDK is told so, and doesn't come back."""
    wrong: list[tuple[int, dict[str, object]]] = [
        (3500, {"token": FORGED}),
        (3500, {"token": "no token at all", "tokens": [token("ann")]}),  # a callback would have a good one
        (3500, {"token": token("ann", channel="room")}),
        (3501, {}),
        (3507, {"token": sign()}),
    ]
    with open_daemon(token_hmac_secret=SECRET) as daemon:
        async with open_sdks(kind, len(wrong)) as sdks:
            for sdk, (code, options) in zip(sdks, wrong, strict=True):
                await kept_out(sdk, daemon.port, code, **options)
            await nothing_came(sdks[0], "connected")
            assert [sdk.untaken("connected", "disconnected", "token_asked") for sdk in sdks] == [[]] * len(wrong)
            metrics = await elsewhere(daemon.metrics)
            assert metrics["hubbub_connections_opened_total"] == len(wrong)


async def test_expired_token_at_connect(kind: str) -> None:
    """Error 109: the SDK asks the application for a new one and comes with that, as often as it takes."""
    async with open_server(**wire_settings()) as server, open_sdks(kind, 2) as (sdk, hopeless):
        tokens = [token("ann", -2), None, token("ann")]
        name = await sdk.connect(server.port, retry_seconds=SOON_SECONDS, token=token("ann", -1), tokens=tokens)
        assert (await connection_of(server)).member.client == name
        assert [event["code"] for event in sdk.untaken("error")] == [109, 109, CONNECT_TOKEN]
        assert len(sdk.untaken("token_asked")) == len(tokens)
        assert sdk.untaken("disconnected") == []

        await kept_out(hopeless, server.port, UNAUTHORIZED, token=token("ann", -1))
        assert [event["code"] for event in hopeless.untaken("error")][:1] == [109]
        await nothing_came(hopeless, "connected")


async def test_application_that_has_its_tokens_from_a_callback(kind: str) -> None:
    """It is asked before anything is said to the server, and not again for a reconnect with a good one."""
    async with open_server(**wire_settings()) as server, open_sdks(kind) as (sdk,):
        await sdk.connect(server.port, retry_seconds=SOON_SECONDS, tokens=[token("ann")])
        drop(server)
        await once_more(sdk)
        assert len(sdk.untaken("token_asked")) == 1
        assert sdk.untaken("error") == []


async def connections_expire(server: Server, sdks: list[Sdk]) -> None:
    """The SDKs ask for a new token when it has expired; what they do with what they get, or don't."""

    async def renewed(sdk: Sdk) -> None:
        """Each time it has expired, on the same connection."""
        tokens = [token("ann", 2 * TTL_SECONDS + 0.2), sign(sub="ann", info="new")]
        name = await sdk.connect(server.port, token=token("ann", TTL_SECONDS), tokens=tokens)
        await sdk.subscribe("room")
        await sdk.event("token_asked")
        await sdk.event("token_asked")  # so the server has told it when the first new one expires
        await trio.sleep(GRACE_SECONDS + 0.5)
        present = await sdk.do("presence", room="room")
        assert present == {name: {"client": name, "user": "ann", "info": "new"}}
        await sdk.event("connecting", code=0)
        assert sdk.untaken("connecting", "disconnected", "error", "token_asked") == []

    async def failing(sdk: Sdk, user: str, first: str | None, code: int) -> None:
        """They'd ask again after 5 to 10 s; the grace is over before. They come back, ask, and miss nothing.

        So it is with a callback that fails, and with one that gives a token that has expired, too.
        """
        options: dict[str, Any] = {"token": token(user, TTL_SECONDS), "tokens": [first, token(user)]}
        await sdk.connect(server.port, **options)
        await sdk.subscribe("past")
        await sdk.event("error", code=code)
        assert (await sdk.event("connecting", code=3005))["reason"] == "connection expired"
        await publish(server, "past", b'"missed"')
        await sdk.event("error", code=109)  # it comes with the old one first
        await once_more(sdk)
        assert (await sdk.event("subscribed", room="past", was_recovering=True))["recovered"]
        assert await sdk.data("past", 1) == ["missed"]
        assert len(sdk.untaken("token_asked")) == 2
        assert sdk.untaken("disconnected", "error") == []

    async def refused_for_good(sdk: Sdk, user: str, new: str, code: int) -> None:
        """The next token would be good, but they don't ask for it."""
        options: dict[str, Any] = {"token": token(user, TTL_SECONDS), "tokens": [new, token(user)]}
        await sdk.connect(server.port, retry_seconds=SOON_SECONDS, **options)
        await sdk.event("disconnected", code=code)
        await nothing_came(sdk, "disconnected", "error")
        assert len(sdk.untaken("connected")) == len(sdk.untaken("token_asked")) == 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(renewed, sdks[0])
        nursery.start_soon(failing, sdks[1], "bob", None, REFRESH_TOKEN)
        nursery.start_soon(failing, sdks[3], "dan", token("dan", -1), 109)
        nursery.start_soon(refused_for_good, sdks[2], "cat", token("somebody else"), 3500)


# -- subscriptions


def ann_in(room: str, seconds: float | None = None, **claims: object) -> str:
    """Return ann's token for a room."""
    return token("ann", seconds, channel=room, **claims)


async def test_subscription_tokens(kind: str) -> None:
    """The only way into a private room; a wrong one is error 103, the connection goes on."""
    async with open_server(**wire_settings()) as server, open_sdks(kind) as (sdk,):
        name = await sdk.connect(server.port, token=token("ann"))
        forged = sign(sub="ann", channel="$room", secret="somebody else's, quite long")
        for options in ({}, {"token": forged}, {"token": "no token at all"}, {"tokens": [forged, ann_in("$room")]}):
            await refused(sdk, 103, "subscribe", room="$room", options=options)
            await sdk.event("unsubscribed", room="$room", code=103)
            await sdk.do("remove", room="$room")
        await nothing_came(sdk, "subscribed")
        await sdk.subscribe("$room", token=ann_in("$room", 60, info={"role": "host"}))
        await sdk.do("publish", room="$room", data="in it")
        assert await sdk.data("$room", 1) == ["in it"]
        present = await sdk.do("presence", room="$room")
        assert present == {name: {"client": name, "user": "ann", "room_info": {"role": "host"}}}
        assert sdk.untaken("disconnected", "error") == []


async def test_subscription_token_of_somebody_else(kind: str) -> None:
    """For another user or another room: the connection ends with 3500, for good."""
    async with open_server(**wire_settings()) as server, open_sdks(kind, 2) as sdks:
        for sdk, wrong in zip(sdks, (sign(sub="bob", channel="$room"), ann_in("$other")), strict=True):
            await sdk.connect(server.port, retry_seconds=SOON_SECONDS, token=token("ann"))
            async with trio.open_nursery() as nursery:
                # The SDKs keep the subscription for a next connection: it is answered when the application gives up.
                nursery.start_soon(partial(refused, sdk, 0, "subscribe", room="$room", options={"token": wrong}))
                await sdk.event("disconnected", code=3500)
                await nothing_came(sdk, "subscribed", "unsubscribed")
                await sdk.do("unsubscribe", room="$room")
            assert len(sdk.untaken("connected")) == 1
        assert len(server.node.connections) == 0


async def test_expired_subscription_token(kind: str) -> None:
    """Error 109: the SDK asks the application for a new one and subscribes with that, as often as it takes."""
    async with open_server(**wire_settings()) as server, open_sdks(kind) as (sdk,):
        await sdk.connect(server.port, token=token("ann"))
        tokens = [ann_in("$a", -2), None, ann_in("$a")]
        await sdk.subscribe("$a", token=ann_in("$a", -1), tokens=tokens)
        assert [event["code"] for event in sdk.untaken("error")] == [109, 109, SUBSCRIBE_TOKEN]
        assert len(sdk.untaken("token_asked")) == len(tokens)
        assert {event["room"] for event in sdk.untaken("error", "token_asked")} == {"$a"}
        await sdk.subscribe("$b", tokens=[ann_in("$b")])
        assert len(sdk.untaken("token_asked")) == len(tokens) + 1
        await refused(sdk, UNAUTHORIZED, "subscribe", room="$c", options={"token": ann_in("$c", -1)})
        await sdk.event("unsubscribed", room="$c", code=UNAUTHORIZED)
        assert await sdk.do("presence_stats", room="$a") == {"clients": 1, "users": 1}


async def subscriptions_expire(server: Server, sdks: list[Sdk]) -> None:
    """Likewise, with the subscription's own callback."""

    async def renewed(sdk: Sdk) -> None:
        """Each time it has expired."""
        await sdk.connect(server.port, token=token("ann"))
        tokens = [ann_in("$room", 2 * TTL_SECONDS + 0.2), ann_in("$room")]
        await sdk.subscribe("$room", token=ann_in("$room", TTL_SECONDS), tokens=tokens)
        await sdk.event("token_asked", room="$room")
        await sdk.event("token_asked", room="$room")
        await trio.sleep(GRACE_SECONDS + 0.5)
        await sdk.do("publish", room="$room", data="still here")
        assert await sdk.data("$room", 1) == ["still here"]
        assert len(sdk.untaken("subscribing")) == 1
        assert sdk.untaken("unsubscribed", "disconnected", "error") == []

    async def failing(sdk: Sdk, first: str | None, code: int) -> None:
        """They'd ask again after 10 to 20 s; the grace is over before. They come back, ask, and miss nothing."""
        await sdk.connect(server.port, token=token("ann"))
        await sdk.subscribe("$past", token=ann_in("$past", TTL_SECONDS), tokens=[first, ann_in("$past")])
        await sdk.event("error", room="$past", code=code)
        assert (await sdk.event("connecting", code=3006))["reason"] == "subscription expired"
        await publish(server, "$past", b'"missed"')
        await once_more(sdk)
        await sdk.event("error", room="$past", code=109)
        assert (await sdk.event("subscribed", room="$past"))["recovered"]
        assert await sdk.data("$past", 1) == ["missed"]
        assert sdk.untaken("unsubscribed", "disconnected", "error") == []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(renewed, sdks[0])
        nursery.start_soon(failing, sdks[1], None, SUB_REFRESH_TOKEN)


async def test_expiry(kind: str) -> None:
    """Of connections and of subscriptions, all at once: it takes its time."""
    async with (
        open_server(**wire_settings(token_grace_seconds_max=GRACE_SECONDS)) as server,
        open_sdks(kind, 6) as sdks,
        trio.open_nursery() as nursery,
    ):
        for sdk in sdks:
            await sdk.open(server.port)
        nursery.start_soon(connections_expire, server, sdks[:4])
        nursery.start_soon(subscriptions_expire, server, sdks[4:])


async def test_personal_rooms(kind: str) -> None:
    """One's own; another's is error 103, with a token for it as well."""
    async with open_server(**wire_settings()) as server, open_sdks(kind, 2) as (sdk, other):
        await sdk.connect(server.port, token=token("ann"))
        await other.connect(server.port, token=token("bob"))
        for options in ({}, {"token": ann_in("#bob")}):
            await refused(sdk, 103, "subscribe", room="#bob", options=options)
            await sdk.event("unsubscribed", room="#bob", code=103)
            await sdk.do("remove", room="#bob")
        await sdk.subscribe("#ann")
        await refused(other, 103, "publish", room="#ann", data="to ann")
        await publish(server, "#ann", b'"to ann"')
        assert await sdk.data("#ann", 1) == ["to ann"]
        await nothing_came(sdk, "subscribed", "unsubscribed")


# -- rooms that the server subscribes a connection to


async def test_rooms_of_the_token(kind: str) -> None:
    """By `channels` and `subs`: the client's own events tell of them, with the room's data; then they are heard."""
    claims: dict[str, Any] = {"channels": ["a"], "subs": {"$b": {"data": {"topic": "bees"}, "info": "host"}}}
    async with open_server(**wire_settings(join_leave=True)) as server, open_sdks(kind, 2) as (sdk, other):
        name = await sdk.connect(server.port, token=token("ann", None, **claims))
        await other.connect(server.port, token=token("bob"))
        begun = {room: await sdk.event("subscribed", room=room, by_server=True) for room in ("a", "$b")}
        for event in begun.values():
            assert (event["recoverable"], event["positioned"]) == (True, True)
            assert (event["recovered"], event["was_recovering"]) == (False, False)
            assert event["position"]["offset"] == 0
            assert event["position"]["epoch"]
        assert "data" not in begun["a"]
        assert begun["$b"]["data"] == {"topic": "bees"}
        assert await sdk.do("presence", room="$b") == {name: {"client": name, "user": "ann", "room_info": "host"}}
        await other.subscribe("a")
        await other.do("publish", room="a", data="hello")
        heard = await sdk.event("publication", room="a", by_server=True)
        assert (heard["data"], heard["offset"], heard["info"]["user"]) == ("hello", 1, "bob")
        await sdk.do("publish", room="$b", data="to myself")
        assert (await sdk.event("publication", room="$b", by_server=True))["info"]["room_info"] == "host"
        # It is in it already; the SDKs have no way out of a room that the server has chosen.
        await refused(sdk, 105, "subscribe", room="a", options={})
        assert sdk.untaken("subscribed", "publication", "error") == []


async def test_rooms_of_the_token_are_recovered(kind: str) -> None:
    """Dropped, the SDK returns by itself and gets what it missed there, in order, once; then what follows."""
    async with open_server(**wire_settings()) as server, open_sdks(kind) as (sdk,):
        rooms = ("a", "b", "quiet")
        await sdk.connect(server.port, token=token("ann", channels=rooms))
        for room in rooms:
            await sdk.event("subscribed", room=room, by_server=True)
        expected: dict[str, list[tuple[str, int]]] = {room: [] for room in rooms}

        async def say(number: int) -> None:
            for room in ("a", "b"):
                await publish(server, room, f'"{room} {number}"'.encode())
                expected[room].append((f"{room} {number}", number))

        await say(1)
        for start in (2, 5):
            for room in ("a", "b"):
                await sdk.event("publication", room=room, by_server=True, offset=start - 1)
            drop(server)
            await sdk.event("connecting", code=3008)
            for room in rooms:
                await sdk.event("subscribing", room=room, by_server=True)
            await say(start)
            await say(start + 1)
            for room in rooms:
                begun = await sdk.event("subscribed", room=room, by_server=True)
                assert (begun["recovered"], begun["was_recovering"]) == (True, True)
                assert begun["position"]["offset"] == (start - 1 if room != "quiet" else 0)
            await say(start + 2)
        for room in ("a", "b"):
            await sdk.event("publication", room=room, offset=7)
        await nothing_came(sdk, "subscribed", "unsubscribed", "disconnected", "error")
        heard = [event for event in sdk.events if event["event"] == "publication"]
        for room in rooms:
            assert [(event["data"], event["offset"]) for event in heard if event["room"] == room] == expected[room]


async def test_room_of_the_token_whose_history_was_lost(kind: str) -> None:
    """3010, and the SDK returns: not recovered, another epoch, and it says so; live delivery goes on."""
    async with open_server(**wire_settings()) as server, open_sdks(kind) as (sdk,):
        await sdk.connect(server.port, retry_seconds=SOON_SECONDS, token=token("ann", channels=["lost"]))
        before = await sdk.event("subscribed", room="lost")
        await publish(server, "lost", b'"old"')
        assert await sdk.data("lost", 1) == ["old"]
        server.node.engine.forget("lost")
        await publish(server, "lost", b'"new"')
        await sdk.event("connecting", code=3010)
        begun = await sdk.event("subscribed", room="lost")
        assert (begun["recovered"], begun["was_recovering"]) == (False, True)
        assert begun["position"]["epoch"] != before["position"]["epoch"]
        await publish(server, "lost", b'"newer"')
        assert await sdk.data("lost", 1) == ["newer"]
        await nothing_came(sdk, "publication", "disconnected")


async def test_the_server_subscribes_and_unsubscribes(kind: str) -> None:
    """While connected; the client's own events tell of it, and say "unsubscribed" without a code."""
    async with open_server(**wire_settings()) as server, open_sdks(kind) as (sdk,):
        name = await sdk.connect(server.port, retry_seconds=SOON_SECONDS, token=token("ann"))
        assert isinstance(await admit(server, "room", data=b'{"topic":1}', info=b'"guest"'), Subscribed)
        begun = await sdk.event("subscribed", room="room", by_server=True)
        assert (begun["data"], begun["recoverable"], begun["positioned"]) == ({"topic": 1}, True, True)
        assert await sdk.do("presence", room="room") == {name: {"client": name, "user": "ann", "room_info": "guest"}}
        await publish(server, "room", b"1", tags={"from": "us"})
        heard = await sdk.event("publication", room="room", by_server=True)
        assert (heard["data"], heard["offset"], heard["tags"]) == (1, 1, {"from": "us"})
        await remove(server, await connection_of(server), "room")
        await sdk.event("unsubscribed", room="room", by_server=True)
        await publish(server, "room", b"2")

        # The token doesn't say so: what the server has done to a connection ends with it, and the SDK tells of it.
        await admit(server, "other")
        await sdk.event("subscribed", room="other", by_server=True)
        drop(server)
        await sdk.event("subscribing", room="other", by_server=True)
        await once_more(sdk)
        await sdk.event("unsubscribed", room="other", by_server=True)
        await publish(server, "other", b"3")
        await nothing_came(sdk, "subscribed", "publication", "unsubscribed", "error")


async def test_the_server_unsubscribes_from_a_room_of_the_clients_choice(kind: str) -> None:
    """With 2000: the SDK stays out of it, also after a reconnect, until the application wants in again."""
    async with open_server(**wire_settings()) as server, open_sdks(kind) as (sdk,):
        await sdk.connect(server.port, retry_seconds=SOON_SECONDS, token=token("ann"))
        await sdk.subscribe("room")
        await remove(server, await connection_of(server), "room")
        told = await sdk.event("unsubscribed", room="room", code=2000)
        assert told["reason"] == "server unsubscribe"
        drop(server)
        await once_more(sdk)
        await publish(server, "room", b"1")
        await nothing_came(sdk, "subscribed", "publication", "unsubscribed")
        assert (await sdk.subscribe("room"))["recovered"]  # from where it was
        assert await sdk.data("room", 1) == [1]


async def test_the_server_says_where_the_client_was(kind: str) -> None:
    """Then it hears what it has missed there, after it was told of the room, and what follows.

    In `publications` of such a push no SDK would look: what was missed must be publications of its own.
    """
    async with open_server(**wire_settings()) as server, open_sdks(kind) as (sdk,):
        await sdk.connect(server.port, token=token("ann"))
        first = await publish(server, "room", b"1")
        for data in (b"2", b"3"):
            await publish(server, "room", data)
        position = getattr(first, "position", None)
        assert isinstance(position, Position)
        answer = await admit(server, "room", since=position)
        assert isinstance(answer, Subscribed)
        await publish(server, "room", b"4")
        begun = await sdk.event("subscribed", room="room", by_server=True)
        assert begun["position"]["offset"] == 1
        assert await sdk.data("room", 3) == [2, 3, 4]
        told = [event["event"] for event in sdk.events if event.get("room") == "room"]
        assert told == ["subscribed"] + ["publication"] * 3


async def test_dismissed(kind: str) -> None:
    """By the protocol's rule: who gets 3500 to 3999 or 4500 to 4999 stays away, all others come back."""
    async with open_server(**wire_settings()) as server, open_sdks(kind) as (sdk,):
        connect = partial(sdk.connect, server.port, retry_seconds=SOON_SECONDS, token=token("ann"))
        for code in (3500, 3999, 4500, 4999):
            await connect()
            await sdk.event("connected")
            await dismiss(server, Disconnect(code, "go away"))
            assert (await sdk.event("disconnected"))["code"] == code
            await nothing_came(sdk, "connected")
        await connect()
        await sdk.event("connected")
        for code in (3000, 3499, 4000, 4123, 4499):
            await dismiss(server, Disconnect(code, "come back"))
            assert (await sdk.event("connecting", code=code))["reason"] == "come back"
            await sdk.event("connected")
        assert sdk.untaken("disconnected", "error") == []


async def test_dismissed_without_a_reason(kind: str) -> None:
    """Without a reason npm's would come back, whatever the code: so there is always one."""
    async with open_server(**wire_settings()) as server, open_sdks(kind) as (sdk,):
        await sdk.connect(server.port, retry_seconds=SOON_SECONDS, token=token("ann"))
        await sdk.event("connected")
        await dismiss(server, Disconnect(4500, ""))
        assert (await sdk.event("disconnected", code=4500))["reason"] == "force disconnect"
        await nothing_came(sdk, "connected")
