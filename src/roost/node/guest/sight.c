/* See sight.h.
 *
 * The kernel tells the whole machine's numbers in /proc. Files of our own lie over those, with the sandbox's: made and
 * refreshed here, inside, so that what it costs is the sandbox's own and stands still with it. The counters come from its
 * control group, whose files were opened while the node had them mounted below /slot. Uptime, and all that is reckoned from
 * it, is the kernel's own: of a time namespace that begins with the sandbox.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "sight.h"

enum { EVERY = 1000, LOAD_EVERY = 5 };            /* milliseconds; refreshes between two looks at who runs */
enum { HZ = 100 };                                /* of the counters that the kernel shows */
enum { FIXED = 1 << 11, E1 = 1884, E5 = 2014, E15 = 2037 }; /* the kernel's own averages, for a look each 5 s */
enum { BLOCK = 8192, NEWTIME = 0x80 };
enum { SEALED = MS_NOSUID | MS_NODEV | MS_NOEXEC };
#define SCRATCH "/dev/shm" /* a directory that can be mounted on */

enum { MEMINFO, CPUINFO, STAT, LOADAVG, SWAPS, ONLINE, POSSIBLE, PRESENT, FILES };
static const char *const places[FILES] = {"/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/proc/loadavg", "/proc/swaps",
    "/sys/devices/system/cpu/online", "/sys/devices/system/cpu/possible", "/sys/devices/system/cpu/present"};
static int files[FILES];
static size_t lengths[FILES];

static int memory_usage, memory_stat, cpu_stat; /* of the control group */
static char processor[BLOCK];                   /* what the machine says of its first one */
static uint64_t memory_limit, cpus_shown;
static uint64_t first_user, first_system, last_idle, last_used;
static uint64_t load[3];
static int running, present, last_pid, refreshes;
static int64_t begun, due;
static time_t begun_wall;
static int has_time;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* ---- before there is a sandbox ---- */

static int open_either(const char *v1, const char *v2) {
    int fd = open(v1, O_RDONLY | O_CLOEXEC);
    return fd < 0 && errno == ENOENT ? open(v2, O_RDONLY | O_CLOEXEC) : fd;
}

static int cover(int i) {
    char name[32];
    files[i] = -1;
    if (access(places[i], F_OK)) return 0; /* this kernel has none */
    snprintf(name, sizeof name, SCRATCH "/%d", i);
    files[i] = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
    if (files[i] < 0) return -1;
    if (mount(name, places[i], NULL, MS_BIND, NULL)) return -1;
    return mount(NULL, places[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | SEALED, NULL);
}

static void read_processor(void) {
    int fd = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, processor, sizeof processor - 1); /* the kernel gives whole entries: the first */
    if (fd >= 0) close(fd);
    processor[n > 0 ? n : 0] = 0;
    char *end = strstr(processor, "\n\n");
    if (end) end[1] = 0;
}

int prepare_sight(void) {
    memory_usage = open_either("/slot/memory/memory.usage_in_bytes", "/slot/memory/memory.current");
    memory_stat = open("/slot/memory/memory.stat", O_RDONLY | O_CLOEXEC);
    cpu_stat = open_either("/slot/cpu/cpuacct.stat", "/slot/cpu/cpu.stat");
    if (memory_usage < 0 || memory_stat < 0 || cpu_stat < 0) return -1;
    read_processor();
    has_time = !unshare(NEWTIME); /* of the processes that are started from now on */
    if (mount("sight", SCRATCH, "tmpfs", SEALED, "size=1m,nr_inodes=32,mode=755")) return -1;
    for (int i = 0; i < FILES; i++)
        if (cover(i)) return -1;
    return umount2(SCRATCH, MNT_DETACH); /* the files stay, where they were put */
}

/* ---- when it begins ---- */

/* Kernels without time namespaces show the machine's uptime. */
static void begin_time(void) {
    struct timespec t;
    char text[128];
    if (!has_time) return;
    prctl(PR_SET_DUMPABLE, 1); /* its own file is the machine's root's otherwise; nobody is here yet who could look */
    int fd = open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
    prctl(PR_SET_DUMPABLE, 0);
    if (fd < 0) return;
    static const struct { clockid_t clock; const char *name; } clocks[] = {{CLOCK_MONOTONIC, "monotonic"}, {CLOCK_BOOTTIME, "boottime"}};
    for (int i = 0; i < 2; i++) {
        clock_gettime(clocks[i].clock, &t);
        int n = snprintf(text, sizeof text, "%s -%lld 0\n", clocks[i].name, (long long)t.tv_sec);
        if (write(fd, text, n) < 0) break;
    }
    close(fd);
}

static int run_on(const char *on) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (char *end; *on; on = *end ? end + 1 : end) {
        unsigned long cpu = strtoul(on, &end, 10);
        if (end == on || cpu >= CPU_SETSIZE) { errno = EINVAL; return -1; }
        CPU_SET(cpu, &set);
    }
    return sched_setaffinity(0, sizeof set, &set);
}

