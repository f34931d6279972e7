/* The receiver: answers callbacks and counts them, at a few microseconds each.
 *
 * usage: receiver ARRIVALS-FILE       prints the port that it listens on (all of 127.0.0.0/8)
 *
 * A callback is `POST /c/<number>`. What is kept of each is a slot in the arrivals file, whose
 * layout ledger.py describes; this process alone writes it, but for the two words that tell which
 * hosts misbehave. One thread, one epoll set, requests with a Content-Length, keep-alive.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ROOM = 64 * 1024, EVENTS = 256, REFUSALS = 2 };

struct header {
    uint64_t delivered, repeated, requests, unknown, unsigned_, body_bytes, refused, hung;
    volatile uint64_t failing_hosts, hanging_hosts;
    uint64_t capacity, reserved[5];
};

struct slot {
    uint64_t arrived_at;
    uint32_t delivered;
    uint16_t refused, hung;
};

struct connection {
    int fd;
    unsigned host; /* 127.0.0.1 is 0 */
    size_t used;
    char data[ROOM + 1];
};

struct request {
    size_t length; /* of head and body */
    size_t body;
    long long number; /* -1: not a callback */
    int is_signed;
};

static struct header *header;
static struct slot *slots;

static const char OK[] = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                         "Content-Length: 11\r\n\r\n{\"ok\":true}";
static const char FAILED[] = "HTTP/1.1 500 Internal Server Error\r\n"
                             "Content-Type: application/json\r\n"
                             "Content-Length: 12\r\n\r\n{\"ok\":false}";

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* 1: a whole request was read, 0: more bytes are needed, -1: this is none that we understand. */
static int parse(const char *data, size_t used, struct request *request)
{
    const char *end = memmem(data, used, "\r\n\r\n", 4);
    if (!end)
        return used < ROOM ? 0 : -1;
    request->number = strncmp(data, "POST /c/", 8) ? -1 : atoll(data + 8);
    request->is_signed = 0;
    long long body = -1;
    for (const char *line = memchr(data, '\n', used); line && line < end;
         line = memchr(line, '\n', end + 2 - line)) {
        line++;
        const char *colon = memchr(line, ':', end - line);
        if (!colon)
            break;
        if (colon - line == 14 && !strncasecmp(line, "content-length", 14))
            body = atoll(colon + 1);
        else if (colon - line >= 9 && !strncasecmp(colon - 9, "signature", 9))
            request->is_signed = 1;
    }
    if (body < 0 || body > ROOM)
        return -1;
    request->body = body;
    request->length = end + 4 - data + body;
    if (request->length > ROOM)
        return -1;
    return used >= request->length;
}

/* Count it; what to answer, or NULL for nothing at all. */
static const char *count(const struct request *request, unsigned host)
{
    header->requests++;
    header->body_bytes += request->body;
    header->unsigned_ += !request->is_signed;
    if (request->number < 0 || (uint64_t)request->number >= header->capacity) {
        header->unknown++;
        return OK;
    }
    struct slot *slot = &slots[request->number];
    if (host < header->failing_hosts && slot->refused < REFUSALS) {
        slot->refused++;
        header->refused++;
        return FAILED;
    }
    if (host >= header->failing_hosts && host < header->failing_hosts + header->hanging_hosts) {
        slot->hung++;
        header->hung++;
        return NULL;
    }
    if (slot->delivered++) {
        header->repeated++;
        return OK;
    }
    slot->arrived_at = now();
    /* Who sees the count sees the slot. */
    __atomic_fetch_add(&header->delivered, 1, __ATOMIC_RELEASE);
    return OK;
}

/* 0: keep it open. */
static int serve(struct connection *c)
{
    ssize_t got = read(c->fd, c->data + c->used, ROOM - c->used);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (got <= 0)
        return -1;
    c->used += got;
    c->data[c->used] = 0;
    for (;;) {
        struct request request;
        int whole = c->used ? parse(c->data, c->used, &request) : 0;
        if (whole <= 0)
            return whole;
        const char *answer = count(&request, c->host);
        /* An answer is far smaller than any socket buffer: it goes whole or the peer is gone. */
        if (answer && write(c->fd, answer, strlen(answer)) != (ssize_t)strlen(answer))
            return -1;
        c->used -= request.length;
        memmove(c->data, c->data + request.length, c->used + 1);
    }
}

static void welcome(int listener, int poll)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct sockaddr_in own;
        socklen_t size = sizeof own;
        int one = 1;
        if (getsockname(fd, (struct sockaddr *)&own, &size) ||
            ntohl(own.sin_addr.s_addr) >> 24 != 127) {
            close(fd); /* not from this machine */
            continue;
        }
        struct connection *c = malloc(sizeof *c);
        if (!c)
            die("malloc");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        c->used = 0;
        c->host = (ntohl(own.sin_addr.s_addr) & 0xffff) - 1;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event))
            die("epoll_ctl");
    }
}

static void map(const char *path)
{
    struct stat stat;
    int fd = open(path, O_RDWR);
    if (fd < 0 || fstat(fd, &stat))
        die(path);
    void *start = mmap(NULL, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (start == MAP_FAILED)
        die("mmap");
    header = start;
    slots = (struct slot *)(header + 1);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGPIPE, SIG_IGN);
    map(argv[1]);
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096) ||
        getsockname(listener, (struct sockaddr *)&address, &size))
        die("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    int poll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[EVENTS] = {{.events = EPOLLIN, .data.ptr = NULL}};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, listener, events))
        die("epoll_ctl");
    for (;;) {
        int ready = epoll_wait(poll, events, EVENTS, -1);
        for (int k = 0; k < ready; k++) {
            struct connection *c = events[k].data.ptr;
            if (!c) {
                welcome(listener, poll);
            } else if (serve(c)) {
                close(c->fd);
                free(c);
            }
        }
    }
}
