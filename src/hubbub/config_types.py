"""What settings may be: the types of their values, each with what it allows in words; and a namespace's settings.

Used by `hubbub.config`, which holds all others.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Bytes = Annotated[int, Meta(ge=256, le=2**30)]
Total = Annotated[int, Meta(ge=1024, le=2**40)]
Seconds = Annotated[float, Meta(ge=0.001, le=86_400.0)]
Age = Annotated[float, Meta(ge=0.001, le=315_360_000.0)]
# The patterns keep out what would end in a ValueError of the operating system's calls, such as a NUL.
Host = Annotated[str, Meta(pattern=r"(?a)\A[\w.:%-]+\Z", extra={"allowed": "a host name or an IP address"})]
File = Annotated[str, Meta(pattern=r"\A[^\0]*\Z", extra={"allowed": "the path of a file, or nothing"})]
Name = Annotated[str, Meta(min_length=1)]
TEXT = {"allowed": "a string, or nothing"}
SWITCH = {"allowed": "true or false"}
Secret = Annotated[str, Meta(extra=TEXT | {"secret": True})]  # never shown, not even when it is a mistake
Who = Literal["nobody", "tokens", "subscribers", "users", "anonymous"]
Switch = Annotated[bool, Meta(extra={"allowed": "true or false"})]
Address = Annotated[
    str, Meta(pattern=r"(?a)\A(([\w.%-]+|\[[\w.:%-]+\]):[0-9]{1,5})?\Z", extra={"allowed": "HOST:PORT, or nothing"})
]
Networks = Annotated[
    list[Annotated[str, Meta(pattern=r"(?a)\A[0-9A-Fa-f.:]+(/[0-9]{1,3})?\Z")]],
    Meta(extra={"allowed": "a list of IP addresses or networks, such as 10.0.0.0/8"}),
]
NamespaceName = Annotated[
    str,
    Meta(pattern=r"(?a)\A[\w.-]{1,64}\Z", extra={"allowed": "a name of up to 64 ASCII letters, digits, _ . -"}),
]
Url = Annotated[
    str, Meta(pattern=r"\A(https?://[^\s\x00-\x1f]+)?\Z", extra={"allowed": "an http or https URL, or nothing"})
]
ApiKey = Annotated[str, Meta(pattern=r"(?a)\A[\w.-]{1,64}:(publish|read|all):[!-+\--~]{16,}\Z")]
OnFailure = Literal["allow", "deny"]
Notice = Literal["disconnect", "join", "leave", "room_opened", "room_emptied"]
Notices = Annotated[
    list[Notice], Meta(extra={"allowed": "a list of disconnect, join, leave, room_opened, room_emptied"})
]
Names = Annotated[list[Name], Meta(extra={"allowed": "a list of strings, none of them empty"})]

_NAMESPACE = {"group": "Rooms without a namespace, and what [namespaces.NAME] doesn't say: history, recovery, presence"}


class Namespace(msgspec.Struct, kw_only=True):
    """What is decided for a kind of rooms: those whose names begin with the namespace's, and a colon."""

    history_size: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Publications kept in a room, a few screens; 0: none.", extra=_NAMESPACE),
    ] = 100
    history_bytes_max: Annotated[Bytes, Meta(description="Bytes kept in a room: what one outbox can take at once.")] = (
        1_048_576
    )
    history_seconds_max: Annotated[
        Seconds, Meta(description="Age of what is kept: a client back after five minutes misses nothing.")
    ] = 300.0
    history_meta_seconds_max: Annotated[
        Age,
        Meta(
            description="How long a room that nobody is in keeps its epoch and offset after its last publication; "
            "Centrifugo's 30 days."
        ),
    ] = 2_592_000.0
    force_recovery: Annotated[
        Switch,
        Meta(description="Whether every subscription can be recovered where there is history; else those that ask."),
    ] = True
    force_positioning: Annotated[
        Switch, Meta(description="Whether every subscription has a position, as those with recovery have.")
    ] = False
    presence: Annotated[Switch, Meta(description="Whether clients may ask who is in a room.")] = True
    allow_subscribe: Annotated[
        Who,
        Meta(
            description="Who may join: those with a token for the room, unless it is nobody; tokens: only they; "
            "users: everyone whom a token names; anonymous: everyone. (subscribers is the same as tokens.)"
        ),
    ] = "anonymous"
    allow_publish: Annotated[Who, Meta(description="Who may publish; subscribers: those in the room.")] = "subscribers"
    allow_history: Annotated[
        Who, Meta(description="Who may read the room's history; whoever may join may recover it in any case.")
    ] = "subscribers"
    allow_presence: Annotated[Who, Meta(description="Who may ask who is in the room, and be told.")] = "subscribers"
    join_leave: Annotated[
        Switch,
        Meta(description="Whether joins and leaves are told to those who ask for them: n members, n x n messages."),
    ] = False
    force_join_leave: Annotated[
        Switch, Meta(description="Whether they are told to everyone with a dialect for it.")
    ] = False
    ask_subscribe: Annotated[Switch, Meta(description="Whether hook_subscribe_url, if there is one, is asked.")] = True
    ask_publish: Annotated[Switch, Meta(description="Whether hook_publish_url, if there is one, is asked.")] = True
    notify: Annotated[Switch, Meta(description="Whether hook_notices_url, if there is one, is told.")] = True
