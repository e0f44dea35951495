"""``python -m tools.packages.lock``: writes ``program/wheels.lock`` from setup.cfg with pip-compile."""

from __future__ import annotations

import subprocess
import sys

from tools.packages.program import LOCK, ROOT

_TITLE = "# What the program needs, each file with its SHA-256. `make lock` writes this list from setup.cfg.\n"


def main() -> int:
    argv = [sys.executable, "-m", "piptools", "compile", "--quiet", "--upgrade", "--generate-hashes", "--strip-extras",
            "--allow-unsafe", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links",
            "--no-emit-trusted-host", "--no-config", "--output-file", str(LOCK), str(ROOT / "setup.cfg")]  # fmt: skip
    status = subprocess.run(argv, check=False).returncode
    if status == 0:
        LOCK.write_text(_TITLE + LOCK.read_text())
    return status


if __name__ == "__main__":
    sys.exit(main())
