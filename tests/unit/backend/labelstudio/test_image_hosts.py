from __future__ import annotations

import pytest

from backend.labelstudio.image_hosts import PrivateHosts

INSIDE = (
    "127.0.0.1",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
)


@pytest.mark.parametrize("address", INSIDE)
def test_no_address_inside_is_allowed_unless_it_is_named(address: str):
    assert not PrivateHosts().allow("pictures.example", address)
    assert PrivateHosts.parse("Pictures.example").allow("pictures.EXAMPLE.", address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_allowed(address: str):
    assert PrivateHosts().allow("pictures.example", address)


def test_networks_and_addresses_are_allowed_whatever_their_name():
    hosts = PrivateHosts.parse(" 10.1.0.0/16, 192.168.1.7 ,fd12::/64,minio,")
    for address in ("10.1.255.1", "192.168.1.7", "fd12::5", "::ffff:10.1.0.1"):
        assert hosts.allow("any", address)
    for address in ("10.2.0.1", "192.168.1.8", "fd12:0:0:1::5"):
        assert not hosts.allow("any", address)
    assert hosts.allow("minio", "10.2.0.1")


def test_the_star_does_not_reach_a_clouds_metadata():
    hosts = PrivateHosts.parse("*")
    assert hosts.allow("any", "192.168.1.1")
    assert hosts.allow("any", "127.0.0.1")
    assert not hosts.allow("any", "169.254.169.254")
    assert PrivateHosts.parse("*,169.254.169.254").allow("any", "169.254.169.254")


@pytest.mark.parametrize("entry", ["http://minio", "minio:9000", "10.0.0.0/99", "1.2.3", "a b"])
def test_what_is_no_host_is_refused(entry: str):
    with pytest.raises(ValueError, match=entry):
        PrivateHosts.parse(f"minio,{entry}")
