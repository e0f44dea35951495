"""Replace a hypervisor's OVS-DPDK process under running VMs."""

__version__ = "0.4.0"
