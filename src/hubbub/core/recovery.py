"""What a client that returns with a position has missed: exactly, or not at all (P5).

Rules:
1. It has been in the same epoch, and what is stored since runs from the next offset to the top: then that is
   exactly what it missed. In every other case nothing is guessed.
2. So it isn't recovered when the history was lost, when something of what it missed has been dropped or is more
   than one answer may hold, or when it claims to have seen what was never published.
3. A client that gives no epoch is taken to mean this one. Whether it is right, nobody knows: not promised.
"""

from collections.abc import Sequence

from hubbub.model.publication import Position, Publication


def recover(top: Position, publications: Sequence[Publication], since: Position) -> Sequence[Publication] | None:
    """Return what was missed since a position; None if that can't be told.

    Args:
        top: the room's position now.
        publications: what was stored after `since.offset` at that moment, oldest first; as much as may be given.
        since: what the client has seen last.
    """
    if since.epoch and since.epoch != top.epoch:
        return None
    if not publications:
        return publications if since.offset == top.offset else None
    if publications[0].offset == since.offset + 1 and publications[-1].offset == top.offset:
        return publications
    return None
