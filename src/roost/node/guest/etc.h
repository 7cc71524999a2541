/* Files of the sandbox that the node writes at each start, unless somebody has made them their own. */
#ifndef ROOST_ETC_H
#define ROOST_ETC_H

#include <stddef.h>
#include <stdint.h>

/* Whether `path`, which an earlier sandbox left, is other than what was written there then. */
int is_edited(const char *path);

/* After the file was written: so that the next start knows its content again. -1 and errno. */
int mark_written(const char *path);

/* The name that an edited /etc/hostname gives, or NULL; good until the next call. */
const char *edited_hostname(void);

#endif
