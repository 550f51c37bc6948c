"""The structured dialect as its real SDKs see it: npm's `centrifuge`, in Node and Chromium; `centrifuge-python`."""

import json
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import trio

from hubbub.config_types import Namespace
from hubbub.connection.connection import Connection
from hubbub.model.end import End
from peers import Peer, open_peer
from sdks.sdk import KINDS, Sdk, SdkError, command_of, open_sdks
from servers import Server, open_daemon, open_server

pytestmark = pytest.mark.no_cover  # twice as fast; other tests reach the same lines

LONGER_SECONDS = 1.5
"""How long clients stay away where something must be over before they come back."""
QUIET_SECONDS = 0.3
"""How long to wait for what must not come."""


async def echoed(peer: Peer, *texts: str) -> None:
    """Publish as a plain client; return when all of it is in the room."""
    for text in texts:
        await peer.send(text)
    assert await peer.receive_texts(len(texts)) == list(texts)


def drop(server: Server, keep: Iterable[Connection] = ()) -> None:
    """Evict everyone else, as if they were too slow."""
    for connection in set(server.node.connections) - set(keep):
        connection.end(End.SLOW_CONSUMER)


async def dropped(sdk: Sdk, room: str) -> None:
    """See that the SDK was told so, and is on its way back."""
    assert (await sdk.event("connecting", code=3008))["reason"]
    await sdk.event("subscribing", room=room, code=1)


async def refused(sdk: Sdk, code: int, name: str, **rest: object) -> None:
    """Do what is answered with that error."""
    with pytest.raises(SdkError) as error:
        await sdk.do(name, **rest)
    assert error.value.code == code


async def nothing_came(sdk: Sdk, *names: str) -> None:
    """See that no such event is there, nor comes soon."""
    await trio.sleep(QUIET_SECONDS)
    assert sdk.untaken(*names) == []


async def take_publications(sdk: Sdk, room: str, count: int) -> list[dict[str, Any]]:
    """Take the room's next publications."""
    return [await sdk.event("publication", room=room) for _ in range(count)]


async def test_two_clients_see_one_order(kind: str) -> None:
    """200 publications of two clients, of one each in a message of its own: both see the same, with offsets."""
    with open_daemon(history_size=200) as daemon:
        async with open_sdks(kind, 2) as sdks:
            names = [await sdk.connect(daemon.port) for sdk in sdks]
            assert len(set(names)) == 2
            for sdk in sdks:
                subscribed = await sdk.subscribe("order")
                assert (subscribed["recoverable"], subscribed["positioned"]) == (True, True)
                assert (subscribed["recovered"], subscribed["was_recovering"]) == (False, False)
                assert subscribed["position"]["offset"] == 0
                assert subscribed["position"]["epoch"]
            said = [[[index, number] for number in range(100)] for index in range(2)]
            async with trio.open_nursery() as nursery:
                for sdk, data, one_frame in zip(sdks, said, (False, True), strict=True):
                    publish = partial(sdk.do, "publish_many", room="order", data=data, one_frame=one_frame)
                    nursery.start_soon(publish)
            seen = [await take_publications(sdk, "order", 200) for sdk in sdks]
    assert [event["offset"] for event in seen[0]] == list(range(1, 201))
    plain = [[(event["offset"], event["data"], event["info"]) for event in events] for events in seen]
    assert plain[0] == plain[1]
    for index, name in enumerate(names):
        assert [event["data"] for event in seen[0] if event["info"] == {"client": name, "user": ""}] == said[index]


async def test_all_sdks_see_one_order() -> None:
    """Clients of all SDKs in one room: what they publish at once has one order."""
    for kind in KINDS:
        command_of(kind)
    async with (
        open_server(history_size=200) as server,
        open_sdks(KINDS[0]) as (one,),
        open_sdks(KINDS[1]) as (two,),
        open_sdks(KINDS[2]) as (three,),
    ):
        sdks = (one, two, three)
        for sdk in sdks:
            await sdk.connect(server.port)
            await sdk.subscribe("babel")
        async with trio.open_nursery() as nursery:
            for sdk in sdks:
                data = [f"{sdk.who}: {number}" for number in range(50)]
                nursery.start_soon(partial(sdk.do, "publish_many", room="babel", data=data))
        seen = [await sdk.data("babel", 150) for sdk in sdks]
        assert seen[0] == seen[1] == seen[2]
        assert len(set(seen[0])) == 150


