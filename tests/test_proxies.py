"""Whose connection it is behind trusted proxies, and that nobody can choose it."""

import ipaddress
import time

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from hubbub.auth.proxies import HOPS_MAX, client_address, is_loopback, parse_networks

TRUSTED = parse_networks(["10.0.0.0/8", "2001:db8:aaaa::/48", "127.0.0.1"])
PROXY = "10.0.0.1"
CLIENT = "192.0.2.1"
CLIENT6 = "2001:db8::1"


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.1", "10.0.0.1/32"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::1", "::1/128"),
        ("2001:DB8:0::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ],
)
def test_networks(text: str, network: str) -> None:
    """Addresses and networks, in the family that they are compared in."""
    assert parse_networks([text]) == (ipaddress.ip_network(network),)


@pytest.mark.parametrize(
    "text", ["", "proxy", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "[::1]", "fe80::1%eth0", "10.0.0.1:80", " 10.0.0.1"]
)
def test_networks_that_are_none(text: str) -> None:
    """The sentence names the one that is wrong and what would be right."""
    with pytest.raises(ValueError, match="is no address") as caught:
        parse_networks(["10.0.0.1", text, "::1"])
    assert str(caught.value).startswith(repr(text))
    assert "10.0.0.0/8" in str(caught.value)


NODES = [
    # in X-Forwarded-For, and quoted in Forwarded: the client
    (CLIENT, CLIENT),
    ("192.0.2.1:4711", CLIENT),
    ("[2001:db8::1]", CLIENT6),
    ("[2001:db8::1]:4711", CLIENT6),
    ("2001:db8::1", CLIENT6),
    ("2001:DB8:0:0::1", CLIENT6),
    ("[2001:db8::1]:_port", CLIENT6),
    ("::ffff:192.0.2.1", CLIENT),
    ("[::ffff:c000:201]:1", CLIENT),
    ("unknown", None),
    ("_hidden", None),
    ("_hidden:80", None),
    ("unix:", None),
    ("localhost", None),
    ("192.0.2.1:", None),
    ("192.0.2.1:x", None),
    ("192.0.2.1:123456", None),
    ("192.0.2", None),
    ("192.0.2.256", None),
    ("192.0.2.01", None),
    ("٣.0.2.1", None),
    ("192.0.2.1 192.0.2.2", None),
    ("192.0.2.1\n", None),
    ("[192.0.2.1", None),
    ("[]", None),
    ("[::1", None),
    ("fe80::1%eth0", None),
    ("[fe80::1%eth0]", None),
    (":", None),
    (".", None),
    ("", None),
]


@pytest.mark.parametrize(("node", "client"), NODES)
def test_nodes(node: str, client: str | None) -> None:
    """How one hop may be written."""
    assert client_address(PROXY, [], [node], TRUSTED) == client
    assert client_address(PROXY, [f'for="{node}"'], [], TRUSTED) == client


X_FORWARDED_FOR = [
    # the fields, the client
    ([], None),
    (["203.0.113.9, 192.0.2.1"], CLIENT),
    (["203.0.113.9,192.0.2.1"], CLIENT),
    (["203.0.113.9 ,\t192.0.2.1 "], CLIENT),
    (["203.0.113.9", "192.0.2.1"], CLIENT),
    (["192.0.2.1, 10.0.0.2"], CLIENT),
    (["192.0.2.1, 10.0.0.2", "2001:db8:aaaa::7, ::ffff:10.1.2.3"], CLIENT),
    (["unknown, 192.0.2.1, 10.0.0.2"], CLIENT),
    (["\0\x80, 192.0.2.1"], CLIENT),
    (['", 192.0.2.1'], CLIENT),
    (["", "192.0.2.1"], CLIENT),
    (["192.0.2.1, unknown, 10.0.0.2"], None),
    (["192.0.2.1, garbage, 10.0.0.2"], None),
    # a proxy with nothing to append
    (["192.0.2.1,"], None),
    (["192.0.2.1", ""], None),
    (["192.0.2.1,,10.0.0.2"], None),
    (["192.0.2.1; 10.0.0.2"], None),
    # nobody but proxies
    (["10.0.0.3, 10.0.0.2"], None),
    (["127.0.0.1"], None),
    (["192.0.2.1" + ", 10.0.0.2" * (HOPS_MAX - 1)], CLIENT),
    (["192.0.2.1" + ", 10.0.0.2" * HOPS_MAX], None),
    ([*["203.0.113.9"] * 1000, "192.0.2.1"], CLIENT),
]


