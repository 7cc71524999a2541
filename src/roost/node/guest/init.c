/* Guest init: process 1 of every sandbox.
 *
 * It starts inside the sandbox's namespaces with a listening Unix socket as descriptor 3, and does what the node asks
 * over it: configure the network, move into a root file system, write files, run processes and say how they ended.
 * One connection at a time; the node may die and connect again, and nothing that was not acknowledged is lost: output
 * stays here until the node has written it to the log, exit statuses until they are released.
 *
 * Frames, little endian: u32 length of payload, u8 type, u8 detail, u16 zero, u32 id, payload. `channel.py` is the
 * other side. User code may run only after ATTACH, which also drops the capabilities and system calls that ATTACH
 * needed. Nothing here trusts the sandbox's file system.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "etc.h"
#include "fail.h"
#include "filter.h"
#include "namespace.h"
#include "network.h"
#include "run.h"
#include "session.h"
#include "sight.h"

enum { PROTOCOL = 1, LISTEN_FD = 3 };
enum { HEADER = 12, MAX_IN = 256 << 10, CHUNK = 32 << 10, MAX_CONTROL = 64 << 10, TRANSMIT = 128 << 10 };
enum { WINDOW = 128 << 10 };       /* bytes of unacknowledged output a process may have here, frames included */
enum { STDIN_WINDOW = 64 << 10 };  /* bytes of standard input the node may have sent ahead */
enum { TERMINAL_HOLDS = 64 << 10 }; /* more than what a terminal's buffers can hold */
enum { MAX_PROCESSES = 256, MAX_WORDS = 8192 };
enum { FILES_AT_FIRST = 1024, FILES = 10240 }; /* as many as a route takes connections: the gateway's default */

enum from_node { HELLO = 1, NETWORK, ATTACH, WRITE_FILE, EXEC, STDIN, ACK, SIGNAL, RESIZE, RELEASE, PING, PREPARE };
enum to_node { IS_HELLO = 64, IS_PROCESS, DONE, FAILED, STARTED, OUTPUT, EXITED, STDIN_TAKEN, PONG, STDIN_STATE };
enum { EXEC_PTY = 1, EXEC_STDIN = 2, EXEC_END_SESSION = 4, EXEC_AS_FIRST = 8 };
enum { STDOUT = 1, STDERR = 2 };
enum { WRITE_NEW, WRITE_MORE, WRITE_OWN };

struct bytes { uint8_t *data; size_t length, capacity; };

struct process {
    struct process *next;
    uint32_t id;
    pid_t pid;
    int flags;
    int in, out, err;             /* -1 when closed; a pty is `out`, and `in` is a copy of it */
    int in_watched, out_watched, err_watched;
    int exited, draining, exit_sent;
    int out_left, err_left;       /* bytes still to read after the exit, so that a daemon's chatter cannot delay it */
    siginfo_t status;
    uint64_t produced, acknowledged;
    struct bytes queue;           /* whole OUTPUT frames that the node has not acknowledged */
    size_t sent;                  /* of the queue, bytes handed to the present connection */
    struct bytes stdin_data;
    uint64_t stdin_received;
    int stdin_ends;
};

static int events, signals, connection = -1, attached, begins_again;
static struct process *processes;
static int process_count;
static uint8_t received[HEADER + MAX_IN];
static size_t received_length;
static struct bytes control, transmit;
static size_t transmit_sent;
static char failure[256];
static char **first_environment; /* of the first process: the node does not keep it, since it may hold secrets */

static uint32_t get32(const uint8_t *p) { return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24; }
static uint64_t get64(const uint8_t *p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }
static void put32(uint8_t *p, uint32_t v) { for (int i = 0; i < 4; i++) p[i] = v >> 8 * i; }
static void put64(uint8_t *p, uint64_t v) { put32(p, v); put32(p + 4, v >> 32); }

int fail(const char *what) {
    int error = errno;
    snprintf(failure, sizeof failure, "%s: %s", what, strerror(error));
    errno = error;
    return -1;
}

/* ---- byte queues ---- */

