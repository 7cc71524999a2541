/* Why a request could not be met, for the answer to the node. */
#ifndef ROOST_FAIL_H
#define ROOST_FAIL_H

/* Remembers what failed, with what errno says; returns -1 and leaves errno as it is. */
int fail(const char *what);

#endif
