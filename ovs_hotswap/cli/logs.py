"""What a command that runs in the foreground as a daemon logs, and where."""

from __future__ import annotations

import logging
import sys

import click

log_level = click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)


def start_log(level: str) -> None:
    """Log to the standard error from ``level`` on."""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
