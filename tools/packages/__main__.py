"""``python -m tools.packages [--check] [NAME...]``: ``make packages`` and ``make packages-check``."""

from __future__ import annotations

import argparse
import os
import sys
import time

from ovs_hotswap.errors import HotswapError, ReleaseError
from ovs_hotswap.system import System
from tools.packages import program
from tools.packages.build import CACHE, OUTPUT, Builder, Product, chosen
from tools.packages.program import Program
from tools.packages.recipes import RECIPES

NAMES = (*(recipe.name for recipe in RECIPES if recipe.summary), program.NAME)


def say(text: str) -> None:
    print(f"packages: {text}", flush=True)


def known(names: list[str]) -> list[str]:
    """The packages of these names, or all if none is given. Raises ReleaseError."""
    if unknown := sorted(set(names) - set(NAMES)):
        raise ReleaseError(f"there is no package {unknown[0]}", hint=f"known are: {', '.join(NAMES)}")
    return names or list(NAMES)


def build_program(system: System, version: str | None, *, twice: bool) -> int:
    """Build the package of the program, a second time if ``twice``; return whether the two differ."""
    one = Program(system, say, OUTPUT, CACHE, version)
    path, sha256 = one.build()
    print(f"{sha256}  {path}", flush=True)
    if not twice:
        return 0
    _, again = one.build(anew=True)
    say(f"{path.name}: {'the same bytes' if again == sha256 else f'DIFFERENT: {again}'}")
    return again != sha256


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
    parser = argparse.ArgumentParser(prog="python -m tools.packages", description="Build the Debian packages.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; all if none is given")
    parser.add_argument("--check", action="store_true", help="build twice and compare")
    parser.add_argument("--version", help=f"of {program.NAME}: another one than the program's, to try an upgrade with")
    given = parser.parse_args()
    if os.geteuid() != 0:
        say("error: needs root: the packages are built in a tree that debootstrap makes")
        return 1
    os.umask(0o022)
    began, system = time.monotonic(), System()
    try:
        with system.lock(OUTPUT / ".lock", "building packages"):
            names = known(given.names)
            different = build_program(system, given.version, twice=given.check) if program.NAME in names else 0
            if patched := [name for name in names if name != program.NAME]:
                different += (check if given.check else _build)(Builder(system, say), patched)
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
