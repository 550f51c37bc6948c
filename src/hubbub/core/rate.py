"""How fast one connection may go: a token bucket that lets itself be overdrawn once.

Rules:
1. Tokens flow in at `rate` a second, up to `burst`. What is taken may overdraw the bucket: a single large thing is
   never impossible, it is paid for by the pause after it.
2. `take` returns how long to pause until nothing is owed. Whoever pauses that long never exceeds the rate by more
   than the burst.
3. A bucket that is overdrawn again and again, without ever having been half full in between, has been `overdrawn_since`
   the first time: that is how "too fast" is told from "a lot at once".
"""


class Bucket:
    """One allowance. The clock is passed in, in seconds."""

    __slots__ = ("_at", "_tokens", "burst", "overdrawn_since", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now
        self.overdrawn_since: float | None = None

    def take(self, amount: float, now: float) -> float:
        """Take that many tokens; return the seconds to pause, 0 if nothing is owed."""
        tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        if tokens >= self.burst / 2:
            self.overdrawn_since = None
        self._at = now
        self._tokens = tokens - amount
        if self._tokens >= 0:
            return 0.0
        if self.overdrawn_since is None:
            self.overdrawn_since = now
        return -self._tokens / self.rate
