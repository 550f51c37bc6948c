/* The kernel's floor: what is left if nothing is done but reading, and writing to all.
 *
 * The shape is that of the epoll(7) manual page. Just enough WebSocket: the handshake (RFC 6455, 4.2.2), text frames of
 * any length, a close; no fragments, no pings, no compression, no limits.
 *
 *     cc -O2 -o floor floor.c
 *     ./floor PORT              one send a delivery
 *     ./floor PORT --coalesce   all that was read in one turn of the loop goes out as one send a subscriber
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

struct buffer {
    unsigned char *data;
    size_t size, room;
};

struct peer {
    int fd, open, leaving; /* open: after the handshake */
    size_t place;          /* in `peers` */
    struct buffer in, out; /* out: what the kernel wouldn't take */
};

static struct peer **peers;
static size_t count, places;
static struct buffer tick; /* with --coalesce: this turn's frames */
static int loop, coalesce, leavers;

static void append(struct buffer *to, const void *data, size_t size) {
    if (to->size + size > to->room) {
        to->room = (to->size + size) * 2;
        if (!(to->data = realloc(to->data, to->room))) abort();
    }
    memcpy(to->data + to->size, data, size);
    to->size += size;
}

static void consume(struct buffer *from, size_t size) {
    from->size -= size;
    memmove(from->data, from->data + size, from->size);
}

static uint32_t rotate(uint32_t x, int by) { return x << by | x >> (32 - by); }

/* SHA-1 (RFC 3174) of a text that fits two blocks: the key and the GUID are 60 bytes. */
static void sha1(const unsigned char *text, size_t size, unsigned char digest[20]) {
    unsigned char blocks[128] = {0};
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    memcpy(blocks, text, size);
    blocks[size] = 0x80;
    blocks[126] = (unsigned char)(size * 8 >> 8);
    blocks[127] = (unsigned char)(size * 8);
    for (int b = 0; b < 2; b++) {
        uint32_t w[80], v[5];
        for (int i = 0; i < 16; i++) {
            const unsigned char *p = blocks + b * 64 + i * 4;
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        memcpy(v, h, sizeof v);
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20   ? ((v[1] & v[2]) | (~v[1] & v[3])) + 0x5A827999
                         : i < 40 ? (v[1] ^ v[2] ^ v[3]) + 0x6ED9EBA1
                         : i < 60 ? ((v[1] & v[2]) | (v[1] & v[3]) | (v[2] & v[3])) + 0x8F1BBCDC
                                  : (v[1] ^ v[2] ^ v[3]) + 0xCA62C1D6;
            uint32_t next = rotate(v[0], 5) + f + v[4] + w[i];
            v[4] = v[3], v[3] = v[2], v[2] = rotate(v[1], 30), v[1] = v[0], v[0] = next;
        }
        for (int i = 0; i < 5; i++) h[i] += v[i];
    }
    for (int i = 0; i < 20; i++) digest[i] = (unsigned char)(h[i / 4] >> (24 - i % 4 * 8));
}

static void base64(const unsigned char digest[20], char text[29]) {
    const char *letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char padded[21] = {0};
    memcpy(padded, digest, 20);
    for (int i = 0; i < 28; i++) {
        int bit = i * 6, at = bit / 8, pair = padded[at] << 8 | (at < 20 ? padded[at + 1] : 0);
        text[i] = letters[pair >> (10 - bit % 8) & 63];
    }
    text[27] = '=', text[28] = 0;
}

static void leave(struct peer *peer) { leavers = peer->leaving = 1; }

static void watch(struct peer *peer, int how, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = peer};
    epoll_ctl(loop, how, peer->fd, &event);
}

