/* The test guest's helper: everything that must be cheap, punctual or exact enough that a shell cannot do it.
 *
 *   helper beat              on ttyS1: "B <n>" every 5 ms, from 1; "S" once before the first
 *   helper watch             on ttyS1: "V <disk>=<sectors>,... <nic>=<address>/<state>,..." when it changes;
 *                            powers off on the power button unless /run/ignore-power-button exists
 *   helper serve             on ttyS0: "#READY <release>", then runs each "#<id> <length> <shell command>" and answers
 *                            "\n#<id> BEGIN\n" output "\n#<id> END <exit code> <length of output>\n"
 *   helper dirty RATE SIZE   in the background, dirties RATE MiB of memory a second (0: all it can) in SIZE MiB
 *   helper dirty-stop        stops that and prints "<MiB dirtied> <seconds>"
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum {
    BEAT_NS = 5000000,       /* the resolution of a measured blackout */
    LOOK_NS = 50000000,      /* how late a new disk or NIC may be reported; a look costs some 100 us under TCG */
    LOOKS_PER_REPEAT = 20,   /* an unchanged view is said again each second, for a host that connects late */
    SLICE_NS = 10000000,     /* dirtying is metered over this: far below a migration round, far above a timer tick */
    COMMAND_MAX = 65536,     /* of a shell line; longer ones belong into a file */
    VIEW_MAX = 32768,        /* of a report: 128 disks and 128 NICs take 7,000 bytes */
    BUTTONS_MAX = 8,         /* input devices looked at for a power button; a machine has two or three */
    PAGE = 4096,
};
static const long SECOND_NS = 1000000000L;

static int fail(const char *what)
{
    fprintf(stderr, "helper: %s: %s\n", what, strerror(errno));
    return 1;
}

static int open_raw(const char *path)
{
    struct termios t;
    int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || tcgetattr(fd, &t) < 0)
        return -1;
    cfmakeraw(&t);
    t.c_cflag |= CLOCAL;
    cfsetspeed(&t, B115200);
    return tcsetattr(fd, TCSANOW, &t) < 0 ? -1 : fd;
}

static void write_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t n = write(fd, data, length);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            exit(fail("write"));
        if (n > 0) {
            data += n;
            length -= n;
        }
    }
}

__attribute__((format(printf, 2, 3))) static void say(int fd, const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    write_all(fd, line, n < (int)sizeof line ? n : (int)sizeof line - 1);
}

/* -- time ------------------------------------------------------------------------------------------------------ */

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND_NS + t.tv_nsec;
}

/* Sleeps to the next multiple of step after *deadline. One that is a second behind starts afresh: no endless burst. */
static void sleep_step(int64_t *deadline, int64_t step)
{
    *deadline += step;
    int64_t now = now_ns();
    if (now - *deadline > SECOND_NS)
        *deadline = now;
    struct timespec t = {*deadline / SECOND_NS, *deadline % SECOND_NS};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

/* -- beat ------------------------------------------------------------------------------------------------------ */

static int beat(void)
{
    struct sched_param first = {.sched_priority = 50};
    int tty = open_raw("/dev/ttyS1");
    if (tty < 0)
        return fail("ttyS1");
    sched_setscheduler(0, SCHED_FIFO, &first); /* a busy guest must not look like a stopped one */
    mlockall(MCL_CURRENT | MCL_FUTURE);
    say(tty, "S\n");
    int64_t deadline = now_ns();
    for (unsigned long long n = 1;; n++) {
        sleep_step(&deadline, BEAT_NS);
        say(tty, "B %llu\n", n);
    }
}

/* -- watch ----------------------------------------------------------------------------------------------------- */

static void read_word(const char *folder, const char *name, const char *file, char *word, size_t size)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s/%s", folder, name, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, word, size - 1);
    if (fd >= 0)
        close(fd);
    word[n > 0 ? n : 0] = 0;
    word[strcspn(word, "\n")] = 0;
}

static size_t list(const char *folder, const char *first, const char *second, char *out, size_t size)
{
    size_t used = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char one[64], two[64] = "";
        if (e->d_name[0] == '.' || !strcmp(e->d_name, "lo"))
            continue;
        read_word(folder, e->d_name, first, one, sizeof one);
        if (second)
            read_word(folder, e->d_name, second, two, sizeof two);
        used += snprintf(out + used, size - used, "%s%s=%s%s%s", used ? "," : "", e->d_name, one, second ? "/" : "",
                         two);
        if (used >= size)
            return size - 1; /* cut short: the host sees a line it cannot parse, and says so */
    }
    if (dir)
        closedir(dir);
    return used ? used : (size_t)snprintf(out, size, "-");
}