async def test_any_json_comes_back(kind: str) -> None:
    """Whatever JSON is published arrives as it was, line breaks and all."""
    values: list[object] = [
        None,
        True,
        0,
        -1.5,
        2**53 - 1,
        "",
        'ü\n\r\u2028\u0000 🎉 </script> \\ "',
        [],
        {},
        [[], [None, [{}]]],
        {"": 1, "data": {"push": {"id": 1}}, "ключ": "line\nbreak"},
    ]
    async with open_server() as server, open_sdks(kind, 2) as (one, two):
        for sdk in (one, two):
            await sdk.connect(server.port)
            await sdk.subscribe("json")
        await one.do("publish_many", room="json", data=values)
        assert await two.data("json", len(values)) == values
        assert await one.data("json", len(values)) == values


async def test_publish_is_answered_with_a_position() -> None:
    """The reply has offset and epoch, which the SDKs don't expect; all other tests here show that they bear it."""
    async with open_server() as server, open_peer(server.port, "/connection/websocket") as peer:
        await peer.send('{"id":1,"connect":{}}')
        assert json.loads(str(await peer.receive()))["id"] == 1
        for offset in (1, 2):
            await peer.send('{"id":2,"publish":{"channel":"replies","data":0}}')
            position = json.loads(str(await peer.receive()))["publish"]
            assert position["offset"] == offset
            assert position["epoch"]


async def test_history(kind: str) -> None:
    """Limit, since and reverse; 0 is the position alone, -1 all of it."""
    async with open_server() as server, open_sdks(kind) as (sdk,):
        await sdk.connect(server.port)
        await sdk.subscribe("past")
        await sdk.do("publish_many", room="past", data=list("abcdefghij"))

        async def history(**options: object) -> str:
            result = await sdk.do("history", room="past", **options)
            assert (result["offset"], result["epoch"]) == (10, epoch)
            assert all(event["offset"] == ord(event["data"]) - ord("a") + 1 for event in result["publications"])
            return "".join(event["data"] for event in result["publications"])

        epoch = (await sdk.do("history", room="past", limit=0))["epoch"]
        assert epoch
        assert await history(limit=0) == ""
        assert await history() == ""
        assert await history(limit=-1) == "abcdefghij"
        assert await history(limit=3) == "abc"
        assert await history(limit=100) == "abcdefghij"
        assert await history(limit=3, reverse=True) == "jih"
        assert await history(limit=-1, reverse=True) == "jihgfedcba"
        assert await history(limit=3, since={"offset": 4, "epoch": epoch}) == "efg"
        assert await history(limit=-1, since={"offset": 8, "epoch": epoch}) == "ij"
        assert await history(limit=-1, since={"offset": 0, "epoch": epoch}) == "abcdefghij"
        assert await history(limit=-1, since={"offset": 10, "epoch": epoch}) == ""
        assert await history(limit=2, since={"offset": 4, "epoch": epoch}, reverse=True) == "cb"
        assert await history(limit=-1, since={"offset": 1, "epoch": epoch}, reverse=True) == ""


async def test_history_that_isnt_there(kind: str) -> None:
    """Another epoch, backwards from nothing, switched off, no such namespace: errors; an empty room has a position."""
    async with (
        open_server(namespaces={"none": Namespace(history_size=0)}) as server,
        open_sdks(kind) as (sdk,),
    ):
        await sdk.connect(server.port)
        empty = await sdk.do("history", room="empty", limit=-1)
        assert (empty["publications"], empty["offset"]) == ([], 0)
        assert empty["epoch"]
        await refused(sdk, 112, "history", room="empty", limit=1, since={"offset": 1, "epoch": "other"})
        since = {"offset": 0, "epoch": empty["epoch"]}
        await refused(sdk, 107, "history", room="empty", limit=1, since=since, reverse=True)
        await refused(sdk, 108, "history", room="none:such", limit=1)
        await refused(sdk, 102, "history", room="unheard:of", limit=1)


