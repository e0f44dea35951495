#!/usr/bin/python
# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""Goes back to the release that ran before."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rollback
short_description: Undo an upgrade of a hypervisor's switch
version_added: 1.0.0
description:
  - Runs C(ovs-hotswap rollback). It undoes an upgrade that was interrupted, or goes back to the release that ran before
    the last one, which is another upgrade with the same checks.
  - The module changes nothing if the active instance does not run O(release) and no upgrade to it is unfinished. It
    fails if that cannot be known.
  - Run it with C(async) and C(poll), as M(ovs_hotswap.ovs_hotswap.upgrade).
options:
  release:
    description:
      - The release to leave.
    type: str
    required: true
  report:
    description:
      - Undo just this upgrade, of which this is the report that M(ovs_hotswap.ovs_hotswap.upgrade) returned. The module
        fails if another upgrade has ended since, and the active instance runs O(release) nevertheless.
    type: dict
  baseline:
    description:
      - Undo only what has ended since this one, which was the newest ended upgrade of the host at that time.
    type: dict
extends_documentation_fragment:
  - ovs_hotswap.ovs_hotswap.tool
  - ovs_hotswap.ovs_hotswap.tool.file
attributes:
  check_mode:
    description: Predicts whether anything would be undone, and runs C(ovs-hotswap check) for the release before.
    support: full
  diff_mode:
    description: Shows the active instance and its release before and after.
    support: full
author:
  - The authors of ovs-hotswap (@ovs-hotswap)
"""

EXAMPLES = r"""
- name: Go back from a release
  ovs_hotswap.ovs_hotswap.rollback:
    release: trixie
  async: 3600
  poll: 5
"""

RETURN = r"""
report:
  description: The document of C(ovs-hotswap --json rollback); null if there was nothing to undo.
  returned: success
  type: dict
outcome:
  description: What a failure says about the host, as for M(ovs_hotswap.ovs_hotswap.upgrade).
  returned: failure
  type: str
rc:
  description: The exit code of the program.
  returned: failure
  type: int
error:
  description: The program's error, with C(class), C(message), C(hint) and C(exit_code).
  returned: failure
  type: dict
document:
  description: The whole document of the error.
  returned: failure
  type: dict
hint:
  description: The command or the change that helps.
  returned: failure
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils.tool import (
    FILE_ARGUMENTS,
    PRECHECK_FAILED,
    TOOL_ARGUMENTS,
    Tool,
    difference,
    running_release,
)

SAME = ("old", "new", "release", "previous", "moves")


def is_last(report: dict[str, Any], last: dict[str, Any] | None) -> bool:
    """Whether the newest ended upgrade of the host is the one of the report."""
    return last is not None and all(report.get(key) == last.get(key) for key in SAME)


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            TOOL_ARGUMENTS,
            release=dict(type="str", required=True),
            report=dict(type="dict"),
            baseline=dict(type="dict"),
            **FILE_ARGUMENTS,
        ),
        supports_check_mode=True,
    )
    tool, leave = Tool(module), module.params["release"]
    before = tool.status()
    running, unfinished, last = running_release(before), before["unfinished"], before["last"]
    unknown = {"active", "unfinished", "last"} & set(before["unknown_fields"])
    if unknown or (before["active"] is not None and running is None and not unfinished):
        module.fail_json(
            msg="it cannot be known whether this host runs {}; nothing was changed (`ovs-hotswap status`): {}".format(
                leave, "; ".join(before["unknown"]) or "instance {} does not run".format(before["active"])
            ),
            outcome="unknown",
        )
    ours = bool(unfinished) and unfinished["parameters"].get("release") == leave
    since = module.params["baseline"]
    if (running != leave and not ours) or (since is not None and since == last and not unfinished):
        module.exit_json(changed=False, report=None)
    if module.params["report"] is not None and not unfinished and not is_last(module.params["report"], last):
        module.fail_json(
            msg="another upgrade has ended on this host since the one that is to be undone; nothing was changed "
            "(`ovs-hotswap status` shows the newest one as `last`)",
            outcome="failed",
        )
    result: dict[str, Any] = {"changed": True, "report": None}
    if not module.check_mode:
        result["report"] = tool.ask("rollback")
        result["diff"] = difference(
            (before["active"], running), (result["report"]["active"], running_release(tool.status()))
        )
    elif not unfinished:
        if last is None:
            module.fail_json(msg="there is no upgrade to roll back (`ovs-hotswap status`)", outcome="precheck_failed")
        previous = last["previous"]
        check = tool.ask("check", "--release", previous, codes=(0, PRECHECK_FAILED))
        if not check["ready"]:
            tool.fail(["check", "--release", previous], PRECHECK_FAILED, check)
        other = {"a": "b", "b": "a"}.get(before["active"])
        result["diff"] = difference((before["active"], running), (other, previous))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
