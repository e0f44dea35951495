"""The manual page has every command and option, and roff understands it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from ovs_hotswap.cli import main
from tools.manpage import commands, escaped, page, paragraphs


def test_it_has_every_command_that_is_for_people() -> None:
    text = page()
    paths = [" ".join(path) for path, _ in commands(main.cli)]
    assert {"upgrade", "vm list", "broker take-over", "status"} <= set(paths)
    assert not {"instance bring-up", "instance mend", "broker supervise"} & set(paths)
    for path in paths:
        assert f'.SS "{escaped(f"{main.PROGRAM} {path}")}' in text
    assert text.count(".B \\-\\-json\n") == 1, "once, for all commands"


def test_it_has_every_exit_code() -> None:
    text = page()
    for code, _ in main.exit_codes():
        assert f".TP\n.B {code}\n" in text


def test_examples_keep_their_lines_and_no_line_is_taken_for_a_request() -> None:
    assert list(paragraphs("Do it.\n\n\b\nExample:\n  ovs-hotswap do\n")) == [
        ".PP\nDo it.", ".PP\n.nf\nExample:\n  ovs\\-hotswap do\n.fi",
    ]  # fmt: skip
    assert escaped(".SH \\ -x\n'br") == "\\&.SH \\e \\-x\n\\&'br"


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_roff_has_no_complaint() -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-z"], input=page(), text=True, capture_output=True, check=True
    )
    assert done.stderr == ""
