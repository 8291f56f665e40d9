"""What git's settings and the environment say about HTTP, without a server."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import urllib3

import heddle
from heddle.errors import ConfigError, Unavailable
from heddle.git.http import connections
from heddle.git.transport import _config

ADDRESS = "https://example.org/project.git"


def pool(
    tmp_path: Path,
    settings: str,
    address: str = ADDRESS,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """The connections to an address under a user's git configuration."""
    (tmp_path / "home" / ".gitconfig").write_text(settings)
    repo = heddle.init(tmp_path / "repo")
    repo.environment = {**os.environ, **(environment or {})}
    made = connections(_config(repo), environment or {}, address, 1.0)
    repo.close()
    return made


def test_what_is_said_for_an_address_counts_more(tmp_path: Path) -> None:
    """The settings of ``http.<url>`` go before those of ``http``, whichever comes first, and only there."""
    settings = '[http "https://example.org"]\n\tsslCert = mine\n[http]\n\tsslCert = all\n\tsslKey = ~/key\n'

    mine = pool(tmp_path, settings, environment=os.environ).connection_pool_kw
    other = pool(tmp_path, settings, "https://example.com/x").connection_pool_kw

    assert {"mine", str(tmp_path / "home" / "key")} == {mine["cert_file"], mine["key_file"]}
    assert other["cert_file"] == "all"


@pytest.mark.parametrize("value", ["false", "0", "no", "OFF", ""])
def test_no_verification_as_git_spells_it(value: str, tmp_path: Path) -> None:
    """Each of git's ways to say no is one, and nothing is warned of that was asked for."""
    made = pool(tmp_path, f"[http]\n\tsslVerify = {value}\n")

    assert made.connection_pool_kw["cert_reqs"] == "CERT_NONE"
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("unverified", urllib3.exceptions.InsecureRequestWarning, stacklevel=1)
    assert caught == []


def test_headers(tmp_path: Path) -> None:
    """All headers are sent; an empty one forgets those before; the environment's settings are settings."""
    settings = "[http]\n" + "".join(
        f"\textraHeader = {each}\n" for each in ("A: 1", "", "B:2", "C: 3: 4", "b: 5", "B: 6")
    )
    environment = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "http.https://example.org/.extraHeader",
        "GIT_CONFIG_VALUE_0": "D: 5",
    }

    headers = dict(pool(tmp_path, settings, environment=environment).headers)

    assert headers.pop("User-Agent")
    assert headers == {"B": "2, 5, 6", "C": "3: 4", "D": "5"}


def test_settings_that_git_can_t_read(tmp_path: Path) -> None:
    """They are named in git's words, exit code 78, instead of counting as none."""
    with pytest.raises(ConfigError, match=r"line 2.*\.gitconfig") as caught:
        pool(tmp_path, '[http]\nsslCert = a = "b\n')

    assert caught.value.hint


def test_a_user_agent_among_the_headers(tmp_path: Path) -> None:
    """It goes before ``http.userAgent``."""
    made = pool(tmp_path, "[http]\n\tuserAgent = a\n\textraHeader = user-agent: b\n")

    assert dict(made.headers) == {"user-agent": "b"}


@pytest.mark.parametrize(
    ("settings", "environment", "address", "expected"),
    [
        ("", {}, ADDRESS, None),
        ("", {"HTTPS_PROXY": "http://p:1"}, ADDRESS, "http://p:1"),
        ("", {"https_proxy": "http://p:1"}, "http://example.org/x", None),
        ("", {"http_proxy": "http://p:1"}, "http://example.org/x", "http://p:1"),
        ("", {"http_proxy": "http://p:1"}, ADDRESS, None),
        ("", {"ALL_PROXY": "http://p:1"}, ADDRESS, "http://p:1"),
        ("", {"https_proxy": "http://p:1", "NO_PROXY": "a,.example.org"}, ADDRESS, None),
        ("", {"https_proxy": "http://p:1", "NO_PROXY": "a"}, ADDRESS, "http://p:1"),
        ("proxy = q:2", {"https_proxy": "http://p:1"}, ADDRESS, "http://q:2"),
        ("proxy =", {"https_proxy": "http://p:1"}, ADDRESS, None),
    ],
)
def test_proxies(
    settings: str, environment: dict[str, str], address: str, expected: str | None, tmp_path: Path
) -> None:
    """Git's setting goes before the environment, which is read as curl reads it: by scheme, with exceptions."""
    made = pool(tmp_path, f"[http]\n\t{settings}\n" if settings else "", address, environment)

    found = made.proxy.url if isinstance(made, urllib3.ProxyManager) else None
    assert found == expected


def test_a_proxy_s_password(tmp_path: Path) -> None:
    """It stands in the proxy's address, with escapes."""
    made = pool(tmp_path, "[http]\n\tproxy = http://ann:a%40b@p:1\n")

    assert urllib3.make_headers(proxy_basic_auth="ann:a@b") == made.proxy_headers


def test_a_proxy_that_is_not_http(tmp_path: Path) -> None:
    """It is named, exit code 69; the address is not to blame."""
    with pytest.raises(Unavailable, match="socks5"):
        pool(tmp_path, "", environment={"https_proxy": "socks5://p:1"})
