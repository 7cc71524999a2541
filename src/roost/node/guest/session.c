/* See session.h.
 *
 * Whoever left the session (setsid) or asked not to be hung up (nohup) stays. A process that is on its way to do so is
 * not there yet: `setsid -f` forks, its first process ends at once, and its child may not even have run. Nothing tells
 * such a child from one that means to stay in the session, except what it does when it gets to run. So what is left is
 * looked at again and again, and ended once it has had its chance: it slept from one look to the next, or has used
 * the processor for a while. On a busy machine a process that waits for the processor is waited for.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "session.h"

enum { LOOK = 100 };          /* milliseconds */
enum { CHANCE_TICKS = 20 };   /* hundredths of a second of processor time */
enum { CHANCE_LOOKS = 20, CHANCE_TURNS = 40 }; /* for what naps and works by turns */

struct member {
    struct member *next;
    pid_t pid;
    uint64_t begun, ticks, turns; /* its start, and what it had used when it was first seen */
    uint64_t last_turns;
    int asleep, looks, seen;
};

struct session { struct session *next; pid_t id; struct member *members; };

struct sight { pid_t pid, session; char state; uint64_t begun, ticks, turns; int hangup_ignored; };

static struct session *sessions;
static int64_t due;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static int read_text(pid_t pid, const char *file, char *text, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, text, size - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    return n > 0 ? 0 : -1;
}

/* proc_pid_stat(5): behind the name, which may hold anything but ends at the last bracket. */
static int see_stat(pid_t pid, struct sight *s) {
    char text[1024];
    int session;
    unsigned long user, system;
    unsigned long long begun;
    if (read_text(pid, "stat", text, sizeof text)) return -1;
    char *rest = strrchr(text, ')');
    if (!rest) return -1;
    int n = sscanf(rest + 1, " %c %*d %*d %d %*d %*d %*u %*u %*u %*u %*u %lu %lu %*d %*d %*d %*d %*d %*d %llu",
                   &s->state, &session, &user, &system, &begun);
    if (n != 5) return -1;
    s->pid = pid, s->session = session, s->begun = begun, s->ticks = user + system;
    return 0;
}

static uint64_t field(const char *text, const char *name, int base) {
    const char *at = strstr(text, name);
    return at ? strtoull(at + strlen(name), NULL, base) : 0;
}

static int see_status(struct sight *s) {
    char text[4096];
    if (read_text(s->pid, "status", text, sizeof text)) return -1;
    s->hangup_ignored = field(text, "\nSigIgn:", 16) >> (SIGHUP - 1) & 1;
    s->turns = field(text, "\nvoluntary_ctxt_switches:", 10) + field(text, "\nnonvoluntary_ctxt_switches:", 10);
    return 0;
}

static struct session *session_of(pid_t id) {
    struct session *s = sessions;
    while (s && s->id != id) s = s->next;
    return s;
}

static struct member *member_of(struct session *session, const struct sight *s) {
    struct member *m = session->members;
    while (m && (m->pid != s->pid || m->begun != s->begun)) m = m->next;
    if (m || !(m = calloc(1, sizeof *m))) return m;
    *m = (struct member){.next = session->members, .pid = s->pid, .begun = s->begun, .ticks = s->ticks,
                         .turns = s->turns, .last_turns = s->turns};
    session->members = m;
    return m;
}

static int had_its_chance(struct member *m, const struct sight *s) {
    int asleep = strchr("STtI", s->state) != NULL, idle = asleep && m->asleep && s->turns == m->last_turns;
    m->asleep = asleep;
    m->last_turns = s->turns;
    m->looks++;
    return idle || s->ticks >= m->ticks + CHANCE_TICKS ||
        (m->looks > CHANCE_LOOKS && s->turns >= m->turns + CHANCE_TURNS);
}

static void look_at(pid_t pid, const struct session *only) {
    struct sight s;
    if (see_stat(pid, &s) || s.state == 'Z' || s.state == 'X' || s.pid == s.session) return;
    struct session *session = session_of(s.session);
    if (!session || (only && session != only) || see_status(&s) || s.hangup_ignored) return;
    struct member *m = member_of(session, &s);
    if (!m) return;
    m->seen = 1;
    if (had_its_chance(m, &s)) kill(pid, SIGKILL);
}

/* Whether nothing of it is left; what has gone since the last look is forgotten. */
static int is_empty(struct session *session) {
    for (struct member **link = &session->members; *link;) {
        struct member *m = *link;
        if (m->seen) { m->seen = 0; link = &m->next; continue; }
        *link = m->next;
        free(m);
    }
    return !session->members;
}

/* At `only`, or at all of them for its want. */
static void look(const struct session *only) {
    DIR *all = opendir("/proc");
    if (!all) return; /* no memory, no descriptors: the next time */
    for (struct dirent *entry; (entry = readdir(all));)
        if (isdigit((unsigned char)*entry->d_name)) look_at(atoi(entry->d_name), only);
    closedir(all);
    for (struct session **link = &sessions; *link;) {
        struct session *s = *link;
        if ((only && s != only) || !is_empty(s)) { link = &s->next; continue; }
        *link = s->next;
        free(s);
    }
}

void look_at_sessions(void) {
    look(NULL);
    due = now() + LOOK;
}

void end_session(pid_t id) {
    struct session *s = session_of(id) ? NULL : calloc(1, sizeof *s);
    if (!s) return;
    if (!sessions) due = now() + LOOK;
    *s = (struct session){.next = sessions, .id = id};
    sessions = s;
    look(s);
}

int next_look(void) {
    if (!sessions) return -1;
    int64_t left = due - now();
    return left > 0 ? left : 0;
}
