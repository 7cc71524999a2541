#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "fail.h"
#include "filter.h"

#if defined(__x86_64__)
#define NATIVE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE AUDIT_ARCH_AARCH64
#else
#error "guest init knows x86-64 and arm64"
#endif
enum { X32_BIT = 0x40000000 }; /* x86's other set of numbers for the same calls */
enum { NR_open_tree = 428, NR_move_mount, NR_fsopen, NR_fsconfig, NR_fsmount, NR_fspick, NR_mount_setattr = 442,
       NR_open_tree_attr = 467 };

#define ARGUMENT(n) offsetof(struct seccomp_data, args[n]) /* the lower half: an int, where bytes are little-endian */
#define LOAD(what) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, what)
#define IF(here, what, then, otherwise) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, what, then - here - 1, otherwise - here - 1)
#define FROM(here, what, then, otherwise) BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, what, then - here - 1, otherwise - here - 1)
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)

/* On top of the runtime's profile, which must still allow what ATTACH itself does. No program of a filter is attached to
 * a socket, and few to processes: the memory that compiled ones take is bounded for the whole machine only. Returns the
 * supervisor's listener. */
static int forbid_mounting(void) {
    static const uint32_t forbidden[] = {SYS_mount, SYS_umount2, SYS_pivot_root, SYS_unshare, SYS_setns, SYS_sethostname,
        SYS_setdomainname, NR_open_tree, NR_move_mount, NR_fsopen, NR_fsconfig, NR_fsmount, NR_fspick, NR_mount_setattr,
        NR_open_tree_attr};
    enum { COUNT = sizeof forbidden / sizeof *forbidden };
    enum { FIRST = 4, IS_SOCKET = FIRST + COUNT, IS_OPTION, IS_SECCOMP, IS_PRCTL, OTHER, FAMILY, NETLINK, INET, INET6,
           PROTOCOL, ICMP, ICMP6, LEVEL, OF_SOCKET, OPTION, CLASSIC, NEWER, NEWEST, WHAT, INSTALLS, WHICH, OLD_WAY,
           ALLOWED, KILLED, REFUSED, SUPERVISED, LENGTH };
    struct sock_filter code[LENGTH] = {
        [0] = LOAD(offsetof(struct seccomp_data, arch)),
        [1] = IF(1, NATIVE, 2, KILLED),
        [2] = LOAD(offsetof(struct seccomp_data, nr)),
        [3] = FROM(3, X32_BIT, KILLED, FIRST),
        [IS_SOCKET] = IF(IS_SOCKET, SYS_socket, FAMILY, IS_OPTION),
        [IS_OPTION] = IF(IS_OPTION, SYS_setsockopt, LEVEL, IS_SECCOMP),
        [IS_SECCOMP] = IF(IS_SECCOMP, SYS_seccomp, WHAT, IS_PRCTL),
        [IS_PRCTL] = IF(IS_PRCTL, SYS_prctl, WHICH, OTHER),
        [OTHER] = RETURN(SECCOMP_RET_ALLOW),
        [FAMILY] = LOAD(ARGUMENT(0)),
        [NETLINK] = IF(NETLINK, AF_NETLINK, SUPERVISED, INET),
        [INET] = IF(INET, AF_INET, PROTOCOL, INET6),
        [INET6] = IF(INET6, AF_INET6, PROTOCOL, ALLOWED),
        [PROTOCOL] = LOAD(ARGUMENT(2)),
        [ICMP] = IF(ICMP, IPPROTO_ICMP, SUPERVISED, ICMP6),
        [ICMP6] = IF(ICMP6, IPPROTO_ICMPV6, SUPERVISED, ALLOWED),
        [LEVEL] = LOAD(ARGUMENT(1)),
        [OF_SOCKET] = IF(OF_SOCKET, SOL_SOCKET, OPTION, ALLOWED),
        [OPTION] = LOAD(ARGUMENT(2)),
        [CLASSIC] = IF(CLASSIC, SO_ATTACH_FILTER, REFUSED, NEWER),
        [NEWER] = FROM(NEWER, SO_ATTACH_BPF, NEWEST, ALLOWED), /* then SO_ATTACH_REUSEPORT_CBPF and _EBPF */
        [NEWEST] = FROM(NEWEST, SO_ATTACH_REUSEPORT_EBPF + 1, ALLOWED, REFUSED),
        [WHAT] = LOAD(ARGUMENT(0)),
        [INSTALLS] = IF(INSTALLS, SECCOMP_SET_MODE_FILTER, SUPERVISED, ALLOWED),
        [WHICH] = LOAD(ARGUMENT(0)),
        [OLD_WAY] = IF(OLD_WAY, PR_SET_SECCOMP, SUPERVISED, ALLOWED),
        [ALLOWED] = RETURN(SECCOMP_RET_ALLOW),
        [KILLED] = RETURN(SECCOMP_RET_KILL_PROCESS),
        [REFUSED] = RETURN(SECCOMP_RET_ERRNO | EPERM),
        [SUPERVISED] = RETURN(SECCOMP_RET_USER_NOTIF),
    };
    struct sock_fprog program = {.len = LENGTH, .filter = code};
    for (int i = 0; i < COUNT; i++)
        code[FIRST + i] = (struct sock_filter)IF((FIRST + i), forbidden[i], REFUSED, (FIRST + i + 1));
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return fail("no_new_privs");
    int listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    return listener < 0 ? fail("seccomp") : listener;
}

