/* What a microVM has in the places of sshd's login and of sudo.
 *
 *     microvm serve                      as root: answers on /run/roost/sudo, and goes on in the background
 *     microvm login USER [-c COMMAND]    as root: becomes USER, with a login shell or for one command
 *     sudo [OPTION...] [COMMAND...]      under this name, as anybody: has `serve` run COMMAND as root or another user
 *
 * In a sandbox no program gains privileges by being executed (no_new_privs), so a set-uid sudo cannot work, and that
 * stays so. `serve` has them already: it is a child of guest init, with what every root of a sandbox has and no more.
 * It asks the kernel who calls (SO_PEERCRED) and obeys root and the members of the group sudo. The command gets the
 * caller's own standard streams; where they are a terminal, one of its own, which `sudo` copies to and from it.
 *
 * A request is a `struct ask` with four descriptors (streams, working directory), then `size` bytes of words, each
 * with its NUL: the user, the arguments, the environment. Later `sudo` sends signals, a byte each; `serve` answers
 * with a `struct told`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define SOCKET "/run/roost/sudo"
#define READY "/run/roost/ready" /* the start script makes it, last */
#define GROUP "sudo"
#define PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
enum { MAX_REQUEST = 4 << 20, MAX_WORDS = 65536, READY_WITHIN = 30 /* seconds */, STREAMS = 3, PASSED = 4 };
enum { LOGIN = 1, SHELL = 2, PRESERVE = 4, TERMINAL = 8 };
enum { NOT_RUN = 1 }; /* what sudo ends with where there was no command to end */

struct ask { uint32_t size, flags, arguments, environment; };
struct told { uint32_t stopped, status; }; /* of wait(2) */

extern char **environ;

static void complain(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    fputs("sudo: ", stderr);
    vfprintf(stderr, format, rest);
    fputs("\n", stderr);
    va_end(rest);
}

static _Noreturn void quit(const char *what) {
    complain("%s: %s", what, strerror(errno));
    _exit(NOT_RUN);
}

