/* Executing a program as a shell does, and saying as a shell does why that cannot be. */
#ifndef ROOST_RUN_H
#define ROOST_RUN_H

/* Becomes the program in `directory`; what stands in the way is said on standard error, and ends in status 127 where
 * something is missing, 126 where it is there and cannot be used. PATH is that of the environment given. */
_Noreturn void run_program(const char *directory, char **arguments, char **environment);

#endif
