#!/usr/bin/python
# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""Shows the state of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_info
short_description: Show the state of an ovs-hotswap host
version_added: 1.0.0
description:
  - Returns what C(ovs-hotswap status), C(release list), C(check), C(config check) and C(doctor) report. Nothing is
    changed.
options:
  gather:
    description:
      - What to return. V(status) is the state of the host with its problems; V(releases) the releases that an instance
        can run; V(check) whether an upgrade to O(release) would start; V(config) the configuration with its defaults;
        V(doctor) what is wrong with the host from its cores to its VMs, with the command that fixes each finding.
    type: list
    elements: str
    choices: [status, releases, check, config, doctor]
    default: [status]
  release:
    description:
      - The release for V(check) in O(gather).
    type: str
  leave_out:
    description:
      - VMs that the upgrade for V(check) in O(gather) would not move.
    type: list
    elements: str
    default: []
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
- name: Read the state of each host
  ovs_hotswap.ovs_hotswap.host_info:
  register: host

- name: Require that no host has a problem
  ansible.builtin.assert:
    that: host.status.problems | length == 0
    fail_msg: "{{ host.status.problems | map(attribute='text') | join('; ') }}"

- name: See whether an upgrade would start
  ovs_hotswap.ovs_hotswap.host_info:
    gather: [check]
    release: trixie
  register: host
"""

RETURN = r"""
status:
  description: The document of C(ovs-hotswap --json status). What cannot be read is null, and named in C(unknown).
  returned: if V(status) is in O(gather)
  type: dict
  sample: {"active": "a", "problems": [], "unfinished": null, "unknown": []}
release:
  description: The name of the release that the active instance runs, or null.
  returned: if V(status) is in O(gather)
  type: str
  sample: host
releases:
  description: The releases, each with C(name), C(ovs), C(dpdk), C(source) and C(error).
  returned: if V(releases) is in O(gather)
  type: list
  elements: dict
check:
  description: The document of C(ovs-hotswap --json check), with C(findings) and C(ready).
  returned: if V(check) is in O(gather)
  type: dict
config:
  description: Every setting of the configuration with its value.
  returned: if V(config) is in O(gather)
  type: dict
doctor:
  description: The document of C(ovs-hotswap --json doctor), with C(findings), C(counts) and C(ready).
  returned: if V(doctor) is in O(gather)
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils.tool import (
    FILE_ARGUMENTS,
    PRECHECK_FAILED,
    STATE_UNKNOWN,
    TOOL_ARGUMENTS,
    Tool,
    running_release,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            TOOL_ARGUMENTS,
            gather=dict(
                type="list",
                elements="str",
                choices=["status", "releases", "check", "config", "doctor"],
                default=["status"],
            ),
            release=dict(type="str"),
            leave_out=dict(type="list", elements="str", default=[]),
            **FILE_ARGUMENTS,
        ),
        supports_check_mode=True,
    )
    gather = module.params["gather"]
    if "check" in gather and not module.params["release"]:
        module.fail_json(msg="gather has `check`, so `release` is needed")
    tool = Tool(module)
    result: dict[str, Any] = {}
    if "status" in gather:
        result["status"] = tool.status()
        result["release"] = running_release(result["status"])
    if "releases" in gather:
        result["releases"] = tool.ask("release", "list")["releases"]
    if "check" in gather:
        words = ["check", "--release", module.params["release"]]
        for name in module.params["leave_out"]:
            words += ["--leave-out", name]
        result["check"] = tool.ask(*words, codes=(0, PRECHECK_FAILED))
    if "config" in gather:
        result["config"] = tool.ask("config", "check")["config"]
    if "doctor" in gather:
        result["doctor"] = tool.ask("doctor", codes=(0, PRECHECK_FAILED, STATE_UNKNOWN))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
