"""Every setting of a hubbub server: its meaning, its bounds, its default, and where its value comes from.

Rules:

- `Settings`, with the `Namespace` that it extends, is the one place where a setting is declared. The commented TOML
  of `hubbub config default`, the help of the command line and the lines that report a mistake are all made from its
  metadata (`config_sources`).
- A limit has its unit in its name (`_seconds`, `_bytes`, `_frames`, …) and is never absent: there is no
  "unlimited". Its comment says where the number comes from.
- A running server has one `Settings`, which all its parts share. What isn't in `FIXED` is looked at when it is
  needed, so changing it there changes it everywhere; a connection keeps the rates it began with.
- A `Namespace` is complete: what its table in the file doesn't say is copied from the top level when it is loaded.
- Only `config_sources.load` checks; a `Settings` made by hand, as tests do, is taken as it is.
"""

from typing import Annotated

from msgspec import Meta

from hubbub.config_types import (
    SWITCH,
    TEXT,
    Address,
    ApiKey,
    Bytes,
    Count,
    File,
    Host,
    LogFormat,
    LogLevel,
    Names,
    Namespace,
    NamespaceName,
    Networks,
    Notices,
    OnFailure,
    Seconds,
    Secret,
    Switch,
    Total,
    Url,
)

# A field whose metadata names a group is the first of that group.
_SERVER = {"group": "Server"}
_WHO = {"group": "Who may come: tokens, which a back end signs for its users"}
_API = {"group": "Server API: what a back end may do over HTTP"}
_HOOKS = {"group": "Event hooks: what a back end is asked and told, by POST"}
_FRONT_DOOR = {"group": "Front door: what a client may do before it speaks"}
_MESSAGES = {"group": "Messages: what a client may send"}
_RATES = {"group": "Rates: how fast a client may send, and how much that costs"}
_OUTBOX = {"group": "Outbox: what waits to be written to one client"}
_HUB = {"group": "Hub: the one place where everything gets its order"}
_ROOMS = {"group": "All rooms"}
_RETRIES = {"group": "Idempotency: a publish repeated with its key isn't a second publication"}
_HEARTBEAT = {"group": "Heartbeat"}
_ENDING = {"group": "Ending: of a connection, and of the server"}