/* ---- the supervisor: what counts for no control group is few ----
 *
 * A thread, which the filter above does not hold for, makes each netlink and ping socket in the caller's place while there
 * are not too many. It stands in an epoll set that nobody waits for, and which forgets it with its last descriptor,
 * wherever that is. Filters of its users' own it lets through while all tasks together have few. */

enum { UNCOUNTED_BYTES = 64 << 20, UNCOUNTED_LEAST = 16, UNCOUNTED_MOST = 128, UNCOUNTED_WAIT = 100 };

enum { COMMON_FILTERS = 2, MOST_FILTERS = 1024 }; /* the runtime's and the one above; Chromium takes two a process */

static struct { int listener[2], made, made_told, most, (*drop)(void); } supervisor; /* listener: a pipe for its number */

static int count_made(void) {
    char told[32 << 10];
    ssize_t n = pread(supervisor.made_told, told, sizeof told - 1, 0);
    int count = 0;
    if (n < 0) return UNCOUNTED_MOST;
    told[n] = 0;
    for (char *line = told; (line = strstr(line, "tfd:")); line++) count++;
    return count;
}

static int make_socket(const struct seccomp_data *asked) {
    struct epoll_event nothing = {0};
    for (int waited = 0; count_made() >= supervisor.most; waited++) { /* most live for the moment of a name's look-up */
        if (waited == UNCOUNTED_WAIT) { errno = ENOBUFS; return -1; }
        usleep(1000);
    }
    int made = socket(asked->args[0], (int)asked->args[1] | SOCK_CLOEXEC, asked->args[2]);
    if (made >= 0 && epoll_ctl(supervisor.made, EPOLL_CTL_ADD, made, &nothing)) { close(made); return -1; }
    return made;
}

/* How many filters there are beside those that all have; a task and its children, which inherit them, count each. */
static long count_filters(int common) {
    long count = 0;
    char place[64], told[4096];
    DIR *processes = opendir("/proc"), *tasks;
    for (struct dirent *process, *task; processes && (process = readdir(processes));) {
        if (process->d_name[0] < '1' || process->d_name[0] > '9') continue;
        int pid = atoi(process->d_name);
        snprintf(place, sizeof place, "/proc/%d/task", pid);
        for (tasks = opendir(place); tasks && (task = readdir(tasks));) {
            if (task->d_name[0] == '.') continue;
            snprintf(place, sizeof place, "/proc/%d/task/%d/status", pid, atoi(task->d_name));
            int fd = open(place, O_RDONLY | O_CLOEXEC);
            ssize_t n = fd < 0 ? 0 : read(fd, told, sizeof told - 1);
            if (fd >= 0) close(fd);
            told[n > 0 ? n : 0] = 0;
            char *filters = strstr(told, "\nSeccomp_filters:");
            if (filters && atol(filters + 17) > common) count += atol(filters + 17) - common;
        }
        if (tasks) closedir(tasks);
    }
    if (processes) closedir(processes);
    return count;
}

static void *supervise(void *unused) {
    int listener;
    if (supervisor.drop()) _exit(1); /* and with it the sandbox, which nobody has claimed yet */
    if (read(supervisor.listener[0], &listener, sizeof listener) != sizeof listener) return unused;
    for (;;) {
        struct seccomp_notif asked = {0};
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked)) {
            if (errno == EINTR || errno == ENOENT) continue; /* the caller is gone, or was interrupted and asks again */
            return unused;
        }
        if (asked.data.nr != SYS_socket) {
            struct seccomp_notif_resp verdict = {.id = asked.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
            if (count_filters(COMMON_FILTERS) >= MOST_FILTERS) verdict.flags = 0, verdict.error = -ENOMEM;
            ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &verdict);
            continue;
        }
        int made = make_socket(&asked.data);
        struct seccomp_notif_addfd given = {.id = asked.id, .flags = SECCOMP_ADDFD_FLAG_SEND, .srcfd = made,
                                            .newfd_flags = asked.data.args[1] & SOCK_CLOEXEC ? O_CLOEXEC : 0};
        struct seccomp_notif_resp refusal = {.id = asked.id};
        if (made < 0 || ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &given) < 0) {
            refusal.error = -errno;
            ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &refusal);
        }
        if (made >= 0) close(made);
    }
}

/* So many that all of them, with buffers as large as this machine allows, hold UNCOUNTED_BYTES. */
static int most_uncounted(void) {
    int size = 1 << 30, fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    socklen_t length = sizeof size;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, length) || getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, &length))
        size = UNCOUNTED_BYTES;
    if (fd >= 0) close(fd);
    int most = UNCOUNTED_BYTES / (size > 0 ? size : 1);
    return most < UNCOUNTED_LEAST ? UNCOUNTED_LEAST : most > UNCOUNTED_MOST ? UNCOUNTED_MOST : most;
}

int start_supervisor(int (*drop)(void)) {
    char told[48];
    pthread_t thread;
    supervisor.drop = drop;
    supervisor.most = most_uncounted();
    supervisor.made = epoll_create1(EPOLL_CLOEXEC);
    snprintf(told, sizeof told, "/proc/self/fdinfo/%d", supervisor.made);
    supervisor.made_told = open(told, O_RDONLY | O_CLOEXEC);
    if (supervisor.made < 0 || supervisor.made_told < 0 || pipe2(supervisor.listener, O_CLOEXEC)) return fail("supervisor");
    errno = pthread_create(&thread, NULL, supervise, NULL);
    return errno ? fail("supervisor") : 0;
}

int enter_filter(void) {
    int listener = forbid_mounting();
    if (listener < 0) return -1;
    return write(supervisor.listener[1], &listener, sizeof listener) == sizeof listener ? 0 : fail("supervisor");
}