static int reserve(struct bytes *b, size_t more, size_t limit) {
    if (b->length + more > limit) return -1;
    if (b->length + more <= b->capacity) return 0;
    size_t capacity = b->capacity ? b->capacity : 4096;
    while (capacity < b->length + more) capacity *= 2;
    uint8_t *data = realloc(b->data, capacity);
    if (!data) return -1;
    b->data = data;
    b->capacity = capacity;
    return 0;
}

static void drop_front(struct bytes *b, size_t n) {
    memmove(b->data, b->data + n, b->length - n);
    b->length -= n;
}

static void put_header(uint8_t *p, uint32_t length, int type, int detail, uint32_t id) {
    put32(p, length);
    p[4] = type;
    p[5] = detail;
    p[6] = p[7] = 0;
    put32(p + 8, id);
}

/* ---- the connection ---- */

static void watch(int fd, int op, uint32_t mask, void *what) {
    struct epoll_event e = {.events = mask, .data.ptr = what};
    epoll_ctl(events, op, fd, &e);
}

static void disconnect(void) {
    if (connection < 0) return;
    close(connection);
    connection = -1;
    received_length = control.length = transmit.length = transmit_sent = 0;
    for (struct process *p = processes; p; p = p->next) p->sent = 0, p->exit_sent = 0;
}

static void say(int type, int detail, uint32_t id, const void *payload, size_t length) {
    if (connection < 0) return;
    if (reserve(&control, HEADER + length, MAX_CONTROL)) { disconnect(); return; } /* it does not read */
    put_header(control.data + control.length, length, type, detail, id);
    if (length) memcpy(control.data + control.length + HEADER, payload, length);
    control.length += HEADER + length;
}

static void say_failed(uint32_t id) {
    uint8_t payload[4 + sizeof failure];
    size_t n = strlen(failure);
    put32(payload, errno);
    memcpy(payload + 4, failure, n);
    say(FAILED, 0, id, payload, 4 + n);
}

static void answer(uint32_t id, int result) {
    if (result) say_failed(id);
    else say(DONE, 0, id, NULL, 0);
}

static size_t put_exit(struct process *p, uint8_t *at) {
    int signal = p->status.si_code == CLD_EXITED ? 0 : p->status.si_status;
    put32(at, signal ? 0 : p->status.si_status);
    put32(at + 4, signal);
    put64(at + 8, p->produced);
    return 16;
}

/* Moves whole frames into `transmit` while they fit: answers first, then each process's output, then its exit. */
static void fill_transmit(void) {
    if (control.length && transmit.length + control.length <= TRANSMIT) {
        memcpy(transmit.data + transmit.length, control.data, control.length);
        transmit.length += control.length;
        control.length = 0;
    }
    for (struct process *p = processes; p; p = p->next) {
        while (p->sent < p->queue.length) {
            size_t frame = HEADER + get32(p->queue.data + p->sent);
            if (transmit.length + frame > TRANSMIT) return;
            memcpy(transmit.data + transmit.length, p->queue.data + p->sent, frame);
            transmit.length += frame;
            p->sent += frame;
        }
        if (p->exited && !p->draining && !p->exit_sent) {
            uint8_t payload[16];
            size_t n = put_exit(p, payload);
            if (transmit.length + HEADER + n > TRANSMIT) return;
            put_header(transmit.data + transmit.length, n, EXITED, 0, p->id);
            memcpy(transmit.data + transmit.length + HEADER, payload, n);
            transmit.length += HEADER + n;
            p->exit_sent = 1;
        }
    }
}

static void flush(void) {
    while (connection >= 0) {
        if (transmit_sent == transmit.length) {
            transmit_sent = transmit.length = 0;
            fill_transmit();
            if (!transmit.length) break;
        }
        ssize_t n = write(connection, transmit.data + transmit_sent, transmit.length - transmit_sent);
        if (n > 0) { transmit_sent += n; continue; }
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) { watch(connection, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT, &connection); return; }
        disconnect();
        return;
    }
    if (connection >= 0) watch(connection, EPOLL_CTL_MOD, EPOLLIN, &connection);
}

/* ---- attach: move into the root file system that the node mounted at /slot/root, then give up what that needed ---- */

