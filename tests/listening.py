"""Which ports the processes of a session listen on."""

import contextlib
import ipaddress
import os
from typing import NamedTuple

import psutil


class Listener(NamedTuple):
    process: str
    ip: str
    port: int

    @property
    def is_open(self) -> bool:
        """Whether other machines reach it."""
        ip = ipaddress.ip_address(self.ip)
        return not (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def listeners(session: int) -> set[Listener]:
    """TCP ports of all processes in a session; Ray's rename themselves, so their command lines say nothing."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session:
                sockets = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
                found |= {Listener(process.name(), c.laddr.ip, c.laddr.port) for c in sockets}
    return found