async def test_presence(kind: str) -> None:
    """Who is in a room, by client ID, and how many; where presence is switched off, an error."""
    async with (
        open_server(namespaces={"private": Namespace(presence=False)}) as server,
        open_sdks(kind, 2) as (one, two),
    ):
        names = {await sdk.connect(server.port) for sdk in (one, two)}
        for sdk in (one, two):
            await sdk.subscribe("here")
            await sdk.subscribe("private:here")
        present = await one.do("presence", room="here")
        assert present == {name: {"client": name, "user": ""} for name in names}
        assert await one.do("presence_stats", room="here") == {"clients": 2, "users": 1}
        await two.do("disconnect")
        await two.event("disconnected", code=0)
        with trio.fail_after(5):
            while (await one.do("presence_stats", room="here"))["clients"] != 1:
                await trio.sleep(0.01)
        assert len(await one.do("presence", room="here")) == 1
        assert await one.do("presence", room="nobody") == {}
        assert await one.do("presence_stats", room="nobody") == {"clients": 0, "users": 0}
        await refused(one, 108, "presence", room="private:here")
        await refused(one, 108, "presence_stats", room="private:here")


async def test_joins_and_leaves(kind: str) -> None:
    """In a room of that kind everyone is told: of itself when it joins, not when it leaves."""
    talk = Namespace(join_leave=True, force_join_leave=True)
    async with open_server(namespaces={"talk": talk}) as server, open_sdks(kind, 2) as (one, two):
        first, second = [await sdk.connect(server.port) for sdk in (one, two)]
        await one.subscribe("talk:all")
        assert (await one.event("join", room="talk:all"))["client"] == first
        await two.subscribe("talk:all")
        for sdk in (one, two):
            joined = await sdk.event("join", room="talk:all")
            assert (joined["client"], joined["user"]) == (second, "")
        await two.do("unsubscribe", room="talk:all")
        assert (await one.event("leave", room="talk:all"))["client"] == second
        await two.subscribe("talk:all")
        assert (await one.event("join", room="talk:all"))["client"] == second
        await two.do("disconnect")
        assert (await one.event("leave", room="talk:all"))["client"] == second
        await nothing_came(one, "join", "leave")
        assert two.untaken("leave") == []


async def test_joins_are_for_those_who_ask(kind: str) -> None:
    """Where they aren't forced, who asks for joins and leaves gets them; without a namespace for it, nobody does."""
    async with (
        open_server(namespaces={"talk": Namespace(join_leave=True)}) as server,
        open_sdks(kind, 2) as (curious, calm),
    ):
        for sdk in (curious, calm):
            await sdk.connect(server.port)
        for room in ("talk:some", "silent"):
            await curious.subscribe(room, joinLeave=True)
            await calm.subscribe(room)
            await calm.do("unsubscribe", room=room)
        await curious.event("join", room="talk:some")
        await curious.event("join", room="talk:some")
        await curious.event("leave", room="talk:some")
        await nothing_came(curious, "join", "leave")
        assert calm.untaken("join", "leave") == []


async def test_unsubscribe_and_subscribe_again(kind: str) -> None:
    """Out of the room nothing comes; back in it, what was missed comes first. A new subscription begins anew."""
    async with (
        open_server() as server,
        open_peer(server.port, "/chat/door") as plain,
        open_sdks(kind) as (sdk,),
    ):
        await sdk.connect(server.port)
        await sdk.subscribe("door")
        await echoed(plain, "one")
        assert await sdk.data("door", 1) == ["one"]
        await sdk.do("unsubscribe", room="door")
        await sdk.event("unsubscribed", room="door", code=0)
        await sdk.do("presence", room="door")  # a reply: the server has carried it out
        await echoed(plain, "two", "three")
        await nothing_came(sdk, "publication")
        subscribed = await sdk.subscribe("door")
        assert (subscribed["recovered"], subscribed["was_recovering"]) == (True, True)
        await echoed(plain, "four")
        assert await sdk.data("door", 3) == ["two", "three", "four"]
        await sdk.do("unsubscribe", room="door")
        await sdk.do("remove", room="door")
        await sdk.do("presence", room="door")
        await echoed(plain, "five")
        subscribed = await sdk.subscribe("door")
        assert (subscribed["recovered"], subscribed["was_recovering"]) == (False, False)
        await echoed(plain, "six")
        assert await sdk.data("door", 1) == ["six"]