static int plain_directory(int root, const char *name, mode_t mode) {
    int fd = openat(root, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT && !mkdirat(root, name, mode))
        fd = openat(root, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return fail(name);
    close(fd);
    return 0;
}

/* A container root's capabilities, as Docker grants them, without NET_RAW; none reaches outside its user namespace. */
static const uint64_t KEPT = 1ULL << CAP_CHOWN | 1ULL << CAP_DAC_OVERRIDE | 1ULL << CAP_FSETID | 1ULL << CAP_FOWNER |
    1ULL << CAP_MKNOD | 1ULL << CAP_SETGID | 1ULL << CAP_SETUID | 1ULL << CAP_SETFCAP |
    1ULL << CAP_SETPCAP | 1ULL << CAP_NET_BIND_SERVICE | 1ULL << CAP_SYS_CHROOT | 1ULL << CAP_KILL |
    1ULL << CAP_AUDIT_WRITE;

static int drop_capabilities(void) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct now[2] = {{0}};
    for (int cap = 0; cap < 64; cap++)
        if (!(KEPT >> cap & 1) && prctl(PR_CAPBSET_READ, cap) == 1 && prctl(PR_CAPBSET_DROP, cap)) return fail("bounding set");
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)) return fail("ambient set");
    for (int half = 0; half < 2; half++) now[half].effective = now[half].permitted = KEPT >> 32 * half;
    if (syscall(SYS_capset, &head, now)) return fail("capset");
    return 0;
}

/* hostname, bytes of memory, processors to show, those to run on (see sight.h), 1 where it begins with a sandbox's files */
static int attach(char **word) {
    const char *hostname = word[0];
    static const char *const moved[] = {"proc", "dev", "sys"};
    char from[16], to[32];
    if (attached) { errno = EBUSY; return fail("attach"); }
    int root = open("/slot/root", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) return fail("/slot/root");
    for (int i = 0; i < 3; i++) {
        snprintf(from, sizeof from, "/%s", moved[i]);
        snprintf(to, sizeof to, "/slot/root/%s", moved[i]);
        if (plain_directory(root, moved[i], 0755)) return -1;
        if (mount(from, to, NULL, MS_MOVE, NULL)) return fail(to);
    }
    if (plain_directory(root, "run", 0755) || plain_directory(root, "run/roost", 0700)) return -1;
    if (mkdirat(root, "etc", 0755) && errno != EEXIST) return fail("etc"); /* for resolv.conf; an image may lack it */
    close(root);
    if (chdir("/slot/root")) return fail("chdir");
    if (syscall(SYS_pivot_root, ".", ".")) return fail("pivot_root");
    if (umount2(".", MNT_DETACH)) return fail("detach the old root");
    if (chdir("/")) return fail("chdir /");
    if (mount("tmpfs", "/run/roost", "tmpfs", MS_NOSUID | MS_NODEV, "size=32m,mode=0711")) return fail("/run/roost"); /* the script is whose user it runs as */
    if (mkdir("/run/roost/tools", 0700)) return fail("/run/roost/tools"); /* what the node brings along (tools.py) */
    begins_again = *word[4] == '1';
    if (begins_again && edited_hostname()) hostname = edited_hostname();
    if (*hostname && sethostname(hostname, strlen(hostname))) return fail("sethostname");
    if (begin_sight(strtoull(word[1], NULL, 10), atoi(word[2]), word[3])) return fail("what the sandbox sees of itself");
    if (drop_capabilities() || enter_filter()) return -1;
    attached = 1;
    return 0;
}

/* ---- files ---- */

/* In what the node writes a byte of 1 stands for the host name, which it may not know. */
static size_t put_hostname(const uint8_t *data, size_t length, uint8_t *to, size_t size) {
    char name[65] = "";
    size_t n = 0;
    gethostname(name, sizeof name - 1);
    for (size_t i = 0; i < length && n + sizeof name < size; i++) {
        if (data[i] != 1) to[n++] = data[i];
        else n += strlen(strcpy((char *)to + n, name));
    }
    return n;
}