/* Send at once; what the kernel won't take waits for EPOLLOUT. */
static void say(struct peer *peer, const void *data, size_t size) {
    ssize_t sent = 0;
    if (!peer->out.size && (sent = send(peer->fd, data, size, MSG_NOSIGNAL)) < 0) {
        if (errno != EAGAIN) return leave(peer);
        sent = 0;
    }
    if ((size_t)sent == size) return;
    if (!peer->out.size) watch(peer, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    append(&peer->out, (const char *)data + sent, size - (size_t)sent);
}

static void to_all(const void *data, size_t size) {
    for (size_t i = 0; i < count; i++)
        if (peers[i]->open) say(peers[i], data, size);
}

static void say_the_rest(struct peer *peer) {
    ssize_t sent = send(peer->fd, peer->out.data, peer->out.size, MSG_NOSIGNAL);
    if (sent > 0) consume(&peer->out, (size_t)sent);
    else if (errno != EAGAIN) leave(peer);
    if (!peer->out.size) watch(peer, EPOLL_CTL_MOD, EPOLLIN);
}

static void shake_hands(struct peer *peer) {
    append(&peer->in, "", 1); /* for the string functions */
    peer->in.size--;
    char *text = (char *)peer->in.data, *end = strstr(text, "\r\n\r\n"), answer[200], accept[29];
    if (!end) return;
    char *key = strcasestr(text, "\r\nSec-WebSocket-Key: ");
    unsigned char joined[60], digest[20];
    if (!key || key + 21 + 24 > end) return leave(peer);
    memcpy(joined, key + 21, 24);
    memcpy(joined + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    sha1(joined, sizeof joined, digest);
    base64(digest, accept);
    int size = snprintf(answer, sizeof answer,
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
                        accept);
    say(peer, answer, (size_t)size);
    consume(&peer->in, (size_t)(end + 4 - text));
    peer->open = 1;
}

/* A text for all, at `text` in a buffer with at least 10 bytes before it, of which the header is made. */
static void deliver(unsigned char *text, size_t size) {
    unsigned char *start = text - (size < 126 ? 2 : size < 65536 ? 4 : 10);
    start[0] = 0x81;
    start[1] = (unsigned char)(size < 126 ? size : size < 65536 ? 126 : 127);
    for (unsigned char *at = text - 1, *stop = start + 1; at > stop; at--) *at = 0;
    for (size_t left = size, i = 1; size >= 126 && left; left >>= 8, i++) text[-i] = (unsigned char)left;
    if (coalesce) append(&tick, start, size + (size_t)(text - start));
    else to_all(start, size + (size_t)(text - start));
}

static void hear(struct peer *peer) {
    static unsigned char copy[16 + (1 << 20)];
    size_t at = 0;
    while (peer->in.size - at >= 6 && !peer->leaving) {
        unsigned char *frame = peer->in.data + at;
        size_t size = frame[1] & 127, extra = size == 126 ? 2 : size == 127 ? 8 : 0, head = 2 + extra + 4;
        if (peer->in.size - at < head) break;
        if (extra) size = 0;
        for (size_t i = 0; i < extra; i++) size = size << 8 | frame[2 + i];
        if (size > 1 << 20 || frame[0] == 0x88) {
            leave(peer);
        } else if (peer->in.size - at < head + size) {
            break;
        } else if (frame[0] == 0x81) {
            uint32_t key; /* four bytes at a time, which the compiler widens */
            memcpy(&key, frame + head - 4, 4);
            memcpy(copy + 16, frame + head, size);
            for (size_t i = 0; i < size; i += 4) {
                uint32_t part;
                memcpy(&part, copy + 16 + i, 4);
                part ^= key;
                memcpy(copy + 16 + i, &part, 4);
            }
            deliver(copy + 16, size);
        }
        at += head + size;
    }
    if (at) consume(&peer->in, at < peer->in.size ? at : peer->in.size);
}

static void receive(struct peer *peer) {
    static unsigned char block[65536];
    ssize_t size = recv(peer->fd, block, sizeof block, 0);
    if (size <= 0) {
        if (size == 0 || errno != EAGAIN) leave(peer);
        return;
    }
    append(&peer->in, block, (size_t)size);
    if (!peer->open) shake_hands(peer);
    if (peer->open) hear(peer);
}

static void welcome(int listener) {
    for (int fd, on = 1; (fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0;) {
        struct peer *peer = calloc(1, sizeof *peer);
        if (!peer) abort();
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (count == places && !(peers = realloc(peers, (places = places * 2 + 64) * sizeof *peers))) abort();
        peer->fd = fd;
        peers[peer->place = count++] = peer;
        watch(peer, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void farewell(void) {
    leavers = 0;
    for (size_t i = count; i-- > 0;) {
        struct peer *peer = peers[i];
        if (!peer->leaving) continue;
        (peers[i] = peers[--count])->place = i;
        close(peer->fd);
        free(peer->in.data);
        free(peer->out.data);
        free(peer);
    }
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "0"))};
    struct epoll_event events[256], listening = {.events = EPOLLIN};
    struct rlimit files;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    coalesce = argc > 2 && !strcmp(argv[2], "--coalesce");
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) return perror("floor"), 1;
    loop = epoll_create1(0);
    epoll_ctl(loop, EPOLL_CTL_ADD, listener, &listening);
    printf("listening on port %s\n", argv[1]);
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(loop, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            struct peer *peer = events[i].data.ptr;
            if (!peer) welcome(listener);
            else if (events[i].events & EPOLLOUT) say_the_rest(peer);
            if (peer && events[i].events & ~EPOLLOUT) receive(peer);
        }
        if (tick.size) to_all(tick.data, tick.size);
        tick.size = 0;
        if (leavers) farewell();
    }
}
