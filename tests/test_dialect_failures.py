"""What random lives don't meet: an engine that loses a room, or fails; and what they found, by example."""

import pytest

from dialect_driver import Client, Driver, Json, PlainClient, essence, small_settings
from hubbub.core.frames import TEXT
from hubbub.model.end import End


def two_rooms() -> tuple[Driver, Client, PlainClient, Client]:
    """Return a hub; ann in `north` and `loud:1`, where something was said; a plain client in `north`; bob, outside."""
    driver = Driver(small_settings())
    ann, bob, plain = driver.connect("ann"), driver.connect("bob"), driver.connect_plain("north")
    for room in ("north", "loud:1"):
        ann.ask("subscribe", channel=room)
        bob.ask("publish", channel=room, data="first")
    driver.open_plain(plain)
    driver.carry_out_all(ann)
    driver.carry_out_all(bob)
    ann.wire, bob.wire, plain.wire = [], [], []
    return driver, ann, plain, bob


def publish_in_both(driver: Driver, bob: Client) -> list[Json]:
    """Let bob speak in both rooms; return what he reads, without errors' texts."""
    for room in ("north", "loud:1"):
        bob.ask("publish", channel=room, data="second")
    driver.carry_out_all(bob)
    return [essence(item) for item in bob.wire]


def unsubscribed(code: int, reason: str) -> Json:
    return {"push": {"channel": "north", "unsubscribe": {"code": code, "reason": reason}}}


def comes_back(driver: Driver, client: Client, epoch: str) -> Json:
    """Let the client subscribe to `north` again from that epoch's first publication; return what it is told."""
    client.wire = []
    asked = client.ask("subscribe", channel="north", recover=True, epoch=epoch, offset=1)
    driver.carry_out_all(client)
    reply = client.wire[0]
    assert reply["id"] == asked["id"]
    result: Json = reply["subscribe"]
    return result


def test_a_gap_ends_the_subscription_not_the_room() -> None:
    """P2: nobody is told what doesn't follow; who comes back isn't told that it has missed nothing (P5)."""
    driver, ann, plain, bob = two_rooms()
    old = driver.engine.read("north", 0.0).position.epoch
    driver.engine.forget("north")
    acks = publish_in_both(driver, bob)
    new = driver.engine.read("north", 0.0).position.epoch
    assert [ack["publish"]["offset"] for ack in acks] == [1, 2]
    assert ann.wire[0] == unsubscribed(2500, "insufficient state")
    assert [item["push"]["channel"] for item in ann.wire[1:]] == ["loud:1"]
    assert (plain.wire, plain.ended) == ([], End.ROOM_ENDED)
    assert driver.rooms.occupancy("north") == 0
    result = comes_back(driver, ann, old)
    told = {"recoverable": True, "positioned": True, "epoch": new, "offset": 1, "was_recovering": True}
    assert result == told
    publish_in_both(driver, bob)
    assert ann.wire[-2]["push"]["pub"]["offset"] == 2


@pytest.mark.parametrize("heard", [False, True])
def test_a_gap_at_once(heard: bool) -> None:
    """P2: also where nothing was handed out since the subscription, or something that follows in the same piece."""
    driver = Driver(small_settings())
    ann, bob = driver.connect("ann"), driver.connect("bob")
    bob.ask("publish", channel="north", data=1)
    driver.carry_out_all(bob)
    ann.ask("subscribe", channel="north")
    driver.carry_out_all(ann)
    ann.wire = []
    for _ in range(2):
        bob.ask("publish", channel="north", data=2)
    first, second = bob.send()
    if heard:
        driver.carry_out(first[0])
    driver.engine.forget("north")
    driver.carry_out(second[0])
    driver.hand_out_all()
    assert ann.wire[-1] == unsubscribed(2500, "insufficient state")
    assert all(item["push"]["pub"]["offset"] == 2 for item in ann.wire[:-1])


def test_a_failing_room_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2, P8: who is there is told, who published is told, the other room goes on; then the room begins anew."""
    driver, ann, plain, bob = two_rooms()
    old, append = driver.engine.read("north", 0.0).position.epoch, driver.engine.append

    def fail(room: str, *others: object) -> object:
        if room == "north":
            raise RuntimeError
        return append(room, *others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(driver.engine, "append", fail)
        refused, accepted = publish_in_both(driver, bob)
    assert refused["error"] == 100
    assert accepted["publish"]["offset"] == 2
    assert ann.wire[0] == unsubscribed(2502, "state invalidated")
    assert [item["push"]["channel"] for item in ann.wire[1:]] == ["loud:1"]
    assert (plain.wire, plain.ended) == ([], End.ROOM_ENDED)
    result = comes_back(driver, ann, old)
    assert "recovered" not in result
    assert (result["epoch"] != old, result["offset"]) == (True, 0)
    publish_in_both(driver, bob)
    assert ann.wire[-2]["push"]["pub"]["offset"] == 1


@pytest.mark.parametrize("room", ["north", "mute:1"])
def test_a_repeat_is_answered_as_the_first(room: str) -> None:
    """P6: word for word, also where there are no positions."""
    driver = Driver(small_settings())
    ann = driver.connect("ann")
    for _ in range(2):
        ann.ask("publish", channel=room, data=1, idempotency_key="key")
    driver.carry_out_all(ann)
    _, first, second = ann.wire
    assert first["publish"] == second["publish"]


def test_plain_clients_stay_where_joins_are_told_to_everyone() -> None:
    """P8: they have no words for joins, so they aren't told."""
    driver = Driver(small_settings())
    plain, ann = driver.connect_plain("loud:1"), driver.connect("ann")
    driver.open_plain(plain)
    ann.ask("subscribe", channel="loud:1")
    ann.ask("publish", channel="loud:1", data="hello")
    driver.carry_out_all(ann)
    assert (plain.wire, plain.ended) == ([(TEXT, b"hello")], None)


def test_the_push_comes_before_the_ack_also_of_who_errs() -> None:
    """P4: what ends the connection makes its replies leave at once, and what goes before them."""
    driver, ann, _, _ = two_rooms()
    ann.ask("publish", channel="loud:1", data="mine")
    ann.ask("connect")
    driver.carry_out_all(ann)
    assert ann.ended is End.BAD_REQUEST
    assert [next(iter(item)) for item in ann.wire] == ["push", "id"]
