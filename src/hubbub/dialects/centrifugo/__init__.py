"""The structured dialect: version 2 of the client protocol of Centrifugo, in JSON.

hubbub speaks it so that the SDKs kept for it (JavaScript, Python, Dart, Swift, Java, Go, C#) connect unchanged. The
protocol is the work of Centrifugo's authors (https://centrifugal.dev); this is a server of our own for it. On the wire
a room is called *channel*; in here only where bytes are read or written.

    requests      what clients may send, as types
    codes         what they are told when something isn't possible, as tables
    dialect       what happens in a room, as bytes: encoded once for all
    conversation  one connection: commands in, replies out
"""