static int transfer(int fd, void *data, size_t length, int out) {
    for (uint8_t *at = data; length;) {
        ssize_t n = out ? send(fd, at, length, MSG_NOSIGNAL) : recv(fd, at, length, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        at += n;
        length -= n;
    }
    return 0;
}

/* ---- becoming somebody ---- */

/* A copy, which the next look-up leaves alone. */
static const struct passwd *user_named(const char *name) {
    static struct passwd user;
    const struct passwd *found = getpwnam(name);
    if (!found) return NULL;
    user = *found;
    if (!(user.pw_name = strdup(user.pw_name)) || !(user.pw_dir = strdup(user.pw_dir))) quit("memory");
    if (!(user.pw_shell = strdup(user.pw_shell ? user.pw_shell : ""))) quit("memory");
    return &user;
}

static void become(const struct passwd *user) {
    if (initgroups(user->pw_name, user->pw_gid) || setgid(user->pw_gid) || setuid(user->pw_uid)) quit(user->pw_name);
}

static const char *shell_of(const struct passwd *user) {
    return *user->pw_shell && !access(user->pw_shell, X_OK) ? user->pw_shell : "/bin/sh";
}

static void name_user(const struct passwd *user) {
    setenv("HOME", user->pw_dir, 1);
    setenv("USER", user->pw_name, 1);
    setenv("LOGNAME", user->pw_name, 1);
    setenv("SHELL", shell_of(user), 1);
}

static _Noreturn void execute_shell(const struct passwd *user, int as_login, const char *command) {
    const char *shell = shell_of(user), *base = strrchr(shell, '/') + 1;
    char name[256];
    snprintf(name, sizeof name, "%s%s", as_login ? "-" : "", base);
    if (command) execl(shell, name, "-c", command, (char *)NULL);
    else execl(shell, name, (char *)NULL);
    quit(shell);
}

static int login(int count, char **words) {
    const char *command = count == 3 && !strcmp(words[1], "-c") ? words[2] : NULL;
    if (count != 1 && !command) { complain("microvm login USER [-c COMMAND]"); return NOT_RUN; }
    for (int tries = 0; access(READY, F_OK); tries++) {
        if (tries == READY_WITHIN * 100) { complain("this microVM has not been set up; its log says why"); return 255; }
        nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
    }
    const struct passwd *user = user_named(words[0]);
    if (!user) { complain("there is no user %s in /etc/passwd any more", words[0]); return 255; }
    if (isatty(0) && fchown(0, user->pw_uid, -1)) {} /* so that it can open /dev/pts/N anew */
    become(user);
    name_user(user);
    umask(022);
    if (chdir(user->pw_dir) && chdir("/")) quit("/");
    execute_shell(user, !command, command);
}

/* ---- serve ---- */

static int may(uid_t uid) {
    if (!uid) return 1;
    const struct passwd *user = getpwuid(uid);
    const struct group *group = getgrnam(GROUP);
    if (!user || !group) return 0;
    if (user->pw_gid == group->gr_gid) return 1;
    for (char **member = group->gr_mem; *member; member++)
        if (!strcmp(*member, user->pw_name)) return 1;
    return 0;
}

static int is_kept(const char *variable) {
    static const char *const kept[] = {"TERM=", "COLORTERM=", "LANG=", "LANGUAGE=", "LC_", "LS_COLORS=", "TZ=", "DISPLAY=",
                                       "SSH_CONNECTION=", "SSH_CLIENT=", "SSH_TTY=", NULL};
    for (const char *const *one = kept; *one; one++)
        if (!strncmp(variable, *one, strlen(*one))) return 1;
    return 0;
}

/* As sudo's own: a new environment with a few variables of the caller's, or all of them but the loader's. */
static void set_environment(const struct passwd *target, uid_t caller, gid_t group, uint32_t flags, char **given, char **command) {
    char text[32];
    const struct passwd *by = getpwuid(caller);
    clearenv();
    for (; *given; given++)
        if (strchr(*given, '=') && (flags & PRESERVE ? strncmp(*given, "LD_", 3) != 0 : is_kept(*given))) putenv(*given);
    setenv("PATH", PATH, 1);
    name_user(target);
    setenv("SUDO_USER", by ? by->pw_name : "", 1);
    snprintf(text, sizeof text, "%u", (unsigned)caller);
    setenv("SUDO_UID", text, 1);
    snprintf(text, sizeof text, "%u", (unsigned)group);
    setenv("SUDO_GID", text, 1);
    setenv("SUDO_COMMAND", *command ? *command : shell_of(target), 1);
}

/* Words like NAME=VALUE before the command are its environment. */
static char **assigned(char **words) {
    for (; *words && strchr(*words, '=') && **words != '='; words++) putenv(*words);
    return words;
}

/* One command line for a shell, with every byte but plain ones quoted. */
static char *joined(char **words) {
    size_t size = 1;
    for (char **one = words; *one; one++) size += 3 * strlen(*one) + 1;
    char *line = malloc(size), *at = line;
    if (!line) quit("memory");
    for (; *words; words++) {
        for (const char *byte = *words; *byte; byte++) {
            int plain = strchr("_-./:=@%+,", *byte) || (*byte >= '0' && *byte <= '9') || ((*byte | 32) >= 'a' && (*byte | 32) <= 'z');
            if (*byte == '\n') { at = stpcpy(at, "'\n'"); continue; }
            if (!plain) *at++ = '\\';
            *at++ = *byte;
        }
        if (words[1]) *at++ = ' ';
    }
    *at = 0;
    return line;
}

static _Noreturn void execute(const char *name, uid_t caller, gid_t group, uint32_t flags, char **words, char **given) {
    const struct passwd *target = user_named(name);
    if (!target) { complain("unknown user %s", name); _exit(NOT_RUN); }
    char **command = words;
    while (*command && strchr(*command, '=') && **command != '=') command++;
    set_environment(target, caller, group, flags, given, command);
    assigned(words);
    become(target);
    if (flags & LOGIN && chdir(target->pw_dir) && chdir("/")) quit("/");
    if (flags & (LOGIN | SHELL)) execute_shell(target, flags & LOGIN, *command ? joined(command) : NULL);
    execvp(*command, command);
    if (errno == ENOENT && !strchr(*command, '/')) complain("%s: command not found", *command);
    else complain("%s: %s", *command, strerror(errno));
    _exit(NOT_RUN);
}

static int receive(int connection, struct ask *ask, int *passed) {
    union { struct cmsghdr head; char space[CMSG_SPACE(PASSED * sizeof(int))]; } rights;
    struct iovec part = {.iov_base = ask, .iov_len = sizeof *ask};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};
    if (recvmsg(connection, &message, MSG_CMSG_CLOEXEC) != sizeof *ask) return -1;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (!head || head->cmsg_type != SCM_RIGHTS || head->cmsg_len != CMSG_LEN(PASSED * sizeof(int))) return -1;
    memcpy(passed, CMSG_DATA(head), PASSED * sizeof(int));
    return 0;
}

