"""Asking the back end: may this client connect, join that room, publish this there?

Rules:
1. An answer is HTTP 200 with JSON that makes sense (`answers`). Whatever else happens, or if it takes longer than the
   hook's `seconds_max`, the hook's `on_failure` decides.
2. At most `hook_requests_max` questions are under way. The others wait, in the order in which they came, and that
   counts as time of theirs.
   One address has at most a quarter of them; its other questions wait for these, and for nobody else's.
3. Who asks gets a verdict, always: nothing is raised but Trio's cancellation.
4. To begin and to give up a question takes a millisecond. So that others' messages get their turn in between, when
   a hundred clients come at one moment, `BEGIN_AT_ONCE` begin in a pass of the scheduler, and they don't give up at
   one moment either: the last tenth of the time is left to chance.
"""

import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import get_args

import msgspec
import trio

from hubbub.auth.proxies import is_loopback
from hubbub.config import Settings
from hubbub.hooks.answers import read_answer
from hubbub.hooks.back_end import BackEnd, Complaints, HookError, within
from hubbub.model.question import Allowed, Asked, Denied, Dismissed, Question, Unanswered, Verdict

BEGIN_AT_ONCE = 2
SURE_OF_TIME = 0.9
SHARE = 4
"""One address may have that part of the questions under way, and no more: a quarter."""

_URL_OF: dict[Asked, Callable[[Settings], str]] = {
    "connect": lambda settings: settings.hook_connect_url,
    "subscribe": lambda settings: settings.hook_subscribe_url,
    "publish": lambda settings: settings.hook_publish_url,
}

OUTCOMES = {Allowed: "allowed", Denied: "denied", Dismissed: "dismissed", Unanswered: "unanswered"}


class _Body(msgspec.Struct, omit_defaults=True):
    """A question as it is sent: Centrifugo's words."""

    client: str
    user: str
    dialect: str
    transport: str
    protocol: str
    encoding: str
    room: str = msgspec.field(default="", name="channel")
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Questions:
    """Those of one node.

    Args:
        settings: all of hook_connect, hook_subscribe, hook_publish; hook_requests_max.
        back_end: who is asked.
        rng: for jitter.

    Attributes:
        outcomes: how many questions have ended how: (what, one of `OUTCOMES`).
    """

    def __init__(self, settings: Settings, back_end: BackEnd, rng: random.Random) -> None:
        self._settings = settings
        self._back_end = back_end
        self._rng = rng
        self._beginning = trio.Semaphore(BEGIN_AT_ONCE)
        self._limiter = trio.CapacityLimiter(settings.hook_requests_max)
        self._turns: dict[str, trio.CapacityLimiter] = {}
        self._complaints = {what: Complaints(what) for what in get_args(Asked)}
        self.outcomes: Counter[tuple[Asked, str]] = Counter()

    @property
    def under_way(self) -> int:
        """How many have been sent and not answered."""
        return int(self._limiter.borrowed_tokens)

    @property
    def waiting(self) -> int:
        """How many are still to be sent."""
        return self._limiter.statistics().tasks_waiting

    def asks(self, what: Asked, room: str = "") -> bool:
        """Return whether the back end is to be asked; `room` is where it would be, but for connect."""
        if not _URL_OF[what](self._settings):  # first, as it is asked for each message
            return False
        if what == "connect":
            return True
        namespace = self._settings.namespace(room)
        if namespace is None:
            return False
        return namespace.ask_subscribe if what == "subscribe" else namespace.ask_publish

    async def ask(self, question: Question, address: str = "") -> Verdict:
        """Have a question answered: an `Asker`."""
        what = question.what
        url = _URL_OF[what](self._settings)
        if not url:
            return Allowed()  # a reload took it away, since somebody saw that there was one
        verdict: Verdict
        seconds_max = getattr(self._settings, f"hook_{what}_seconds_max") * self._rng.uniform(SURE_OF_TIME, 1.0)
        try:
            with within(seconds_max):
                async with self._turn_of(address):
                    verdict = await self._answer(url, question)
        except HookError as error:
            self._complaints[what].add(url, str(error))
            verdict = Unanswered()
        self.outcomes[what, OUTCOMES[type(verdict)]] += 1
        if isinstance(verdict, Unanswered) and getattr(self._settings, f"hook_{what}_on_failure") == "allow":
            return Allowed()
        return verdict

    @contextlib.asynccontextmanager
    async def _turn_of(self, address: str) -> AsyncIterator[None]:
        """Wait for a turn among the questions of that address: they wait for each other, not others for them."""
        if not address or is_loopback(address):  # a proxy that doesn't say for whom, or ourselves
            yield
            return
        turns = self._turns.get(address)
        if turns is None:
            turns = self._turns[address] = trio.CapacityLimiter(max(1, self._settings.hook_requests_max // SHARE))
        try:
            async with turns:
                yield
        finally:
            if not turns.borrowed_tokens and not turns.statistics().tasks_waiting:
                self._turns.pop(address, None)

    async def _answer(self, url: str, question: Question) -> Verdict:
        body = _Body(
            question.client,
            question.user,
            question.dialect,
            "websocket",
            "json",
            "json",
            question.room,
            msgspec.Raw(question.data) if question.data else msgspec.UNSET,
        )
        self._limiter.total_tokens = self._settings.hook_requests_max  # a reload may have changed it
        async with self._limiter:
            async with self._beginning:
                await trio.lowlevel.checkpoint()
            answer = await self._back_end.post(url, msgspec.json.encode(body))
        if answer.status != 200:
            raise HookError(f"it answers {answer.status}")
        if answer.content is None:
            raise HookError("its answer is too large")
        return read_answer(question.what, answer.content, self._settings, trio.current_time() - time.time())
