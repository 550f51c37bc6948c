"""Would it be noticed? Each of these small faults must fail the properties of `test_dialect_properties`."""

from collections.abc import Callable, Mapping

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from dialect_driver import Client, PlainClient
from hubbub.core import idempotency
from hubbub.core.history import History
from hubbub.core.idempotency import Results
from hubbub.core.recovery import recover
from hubbub.core.rooms import Rooms
from hubbub.dialects.centrifugo import replies
from hubbub.dialects.centrifugo.conversation import CentrifugoConversation
from hubbub.dialects.centrifugo.requests import Subscribe
from hubbub.hub.state import Hub
from hubbub.hub.waiting import Waiting
from hubbub.model.command import Answer, Command, Subscribed
from hubbub.model.publication import Position, Presence, Publication
from hubbub.model.subscriber import Subscriber
from test_dialect_properties import StructuredLife

pytestmark = pytest.mark.no_cover  # twice as fast; other tests reach the same lines


def newcomers_hear_what_waited(patch: pytest.MonkeyPatch) -> None:
    subscribe = Rooms.subscribe
    patch.setattr(Rooms, "subscribe", lambda *where, waiting, **how: subscribe(*where, **how))


def answers_overtake_publications(patch: pytest.MonkeyPatch) -> None:
    take = Hub.take

    def flush_first(hub: Hub, room: str) -> object:
        for subscriber in hub.take_answered():
            subscriber.flush()
        return take(hub, room)

    patch.setattr(Hub, "take", flush_first)


def publications_overtake_the_subscribe_reply(patch: pytest.MonkeyPatch) -> None:
    carry_out = Hub.carry_out

    def hold_back(hub: Hub, command: Command, now: float) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Client, "flush", lambda client: None)
            carry_out(hub, command, now)

    patch.setattr(Hub, "carry_out", hold_back)


def unsubscribing_overtakes_publications(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Hub, "comes_after_what_waits", lambda hub, command: False)


def recovered_replies_name_the_top(patch: pytest.MonkeyPatch) -> None:
    encode_subscribed = replies.encode_subscribed

    def name_the_top(body: Subscribe, lifetime: Mapping[str, object], data: bytes, answer: Answer) -> bytes:
        if isinstance(answer, Subscribed) and answer.recovered:
            body.offset = answer.position.offset
        return encode_subscribed(body, lifetime, data, answer)

    patch.setattr(replies, "encode_subscribed", name_the_top)


def recovery_guesses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("hubbub.hub.steps.recover", lambda top, missed, since: missed)


def recovery_gives_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("hubbub.hub.steps.recover", lambda top, missed, since: None)


def recovery_forgets_the_epoch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "hubbub.hub.steps.recover", lambda top, missed, since: recover(top, missed, Position("", since.offset))
    )


def what_is_too_old_is_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(History, "expire", lambda history, time: None)


def leaves_are_told_twice(patch: pytest.MonkeyPatch) -> None:
    add = Waiting.add

    def twice(waiting: Waiting, room: str, event: Publication | Presence, size_bytes: int = 0) -> None:
        add(waiting, room, event, size_bytes)
        if isinstance(event, Presence) and not event.joined:
            add(waiting, room, event)

    patch.setattr(Waiting, "add", twice)


def a_disconnect_is_no_leave(patch: pytest.MonkeyPatch) -> None:
    def slip_away(hub: Hub, subscriber: Subscriber) -> None:
        for room in hub._rooms.rooms_of(subscriber):
            hub._rooms.unsubscribe(subscriber, room)

    patch.setattr(Hub, "leave", slip_away)


def keys_are_everyones(patch: pytest.MonkeyPatch) -> None:
    find, remember = Results.find, Results.remember
    patch.setattr(Results, "find", lambda results, room, who, *what: find(results, room, None, *what))
    patch.setattr(Results, "remember", lambda results, room, who, *what: remember(results, room, None, *what))


def keys_are_every_rooms(patch: pytest.MonkeyPatch) -> None:
    find, remember = Results.find, Results.remember
    patch.setattr(Results, "find", lambda results, room, *what: find(results, "", *what))
    patch.setattr(Results, "remember", lambda results, room, *what: remember(results, "", *what))


def keys_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Results, "find", lambda *what: None)


def keys_never_run_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Results, "has_room", lambda *what: True)


def keys_are_one_users(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(idempotency, "OF_A_ROOM", 1)
    patch.setattr(idempotency, "OF_ALL", 1)


def replies_change_places(patch: pytest.MonkeyPatch) -> None:
    replies = CentrifugoConversation.replies

    def shuffle(conversation: CentrifugoConversation) -> bytes:
        conversation._replies.reverse()
        return replies(conversation)

    patch.setattr(CentrifugoConversation, "replies", shuffle)


def the_late_come_back(patch: pytest.MonkeyPatch) -> None:
    carry_out = Hub.carry_out

    def ignore_the_end(hub: Hub, command: Command, now: float) -> None:
        asker = command.asker
        assert isinstance(asker, Client | PlainClient)
        was_gone, asker.gone = asker.gone, False
        carry_out(hub, command, now)
        asker.gone = was_gone

    patch.setattr(Hub, "carry_out", ignore_the_end)


MUTANTS = [
    newcomers_hear_what_waited,
    answers_overtake_publications,
    publications_overtake_the_subscribe_reply,
    unsubscribing_overtakes_publications,
    recovered_replies_name_the_top,
    recovery_guesses,
    recovery_gives_up,
    recovery_forgets_the_epoch,
    what_is_too_old_is_told,
    leaves_are_told_twice,
    a_disconnect_is_no_leave,
    keys_are_everyones,
    keys_are_every_rooms,
    keys_are_forgotten,
    keys_never_run_out,
    keys_are_one_users,
    replies_change_places,
    the_late_come_back,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The properties fail, if this is the case."""
    mutant(monkeypatch)
    quick = settings(
        StructuredLife.TestCase.settings,
        max_examples=400,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        print_blob=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(StructuredLife, settings=quick)
