"""Who may open the page: the password, and what to say of a page that is open to everybody."""

import ipaddress
import os
import sys

from dermlens.errors import UsageError

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
