"""Outlets for subscribers by hand."""

from collections.abc import Callable


class OnlyOffers:
    """An outlet for subscribers by hand: nothing is ever sent directly. Implements `hubbub.model.subscriber.Outlet`."""

    def __init__(self, offer: Callable[[bytes, int], None]) -> None:
        self.direct: Callable[[bytes], int] | None = None
        self.bytes_sent = 0
        self._offer = offer

    def offer(self, data: bytes, frames: int) -> None:
        """Give it to whose outlet it is."""
        self._offer(data, frames)

    def go_on(self, data: bytes, frames: int, sent: int) -> None:
        """Nothing was sent directly."""
        raise AssertionError
