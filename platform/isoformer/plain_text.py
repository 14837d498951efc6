"""A warning, once a process, of an `http://` address that is not this machine's.

In-cluster servers are used so on purpose, which is why it is no error.
"""

from __future__ import annotations

import ipaddress
import logging
from functools import cache
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)


@cache
def warn_of_plain_text(setting: str, address: str, danger: str) -> None:
    """Say that what goes to `address`, which `setting` names, is not encrypted, and what may come of it."""
    if address.startswith("http://") and not is_loopback(urlsplit(address).hostname or ""):
        logger.warning(
            "%s %s is not encrypted: %s; use https:// outside of a network of your own",
            setting, address, danger,
        )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine for itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