class Settings(Namespace, kw_only=True):
    """What one server runs with; itself the namespace of rooms without a colon in their names.

    A description is the comment that its field gets in the TOML file.
    """

    host: Annotated[Host, Meta(description="Address to listen on.", extra=_SERVER)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="TCP port; 0 takes a free one.")] = 8000
    tls_cert: Annotated[File, Meta(description="PEM file of the certificate chain; empty for no TLS.")] = ""
    tls_key: Annotated[File, Meta(description="PEM file of the certificate's private key.")] = ""
    allowed_hosts: Annotated[
        Names,
        Meta(description='Host names answered to; empty: loopback names and the bound address; "*": any.'),
    ] = []
    allowed_origins: Annotated[
        Names,
        Meta(
            description='Origins of web pages that may connect, such as "https://*.example.com"; empty: the '
            'host they connect to; "*": any. A client that names no origin is no browser and may connect.'
        ),
    ] = []
    trusted_proxies: Annotated[
        Networks,
        Meta(
            description="Addresses or networks of reverse proxies whose Forwarded or X-Forwarded-For header is "
            "believed; the client it names is the one that counts."
        ),
    ] = []
    proxy_protocol: Annotated[
        Switch,
        Meta(description="Whether connections begin with a PROXY protocol v2 header, from trusted_proxies only."),
    ] = False
    metrics_address: Annotated[
        Address,
        Meta(description="HOST:PORT at which /metrics is answered instead, in plain HTTP; empty: the one port."),
    ] = ""
    log_format: Annotated[
        LogFormat, Meta(description="Form of the log on stderr; auto: text on a terminal, else json.")
    ] = "auto"
    log_level: Annotated[LogLevel, Meta(description="Least severe log level that is written.")] = "info"

    anonymous: Annotated[
        Switch,
        Meta(
            description="Whether clients may come without a token. On loopback, and with no keys configured, they may "
            "anyway.",
            extra=_WHO | SWITCH,
        ),
    ] = False
    insecure: Annotated[
        Switch, Meta(description="For play: everyone may do everything. A token that is shown is still checked.")
    ] = False
    plain: Annotated[Switch, Meta(description="Whether the plain dialect is spoken, at /chat.")] = True
    token_hmac_secret: Annotated[
        Secret, Meta(description="Secret for HS256, HS384 and HS512; at least 32 random characters are wise.")
    ] = ""
    token_hmac_secret_previous: Annotated[
        Secret, Meta(description="The secret before: also accepted, while a new one gets around.")
    ] = ""
    token_public_keys: Annotated[
        Names, Meta(description="PEM files of public keys, RSA or elliptic, for RS and ES 256, 384 and 512.")
    ] = []
    token_jwks: Annotated[
        File, Meta(description="JSON Web Key Set: a file, or an http(s) URL that is read again and again.")
    ] = ""
    token_jwks_seconds: Annotated[
        Seconds, Meta(description="How often that URL is read; the last good set is kept.")
    ] = 300.0
    token_issuer: Annotated[str, Meta(description='What "iss" must be; empty: anything.', extra=TEXT)] = ""
    token_audience: Annotated[str, Meta(description='What "aud" must hold; empty: anything.', extra=TEXT)] = ""
    token_leeway_seconds: Annotated[
        float, Meta(ge=0.0, le=3_600.0, description="How much the clocks of signer and server may differ.")
    ] = 10.0
    token_bytes_max: Annotated[Bytes, Meta(description="One token; half a request head.")] = 8_192
    token_grace_seconds_max: Annotated[
        Seconds, Meta(description="A client whose token has expired may bring a new one for that long; Centrifugo's.")
    ] = 25.0

    api_keys: Annotated[
        list[ApiKey],
        Meta(
            description="Who may use the server API, as NAME:SCOPE:KEY; SCOPE: publish, read or all. None: there is no "
            "server API.",
            extra=_API
            | {
                "allowed": "a list of NAME:SCOPE:KEY, each NAME once; SCOPE publish, read or all; KEY 16 or more "
                "printable ASCII characters without commas",
                "secret": True,
            },
        ),
    ] = []
    api_address: Annotated[
        Address,
        Meta(description="HOST:PORT at which the server API is answered instead, in plain HTTP; empty: the one port."),
    ] = ""
    api_body_bytes_max: Annotated[
        Bytes, Meta(description="A request's body, with a valid key: a batch of sixteen of the largest messages.")
    ] = 1_048_576
    api_seconds_max: Annotated[
        Seconds, Meta(description="A request's wait for the hub to take it; as patient as head_seconds_max.")
    ] = 10.0

    hook_secret: Annotated[
        Secret, Meta(description="Signs what is sent (HMAC-SHA-256); at least 32 random characters.", extra=_HOOKS)
    ] = ""
    hook_connect_url: Annotated[
        Url, Meta(description="Asked when a client connects: who is it, may it, which rooms does it join?")
    ] = ""
    hook_connect_seconds_max: Annotated[Seconds, Meta(description="How long the answer may take.")] = 3.0
    hook_connect_on_failure: Annotated[OnFailure, Meta(description="What then; deny: it may come back.")] = "deny"
    hook_subscribe_url: Annotated[
        Url, Meta(description="Asked when a client joins a room, in namespaces with ask_subscribe.")
    ] = ""
    hook_subscribe_seconds_max: Annotated[Seconds, Meta(description="How long the answer may take.")] = 3.0
    hook_subscribe_on_failure: Annotated[OnFailure, Meta(description="What then; deny: for now.")] = "deny"
    hook_publish_url: Annotated[
        Url, Meta(description="Asked when a client publishes, in namespaces with ask_publish.")
    ] = ""
    hook_publish_seconds_max: Annotated[Seconds, Meta(description="How long the answer may take.")] = 3.0
    hook_publish_on_failure: Annotated[OnFailure, Meta(description="What then; deny: this publication.")] = "deny"
    hook_requests_max: Annotated[
        Count, Meta(description="Questions under way at once; more wait, which counts as time of theirs.")
    ] = 64
    hook_notices_url: Annotated[
        Url, Meta(description="Told what has happened, in order, at least once; rooms of namespaces with notify.")
    ] = ""
    hook_notices: Annotated[Notices, Meta(description="Which of them are told; empty: all.")] = []
    hook_notices_seconds_max: Annotated[
        Seconds, Meta(description="How long the answer to a delivery of notices may take, before it is repeated.")
    ] = 10.0
    hook_notices_bytes_max: Annotated[
        Bytes, Meta(description="Notices waiting to be told: some 60,000. Beyond it they are lost, and that is told.")
    ] = 16_777_216
    hook_notices_age_seconds_max: Annotated[
        Seconds, Meta(description="How long a notice is repeated before it is given up: an hour's outage.")
    ] = 3_600.0

    connections_max: Annotated[
        Count, Meta(description="Connections served at once: the classic C10K.", extra=_FRONT_DOOR)
    ] = 10_000
    connections_spare: Annotated[
        Count, Meta(description="Connections above that, only to answer /health, /metrics and 503.")
    ] = 64
    connections_per_address_max: Annotated[
        Count, Meta(description="Connections of one client address (IPv6: /64): a large office behind one router.")
    ] = 512
    connections_per_user_max: Annotated[
        Count, Meta(description="Connections of one user: as many as of one address.")
    ] = 512
    head_bytes_max: Annotated[
        Bytes, Meta(description="Request line and headers; nginx and Node.js allow 8 to 16 KiB.")
    ] = 16_384
    head_seconds_max: Annotated[
        Seconds, Meta(description="TLS handshake and request head together; ample for a slow mobile link.")
    ] = 10.0
    keepalive_seconds_max: Annotated[
        Seconds, Meta(description="An idle connection's wait for the next request; nginx's default.")
    ] = 75.0
    body_bytes_max: Annotated[
        Bytes, Meta(description="A request's body, which is read and discarded; as much as one message.")
    ] = 65_536

    message_bytes_max: Annotated[Bytes, Meta(description="One message; Centrifugo's default.", extra=_MESSAGES)] = (
        65_536
    )
    message_fragments_max: Annotated[
        Count, Meta(description="WebSocket frames of one message: the largest one, in pieces of 1 KiB.")
    ] = 64
    message_commands_max: Annotated[
        Count, Meta(description="Commands in one message of the structured dialect: eight for each of its rooms.")
    ] = 1_024
    message_depth_max: Annotated[
        Count, Meta(description="Arrays and objects in each other in what is published; readers recurse, too.")
    ] = 128
    control_frames_per_second_max: Annotated[
        Count, Meta(description="Pings and pongs; a browser sends one pong per ping, so this is no limit for it.")
    ] = 10

    publications_per_second_max: Annotated[
        Count,
        Meta(
            description="Of one client, on average. In a room of rate_occupancy that is 20,000 deliveries per "
            "second: a tenth of a core, a fifth on a slow machine. Beyond it, reading from that client pauses.",
            extra=_RATES,
        ),
    ] = 200
    publications_burst_max: Annotated[
        Count, Meta(description="Of one client at once, after a quiet time: five seconds' worth.")
    ] = 1_000
    publication_bytes_per_second_max: Annotated[
        Bytes, Meta(description="Of one client, on average: 16 of the largest messages.")
    ] = 1_048_576
    publication_bytes_burst_max: Annotated[
        Bytes, Meta(description="Of one client at once, after a quiet time: four seconds' worth.")
    ] = 4_194_304
    rate_occupancy: Annotated[
        Count, Meta(description="In a room k times as full, a publication counts k times against the rates.")
    ] = 100
    rate_seconds_max: Annotated[
        Seconds, Meta(description="A client that is too fast for that long is disconnected; pauses are hint enough.")
    ] = 30.0

    outbox_bytes_max: Annotated[Bytes, Meta(description="Bytes waiting; Centrifugo's client queue.", extra=_OUTBOX)] = (
        1_048_576
    )
    outbox_frames_max: Annotated[Count, Meta(description="Frames waiting: outbox_bytes_max in frames of 64 bytes.")] = (
        16_384
    )
    outboxes_bytes_max: Annotated[
        Total, Meta(description="Bytes waiting for all clients together; those with most are evicted: 256 full ones.")
    ] = 268_435_456
    write_stall_seconds_max: Annotated[
        Seconds, Meta(description="A write's wait for the client to read; as patient as head_seconds_max.")
    ] = 10.0

    inbox_commands_max: Annotated[
        Count, Meta(description="Commands waiting for the hub: 4 KiB each fill inbox_bytes_max.", extra=_HUB)
    ] = 4_096
    inbox_bytes_max: Annotated[
        Bytes, Meta(description="Bytes waiting for the hub: 256 messages of the largest size.")
    ] = 16_777_216
    pass_commands_max: Annotated[
        Count, Meta(description="Commands, or messages, handled before what they did is handed out: some 10 ms.")
    ] = 1_024
    pass_seconds_max: Annotated[
        Seconds, Meta(description="Handling commands without letting others run; below what a person notices.")
    ] = 0.01
    frames_at_once_max: Annotated[
        Count, Meta(description="Frames of one client before others may run: some 0.06 ms.")
    ] = 32
    gather_passes_max: Annotated[
        int,
        Meta(
            ge=0,
            le=64,
            description="Looks at what else has come before the hub hands out, each at up to 128 connections, and only "
            "if the last one found something.",
        ),
    ] = 16

    rooms_max: Annotated[
        Count, Meta(description="Rooms at once: ten for each connection of connections_max.", extra=_ROOMS)
    ] = 100_000
    subscribers_max: Annotated[
        int, Meta(ge=0, le=10_000_000, description="Subscribers of one room; 0: as many as there are connections.")
    ] = 0
    rooms_per_connection_max: Annotated[Count, Meta(description="Rooms of one client; Centrifugo's default.")] = 128
    recovery_publications_max: Annotated[
        Count, Meta(description="Publications of one answer, of history or recovery; Centrifugo's default.")
    ] = 300
    histories_bytes_max: Annotated[
        Total,
        Meta(description="Bytes kept in all rooms together: 256 full ones. The longest quiet goes first."),
    ] = 268_435_456
    namespaces: Annotated[
        dict[NamespaceName, Namespace],
        Meta(
            description="A room with a colon in its name belongs to the namespace before the first one, and there is "
            "no such room without that namespace. What a table doesn't say is as above.",
            extra={"allowed": "tables [namespaces.NAME]"},
        ),
    ] = {}

    idempotency_seconds_max: Annotated[
        Seconds, Meta(description="How long a key is remembered, at least: five minutes of retries.", extra=_RETRIES)
    ] = 300.0
    idempotency_keys_max: Annotated[
        Count,
        Meta(
            description="Keys remembered in one room; beyond it, publishes with a key are refused for now. One user "
            "may have a quarter; strangers stop where half are taken, users at three quarters."
        ),
    ] = 10_000
    idempotency_keys_total_max: Annotated[
        Count, Meta(description="Keys remembered in all rooms together: some 50 MB. One user may have a sixteenth.")
    ] = 100_000

    ping_seconds: Annotated[
        Seconds,
        Meta(description="Time between pings; below proxies' idle time-outs, 30 to 60 s.", extra=_HEARTBEAT),
    ] = 25.0
    pong_seconds_max: Annotated[
        Seconds, Meta(description="Wait for the answer to a ping; as patient as write_stall_seconds_max.")
    ] = 10.0
    stale_seconds_max: Annotated[
        Seconds, Meta(description="Wait for a structured client's connect, or for its end after a refused one.")
    ] = 10.0

    close_seconds_max: Annotated[
        Seconds, Meta(description="Wait for a client's half of the closing handshake.", extra=_ENDING)
    ] = 5.0
    linger_seconds_max: Annotated[
        Seconds, Meta(description="Reading on after a refusal or a Close, lest a TCP reset destroy it.")
    ] = 1.0
    linger_bytes_max: Annotated[
        Bytes, Meta(description="Bytes read on after a refusal or a Close: sixteen of the largest bodies.")
    ] = 1_048_576
    drain_seconds_max: Annotated[
        Seconds, Meta(description="From SIGTERM to the end; below the 30 s grace period of Kubernetes.")
    ] = 20.0

    def namespace(self, room: str) -> Namespace | None:
        """Return what holds for a room of that name; None if it names a namespace that there isn't."""
        if ":" not in room:
            return self
        return self.namespaces.get(room.partition(":")[0].removeprefix("$"))

    @property
    def has_keys(self) -> bool:
        """Whether any token could be verified."""
        return bool(self.token_hmac_secret or self.token_public_keys or self.token_jwks)


FIXED = frozenset(
    {
        "api_address",
        "connections_max",
        "connections_spare",
        "host",
        "inbox_bytes_max",
        "inbox_commands_max",
        "log_format",
        "metrics_address",
        "port",
        "tls_cert",
        "tls_key",
    }
)
"""What is fixed when the server starts. (The certificate's *files* are read again.)"""
