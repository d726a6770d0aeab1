"""One download with bounds on bytes, time and redirects, that cannot be led into the private network.

The host is resolved here, every address is checked, and the connection goes to the address that was checked: a name that
resolves to another address a moment later (DNS rebinding) changes nothing. Proxies of the environment are not used.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from ray_app.base.config import ImageLimits
from ray_app.base.images.decode import ImageError

_HEADERS = {"User-Agent": "ray-app-relevance", "Accept": "image/*", "Accept-Encoding": "identity"}
_REDIRECTS = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address in its last 32 bits
_REFUSED = tuple(
    ipaddress.ip_network(network)
    # Public by their number, but not of the internet: the host of a virtual machine at Azure, which hands out its settings;
    # protocol assignments; relays of 6to4; documentation. Python 3.11 lets some of them pass.
    for network in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "3fff::/20")
)
_PORTS = (80, 443)  # others are of services that are not meant for everybody
_CHUNK = 1 << 16
_NOBODYS: dict[int, str] = {socket.AF_INET: "198.51.100.254", socket.AF_INET6: "2001:db8::fffe"}  # of documentation

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def fetch_url(url: str, limits: ImageLimits) -> bytes:
    """The body of a GET. Looking up a name is the one step whose time is the system resolver's to bound.

    Raises:
        ImageError: bad_location, forbidden_address, forbidden_port, http_status, too_many_redirects, too_many_bytes, timeout or
            unreachable. No message shows a URL's query, fragment or credentials.
    """
    deadline = time.monotonic() + limits.timeout_sec
    for _ in range(limits.max_redirects + 1):
        parts = _checked_parts(url)
        body = _get(parts, limits, deadline)
        if isinstance(body, bytes):
            return body
        try:
            url = urljoin(url, body.location)
        except ValueError:
            raise ImageError("bad_location", f"{parts.hostname} redirects to what is not a URL") from None
    raise ImageError("too_many_redirects", f"more than {limits.max_redirects}")


class _Redirect:
    def __init__(self, location: str) -> None:
        self.location = location


def _checked_parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ImageError("bad_location", "not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ImageError("bad_location", "not an http or https URL with a host")
    if parts.username or parts.password:
        raise ImageError("bad_location", f"{parts.hostname}: credentials do not belong in a URL")
    if any(ord(char) <= 32 or ord(char) == 127 for char in url):
        raise ImageError("bad_location", f"{parts.hostname}: a space or control character in the URL")
    return parts


def _get(parts: SplitResult, limits: ImageLimits, deadline: float) -> bytes | _Redirect:
    host = parts.hostname or ""
    where = f"{parts.scheme}://{host}"
    connection = _Connection(parts, allowed_addresses(host, _port(parts), limits.allow_hosts), deadline)
    # A socket's own timeout bounds each wait, not their sum: a server that sends a byte a second would never end.
    watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), connection.abort)
    watchdog.daemon = True
    watchdog.start()
    try:
        path = _ascii(parts.path or "/") + (f"?{_ascii(parts.query)}" if parts.query else "")
        connection.request("GET", path, headers=_HEADERS)
        with contextlib.closing(connection.getresponse()) as response:
            if connection.aborted:  # then the headers look complete, and the body empty
                raise TimeoutError
            if response.status in _REDIRECTS and (location := response.getheader("Location")):
                return _Redirect(location)
            if response.status != 200:
                raise ImageError("http_status", f"{where} answered {response.status}")
            return _read_body(response, limits, deadline, where)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if connection.aborted or isinstance(error, TimeoutError):
            raise ImageError("timeout", f"{where} took longer than {limits.timeout_sec:g} s") from None
        raise ImageError("unreachable", f"{where}: {type(error).__name__}") from None
    finally:
        watchdog.cancel()
        connection.close()


def _read_body(response: http.client.HTTPResponse, limits: ImageLimits, deadline: float, where: str) -> bytes:
    if response.length is not None and response.length > limits.max_bytes:
        raise ImageError("too_many_bytes", f"{where} announced {response.length:,} bytes")
    announced, parts, total = response.length, [], 0
    while chunk := response.read1(_CHUNK):
        parts.append(chunk)
        total += len(chunk)
        if total > limits.max_bytes:
            raise ImageError("too_many_bytes", f"{where} sent more than {limits.max_bytes:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    if time.monotonic() > deadline:
        raise TimeoutError
    if announced is not None and total < announced:
        raise http.client.IncompleteRead(b"", announced - total)
    return b"".join(parts)


def allowed_addresses(host: str, port: int, allow_hosts: list[str]) -> list[tuple[int, str]]:
    """(family, address) of each address of a host.

    Raises:
        ImageError: if the host is not in `allow_hosts`: forbidden_address if one of them is not public, or is this
            machine's; forbidden_port if the port is not 80 or 443. unreachable if the name is unknown.
    """
    try:
        # Also what turns 2130706433, 0177.0.0.1 and 127.1 into what they mean.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ImageError("unreachable", f"the host {host!r} is unknown") from None
    addresses = [(int(family), str(sockaddr[0])) for family, _, _, _, sockaddr in found]
    if host.casefold().rstrip(".") in {allowed.casefold().rstrip(".") for allowed in allow_hosts}:
        return addresses
    for family, address in addresses:
        if not is_public(ipaddress.ip_address(address.partition("%")[0])) or _is_ours(family, address):
            raise ImageError(
                "forbidden_address", f"{host} is a private, local or reserved address; see caption.limits.allow_hosts"
            )
    if port not in _PORTS:
        raise ImageError("forbidden_port", f"{host}: port {port} is not 80 or 443; see caption.limits.allow_hosts")
    return addresses


def _is_ours(family: int, address: str) -> bool:
    """Return True if an address, maybe a public one, belongs to this machine: only an own address can be bound to.

    Where any can be (net.ipv4.ip_nonlocal_bind, as on load balancers), an own one is what the machine speaks from to itself.
    That finds the first address of each of its networks, not further ones. Nothing is sent.
    """
    if not _can_bind(family, address):
        return False
    if not _can_bind(family, _NOBODYS[family]):
        return True
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            return probe.connect_ex((address, 9)) == 0 and probe.getsockname()[0] == address
    except OSError:
        return False


def _can_bind(family: int, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # fails too: where IPv6 is off, nothing of it is ours
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def is_public(address: Address) -> bool:
    """Return True if an address, and each IPv4 address that it wraps, is a public internet address."""
    wrapped: list[Address | None] = []
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            wrapped.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
    refused = (
        address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
        or address.is_reserved or address.is_unspecified or getattr(address, "is_site_local", False)
        or not address.is_global or any(address in network for network in _REFUSED)
    )  # fmt: skip
    return (not refused or address in _NAT64) and all(is_public(inner) for inner in wrapped if inner is not None)


class _Connection(http.client.HTTPConnection):
    """To an address that was checked, under the name that was asked for; TLS checks the name."""

    def __init__(self, parts: SplitResult, addresses: list[tuple[int, str]], deadline: float) -> None:
        super().__init__(parts.hostname or "", _port(parts))
        self.default_port = 443 if parts.scheme == "https" else 80  # decides whether `Host` names the port
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._addresses = addresses
        self._deadline = deadline
        self._live: socket.socket | None = None  # `sock` is forgotten while the body is still being read
        self.aborted = False

    def connect(self) -> None:
        error: OSError = OSError("no address")
        for family, address in self._addresses:
            try:
                raw = socket.socket(family, socket.SOCK_STREAM)
            except OSError as failed:  # IPv6 is off; the next address may do
                error = failed
                continue
            self._live = raw
            raw.settimeout(max(0.001, self._deadline - time.monotonic()))
            try:
                raw.connect((address.partition("%")[0], self.port))
            except OSError as failed:
                raw.close()
                error = failed
                continue
            self.sock = raw
            if self._tls is not None:
                tls = self._tls.wrap_socket(raw, server_hostname=self.host, do_handshake_on_connect=False)
                self.sock = self._live = tls
                tls.do_handshake()
            return
        raise error

    def abort(self) -> None:
        """End whatever the connection waits for; called by another thread."""
        self.aborted = True
        if self._live is not None:
            with contextlib.suppress(OSError):
                # The plain shutdown also of a TLS socket, whose own would take part in the protocol.
                socket.socket.shutdown(self._live, socket.SHUT_RDWR)


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _ascii(text: str) -> str:
    """Percent-encode what is not ASCII; leave what is encoded already."""
    return "".join(char if ord(char) < 128 else "".join(f"%{byte:02X}" for byte in char.encode()) for char in text)
