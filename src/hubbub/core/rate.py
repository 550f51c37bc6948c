"""How fast one connection may go: a token bucket that lets itself be overdrawn once.

Rules:
1. Tokens flow in at `rate` a second, up to `burst`. What is taken may overdraw the bucket: a single large thing is
   never impossible, it is paid for by the pause after it.
2. What `take` and `settle` return is how long to pause until nothing is owed. Whoever pauses that long never exceeds
   the rate by more than the burst.
3. `spend` is `take` without a look at the clock, from a lease of an eighth of the burst. (So that at worst an eighth
   more than the burst goes through at once.)
4. A bucket that is overdrawn again and again, without ever having been half full in between, has been
   `overdrawn_since` the first time: that is how "too fast" is told from "a lot at once".
"""


class Bucket:
    """One allowance. The clock is passed in, in seconds."""

    __slots__ = ("_at", "_burst", "_lease", "_rate", "_tokens", "overdrawn_since")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst  # the lease apart
        self._lease = 0.0
        self._at = now
        self.overdrawn_since: float | None = None

    def take(self, amount: float, now: float) -> float:
        """Take that many tokens; return the seconds to pause, 0 if nothing is owed."""
        self._refill(now)
        self._tokens -= amount
        return self._owed(now)

    def spend(self, amount: float) -> bool:
        """Take that many tokens from the lease; False if it is used up: then `settle`."""
        self._lease -= amount
        return self._lease >= 0

    def spend_leased(self, amount: float) -> bool:
        """Take that many tokens from the lease, if it has them; else none, and return False."""
        if self._lease < amount:
            return False
        self._lease -= amount
        return True

    def settle(self, now: float) -> float:
        """Count what has flowed in and make a new lease; return the seconds to pause, 0 if nothing is owed."""
        self._refill(now)
        if self._tokens > 0:
            self._lease = min(self._tokens, self._burst / 8)
            self._tokens -= self._lease
        return self._owed(now)

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + self._lease + (now - self._at) * self._rate)
        self._lease = 0.0
        self._at = now
        if self._tokens >= self._burst / 2:
            self.overdrawn_since = None

    def _owed(self, now: float) -> float:
        if self._tokens >= 0:
            return 0.0
        if self.overdrawn_since is None:
            self.overdrawn_since = now
        return -self._tokens / self._rate
