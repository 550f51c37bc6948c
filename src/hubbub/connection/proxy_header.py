"""Reading a PROXY protocol header from a connected socket, and not a byte more: TLS or HTTP follows."""

import socket

import trio

from hubbub.core.proxy_protocol import FIXED_BYTES, read_header


async def receive_proxy_header(connected: socket.socket) -> str | None:
    """Wait for the header; return the client's address, None if the proxy speaks for itself. No deadline of its own.

    The socket stays the caller's to close.

    Raises:
        ProxyProtocolError: that isn't one.
        trio.BrokenResourceError: the connection ended before it was complete.
    """
    data = b""
    while True:
        header = read_header(data)
        if header is not None:
            return header[0]
        length = FIXED_BYTES + (int.from_bytes(data[14:16], "big") if len(data) >= FIXED_BYTES else 0)
        await trio.lowlevel.wait_readable(connected)
        try:
            received = connected.recv(length - len(data))
        except BlockingIOError:
            continue
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        if not received:
            raise trio.BrokenResourceError("ended within the PROXY protocol header")
        data += received
