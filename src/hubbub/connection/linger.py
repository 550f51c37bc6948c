"""The last metre of a connection that ends in good order.

A socket closed with unread input is reset, and what its kernel still holds for the peer is thrown away: the end
of the conversation, the Close, the error page. So: say that nothing more comes, and read until the peer is done
too. A peer that goes on sending is read for a while, then no more (its TCP waits); the connection is given up
when the peer's machine has everything, or when time is up.
"""

import trio

from hubbub.config import Settings
from hubbub.connection.transport import Transport

LOOK_SECONDS = 0.02
"""How often to ask whether the peer's machine has acknowledged everything, once we have stopped reading."""


async def linger(transport: Transport, settings: Settings) -> None:
    """End the sending side and wait for the peer, at most `linger_seconds_max`. Closes nothing, never raises."""
    with trio.move_on_after(settings.linger_seconds_max):
        await transport.shutdown_send()
        discarded = 0
        try:
            while discarded < settings.linger_bytes_max:
                data = await transport.receive_some(64 * 1024)
                if not data:
                    return
                discarded += len(data)
        except trio.BrokenResourceError:
            return
        while transport.unsent_bytes():
            await trio.sleep(LOOK_SECONDS)
