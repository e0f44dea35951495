"""Runs the console script, for ``python -m ovs_hotswap``."""

from ovs_hotswap.cli.main import main

main()
