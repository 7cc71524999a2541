/* See run.h. The files that are named here are the sandbox's own: what is read of them is told to nobody else. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "run.h"

enum { MISSING = 127, UNUSABLE = 126 };
enum { LONGEST = 4096, HEAD = 256 };

static const char MARK[] = "\xEF\xBB\xBF"; /* UTF-8's byte order mark */

static void say(const char *format, ...) {
    char text[2 * LONGEST];
    va_list values;
    va_start(values, format);
    int n = vsnprintf(text, sizeof text, format, values);
    va_end(values);
    if (n >= (int)sizeof text) n = sizeof text - 1;
    if (write(2, "roost: ", 7) < 0 || write(2, text, n) < 0 || write(2, "\n", 1) < 0) {}
}

static _Noreturn void give_up(int status, const char *what, const char *why) {
    say("%s: %s", what, why);
    _exit(status);
}

static size_t read_head(const char *path, char head[HEAD + 1]) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = fd < 0 ? 0 : read(fd, head, HEAD);
    if (fd >= 0) close(fd);
    head[n < 0 ? 0 : n] = 0;
    return n < 0 ? 0 : n;
}

/* The path is there, and yet the kernel found something missing: what the file names as its interpreter or loader. */
static _Noreturn void lacks_interpreter(const char *path) {
    char head[HEAD + 1];
    if (read_head(path, head) < 2 || head[0] != '#' || head[1] != '!')
        give_up(MISSING, path, "it, or the loader that it needs, is not there: it was built for another system");
    char *name = head + 2 + strspn(head + 2, " \t");
    int windows = strcspn(name, "\r") < strcspn(name, "\n");
    name[strcspn(name, " \t\r\n")] = 0;
    if (windows)
        say("%s: no such interpreter: %s\\r. The file has Windows line endings (CRLF); give it those of Unix: "
            "sed -i 's/\\r$//' %s", path, name, path);
    else
        say("%s: no such interpreter: %s", path, name);
    _exit(MISSING);
}

/* Neither `#!` nor a program of this machine: a script without a first line is the shell's, as for every shell. */
static _Noreturn void run_by_shell(const char *path, char **arguments, char **environment) {
    char head[HEAD + 1];
    size_t length = read_head(path, head);
    int count = 0;
    if (memchr(head, 0, length)) give_up(UNUSABLE, path, "cannot be executed: it was built for another machine, or is damaged");
    if (!strncmp(head, MARK, sizeof MARK - 1) && !strncmp(head + sizeof MARK - 1, "#!", 2))
        say("%s: begins with a byte order mark (BOM), so its #! line counts for nothing; save it as UTF-8 without BOM", path);
    while (arguments[count]) count++;
    char **words = calloc(count + 2, sizeof *words);
    if (!words) give_up(UNUSABLE, path, strerror(errno));
    words[0] = "/bin/sh";
    words[1] = (char *)path;
    for (int i = 1; i < count; i++) words[i + 1] = arguments[i];
    execve(words[0], words, environment);
    give_up(errno == ENOENT ? MISSING : UNUSABLE, "/bin/sh", strerror(errno));
}

/* Returns where another place of PATH may have it: EACCES, or ENOENT where the path is not there at all. */
static int execute_path(const char *path, char **arguments, char **environment) {
    struct stat status;
    execve(path, arguments, environment);
    int error = errno;
    if (error == ENOENT && !stat(path, &status)) lacks_interpreter(path);
    if (error == ENOEXEC) run_by_shell(path, arguments, environment);
    if (error == ENOENT || error == ENOTDIR) return ENOENT;
    if (error != EACCES) give_up(UNUSABLE, path, error == E2BIG ? "its arguments and environment are too long" : strerror(error));
    return EACCES;
}

static const char *path_of(char **environment) {
    for (char **e = environment; *e; e++)
        if (!strncmp(*e, "PATH=", 5)) return *e + 5;
    return "/usr/local/bin:/bin:/usr/bin";
}

static _Noreturn void refuse(const char *path) {
    struct stat status;
    int directory = !stat(path, &status) && S_ISDIR(status.st_mode);
    give_up(UNUSABLE, path, directory ? "is a directory" : "is not executable, or not by this user (chmod +x)");
}

static _Noreturn void search(const char *name, char **arguments, char **environment) {
    char path[LONGEST], unusable[LONGEST] = "";
    for (const char *at = path_of(environment); at; at = strchr(at, ':'), at += !!at) {
        int length = strcspn(at, ":");
        if (snprintf(path, sizeof path, "%.*s%s%s", length, at, length ? "/" : "", name) >= (int)sizeof path) continue;
        struct stat status;
        if (execute_path(path, arguments, environment) == EACCES && !stat(path, &status) && !S_ISDIR(status.st_mode))
            memcpy(unusable, path, sizeof path);
    }
    if (*unusable) refuse(unusable);
    give_up(MISSING, name, "no such program in PATH");
}

void run_program(const char *directory, char **arguments, char **environment) {
    const char *name = arguments[0];
    if (chdir(directory)) {
        if (errno == ENOENT) give_up(MISSING, directory, "no such working directory");
        say("the working directory %s: %s", directory, strerror(errno));
        _exit(UNUSABLE);
    }
    if (!*name) give_up(MISSING, "''", "no such program");
    if (!strchr(name, '/')) search(name, arguments, environment);
    if (execute_path(name, arguments, environment) == EACCES) refuse(name);
    give_up(MISSING, name, "no such program");
}
