"""Run by the interpreter of the package, in the build tree: imports all that it has, and ends with 1 if a library comes
from anywhere but the package. The C library is the host's.

Usage: python3.11 -I check.py PREFIX
"""

import importlib
import os
import pkgutil
import re
import sys
from pathlib import Path

HOST = re.compile(r".*/(ld-linux-x86-64\.so\.2|lib(c|m|dl|pthread|rt|util|resolv)\.so\.[0-9])")


def main(prefix: str) -> int:
    import ovs_hotswap

    modules = [path.name.partition(".")[0] for path in Path(prefix).glob("python/lib/python3.11/lib-dynload/*.so")]
    modules += [found.name for found in pkgutil.walk_packages(ovs_hotswap.__path__, "ovs_hotswap.")]
    for name in modules:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in maps if "/" in line}
    strange = [
        path for path in mapped if ".so" in path and not path.startswith(f"{prefix}/") and not HOST.fullmatch(path)
    ]
    strange += [path for path in sys.path if not path.startswith(f"{prefix}/python/")]
    print(f"{len(modules)} modules, {len(mapped)} files", *(f"from elsewhere: {path}" for path in strange), sep="\n")
    return 1 if strange else 0


if __name__ == "__main__":
    # The process ends at once: what the imported modules would do at their end is of no interest.
    status = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(status)
