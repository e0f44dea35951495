"""Settings for all tests."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings

# No test depends on how fast the machine is.
# The same inputs in each run of the tests, so that one that fails has failed before; `make fuzz` tries others.
settings.register_profile("ovs-hotswap", deadline=None, derandomize="OVS_HOTSWAP_EXAMPLES" not in os.environ)
# What `make mutants` needs to know is whether a test fails, not the smallest input with which it does.
settings.register_profile(
    "mutants", deadline=None, derandomize=True, max_examples=20, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("ovs-hotswap")

# Nor on how it was started: a shell has what runs in the background ignore SIGINT, nohup SIGHUP, and what is ignored
# stays so in every child.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def own_priority() -> Iterator[None]:
    """What a daemon that is run in this process does to its priority ends with the test: the switches that later ones
    start would inherit it."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    yield
    os.setpriority(os.PRIO_PROCESS, 0, before)
