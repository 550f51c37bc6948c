"""The answers of the hub, as the members of replies."""

from collections.abc import Mapping

import msgspec

from hubbub.dialects.centrifugo import requests
from hubbub.dialects.centrifugo.dialect import encode_member, encode_publication
from hubbub.model.command import Answer, Past, Present, Published, Subscribed
from hubbub.model.publication import Position


def encode_reply(number: int, member: bytes, content: bytes) -> bytes:
    """Return the reply to the command of that number: `content` is its one member besides, as JSON."""
    return b'{"id":%d,"%s":%s}' % (number, member, content)


def encode_nothing(answer: Answer) -> bytes:
    """Return the content where there is nothing to say."""
    return b"{}"


def encode_subscribed(body: requests.Subscribe, lifetime: Mapping[str, object], data: bytes, answer: Answer) -> bytes:
    """Return what a new subscriber is told.

    Args:
        body: what it asked for.
        lifetime: when its token expires.
        data: JSON that the back end has for it; b"" for none.
    """
    assert isinstance(answer, Subscribed)
    members = dict(lifetime)
    if data:
        members["data"] = msgspec.Raw(data)
    if answer.recoverable:
        members["recoverable"] = True
    if answer.positioned:
        offset = body.offset if answer.recovered else answer.position.offset  # recovered publications move it on
        members |= {"positioned": True, "epoch": answer.position.epoch, "offset": offset or 0}
    if answer.publications:
        members["publications"] = msgspec.Raw(b"[%s]" % b",".join(map(encode_publication, answer.publications)))
    if answer.recovered:
        members["recovered"] = True
    if body.recover:
        members["was_recovering"] = True
    return msgspec.json.encode(members)


def encode_subscribe_pushes(room: str, data: bytes, since: Position | None, subscribed: Subscribed) -> list[bytes]:
    """Return the pushes that tell a client of a room that the server has put it into, as JSON.

    What it has missed since it was there follows as if it happened now: in this push the SDKs don't look for it.
    """
    name, publications = msgspec.json.encode(room), subscribed.publications
    if since is not None and subscribed.recovered:
        position = Position(subscribed.position.epoch, since.offset)
        subscribed = msgspec.structs.replace(subscribed, position=position, publications=(), recovered=False)
    content = encode_subscribed(requests.Subscribe(), {}, data, subscribed)
    pushes = [b'{"push":{"channel":%s,"subscribe":%s}}' % (name, content)]
    pushes += [b'{"push":{"channel":%s,"pub":%s}}' % (name, encode_publication(one)) for one in publications]
    return pushes


def encode_published(answer: Answer) -> bytes:
    """Return where the publication is."""
    assert isinstance(answer, Published)
    position = answer.position
    if position is None:
        return b"{}"
    return b'{"offset":%d,"epoch":%s}' % (position.offset, msgspec.json.encode(position.epoch))


def encode_presence(answer: Answer) -> bytes:
    """Return who is there, by client."""
    assert isinstance(answer, Present)
    members = (b'"%s":%s' % (member.client.encode(), encode_member(member)) for member in answer.members)
    return b'{"presence":{%s}}' % b",".join(members)


def encode_presence_stats(answer: Answer) -> bytes:
    """Return how many are there."""
    assert isinstance(answer, Present)
    users = len({member.user for member in answer.members})
    return b'{"num_clients":%d,"num_users":%d}' % (len(answer.members), users)


def encode_past(answer: Answer) -> bytes:
    """Return a piece of history."""
    assert isinstance(answer, Past)
    publications = b",".join(map(encode_publication, answer.publications))
    epoch, offset = msgspec.json.encode(answer.position.epoch), answer.position.offset
    return b'{"publications":[%s],"epoch":%s,"offset":%d}' % (publications, epoch, offset)