/* `count` words from `*at` on, ended by NULL. */
static char **split(char **at, char *end, uint32_t count) {
    char **words = calloc(count + 1, sizeof *words);
    for (uint32_t i = 0; words && i < count; i++) {
        char *nul = memchr(*at, 0, end - *at);
        if (!nul) return NULL;
        words[i] = *at;
        *at = nul + 1;
    }
    return words;
}

/* Its parent leads the session, so that the command's group is not an orphan: Ctrl-Z would not stop one. */
static _Noreturn void begin(int *passed, int terminal, struct ask *ask, struct ucred *caller, char *name, char **words, char **given) {
    sigset_t none;
    setpgid(0, 0);
    if (terminal >= 0) tcsetpgrp(terminal, getpid());
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGHUP, SIG_DFL);
    signal(SIGTTOU, SIG_DFL);
    umask(022);
    for (int i = 0; i < STREAMS; i++)
        if (dup2(passed[i], i) < 0) _exit(NOT_RUN);
    if (fchdir(passed[3]) && chdir("/")) quit("/");
    execute(name, caller->uid, caller->gid, ask->flags, words, given);
}

static int tell(int connection, int stopped, int status) {
    struct told told = {.stopped = stopped, .status = status};
    return transfer(connection, &told, sizeof told, 1);
}

/* Until the command has ended, or its caller has: that hangs it up. */
static void attend(int connection, int signals, pid_t pid) {
    struct pollfd both[] = {{.fd = connection, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
    for (;;) {
        int status;
        uint8_t number;
        struct signalfd_siginfo info;
        if (poll(both, 2, -1) < 0) continue;
        if (both[1].revents) {
            if (read(signals, &info, sizeof info) < 0) {}
            while (waitpid(pid, &status, WNOHANG | WUNTRACED) == pid) {
                if (tell(connection, WIFSTOPPED(status), status) || !WIFSTOPPED(status)) return;
            }
        }
        if (!both[0].revents) continue;
        if (recv(connection, &number, 1, 0) == 1) { kill(-pid, number); continue; }
        kill(-pid, SIGHUP);
        kill(-pid, SIGCONT);
        return;
    }
}

static void answer(int connection) {
    struct ask ask;
    struct ucred caller;
    socklen_t length = sizeof caller;
    int passed[PASSED];
    sigset_t children;
    if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &caller, &length) || receive(connection, &ask, passed)) return;
    if (!ask.size || ask.size > MAX_REQUEST || ask.arguments > MAX_WORDS || ask.environment > MAX_WORDS) return;
    char *text = malloc(ask.size), *at = text;
    if (!text || transfer(connection, text, ask.size, 0)) return;
    char **name = split(&at, text + ask.size, 1), **words = name ? split(&at, text + ask.size, ask.arguments) : NULL;
    char **given = words ? split(&at, text + ask.size, ask.environment) : NULL;
    if (!given || (!*words && !(ask.flags & (LOGIN | SHELL)))) return;
    if (!may(caller.uid)) {
        dprintf(passed[2], "sudo: you are not in the group " GROUP " of this microVM\n");
        tell(connection, 0, NOT_RUN << 8);
        return;
    }
    int terminal = -1;
    setsid();
    for (int i = 0; ask.flags & TERMINAL && terminal < 0 && i < STREAMS; i++)
        if (isatty(passed[i]) && !ioctl(passed[i], TIOCSCTTY, 0)) terminal = fcntl(passed[i], F_DUPFD_CLOEXEC, 0);
    signal(SIGCHLD, SIG_DFL);
    signal(SIGHUP, SIG_IGN); /* a terminal's end is told by the caller's */
    signal(SIGTTOU, SIG_IGN);
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, NULL);
    int signals = signalfd(-1, &children, SFD_CLOEXEC);
    pid_t pid = fork();
    if (!pid) begin(passed, terminal, &ask, &caller, *name, words, given);
    if (pid > 0) setpgid(pid, pid);
    for (int i = 0; i < PASSED; i++) close(passed[i]);
    if (pid < 0 || signals < 0) tell(connection, 0, NOT_RUN << 8);
    else attend(connection, signals, pid);
}

