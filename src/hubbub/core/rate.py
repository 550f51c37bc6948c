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
    """One allowance. The clock is passed in, in seconds.

    Attributes:
        lease: what may be spent before anybody has to look at the clock.
        overdrawn_since: when it was, first (rule 4).
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens", "lease", "overdrawn_since")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst  # the lease apart
        self.lease = 0.0
        self._at = now
        self.overdrawn_since: float | None = None

    def take(self, amount: float, now: float) -> float:
        """Take that many tokens; return the seconds to pause, 0 if nothing is owed."""
        self._refill(now)
        self._tokens -= amount
        return self._owed(now)

    def spend(self, amount: float) -> bool:
        """Take that many tokens from the lease; False if it is used up: then `settle`."""
        self.lease -= amount
        return self.lease >= 0

    def settle(self, now: float) -> float:
        """Count what has flowed in and make a new lease; return the seconds to pause, 0 if nothing is owed."""
        self._refill(now)
        if self._tokens > 0:
            self.lease = min(self._tokens, self._burst / 8)
            self._tokens -= self.lease
        return self._owed(now)

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + self.lease + (now - self._at) * self._rate)
        self.lease = 0.0
        self._at = now
        if self._tokens >= self._burst / 2:
            self.overdrawn_since = None

    def _owed(self, now: float) -> float:
        if self._tokens >= 0:
            return 0.0
        if self.overdrawn_since is None:
            self.overdrawn_since = now
        return -self._tokens / self._rate
