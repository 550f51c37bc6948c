"""Telling the back end what has happened: `{"events": […]}`, one delivery after the other.

Rules:
1. What happens is put into a queue (`queue`), which costs the hub some microseconds and never makes it wait.
2. A single task delivers, one request at a time, so the back end is told in the order of the events. A status of 2xx
   means that it has taken them. Anything else, or none within `hook_notices_seconds_max`, and they are repeated, with
   the same ids, after pauses from 0.1 to 30 s. So it is told at least once.
3. What isn't taken within `hook_notices_age_seconds_max` is given up; what doesn't fit into `hook_notices_bytes_max` is
   dropped; and what waits when a reload takes the URL away, is given up. The back end is told how many those were.
4. A delivery costs this process a millisecond or so. So before one, more events are waited for, shortly.
"""

import math
import random
import time
from collections.abc import Callable

import structlog
import trio

from hubbub.config import Settings
from hubbub.config_types import Notice
from hubbub.hooks.back_end import BackEnd, Complaints, HookError, within
from hubbub.hooks.queue import EVENTS_MAX, Queue
from hubbub.model.publication import Member

GATHER_SECONDS = 0.05
"""How long an event waits for company: 20 deliveries a second at most, unless they are full."""
PAUSE_SECONDS_MIN = 0.1
PAUSE_SECONDS_MAX = 30.0
HURRY_SECONDS = 0.5
"""The longest pause in a drain."""

NAME_BITS = 64

log = structlog.get_logger()


class HookNotices:
    """Implements `hubbub.model.notice.Notices`.

    Args:
        settings: all of hook_notices; notify of the namespaces.
        back_end: who is told.
        rng: for the node's name in ids, and jitter.
        wall_clock: seconds since 1970.

    Attributes:
        failed: deliveries that weren't taken.
    """

    def __init__(
        self, settings: Settings, back_end: BackEnd, rng: random.Random, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self.failed = 0
        self._settings = settings
        self._back_end = back_end
        self._rng = rng
        self._wall_clock = wall_clock
        self._queue = Queue(self._stamp)
        self._name = ""
        self._number = 0
        self._complaints = Complaints("notices")
        self._offered = trio.lowlevel.ParkingLot()
        self._all_told = trio.lowlevel.ParkingLot()
        self._hurry = trio.Event()
        self._pause = PAUSE_SECONDS_MIN

    @property
    def queue(self) -> Queue:
        """What hasn't been told, for statistics."""
        return self._queue

    def joined(self, room: str, member: Member) -> None:
        """A member has joined a room."""
        self._take_of_room("join", room, member)

    def left(self, room: str, member: Member) -> None:
        """A member has left a room."""
        self._take_of_room("leave", room, member)

    def opened(self, room: str) -> None:
        """A room has its first member."""
        self._take_of_room("room_opened", room)

    def emptied(self, room: str) -> None:
        """A room's last member has left."""
        self._take_of_room("room_emptied", room)

    def disconnected(self, member: Member, code: int | None, reason: str) -> None:
        """A connection has ended."""
        if self._is_wanted("disconnect"):
            self._take("disconnect", user=member.user, client=member.client, code=code, reason=reason)

    def _take_of_room(self, event: Notice, room: str, member: Member | None = None) -> None:
        if not self._is_wanted(event):
            return
        namespace = self._settings.namespace(room)
        if namespace is None or not namespace.notify:
            return
        if member is None:
            self._take(event, room=room)
        else:
            self._take(event, room=room, user=member.user, client=member.client)

    def _is_wanted(self, event: Notice) -> bool:
        settings = self._settings
        return bool(settings.hook_notices_url) and (not settings.hook_notices or event in settings.hook_notices)

    def _take(
        self,
        event: Notice,
        *,
        room: str = "",
        user: str = "",
        client: str = "",
        code: int | None = None,
        reason: str = "",
    ) -> None:
        now, bytes_max = trio.current_time(), self._settings.hook_notices_bytes_max
        self._queue.offer(event, now, bytes_max, room=room, user=user, client=client, code=code, reason=reason)
        self._offered.unpark()

    def _stamp(self) -> tuple[str, int]:
        if not self._name:  # not before it is needed: the generator's other users get the same numbers without hooks
            self._name = f"{self._rng.getrandbits(NAME_BITS):016x}"
        self._number += 1
        return f"{self._name}-{self._number}", int(self._wall_clock() * 1000)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to tell, or nobody to tell it to."""
        return not len(self._queue) or not self._settings.hook_notices_url

    async def flush(self) -> None:
        """Wait until everything has been told. As long as the caller likes; from now on pauses are short."""
        self._hurry.set()
        while not self.is_done:
            await self._all_told.park()

    async def run(self) -> None:
        """Tell, until cancelled; then say what hasn't been told."""
        try:
            while True:
                if not self._settings.hook_notices_url:
                    self._queue.give_up(math.inf)
                if self.is_done:
                    self._all_told.unpark_all()
                    await self._offered.park()
                if len(self._queue) < EVENTS_MAX:
                    with trio.move_on_after(GATHER_SECONDS):
                        await self._hurry.wait()
                self._queue.give_up(trio.current_time() - self._settings.hook_notices_age_seconds_max)
                await self._deliver()
        finally:
            if len(self._queue):
                log.warning("notices not told", count=len(self._queue))

    async def _deliver(self) -> None:
        url = self._settings.hook_notices_url
        if not url:
            return
        batch = self._queue.front()
        try:
            with within(self._settings.hook_notices_seconds_max):
                answer = await self._back_end.post(url, b'{"events":[%b]}' % b",".join(batch))
            if not 200 <= answer.status <= 299:
                raise HookError(f"it answers {answer.status}")
        except HookError as error:
            self.failed += 1
            self._complaints.add(url, str(error))
            await self._wait_before_repeating()
        else:
            self._queue.remove(len(batch))
            self._pause = PAUSE_SECONDS_MIN

    async def _wait_before_repeating(self) -> None:
        with trio.move_on_after(self._pause * self._rng.uniform(0.5, 1.0)):
            await self._hurry.wait()
            await trio.sleep(HURRY_SECONDS)
        self._pause = min(2 * self._pause, PAUSE_SECONDS_MAX)
