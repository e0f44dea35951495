#!/usr/bin/python
# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""Adds or removes a release."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: release
short_description: Add or remove a release that an instance of ovs-hotswap can run
version_added: 1.0.0
description:
  - Adds a release from a Debian suite, or adopts a directory, or removes a release. The release V(host), the installed
    package of the distribution, is always there.
options:
  name:
    description:
      - The name of the release.
    type: str
    required: true
  state:
    description:
      - V(present) makes the release, or verifies it if it is there. V(absent) removes it. A release that an instance
        runs is not removed.
    type: str
    choices: [present, absent]
    default: present
  suite:
    description:
      - Make the release from this Debian suite. This needs debootstrap and a mirror, and takes minutes.
    type: str
    choices: [bookworm, trixie]
  from_directory:
    description:
      - Adopt this directory tree or install prefix on the host. It stays where it is.
    type: path
  packages:
    description:
      - Further Debian packages for O(suite), such as a NIC's driver.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - ovs_hotswap.ovs_hotswap.tool
  - ovs_hotswap.ovs_hotswap.tool.file
attributes:
  check_mode:
    description: Predicts whether the release would be made or removed.
    support: partial
    details:
      - A release that is there is not verified in check mode.
  diff_mode:
    description: Shows the list of releases before and after.
    support: full
author:
  - The authors of ovs-hotswap (@ovs-hotswap)
"""

EXAMPLES = r"""
- name: Make a release from Debian 13
  ovs_hotswap.ovs_hotswap.release:
    name: trixie
    suite: trixie

- name: Adopt a directory that another task has unpacked
  ovs_hotswap.ovs_hotswap.release:
    name: custom
    from_directory: /srv/ovs-3.6

- name: Remove a release
  ovs_hotswap.ovs_hotswap.release:
    name: custom
    state: absent
"""

RETURN = r"""
release:
  description: The release, with C(name), C(root), C(ovs) and C(dpdk).
  returned: if O(state=present) and not in check mode
  type: dict
  sample: {"name": "trixie", "root": "/var/lib/ovs-hotswap/releases/trixie/tree", "ovs": "3.5.0", "dpdk": "24.11.2"}
"""

from collections.abc import Iterable

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils.tool import (
    FILE_ARGUMENTS,
    TOOL_ARGUMENTS,
    Tool,
)


def listed(releases: Iterable[str]) -> str:
    return "".join(f"{name}\n" for name in sorted(releases))


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            TOOL_ARGUMENTS,
            name=dict(type="str", required=True),
            state=dict(type="str", choices=["present", "absent"], default="present"),
            suite=dict(type="str", choices=["bookworm", "trixie"]),
            from_directory=dict(type="path"),
            packages=dict(type="list", elements="str", default=[]),
            **FILE_ARGUMENTS,
        ),
        mutually_exclusive=[("suite", "from_directory")],
        required_if=[("state", "present", ("suite", "from_directory"), True)],
        supports_check_mode=True,
    )
    tool = Tool(module)
    name, wanted = module.params["name"], module.params["state"] == "present"
    before = {each["name"] for each in tool.ask("release", "list")["releases"]}
    after = before | {name} if wanted else before - {name}
    result = {"changed": before != after, "diff": {"before": listed(before), "after": listed(after)}}
    if wanted and not module.check_mode:
        words = ["release", "add", name]
        for option in ("suite", "from_directory"):
            if module.params[option]:
                words += ["--" + option.replace("_", "-"), module.params[option]]
        for package in module.params["packages"]:
            words += ["--package", package]
        result["release"] = tool.ask(*words)  # it verifies a release that is there
    elif result["changed"] and not module.check_mode:
        tool.ask("release", "remove", name)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
