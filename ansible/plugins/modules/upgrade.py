#!/usr/bin/python
# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""Replaces the active instance by one of another release."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: upgrade
short_description: Replace the switch of a hypervisor under its running VMs
version_added: 1.0.0
description:
  - Runs C(ovs-hotswap upgrade). Whatever fails before the commit is undone by the program itself. The module then fails
    with RV(ignore:outcome=rolled_back) and with the program's document.
  - The module changes nothing if the active instance already runs just that release, from files that were not replaced
    since.
  - An upgrade must outlive the connection. Run the module with C(async) and C(poll), as the role
    P(ovs_hotswap.ovs_hotswap.upgrade#role) does. The work then continues on the host when the control node ends. After
    that C(ansible.builtin.async_status), or RV(ignore:status.last) of M(ovs_hotswap.ovs_hotswap.host_info), tells how
    it ended.
options:
  release:
    description:
      - The release to upgrade to, V(host) or one of M(ovs_hotswap.ovs_hotswap.release).
    type: str
    required: true
  keep_old:
    description:
      - Leave the old instance running when the upgrade is done.
    type: bool
    default: false
  leave_out:
    description:
      - VMs that are not moved. They are without network for a part of the upgrade. Not together with O(keep_old).
    type: list
    elements: str
    default: []
  force:
    description:
      - Upgrade even if the active instance already runs just this release, for example to apply new settings. The
        module is not idempotent then.
    type: bool
    default: false
  unfinished:
    description:
      - What to do first with an upgrade that was interrupted. V(fail) fails with RV(ignore:outcome=busy), V(resume)
        finishes it in the direction in which it was going, V(rollback) undoes it. An upgrade that is under way is never
        touched, so that the module fails with RV(ignore:outcome=busy).
    type: str
    choices: [fail, resume, rollback]
    default: fail
extends_documentation_fragment:
  - ovs_hotswap.ovs_hotswap.tool
  - ovs_hotswap.ovs_hotswap.tool.file
attributes:
  check_mode:
    description: Runs C(ovs-hotswap upgrade --dry-run), and fails if a precheck refuses.
    support: full
  diff_mode:
    description: Shows the active instance and its release before and after.
    support: full
author:
  - The authors of ovs-hotswap (@ovs-hotswap)
"""

EXAMPLES = r"""
- name: Upgrade, and stay with it for up to an hour even if the connection breaks
  ovs_hotswap.ovs_hotswap.upgrade:
    release: trixie
  async: 3600
  poll: 5
  register: upgrade

- name: Show how long each VM was without a switch, in microseconds
  ansible.builtin.debug:
    var: upgrade.report.moves
"""

RETURN = r"""
report:
  description:
    - The document of C(ovs-hotswap --json upgrade), or of C(upgrade --dry-run) in check mode. If an interrupted upgrade
      that was resumed has brought the host to O(release), it is the document of that.
  returned: success
  type: dict
  sample: {"changed": true, "active": "b", "release": "trixie", "previous": "host", "moves": {"web1": 118.2}}
first:
  description: The document of the C(resume) or C(rollback) of an upgrade that had been interrupted.
  returned: if there was one, and O(unfinished) is not V(fail)
  type: dict
outcome:
  description: >-
    What a failure says about the host. V(precheck_failed) and V(busy) changed nothing. V(rolled_back) was undone.
    V(unfinished) was committed, and C(ovs-hotswap resume) does the rest. V(unknown) needs a person. V(failed) is any
    other failure.
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
  description: The whole document of the error, with the C(steps) that were done.
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
    ROLLED_BACK,
    TOOL_ARGUMENTS,
    Tool,
    difference,
    running_release,
)


def arguments(params: dict[str, Any]) -> list[str]:
    words = ["--release", params["release"]]
    for option in ("keep_old", "force"):
        if params[option]:
            words.append("--" + option.replace("_", "-"))
    for name in params["leave_out"]:
        words += ["--leave-out", name]
    return words


def finish(tool: Tool, act: str) -> dict[str, Any]:
    """Finish an interrupted upgrade. One that was being undone ends with the exit code of a rollback."""
    code, document, text = tool.run(act)
    if code not in (0, ROLLED_BACK):
        tool.fail([act], code, document, text)
    return document


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            TOOL_ARGUMENTS,
            release=dict(type="str", required=True),
            keep_old=dict(type="bool", default=False),
            leave_out=dict(type="list", elements="str", default=[]),
            force=dict(type="bool", default=False),
            unfinished=dict(type="str", choices=["fail", "resume", "rollback"], default="fail"),
            **FILE_ARGUMENTS,
        ),
        supports_check_mode=True,
    )
    tool, params = Tool(module), module.params
    words = arguments(params)
    before = tool.status()
    from_ = (before["active"], running_release(before))
    result: dict[str, Any] = {}
    if before["unfinished"] and params["unfinished"] != "fail":
        if module.check_mode:
            module.exit_json(changed=True, report=None, msg="the interrupted upgrade would be finished first")
        result["first"] = finish(tool, params["unfinished"])
    if module.check_mode:
        report = tool.ask("upgrade", *words, "--dry-run", codes=(0, PRECHECK_FAILED))
        if not report["ready"]:
            tool.fail(["upgrade", *words, "--dry-run"], PRECHECK_FAILED, report)
        changed = report.get("changed", True)
        other = {"a": "b", "b": "a"}.get(before["active"])
        to = (other, params["release"]) if changed else from_
    else:
        report = tool.ask("upgrade", *words)
        changed = report["changed"]
        first = result.get("first") or {}
        if not changed and first.get("committed") and first["release"] == report["release"]:
            report = first  # it has brought the host to the release, so what it did to the VMs is what counts
        to = (report["active"], report["release"]) if report["changed"] else from_
    result.update(changed=bool(changed or "first" in result), report=report, diff=difference(from_, to))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