async def test_what_isnt_possible(kind: str) -> None:
    """An RPC without anything to answer it, rooms that can't be: errors, and the connection goes on."""
    async with open_server() as server, open_sdks(kind) as (sdk,):
        await sdk.connect(server.port)
        await refused(sdk, 108, "rpc", method="sum", data=[1, 2])
        await refused(sdk, 102, "subscribe", room="unheard:of", options={})
        await sdk.event("unsubscribed", room="unheard:of", code=102)
        await refused(sdk, 107, "subscribe", room="x" * 256, options={})
        await refused(sdk, 102, "publish", room="unheard:of", data=0)
        await sdk.subscribe("fine")
        await sdk.do("publish", room="fine", data="still here")
        assert await sdk.data("fine", 1) == ["still here"]
        assert sdk.untaken("disconnected", "error") == []


async def test_rooms_without_history_have_no_position(kind: str) -> None:
    """Publications come without offsets; after a drop the client is subscribed again, and nothing is promised."""
    async with (
        open_server(namespaces={"now": Namespace(history_size=0)}) as server,
        open_sdks(kind) as (sdk,),
    ):
        await sdk.connect(server.port)
        subscribed = await sdk.subscribe("now:here")
        assert (subscribed["recoverable"], subscribed["positioned"]) == (False, False)
        for number in range(2):
            await sdk.do("publish", room="now:here", data=number)
            publication = await sdk.event("publication", room="now:here")
            assert publication["data"] == number
            assert "offset" not in publication
            if number == 0:
                drop(server)
                await dropped(sdk, "now:here")
                subscribed = await sdk.event("subscribed", room="now:here")
                assert (subscribed["recovered"], subscribed["was_recovering"]) == (False, False)


async def test_pings_are_answered(kind: str) -> None:
    """Server and client hear enough of each other to stay together when nothing else is said."""
    async with (
        open_server(ping_seconds=1.0, pong_seconds_max=1.0) as server,
        open_sdks(kind) as (sdk,),
    ):
        await sdk.connect(server.port)
        await sdk.subscribe("calm")
        await trio.sleep(3.5)
        await sdk.do("publish", room="calm", data="after all that time")
        assert await sdk.data("calm", 1) == ["after all that time"]
        await sdk.event("connecting", code=0)
        assert sdk.untaken("connecting", "disconnected", "error") == []


async def test_exactly_what_was_missed(kind: str) -> None:
    """Dropped with 3008, the SDK returns by itself and gets what it missed, in order, once; then what follows."""
    async with (
        open_server() as server,
        open_peer(server.port, "/chat/exact") as plain,
        open_sdks(kind, 2) as (sdk, other),
    ):
        keep = set(server.node.connections)
        await sdk.connect(server.port)
        await sdk.subscribe("exact")
        await echoed(plain, "1", "2")
        assert await sdk.data("exact", 2) == ["1", "2"]
        for start in (3, 9):
            drop(server, keep)
            await dropped(sdk, "exact")
            await echoed(plain, *map(str, range(start, start + 5)))
            subscribed = await sdk.event("subscribed", room="exact")
            assert (subscribed["recovered"], subscribed["was_recovering"]) == (True, True)
            assert subscribed["position"]["offset"] == start - 1  # where it was, not the top
            if start == 3:
                await other.connect(server.port)
                await other.do("publish", room="exact", data="8")
                assert await plain.receive() == "8"
            else:
                await echoed(plain, "14")
            seen = await take_publications(sdk, "exact", 6)
            assert [(event["data"], event["offset"]) for event in seen] == [
                (str(n), n) for n in range(start, start + 6)
            ]
        await nothing_came(sdk, "publication")


async def test_nothing_was_missed(kind: str) -> None:
    """Also from the very beginning of a room, where the SDKs' position is 0: recovered, with nothing or with all."""
    async with (
        open_server() as server,
        open_peer(server.port, "/chat/new") as plain,
        open_sdks(kind) as (sdk,),
    ):
        keep = set(server.node.connections)
        await sdk.connect(server.port)
        await sdk.subscribe("new")
        for missed in ([], ["1", "2"], []):
            drop(server, keep)
            await dropped(sdk, "new")
            await echoed(plain, *missed)
            subscribed = await sdk.event("subscribed", room="new")
            assert (subscribed["recovered"], subscribed["was_recovering"]) == (True, True)
            assert await sdk.data("new", len(missed)) == missed
        await echoed(plain, "3")
        assert await sdk.data("new", 1) == ["3"]


