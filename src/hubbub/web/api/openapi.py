"""The server API's description: OpenAPI 3.1, made of the table of methods and of the types of requests and results."""

import functools
from collections.abc import Mapping
from typing import Any

import msgspec

from hubbub import __version__
from hubbub.dialects.centrifugo.codes import Error
from hubbub.web.api import requests, results
from hubbub.web.api.methods import METHODS

_REFUSALS = {
    400: "Not what the method takes: malformed JSON, an unknown or missing member, a wrong type. Nothing was done.",
    401: "No key, or a wrong one.",
    404: "There is no such method, or no server API.",
    405: "It isn't a POST.",
    413: "The body is over api_body_bytes_max.",
    503: "The server is shutting down, or full.",
}
_ONE_OF_ITS_MEMBERS = (requests.Command, results.Reply, results.PublishedOne)


@functools.cache
def describe() -> bytes:
    """Return the description, as JSON."""
    types: list[type] = [Error, *_ONE_OF_ITS_MEMBERS]
    types += [kind for method in METHODS.values() for kind in (method.request, method.result)]
    references, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refer = dict(zip(types, references, strict=True))
    for kind in _ONE_OF_ITS_MEMBERS:
        schemas[kind.__name__] |= {"minProperties": 1, "maxProperties": 1}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "hubbub server API",
                "version": __version__,
                "description": "What a back end may do. A channel is what hubbub calls a room elsewhere.",
            },
            "security": [{"key": []}],
            "paths": {f"/api/{name}": {"post": _operation(name, refer)} for name in METHODS},
            "components": {
                "schemas": schemas,
                "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}},
            },
        }
    )


def _operation(name: str, refer: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    method = METHODS[name]
    result = refer[method.result] if name == "batch" else _object("result", refer[method.result])
    done = {"oneOf": [result, _object("error", refer[Error])]}
    refusals = {
        str(status): {"description": text, "content": {"text/plain": {"schema": {"type": "string"}}}}
        for status, text in _REFUSALS.items()
    }
    return {
        "operationId": name,
        "summary": method.request.__doc__,
        "requestBody": {"required": True, "content": {"application/json": {"schema": refer[method.request]}}},
        "responses": {
            "200": {
                "description": "What became of it; or why it wasn't done.",
                "content": {"application/json": {"schema": done}},
            },
            **refusals,
        },
    }


def _object(member: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {member: schema}, "required": [member]}