static int write_file(const char *path, int append, mode_t mode, const uint8_t *data, size_t length) {
    if (!append && unlink(path) && errno != ENOENT) return fail(path); /* never through a link that the image left */
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | (append ? O_APPEND : O_CREAT | O_EXCL), mode);
    if (fd < 0) return fail(path);
    int result = append ? 0 : fchmod(fd, mode);
    while (!result && length) {
        ssize_t n = write(fd, data, length);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) { result = -1; break; }
        data += n;
        length -= n;
    }
    if (result) fail(path);
    close(fd);
    return result;
}

/* At the start of a sandbox that begins with another's files, what somebody edited stays. */
static int write_own(const char *path, mode_t mode, const uint8_t *data, size_t length) {
    uint8_t text[8192];
    if (begins_again && is_edited(path)) return 0;
    if (write_file(path, 0, mode, text, put_hostname(data, length, text, sizeof text))) return -1;
    return mark_written(path) && errno != ENOTSUP ? fail(path) : 0;
}

/* ---- processes ---- */

static struct process *find(uint32_t id) {
    struct process *p = processes;
    while (p && p->id != id) p = p->next;
    return p;
}

static void close_fd(int *fd, int *watched) {
    if (*fd >= 0) close(*fd); /* closing also ends the watch */
    *fd = -1;
    *watched = 0;
}

static void watch_process(struct process *p) {
    int room = p->queue.length + HEADER + 8 + CHUNK <= WINDOW;
    int want_out = p->out >= 0 && room, want_err = p->err >= 0 && room;
    int want_in = p->in >= 0 && (p->stdin_data.length || p->stdin_ends);
    if (p->in >= 0 && want_in != p->in_watched)
        watch(p->in, want_in ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, EPOLLOUT, p), p->in_watched = want_in;
    if (p->out >= 0 && want_out != p->out_watched)
        watch(p->out, want_out ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, EPOLLIN, p), p->out_watched = want_out;
    if (p->err >= 0 && want_err != p->err_watched)
        watch(p->err, want_err ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, EPOLLIN, p), p->err_watched = want_err;
}

static void forget(struct process *p) {
    struct process **link = &processes;
    while (*link != p) link = &(*link)->next;
    *link = p->next;
    close_fd(&p->in, &p->in_watched);
    close_fd(&p->out, &p->out_watched);
    close_fd(&p->err, &p->err_watched);
    free(p->queue.data);
    free(p->stdin_data.data);
    free(p);
    process_count--;
}

/* One read of one stream into the queue. After the exit, no more than what lay in the pipe at that moment. */
static void take_output(struct process *p, int *fd, int *watched, int stream, int *left) {
    size_t want = CHUNK;
    if (*fd < 0) return;
    if (p->draining && *left <= 0) { close_fd(fd, watched); return; }
    if (p->draining && (size_t)*left < want) want = *left;
    if (reserve(&p->queue, HEADER + 8 + want, WINDOW)) return;
    uint8_t *frame = p->queue.data + p->queue.length;
    ssize_t n = read(*fd, frame + HEADER + 8, want);
    if (n < 0 && (errno == EINTR || (errno == EAGAIN && !p->draining))) return;
    if (n <= 0) { close_fd(fd, watched); return; } /* end, or EIO: the last holder of the terminal is gone */
    put_header(frame, 8 + n, OUTPUT, stream, p->id);
    put64(frame + HEADER, p->produced);
    p->queue.length += HEADER + 8 + n;
    p->produced += n;
    if (p->draining) *left -= n;
}

static void give_input(struct process *p) {
    while (p->in >= 0 && p->stdin_data.length) {
        ssize_t n = write(p->in, p->stdin_data.data, p->stdin_data.length);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        uint8_t taken[4];
        if (n < 0) n = p->stdin_data.length; /* nobody reads: the rest is gone, as in a shell pipe */
        drop_front(&p->stdin_data, n);
        put32(taken, n);
        say(STDIN_TAKEN, 0, p->id, taken, 4);
    }
    if (p->stdin_ends && p->in >= 0 && !p->stdin_data.length) {
        uint8_t end = 4; /* ^D */
        if (p->flags & EXEC_PTY && write(p->in, &end, 1) < 0 && errno == EAGAIN) return;
        close_fd(&p->in, &p->in_watched);
    }
}

