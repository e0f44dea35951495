"""What is tried on Open vSwitch 2.9.0 with DPDK 17.11, built elsewhere."""