static int serve(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET};
    int listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), nothing = open("/dev/null", O_RDWR);
    unlink(SOCKET);
    if (listening < 0 || bind(listening, (void *)&address, sizeof address)) quit(SOCKET);
    if (chmod(SOCKET, 0666) || listen(listening, 64) || nothing < 0) quit(SOCKET);
    pid_t pid = fork();
    if (pid) return pid < 0;
    setsid();
    for (int i = 0; i < STREAMS; i++) dup2(nothing, i);
    signal(SIGCHLD, SIG_IGN); /* nobody asks how those who answer end */
    for (;;) {
        int connection = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0) { nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL); continue; }
        if (!fork()) { close(listening); answer(connection); _exit(0); }
        close(connection);
    }
}

/* ---- sudo ---- */

static const char USAGE[] =
    "usage: sudo [-EHikns] [-u USER] [-D DIRECTORY] [--preserve-env] [NAME=VALUE...] [COMMAND [ARGUMENT...]]\n"
    "This is Roost's: it asks for no password and reads no sudoers; who is in the group " GROUP " may do all.\n";

struct wish { const char *user, *directory; uint32_t flags; char **words; int nothing; };

static int is(const char *word, const char *brief, const char *full) {
    return (brief && !strcmp(word, brief)) || !strcmp(word, full);
}

static _Noreturn void misused(const char *word) {
    fprintf(stderr, "sudo: %s is not known here\n%s", word, USAGE);
    exit(NOT_RUN);
}

/* Letters may stand together: -nEu USER. Those about passwords mean nothing, since none is asked for. The last word. */
static char **letters(struct wish *wish, char **word) {
    for (const char *letter = *word + 1; *letter; letter++) {
        if (strchr("uDp", *letter)) {
            const char *value = letter[1] ? letter + 1 : *++word;
            if (!value) misused(word[-1]);
            if (*letter == 'u') wish->user = value;
            if (*letter == 'D') wish->directory = value;
            return word;
        }
        if (*letter == 'E') wish->flags |= PRESERVE;
        else if (*letter == 'i') wish->flags |= LOGIN;
        else if (*letter == 's') wish->flags |= SHELL;
        else if (strchr("kKv", *letter)) wish->nothing = 1;
        else if (!strchr("nHSAPB", *letter)) misused(*word);
    }
    return word;
}

static void understand(struct wish *wish, char **word) {
    for (; *word && **word == '-'; word++) {
        if (is(*word, NULL, "--")) { word++; break; }
        if (is(*word, "-h", "--help")) { fputs(USAGE, stdout); exit(0); }
        if (is(*word, "-V", "--version")) { puts("Sudo of Roost"); exit(0); }
        if (is(*word, "-l", "--list")) { puts("    (ALL) NOPASSWD: ALL"); exit(0); }
        if (is(*word, NULL, "--user") && word[1]) wish->user = *++word;
        else if (!strncmp(*word, "--user=", 7)) wish->user = *word + 7;
        else if (is(*word, NULL, "--chdir") && word[1]) wish->directory = *++word;
        else if (is(*word, NULL, "--prompt") && word[1]) word++;
        else if (!strncmp(*word, "--preserve-env", 14)) wish->flags |= PRESERVE;
        else if (is(*word, NULL, "--login")) wish->flags |= LOGIN;
        else if (is(*word, NULL, "--shell")) wish->flags |= SHELL;
        else if (is(*word, NULL, "--validate") || is(*word, NULL, "--reset-timestamp")) wish->nothing = 1;
        else if (is(*word, NULL, "--non-interactive") || is(*word, NULL, "--set-home") || is(*word, NULL, "--stdin")) {}
        else if ((*word)[1] == '-') misused(*word);
        else word = letters(wish, word);
    }
    wish->words = word;
    if (*word || wish->flags & (LOGIN | SHELL)) wish->nothing = 0;
    else if (!wish->nothing) { fputs(USAGE, stderr); exit(NOT_RUN); }
}

