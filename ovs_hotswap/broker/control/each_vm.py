"""Requests for many VMs: the fault of one VM is reported for that VM alone, and does not affect the others."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from ovs_hotswap.errors import BrokerError, HotswapError, to_document

log = logging.getLogger(__name__)


def names_of(vms: object) -> list[str]:
    """Return the names in a request, each once. Raises BrokerError if ``vms`` is no list of names."""
    if not isinstance(vms, list) or not all(isinstance(vm, str) for vm in vms):
        raise BrokerError(f"vms: not a list of names: {vms!r}")
    return list(dict.fromkeys(vms))


class Faults:
    """Collects the errors of single VMs in ``errors``, as objects, by the name of the VM."""

    def __init__(self, method: str) -> None:
        self._method = method
        self.errors: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def of(self, vm: str) -> Iterator[None]:
        """Record an error of the block as that of ``vm``, and do not raise it."""
        try:
            yield
        except HotswapError as error:
            self.errors[vm] = to_document(error)
        except Exception as error:
            log.exception("%s: vm %s", self._method, vm)
            self.errors[vm] = to_document(BrokerError(f"{self._method}: {type(error).__name__}: {error}"))
