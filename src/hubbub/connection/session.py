"""The session: what one peer's messages ask for, handed to the hub strictly in order.

It runs in the task that read the message (the reader's, or the body's for what went through trio-websocket; never
both at once), so it must not close the connection: it says why it ends, and the body of `serve_connection` closes.
"""

from collections.abc import Callable

import structlog

from hubbub.dialects.base import Conversation
from hubbub.hub.inbox import Inbox
from hubbub.model.end import End

log = structlog.get_logger()


class Session:
    """One peer's conversation with the hub.

    Args:
        conversation: the dialect's side: messages to commands.
        inbox: the hub's.
        on_end: called when the connection must end.
    """

    __slots__ = ("_conversation", "_inbox", "_on_end", "handing_over")

    def __init__(self, conversation: Conversation, inbox: Inbox, on_end: Callable[[End], None]) -> None:
        self._conversation = conversation
        self._inbox = inbox
        self._on_end = on_end
        self.handing_over = False  # waiting for the hub's inbox: then silence is our doing, not the peer's

    async def receive(self, data: bytes, binary: bool) -> None:
        """Take one message; waits while the hub's inbox is full (backpressure). Raises nothing of its own."""
        try:
            commands = self._conversation.receive(data, binary)
        except Exception:
            log.exception("connection ended by an internal error")
            self._on_end(End.INTERNAL_ERROR)
            return
        self.handing_over = True
        for command in commands:
            await self._inbox.put(command)
        self.handing_over = False
