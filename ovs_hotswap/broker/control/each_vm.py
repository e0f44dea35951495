"""A request for many VMs: the fault of one VM is answered for that VM alone, and the others are served."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from ovs_hotswap.errors import BrokerError, HotswapError, to_document

log = logging.getLogger(__name__)


def names_of(vms: object) -> list[str]:
    """The names in a request, each once. Raises BrokerError if it is no list of them."""
    if not isinstance(vms, list) or not all(isinstance(vm, str) for vm in vms):
        raise BrokerError(f"vms: not a list of names: {vms!r}")
    return list(dict.fromkeys(vms))


class Faults:
    """``errors``: an error as an object, by the name of the VM whose fault it is."""

    def __init__(self, method: str) -> None:
        self._method = method
        self.errors: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def of(self, vm: str) -> Iterator[None]:
        """What the block raises is the fault of ``vm``, and is not raised."""
        try:
            yield
        except HotswapError as error:
            self.errors[vm] = to_document(error)
        except Exception as error:
            log.exception("%s: vm %s", self._method, vm)
            self.errors[vm] = to_document(BrokerError(f"{self._method}: {type(error).__name__}: {error}"))
