"""Prometheus's text format, and the application that answers scrapes with it.

prometheus-client writes the same text in three times as long, as it looks at each character of each name of a label.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FAST = 1  # of gzip: the text is so uniform that more time makes it hardly shorter


def text(collector: Collector) -> str:
    """Return the metrics in Prometheus's text format, version 0.0.4 (Exposition formats, "Text-based format")."""
    return "".join(_lines(collector.collect()))


def _lines(families: Iterable[Metric]) -> Iterator[str]:
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield f"# HELP {name} {_escaped(family.documentation, quotes=False)}\n# TYPE {name} {family.type}\n"
        for sample in family.samples:
            labels = ",".join([f'{label}="{_escaped(value)}"' for label, value in sample.labels.items()])
            yield f"{sample.name}{{{labels}}} {float(sample.value)!r}\n"


def _escaped(value: str, *, quotes: bool = True) -> str:
    if "\\" in value or "\n" in value or '"' in value:
        value = value.replace("\\", r"\\").replace("\n", r"\n")
        return value.replace('"', r"\"") if quotes else value
    return value


def application(asked: Callable[[], str]) -> WSGIApplication:
    """Return the application that answers each request with the text for which it has ``asked``."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET":
            start_response("405 Method Not Allowed", [("Allow", "GET"), ("Content-Length", "0")])
            return []
        body, headers = asked().encode(), [("Content-Type", CONTENT_TYPE)]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            body = gzip.compress(body, _FAST)
            headers.append(("Content-Encoding", "gzip"))
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    return answer
