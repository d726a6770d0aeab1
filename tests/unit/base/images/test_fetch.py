"""Reading what a table names: bounds on bytes, time and redirects, and no way into the private network."""

import http.server
import ipaddress
import os
import socket
import threading
import time

import pyarrow as pa
import pytest
from minimal import http_server

from ray_app.base.config import ImageLimits
from ray_app.base.images import fetch, http_fetch
from ray_app.base.images.decode import ImageError
from ray_app.base.images.fetch import HostBudget, normalize_location, read_image, shown, stat_images
from ray_app.base.images.http_fetch import is_public
from ray_app.stages.caption.image_files import HashUDF

CLOSED = ImageLimits(max_bytes=10_000, timeout_sec=1.0)
OPEN = CLOSED.model_copy(update={"allow_hosts": ["127.0.0.1"]})


class Handler(http.server.BaseHTTPRequestHandler):
    """One behaviour per path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append(self.path)
        name = self.path.split("?")[0].strip("/").split("/")[0]
        getattr(self, f"serve_{name}", self.serve_missing)()

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in ({"Content_Length": str(len(body)), "Connection": "close"} | headers).items():
            if value is not None:
                self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def serve_picture(self):
        self.answer(200, b"picture")

    def serve_headers(self):
        self.answer(200, "\n".join(f"{k}: {v}" for k, v in self.headers.items()).encode())

    def serve_missing(self):
        self.answer(404, b"no")

    def serve_to(self):
        self.answer(302, Location=self.path.removeprefix("/to/"))

    def serve_loop(self):
        self.answer(301, Location="/loop")

    def serve_announced(self):
        self.answer(200, Content_Length="99999999")

    def serve_short(self):
        self.answer(200, b"half", Content_Length="100")
        self.close_connection = True

    def serve_endless(self):
        self.answer(200, Content_Length=None, Transfer_Encoding="chunked")
        self.drip(b"3e8\r\n" + b"x" * 1000 + b"\r\n", 0.0)

    def serve_slow(self):
        self.answer(200, Content_Length="5000")
        self.drip(b"x", 0.1)

    def serve_slowheaders(self):
        self.drip(b"HTTP/1.1 200 OK\r\n", 0.0, 1)
        self.drip(b"X-Header: x\r\n", 0.1)

    def serve_silent(self):
        self.server.stop.wait(10)

    def drip(self, data, pause, times=10_000):
        try:
            for _ in range(times):
                self.wfile.write(data)
                self.wfile.flush()
                if self.server.stop.wait(pause):
                    return
        except OSError:
            self.server.hung_up.set()
        self.close_connection = True


@pytest.fixture
def server():
    with http_server(Handler, seen=[], stop=threading.Event(), hung_up=threading.Event()) as server:
        yield server
        server.stop.set()


def refused(location, limits=OPEN):
    with pytest.raises(ImageError) as caught:
        read_image(location, limits)
    return caught.value


# --- http: where to ---


def test_loopback_is_refused_before_a_byte_is_sent(server):
    assert refused(f"{server.url}/picture", CLOSED).code == "forbidden_address"
    assert server.seen == []


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0177.0.0.1", "127.1", "0x7f.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "localhost",
     "0.0.0.0", "[::]", "169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "224.0.0.1",
     "255.255.255.255", "240.0.0.1", "[fe80::1]", "[fc00::1]", "[fec0::1]", "[ff02::1]", "[64:ff9b::7f00:1]",
     "[2002:7f00:1::]", "[::127.0.0.1]", "[100::1]"],
)  # fmt: skip
def test_private_addresses_in_every_spelling(host, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    assert refused(f"http://{host}/latest/meta-data/", CLOSED).code in ("forbidden_address", "unreachable")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((address, True) for address in ("8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8")),
        *((address, False) for address in ("64:ff9b::a00:1", "::ffff:10.0.0.1", "2002:a00:1::", "192.0.2.1")),
        # Python calls the first ones public; the others are those of clouds' metadata services.
        *((address, False) for address in (
            "168.63.129.16", "::ffff:168.63.129.16", "64:ff9b::a83f:8110", "2002:a83f:8110::1", "192.0.0.8", "192.88.99.1",
            "3fff::1", "169.254.169.254", "fd00:ec2::254", "100.100.100.200", "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1")),
    ],
)  # fmt: skip
def test_only_addresses_of_the_internet_are_public(address, public):
    assert is_public(ipaddress.ip_address(address)) is public


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch):
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: infos)
    assert refused("http://pictures.example/x.png").code == "forbidden_address"


def test_the_connection_goes_to_the_address_that_was_checked(server, monkeypatch):
    """A name that answers with another address the second time (DNS rebinding) is asked once."""
    asked = []

    def answer(host, port, *args, **kwargs):
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "10.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    limits = OPEN.model_copy(update={"allow_hosts": ["rebind.example"]})
    url = f"http://rebind.example:{server.server_port}/headers"
    assert f"Host: rebind.example:{server.server_port}" in read_image(url, limits).decode()
    assert asked == ["rebind.example"]


def test_an_allowed_host_is_read_past_the_proxies_of_the_environment(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    assert read_image(f"{server.url}/picture", OPEN) == b"picture"


@pytest.mark.parametrize("url", ["http://8.8.8.8:8080/x", "https://8.8.8.8:22/x", "http://8.8.8.8:6379/x"])
def test_other_ports_than_those_of_the_web_are_refused(url, monkeypatch):
    """Redis, admin pages and the like of whoever has a public address."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    assert refused(url, CLOSED).code == "forbidden_port"