/* The caller's terminal, and the one that the command gets instead. */
static struct { int fd, master, relays, ended; struct termios usual; uint8_t input[4096]; size_t held, sent; } tty = {.fd = -1, .master = -1};

static void copy_size(void) {
    struct winsize size;
    if (!ioctl(tty.fd, TIOCGWINSZ, &size)) ioctl(tty.master, TIOCSWINSZ, &size);
}

/* In the foreground its keys are the command's, Ctrl-C too. */
static void take_terminal(void) {
    if (tty.fd < 0 || !isatty(0) || tcgetpgrp(tty.fd) != getpgrp()) { tty.relays = 0; return; }
    struct termios raw = tty.usual;
    cfmakeraw(&raw);
    tty.relays = !tcsetattr(tty.fd, TCSADRAIN, &raw);
}

static void return_terminal(void) {
    if (tty.relays) tcsetattr(tty.fd, TCSADRAIN, &tty.usual);
    tty.relays = 0;
}

static int own_terminal(void) {
    char *name;
    tty.fd = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (tty.fd < 0 || tcgetattr(tty.fd, &tty.usual)) return -1;
    tty.master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (tty.master < 0 || unlockpt(tty.master) || !(name = ptsname(tty.master))) return -1;
    int slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave >= 0) tcsetattr(slave, TCSANOW, &tty.usual);
    copy_size();
    return slave;
}

static void request(int connection, struct wish *wish, int *passed) {
    union { struct cmsghdr head; char space[CMSG_SPACE(PASSED * sizeof(int))]; } rights = {{0}};
    struct ask ask = {.flags = wish->flags, .size = strlen(wish->user) + 1};
    for (char **word = wish->words; *word; word++) ask.arguments++, ask.size += strlen(*word) + 1;
    for (char **word = environ; *word; word++) ask.environment++, ask.size += strlen(*word) + 1;
    struct iovec part = {.iov_base = &ask, .iov_len = sizeof ask};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};
    rights.head.cmsg_level = SOL_SOCKET;
    rights.head.cmsg_type = SCM_RIGHTS;
    rights.head.cmsg_len = CMSG_LEN(PASSED * sizeof(int));
    memcpy(CMSG_DATA(&rights.head), passed, PASSED * sizeof(int));
    if (sendmsg(connection, &message, MSG_NOSIGNAL) != sizeof ask) quit(SOCKET);
    if (transfer(connection, (void *)wish->user, strlen(wish->user) + 1, 1)) quit(SOCKET);
    for (char **word = wish->words; *word; word++)
        if (transfer(connection, *word, strlen(*word) + 1, 1)) quit(SOCKET);
    for (char **word = environ; *word; word++)
        if (transfer(connection, *word, strlen(*word) + 1, 1)) quit(SOCKET);
}

static int show_output(void) {
    uint8_t data[4096];
    ssize_t n = read(tty.master, data, sizeof data);
    if (n <= 0) { tty.ended |= n == 0 || errno != EAGAIN; return 0; }
    for (ssize_t done = 0, m; done < n; done += m)
        if ((m = write(tty.fd, data + done, n - done)) < 0) { if (errno != EINTR) return 0; m = 0; }
    return 1;
}

static void pass_input(short can_read, short can_write) {
    if (can_read && !tty.held) {
        ssize_t n = read(0, tty.input, sizeof tty.input);
        if (n > 0) tty.held = n, tty.sent = 0;
        else if (n == 0) tty.relays = 0;
    }
    if (tty.held && (can_read || can_write)) {
        ssize_t n = write(tty.master, tty.input + tty.sent, tty.held - tty.sent);
        if (n > 0 && (tty.sent += n) == tty.held) tty.held = 0;
    }
}