static size_t view(char *out)
{
    size_t n = snprintf(out, VIEW_MAX, "V ");
    n += list("/sys/block", "size", NULL, out + n, VIEW_MAX - n - 2);
    out[n++] = ' ';
    n += list("/sys/class/net", "address", "operstate", out + n, VIEW_MAX - n - 1);
    out[n++] = '\n';
    return n;
}

static void obey_button(int fd)
{
    struct input_event e;
    while (read(fd, &e, sizeof e) == sizeof e)
        if (e.type == EV_KEY && e.code == KEY_POWER && e.value == 1 && access("/run/ignore-power-button", F_OK)) {
            sync();
            reboot(RB_POWER_OFF);
        }
}

static int watch(void)
{
    static char old[VIEW_MAX], new[VIEW_MAX];
    size_t old_length = 0;
    int buttons[BUTTONS_MAX], quiet = 0, tty = open_raw("/dev/ttyS1");
    if (tty < 0)
        return fail("ttyS1");
    for (int i = 0; i < BUTTONS_MAX; i++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        buttons[i] = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    }
    for (int64_t deadline = now_ns();; sleep_step(&deadline, LOOK_NS)) {
        size_t length = view(new);
        if (length != old_length || memcmp(old, new, length) || ++quiet >= LOOKS_PER_REPEAT) {
            write_all(tty, new, length); /* one write: the tty keeps it whole between two beats */
            memcpy(old, new, length);
            old_length = length;
            quiet = 0;
        }
        for (int i = 0; i < BUTTONS_MAX; i++)
            if (buttons[i] >= 0)
                obey_button(buttons[i]);
    }
}

/* -- serve ----------------------------------------------------------------------------------------------------- */

static struct {
    int tty, output;       /* output: read end of the running command's pipe, -1 at its end */
    pid_t pid;             /* of the running command, 0 when none runs */
    char id[32];           /* of the command last accepted: the host sends one again when the guest has moved */
    unsigned long long sent;
    char line[COMMAND_MAX];
    size_t length;
} serving = {.output = -1};

static void close_output(void)
{
    if (serving.output >= 0)
        close(serving.output);
    serving.output = -1;
}

static void start(const char *command)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        exit(fail("pipe"));
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    serving.pid = fork();
    if (!serving.pid) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        setpgid(0, 0);
        dup2(open("/dev/null", O_RDONLY), 0);
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        execl("/bin/sh", "sh", "-c", command, NULL);
        _exit(127);
    }
    close(ends[1]);
    serving.output = ends[0];
    serving.sent = 0;
    say(serving.tty, "\n#%s BEGIN\n", serving.id);
}

/* The host has given up on the command that still runs. */
static void abandon(void)
{
    if (serving.pid)
        kill(-serving.pid, SIGKILL);
    serving.pid = 0;
    close_output();
}

/* A line that was cut by a move of the guest has the wrong length, and is dropped: the host sends it again. */
static void accept_line(const char *line)
{
    char id[32];
    size_t length;
    int at = 0;
    if (sscanf(line, "#%31s %zu %n", id, &length, &at) < 2 || !at || strlen(line + at) != length)
        return;
    if (!strcmp(id, serving.id))
        return;
    abandon();
    strcpy(serving.id, id);
    start(line + at);
}

static void take_input(void)
{
    char data[4096];
    ssize_t n = read(serving.tty, data, sizeof data);
    for (ssize_t i = 0; i < n; i++) {
        if (data[i] == '\n') {
            serving.line[serving.length] = 0;
            serving.length = 0;
            accept_line(serving.line);
        } else if (serving.length < COMMAND_MAX - 1) {
            serving.line[serving.length++] = data[i];
        }
    }
}

static void pass_output(void)
{
    char data[4096];
    ssize_t n = -1;
    while (serving.output >= 0 && (n = read(serving.output, data, sizeof data)) > 0) {
        write_all(serving.tty, data, n);
        serving.sent += n;
    }
    if (!n)
        close_output();
}

