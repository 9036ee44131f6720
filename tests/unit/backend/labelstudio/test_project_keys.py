from __future__ import annotations

from itertools import islice

import pytest

from backend.labelstudio.project_keys import SPAN, keys_for, may_be_of, number_of, origin_of


def test_keys_of_one_number_differ_and_each_says_the_number():
    keys = list(islice(keys_for(12), 5))
    assert keys[0] == 12
    assert len(set(keys)) == 5
    assert {number_of(key) for key in keys} == {12}
    assert not set(keys) & set(islice(keys_for(13), 5))
    assert max(keys) < 2**63
    assert number_of(SPAN - 1) == SPAN - 1


@pytest.mark.parametrize(
    "address", ["http://ls.example", "http://LS.example:80/", " http://ls.example/ ", "http://me:pw@ls.example"]
)
def test_alike_addresses_are_one_origin(address: str):
    assert origin_of(address) == origin_of("http://ls.example")


@pytest.mark.parametrize("address", ["https://ls.example", "http://ls.example:8080", "http://ls.example/sub"])
def test_another_scheme_port_or_path_is_another_origin(address: str):
    assert origin_of(address) not in ("", origin_of("http://ls.example"))


@pytest.mark.parametrize("address", ["", "ls.example", "ftp://ls.example", "http://", "http://[::1", "http://a:b"])
def test_what_is_no_web_address_has_no_origin(address: str):
    assert origin_of(address) == ""


def test_a_project_is_told_by_the_second_of_its_creation():
    uid, second = "2026-11-21T04:14:28.700065Z", 1795234468
    assert may_be_of(uid, second)
    assert may_be_of("2026-11-21T05:14:28+01:00", second)
    assert may_be_of(uid, None)
    assert may_be_of("of old", second)
    assert not may_be_of(uid, second + 1)
