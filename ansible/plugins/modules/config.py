#!/usr/bin/python
# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""Writes the configuration and the overlay intent of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: config
short_description: Write the configuration and the overlay intent of an ovs-hotswap host
version_added: 1.0.0
description:
  - Checks both files with C(ovs-hotswap config check) and C(ovs-hotswap overlay check) before anything is replaced. A
    file that is not valid changes nothing, and the module fails with every fault and its key.
  - A file is replaced in one act, so a watchdog that follows the overlay intent never reads half of it.
  - Nothing is replaced while an upgrade of the host is under way or unfinished, and C(state_dir) and C(run_dir) are not
    changed while an instance runs, because the program would no longer find it.
options:
  config_file:
    description:
      - The configuration file on the host. Its directory must exist.
    type: path
    default: /etc/ovs-hotswap/config.toml
  content:
    description:
      - The text of the configuration. If it is not given, the file stays as it is.
    type: str
  overlay:
    description:
      - The text of the overlay intent, which is written to the path that the configuration names. If it is not given,
        the file stays as it is.
    type: str
  apply:
    description:
      - Bring the broker, the instances and the uplink to the overlay intent with C(ovs-hotswap overlay apply). It is
        refused while an upgrade is unfinished. With a watchdog that has a ready standby it is harmless, because the
        watchdog has done the same.
    type: bool
    default: false
extends_documentation_fragment:
  - ovs_hotswap.ovs_hotswap.tool
  - ansible.builtin.files
attributes:
  check_mode:
    description: Checks the files as well. What O(apply) would change is only known if the overlay intent is valid.
    support: full
  diff_mode:
    description: Shows both files, and with O(apply) the flows that would change or were changed.
    support: full
author:
  - The authors of ovs-hotswap (@ovs-hotswap)
"""

EXAMPLES = r"""
- name: Write both files
  ovs_hotswap.ovs_hotswap.config:
    content: "{{ lookup('ansible.builtin.template', 'config.toml.j2') }}"
    overlay: "{{ lookup('ansible.builtin.template', 'overlay.toml.j2') }}"
    mode: "0644"

- name: Change the overlay intent, and apply it
  ovs_hotswap.ovs_hotswap.config:
    overlay: "{{ lookup('ansible.builtin.template', 'overlay.toml.j2') }}"
    apply: true
"""

RETURN = r"""
config:
  description: Every setting of the new configuration with its value.
  returned: success
  type: dict
overlay:
  description: The document of C(ovs-hotswap --json overlay check), if the overlay intent is there.
  returned: success
  type: dict
  sample: {"vms": 2, "remotes": 2, "flows": 24, "warnings": []}
applied:
  description: For each side the lines of its flow tables that were, or would be, changed.
  returned: if O(apply) is true
  type: dict
differing:
  description: For the broker and the watchdog the settings that they do not follow before they are started again.
  returned: success
  type: dict
  sample: {"broker": [], "watch": [{"key": "watch.hang_ms", "in_use": 500, "configured": 700}]}
error:
  description: The program's error, with C(class), C(message), C(hint) and C(exit_code).
  returned: failure
  type: dict
rc:
  description: The exit code of the program.
  returned: failure
  type: int
outcome:
  description: What a failure says about the host, as for M(ovs_hotswap.ovs_hotswap.upgrade).
  returned: failure
  type: str
document:
  description: The whole document of the error.
  returned: failure
  type: dict
hint:
  description: The command or the change that helps.
  returned: failure
  type: str
"""

import os
import re
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils.tool import (
    STATE_UNKNOWN,
    TOOL_ARGUMENTS,
    Tool,
)

OVERLAY_KEY = re.compile(r"^overlay\s*=.*$", re.MULTILINE)


def read(path: str) -> str | None:
    """The text of a file; ``None`` if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path: str, text: str) -> str:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