async def test_dropped_again_and_again_in_the_middle_of_it(kind: str) -> None:
    """Whenever it is dropped while others go on talking: no gap, no double, no disorder."""
    count = 600
    async with (
        open_server(history_size=count, recovery_publications_max=count) as server,
        open_peer(server.port, "/chat/busy") as plain,
        open_sdks(kind) as (sdk,),
    ):
        keep = set(server.node.connections)
        await sdk.connect(server.port, retry_seconds=0.05)
        await sdk.subscribe("busy")
        for number in range(count):
            await plain.send(str(number))
            if number % 150 == 75:
                drop(server, keep)
            await trio.sleep(0.002)
        await plain.receive_texts(count)
        assert await sdk.data("busy", count) == [str(number) for number in range(count)]
        await nothing_came(sdk, "publication")
        back = sdk.untaken("subscribed")
        assert back
        assert all(event["recovered"] for event in back)


async def test_many_rooms_are_recovered_at_once(kind: str) -> None:
    """A client of a hundred rooms comes back to all of them, and misses nothing in any."""
    rooms = [f"room-{number}" for number in range(100)]
    async with (
        open_server() as server,
        open_sdks(kind, 2) as (sdk, other),
    ):
        await other.connect(server.port)
        keep = set(server.node.connections)
        await sdk.connect(server.port, retry_seconds=LONGER_SECONDS)
        for room in rooms:
            await sdk.subscribe(room)
        drop(server, keep)
        await sdk.event("connecting", code=3008)
        for room in rooms:
            await other.do("publish", room=room, data=f"in {room}")
        for room in rooms:
            subscribed = await sdk.event("subscribed", room=room)
            assert (subscribed["recovered"], subscribed["was_recovering"]) == (True, True)
            assert await sdk.data(room, 1) == [f"in {room}"]


async def test_more_was_missed_than_is_kept(kind: str) -> None:
    """The SDK is told that it isn't recovered, gets none of it, and hears what follows."""
    async with (
        open_server(namespaces={"short": Namespace(history_size=2)}) as server,
        open_peer(server.port, "/chat/short:memory") as plain,
        open_sdks(kind) as (sdk,),
    ):
        keep = set(server.node.connections)
        await sdk.connect(server.port)
        await sdk.subscribe("short:memory")
        await echoed(plain, "seen")
        assert await sdk.data("short:memory", 1) == ["seen"]
        drop(server, keep)
        await dropped(sdk, "short:memory")
        await echoed(plain, *"abcde")
        subscribed = await sdk.event("subscribed", room="short:memory")
        assert (subscribed["recovered"], subscribed["was_recovering"]) == (False, True)
        assert subscribed["position"]["offset"] == 6
        await echoed(plain, "live")
        assert await sdk.data("short:memory", 1) == ["live"]
        drop(server, keep)
        await dropped(sdk, "short:memory")
        await echoed(plain, "y", "z")  # as much as is kept
        assert (await sdk.event("subscribed", room="short:memory"))["recovered"] is True
        assert await sdk.data("short:memory", 2) == ["y", "z"]


async def test_the_history_was_lost(kind: str) -> None:
    """Another epoch with the very same offset: not recovered, and live delivery goes on."""
    async with open_server() as server, open_sdks(kind) as (sdk,):
        await sdk.connect(server.port, retry_seconds=LONGER_SECONDS)
        before = await sdk.subscribe("lost")
        await sdk.do("publish_many", room="lost", data=["old 1", "old 2"])
        assert await sdk.data("lost", 2) == ["old 1", "old 2"]
        drop(server)
        await dropped(sdk, "lost")
        with trio.fail_after(5):
            while server.node.hub.statistics().rooms:
                await trio.sleep(0.01)
        server.node.engine.forget("lost")
        async with open_peer(server.port, "/chat/lost") as plain:
            await echoed(plain, "new 1", "new 2")
            subscribed = await sdk.event("subscribed", room="lost")
            assert (subscribed["recovered"], subscribed["was_recovering"]) == (False, True)
            assert subscribed["position"]["offset"] == 2
            assert subscribed["position"]["epoch"] != before["position"]["epoch"]
            await echoed(plain, "new 3")
            assert await sdk.data("lost", 1) == ["new 3"]


