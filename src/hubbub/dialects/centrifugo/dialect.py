"""What happens in a room, as bytes: encoded once for all who hear it."""

import functools

import msgspec

from hubbub.core.frames import TEXT, encode_frame
from hubbub.dialects.centrifugo.codes import DISCONNECTS
from hubbub.model.end import Disconnect, End
from hubbub.model.publication import Member, Presence, Publication, encode_as_json


class CentrifugoDialect:
    """Implements `hubbub.dialects.base.Dialect`."""

    name = "centrifugo"

    def encode_publication(self, publication: Publication) -> bytes:
        """Return the push of a publication."""
        return encode_push(publication.room, b'"pub":' + encode_publication(publication))

    def encode_presence(self, presence: Presence) -> bytes:
        """Return the push of a join or a leave."""
        kind = b'"join"' if presence.joined else b'"leave"'
        return encode_push(presence.room, kind + b':{"info":' + encode_member(presence.member) + b"}")

    def disconnect(self, end: End) -> Disconnect:
        """Return what the peer is told of this end."""
        return DISCONNECTS[end]


def encode_publication(publication: Publication) -> bytes:
    """Return a publication as JSON."""
    parts = [b'{"data":', encode_as_json(publication.data, publication.kind)]
    if publication.publisher is not None:
        parts += b',"info":', encode_member(publication.publisher)
    if publication.stored:
        parts.append(b',"offset":%d' % publication.offset)
    if publication.tags:
        parts += b',"tags":', msgspec.json.encode(publication.tags)
    parts.append(b"}")
    return b"".join(parts)


@functools.lru_cache(maxsize=256)  # who talks, talks on
def encode_member(member: Member) -> bytes:
    """Return what the protocol calls ClientInfo."""
    info = b',"conn_info":' + member.info if member.info else b""
    if member.room_info:
        info += b',"chan_info":' + member.room_info
    return b'{"user":' + msgspec.json.encode(member.user) + b',"client":"' + member.client.encode() + b'"' + info + b"}"


def encode_push(room: str, member: bytes) -> bytes:
    """Return the frame of a push: `member` is its one member besides the room, as JSON."""
    return encode_frame(TEXT, _push_of(room) + member + b"}}")


@functools.lru_cache(maxsize=256)
def _push_of(room: str) -> bytes:
    return b'{"push":{"channel":' + msgspec.json.encode(room) + b","