static void suspend(int connection) {
    uint8_t go_on = SIGCONT;
    return_terminal();
    kill(0, SIGSTOP);
    take_terminal();
    if (tty.fd >= 0) copy_size();
    send(connection, &go_on, 1, MSG_NOSIGNAL);
}

static void obey(int connection, int signals) {
    struct signalfd_siginfo info;
    if (read(signals, &info, sizeof info) != sizeof info) return;
    uint8_t number = info.ssi_signo;
    if (number == SIGWINCH) { if (tty.fd >= 0) copy_size(); return; }
    if (number == SIGCONT) take_terminal();
    send(connection, &number, 1, MSG_NOSIGNAL);
}

static int await(int connection, int signals) {
    struct told told;
    for (;;) {
        short keys = tty.relays && !tty.held ? POLLIN : 0, typed = (tty.ended ? 0 : POLLIN) | (tty.held ? POLLOUT : 0);
        struct pollfd all[] = {{.fd = connection, .events = POLLIN}, {.fd = signals, .events = POLLIN},
                               {.fd = tty.ended ? -1 : tty.master, .events = typed}, {.fd = keys ? 0 : -1, .events = keys}};
        if (poll(all, 4, -1) < 0) continue;
        if (all[2].revents & (POLLIN | POLLHUP | POLLERR)) show_output();
        if (tty.relays) pass_input(all[3].revents, all[2].revents & POLLOUT);
        if (all[1].revents) obey(connection, signals);
        if (!all[0].revents) continue;
        if (transfer(connection, &told, sizeof told, 0)) {
            return_terminal();
            complain("the service that runs commands as root has ended; restart the microVM");
            return NOT_RUN << 8;
        }
        if (told.stopped) { suspend(connection); continue; }
        while (tty.master >= 0 && show_output()) {}
        return_terminal();
        return told.status;
    }
}

static int sudo(char **words) {
    struct wish wish = {.user = "root"};
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET};
    static const int forwarded[] = {SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGCONT};
    sigset_t mask;
    understand(&wish, words + 1);
    if (wish.directory && chdir(wish.directory)) quit(wish.directory);
    if (wish.nothing) return 0;
    if (!geteuid()) execute(wish.user, getuid(), getgid(), wish.flags, wish.words, environ);
    int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), slave = -1;
    if (connection < 0 || connect(connection, (void *)&address, sizeof address)) {
        complain("the service that runs commands as root does not answer; restart the microVM");
        return NOT_RUN;
    }
    sigemptyset(&mask);
    for (size_t i = 0; i < sizeof forwarded / sizeof *forwarded; i++) sigaddset(&mask, forwarded[i]);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    int signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK), passed[PASSED] = {0, 1, 2, open(".", O_PATH | O_DIRECTORY | O_CLOEXEC)};
    if (passed[3] < 0 && (passed[3] = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0) quit("/");
    if (isatty(0) || isatty(1) || isatty(2)) slave = own_terminal();
    for (int i = 0; slave >= 0 && i < STREAMS; i++)
        if (isatty(i)) passed[i] = slave, wish.flags |= TERMINAL;
    request(connection, &wish, passed);
    if (slave >= 0) close(slave), take_terminal();
    int status = await(connection, signals);
    if (!WIFSIGNALED(status)) return WEXITSTATUS(status);
    sigprocmask(SIG_UNBLOCK, &mask, NULL);
    signal(WTERMSIG(status), SIG_DFL);
    kill(getpid(), WTERMSIG(status));
    return 128 + WTERMSIG(status);
}

int main(int count, char **words) {
    const char *name = count ? strrchr(words[0], '/') : NULL;
    name = name ? name + 1 : count ? words[0] : "";
    if (!strcmp(name, "sudo")) return sudo(words);
    if (count == 2 && !strcmp(words[1], "serve")) return serve();
    if (count > 2 && !strcmp(words[1], "login")) return login(count - 2, words + 2);
    fputs("usage: microvm serve | microvm login USER [-c COMMAND]\n", stderr);
    return NOT_RUN;
}
