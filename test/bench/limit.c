/* The limit: what talking to QEMU costs a C program that does no more than it must: sockets, write, read, no JSON.
 *
 *   limit calls COMMAND PATH        one command after the other
 *   limit fan COMMAND PATH...       a command to all monitors at once, by epoll
 *
 * Says "ready" once it is connected. For each line "N" on stdin it does so N times, and prints what that took: the
 * nanoseconds of CPU time, and those by the wall.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 18, EVENTS = 64 }; /* bytes of a read, more than QEMU's longest reply; answers taken at once */

static char block[BLOCK];

static void fail(const char *what)
{
    fprintf(stderr, "limit: %s: %s\n", what, strerror(errno));
    exit(1);
}

static long long now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* What has come, up to the end of a line; 0: the line is not over yet. */
static int took(int fd)
{
    ssize_t n = read(fd, block, BLOCK);
    if (n <= 0)
        fail("read");
    return block[n - 1] == '\n';
}

static void take(int fd)
{
    while (!took(fd))
        ;
}

static void say(int fd, const char *text, size_t length)
{
    if (write(fd, text, length) != (ssize_t)length)
        fail("write");
}

static int join(const char *path)
{
    static const char hello[] = "{\"execute\": \"qmp_capabilities\"}\n";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail(path);
    take(fd);
    say(fd, hello, sizeof hello - 1);
    take(fd);
    return fd;
}

static void calls(int fd, const char *command, size_t length, long count)
{
    for (long i = 0; i < count; i++) {
        say(fd, command, length);
        take(fd);
    }
}

static void fan(int poll, int *fds, int peers, const char *command, size_t length, long count)
{
    struct epoll_event events[EVENTS];
    for (long i = 0; i < count; i++) {
        for (int j = 0; j < peers; j++)
            say(fds[j], command, length);
        for (int left = peers; left;) {
            int n = epoll_wait(poll, events, EVENTS, -1);
            for (int j = 0; j < n; j++)
                left -= took(events[j].data.fd);
        }
    }
}

int main(int argc, char **argv)
{
    char command[256], line[64];
    if (argc < 4)
        return 2;
    int peers = argc - 3, *fds = calloc(peers, sizeof *fds), poll = epoll_create1(EPOLL_CLOEXEC);
    size_t length = snprintf(command, sizeof command, "{\"execute\": \"%s\"}\n", argv[2]);
    for (int i = 0; i < peers; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fds[i] = join(argv[3 + i])};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, fds[i], &event) < 0)
            fail("epoll_ctl");
    }
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        long count = atol(line);
        long long cpu = now(CLOCK_PROCESS_CPUTIME_ID), wall = now(CLOCK_MONOTONIC);
        if (strcmp(argv[1], "fan"))
            calls(fds[0], command, length, count);
        else
            fan(poll, fds, peers, command, length, count);
        wall = now(CLOCK_MONOTONIC) - wall;
        printf("%lld %lld\n", now(CLOCK_PROCESS_CPUTIME_ID) - cpu, wall);
        fflush(stdout);
    }
    return 0;
}
