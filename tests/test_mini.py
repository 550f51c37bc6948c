"""mini.py, rung by rung: each piece of its design has a scenario that fails without the piece."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub import mini
from mini_rungs import SOURCE, Client, EndedError, all_tasks, in_hub, leaves, open_room, variant

Scenario = Callable[[ModuleType], Awaitable[None]]
PATIENCE = 20  # seconds for what must happen
IMPATIENCE = 1  # seconds for what never does


async def passes(scenario: Scenario, module: ModuleType = mini) -> None:
    with trio.fail_after(PATIENCE):
        await scenario(module)


async def failure(scenario: Scenario, module: ModuleType, patience: float = PATIENCE) -> list[BaseException]:
    """How the scenario fails over this module: every exception it ends with."""
    try:
        with trio.fail_after(patience):
            await scenario(module)
    except Exception as error:
        return list(leaves(error))
    pytest.fail(f"{module.__name__} passes, so this rung carries nothing")


def numbered(count: int, name: str = "line") -> list[bytes]:
    return [f"{name} {number}".encode() for number in range(count)]


def as_sent(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


async def read_all(clients: list[Client], count: int) -> list[list[bytes]]:
    """What each client reads, while all of them read."""
    got: list[list[bytes]] = [[] for _ in clients]

    async def read(index: int) -> None:
        got[index] = await clients[index].lines(count)

    async with trio.open_nursery() as nursery:
        for index in range(len(clients)):
            nursery.start_soon(read, index)
    return got


# --- rung 1: the writer takes all that waits


async def a_flood_reaches_everyone(module: ModuleType) -> None:
    """2000 lines in one go; the publisher and a reader, both as quick as can be, get each of them."""
    flood = numbered(2000)
    async with open_room(module) as room:
        publisher, reader = clients = await room.join_all(2)
        await publisher.send(as_sent(flood))
        assert await read_all([publisher, reader], len(flood)) == [flood, flood]
        assert len(in_hub("subscribers")) == len(clients)


async def test_rung_1_batches_in_the_writer() -> None:
    one_line_a_send = variant(
        batches=(
            "[waiting.receive_nowait() for _ in range(waiting.statistics().current_buffer_used)]",
            "list[bytes]()",
        )
    )
    await passes(a_flood_reaches_everyone)
    errors = await failure(a_flood_reaches_everyone, one_line_a_send)
    # Two checkpoints a line (one to receive, one to send) lose against the hub task's one: the outbox fills.
    assert {type(error) for error in errors} == {EndedError}
    for error in errors:
        [lines_read] = re.findall(r"after (\d+) lines", str(error))
        assert int(lines_read) < 1000


# --- rung 2: the reader waits after each line


async def a_bystander_gets_a_word_in(module: ModuleType) -> None:
    """One client pastes 5000 lines; another one, at the first of them, says a line. It comes in between."""
    paste = [b"%d" % number for number in range(5000)]  # 24 kB: one chunk for the reader
    async with open_room(module) as room:
        publisher, bystander = await room.join_all(2)

        async def speak() -> None:
            first = await bystander.line()
            await bystander.send(b"me too\n")
            assert first == paste[0]
            before = await bystander.until(b"me too")
            assert len(before) < len(paste) / 2, f"{len(before)} lines came first"
            assert [first, *before, *await bystander.lines(len(paste) - 1 - len(before))] == paste

        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak)
            nursery.start_soon(publisher.lines, len(paste) + 1)
            await publisher.send(as_sent(paste))


NO_WAIT = ('await to_hub.send(line + b"\\n")', 'to_hub.send_nowait(line + b"\\n")')
NO_BOUND = ("[bytes | Subscriber](WAITING)", '[bytes | Subscriber](float("inf"))')


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
async def test_rung_2_waits_in_the_reader() -> None:
    await passes(a_bystander_gets_a_word_in)
    # Without waiting, the 65th line of a chunk finds the hub's memory channel full.
    errors = await failure(a_bystander_gets_a_word_in, variant(wait=NO_WAIT))
    assert {type(error) for error in errors} <= {trio.WouldBlock, EndedError}
    # Without its bound too, nothing breaks, but the whole paste goes first.
    errors = await failure(a_bystander_gets_a_word_in, variant(wait=NO_WAIT, bound=NO_BOUND))
    assert [str(error).partition("\n")[0] for error in errors] == ["4999 lines came first"]


# --- rung 3: the fan-out expects that a client has just left


async def a_client_leaves_in_a_flood(module: ModuleType) -> None:
    """Two publish 1000 lines each; a third client leaves after 100. The two get everything."""
    async with open_room(module) as room:
        *publishers, leaver = await room.join_all(3)

        async def leave() -> None:
            await leaver.lines(100)
            await leaver.stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            for publisher in publishers:
                nursery.start_soon(publisher.send, as_sent(numbered(1000)))
            one, other = await read_all(publishers, 2000)
        assert one == other
        assert sorted(one) == sorted(numbered(1000) * 2)


async def test_rung_3_survives_who_leaves() -> None:
    only_full = variant(
        broken_expected=("except (trio.WouldBlock, trio.BrokenResourceError):", "except trio.WouldBlock:")
    )
    await passes(a_client_leaves_in_a_flood)
    errors = await failure(a_client_leaves_in_a_flood, only_full)  # the hub task dies, and the room with it
    assert trio.BrokenResourceError in {type(error) for error in errors}
    assert {type(error) for error in errors} <= {trio.BrokenResourceError, EndedError}


# --- rung 4: the fan-out never waits; who makes it wait is evicted


async def a_client_stops_reading(module: ModuleType, patience: float = PATIENCE) -> None:
    """12 MB go through a room in which one client reads nothing: it is evicted, the others get every line."""
    lines = [line.ljust(4000, b".") for line in numbered(3000)]
    async with open_room(module) as room:
        stalled = await room.join(receive_buffer=4096)
        publisher, reader = await room.join_all(2)
        for start in range(0, len(lines), 15):  # in step: no more than 15 lines are ever on their way
            some = lines[start : start + 15]
            with trio.fail_after(patience):
                await publisher.send(as_sent(some))
                assert await read_all([publisher, reader], len(some)) == [some, some]
        assert len(in_hub("subscribers")) == 2, "the slow consumer is still there"
        # What it did get is what was said, up to where it was evicted: nothing is missing in between.
        got = [line for line in await stalled.until_gone() if line.startswith(b"line ")]
        assert 0 < len(got) < len(lines)
        assert got == lines[: len(got)]


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
async def test_rung_4_never_waits_in_the_fan_out() -> None:
    await passes(a_client_stops_reading)
    patient_hub = variant(nowait=("outbox.send_nowait(item)", "await outbox.send(item)"))
    errors = await failure(partial(a_client_stops_reading, patience=IMPATIENCE), patient_hub)
    assert {type(error) for error in errors} == {trio.TooSlowError}


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
async def test_rung_5_evicts_by_cancelling() -> None:
    # To drop the line only, or to close the outbox only, does not reach a writer that waits on TCP.
    evict = "scope.cancel()  # evict the slow consumer"
    drop_line = variant(evict=(evict, "pass  #"))
    close_outbox = variant(
        evict=(evict, "outbox.close()  #"),
        closed_expected=("(trio.WouldBlock, trio.Br", "(trio.WouldBlock, trio.ClosedResourceError, trio.Br"),
    )
    for module in (drop_line, close_outbox):
        errors = await failure(a_client_stops_reading, module)
        assert [str(error).partition("\n")[0] for error in errors] == ["the slow consumer is still there"]


# --- rung 6: backpressure, from the hub's memory channel to the publishers' TCP


async def ten_publishers_flood(module: ModuleType) -> None:
    """However fast ten publishers are, no more than 64 of their lines wait for the hub task."""
    async with open_room(module) as room:
        publishers = await room.join_all(10)
        async with trio.open_nursery() as nursery:
            for publisher in publishers:
                nursery.start_soon(publisher.send, as_sent(numbered(200)))
            for publisher in publishers[1:]:
                nursery.start_soon(publisher.lines, 2000)
            backlog = 0
            for _ in range(2000):
                await publishers[0].line()
                backlog = max(backlog, in_hub("inbox").statistics().current_buffer_used)
        assert backlog <= 64, f"{backlog} lines waited"


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
async def test_rung_6_bounds_what_waits_for_the_hub_task() -> None:
    await passes(ten_publishers_flood)
    [error] = await failure(ten_publishers_flood, variant(bound=NO_BOUND))
    [backlog] = re.findall(r"^(\d+) lines waited", str(error))
    assert int(backlog) > 500


# --- rung 7: who goes leaves nothing behind


async def clients_come_and_go(module: ModuleType) -> None:
    """Five ways to go, in the middle of a flood: with all gone, the server is as it was before."""
    async with open_room(module) as room:
        tasks_before = len(all_tasks())
        clients = await room.join_all(5)
        assert len(in_hub("subscribers")) == 5
        assert len(all_tasks()) == tasks_before + 2 * 5  # connection and writer
        await clients[0].send(as_sent(numbered(2000)))
        for client in clients:
            await client.lines(10)
        await clients[1].send(b"half a li")
        await clients[2].stream.send_eof()
        clients[3].reset()
        await clients[4].send(b"x" * (mini.LONGEST + 1))
        for client in (clients[0], clients[1]):
            await client.stream.aclose()
        while in_hub("subscribers") or len(all_tasks()) > tasks_before:
            await trio.lowlevel.checkpoint()
        assert len(all_tasks()) == tasks_before


async def test_rung_7_leaves_nothing_behind() -> None:
    await passes(clients_come_and_go)
    no_goodbye = variant(leave=("await to_hub.send(me)  # however", "pass  # however"))
    errors = await failure(clients_come_and_go, no_goodbye, patience=IMPATIENCE)
    assert {type(error) for error in errors} == {trio.TooSlowError}


# --- rung 8: a line has a bound


@pytest.mark.parametrize("end", [b"\n", b""])
async def test_rung_8_bounds_a_line(end: bytes) -> None:
    async def a_line_is_too_long(module: ModuleType) -> None:
        async with open_room(module) as room:
            talker, listener = await room.join_all(2)
            longest = b"x" * mini.LONGEST
            await talker.send(longest + b"\n")
            assert await read_all([talker, listener], 1) == [[longest], [longest]]
            await talker.send(b"y" + longest + end)
            assert await talker.until_gone() == []
            await listener.send(b"still here\n")
            assert await listener.line() == b"still here"

    await passes(a_line_is_too_long)
    no_bound = variant(length=("> LONGEST", "> 1_000_000_000"))
    errors = await failure(a_line_is_too_long, no_bound, patience=IMPATIENCE)
    assert {type(error) for error in errors} == {trio.TooSlowError}


# --- one order for everyone


async def test_everyone_sees_one_order() -> None:
    with trio.fail_after(PATIENCE):
        async with open_room(mini) as room:
            clients = await room.join_all(30)  # 10 publish, 20 listen; all of them see everything
            said = [numbered(50, name=f"publisher {index}:") for index in range(10)]
            async with trio.open_nursery() as nursery:
                for publisher, lines in zip(clients, said, strict=False):
                    nursery.start_soon(publisher.send, as_sent(lines))
                one, *others = await read_all(clients, 10 * 50)
    assert all(other == one for other in others)
    for lines in said:
        assert [line for line in one if line in set(lines)] == lines


text = st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"\r"))


@settings(max_examples=25, deadline=None)
@given(
    said=st.lists(st.lists(text, max_size=8), min_size=1, max_size=4),
    listeners=st.integers(0, 3),
    cuts=st.lists(st.integers(1, 15), min_size=1, max_size=6),
)
def test_order_holds_however_lines_are_cut(said: list[list[bytes]], listeners: int, cuts: list[int]) -> None:
    said = [[b"%d says %s" % (index, line) for line in lines] for index, lines in enumerate(said)]
    total = sum(map(len, said))

    async def publish(client: Client, data: bytes) -> None:
        turn = 0
        while data:
            cut = cuts[turn % len(cuts)]
            await client.send(data[:cut])  # with a checkpoint: the others send in between
            data = data[cut:]
            turn += 1

    async def scenario() -> None:
        with trio.fail_after(PATIENCE):
            async with open_room(mini) as room:
                clients = await room.join_all(len(said) + listeners)
                async with trio.open_nursery() as nursery:
                    for client, lines in zip(clients, said, strict=False):
                        nursery.start_soon(publish, client, as_sent(lines))
                    one, *others = await read_all(clients, total)
                assert all(other == one for other in others)
                for index, lines in enumerate(said):
                    assert [line for line in one if line.startswith(b"%d says" % index)] == lines

    trio.run(scenario)


# --- the program


@contextmanager
def sigint_reaches_children() -> Iterator[None]:
    """A shell that runs the tests in the background has them ignore SIGINT, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


async def test_the_program_chats_and_ends_on_ctrl_c() -> None:
    command = [sys.executable, "-W", "error", "-m", "hubbub.mini", "0"]
    with trio.fail_after(PATIENCE), sigint_reaches_children():
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            said = b""
            while b"\n" not in said:
                chunk = await process.stdout.receive_some()
                assert chunk, await process.stderr.receive_some()
                said += chunk
            port = int(said.split()[-1])
            one, other = [Client(await trio.open_tcp_stream("127.0.0.1", port)) for _ in range(2)]
            async with one.stream, other.stream:
                for client in (one, other):
                    await client.send(b"hello\n")
                    assert await client.line() == b"hello"
                await other.send(b"and goodbye\n")
                assert await one.until(b"and goodbye") == [b"hello"]
                process.send_signal(signal.SIGINT)
                errors = b"".join([chunk async for chunk in process.stderr])
                assert errors == b""
                assert await process.wait() == 0
        finally:
            process.kill()


def test_it_is_one_screen_and_stands_alone() -> None:
    source = SOURCE.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 70
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module or "")
    assert modules == {"functools", "sys", "trio"}