static int size_shared_memory(uint64_t memory) {
    char size[32];
    snprintf(size, sizeof size, "size=%llu", (unsigned long long)memory / 2);
    return mount(NULL, "/dev/shm", NULL, MS_REMOUNT | MS_NOSUID | MS_NODEV | MS_NOEXEC, size);
}

static void put(int i, const char *text, size_t length) {
    if (files[i] < 0 || pwrite(files[i], text, length, 0) < 0) return; /* no memory just now: what was there stays */
    if (length < lengths[i] && ftruncate(files[i], length)) return;
    lengths[i] = length;
}

static size_t put_line(char *at, const char *line, size_t length, int number) {
    static const char *const counts[] = {"siblings", "cpu cores"}, *const numbers[] = {"processor", "core id", "apicid", "initial apicid"};
    const char *colon = memchr(line, ':', length);
    size_t name = colon ? colon - line : 0;
    while (name && isspace((unsigned char)line[name - 1])) name--;
    for (int i = 0; colon && i < 2; i++)
        if (strlen(counts[i]) == name && !memcmp(line, counts[i], name))
            return sprintf(at, "%.*s: %d\n", (int)(colon - line), line, (int)cpus_shown);
    for (int i = 0; colon && i < 4; i++)
        if (strlen(numbers[i]) == name && !memcmp(line, numbers[i], name))
            return sprintf(at, "%.*s: %d\n", (int)(colon - line), line, number);
    memcpy(at, line, length);
    return length;
}

static void put_processors(void) {
    char *text = malloc(cpus_shown * (strlen(processor) + 128)), *at = text;
    if (!text) return;
    for (int i = 0; i < (int)cpus_shown; i++) {
        for (const char *line = processor; *line;) {
            size_t length = strcspn(line, "\n");
            length += line[length] == '\n';
            at += put_line(at, line, length, i);
            line += length;
        }
        *at++ = '\n';
    }
    put(CPUINFO, text, at - text);
    free(text);
}

static void put_numbers(void) {
    char text[32];
    int n = cpus_shown > 1 ? sprintf(text, "0-%d\n", (int)cpus_shown - 1) : sprintf(text, "0\n");
    for (int i = ONLINE; i <= PRESENT; i++) put(i, text, n);
    static const char none[] = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
    put(SWAPS, none, sizeof none - 1);
}

/* ---- from then on ---- */

static int read_again(int fd, char *text, size_t size) {
    ssize_t n = pread(fd, text + 1, size - 2, 0);
    text[0] = '\n'; /* so that each name begins behind one */
    text[n > 0 ? n + 1 : 1] = 0;
    return n > 0 ? 0 : -1;
}

/* The number behind `name` in a flat keyed file; `otherwise` is its name on the other version. */
static uint64_t value(const char *text, const char *name, const char *otherwise) {
    char key[64];
    for (int i = 0; i < 2 && (name = i ? otherwise : name); i++) {
        snprintf(key, sizeof key, "\n%s ", name);
        const char *at = strstr(text, key);
        if (at) return strtoull(at + strlen(key), NULL, 10);
    }
    return 0;
}

static void put_memory(void) {
    char usage[64], stat[8192], text[2048];
    if (read_again(memory_usage, usage, sizeof usage) || read_again(memory_stat, stat, sizeof stat)) return;
    uint64_t used = strtoull(usage + 1, NULL, 10);
    uint64_t inactive = value(stat, "inactive_file", NULL), active = value(stat, "active_file", NULL);
    uint64_t slab = value(stat, "slab_reclaimable", NULL), all_slab = slab + value(stat, "slab_unreclaimable", NULL);
    uint64_t free = used < memory_limit ? memory_limit - used : 0, available = free + inactive + active + slab;
    struct { const char *name; uint64_t bytes; } lines[] = {
        {"MemTotal:", memory_limit}, {"MemFree:", free}, {"MemAvailable:", available < memory_limit ? available : memory_limit},
        {"Buffers:", 0}, {"Cached:", value(stat, "file", "cache")}, {"SwapCached:", 0},
        {"Active:", active + value(stat, "active_anon", NULL)}, {"Inactive:", inactive + value(stat, "inactive_anon", NULL)},
        {"Active(anon):", value(stat, "active_anon", NULL)}, {"Inactive(anon):", value(stat, "inactive_anon", NULL)},
        {"Active(file):", active}, {"Inactive(file):", inactive}, {"Unevictable:", value(stat, "unevictable", NULL)},
        {"Mlocked:", 0}, {"SwapTotal:", 0}, {"SwapFree:", 0}, {"Dirty:", value(stat, "file_dirty", "dirty")},
        {"Writeback:", value(stat, "file_writeback", "writeback")}, {"AnonPages:", value(stat, "anon", "rss")},
        {"Mapped:", value(stat, "file_mapped", "mapped_file")}, {"Shmem:", value(stat, "shmem", NULL)}, {"KReclaimable:", slab},
        {"Slab:", all_slab}, {"SReclaimable:", slab}, {"SUnreclaim:", all_slab - slab},
        {"KernelStack:", value(stat, "kernel_stack", NULL)}, {"PageTables:", value(stat, "pagetables", NULL)},
        {"CommitLimit:", memory_limit}, {"Committed_AS:", value(stat, "anon", "rss")},
    };
    int n = 0;
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        n += sprintf(text + n, "%-15s %8llu kB\n", lines[i].name, (unsigned long long)lines[i].bytes >> 10);
    put(MEMINFO, text, n);
}

