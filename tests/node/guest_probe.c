/* What a shell cannot try from inside a sandbox: each forbidden call, each foreign way to make one, ptrace. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void tell(const char *name, long result) { printf("%s %s\n", name, result < 0 ? strerror(errno) : "allowed"); }

static void try_forbidden(void) {
    tell("mount", syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, 0));
    tell("bind", syscall(SYS_mount, "/root", "/tmp", 0, 4096, 0));
    tell("umount2", syscall(SYS_umount2, "/run/roost", 2));
    tell("pivot_root", syscall(SYS_pivot_root, ".", "."));
    tell("unshare-user", syscall(SYS_unshare, CLONE_NEWUSER));
    tell("unshare-files", syscall(SYS_unshare, CLONE_FILES));
    tell("setns", syscall(SYS_setns, open("/proc/self/ns/uts", O_RDONLY), 0));
    tell("sethostname", syscall(SYS_sethostname, "x", 1));
    tell("setdomainname", syscall(SYS_setdomainname, "x", 1));
    tell("open_tree", syscall(428, -100, "/", 1));
    tell("move_mount", syscall(429, -100, "/root", -100, "/tmp", 0));
    tell("fsopen", syscall(430, "tmpfs", 0));
    tell("fsconfig", syscall(431, 0, 0, 0, 0, 0));
    tell("fsmount", syscall(432, 0, 0, 0));
    tell("fspick", syscall(433, -100, "/", 0));
    tell("mount_setattr", syscall(442, -100, "/", 0, 0, 0));
    tell("open_tree_attr", syscall(467, -100, "/", 1, 0, 0));
    tell("clone-newuser", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
}

int main(int count, char **word) {
    const char *what = count > 1 ? word[1] : "";
    if (!strcmp(what, "forbidden")) try_forbidden();
    else if (!strcmp(what, "ptrace")) {
        tell("attach", ptrace(PTRACE_ATTACH, 1, 0, 0));
        tell("seize", ptrace(PTRACE_SEIZE, 1, 0, 0));
    }
#ifdef __x86_64__
    else if (!strcmp(what, "x32")) printf("pid %ld\n", syscall(0x40000000 | SYS_getpid));
    else if (!strcmp(what, "i386")) {
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory", "r8", "r9", "r10", "r11");
        printf("pid %ld\n", result);
    }
#endif
    else return 2;
    return 0;
}
