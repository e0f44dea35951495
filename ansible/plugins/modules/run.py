#!/usr/bin/python
# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""Begins, continues or ends a run over a fleet."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: run
short_description: Begin, continue or end a run of upgrades over a fleet
version_added: 1.0.0
description:
  - The state of a run is a directory on the control node with C(run.json) and, for each host, C(hosts/NAME.json). The
    playbooks of this collection write it as the hosts end, so that a control node that is killed loses nothing.
  - This module runs on the control node, with C(delegate_to=localhost) and C(run_once=true).
options:
  runs:
    description:
      - The directory of all runs on the control node.
    type: path
    required: true
  release:
    description:
      - The release to which the run goes.
    type: str
    required: true
  id:
    description:
      - The name of the run, which is the name of its directory below O(runs).
      - If it is not given, the newest run to O(release) that has not ended is continued. Without one a run begins,
        which is named after the time and the release.
      - A run of that name that has ended is continued too. Its hosts that failed are tried again, and what became of
        them before is moved to C(attempts).
    type: str
  state:
    description:
      - V(open) begins or continues the run. V(ended) records that it ended.
    type: str
    choices: [open, ended]
    default: open
  reasons:
    description:
      - Why the run was stopped, for O(state=ended). Without a reason it has finished.
    type: list
    elements: str
    default: []
  policy:
    description:
      - The thresholds of the run, as M(ovs_hotswap.ovs_hotswap.run_gate) has them. What is not given has its default.
    type: dict
    default: {}
  planned:
    description:
      - The names of the hosts that the run is for.
    type: list
    elements: str
    default: []
  canaries:
    description:
      - Those of O(planned) that are canaries.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Returns the directory that the run would have, and makes none.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
author:
  - The authors of ovs-hotswap (@ovs-hotswap)
"""

EXAMPLES = r"""
- name: Begin a run, or continue the one that was interrupted
  ovs_hotswap.ovs_hotswap.run:
    runs: ./ovs-hotswap-runs
    release: trixie
    policy:
      max_failed_hosts: 2
  delegate_to: localhost
  run_once: true
  register: run
"""

RETURN = r"""
id:
  description: The name of the run.
  returned: always
  type: str
  sample: 20261129T064500Z-trixie
directory:
  description: The directory of the run.
  returned: always
  type: str
continued:
  description: Whether the run was begun before.
  returned: always
  type: bool
policy:
  description: The thresholds of the run.
  returned: always
  type: dict
states:
  description: For each state how many hosts are in it.
  returned: always
  type: dict
  sample: {"upgraded": 3, "rolled_back": 1}
"""

import os
import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils import run_state

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def place(params: dict[str, Any]) -> str:
    """The directory of the run."""
    runs = os.path.abspath(params["runs"])
    if params["id"]:
        return os.path.join(runs, params["id"])
    found = run_state.open_runs(runs, params["release"])
    stamp = run_state.now().replace("-", "").replace(":", "").partition(".")[0] + "Z"
    return found[-1] if found else os.path.join(runs, "{}-{}".format(stamp, params["release"]))


def set_aside(directory: str) -> None:
    """Move what became of the hosts that failed to ``attempts/N``, so that they are tried again and do not count."""
    attempts = os.path.join(directory, "attempts")
    number = len(os.listdir(attempts)) + 1 if os.path.isdir(attempts) else 1
    for host, record in run_state.read_hosts(directory).items():
        if record["state"] in run_state.LEFT_OUT or record.get("reason"):
            into = os.path.join(attempts, str(number))
            os.makedirs(into, exist_ok=True)
            path = run_state.host_file(directory, host)
            os.replace(path, os.path.join(into, os.path.basename(path)))


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            runs=dict(type="path", required=True),
            release=dict(type="str", required=True),
            id=dict(type="str"),
            state=dict(type="str", choices=["open", "ended"], default="open"),
            reasons=dict(type="list", elements="str", default=[]),
            policy=dict(type="dict", default={}),
            planned=dict(type="list", elements="str", default=[]),
            canaries=dict(type="list", elements="str", default=[]),
        ),
        supports_check_mode=True,
    )
    params = module.params
    if params["id"] and not NAME.fullmatch(params["id"]):
        module.fail_json(msg="{!r} cannot name a run: letters, digits, '.', '_', '+', '-'".format(params["id"]))
    unknown = sorted(set(params["policy"]) - set(run_state.POLICY))
    if unknown:
        module.fail_json(
            msg="the policy has no {}; there are {}".format(", ".join(unknown), ", ".join(run_state.POLICY))
        )
    directory = place(params)
    before = run_state.read(run_state.run_file(directory))
    if before is not None and before["release"] != params["release"]:
        module.fail_json(
            msg="{} is a run to {}, not to {}".format(directory, before["release"], params["release"]), run=before
        )
    run = dict(before or {}, id=os.path.basename(directory), release=params["release"])
    run.setdefault("started", run_state.now())
    if params["state"] == "open":
        run["policy"] = dict(run_state.POLICY, **params["policy"])
        canaries = dict.fromkeys(params["canaries"], run_state.CANARY)
        run["hosts"] = dict(run.get("hosts", {}), **{name: canaries.get(name) for name in params["planned"]})
        again = bool(run.get("ended"))
        run.update(ended=None, stopped=None)
        if again and not module.check_mode:
            set_aside(directory)
    elif before is not None:
        run.update(ended=run_state.now(), stopped="; ".join(params["reasons"]) or None)
    if not module.check_mode and run != before:
        run_state.write(run_state.run_file(directory), run)
    states: dict[str, int] = {}
    for record in run_state.read_hosts(directory).values():
        states[record["state"]] = states.get(record["state"], 0) + 1
    module.exit_json(
        changed=run != before,
        id=run["id"],
        directory=directory,
        continued=before is not None,
        policy=run.get("policy", run_state.POLICY),
        states=states,
    )


if __name__ == "__main__":
    main()
