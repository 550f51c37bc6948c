"""The front door: one port for the page, the operator's endpoints and the WebSocket upgrade."""
