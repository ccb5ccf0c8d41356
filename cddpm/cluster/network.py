"""Between the processes of one training: gloo and NCCL take the interface that Ray's own traffic takes.

By themselves gloo asks what the host's name resolves to, which Debian and Ubuntu answer with loopback, and NCCL takes the first
interface that looks fit: a bridge of Docker's or a VPN that the other hosts do not see.
"""

import ipaddress
import os
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any


def interface(address: str, interfaces: Mapping[str, Iterable[str]]) -> str | None:
    """Name of the interface that owns the IP ``address``; None if none does, or if it is loopback, which leads to no other host.

    ``interfaces``: addresses by name; what is no IP address (a hardware address) is passed over.
    """
    sought = _ip(address)
    if sought is None or sought.is_loopback:
        return None
    return next((name for name, owned in sorted(interfaces.items()) if any(_ip(one) == sought for one in owned)), None)


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])  # fe80::1%eth0
    except ValueError:
        return None


def bind(address: str | None = None, environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Have process groups made from here on meet over the interface that owns ``address``; returns its name, if there is one.

    Without an address it is the one of this Ray node. What somebody has set in ``environment`` stays.
    """
    import psutil
    import ray

    owned = {name: [one.address for one in found] for name, found in psutil.net_if_addrs().items()}
    found = interface(address or ray.util.get_node_ip_address(), owned)
    if found is not None:
        environment.setdefault("GLOO_SOCKET_IFNAME", found)
        environment.setdefault("NCCL_SOCKET_IFNAME", f"={found}")  # "=": no other whose name begins alike
    return found


def torch_config() -> Any:
    """Ray Train's configuration of torch, but that each worker binds itself before they meet, if there is more than one node."""
    import ray
    from ray.train.torch import TorchConfig

    base: Any = TorchConfig().backend_cls

    class Backend(base):
        def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
            if sum(node["Alive"] for node in ray.nodes()) > 1:
                worker_group.execute(bind)
            super().on_start(worker_group, backend_config)

    class Bound(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    return Bound()