static void drain(struct process *p) {
    if (!p->draining) return;
    for (int more = 1; more;) {
        size_t before = p->queue.length;
        take_output(p, &p->out, &p->out_watched, STDOUT, &p->out_left);
        take_output(p, &p->err, &p->err_watched, STDERR, &p->err_left);
        more = p->queue.length != before;
    }
    if (p->out < 0 && p->err < 0) p->draining = 0;
}

static void serve_process(struct process *p) {
    give_input(p);
    if (p->draining) drain(p);
    else {
        take_output(p, &p->out, &p->out_watched, STDOUT, &p->out_left);
        take_output(p, &p->err, &p->err_watched, STDERR, &p->err_left);
    }
    watch_process(p);
}

static void reap(void) {
    siginfo_t s;
    for (;;) {
        s.si_pid = 0;
        if (waitid(P_ALL, 0, &s, WEXITED | WNOHANG | WNOWAIT) || !s.si_pid) return;
        struct process *p = processes;
        while (p && (p->pid != s.si_pid || p->exited)) p = p->next;
        if (p && p->flags & EXEC_END_SESSION) end_session(p->pid); /* while the zombie keeps the number ours */
        waitid(P_PID, s.si_pid, &s, WEXITED | WNOHANG);
        if (!p) continue; /* an orphan that came to us */
        p->exited = p->draining = 1;
        p->status = s;
        if (p->flags & EXEC_PTY) p->out_left = TERMINAL_HOLDS; /* FIONREAD would not count all of it */
        else if (p->out >= 0) ioctl(p->out, FIONREAD, &p->out_left);
        if (p->err >= 0) ioctl(p->err, FIONREAD, &p->err_left);
        close_fd(&p->in, &p->in_watched);
        drain(p);
        watch_process(p);
    }
}

struct command { uint32_t flags, uid, gid; uint16_t rows, columns; char *directory, **arguments, **environment; };

/* Only here is known which one it got; of whoever wants to be told, the variable is there, and empty. */
static void name_terminal(char **environment) {
    static char word[64] = "SSH_TTY=";
    for (char **e = environment; *e; e++)
        if (!strcmp(*e, "SSH_TTY=") && !ttyname_r(0, word + strlen(*e), sizeof word - strlen(*e))) *e = word;
}

static _Noreturn void become(struct command *c, int in, int out, int err, int report) {
    sigset_t none;
    int error;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (c->flags & EXEC_PTY) ioctl(in, TIOCSCTTY, 0);
    /* init's own is the runtime's (oci.py), which only a privileged process may go below */
    int badness = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC); /* the kernel should end this, not init */
    if (badness >= 0 && write(badness, "800", 3) < 0) {}
    if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0) goto out;
    if (c->gid || c->uid) {
        for (int stream = 0; stream <= 2; stream++) /* or /dev/stdout would not open for the image's user */
            if (fchown(stream, c->uid, -1)) {}
        if (syscall(SYS_setgroups, 0, NULL) || setgid(c->gid) || setuid(c->uid)) goto out;
    }
    if (c->flags & EXEC_PTY) name_terminal(c->environment);
    run_program(c->directory, c->arguments, c->environment);
out:
    error = errno;
    if (write(report, &error, sizeof error) < 0) {}
    _exit(127);
}

static int open_terminal(struct command *c, int *master, int *slave) {
    int unlock = 0, number;
    char name[32];
    struct winsize size = {.ws_row = c->rows, .ws_col = c->columns};
    *master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (*master < 0) return fail("/dev/ptmx");
    if (ioctl(*master, TIOCSPTLCK, &unlock) || ioctl(*master, TIOCGPTN, &number)) return fail("pty");
    snprintf(name, sizeof name, "/dev/pts/%d", number);
    *slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*slave < 0) return fail(name);
    ioctl(*master, TIOCSWINSZ, &size);
    return 0;
}

static int remember_environment(char **environment) {
    int n = 0;
    while (environment[n]) n++;
    char **copy = calloc(n + 1, sizeof *copy);
    for (int i = 0; copy && i < n; i++)
        if (!(copy[i] = strdup(environment[i]))) return fail("environment");
    if (!copy) return fail("environment");
    first_environment = copy;
    return 0;
}

