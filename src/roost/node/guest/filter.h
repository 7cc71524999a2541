/* What nothing in the sandbox may do once it has its root, and who makes the sockets that may only be few. */
#ifndef ROOST_FILTER_H
#define ROOST_FILTER_H

/* A thread, before there is the filter; `drop` gives up its capabilities and returns 0. */
int start_supervisor(int (*drop)(void));

/* Holds for the calling thread and all that it starts, for good. */
int enter_filter(void);

#endif
