"""The network interface that workers talk over: the one that has the node's own address in the
cluster.
"""

from __future__ import annotations

import os

import psutil

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def use_interface_of(address: str) -> None:
    """Make gloo and NCCL use the interface with this address, unless the person who runs the
    cluster named another.

    By themselves they take what the host's name resolves to, which on many hosts is the loopback or
    another network.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            for variable in VARIABLES:
                os.environ.setdefault(variable, name)
            return