@pytest.mark.parametrize(("values", "client"), X_FORWARDED_FOR)
def test_x_forwarded_for(values: list[str], client: str | None) -> None:
    """From the right, the first that isn't trusted."""
    assert client_address(PROXY, [], values, TRUSTED) == client


FORWARDED = [
    # the fields, the client
    (["for=192.0.2.1"], CLIENT),
    (["For=192.0.2.1"], CLIENT),
    (["for=192.0.2.1;proto=http;by=203.0.113.43"], CLIENT),
    (["proto=http;host=example.com:80 ; FOR=192.0.2.1"], CLIENT),
    (["for=192.0.2.1:4711"], CLIENT),
    (['for="[2001:db8::1]:4711"'], CLIENT6),
    (['host="a\\"b";for=192.0.2.1'], CLIENT),
    (["for=203.0.113.9, for=192.0.2.1"], CLIENT),
    (["for=203.0.113.9", "for=192.0.2.1;proto=https"], CLIENT),
    (['for=192.0.2.1, for=10.0.0.2,for="[2001:db8:aaaa::1]"'], CLIENT),
    (["for=_hidden, for=192.0.2.1"], CLIENT),
    (["garbage, for=192.0.2.1"], CLIENT),
    (["for=192.0.2.1, for=unknown"], None),
    (["for=192.0.2.1, for=_hidden"], None),
    (["for=192.0.2.1, proto=https"], None),
    (["for=192.0.2.1, garbage"], None),
    (["for=192.0.2.1,"], None),
    ([""], None),
    (["for="], None),
    (['for=""'], None),
    (["for"], None),
    (["=192.0.2.1"], None),
    (["for =192.0.2.1"], None),
    (["for=192.0.2.1;"], None),
    (["for=192.0.2.1;for=192.0.2.2"], None),
    (["for=192.0.2.1;for=192.0.2.1"], None),
    (["for=192.0.2.1;proto"], None),
    (['for="192.0.2.1'], None),
    (['for=192.0.2.1"'], None),
    (['for="192.0.2.1\\"'], None),
    (["192.0.2.1"], None),
    (["for=192.0.2.1" + ", for=10.0.0.2" * (HOPS_MAX - 1)], CLIENT),
    (["for=192.0.2.1" + ", for=10.0.0.2" * HOPS_MAX], None),
    # a client's open quote on the left must not swallow what the proxy appended
    (['for=", for=192.0.2.1'], CLIENT),
    (['for=203.0.113.9;x="\\, for="[2001:db8::1]"'], CLIENT6),
    # nor may what the proxy quoted, here the client's Host, pass for an element
    (['for=192.0.2.1;host="a, for=203.0.113.9"'], None),
    (['for=192.0.2.1;host="a, for=203.0.113.9;b"'], None),
    (['for=192.0.2.1;host="a, for=203.0.113.9, b"'], None),
    (['for=192.0.2.1;host="a, for=203.0.113.9;b=\\"c\\""'], None),
    (['for=192.0.2.1;host="a, for=203.0.113.9;b=\\"c"'], None),
    (['for=192.0.2.1;host="a;b"'], None),
]


@pytest.mark.parametrize(("values", "client"), FORWARDED)
def test_forwarded(values: list[str], client: str | None) -> None:
    """The same, from the `for` of well-formed elements."""
    assert client_address(PROXY, values, [], TRUSTED) == client


