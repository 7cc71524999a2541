/* On the machine, before the sandbox: the user namespace that it will run in. */
#ifndef ROOST_NAMESPACE_H
#define ROOST_NAMESPACE_H

#include <sys/types.h>

/* Becomes `owner` and makes a user namespace, which so belongs to it. Says so by a byte on standard output, and holds it
 * until standard input ends. Returns an exit status. */
int own_namespace(uid_t owner);

#endif
