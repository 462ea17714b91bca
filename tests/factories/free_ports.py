"""Ports of 127.0.0.1 for servers that want to be told theirs."""

import os
import random
import socket


def free_ports(count: int) -> list[int]:
    """Ports that are free, as are those 10,000 above, which SeaweedFS takes too.

    None that the system gives to whoever asks for any: a server that is down for a while finds its own free again.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.Random(os.urandom(4)).randrange(20_000, 22_000)
        if port not in found and _is_free(port) and _is_free(port + 10_000):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
