"""The model beside the hub: from what clients ask, in the order in which the hub gets to it, what each must read.

It knows the promises, not the code: all that was ever said in a room, under which epoch; who is there; which keys
are remembered. From that follows every reply and every push, word for word but for the texts of errors.
"""

import base64
import json

import msgspec

from dialect_driver import KEY_SECONDS, META_SECONDS, SECONDS, Client, Driver, Frame, Json, PlainClient
from hubbub.config import Settings
from hubbub.core.frames import BINARY, TEXT
from hubbub.model.command import Command
from hubbub.model.end import End
from hubbub.model.publication import Member


class Said(msgspec.Struct, frozen=True):
    """One publication, as each dialect must tell it."""

    data: object
    frame: Frame
    by: Json
    time: float

    def as_json(self, offset: int, stored: bool) -> Json:
        return {"data": self.data, "info": self.by} | ({"offset": offset} if stored else {})


class Life(msgspec.Struct):
    """Everything that was said in a room under one epoch; and when it was last of use to anyone."""

    epoch: str
    said: list[Said]
    touched: float


class World(Driver):
    """The model beside the hub."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.inbox: list[tuple[Client | PlainClient, Command, Json]] = []
        self.leaves: list[Client | PlainClient] = []
        self.clients: list[Client | PlainClient] = []  # those that read
        self.members: dict[str, dict[Client | PlainClient, bool]] = {}  # by room: whether it watches joins
        self.lives: dict[str, list[Life]] = {}  # by room; the last one is the present one
        self.keys: dict[tuple[str, str, str], tuple[Json, float, str]] = {}
        self.in_pass = False
        self.number = 0  # of the command

    def new_epoch(self) -> str:
        """P5: an epoch ends only when nobody was there for long enough."""
        lives = self.lives.setdefault(self.room, [])
        assert not lives or (not self.members.get(self.room) and lives[-1].touched < self.now - META_SECONDS)
        epoch = super().new_epoch()
        lives.append(Life(epoch, [], self.now))
        return epoch

    # -- what happens

    def arrive(self, client: Client) -> None:
        """The client's frame gets to the inbox."""
        self.inbox += [(client, command, asked) for command, asked in client.send()]

    def begin_pass(self) -> None:
        if not self.in_pass:
            self.in_pass = True
            for client in self.leaves:
                self.hub.leave(client)
                client.left = True
                for room in [room for room, members in self.members.items() if client in members]:
                    self.part(client, room)
            self.leaves = []

    def work(self) -> None:
        """Carry out the next command, then let the model say what must come of it."""
        self.begin_pass()
        client, command, asked = self.inbox.pop(0)
        (method, body), *_ = ((key, value) for key, value in asked.items() if key != "id")
        self.room = body.get("channel", "")
        self.carry_out(command)
        if isinstance(client, PlainClient):
            self.expect_plain(client, method, body)
            return
        self.number = asked["id"]
        if client.gone and method != "publish":
            return  # who has left isn't answered; what it has said is said
        answer = getattr(self, f"expect_{method}")(client, body)
        reply = {"id": asked["id"]} | ({"error": answer} if isinstance(answer, int) else {method: answer})
        client.replies.append(reply)

    def end_pass(self) -> None:
        """Hand out everything; everyone has read what the model says."""
        self.begin_pass()
        self.hand_out_all()
        self.in_pass = False
        for client in self.clients:
            client.check()
        statistics = self.hub.statistics()
        assert statistics.subscriptions == sum(map(len, self.members.values()))
        assert statistics.rooms == sum(map(bool, self.members.values()))

    def disconnect(self, client: Client | PlainClient) -> None:
        """The client goes, whatever of its is under way; the hub learns of it when its next pass begins."""
        client.gone = True
        client.ended = End.PEER_LEFT
        client.check()
        self.clients.remove(client)
        self.leaves.append(client)

    # -- what must come of it

    def touch(self, room: str) -> Life:
        life = self.lives[room][-1]
        life.touched = self.now
        return life

    def happen(self, room: str, push: Json, frame: Frame | None = None) -> None:
        """P1, P2, P3: whoever is in the room hears of it, after what it has heard there before."""
        for member, watches in self.members.get(room, {}).items():
            if isinstance(member, PlainClient):
                member.story += [frame] if frame else []
            elif watches or frame:
                member.story.setdefault(room, []).append({"push": {"channel": room, **push}})

    def join(self, client: Client | PlainClient, room: str, watches: bool) -> None:
        self.members.setdefault(room, {})[client] = watches
        self.tell(client, room, "join")

    def part(self, client: Client | PlainClient, room: str) -> None:
        """P7: one leave a join, after it; not for who leaves."""
        if self.members.get(room, {}).pop(client, None) is not None:
            self.tell(client, room, "leave")

    def tell(self, client: Client | PlainClient, room: str, what: str) -> None:
        space = self.limits.namespace(room)
        if space and space.join_leave:
            self.happen(room, {what: {"info": info(client.member)}})

    def say(self, client: Client | PlainClient, room: str, data: object, frame: Frame) -> Json:
        """P4: it is in the room's order, at the next place; return the position."""
        life, stored = self.touch(room), self.keeps(room)
        life.said.append(Said(data, frame, info(client.member), self.now))
        offset = len(life.said)
        self.happen(room, {"pub": life.said[-1].as_json(offset, stored)}, frame)
        return {"offset": offset, "epoch": life.epoch} if stored else {}

    def keeps(self, room: str) -> bool:
        space = self.limits.namespace(room)
        return space is not None and space.history_size > 0

    def stored(self, room: str) -> list[tuple[int, Said]]:
        """Return what must be stored now, with offsets: neither too much nor too old."""
        said = self.lives[room][-1].said
        space = self.limits.namespace(room)
        assert space
        first = max(0, len(said) - space.history_size)
        numbered = list(enumerate(said, 1))[first:]
        return [(offset, each) for offset, each in numbered if each.time >= self.now - SECONDS]

    def expect_connect(self, client: Client, body: Json) -> object:
        return {"client": client.member.client}

    def expect_rpc(self, client: Client, body: Json) -> object:
        return 108

    def expect_subscribe(self, client: Client, body: Json) -> object:
        """P5: recovered, wherever all that was missed is stored in the same epoch, and few enough; else not."""
        room = body["channel"]
        space = self.limits.namespace(room)
        if space is None:
            return 102
        if client.gone:
            return 100
        if client in self.members.get(room, {}):
            return 105
        if sum(client in members for members in self.members.values()) >= self.limits.rooms_per_connection_max:
            return 106
        life = self.touch(room)
        top = len(life.said)
        recoverable = space.history_size > 0 and (space.force_recovery or body.get("recoverable", False))
        missed = [(offset, said) for offset, said in self.stored(room) if offset > body.get("offset", 0)]
        recovered = (
            body.get("recover", False)
            and recoverable
            and body["epoch"] in ("", life.epoch)
            and len(missed) == top - body["offset"] <= self.limits.recovery_publications_max
        )
        if body.get("recover") and not recovered and body["flag"] & 2:
            return 112
        result: Json = {"recoverable": True} if recoverable else {}
        if recoverable or body.get("positioned"):
            result |= {"positioned": True, "epoch": life.epoch, "offset": body["offset"] if recovered else top}
        if recovered:
            result["recovered"] = True
            if missed:
                result["publications"] = [said.as_json(offset, True) for offset, said in missed]
        if body.get("recover"):
            result["was_recovering"] = True
        reply = {"id": self.number, "subscribe": result}
        client.story.setdefault(room, []).append(reply)
        self.join(client, room, space.join_leave and (space.force_join_leave or body.get("join_leave", False)))
        return result

    def expect_unsubscribe(self, client: Client, body: Json) -> object:
        client.story.setdefault(body["channel"], []).append({"id": self.number, "unsubscribe": {}})
        self.part(client, body["channel"])
        return {}

    def expect_publish(self, client: Client, body: Json) -> object:
        """P6: a key is good for one publication, of one user in one room, for its time; and nobody takes all keys."""
        room, key = body["channel"], (body["channel"], client.member.user, body.get("idempotency_key", ""))
        if self.limits.namespace(room) is None:
            return 102
        if key[2]:
            self.keys = {name: result for name, result in self.keys.items() if result[1] >= self.now - KEY_SECONDS}
            if key in self.keys:
                return self.keys[key][0]
            member, limits = client.member, self.limits
            holder, full = member.user or member.client, 3 / 4 if member.user else 1 / 2
            holders = [result[2] for result in self.keys.values()]
            in_room = [result[2] for name, result in self.keys.items() if name[0] == room]
            for most, found, share in (
                (limits.idempotency_keys_max, in_room, 1 / 4),
                (limits.idempotency_keys_total_max, holders, 1 / 16),
            ):
                if len(found) >= most * full or found.count(holder) >= most * share:
                    return 111
        data = body["data"]
        text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
        position = self.say(client, room, data, (TEXT, text.encode()))
        if key[2]:
            self.keys[key] = (position, self.now, client.member.user or client.member.client)
        if client in self.members.get(room, {}):
            client.own.append((client.story[room][-1], {"id": self.number, "publish": position}))
        return position

    def expect_history(self, client: Client, body: Json) -> object:
        room, since, reverse = body["channel"], body.get("since"), body.get("reverse", False)
        if since and reverse and not since["offset"]:
            return 107
        if self.limits.namespace(room) is None:
            return 102
        if not self.keeps(room):
            return 108
        life = self.touch(room)
        if since and since["epoch"] not in ("", life.epoch):
            return 112
        stored = self.stored(room)[:: -1 if reverse else 1]
        if since:
            stored = [each for each in stored if (each[0] < since["offset"] if reverse else each[0] > since["offset"])]
        limit, most = body["limit"], self.limits.recovery_publications_max
        stored = stored[: most if limit < 0 else min(limit, most)]
        told = [said.as_json(offset, True) for offset, said in stored]
        return {"publications": told, "epoch": life.epoch, "offset": len(life.said)}

    def expect_presence(self, client: Client, body: Json) -> object:
        space = self.limits.namespace(body["channel"])
        if space is None or not space.presence:
            return 102 if space is None else 108
        members = self.members.get(body["channel"], {})
        return {"presence": {member.member.client: info(member.member) for member in members}}

    def expect_presence_stats(self, client: Client, body: Json) -> object:
        space = self.limits.namespace(body["channel"])
        if space is None or not space.presence:
            return 102 if space is None else 108
        members = self.members.get(body["channel"], {})
        return {"num_clients": len(members), "num_users": len({member.member.user for member in members})}

    def expect_plain(self, client: PlainClient, method: str, body: Json) -> None:
        if method == "publish":
            frame = body["frame"]
            binary = frame[0] == BINARY
            data = {"b64": base64.b64encode(frame[1]).decode()} if binary else frame[1].decode()
            self.say(client, client.room, data, frame)
        elif not client.gone:
            self.touch(client.room)
            stored = self.stored(client.room)
            client.story += [said.frame for _, said in stored[max(0, len(stored) - client.history) :]]
            self.join(client, client.room, watches=False)


def info(member: Member) -> Json:
    """Return what the protocol calls ClientInfo."""
    return {"user": member.user, "client": member.client}