@pytest.mark.parametrize(
    ("forwarded", "x_forwarded_for", "client"),
    [
        ("for=192.0.2.1", "192.0.2.1", CLIENT),
        ('for="[2001:db8::1]:80"', "2001:DB8:0::1", CLIENT6),
        ("for=203.0.113.9, for=192.0.2.1", "192.0.2.1, 10.0.0.2", CLIENT),
        ("for=203.0.113.9", "192.0.2.1", None),
        ("for=192.0.2.1", "unknown", None),
        ("garbage", "192.0.2.1", None),
        ("for=192.0.2.1", "", None),
        ("for=10.0.0.2", "192.0.2.1", None),
        ("for=unknown", "unknown", None),
    ],
)
def test_both_headers_must_agree(forwarded: str, x_forwarded_for: str, client: str | None) -> None:
    """One of them may be the client's own."""
    assert client_address(PROXY, [forwarded], [x_forwarded_for], TRUSTED) == client


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        (CLIENT, CLIENT),
        ("::ffff:192.0.2.1", CLIENT),
        ("2001:DB8::1", CLIENT6),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("11.0.0.1", "11.0.0.1"),
        ("a unix socket", "a unix socket"),
        ("", ""),
    ],
)
def test_headers_of_others_are_ignored(peer: str, client: str) -> None:
    """A peer that isn't trusted is the client."""
    assert client_address(peer, ["for=203.0.113.9"], ["203.0.113.9"], TRUSTED) == client
    assert client_address(peer, [], [], ()) == client


@pytest.mark.parametrize("peer", [PROXY, "::ffff:10.0.0.1", "2001:db8:aaaa::1", "2001:db8:aaaa::1%eth0"])
def test_trusted_peers(peer: str) -> None:
    """However a socket writes them; and without a header, the client is unknown."""
    assert client_address(peer, [], [CLIENT], TRUSTED) == CLIENT
    assert client_address(peer, [], [], TRUSTED) is None


PIECES = st.sampled_from(
    ["for", "=", '"', "\\", ",", ";", " ", "[", "]", ":", "10.0.0.2", "192.0.2.1", "2001:db8::1", "unknown", "_a", "%"]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES).map("".join))
VALUES = st.lists(TEXTS, max_size=4)


@given(peer=st.sampled_from([PROXY, CLIENT]), forwarded=VALUES, x_forwarded_for=VALUES)
def test_any_text_is_unknown_or_an_untrusted_address(
    peer: str, forwarded: list[str], x_forwarded_for: list[str]
) -> None:
    """Nothing raises, and no proxy is ever taken for a client."""
    client = client_address(peer, forwarded, x_forwarded_for, TRUSTED)
    if client is None:
        assert peer == PROXY
    else:
        address = ipaddress.ip_address(client)
        assert str(address) == client
        assert not any(address in network for network in TRUSTED)


@given(forged=VALUES)
@example(forged=['for="'])
@example(forged=['for="\\'])
def test_what_a_client_sends_changes_nothing(forged: list[str]) -> None:
    """Behind a proxy that appends to one header and passes on no other, the client is who the proxy says."""
    for client, element in ((CLIENT, f"for={CLIENT};host=a"), (CLIENT6, f'for="[{CLIENT6}]:80"')):
        for more in ("", ", for=10.0.0.2"):
            appended = ", ".join([*forged, element + more])
            assert client_address(PROXY, [appended], [], TRUSTED) == client
            assert client_address(PROXY, [*forged, element + more], [], TRUSTED) == client
        assert client_address(PROXY, [], [*forged, client], TRUSTED) == client


@given(forged=VALUES)
def test_the_other_header_cannot_name_somebody_else(forged: list[str]) -> None:
    """Behind a proxy that sets one header, what comes in the other makes the client unknown at worst."""
    assert client_address(PROXY, forged, [CLIENT], TRUSTED) in (CLIENT, None)
    assert client_address(PROXY, [f"for={CLIENT}"], forged, TRUSTED) in (CLIENT, None)


@pytest.mark.parametrize("piece", [",", ";", '"', '\\"', "1", ".", ":", "=", "a=b;", 'for="', "[", " "])
def test_work_is_bounded(piece: str) -> None:
    """A header of any size, and no more than a glance."""
    text = piece * 200_000
    start = time.perf_counter()
    for value in (text, f"for={text}", f'for="{text}"'):
        assert client_address(PROXY, [value], [], TRUSTED) is None
        assert client_address(PROXY, [], [value], TRUSTED) is None
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("address", "is_it"),
    [
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("0:0::1", True),
        ("::ffff:127.0.0.1", True),
        ("128.0.0.1", False),
        ("::2", False),
        ("0.0.0.0", False),
        ("::ffff:10.0.0.1", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_loopback(address: str, is_it: bool) -> None:
    """All of 127.0.0.0/8, and ::1."""
    assert is_loopback(address) == is_it
