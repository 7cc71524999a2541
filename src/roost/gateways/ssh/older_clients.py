"""What the official clients 1.2.0 to 1.3.6 send when they run a command by ssh, put right.

They send the command twice, quoted for the shell of a `chroot /overlay` that the service had then and, with the same
quoting, for a machine without one, where every single quote in it then breaks it. There is no /overlay here.
"""

THEN = "if [ -d /overlay/bin ]; then chroot /overlay /bin/sh -l -c 'cd /root 2>/dev/null; "
ELSE = "'; else cd /root 2>/dev/null; "
END = "; fi"


def put_right(command: str) -> str:
    """Any other command as it is."""
    if not (command.startswith(THEN) and command.endswith(END)):
        return command
    both = command[len(THEN) : -len(END)]
    length, odd = divmod(len(both) - len(ELSE), 2)
    quoted, middle, again = both[:length], both[length : length + len(ELSE)], both[length + len(ELSE) :]
    if odd or middle != ELSE or quoted != again:
        return command
    return f"{THEN}{quoted}'; else exec /bin/sh -l -c 'cd /root 2>/dev/null; {quoted}'{END}"
