"""The turnstile: a thousand who act at one moment are served one handful after the other.

Trio runs every task that has become ready before it looks at the sockets again. When a thousand clients connect, or
go, in the same instant, that is 50 to 150 ms in which nobody's messages go through. So what costs more than a message
(parsing a head, ending a connection) takes its turn here first: `AT_ONCE` in a pass of the scheduler, in the order in
which they came. There are two, so that nobody who comes waits for all who go.
"""

import trio

AT_ONCE = 16
"""How many go through in one pass: some 2 ms of work."""


class Turnstile:
    """Shared by those of a node's connections that come, or that go; its keeper is one of the node's tasks."""

    def __init__(self) -> None:
        self._free = AT_ONCE  # in this pass
        self._queue = trio.lowlevel.ParkingLot()
        self._keeper = trio.lowlevel.ParkingLot()

    async def pass_through(self) -> None:
        """Wait for one's turn. Not a checkpoint when it is at once."""
        self._keeper.unpark()
        if self._free:
            self._free -= 1
        else:
            await self._queue.park()

    async def keep(self) -> None:
        """Let the next ones through in each pass, until cancelled."""
        while True:
            if self._free == AT_ONCE:
                await self._keeper.park()  # nobody has come in the last pass
            await trio.lowlevel.checkpoint()
            self._free = AT_ONCE - len(self._queue.unpark(count=AT_ONCE))
