"""A bell: one task waits for it, anybody rings. What an idle connection waits with, so it is as small as can be.

Of `trio.Event` each one costs 270 bytes, and two coroutines where there is one here.
"""

from collections.abc import Awaitable

import trio


class Bell:
    """Nothing is remembered: to ring is to wake who waits at this moment.

    Attributes:
        waiting: the task that does.
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: trio.lowlevel.Task | None = None

    def ring(self) -> bool:
        """Wake the task; False if none waits. Never waits or raises."""
        task, self.waiting = self.waiting, None
        if task is not None:
            trio.lowlevel.reschedule(task)
        return task is not None

    def wait(self) -> Awaitable[None]:
        """Wait until it rings; to be awaited at once, by one task at a time. Always a checkpoint."""
        self.waiting = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105 - the caller awaits it

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self.waiting = None
        return trio.lowlevel.Abort.SUCCEEDED
