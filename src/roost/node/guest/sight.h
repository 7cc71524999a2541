/* What programs are told of the machine they run on: the sandbox's memory, processors, load and uptime. */
#ifndef ROOST_SIGHT_H
#define ROOST_SIGHT_H

#include <stdint.h>

/* Before ATTACH: counters are opened below /slot, files are put in the place of those of /proc and /sys. */
int prepare_sight(void);

/* At ATTACH, while mounting is still allowed. `on`: the processors to run on, as "0,3"; empty: all. */
int begin_sight(uint64_t memory, int cpus, const char *on);

/* Milliseconds until `refresh_sight` is due; -1: it never is. */
int next_sight(void);
void refresh_sight(void);

#endif
