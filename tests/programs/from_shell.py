"""``python -m async_state``, as a shell calls it, in a fork of the process behind the socket of the first argument."""

import json
import os
import socket
import sys


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    request = "\n".join(["command", json.dumps([dict(os.environ), sys.argv[2:], os.environ["PWD"]])])
    socket.send_fds(requests, [request.encode()], [0, 1, 2])
    # Its process id, which the shell does not need, and what it ended with.
    requests.recv(100)
    sys.exit(int(requests.recv(100)))


if __name__ == "__main__":
    main()
