"""Who may open the page, and how much they may ask of it: passwords, attempts, uploads."""

import ipaddress
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dermlens.errors import UsageError

MEGABYTE = 2**20


def client_of(address: str | None) -> str:
    """Return what counts as one client: an IPv4 address, or the network of an IPv6 address.

    Example:
        >>> client_of("192.0.2.7"), client_of("2001:db8:1:2:3:4:5:6"), client_of("::ffff:192.0.2.7")
        ('192.0.2.7', '2001:db8:1:2::/64', '192.0.2.7')
    """
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    # One subscriber has at least 2^64 addresses.
    return str(ipaddress.ip_network((found, 64), strict=False))


@dataclass(frozen=True)
class Allowance:
    """Bytes and files that may lie here at once, and uploads under way (as announced)."""

    size: int
    requests: int
    files: int


EACH = Allowance(size=600 * MEGABYTE, requests=24, files=500)
ALL = Allowance(size=2400 * MEGABYTE, requests=96, files=4000)


@dataclass
class _Upload:
    client: str
    announced: int
    paths: list[Path] = field(default_factory=list)
    under_way: bool = True

    def lying(self) -> list[int]:
        """Return the sizes of its files that are still here."""
        return [path.stat().st_size for path in self.paths if path.is_file()]


class Quota:
    """Admits uploads as long as a client, and all together, stay within their allowance.

    What a request announces counts from before it is read until it is answered, then what it
    left on the disk, until that is deleted.
    """

    def __init__(self, each: Allowance = EACH, all_together: Allowance = ALL) -> None:
        self._each, self._all = each, all_together
        self._uploads: list[_Upload] = []
        self._lock = threading.Lock()

    @contextmanager
    def admit(self, client: str, size: int) -> Iterator[list[Path]]:
        """Reserve room for an upload of ``size`` bytes while it is read."""
        upload = _Upload(client, size)
        with self._lock:
            self._uploads = [one for one in self._uploads if one.under_way or one.lying()]
            theirs = [one for one in self._uploads if one.client == client]
            if not _fits(theirs, self._each, size):
                raise UsageError(
                    "Too much was uploaded from your address. Wait until it was analyzed, close "
                    "pages that you no longer need, or try again in 15 minutes."
                )
            if not _fits(self._uploads, self._all, size):
                raise UsageError("This server has no room for more images. Try again in a minute.")
            self._uploads.append(upload)
        try:
            yield upload.paths
        finally:
            upload.under_way = False


def _fits(uploads: Iterable[_Upload], allowed: Allowance, size: int) -> bool:
    requests = files = 0
    for upload in uploads:
        lying = upload.lying()
        requests += upload.under_way
        files += len(lying)
        size += upload.announced if upload.under_way else sum(lying)
    return size <= allowed.size and requests < allowed.requests and files < allowed.files


FAILURES = 5
"""Wrong passwords from one address within ``SECONDS``, after which none is checked."""
FAILURES_OF_ALL = 100
"""As ``FAILURES``, from all addresses together: they can be many, or made up."""
SECONDS = 300.0


class Attempts:
    """Counts wrong passwords."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: list[tuple[float, str]] = []
        self._lock = threading.Lock()

    def begin(self, client: str) -> bool:
        """Return whether a password of a client may be checked; it counts as wrong until known."""
        now = self._clock()
        with self._lock:
            self._failed = [one for one in self._failed if one[0] > now - SECONDS]
            theirs = sum(one[1] == client for one in self._failed)
            if theirs >= FAILURES or len(self._failed) >= FAILURES_OF_ALL:
                return False
            self._failed.append((now, client))
            return True

    def succeed(self, client: str) -> None:
        """Forget the wrong passwords of a client that has given the right one."""
        with self._lock:
            self._failed = [one for one in self._failed if one[1] != client]


PASSWORD = "DERMLENS_PASSWORD"
"""Environment variable of the password."""
SHORTEST_PASSWORD = 8


def sign_in(name: str | None) -> tuple[str, str] | None:
    """Return name and password that visitors must give.

    The password comes from the environment, else it is asked for: on the command line everybody
    on this computer could read it in the list of processes.

    Args:
        name: Of the visitors; None for a page without a password.

    Raises:
        UsageError: If the name is empty or holds a password, or there is no password, or a short
            one.
    """
    if name is None:
        return None
    if ":" in name:
        raise UsageError(
            "A password on the command line can be read by everybody on this computer. Give the "
            f"name alone, --auth NAME; the password comes from {PASSWORD} or is asked for."
        )
    if not name.strip():
        raise UsageError("--auth needs a name: --auth NAME.")
    password = os.environ.get(PASSWORD)
    if password is None:
        password = _asked_for(name)
    if len(password) < SHORTEST_PASSWORD:
        raise UsageError(
            f"The password needs at least {SHORTEST_PASSWORD} characters. Choose a longer one."
        )
    # The sign-in page cuts spaces off around the name.
    return name.strip(), password


def _asked_for(name: str) -> str:
    import getpass

    if not sys.stdin.isatty():
        raise UsageError(f"There is no password for {name}. Set {PASSWORD}.")
    password = getpass.getpass(f"Password for {name}: ")
    if getpass.getpass("Once more: ") != password:
        raise UsageError("The two passwords differ. Start again.")
    return password


def warning(host: str, share: bool, password: bool) -> str | None:
    """Return what to say of a page that others can reach, or None.

    Example:
        >>> warning("127.0.0.1", False, False), warning("localhost", False, True)
        (None, None)
    """
    if not share and _is_here(host):
        return None
    who = "Everybody on the internet" if share else "Everybody who can reach this computer"
    if not password:
        return (
            f"Warning: {who} can use this page and the computing time of this computer. Ask for a "
            "password with --auth NAME."
        )
    if share:
        return None
    return (
        "Warning: photographs and the password travel unencrypted. Put a proxy with TLS before "
        "this page, and let it listen on 127.0.0.1 alone."
    )


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
