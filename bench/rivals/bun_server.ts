// Bun.serve with a topic. The shape is that of "Build a publish-subscribe WebSocket server" in Bun's documentation
// (bun.com/docs/guides/websocket/pubsub): server.publish() goes to all who subscribed, the sender included.
// Compression is off, and so are timeout and pings, which would be frames nobody counts.
//
//     bun bun_server.ts PORT

declare const Bun: any;

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2]),
  fetch(request: Request, server: any) {
    if (server.upgrade(request)) return undefined;
    return new Response("a WebSocket is expected", { status: 426 });
  },
  websocket: {
    perMessageDeflate: false,
    idleTimeout: 0,
    sendPings: false,
    open(socket: any) {
      socket.subscribe("room");
    },
    message(_socket: any, message: string) {
      server.publish("room", message);
    },
    close(socket: any) {
      socket.unsubscribe("room");
    },
  },
});

console.log(`Listening on ${server.hostname}:${server.port}`);
