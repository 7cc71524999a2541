/* What a process leaves behind when it ends: what asked to stay does, the rest is ended. */
#ifndef ROOST_SESSION_H
#define ROOST_SESSION_H

#include <sys/types.h>

/* The first process of session `id` has ended, and is reaped after this. */
void end_session(pid_t id);

/* Milliseconds until `look_at_sessions` is due; -1: it is not. */
int next_look(void);
void look_at_sessions(void);

#endif
