"""The hub task: the only task that changes rooms.

One pass: the leaves; then what waits in the inbox, carried out; then what has happened in the rooms, handed out, one
piece a subscriber; then the replies, one piece an asker. It waits for nothing but its inbox: `offer` is synchronous, so
no subscriber, however slow, can hold it up.

Gathering: before handing out, the hub has the poller look what else has come, again and again while that brings
something. Under load a subscriber then gets one send where it would get many; when all is quiet, a look that brings
nothing costs a microsecond.
"""

from collections.abc import Callable, Sequence

import trio

from hubbub.config import Settings
from hubbub.hub.inbox import Inbox
from hubbub.hub.state import Hub
from hubbub.model.command import Publish, PublishRuns, Queued
from hubbub.model.subscriber import Outlet

OFFERS_PER_CHECKPOINT = 256
"""How many subscribers are served before other tasks may run: some 2 ms where each is a send of its own, 10 where each
finds its peer gone."""

BYTES_PER_OFFER = 16 * 1024
"""A larger piece counts as several offers: to copy that much takes as long as a send."""

GATHER_SECONDS_MAX = 0.002
"""For how long the hub gathers: as long as a hand-out to some 300 takes, which is what it saves."""

ANSWER_SECONDS_MAX = 0.002
"""For how long answers are sent before other tasks may run: one may be a whole history, or all who are in a room."""

COMMANDS_PER_LOOK = 32
"""How many publishes are handled between looks at the clock: some 0.1 ms."""


async def run_hub(hub: Hub, inbox: Inbox, settings: Settings, look: Callable[[], bool]) -> None:
    """Run the hub's passes until cancelled; `look` reads what has come, and says whether others must run for it."""
    while True:
        commands = [await inbox.take()]
        since = trio.current_time()
        for _ in range(settings.gather_passes_max):
            before = inbox.bytes
            if look():
                await trio.lowlevel.checkpoint()
            if inbox.bytes == before or trio.current_time() - since >= GATHER_SECONDS_MAX:
                break
        _take_waiting(commands, inbox, settings.pass_commands_max)
        _let_leave(hub, inbox)
        await _apply(hub, commands, settings.pass_seconds_max)
        inbox.done(commands)
        del commands  # or who has spoken last would be held until somebody else speaks


def let_others_run() -> bool:
    """To look where there is nobody who reads for all: let the tasks that read run."""
    return True


def _let_leave(hub: Hub, inbox: Inbox) -> None:
    for subscriber in inbox.take_leaves():
        hub.leave(subscriber)


def _take_waiting(commands: list[Queued | None], inbox: Inbox, limit: int) -> None:
    count = _count(commands[0])
    while count < limit:
        try:
            command = inbox.take_nowait()
        except trio.WouldBlock:
            return
        commands.append(command)
        count += _count(command)


def _count(command: Queued | None) -> int:
    return command.count if type(command) is PublishRuns else 1


async def _apply(hub: Hub, commands: list[Queued | None], pass_seconds_max: float) -> None:
    now = trio.current_time()
    served = at = 0
    while at < len(commands):
        command = commands[at]
        looks = at % COMMANDS_PER_LOOK == 0 or not isinstance(command, Publish)  # others may be much more
        if looks and trio.current_time() - now >= pass_seconds_max:
            served = await _hand_out_all(hub, served)  # nobody waits for more than that
            await trio.lowlevel.checkpoint()
            now = trio.current_time()
        at += 1
        if isinstance(command, PublishRuns):
            if hub.publish_runs(command, now):
                served = await _hand_out(hub, command.room, served)
        elif isinstance(command, Publish):
            if hub.publish(command, now):
                served = await _hand_out(hub, command.room, served)
        elif command is not None:
            if hub.comes_after_what_waits(command):
                served = await _hand_out_all(hub, served)
            hub.carry_out(command, now)
    await _hand_out_all(hub, served)


async def _hand_out_all(hub: Hub, served: int) -> int:
    for room in hub.waiting():
        served = await _hand_out(hub, room, served)
    since = trio.current_time()
    for subscriber in hub.take_answered():
        subscriber.flush()
        if trio.current_time() - since >= ANSWER_SECONDS_MAX:
            await trio.lowlevel.checkpoint()
            since = trio.current_time()
    return served


async def _hand_out(hub: Hub, room: str, served: int) -> int:
    """Offer what has happened in the room to its subscribers; `served` counts them since the last checkpoint."""
    for delivery in hub.take(room):
        outlets, weight = delivery.outlets, 1 + len(delivery.data) // BYTES_PER_OFFER
        most = max(1, OFFERS_PER_CHECKPOINT // weight)
        for start in range(0, len(outlets), most):
            some = outlets[start : start + most]
            _offer(some, delivery.data, delivery.frames)
            served += len(some) * weight
            if served >= OFFERS_PER_CHECKPOINT:
                await trio.lowlevel.checkpoint()
                served = 0
    return served


def _offer(outlets: Sequence[Outlet], data: bytes, frames: int) -> None:
    """Offer one piece to each. This loop is what a delivery costs: so what can be sent directly is sent from here."""
    size = len(data)
    for outlet in outlets:
        send = outlet.direct
        if send is None:
            outlet.offer(data, frames)
            continue
        try:
            sent = send(data)
        except BlockingIOError:
            sent = 0
        except (OSError, trio.BrokenResourceError):
            outlet.offer(data, frames)  # which meets that, too, and knows what to make of it
            continue
        outlet.bytes_sent += sent
        if sent < size:
            outlet.go_on(data, frames, sent)
