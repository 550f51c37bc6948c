"""Many who ask for much at one moment: what others say goes through all the same, and no answer waits uncounted."""

import pytest
import trio

from hubbub.dialects.centrifugo.conversation import CentrifugoConversation
from hubbub.hub.inbox import LARGE_QUESTIONS_MAX
from hubbub.hub.steps import Steps
from hubbub.model.command import Answer, Publish, ReadHistory
from hubbub.model.publication import Kind
from structured import PATH, Client
from worlds import World, open_world

MANY = 60
LARGE = 3_000


async def open_client(world: World) -> Client:
    client = Client(await world.open_peer(PATH))
    await client.connect()
    await client.ask("subscribe", channel="room")
    return client


async def read_all(client: Client) -> int:
    """Ask for the whole history; return how much it holds."""
    return len((await client.ask("history", channel="room", limit=-1))["publications"])


async def fill(world: World, count: int) -> None:
    for _ in range(count):
        await world.node.inbox.put(Publish("room", b"x" * LARGE, Kind.TEXT))


async def test_questions_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever speaks waits for a few of the large answers at most, however many have asked before."""
    done: list[str] = []
    read_history, publish = Steps.read_history, Steps.publish

    def noted_read(steps: Steps, command: ReadHistory, now: float) -> Answer:
        done.append("read")
        return read_history(steps, command, now)

    def noted_publish(steps: Steps, command: Publish, now: float) -> Answer:
        done.append("publish")
        return publish(steps, command, now)

    monkeypatch.setattr(Steps, "read_history", noted_read)
    monkeypatch.setattr(Steps, "publish", noted_publish)
    async with open_world("tcp", history_size=100) as world:
        await fill(world, 50)
        clients = [await open_client(world) for _ in range(MANY)]
        done.clear()
        turns = world.node.inbox.large_questions
        for _ in range(LARGE_QUESTIONS_MAX):
            await turns.acquire()
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(read_all, client)
            while turns.statistics().tasks_waiting < MANY:
                await trio.sleep(0.001)
            for _ in range(LARGE_QUESTIONS_MAX):
                turns.release()
            while "read" not in done:
                await trio.lowlevel.checkpoint()
            before = len(done)
            await world.node.inbox.put(Publish("elsewhere", b"now", Kind.TEXT))
            while "publish" not in done:
                await trio.lowlevel.checkpoint()
        assert done.index("publish") <= before + LARGE_QUESTIONS_MAX
        assert done.count("read") == MANY


async def test_answers_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been answered and isn't sent yet is a few answers, not everybody's."""
    worst = 0
    say = CentrifugoConversation.say

    def noted(talk: CentrifugoConversation, number: int, member: bytes, content: bytes) -> None:
        nonlocal worst
        say(talk, number, member, content)
        conversations = (connection.conversation for connection in world.node.connections)
        worst = max(worst, sum(sum(map(len, getattr(one, "_replies", ()))) for one in conversations))

    async with open_world("tcp", history_size=100) as world:
        await fill(world, 50)
        clients = [await open_client(world) for _ in range(MANY)]
        monkeypatch.setattr(CentrifugoConversation, "say", noted)
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(read_all, client)
    assert 50 * LARGE < worst <= (LARGE_QUESTIONS_MAX + 1) * 50 * (LARGE + 200)


async def test_who_ends_gives_its_turn_back() -> None:
    """However a connection ends while it waits for its turn, has it, or is answered: the turns are there again."""
    async with open_world("tcp", history_size=100, close_seconds_max=0.2) as world:
        await fill(world, 50)
        turns = world.node.inbox.large_questions
        clients = [await open_client(world) for _ in range(MANY)]
        for number, client in enumerate(clients):
            await client.send(*[client.number({"history": {"channel": "room", "limit": -1}}) for _ in range(3)])
            if number % 3 == 0:
                stream = client.peer.stream
                assert isinstance(stream, trio.SocketStream)
                await stream.aclose()
            elif number % 3 == 1:
                for connection in list(world.node.connections)[:1]:
                    connection.cut()
        for connection in list(world.node.connections):
            connection.cut()
        with trio.fail_after(10):
            while len(world.node.connections) or turns.value < LARGE_QUESTIONS_MAX:
                await trio.sleep(0.01)
        last = await open_client(world)
        assert await read_all(last) == 50


async def test_plain_clients_take_turns_for_their_history() -> None:
    """`?history=N` is a large question, too."""
    async with open_world("tcp", history_size=100) as world:
        await fill(world, 50)
        turns = world.node.inbox.large_questions
        for _ in range(LARGE_QUESTIONS_MAX):
            turns.acquire_nowait()
        with trio.move_on_after(0.1) as waited:
            await world.open_peer("/chat/room?history=5")
        assert waited.cancelled_caught
        await world.open_peer("/chat/room")  # asks for nothing
        for _ in range(LARGE_QUESTIONS_MAX):
            turns.release()
        peer = await world.open_peer("/chat/room?history=5")
        assert await peer.receive() == "x" * LARGE
