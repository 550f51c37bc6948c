"""hubbub on one screen: one room, over plain TCP lines. Everyone gets every line, in one order.
client ~ reader ─┬─> memory channel, bounded ─> hub task ─┬─> outbox, bounded ─> writer ~ client
client ~ reader ─┘                                        └─> outbox, bounded ─> writer ~ client
"""

import sys
from functools import partial

import trio

WAITING, LONGEST = 64, 4096  # lines that may wait in a memory channel; bytes in a line
Subscriber = tuple[trio.MemorySendChannel[bytes], trio.CancelScope]  # an outbox, and what ends its connection


async def hub(inbox: trio.MemoryReceiveChannel[bytes | Subscriber]) -> None:
    subscribers = set[Subscriber]()  # the hub task alone touches it: no lock, and one order for everyone
    async for item in inbox:
        if isinstance(item, bytes):  # a line: fan it out to the room, and wait for nobody
            for outbox, scope in subscribers:
                try:
                    outbox.send_nowait(item)
                except (trio.WouldBlock, trio.BrokenResourceError):  # outbox full, or closed: it is leaving
                    scope.cancel()  # evict the slow consumer: it alone pays for being slow
        else:
            subscribers ^= {item}  # a subscriber: it joins, or it leaves


async def writer(stream: trio.SocketStream, waiting: trio.MemoryReceiveChannel[bytes]) -> None:
    async for line in waiting:  # and take all else that waits: sixty lines cost one send, as one line does
        more = [waiting.receive_nowait() for _ in range(waiting.statistics().current_buffer_used)]
        await stream.send_all(b"".join([line, *more]))


async def connection(to_hub: trio.MemorySendChannel[bytes | Subscriber], stream: trio.SocketStream) -> None:
    outbox, waiting = trio.open_memory_channel[bytes](WAITING)
    try:
        async with stream, waiting, trio.open_nursery() as nursery:  # a nursery a connection
            me = (outbox, nursery.cancel_scope)
            await to_hub.send(me)
            nursery.start_soon(writer, stream, waiting)
            rest = b""
            async for chunk in stream:  # the reader: TCP hands it half a line, or a hundred of them
                *lines, rest = (rest + chunk).split(b"\n")
                if max(map(len, [*lines, rest])) > LONGEST:
                    break
                for line in lines:  # Backpressure: when the hub task is behind, this waits, and
                    await to_hub.send(line + b"\n")  # reads no more: TCP then slows the client down.
            nursery.cancel_scope.cancel()  # end of file, or a line too long: the connection is over
    except* trio.BrokenResourceError:
        pass  # the client vanished: expected. Anything else is a bug, and may stop the server
    finally:
        await to_hub.send(me)  # however the connection ended, it leaves the room


async def serve(port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
    to_hub, inbox = trio.open_memory_channel[bytes | Subscriber](WAITING)
    async with trio.open_nursery() as nursery:  # for the hub task, and for a task a connection
        nursery.start_soon(hub, inbox)
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        print("Chat from two terminals: nc", *listeners[0].socket.getsockname(), flush=True)
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(partial(connection, to_hub), listeners, handler_nursery=nursery)


if __name__ == "__main__":
    try:
        trio.run(serve, int([*sys.argv, "8765"][1]))
    except* KeyboardInterrupt:
        pass
