"""The keys of the server API: who may do what over HTTP.

Rules:
1. A key is configured as NAME:SCOPE:KEY. The name is for people (errors, the log); nobody is ever shown the key.
2. A key that is shown is compared with every one that is configured, each in a time that tells nothing of its text.
3. The settings are looked at for each request: after a reload an old key is wrong at once.
"""

import enum
import hmac
from collections.abc import Iterable

import msgspec


class Scope(enum.Enum):
    """What a method is about, and so what a key must be good for."""

    PUBLISH = "publish"  # says something in rooms
    READ = "read"  # looks, and changes nothing
    MANAGE = "manage"  # does something to clients, or to what is kept
    ANY = "any"  # asks only for what it is made of


_METHODS_OF = {
    "publish": frozenset({Scope.PUBLISH, Scope.ANY}),
    "read": frozenset({Scope.READ, Scope.ANY}),
    "all": frozenset(Scope),
}


class ApiKey(msgspec.Struct, frozen=True):
    """One key, without its text.

    Attributes:
        name: what the operator calls it.
        scope: as configured: publish, read, all.
    """

    name: str
    scope: str

    def may(self, scope: Scope) -> bool:
        """Return whether methods of that scope are open to it."""
        return scope in _METHODS_OF[self.scope]


def find_key(configured: Iterable[str], shown: bytes) -> ApiKey | None:
    """Return the key that is shown; None if there is no such key."""
    found = None
    for entry in configured:
        name, scope, text = entry.split(":", 2)
        if hmac.compare_digest(text.encode(), shown) and found is None:
            found = ApiKey(name, scope)
    return found


def duplicate_name(configured: Iterable[str]) -> str | None:
    """Return a name that more than one key has; None if there is none."""
    names = set()
    for entry in configured:
        name = entry.partition(":")[0]
        if name in names:
            return name
        names.add(name)
    return None


def first_key_for(configured: Iterable[str], scope: Scope) -> str:
    """Return the text of the first key that is good for that scope; "" if there is none."""
    for entry in configured:
        name, granted, text = entry.split(":", 2)
        if ApiKey(name, granted).may(scope):
            return text
    return ""
