"""huggingface_hub where there is no network: it is not to try again and again, line by line, for half a minute."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def no_waiting() -> Iterator[str]:
    """Inside, only files on this machine are looked for where the Hub cannot be reached.

    Yields:
        Why it cannot be reached; "" where it may be.
    """
    from huggingface_hub import constants

    why = _unreachable(constants.ENDPOINT)
    logger, offline = logging.getLogger("huggingface_hub"), constants.HF_HUB_OFFLINE
    level = logger.level
    logger.setLevel(logging.ERROR)
    constants.HF_HUB_OFFLINE = offline or bool(why)
    try:
        yield why
    finally:
        constants.HF_HUB_OFFLINE = offline
        logger.setLevel(level)


def _unreachable(address: str) -> str:
    if getproxies():  # which know names that this machine does not
        return ""
    host = urlsplit(address).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return f"no network: {host} is not found"
    return ""