@pytest.mark.parametrize("url", ["http://8.8.8.8/x", "https://8.8.8.8/x", "http://8.8.8.8:443/x"])
def test_ports_of_the_web_are_not(url, monkeypatch):
    connected = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: connected.append(address) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read_image(url, CLOSED)
    assert len(connected) == 1


@pytest.mark.parametrize("can_bind_anything", [False, True])
def test_a_public_address_of_this_machine_is_refused_and_those_of_others_are_not(monkeypatch, can_bind_anything):
    """By itself a machine reaches what a firewall keeps from others.

    With net.ipv4.ip_nonlocal_bind, as on load balancers, every picture's host was taken for this machine.
    """
    monkeypatch.setattr(http_fetch, "is_public", lambda _: True)
    if can_bind_anything:
        monkeypatch.setattr(socket.socket, "bind", lambda *_: None)
    assert refused("http://127.0.0.1/x", CLOSED).code == "forbidden_address"
    assert http_fetch.allowed_addresses("192.0.2.1", 80, []) == [(socket.AF_INET, "192.0.2.1")]


def test_a_host_without_ipv6_reads_names_that_have_an_ipv6_address_too(server, monkeypatch):
    """A bare OSError ended the whole caption job."""
    made = socket.socket

    class Socket(made):
        def __init__(self, family=-1, *args, **kwargs):
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *args, **kwargs)

    monkeypatch.setattr(socket, "socket", Socket)
    found = [(socket.AF_INET6, "2606:4700:4700::1111"), (socket.AF_INET, "8.8.8.8")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(family, 1, 6, "", (a, 80)) for family, a in found])
    assert http_fetch.allowed_addresses("pictures.example", 80, []) == found
    found[1] = (socket.AF_INET, "127.0.0.1")
    limits = OPEN.model_copy(update={"allow_hosts": ["pictures.example"]})
    assert read_image(f"http://pictures.example:{server.server_port}/picture", limits) == b"picture"


# --- http: redirects ---


def test_a_redirect_is_followed(server):
    assert read_image(f"{server.url}/to//picture", OPEN) == b"picture"


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("http://localhost:{port}/picture", "forbidden_address"),
        ("http://[::ffff:127.0.0.1]:{port}/picture", "forbidden_address"),
        ("http://169.254.169.254/latest", "forbidden_address"),
        ("//2130706433:{port}/picture", "forbidden_address"),
        ("file:///etc/passwd", "bad_location"),
        ("ftp://127.0.0.1/x", "bad_location"),
        ("gopher://127.0.0.1/x", "bad_location"),
    ],
)
def test_a_redirect_is_checked_anew(server, target, code):
    assert refused(f"{server.url}/to/{target.format(port=server.server_port)}").code == code
    assert len(server.seen) == 1


def test_a_redirect_loop_ends(server):
    assert refused(f"{server.url}/loop").code == "too_many_redirects"
    assert len(server.seen) == OPEN.max_redirects + 1


# --- http: how much ---


def test_an_endless_body_is_cut(server):
    assert refused(f"{server.url}/endless").code == "too_many_bytes"
    assert server.hung_up.wait(5)


@pytest.mark.parametrize("path", ["slow", "slowheaders", "silent"])
def test_a_slow_server_is_left_in_time(server, path):
    """Each wait is short, so that a limit per wait would never apply."""
    began = time.monotonic()
    assert refused(f"{server.url}/{path}").code == "timeout"
    assert 0.8 < time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("url", "code"),
    [("{url}/announced", "too_many_bytes"), ("{url}/short", "unreachable"), ("https://127.0.0.1:{port}/x", "unreachable")],
    ids=["an announced giant", "a body that ends early", "a plain server asked for TLS"],
)  # fmt: skip
def test_an_answer_that_cannot_be_used_is_an_error(server, url, code):
    assert refused(url.format(url=server.url, port=server.server_port)).code == code


def test_another_status_is_an_error_that_shows_no_signature(server):
    error = refused(f"{server.url}/nothing/here?signature=secret")
    assert str(error) == "http_status: http://127.0.0.1 answered 404"


# --- hosts that fail ---


