"""Which interface trainings meet over: whatever a host has, the one that owns the node's address of Ray."""

import ipaddress
import os

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cddpm.cluster import network

ADDRESSES = st.builds("{}{}".format, st.sampled_from(["10.77.0.", "192.168.1.", "fd00::", "fe80::"]), st.integers(1, 9))
NAMES = st.sampled_from(["eth0", "eth0:1", "eth01", "ib0", "docker0", "br-1f2e", "tun0", "wlp2s0", "veth.5"])
INTERFACES = st.dictionaries(NAMES, st.lists(ADDRESSES, max_size=3), max_size=6)


@given(INTERFACES, ADDRESSES, NAMES)
def test_the_owner_of_the_address_is_found_among_any_interfaces(
    others: dict[str, list[str]], address: str, owner: str
) -> None:
    foreign = {name: [one for one in owned if one != address] for name, owned in others.items() if name != owner}
    loopback = {"lo": ["127.0.0.1", "::1", "00:00:00:00:00:00"]}
    found = {owner: ["02:fc:00:00:00:01", address]}
    assert network.interface(address, {**foreign, **loopback, **found}) == owner
    assert network.interface(address, {**loopback, **foreign}) is None


@given(INTERFACES, ADDRESSES)
def test_what_is_taken_owns_the_address(interfaces: dict[str, list[str]], address: str) -> None:
    taken = network.interface(address, interfaces)
    assert (address in interfaces[taken]) if taken else all(address not in owned for owned in interfaces.values())


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_is_found_in_any_spelling_with_its_zone(address: ipaddress.IPv6Address) -> None:
    spelt = {"eth0": [f"{address.exploded.upper()}%eth0"]}
    assert network.interface(str(address), spelt) == (None if address.is_loopback else "eth0")


@given(st.ip_addresses(v=4, network="127.0.0.0/8").map(str))
def test_loopback_binds_nothing(address: str) -> None:
    assert network.interface(address, {"lo": [address]}) is None


OWN = {name: [one.address for one in found] for name, found in psutil.net_if_addrs().items()}
REAL = [
    (name, one)
    for name, owned in OWN.items()
    for one in owned
    if network.interface(one, OWN) == name and not name.startswith("cddpm")  # test hosts of others come and go
]


@pytest.mark.parametrize(("name", "address"), REAL)
def test_a_process_is_bound_to_a_real_interface_of_this_machine(name: str, address: str) -> None:
    environment: dict[str, str] = {}
    assert network.bind(address, environment) == name
    assert environment == {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}


def test_what_somebody_has_set_stays() -> None:
    (_, address), *_ = REAL or [pytest.skip("this machine has no address but loopback")]
    mine = {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "^docker"}
    given_here = dict(mine)
    network.bind(address, given_here)
    assert given_here == mine
    assert "GLOO_SOCKET_IFNAME" not in os.environ
