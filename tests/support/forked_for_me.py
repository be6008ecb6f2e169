"""`python -IS forked_for_me.py SOCKET ARGV...`: the tests that listen on SOCKET run ARGV as a fork, and this is its stand-in.

It sends ARGV, its environment, folder, standard streams and namespaces (it may be on a test host), hands on what signals it
gets, and ends with the status that comes back. Every stand-in is a start of Python: so it imports no json and no pathlib.
"""

import marshal
import os
import signal
import socket
import struct
import sys

NAMESPACES = ("net", "uts", "mnt")
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
LARGEST = 1 << 20
WORD = struct.Struct("q")


def main(place: str, *argv: str) -> int:
    """Ask for `argv`; a status as a shell has it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)  # until it is known to whom they go
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
        connection.connect(place)
        asked = {"argv": argv, "env": dict(os.environ), "cwd": os.getcwd()}
        namespaces = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in NAMESPACES]
        socket.send_fds(connection, [marshal.dumps(asked)], [0, 1, 2, *namespaces])
        (program,) = WORD.unpack(connection.recv(WORD.size))
        for number in HANDED_ON:
            signal.signal(number, lambda number, _: os.kill(program, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
        (status,) = WORD.unpack(connection.recv(WORD.size))
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
