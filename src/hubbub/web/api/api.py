"""The server API at the front door: who may come in, by the head alone; then what the body says, and the answer.

Rules:
1. Without a valid key nothing of a body is kept.
2. What isn't a request (no JSON, wrong types, unknown or missing members) is 400, and nothing is done. What can't be
   done is 200 with an error, as the structured dialect has them.
3. A body is JSON for everyone's reader: UTF-8, numbers as JSON has them, no half of a surrogate pair.
4. Nobody is ever shown a key, in an answer or in the log.
"""

import msgspec
import structlog

from hubbub.auth.api_keys import ApiKey, find_key
from hubbub.config import Settings
from hubbub.dialects.centrifugo.codes import RefusedError
from hubbub.web.api.errand import Errand, Means
from hubbub.web.api.methods import METHODS, carry_out, encode_error
from hubbub.web.api.openapi import describe
from hubbub.web.api.requests import Request as ApiRequest
from hubbub.web.http import JSON, READABLE, HttpError, Request, Response, check_method

API_PATH = "/api/"
DETAIL_CHARACTERS_MAX = 200
"""msgspec quotes unknown members; nobody needs all of a long one."""
DESCRIPTION_PATH = f"{API_PATH}openapi.json"

log = structlog.get_logger()

_well_formed = msgspec.json.Decoder(float_hook=str)  # JSON's numbers have no limits
_decoders: dict[str, msgspec.json.Decoder[ApiRequest]] = {
    name: msgspec.json.Decoder(method.request) for name, method in METHODS.items()
}


class Call(msgspec.Struct, frozen=True):
    """A request that has been let in.

    Attributes:
        method: one of METHODS.
        key: what it was let in with.
        body: as it came.
    """

    method: str
    key: ApiKey
    body: bytes = b""


class Api:
    """Shared by all connections of a node.

    Args:
        settings: api_keys.
        means: what methods work with.
    """

    def __init__(self, settings: Settings, means: Means) -> None:
        self._settings = settings
        self._means = means

    def enter(self, request: Request, path: str) -> Response | Call:
        """Return the call that a request is, as yet without its body; or the description of all calls.

        Raises:
            HttpError: it can't be let in: 401, 404, 405.
        """
        if not self._settings.api_keys:
            raise HttpError(404, 'there is no server API; api_keys = ["NAME:SCOPE:KEY"] in the settings opens it')
        if path == DESCRIPTION_PATH:
            check_method(request, READABLE)
            return Response(200, describe(), JSON)
        method = path.removeprefix(API_PATH)
        if method not in METHODS:
            known = ", ".join(METHODS)
            raise HttpError(404, f"{API_PATH}METHOD: allowed: {known}; {DESCRIPTION_PATH} describes them")
        check_method(request, ("POST",))
        return Call(method, self._find_key(request))

    async def answer(self, call: Call) -> Response:
        """Carry out a call. Waits `api_seconds_max` for the hub to take what it asks, and for the hub's answer.

        Raises:
            HttpError: 400, the body isn't what the method takes.
        """
        request = _decode(call)
        log.debug("api", method=call.method, key=call.key.name)
        try:
            result = await carry_out(Errand(self._means, call.key), call.method, request)
        except RefusedError as refused:
            return Response(200, encode_error(refused), JSON)
        if call.method == "batch":  # Centrifugo has no result around these
            return Response(200, result, JSON)
        return Response(200, b'{"result":%s}' % result, JSON)

    def _find_key(self, request: Request) -> ApiKey:
        shown = request.fields("x-api-key")
        if not shown:
            schemes = (field.partition(" ") for field in request.fields("authorization"))
            shown = [text.strip() for scheme, _, text in schemes if scheme.lower() == "apikey"]
        key = find_key(self._settings.api_keys, shown[0].encode("latin-1")) if len(shown) == 1 else None
        if key is None:
            got = "one that isn't configured" if len(shown) == 1 else f"{len(shown)} keys"
            detail = f"key: got {got}, allowed: X-API-Key: KEY, or Authorization: apikey KEY"
            raise HttpError(401, detail, (("WWW-Authenticate", "apikey"),))
        return key


def _decode(call: Call) -> ApiRequest:
    try:
        _well_formed.decode(call.body)
        return _decoders[call.method].decode(call.body)
    except UnicodeDecodeError as error:
        raise HttpError(400, "body: allowed: JSON in UTF-8") from error
    except RecursionError as error:
        raise HttpError(400, "body: JSON is nested too deeply") from error
    except msgspec.DecodeError as error:
        why = "".join(character if character.isprintable() else "?" for character in str(error))
        raise HttpError(400, f"body: {why[:DETAIL_CHARACTERS_MAX]}") from error
