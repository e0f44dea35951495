"""``python -m ovs_hotswap``: the same as the console script."""

from ovs_hotswap.cli.main import main

main()
