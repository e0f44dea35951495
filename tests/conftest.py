"""Settings for all tests."""

import signal

from hypothesis import settings

# No test depends on how fast the machine is.
settings.register_profile("ovs-hotswap", deadline=None)
settings.load_profile("ovs-hotswap")

# Nor on how it was started: a shell has what runs in the background ignore SIGINT, nohup SIGHUP, and what is ignored
# stays so in every child.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