class Tarpits:
    """In place of the network: `/slow` fails after 10 s of its own clock, others are there at once."""

    def __init__(self, monkeypatch):
        self.now, self.asked = 0.0, []
        monkeypatch.setattr(fetch, "read_image", self.read)
        self.hosts = HostBudget(clock=lambda: self.now)

    def read(self, location, limits):
        self.asked.append(location)
        if location.endswith("/slow"):
            self.now += 10
            raise ImageError("timeout", "10 s")
        return b"picture"

    def outcome(self, location):
        try:
            return self.hosts.read(location, OPEN)
        except ImageError as error:
            return error.code


def test_a_host_of_tarpits_costs_a_minute_and_not_ten_seconds_per_picture(monkeypatch):
    """10,000 pins of one such host were an hour of each run."""
    tarpits = Tarpits(monkeypatch)
    found = [tarpits.outcome(f"http://{host}/{i}/slow") for i in range(100) for host in ("bad.example", "BAD.example.")]
    assert found == ["timeout"] * 6 + ["host_failing"] * 194
    assert len(tarpits.asked) == 6
    assert tarpits.outcome("http://other.example/slow") == "timeout"
    assert tarpits.outcome("/plain/path.png") == b"picture"


def test_a_host_that_fails_now_and_then_is_read_to_the_end(monkeypatch):
    tarpits = Tarpits(monkeypatch)
    paths = [f"/{i}/slow" if i % 20 == 0 else f"/{i}" for i in range(1000)]
    found = [tarpits.outcome(f"http://good.example{path}") for path in paths]
    assert (found.count(b"picture"), found.count("timeout")) == (950, 50)


def test_workers_read_by_such_a_budget(monkeypatch):
    tarpits = Tarpits(monkeypatch)
    hashing = HashUDF(OPEN)
    hashing.hosts = tarpits.hosts
    locations = [f"http://bad.example/{i}/slow" for i in range(60)]
    block = pa.table({"content_key": locations, "location": locations})
    errors = hashing(block)["error"].to_pylist() + hashing(block)["error"].to_pylist()
    assert any(error.startswith("host_failing: bad.example: ") for error in errors)
    assert len(tarpits.asked) < 60


# --- secrets ---


def test_locations_are_shown_without_secrets():
    assert shown("https://user:hunter2@host/a.png?X-Amz-Signature=hunter2#hunter2") == "https://host/a.png"
    assert shown("/plain/path.png") == "/plain/path.png"


# --- files ---


def test_a_path_and_a_file_uri(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    assert read_image(str(tmp_path / "a.png"), OPEN) == b"picture"
    assert read_image(f"file://{tmp_path}/a.png", OPEN) == b"picture"


def test_a_relative_path_is_taken_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert normalize_location("a/b.png") == str(tmp_path / "a/b.png")
    assert normalize_location("a/b.png", tmp_path.parent) == str(tmp_path.parent / "a/b.png")
    assert normalize_location("/a/b.png", tmp_path) == "/a/b.png"
    assert normalize_location("s3://bucket/b.png") == "s3://bucket/b.png"


def test_files_that_are_absent_too_large_or_none_are_not_waited_for(tmp_path):
    (tmp_path / "large").write_bytes(b"x" * 10_001)
    os.mkfifo(tmp_path / "fifo")
    assert refused(str(tmp_path / "absent")).code == "not_found"
    assert refused(str(tmp_path / "large")).code == "too_many_bytes"
    assert [refused(str(path)).code for path in (tmp_path, tmp_path / "fifo", "/dev/zero")] == ["unreadable"] * 3


@pytest.mark.parametrize(
    ("location", "code"),
    [
        *((url, "bad_location") for url in (
            "http://", "http:///x", "http://a b/x", "http://host:99999/x", "http://[::1/x",
            "http://127.0.0.1/\r\nHost: other", "http://user:hunter2@127.0.0.1/x", "http://hunter2@127.0.0.1/x",
            "hdfs://host/x.png", "s3://key:hunter2@bucket/x.png", "s3://bucket/x.png?unknown=1")),
        ("s3://bucket/x.png?endpoint_override=http://169.254.169.254", "forbidden_address"),
        ("s3://bucket/x.png?endpoint_override=localhost:9000", "forbidden_address"),
        ("HTTP://127.0.0.1:1/x", "unreachable"),  # nobody listens
    ],
)  # fmt: skip
def test_a_location_that_cannot_be_read_is_refused_without_its_credentials(location, code):
    error = refused(location)
    assert error.code == code
    assert "hunter2" not in str(error)


def test_stat_tells_a_changed_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    before = stat_images([str(path), "http://host/x", str(tmp_path / "absent"), "hdfs://x/y"], OPEN)
    time.sleep(0.02)
    path.write_bytes(b"2")
    after = stat_images([str(path)], OPEN)
    assert before[1:] == [None, None, None]
    assert before[0] != after[0]


def test_watchdogs_do_not_pile_up(server):
    for _ in range(5):
        read_image(f"{server.url}/picture", OPEN)
    assert sum(isinstance(t, threading.Timer) and not t.finished.is_set() for t in threading.enumerate()) == 0
