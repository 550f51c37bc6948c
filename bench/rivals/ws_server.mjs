// Node and ws. The shape is that of "Server broadcast" in the README of ws (github.com/websockets/ws), the variant that
// sends to all, the sender included. Compression is off, as it is by default; ws sends no pings by itself.
//
//     node ws_server.mjs PORT

import WebSocket, { WebSocketServer } from "ws";

const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]), perMessageDeflate: false });

server.on("connection", (socket) => {
  socket.on("error", console.error);
  socket.on("message", (data, isBinary) => {
    server.clients.forEach((client) => {
      if (client.readyState === WebSocket.OPEN) client.send(data, { binary: isBinary });
    });
  });
});

server.on("listening", () => console.log(`listening on port ${server.address().port}`));