class Files:
    """The two files as they are and as they shall be, with copies of the latter to check."""

    def __init__(self, module: AnsibleModule, tool: Tool) -> None:
        self.module, self.tool = module, tool
        self.path = module.params["config_file"]
        self.before = read(self.path)
        texts = [text for text in (module.params["content"], self.before) if text is not None]
        if not texts:
            module.fail_json(msg=f"{self.path} does not exist, so `content` is needed", outcome="failed")
        self.after = texts[0]
        self.scratch = tempfile.mkdtemp(dir=module.tmpdir)
        candidate = write(os.path.join(self.scratch, "config.toml"), self.after)
        self.config = tool.ask("config", "check", config=candidate)["config"]
        self.overlay_path = self.config["overlay"]
        self.overlay_before = read(self.overlay_path)
        wanted = module.params["overlay"]
        self.overlay_after = wanted if wanted is not None else self.overlay_before
        self.candidate = candidate
        self.overlay = None
        if self.overlay_after is not None:
            self.candidate = self._beside(self.overlay_after)
            self.overlay = tool.ask("overlay", "check", config=self.candidate)

    def refuse_if_in_use(self) -> None:
        """Fail if the files must not be replaced now. A configuration that is not valid can be replaced at any time."""
        if self.before is None or not self.changes:
            return
        code, status, _text = self.tool.run("status")
        if code not in (0, STATE_UNKNOWN):
            return
        if status["unfinished"] or "unfinished" in status["unknown_fields"]:
            self.module.fail_json(
                msg="an upgrade is under way or unfinished on this host, so nothing was changed: wait for it, or "
                "finish it with `ovs-hotswap resume` or `ovs-hotswap rollback`",
                outcome="busy",
            )
        old = self.tool.ask("config", "check")["config"]
        moved = [key for key in ("state_dir", "run_dir") if old[key] != self.config[key]]
        running = [each["side"] for each in status["instances"] if each["state"] != "stopped"]
        if moved and running:
            self.module.fail_json(
                msg="{} cannot be changed while instance {} runs; nothing was changed (`ovs-hotswap status`)".format(
                    " and ".join(moved), " and ".join(running)
                ),
                outcome="busy",
            )

    def _beside(self, intent: str) -> str:
        """A copy of the configuration that names a copy of the overlay intent."""
        overlay = write(os.path.join(self.scratch, "overlay.toml"), intent)
        text, count = OVERLAY_KEY.subn(lambda _match: f'overlay = "{overlay}"', self.after, count=1)
        if not count:
            self.module.fail_json(msg="the configuration has no line `overlay = ...` of its own", outcome="failed")
        return write(os.path.join(self.scratch, "both.toml"), text)

    @property
    def changes(self) -> list[tuple[str, str | None, str]]:
        """Path, text before and text after of each file that is replaced; the one that the other names comes first."""
        both = [
            (self.overlay_path, self.overlay_before, self.overlay_after),
            (self.path, self.before, self.after),
        ]
        return [(path, before, after) for path, before, after in both if after is not None and before != after]

    def replace(self) -> bool:
        """Write what has changed, and set the attributes of both. Returns whether anything was, or in check mode would
        be, changed."""
        for path, _before, after in () if self.module.check_mode else self.changes:
            self.module.atomic_move(write(os.path.join(self.scratch, "new"), after), path)
        changed = bool(self.changes)
        for path in (self.overlay_path, self.path):
            if os.path.exists(path):
                arguments = self.module.load_file_common_arguments(self.module.params, path=path)
                changed = self.module.set_fs_attributes_if_different(arguments, changed)
        return changed


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            TOOL_ARGUMENTS,
            config_file=dict(type="path", default="/etc/ovs-hotswap/config.toml"),
            content=dict(type="str"),
            overlay=dict(type="str"),
            apply=dict(type="bool", default=False),
        ),
        add_file_common_args=True,
        supports_check_mode=True,
    )
    tool = Tool(module)
    files = Files(module, tool)
    files.refuse_if_in_use()
    diff = [
        {"before": before or "", "after": after, "before_header": path, "after_header": path}
        for path, before, after in files.changes
    ]
    result = {"config": files.config, "overlay": files.overlay}
    flows = {}
    if module.params["apply"]:
        flows = tool.ask("overlay", "apply", "--dry-run", config=files.candidate)["diff"]
    changed = files.replace()
    if module.params["apply"]:
        if not module.check_mode and (files.overlay_before != files.overlay_after or any(flows.values())):
            tool.ask("overlay", "apply")
        result["applied"] = flows
        changed = changed or any(flows.values())
        diff += [{"prepared": "\n".join(["instance " + side, *lines])} for side, lines in flows.items() if lines]
    result["differing"] = differing(tool.status()) if os.path.exists(files.path) else {"broker": [], "watch": []}
    module.exit_json(changed=changed, diff=diff, **result)


def differing(status: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {"broker": (status["broker"] or {}).get("differing", []), "watch": status["watch"]["differing"]}


if __name__ == "__main__":
    main()
