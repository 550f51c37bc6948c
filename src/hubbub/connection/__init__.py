"""One connection: its transport, its wire to trio-websocket, its outbox, its session, its end."""