static void reap(int signals)
{
    struct signalfd_siginfo info;
    int status;
    if (read(signals, &info, sizeof info) < 0)
        return;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid != serving.pid)
            continue;
        pass_output();
        close_output(); /* what a background child writes from now on is nobody's output */
        serving.pid = 0;
        say(serving.tty, "\n#%s END %d %llu\n", serving.id,
            WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), serving.sent);
    }
}

static int serve(void)
{
    struct utsname system;
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    int signals = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    serving.tty = open_raw("/dev/ttyS0");
    if (serving.tty < 0 || signals < 0)
        return fail("ttyS0");
    uname(&system);
    say(serving.tty, "\n#READY %s\n", system.release);
    for (;;) {
        struct pollfd ready[] = {{serving.tty, POLLIN, 0}, {signals, POLLIN, 0}, {serving.output, POLLIN, 0}};
        if (poll(ready, 3, -1) < 0)
            continue;
        if (ready[2].revents)
            pass_output();
        if (ready[1].revents)
            reap(signals);
        if (ready[0].revents)
            take_input();
    }
}

/* -- dirty ----------------------------------------------------------------------------------------------------- */

struct meter {
    pid_t pid;
    uint64_t pages;
    int64_t started;
};
static const char METER[] = "/run/dirty";

static struct meter *map_meter(int flags)
{
    int fd = open(METER, O_RDWR | O_CLOEXEC | flags, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(struct meter)) < 0)
        return NULL;
    struct meter *m = mmap(NULL, sizeof *m, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return m == MAP_FAILED ? NULL : m;
}

static void touch_for_ever(struct meter *m, volatile unsigned char *memory, uint64_t size, uint64_t rate)
{
    uint64_t at = 0, owed = 0; /* owed: bytes still to dirty, in 1/slices-per-second; keeps the rate exact */
    const uint64_t slices = SECOND_NS / SLICE_NS;
    m->started = now_ns();
    for (int64_t deadline = m->started;; sleep_step(&deadline, rate ? SLICE_NS : 0)) {
        owed += rate ? rate : size * slices;
        for (; owed >= PAGE * slices; owed -= PAGE * slices) {
            memory[at]++;
            at = at + PAGE < size ? at + PAGE : 0;
            m->pages++;
        }
    }
}

/* Never returns; a byte on told says that the memory is there and the dirtying begins. */
static void dirty_alone(struct meter *m, int told, uint64_t rate, uint64_t size)
{
    int null = open("/dev/null", O_RDWR);
    setsid();
    m->pid = getpid();
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        _exit(1);
    write_all(told, "!", 1);
    close(told);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    touch_for_ever(m, memory, size, rate);
}

static int dirty(uint64_t rate, uint64_t size)
{
    struct sysinfo info;
    struct meter *m;
    int ends[2];
    char told;
    sysinfo(&info);
    if (!size || size > info.freeram * (uint64_t)info.mem_unit / 10 * 9) { /* rather an error than the OOM killer */
        errno = ENOMEM;
        return fail("dirty");
    }
    if (pipe(ends) < 0 || !(m = map_meter(O_CREAT | O_EXCL)))
        return fail("dirty: running already?");
    if (!fork()) {
        close(ends[0]);
        dirty_alone(m, ends[1], rate, size);
    }
    close(ends[1]);
    if (read(ends[0], &told, 1) == 1)
        return 0;
    unlink(METER);
    errno = ENOMEM;
    return fail("dirty");
}

static int dirty_stop(void)
{
    struct meter *m = map_meter(0);
    if (!m)
        return fail("nothing is dirtying");
    int64_t ended = now_ns();
    kill(m->pid, SIGKILL);
    unlink(METER);
    printf("%.2f %.3f\n", m->pages * (double)PAGE / (1 << 20), (ended - m->started) / (double)SECOND_NS);
    return 0;
}

int main(int count, char **words)
{
    const char *verb = count > 1 ? words[1] : "";
    if (!strcmp(verb, "beat"))
        return beat();
    if (!strcmp(verb, "watch"))
        return watch();
    if (!strcmp(verb, "serve"))
        return serve();
    if (!strcmp(verb, "dirty") && count == 4)
        return dirty(strtoull(words[2], NULL, 10) << 20, strtoull(words[3], NULL, 10) << 20);
    if (!strcmp(verb, "dirty-stop"))
        return dirty_stop();
    fprintf(stderr, "usage: helper beat | watch | serve | dirty MIB_PER_SECOND MIB | dirty-stop\n");
    return 2;
}
