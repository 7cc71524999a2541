/* The /bin/sh of test images: reads the script's lines and says what it could do.
 *
 *   read PATH    the first bytes of a file, or why not
 *   write PATH   opens it for writing, writes one byte, or why not
 *   say TEXT     TEXT
 *   sleep N      seconds
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void answer(const char *line, const char *what) {
    printf("%s: %s\n", line, what);
    fflush(stdout);
}

static void attempt(const char *line, const char *path, int flags) {
    char bytes[65] = "x";
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0) return answer(line, strerror(errno));
    ssize_t n = flags == O_RDONLY ? read(fd, bytes, sizeof bytes - 1) : write(fd, bytes, 1);
    if (n < 0) answer(line, strerror(errno));
    else if (flags != O_RDONLY) answer(line, "written");
    else {
        bytes[n] = 0;
        bytes[strcspn(bytes, "\n")] = 0;
        answer(line, n ? bytes : "(empty)");
    }
    close(fd);
}

int main(int count, char **arguments) {
    char line[4096];
    FILE *script = count > 1 ? fopen(arguments[1], "r") : NULL;
    if (!script) return 127;
    while (fgets(line, sizeof line, script)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "read ", 5)) attempt(line, line + 5, O_RDONLY);
        else if (!strncmp(line, "write ", 6)) attempt(line, line + 6, O_WRONLY);
        else if (!strncmp(line, "say ", 4)) puts(line + 4);
        else if (!strncmp(line, "sleep ", 6)) sleep((unsigned)atoi(line + 6));
        fflush(stdout);
    }
    return 0;
}
