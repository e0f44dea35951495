"""Debian packages of QEMU and Open vSwitch with the project's patches, from Debian 12's own source packages.

``recipes`` says what is built and decides; ``debian`` asks apt; ``buildtree`` is the Debian 12 tree in which all is
compiled, with no network; ``build`` puts it together. The scripts are run in the tree.
"""
