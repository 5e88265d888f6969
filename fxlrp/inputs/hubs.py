"""Load by names on hubs: errors of their clients in one sentence, and no waiting where there is no network."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

from fxlrp.errors import FxlrpError


def first_line(error: BaseException) -> str:
    """Return what went wrong in one line, as KeyError: 'x'."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


@contextmanager
def loading(what: str, needed: bool) -> Iterator[None]:
    """Turn what the libraries raise for a model or tokenizer into FxlrpError.

    needed: whether it has to be fetched; if not, nothing is, whatever a file in a folder names.
    """
    try:
        with _offline(needed), _without_bars():
            yield
    except FxlrpError:
        raise
    except OSError as error:
        if needed:
            raise FxlrpError(
                f"Cannot get {what}: no network, or no such name there; give a file, or --random-weights."
            ) from error
        raise FxlrpError(f"Cannot load {what}: {str(error).splitlines()[0]}") from error
    except ValueError as error:  # transformers: no such type of model, or one that wants code of its own run
        raise FxlrpError(f"Cannot load {what}: {' '.join(str(error).split())[:300]}") from error
    except Exception as error:  # whatever a library makes of a config that is none
        raise FxlrpError(f"Cannot load {what}: its files say what no such model is ({first_line(error)}).") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Within it, transformers shows no progress of what takes a moment; what is fetched still shows its own."""
    logging = getattr(sys.modules.get("transformers"), "logging", None)
    if logging is None or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


_DOWNLOADING = threading.RLock()


@contextmanager
def _offline(needed: bool) -> Iterator[None]:
    """Within it, let the hub's client fetch nothing, unless something is needed and there is a network.

    One thread at a time is within it, since the client has one setting for all of them.
    """
    from huggingface_hub import constants

    with _DOWNLOADING:
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = before or not (needed and _reachable(constants.ENDPOINT))
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


def _reachable(url: str) -> bool:
    """Tell whether a TCP connection to the host of a URL opens within three seconds; behind a proxy, assume it."""
    address = urlsplit(url)
    if getproxies():
        return True
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=3).close()
    except OSError:
        return False
    return True
