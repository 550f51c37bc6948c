"""The server API's clients for tests."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from hubbub.node import Node
from servers import open_server

ALL, PUBLISH, READ = "all-0123456789abcdef", "pub-0123456789abcdef", "read-0123456789abcdef"
KEYS = [f"boss:all:{ALL}", f"web:publish:{PUBLISH}", f"desk:read:{READ}"]


class ApiError(Exception):
    """The server API has answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error)
        self.code: int = error["code"]
        self.message: str = error["message"]
        self.temporary: bool = error.get("temporary", False)


class BackEnd(msgspec.Struct):
    """A back end that calls the API.

    Attributes:
        node: the server's, where it is in this process.
    """

    http: httpx.AsyncClient
    port: int
    node: Node | None = None

    async def post(self, method: str, body: bytes, key: str = ALL) -> httpx.Response:
        """Send bytes as they are."""
        return await self.http.post(f"/api/{method}", content=body, headers={"X-API-Key": key} if key else {})

    async def call(self, method: str, /, *, key: str = ALL, **body: object) -> dict[str, Any]:
        """Call a method; return its result.

        Raises:
            ApiError: it is an error.
        """
        response = await self.post(method, json.dumps(body).encode(), key)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/json"
        answer = response.json()
        if "error" in answer:
            raise ApiError(answer["error"])
        assert set(answer) == {"replies" if method == "batch" else "result"}
        result: dict[str, Any] = answer if method == "batch" else answer["result"]
        return result


@contextlib.asynccontextmanager
async def open_back_end(port: int) -> AsyncIterator[BackEnd]:
    """Connect to a server's API."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
        yield BackEnd(http, port)


@contextlib.asynccontextmanager
async def open_api(**overrides: object) -> AsyncIterator[BackEnd]:
    """Run a server with the keys above in this process, and connect to its API."""
    async with open_server(tls=None, **{"api_keys": KEYS, **overrides}) as server, open_back_end(server.port) as api:
        api.node = server.node
        yield api
