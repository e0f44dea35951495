"""What an operator sees of a broker that ended as soon as it was started."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovs_hotswap.broker.lifecycle import ended


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "it says nothing", "see {log}"),
        ("Traceback\nKeyError: 1\n", "KeyError: 1", "see {log}"),
        ("before\nerror: no\n", "no", "see {log}"),
        ("error: no format in common\nhint: try again\n", "no format in common", "try again (see {log})"),
        ("hint: alone\n", "hint: alone", "see {log}"),
    ],
)
def test_the_error_of_a_broker_that_ended_is_told(tmp_path: Path, text: str, message: str, hint: str) -> None:
    log = tmp_path / "broker.log"
    log.write_text(text)
    error = ended("the new broker", log)
    assert error.message == f"the new broker ended: {message}"
    assert error.hint == hint.format(log=log)
