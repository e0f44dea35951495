"""``python -m tools.packages [--check] [NAME...]``: ``make packages`` and ``make packages-check``."""

from __future__ import annotations

import argparse
import os
import sys
import time

from ovs_hotswap.errors import HotswapError
from ovs_hotswap.system import System
from tools.packages.build import OUTPUT, Builder, Product, chosen


def say(text: str) -> None:
    print(f"packages: {text}", flush=True)


def build(builder: Builder, names: list[str]) -> list[Product]:
    """The packages, published."""
    products = [builder.build(recipe) for recipe in chosen(names)]
    for product in products:
        print(f"{product.sha256}  {builder.publish(product)}", flush=True)
    return products


def check(builder: Builder, names: list[str]) -> int:
    """Build everything once more, with nothing from the cache; return how many packages came out differently."""
    different = 0
    for first in build(builder, names):
        again = builder.build(first.inputs.recipe, anew=True)
        different += again.sha256 != first.sha256
        say(f"{again.path.name}: {'the same bytes' if again.sha256 == first.sha256 else f'DIFFERENT: {again.sha256}'}")
    return different


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.packages", description="Build the patched Debian packages.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="ovs or qemu; all if none is given")
    parser.add_argument("--check", action="store_true", help="build twice and compare")
    given = parser.parse_args()
    if os.geteuid() != 0:
        say("error: needs root: the packages are built in a tree that debootstrap makes")
        return 1
    os.umask(0o022)
    began, system = time.monotonic(), System()
    try:
        with system.lock(OUTPUT / ".lock", "building packages"):
            different = (check if given.check else _build)(Builder(system, say), given.names)
    except HotswapError as error:
        say(f"error: {error.message}")
        if error.hint:
            say(f"hint: {error.hint}")
        return error.exit_code
    say(f"done in {time.monotonic() - began:.0f} s")
    return 1 if different else 0


def _build(builder: Builder, names: list[str]) -> int:
    build(builder, names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
