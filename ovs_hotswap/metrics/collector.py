"""The collector that prometheus-client asks at each scrape, the server for it, and the file for node_exporter."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ovs_hotswap.config import Config
from ovs_hotswap.errors import HostError, HotswapError
from ovs_hotswap.metrics.exposition import application, text
from ovs_hotswap.metrics.look import HostReader, Look
from ovs_hotswap.metrics.page import Page, fill, serving_of
from ovs_hotswap.metrics.state import PATIENCE_S, Kept, KeptFile
from ovs_hotswap.metrics.tally import Counted, advance
from ovs_hotswap.system import System, host_error

log = logging.getLogger(__name__)
_FRESH_S = 1.0  # two servers that scrape at the same time are given the same look


class HostCollector(Collector):
    """Looks at the host at each scrape. ``host``: the value of the label ``host``; the host's name by default.

    A scrape that finds no way to keep its sums (a full disk, or another program that holds them) is answered all the
    same, with the sums as they are known here.
    """

    def __init__(
        self, config: Config, system: System, *, host: str | None = None, reader: HostReader | None = None,
        clock: Callable[[], float] = time.monotonic, patience_s: float = PATIENCE_S,
    ) -> None:  # fmt: skip
        self._config, self._host, self._clock = config, host or socket.gethostname(), clock
        self._reader = reader or HostReader(config, system)
        self._file = KeptFile(config, system, patience_s=patience_s)
        self._guard = threading.Lock()
        self._kept: Kept | None = None
        self._last: tuple[float, list[Metric]] | None = None

    def describe(self) -> list[Metric]:
        """Name no metric beforehand: prometheus-client would look at the host for them."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._guard:
            now = self._clock()
            if self._last is None or now - self._last[0] > _FRESH_S:
                found = self._scrape(now)
                self._last = self._clock(), found
            yield from self._last[1]

    def _scrape(self, begun: float) -> list[Metric]:
        with contextlib.ExitStack() as held:
            fault = self._hold(held)
            before = self._file.read(self._kept) if self._kept is None or not fault else self._kept
            look = self._reader.look()
            kept = self._kept = Kept(advance(before.tally, counted(look)), self._reader.history(before.history))
            fault = fault or self._keep(kept)
        if fault:
            log.warning("the sums of the metrics are not kept: %s", fault)
        page = Page(self._host)
        fill(page, self._config, look, kept.tally, kept.history)
        page.add("scrape_duration_seconds", self._clock() - begun)
        return list(page.families())

    def _hold(self, held: contextlib.ExitStack) -> str:
        """Hold the file of the sums until ``held`` ends; return why that is not possible, or an empty text."""
        try:
            held.enter_context(self._file.lock())
        except HotswapError as error:
            return error.message
        return ""

    def _keep(self, kept: Kept) -> str:
        try:
            self._file.write(kept)
        except HostError as error:
            return error.message
        return ""


def counted(look: Look) -> Counted:
    """Return the part of a look that is added up. Where the VMs are not known, nothing is new about who serves them."""
    vms = {vm.name: vm for vm in look.vms or ()}
    ofports = None if look.ports is None else {name: port.ofport for name, port in look.ports.items()}
    return Counted(
        look.time, look.counters, ofports,
        serving_of(vms, look.active), {name: vm.moves for name, vm in vms.items()},
    )  # fmt: skip


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each scrape."""


def serve(collector: Collector, address: str, port: int) -> tuple[WSGIServer, threading.Thread]:
    """Answer scrapes at an address until the server is shut down. Raises HostError if the address cannot be had."""
    try:
        kind = _Server6 if ":" in address else _Server
        server = make_server(address, port, application(lambda: text(collector)), kind, _Handler)
    except OSError as error:
        found = host_error(error)
        raise HostError(f"{address}:{port}: {found.message}", hint="give another address: `--listen`") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return server, thread
