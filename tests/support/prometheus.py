"""A Prometheus of Debian, and promtool, which checks rules and tries them on series that are made up."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ovs_hotswap.metrics.collector import HostCollector, serve
from tests.support.waiting import eventually

ALERTS = Path(__file__).parents[2] / "docs/monitoring/alerts.yml"
_START_S = 30.0


def promtool(*arguments: str, given: str = "") -> str:
    """Run promtool, which reads what is ``given``; return what it says. Raises AssertionError if it finds a fault."""
    done = subprocess.run(
        ["promtool", *arguments], input=given, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def try_rules(directory: Path, tests: Sequence[Mapping[str, Any]]) -> str:
    """Try the alert rules on series. ``tests``: as in Prometheus's documentation, "Unit Testing for Rules"."""
    (directory / "alerts.yml").write_text(ALERTS.read_text())
    file = directory / "tests.yml"
    file.write_text(json.dumps({"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}))
    return promtool("test", "rules", str(file))  # JSON is YAML


class Prometheus:
    """A server that runs. ``query`` returns the samples of an expression at this moment."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        found = self.get("query", query=expression)
        return [(each["metric"], float(each["value"][1])) for each in found["result"]]

    def value(self, expression: str) -> float | None:
        """The value of the one sample of an expression; ``None`` if there is none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {metric["alertname"] for metric, _ in self.query('ALERTS{alertstate="firing"}')}

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            return False


@contextlib.contextmanager
def prometheus(
    directory: Path, target: str, port: int, *, interval: str = "1s", rules: str | None = None
) -> Iterator[Prometheus]:
    """Run a server that scrapes ``target`` (address:port) each ``interval``. ``rules``: other alert rules than those
    that are published, such as the same with shorter times."""
    (directory / "rules.yml").write_text(ALERTS.read_text() if rules is None else rules)
    config = directory / "prometheus.yml"
    config.write_text(json.dumps({
        "global": {"scrape_interval": interval, "evaluation_interval": interval, "scrape_timeout": interval},
        "rule_files": [str(directory / "rules.yml")],
        "scrape_configs": [{"job_name": "ovs-hotswap", "static_configs": [{"targets": [target]}]}],
    }))  # fmt: skip
    log = directory / "prometheus.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'tsdb'}",
             f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
            stdout=out, stderr=out,
        )  # fmt: skip
        try:
            found = Prometheus(f"http://127.0.0.1:{port}")
            eventually(lambda: found.ready() or server.poll() is not None, "Prometheus is ready", _START_S, poll_s=0.1)
            assert server.poll() is None, log.read_text()
            yield found
        finally:
            server.terminate()
            server.wait(30)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def served(found: HostCollector) -> Iterator[int]:
    """Answer scrapes as long as the block lasts; the value is the port."""
    server, thread = serve(found, "127.0.0.1", 0)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def at_once(rules: str) -> str:
    """The rules without their waiting."""
    return re.sub(r"^        for: \w+$", "        for: 0s", rules, flags=re.MULTILINE)