/* The first process's environment with the words NAME=VALUE of `changes` in it; good until the next call. */
static char **changed_environment(char **changes) {
    static char *merged[2 * MAX_WORDS + 1];
    int n = 0;
    for (char **e = first_environment; *e; e++) {
        size_t name = strcspn(*e, "=") + 1;
        char **c = changes;
        while (*c && strncmp(*c, *e, name)) c++;
        if (!*c) merged[n++] = *e;
    }
    while (*changes) merged[n++] = *changes++;
    merged[n] = NULL;
    return merged;
}

static int start(struct process *p, struct command *c) {
    int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1}, report[2] = {-1, -1}, error = 0, result = -1;
    if (c->flags & EXEC_PTY) {
        if (open_terminal(c, &out[0], &out[1])) goto done;
        in[1] = fcntl(out[0], F_DUPFD_CLOEXEC, 0);
        in[0] = fcntl(out[1], F_DUPFD_CLOEXEC, 0);
    } else {
        if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) { fail("pipe"); goto done; }
        fcntl(out[0], F_SETFL, O_NONBLOCK);
        fcntl(err[0], F_SETFL, O_NONBLOCK);
        if (c->flags & EXEC_STDIN) {
            if (pipe2(in, O_CLOEXEC)) { fail("pipe"); goto done; }
            fcntl(in[1], F_SETFL, O_NONBLOCK);
        } else if ((in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0) { fail("/dev/null"); goto done; }
    }
    if (pipe2(report, O_CLOEXEC)) { fail("pipe"); goto done; }
    p->pid = fork();
    if (p->pid < 0) { fail("fork"); goto done; }
    if (!p->pid) become(c, in[0], out[1], err[1] >= 0 ? err[1] : out[1], report[1]);
    close(report[1]);
    report[1] = -1;
    ssize_t n;
    while ((n = read(report[0], &error, sizeof error)) < 0 && errno == EINTR) {}
    if (n > 0) {
        waitpid(p->pid, NULL, 0);
        errno = error;
        fail(c->arguments[0]);
        goto done;
    }
    p->in = in[1], p->out = out[0], p->err = err[0];
    in[1] = out[0] = err[0] = -1;
    result = 0;
done:
    error = errno;
    for (int i = 0; i < 2; i++) {
        if (in[i] >= 0) close(in[i]);
        if (out[i] >= 0) close(out[i]);
        if (err[i] >= 0) close(err[i]);
        if (report[i] >= 0) close(report[i]);
    }
    errno = error;
    return result;
}

static void tell_process(struct process *p) {
    uint8_t payload[4 + 8 + 8 + 4];
    put32(payload, p->pid);
    put64(payload + 4, p->acknowledged);
    put64(payload + 12, p->produced);
    put32(payload + 20, p->stdin_data.length);
    say(IS_PROCESS, p->exited, p->id, payload, sizeof payload);
}

/* Splits `payload` into NUL-terminated words; -1 when it does not end in NUL or has more than `most`. */
static int split_words(uint8_t *payload, size_t length, char **word, int most) {
    int n = 0;
    if (length && payload[length - 1]) return -1;
    for (size_t at = 0; at < length; at += strlen((char *)payload + at) + 1) {
        if (n == most) return -1;
        word[n++] = (char *)payload + at;
    }
    return n;
}

