"""The patch series that the project carries for QEMU, DPDK and Open vSwitch, and what applies them to a tree.

``series`` reads the files of a series, ``rules`` decides; ``store`` finds the series, ``tree`` touches source trees.
"""
