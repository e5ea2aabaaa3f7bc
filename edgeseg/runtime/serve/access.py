"""Who may see the page: where it listens, the token that it wants elsewhere than on loopback, the hosts it answers to.

On loopback a request must name this machine: else any web site could read the page through its visitors' browsers, by
letting its own name point to 127.0.0.1 (DNS rebinding). Elsewhere the token does that, since a cookie is bound to the
name that it was set for. There is no TLS here: whoever needs it puts a reverse proxy in front.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
from dataclasses import dataclass
from urllib.parse import quote

from edgeseg.errors import BadInput

TOKEN = "EDGESEG_TOKEN"  # environment variable
_ADDRESS = re.compile(r"(?:(?:\[(?P<six>[^\[\]/\s]+)\]|(?P<host>[^\[\]:/\s]*)):)?(?P<port>[0-9]{1,5})")
_SECRET = re.compile(r"[\x21-\x7e]{12,256}")


@dataclass(frozen=True, slots=True)
class Access:
    """What a request must bring."""

    token: str | None  # None: nothing
    hosts: frozenset[str] | None  # names that the Host header may have; None: any
    cookie: str  # name of the cookie; cookies do not know ports, so it holds ours

    @property
    def pass_(self) -> str:
        """The cookie's value: shows that the token was known, without holding it."""
        return hashlib.sha256(f"edgeseg {self.token}".encode()).hexdigest()

    def answers_to(self, host: str | None) -> bool:
        """Whether a request with this Host header is for us. Any port: that of a tunnel's other end is as good."""
        if self.hosts is None:
            return True
        return host is not None and re.sub(r":[0-9]*$", "", host).lower() in self.hosts

    def admits_token(self, token: str | None) -> bool:
        return self.token is None or _same(token, self.token)

    def admits(self, cookie: str | None, authorization: str | None) -> bool:
        """Whether the cookie or the header `Authorization: Bearer TOKEN` shows the token."""
        if self.token is None or _same(cookie, self.pass_):
            return True
        scheme, _, given = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and _same(given.strip(), self.token)


def listen(address: str) -> socket.socket:
    """A listening socket at "HOST:PORT", "[IPv6]:PORT", ":PORT" or "PORT"; without a host on 127.0.0.1.

    Port 0 takes a free one. "[::]" also listens on IPv4 where the system can. Raises BadInput with the reason.
    """
    match = _ADDRESS.fullmatch(address.strip())
    if match is None or int(match["port"]) > 65535:
        raise BadInput(
            f"the page's address is wanted as HOST:PORT, such as :8080 or 0.0.0.0:8080 or [::]:8080, with a port up to "
            f"65535; '{address}' is not that"
        )
    host, port = match["six"] or match["host"] or "127.0.0.1", int(match["port"])
    if host.lower() == "localhost":
        host = "127.0.0.1"
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = family == socket.AF_INET6 and where[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(where[:2], family=family, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one
        raise BadInput(f"the page cannot be served at '{address}': {_reason(error, port)}") from error


def access(listening: socket.socket, token: str | None) -> Access:
    """The rules for this socket: `token`, else $EDGESEG_TOKEN, else a random one where the address is not loopback's.

    Raises BadInput for a token that is not 12 to 256 printable ASCII characters without spaces.
    """
    host, port = listening.getsockname()[:2]
    local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    token = token or os.environ.get(TOKEN) or (None if local else secrets.token_urlsafe(16))
    if token is not None and not _SECRET.fullmatch(token):
        raise BadInput(
            f"the page's token is wanted as 12 to 256 printable ASCII characters without spaces; the one given has "
            f'{len(token)} or others. A good one: python -c "import secrets; print(secrets.token_urlsafe(16))"'
        )
    names = {"localhost", "127.0.0.1", "[::1]", _bracketed(host)}
    return Access(token, frozenset(names) if local else None, f"edgeseg_{port}")


def url_of(listening: socket.socket, rules: Access) -> str:
    """What to open in a browser: with an address that others can reach where it listens on all, and with the token."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = _own_address() or socket.gethostname()
    return f"http://{_bracketed(host)}:{port}/" + (f"?token={quote(rules.token, safe='')}" if rules.token else "")


def _own_address() -> str | None:
    """This machine's IPv4 address towards others; asking the routes for it sends nothing. None without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: belongs to nobody
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _same(given: str | None, wanted: str) -> bool:
    """Compared in constant time: how long it takes tells nothing of how much was right."""
    return hmac.compare_digest((given or "").encode("utf-8", "replace"), wanted.encode())


def _reason(error: Exception, port: int) -> str:
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EADDRINUSE:
        return f"port {port} is in use. Choose another one, or 0 for any free one."
    if code in (errno.EACCES, errno.EPERM):
        return f"this user may not use port {port}. Choose one from 1024 up."
    if code == errno.EADDRNOTAVAIL:
        return "this machine does not have that address. Use 0.0.0.0 for all that it has."
    if isinstance(error, socket.gaierror | UnicodeError):
        return "the name is not known here. Use an address, such as 0.0.0.0 for all that this machine has."
    return f"{error}."
