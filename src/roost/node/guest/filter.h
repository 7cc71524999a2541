/* What nothing in the sandbox may do once it has its root, and who makes the sockets that may only be few. */
#ifndef ROOST_FILTER_H
#define ROOST_FILTER_H

/* Holds for the calling thread and all that it starts, for good. No thread may have been started before. */
int enter_filter(void);

#endif