/* payload: u32 flags, uid, gid, u16 rows, columns, argument count, environment count; directory NUL arguments environment */
static void execute(uint32_t id, uint8_t *payload, size_t length) {
    enum { FIXED = 20 };
    static char *word[MAX_WORDS + 2];
    struct command c;
    struct process *p = find(id);
    if (p) { tell_process(p); return; }
    int arguments = length >= FIXED ? payload[16] | payload[17] << 8 : 0;
    int environment = length >= FIXED ? payload[18] | payload[19] << 8 : 0;
    int words = length > FIXED ? split_words(payload + FIXED, length - FIXED, word, MAX_WORDS) : -1;
    errno = !attached ? ENOTCONN : process_count == MAX_PROCESSES ? EAGAIN : EINVAL;
    if (!attached || process_count == MAX_PROCESSES || arguments < 1 || words != 1 + arguments + environment) {
        fail("exec");
        say_failed(id);
        return;
    }
    c = (struct command){get32(payload), get32(payload + 4), get32(payload + 8), payload[12] | payload[13] << 8,
                         payload[14] | payload[15] << 8, word[0], word + 1, NULL};
    memmove(word + 2 + arguments, word + 1 + arguments, environment * sizeof *word);
    word[1 + arguments] = word[2 + arguments + environment] = NULL;
    c.environment = word + 2 + arguments;
    if (c.flags & EXEC_AS_FIRST && first_environment) c.environment = changed_environment(c.environment);
    else if (!first_environment && remember_environment(c.environment)) { say_failed(id); return; }
    p = calloc(1, sizeof *p);
    if (!p) { fail("exec"); say_failed(id); return; }
    *p = (struct process){.id = id, .flags = c.flags, .in = -1, .out = -1, .err = -1};
    if (start(p, &c)) { say_failed(id); free(p); return; }
    p->next = processes;
    processes = p;
    process_count++;
    uint8_t pid[4];
    put32(pid, p->pid);
    say(STARTED, 0, id, pid, 4);
    watch_process(p);
}

static void take_stdin(struct process *p, const uint8_t *data, size_t length) {
    p->stdin_received += length;
    if (!length) p->stdin_ends = 1;
    else if (p->in < 0) { /* it reads no more: taken and gone */
        uint8_t taken[4];
        put32(taken, length);
        say(STDIN_TAKEN, 0, p->id, taken, 4);
    } else if (reserve(&p->stdin_data, length, STDIN_WINDOW)) { disconnect(); return; }
    else {
        memcpy(p->stdin_data.data + p->stdin_data.length, data, length);
        p->stdin_data.length += length;
    }
    give_input(p);
    watch_process(p);
}

static void acknowledge(struct process *p, uint64_t upto) {
    size_t gone = 0;
    while (gone < p->sent && p->acknowledged < upto) {
        size_t payload = get32(p->queue.data + gone);
        p->acknowledged += payload - 8;
        gone += HEADER + payload;
    }
    p->sent -= gone;
    drop_front(&p->queue, gone);
    if (!p->queue.length) { /* an idle process keeps no buffer */
        free(p->queue.data);
        p->queue = (struct bytes){0};
    }
    drain(p);
    watch_process(p);
}

static void send_signal(uint32_t id, int number, int everyone) {
    struct process *p = find(id);
    if (everyone) kill(-1, number);
    else if (p) kill(-p->pid, number);
}

static void greet(void) {
    uint8_t payload[12], received_stdin[8];
    put32(payload, PROTOCOL);
    put32(payload + 4, attached);
    put32(payload + 8, process_count);
    say(IS_HELLO, 0, 0, payload, sizeof payload);
    for (struct process *p = processes; p; p = p->next) {
        p->sent = p->exit_sent = 0;
        tell_process(p);
        put64(received_stdin, p->stdin_received);
        say(STDIN_STATE, p->stdin_ends, p->id, received_stdin, sizeof received_stdin);
    }
}

static void resize(struct process *p, const uint8_t *payload) {
    struct winsize size = {.ws_row = payload[0] | payload[1] << 8, .ws_col = payload[2] | payload[3] << 8};
    if (p->out >= 0 && p->flags & EXEC_PTY) ioctl(p->out, TIOCSWINSZ, &size);
}

/* 0, or -1 when the frame makes no sense: the connection is then dropped, never the sandbox. */
static int obey(int type, int detail, uint32_t id, uint8_t *payload, size_t length) {
    char *word[16];
    struct process *p = find(id);
    switch (type) {
    case HELLO: greet(); return 0;
    case PING: say(PONG, 0, id, NULL, 0); return 0;
    case NETWORK: {
        int words = split_words(payload, length, word, 16);
        if (words < 0) return -1;
        answer(id, configure_network(word, words) || start_supervisor(drop_capabilities)); /* long before anybody waits */
        return 0;
    }
    case ATTACH:
        if (split_words(payload, length, word, 5) != 5 || atoi(word[2]) < 1) return -1;
        answer(id, attach(word));
        return 0;
    case PREPARE: answer(id, attached ? (errno = EBUSY, fail("prepare")) : prepare_sight() ? fail("prepare") : 0); return 0;
    case WRITE_FILE: {
        uint8_t *end = length > 4 ? memchr(payload + 4, 0, length - 4) : NULL;
        if (!end) return -1;
        size_t head = end + 1 - payload;
        answer(id, detail == WRITE_OWN
            ? write_own((char *)payload + 4, get32(payload), payload + head, length - head)
            : write_file((char *)payload + 4, detail, get32(payload), payload + head, length - head));
        return 0;
    }
    case EXEC: execute(id, payload, length); return 0;
    case SIGNAL: if (length != 4) return -1; send_signal(id, get32(payload), detail); return 0;
    case STDIN: if (p) take_stdin(p, payload, length); return 0;
    case ACK: if (length != 8) return -1; if (p) acknowledge(p, get64(payload)); return 0;
    case RESIZE: if (length != 4) return -1; if (p) resize(p, payload); return 0;
    case RELEASE: if (p && p->exited) forget(p); return 0;
    default: return -1;
    }
}

