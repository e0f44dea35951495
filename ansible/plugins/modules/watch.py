#!/usr/bin/python
# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""Looks at the watchdog and at the standby."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: watch
short_description: Wait for the standby of a hypervisor's switch, or watch the host's health for a time
version_added: 1.0.0
description:
  - Reads C(ovs-hotswap watch status). With O(wait) it waits until the watchdog has a standby on which every VM is
    parked. With O(soak) it then looks again and again, and fails as soon as the active instance is not healthy, or the
    standby is lost, or an event tells of a crash.
  - Where no standby is wanted (C(watch.mode) is V(off) or V(restart)) there is nothing to wait for; the module then
    only returns the document.
options:
  wait:
    description:
      - The most seconds to wait for the standby. V(0) does not wait, and does not fail without a standby.
    type: float
    default: 0
  soak:
    description:
      - For so many seconds the host must stay healthy. If O(wait) is not V(0), the standby may not be away for longer
        than that, which a VM that starts does not exceed.
    type: float
    default: 0
  every:
    description:
      - Seconds between two looks.
    type: float
    default: 2
  events:
    description:
      - How many of the newest events to return.
    type: int
    default: 20
extends_documentation_fragment:
  - ovs_hotswap.ovs_hotswap.tool
  - ovs_hotswap.ovs_hotswap.tool.file
attributes:
  check_mode:
    description: Nothing is ever changed.
    support: full
  diff_mode:
    description: Nothing is ever changed.
    support: none
author:
  - The authors of ovs-hotswap (@ovs-hotswap)
"""

EXAMPLES = r"""
- name: Wait until the host is protected against a crash again
  ovs_hotswap.ovs_hotswap.watch:
    wait: 120

- name: Watch the host for ten minutes
  ovs_hotswap.ovs_hotswap.watch:
    soak: 600
  async: 900
  poll: 10
"""

RETURN = r"""
watch:
  description: The document of C(ovs-hotswap --json watch status), as of the last look.
  returned: success
  type: dict
  sample: {"mode": "automatic", "running": true, "ready": true, "health": "healthy", "events": []}
waited:
  description: The seconds until the standby was ready.
  returned: success
  type: float
problem:
  description: What the look found that ended the wait or the soak.
  returned: failure
  type: str
"""

import time
from collections.abc import Callable
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils.tool import (
    FILE_ARGUMENTS,
    TOOL_ARGUMENTS,
    Tool,
)

Look = Callable[[], Dict[str, Any]]
CRASHES = ("failover", "standby-died", "restart", "start-failed", "gave-up", "trial", "quarantine")
"""Events that tell of an instance that died or did not start."""


NO_STANDBY = ("off", "restart")
"""Modes of the watchdog in which it keeps no standby."""


def illness(watch: dict[str, Any], since: float) -> str:
    """Why the host is not healthy; empty if it is. ``since``: events before this time (seconds since the epoch) do not
    count."""
    if watch["mode"] == "off":
        return ""
    if not watch["running"]:
        return "the watchdog does not run (`systemctl status ovs-hotswap-watch`)"
    if watch["health"] == "failed":
        return "the active instance has failed: {}".format(watch["reason"])
    for event in watch["events"]:
        if event.get("event") in CRASHES and event.get("time", 0) >= since:
            return "event {} (`ovs-hotswap watch status --events 20`)".format(event["event"])
    return ""


def unready(watch: dict[str, Any]) -> str:
    """Why there is no standby on which every VM is parked."""
    why = watch.get("problem") or watch.get("keeping") or "the watchdog does not run"
    if watch.get("unprotected"):
        why = "VM {} is not parked on the standby".format(", ".join(watch["unprotected"]))
    return f"no standby is ready: {why} (`ovs-hotswap watch status`)"


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            TOOL_ARGUMENTS,
            wait=dict(type="float", default=0),
            soak=dict(type="float", default=0),
            every=dict(type="float", default=2),
            events=dict(type="int", default=20),
            **FILE_ARGUMENTS,
        ),
        supports_check_mode=True,
    )
    tool, params = Tool(module), module.params

    def look() -> dict[str, Any]:
        # Exit code 1: no standby is ready, and the mode is "required".
        return tool.ask("watch", "status", "--events", str(params["events"]), codes=(0, 1))

    watch, waited = wait_ready(module, look)
    if params["soak"] > 0:
        watch = soak(module, look)
    module.exit_json(changed=False, watch=watch, waited=round(waited, 1))


def fail(module: AnsibleModule, problem: str, watch: dict[str, Any]) -> None:
    module.fail_json(msg=problem, problem=problem, watch=watch)


def wait_ready(module: AnsibleModule, look: Look) -> tuple[dict[str, Any], float]:
    """Wait for the standby. Returns the last document and the seconds that it took."""
    patience, begun = module.params["wait"], time.monotonic()
    watch = look()
    while patience > 0 and watch["mode"] not in NO_STANDBY and not watch["ready"]:
        if watch["gave_up"] or time.monotonic() >= begun + patience:
            fail(module, unready(watch), watch)
        time.sleep(min(module.params["every"], patience))
        watch = look()
    return watch, time.monotonic() - begun


def soak(module: AnsibleModule, look: Look) -> dict[str, Any]:
    """Look until the time is over. A standby may be away for as long as ``wait``: a VM that starts is parked a moment
    later."""
    patience, since = module.params["wait"], time.time()
    end = time.monotonic() + module.params["soak"]
    ready = time.monotonic()
    while True:
        watch, now = look(), time.monotonic()
        if watch["ready"] or watch["mode"] in NO_STANDBY:
            ready = now
        problem = illness(watch, since) or (unready(watch) if 0 < patience < now - ready else "")
        if problem:
            fail(module, problem, watch)
        if now >= end:
            return watch
        time.sleep(min(module.params["every"], end - now))


if __name__ == "__main__":
    main()
