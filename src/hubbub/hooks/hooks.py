"""All hooks of a node: what it asks, and what it tells."""

import random

import trio

from hubbub.config import Settings
from hubbub.hooks.back_end import BackEnd
from hubbub.hooks.notices import HookNotices
from hubbub.hooks.questions import Questions
from hubbub.model.question import Question, Verdict


class Hooks:
    """Everything there is between a node and its back end. `run` belongs among the node's tasks.

    Args:
        settings: everything that begins with hook_; looked at whenever it is needed.
        rng: for ids and jitter.
    """

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        back_end = BackEnd(settings)
        self.questions = Questions(settings, back_end, rng)
        self.asks = self.questions.asks  # whether the back end is to be asked
        self.notices = HookNotices(settings, back_end, rng)
        self._back_end = back_end

    async def ask(self, question: Question, address: str = "") -> Verdict:
        """Have a question answered, within the hook's time; raises nothing."""
        return await self.questions.ask(question, address)

    async def flush(self) -> None:
        """Wait until the back end has been told everything; the caller limits the time."""
        await self.notices.flush()

    async def run(self) -> None:
        """Send, and tell, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._back_end.run)
            nursery.start_soon(self.notices.run)