async def test_an_application_that_keeps_its_position(kind: str) -> None:
    """A new client that names where it was gets what came since, as after a drop."""
    async with open_server() as server, open_sdks(kind, 2) as (one, two):
        await one.connect(server.port)
        epoch = (await one.subscribe("kept"))["position"]["epoch"]
        await one.do("publish_many", room="kept", data=list("abcde"))
        await two.connect(server.port)
        subscribed = await two.subscribe("kept", since={"offset": 3, "epoch": epoch})
        assert (subscribed["recovered"], subscribed["was_recovering"]) == (True, True)
        await one.do("publish", room="kept", data="f")
        assert await two.data("kept", 3) == ["d", "e", "f"]


async def test_an_application_that_loads_its_state(kind: str) -> None:
    """With the SDKs' getState a position that can't be recovered is error 112: the SDK asks the application again."""
    async with open_server() as server, open_sdks(kind, 2) as (one, two):
        await one.connect(server.port)
        epoch = (await one.subscribe("state"))["position"]["epoch"]
        await one.do("publish_many", room="state", data=list("abcde"))
        await two.connect(server.port)
        states = [{"offset": 4, "epoch": "another"}, {"offset": 4, "epoch": epoch}]
        subscribed = await two.subscribe("state", states=states)
        assert (subscribed["recovered"], subscribed["was_recovering"]) == (True, True)
        assert len(two.untaken("state_asked")) == 2
        assert two.untaken("unsubscribed", "error") == []
        assert await two.data("state", 1) == ["e"]


async def test_plain_and_structured_clients_in_one_room(kind: str) -> None:
    """Text and JSON strings are the same; other JSON is compact text for plain clients; bytes are {"b64": …}."""
    async with (
        open_server() as server,
        open_peer(server.port, "/chat/mixed") as plain,
        open_sdks(kind) as (sdk,),
    ):
        await sdk.connect(server.port)
        await sdk.subscribe("mixed")
        texts = ["hello", "", "wörld 🎉\nsecond line", '{"a": 1}', '"quoted"', "null"]
        await echoed(plain, *texts)
        assert await sdk.data("mixed", len(texts)) == texts
        for data in (b"\x00\xff\xfe", b""):
            await plain.send_frame(2, data)
            assert await plain.receive() == data
        assert await sdk.data("mixed", 2) == [{"b64": "AP/+"}, {"b64": ""}]
        await sdk.do("publish_many", room="mixed", data=texts)
        assert await plain.receive_texts(len(texts)) == texts
        values = [{"a": [1, None, True], "b": {"c": "d e"}}, [1, 2], 1, True, None]
        await sdk.do("publish_many", room="mixed", data=values)
        assert await plain.receive_texts(len(values)) == [
            '{"a":[1,null,true],"b":{"c":"d e"}}',
            "[1,2]",
            "1",
            "true",
            "null",
        ]
        history = await sdk.do("history", room="mixed", limit=-1)
        expected = [*texts, {"b64": "AP/+"}, {"b64": ""}, *texts, *values]
        assert [event["data"] for event in history["publications"]] == expected


async def test_it_comes_back_after_a_restart(kind: str) -> None:
    """SIGTERM is 3001 to the SDKs: they come back to the next server on that port, which remembers nothing."""
    async with open_sdks(kind) as (sdk,):
        with open_daemon() as daemon:
            port = daemon.port
            await sdk.connect(port)
            await sdk.subscribe("again")
            await sdk.do("publish", room="again", data="before")
            assert await sdk.data("again", 1) == ["before"]
        assert (await sdk.event("connecting", code=3001))["reason"]
        with open_daemon("--port", str(port)):
            await sdk.event("connected")
            await sdk.event("connected")
            subscribed = await sdk.event("subscribed", room="again")
            assert (subscribed["recovered"], subscribed["was_recovering"]) == (False, True)
            await sdk.do("publish", room="again", data="after")
            assert await sdk.data("again", 1) == ["after"]
            await sdk.do("disconnect")
            await sdk.event("disconnected", code=0)