static void take_frames(void) {
    ssize_t n = read(connection, received + received_length, sizeof received - received_length);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) { disconnect(); return; }
    received_length += n;
    size_t at = 0;
    while (connection >= 0 && received_length - at >= HEADER) {
        uint8_t *frame = received + at;
        uint32_t length = get32(frame);
        if (length > MAX_IN) { disconnect(); return; }
        if (received_length - at < HEADER + length) break;
        if (obey(frame[4], frame[5], get32(frame + 8), frame + HEADER, length)) { disconnect(); return; }
        at += HEADER + length;
    }
    if (connection < 0) return;
    memmove(received, received + at, received_length - at);
    received_length -= at;
}

/* The newest connection is the node's: an older one is that of a node which died. */
static void accept_connection(void) {
    int fd = accept4(LISTEN_FD, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    disconnect();
    connection = fd;
    watch(connection, EPOLL_CTL_ADD, EPOLLIN, &connection);
}

static void block_signals(void) {
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_SETMASK, &set, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* Of two times in milliseconds, where -1 is never. */
static int sooner(int a, int b) { return a < 0 || (b >= 0 && b < a) ? b : a; }

/* Inherited by all that runs here. Each open file counts as the sandbox's memory; closing them all takes its time. */
static void bound_files(void) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files)) return;
    if (files.rlim_max > FILES) files.rlim_max = FILES;
    files.rlim_cur = files.rlim_max < FILES_AT_FIRST ? files.rlim_max : FILES_AT_FIRST;
    setrlimit(RLIMIT_NOFILE, &files);
}

int main(int arguments, char **argument) {
    static int listening;
    struct epoll_event ready[64];
    if (arguments == 3 && !strcmp(argument[1], "own")) return own_namespace(strtoul(argument[2], NULL, 10));
    umask(022);
    prctl(PR_SET_DUMPABLE, 0); /* the sandbox's root may not trace this process or open its descriptors */
    fcntl(LISTEN_FD, F_SETFD, FD_CLOEXEC);
    fcntl(LISTEN_FD, F_SETFL, O_NONBLOCK);
    bound_files();
    block_signals();
    events = epoll_create1(EPOLL_CLOEXEC);
    transmit.data = malloc(TRANSMIT);
    if (events < 0 || signals < 0 || !transmit.data) return 1;
    watch(LISTEN_FD, EPOLL_CTL_ADD, EPOLLIN, &listening);
    watch(signals, EPOLL_CTL_ADD, EPOLLIN, &signals);
    for (;;) {
        int n = epoll_wait(events, ready, 64, sooner(next_look(), next_sight()));
        if (!next_look()) look_at_sessions();
        if (!next_sight()) refresh_sight();
        for (int i = 0; i < n; i++) {
            void *what = ready[i].data.ptr;
            if (what == &listening) accept_connection();
            else if (what == &signals) {
                struct signalfd_siginfo ignored;
                while (read(signals, &ignored, sizeof ignored) > 0) {}
                reap();
            } else if (what == &connection) {
                if (connection >= 0 && ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) take_frames();
            } else {
                struct process *p = processes; /* an earlier event of this round may have released it */
                while (p && p != what) p = p->next;
                if (p) serve_process(p);
            }
        }
        flush();
    }
}
