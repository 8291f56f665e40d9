"""Reaching git servers over HTTP as git does: through which proxy, with which certificates and headers.

Owns what git's settings (git-config(1), ``http.*``) and the environment (git(1)) say for one address. The requests are
dulwich's, and what their failures mean ``transport.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass

from heddle.errors import Unavailable

if TYPE_CHECKING:
    import urllib3
    from dulwich.config import ConfigDict
    from urllib3 import HTTPHeaderDict

_REDIRECTS = 10
_TLS = (
    ("ca_certs", "sslcainfo", "GIT_SSL_CAINFO"),
    ("ca_cert_dir", "sslcapath", "GIT_SSL_CAPATH"),
    ("cert_file", "sslcert", "GIT_SSL_CERT"),
    ("key_file", "sslkey", "GIT_SSL_KEY"),
)
"""What urllib3 calls each file, git's setting, and the variable that goes before it."""
_NO = ("false", "no", "off", "0", "")


def connections(
    config: ConfigDict, environment: Mapping[str, str], address: str, silence_s: float
) -> urllib3.PoolManager:
    """What opens connections to an address.

    Args:
        config: git's settings.
        environment: as for ``heddle.open``.
        address: of a repository, whose ``http.<url>.*`` hold.
        silence_s: how long a server may be silent.

    Raises:
        Unavailable: the way there leads through a proxy that can't be spoken to.
    """
    import urllib3

    settings, headers = _settings(config, address)
    redirects = 0 if settings.get("followredirects", "").lower() in _NO[:-1] else _REDIRECTS
    options: dict[str, Any] = {
        "headers": headers,
        "timeout": urllib3.Timeout(connect=silence_s, read=silence_s),
        # Without a total: that would be the limit of each kind.
        "retries": urllib3.Retry(None, connect=0, read=0, status=0, other=0, redirect=redirects),
    }
    for name, setting, variable in _TLS:
        if value := environment.get(variable) or settings.get(setting):
            home = environment.get("HOME", "~")
            options[name] = home + value[1:] if value.startswith("~/") else value
    verify = settings.get("sslverify", "true").lower() not in _NO
    if environment.get("GIT_SSL_NO_VERIFY") or not verify:
        options["cert_reqs"] = "CERT_NONE"
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # it was asked for
    proxy = _proxy(settings, environment, address)
    if proxy is None:
        return urllib3.PoolManager(**options)
    return urllib3.ProxyManager(proxy, proxy_headers=_proxy_headers(proxy), **options)


def _settings(config: ConfigDict, address: str) -> tuple[dict[str, str], HTTPHeaderDict]:
    """The settings for an address by name in lower case, and the headers that go with each request."""
    from dulwich.client import _urlmatch_http_sections, default_user_agent_string
    from urllib3 import HTTPHeaderDict

    found: dict[str, str] = {}
    extra: list[str] = []
    # What is said for an address counts more than what is said for all.
    for section in sorted(_urlmatch_http_sections(config, address), key=len):
        for raw_name, raw_value in config.items(section):
            name, value = raw_name.decode().lower(), raw_value.decode(errors="surrogateescape")
            if name != "extraheader":
                found[name] = value
            elif value:
                extra.append(value)
            else:  # forgets those before (git-config(1), http.extraHeader)
                extra.clear()
    headers = HTTPHeaderDict()
    for each in extra:
        header, _, value = each.partition(":")
        # Of one name they make one line on the way, with commas, which is the same (RFC 9110, 5.3).
        headers.add(header.strip(), value.strip())
    headers.setdefault("User-Agent", found.get("useragent") or default_user_agent_string())
    return found, headers


def _proxy(settings: Mapping[str, str], environment: Mapping[str, str], address: str) -> str | None:
    """The proxy on the way to an address, None: none; an empty setting says so too."""
    said = settings.get("proxy")
    if said is None:
        by_scheme = (
            ("https_proxy", "HTTPS_PROXY") if address.startswith("https") else ("http_proxy",)
        )
        names = (*by_scheme, "all_proxy", "ALL_PROXY")
        said = next((value for name in names if (value := environment.get(name))), "")
    without = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    host = urlsplit(address).netloc.rpartition("@")[2]
    if not said or proxy_bypass(host, {"no": without}):
        return None
    proxy = said if "://" in said else f"http://{said}"
    if urlsplit(proxy).scheme not in ("http", "https"):
        scheme = urlsplit(proxy).scheme
        raise Unavailable(
            f"{address} is to be reached through a {scheme} proxy, which heddle can't speak to",
            hint="set http.proxy in git's configuration to an http proxy, or to nothing for none",
        )
    return proxy


def _proxy_headers(proxy: str) -> dict[str, str]:
    import urllib3

    where = urlsplit(proxy)
    if where.username is None:
        return {}
    who = f"{unquote(where.username)}:{unquote(where.password or '')}"
    return dict(urllib3.make_headers(proxy_basic_auth=who))
