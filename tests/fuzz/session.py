"""A coverage-guided fuzzer (atheris) of everything that reads what a QEMU says: frames, messages, the session record.

``make fuzz`` runs a million inputs. An input is a stream of messages; each run checks that only ProtocolError is raised
and that every descriptor has exactly one owner in the end. What it finds is written to the current directory as
``crash-*``: put it into ``tests/fuzz/corpus``, which ``tests/unit/test_fuzz_corpus.py`` runs.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["ovs_hotswap.vhost"]):
    from tests.fuzz.target import one_input

if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