static int read_times(uint64_t *user, uint64_t *system) {
    char text[4096];
    if (read_again(cpu_stat, text, sizeof text)) return -1;
    int v2 = strstr(text, "\nuser_usec ") != NULL;
    *user = v2 ? value(text, "user_usec", NULL) * HZ / 1000000 : value(text, "user", NULL);
    *system = v2 ? value(text, "system_usec", NULL) * HZ / 1000000 : value(text, "system", NULL);
    return 0;
}

static void put_times(void) {
    size_t size = (cpus_shown + 2) * 160;
    uint64_t user, system;
    char *text = read_times(&user, &system) ? NULL : malloc(size + 512);
    if (!text) return;
    user -= first_user, system -= first_system;
    uint64_t all = (now() - begun) * cpus_shown * HZ / 1000, idle = all > user + system ? all - user - system : 0;
    last_idle = idle > last_idle ? idle : last_idle;
    uint64_t shares[] = {user, system, last_idle};
    int n = sprintf(text, "cpu  %llu 0 %llu %llu 0 0 0 0 0 0\n", (unsigned long long)user, (unsigned long long)system, (unsigned long long)last_idle);
    for (uint64_t i = 0; i < cpus_shown; i++) { /* what is left of a division is the first one's */
        unsigned long long part[3];
        for (int k = 0; k < 3; k++) part[k] = shares[k] / cpus_shown + (i ? 0 : shares[k] % cpus_shown);
        n += sprintf(text + n, "cpu%d %llu 0 %llu %llu 0 0 0 0 0 0\n", (int)i, part[0], part[1], part[2]);
    }
    n += sprintf(text + n, "intr 0\nctxt 0\nbtime %lld\nprocesses %d\nprocs_running %d\nprocs_blocked 0\n",
                 (long long)begun_wall, last_pid, running ? running : 1);
    put(STAT, text, n);
    free(text);
}

static void count_processes(void) {
    DIR *all = opendir("/proc");
    if (!all) return;
    running = present = 0;
    for (struct dirent *entry; (entry = readdir(all));) {
        char path[64], text[512];
        int pid = isdigit((unsigned char)*entry->d_name) ? atoi(entry->d_name) : 0;
        if (pid <= 1) continue;
        present++;
        last_pid = pid > last_pid ? pid : last_pid;
        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
        if (fd >= 0) close(fd);
        text[n > 0 ? n : 0] = 0;
        char *state = strrchr(text, ')');
        running += state && (state[2] == 'R' || state[2] == 'D');
    }
    closedir(all);
}

/* A process counts once, however many threads it has: so what the processors did counts where that is more. */
static void put_load(void) {
    static const int factors[] = {E1, E5, E15};
    uint64_t user, system;
    char text[128];
    count_processes();
    uint64_t active = (uint64_t)running * FIXED;
    if (!read_times(&user, &system)) {
        uint64_t worked = (user + system - last_used) * FIXED / (LOAD_EVERY * HZ);
        last_used = user + system;
        active = worked > active ? worked : active;
    }
    for (int i = 0; i < 3; i++) load[i] = (load[i] * factors[i] + active * (FIXED - factors[i])) / FIXED;
    int n = 0;
    for (int i = 0; i < 3; i++)
        n += sprintf(text + n, "%llu.%02llu ", (unsigned long long)load[i] / FIXED, (unsigned long long)(load[i] % FIXED) * 100 / FIXED);
    n += sprintf(text + n, "%d/%d %d\n", running, present, last_pid);
    put(LOADAVG, text, n);
}

int next_sight(void) {
    if (!begun) return -1;
    int64_t left = due - now();
    return left > 0 ? left : 0;
}

void refresh_sight(void) {
    put_memory();
    put_times();
    if (++refreshes % LOAD_EVERY == 0) put_load();
    due = now() + EVERY;
}

int begin_sight(uint64_t memory, int cpus, const char *on) {
    memory_limit = memory;
    cpus_shown = cpus;
    if (size_shared_memory(memory) || (*on && run_on(on))) return -1;
    begin_time();
    begun = now();
    begun_wall = time(NULL);
    if (read_times(&first_user, &first_system)) return -1;
    last_used = first_user + first_system;
    static const char nothing_yet[] = "0.00 0.00 0.00 1/1 1\n";
    put(LOADAVG, nothing_yet, sizeof nothing_yet - 1);
    put_processors();
    put_numbers();
    refresh_sight();
    return 0;
}
