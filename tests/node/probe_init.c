/* Process 1 of the containers in these tests; container_world.py builds it. Takes one connection at a time on the
 * inherited socket (descriptor 3): a request line, then text until it closes.
 *   ids | read PATH | write PATH | list PATH | fork N | eat MIB | syscalls | socket FAMILY TYPE PROTOCOL */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static FILE *out;

static void tell(const char *name, long result) { fprintf(out, "%s %d\n", name, result == -1 ? errno : 0); }

static void copy_out(const char *path) {
    char block[4096];
    int fd = open(path, O_RDONLY);
    if (fd < 0) { tell("open", -1); return; }
    for (ssize_t n; (n = read(fd, block, sizeof block)) > 0;) fwrite(block, 1, n, out);
    close(fd);
}

static void list(const char *path) {
    DIR *directory = opendir(path);
    if (!directory) { tell("opendir", -1); return; }
    for (struct dirent *entry; (entry = readdir(directory));) fprintf(out, "%s\n", entry->d_name);
    closedir(directory);
}

static void fork_sleepers(int wanted) {
    int born = 0;
    for (pid_t child; born < wanted; born++) {
        if ((child = fork()) < 0) break;
        if (!child) for (close(fileno(out));;) pause();
    }
    fprintf(out, "%d\n", born);
}

/* In a child, so that the OOM killer's choice is not process 1. */
static void eat(size_t mib) {
    int status = 0;
    pid_t child = fork();
    if (!child) {
        char *memory = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) _exit(2);
        memset(memory, 1, mib << 20);
        _exit(0);
    }
    waitpid(child, &status, 0);
    fprintf(out, "%d\n", WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status));
}

#if defined(__x86_64__)
static void old_machine_modes(void) {
    for (int mode = 0; mode < 2; mode++) {
        int status = 0;
        pid_t child = fork();
        if (!child) {
            long result = 0x40000000 | SYS_getpid;
            if (mode) result = 20; /* getpid of i386 */
            if (mode) __asm__ volatile("int $0x80" : "+a"(result)::"memory");
            else __asm__ volatile("syscall" : "+a"(result)::"rcx", "r11", "memory");
            _exit(result > 0 ? 0 : 1);
        }
        waitpid(child, &status, 0);
        fprintf(out, "%s %s\n", mode ? "i386" : "x32", status ? "refused" : "ran");
    }
}
#else
static void old_machine_modes(void) {}
#endif

#define TRY(name, ...) errno = 0, tell(#name, syscall(SYS_##name, ##__VA_ARGS__))
#define TRY_NUMBER(name, number) errno = 0, tell(#name, syscall(number, -1, -1, -1, -1, -1, -1))
#define TRY_SOCKET(family) errno = 0, tell("socket_" #family, syscall(SYS_socket, family, SOCK_DGRAM, 0))

static void try_syscalls(void) {
    struct clone_args arguments = {.exit_signal = SIGCHLD};
    TRY(bpf, 0, NULL, 0), TRY(keyctl, 0, -3, 0), TRY(add_key, "user", "a", "b", 1, -3), TRY(request_key, "user", "a", 0, 0);
    TRY(io_setup, 1, NULL), TRY(io_destroy, NULL), TRY(userfaultfd, 1), TRY(io_uring_setup, 1, NULL), TRY(io_uring_enter, -1, 0, 0, 0, NULL);
    TRY(io_uring_register, -1, 0, NULL, 0), TRY(perf_event_open, NULL, 0, -1, -1, 0), TRY(kexec_load, 0, 0, NULL, 0);
    TRY(kexec_file_load, -1, -1, 0, "", 0), TRY(init_module, NULL, 0, ""), TRY(finit_module, -1, "", 0);
    TRY(delete_module, "none", 0), TRY(open_by_handle_at, -1, NULL, 0), TRY(unshare, CLONE_NEWUSER), TRY(setns, -1, 0);
    TRY(setdomainname, "a", 1), TRY(reboot, 0, 0, 0, NULL), TRY(swapon, "/none", 0), TRY(swapoff, "/none");
    TRY(settimeofday, NULL, NULL), TRY(clock_settime, 0, NULL), TRY(acct, NULL), TRY(quotactl, 0, NULL, 0, NULL);
    TRY(syslog, 10, NULL, 0), TRY(kcmp, 1, 1, 0, 0, 0), TRY(mbind, NULL, 0, 0, NULL, 0, 0), TRY(fanotify_init, 0, 0);
    TRY(vhangup), TRY(personality, 0x0040000), TRY(clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, 0);
    TRY(clone3, &arguments, sizeof arguments), TRY(socketpair, AF_INET, SOCK_DGRAM, 0, NULL);
    TRY_NUMBER(fsopen, 430), TRY_NUMBER(fsconfig, 431), TRY_NUMBER(fsmount, 432), TRY_NUMBER(fspick, 433);
    TRY_NUMBER(pidfd_getfd, 438), TRY_NUMBER(process_madvise, 440), TRY_NUMBER(mount_setattr, 442);
    TRY_NUMBER(quotactl_fd, 443), TRY_NUMBER(open_tree_attr, 467);
    TRY_SOCKET(AF_ALG), TRY_SOCKET(AF_VSOCK), TRY_SOCKET(AF_BLUETOOTH), TRY_SOCKET(AF_TIPC), TRY_SOCKET(AF_AX25);
    TRY_SOCKET(AF_KEY), TRY_SOCKET(AF_UNIX), TRY_SOCKET(AF_INET), TRY_SOCKET(AF_INET6);
    errno = 0, tell("socket_AF_NETLINK", syscall(SYS_socket, AF_NETLINK, SOCK_RAW, 0));
    TRY(personality, 0xFFFFFFFF), TRY(sethostname, "probe", 5), TRY(mount, "/none", "/none", "none", 0, NULL);
    TRY_NUMBER(open_tree, 428), TRY_NUMBER(move_mount, 429), TRY_NUMBER(beyond_every_kernel, 5000);
    old_machine_modes();
}

static void try_socket(const char *arguments) {
    int family, type, protocol;
    if (sscanf(arguments, "%d %d %d", &family, &type, &protocol) != 3) return;
    int fd = socket(family, type, protocol);
    tell("socket", fd < 0 ? -1 : 0);
    if (fd >= 0) close(fd);
}

static void serve(char *request) {
    char *argument = strchr(request, ' ');
    if (argument) *argument++ = 0;
    else argument = "";
    if (!strcmp(request, "ids")) fprintf(out, "%d %d %d\n", getpid(), getuid(), getgid());
    else if (!strcmp(request, "read")) copy_out(argument);
    else if (!strcmp(request, "write")) tell("write", open(argument, O_WRONLY | O_CREAT, 0600));
    else if (!strcmp(request, "list")) list(argument);
    else if (!strcmp(request, "fork")) fork_sleepers(atoi(argument));
    else if (!strcmp(request, "eat")) eat(strtoul(argument, NULL, 10));
    else if (!strcmp(request, "socket")) try_socket(argument);
    else if (!strcmp(request, "syscalls")) try_syscalls();
}

int main(void) {
    char request[512];
    for (;;) {
        int connection = accept4(3, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0) return 1;
        out = fdopen(connection, "r+");
        if (fgets(request, sizeof request, out)) {
            request[strcspn(request, "\n")] = 0;
            fseek(out, 0, SEEK_CUR);
            serve(request);
        }
        fclose(out);
    }
}
