"""Room names: which are allowed, decided in one place for every dialect."""

from hubbub.model.errors import RoomNameError

ROOM_NAME_CHARACTERS_MAX = 255
"""Centrifugo's limit for a channel name; structured clients rely on it."""


def check_room_name(name: str) -> str:
    """Return the name if it may be a room's.

    Raises:
        RoomNameError: it is empty, longer than 255 characters, or holds a character that can't be printed
            (control characters, line separators, lone surrogates; the plain space is printable).
    """
    if not 1 <= len(name) <= ROOM_NAME_CHARACTERS_MAX:
        raise RoomNameError(f"room name has {len(name)} characters; allowed: 1 to {ROOM_NAME_CHARACTERS_MAX}")
    if not name.isprintable():
        bad = next(character for character in name if not character.isprintable())
        raise RoomNameError(f"room name holds U+{ord(bad):04X}; allowed: printable characters only")
    return name
