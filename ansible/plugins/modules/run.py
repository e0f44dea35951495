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
        which is named after the time and the release. If nothing was recorded in that run for seven days the module
        fails, because what it says of its hosts may no longer be so; its name continues it, another name begins a run.
      - A run of that name that has ended is continued too. Its hosts that failed are tried again, and what became of
        them before is moved to C(attempts). A host that was lost after its upgrade was begun is asked how it ended.
    type: str
  state:
    description:
      - V(open) begins or continues the run. It fails if another C(ansible-playbook) on this machine works on the run.
      - V(ended) records that it ended. A run without O(reasons) that has a host in the state V(running) stays open.
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
release:
  description: The release to which the run goes.
  returned: always
  type: str
directory:
  description: The directory of the run.
  returned: always
  type: str
continued:
  description: Whether the run was begun before.
  returned: always
  type: bool
canaries:
  description: Those of O(planned) that are canaries.
  returned: always
  type: list
  elements: str
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
from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils import control_node, run_state

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def place(params: dict[str, Any]) -> str:
    """The directory of the run."""
    runs = os.path.abspath(params["runs"])
    if params["id"]:
        return os.path.join(runs, params["id"])
    found = run_state.open_runs(runs, params["release"])
    stamp = run_state.now().replace("-", "").replace(":", "").partition(".")[0] + "Z"
    return found[-1] if found else os.path.join(runs, "{}-{}".format(stamp, params["release"]))


def reopen(directory: str, hosts: dict[str, dict[str, Any]]) -> None:
    """Keep what became of each host in ``attempts/N`` if it is tried again or looked at again, so that it no longer
    counts."""
    attempts = os.path.join(directory, "attempts")
    number = len(os.listdir(attempts)) + 1 if os.path.isdir(attempts) else 1
    for host, record in hosts.items():
        again = run_state.reopened(record)
        if again == record:
            continue
        path = run_state.host_file(directory, host)
        run_state.write(os.path.join(attempts, str(number), os.path.basename(path)), record)
        if again is None:
            os.unlink(path)
        else:
            run_state.write(path, again)


def lost(hosts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The hosts that were lost after their upgrade was begun."""
    return {name: record for name, record in hosts.items() if record.get("begun")}


def wanted(
    module: AnsibleModule, directory: str, before: dict[str, Any] | None, hosts: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The record of the run as it shall be. Fails if the run must not be continued."""
    params = module.params
    if before is not None and before["release"] != params["release"]:
        module.fail_json(
            msg="{} is a run to {}, not to {}".format(directory, before["release"], params["release"]), run=before
        )
    run = dict(before or {}, id=os.path.basename(directory), release=params["release"])
    run.setdefault("started", run_state.now())
    if params["state"] == "open":
        stale = before is not None and run_state.idle_s(before, hosts) > run_state.STALE_S
        if before is not None and stale and not params["id"]:
            module.fail_json(
                msg="the run {} has not ended, and nothing was recorded in it for seven days; give its name to continue"
                " it, or another name to begin a run (upgrade_run_id)".format(before["id"])
            )
        mine = control_node.process()
        other = (before or {}).get("process")
        if other is not None and other != mine and control_node.lives(other) and not module.check_mode:
            module.fail_json(
                msg="ansible-playbook with the process id {} works on the run {}; wait for it, or end it".format(
                    other["pid"], directory
                )
            )
        canaries = dict.fromkeys(params["canaries"], run_state.CANARY)
        run["hosts"] = dict(run.get("hosts", {}), **{name: canaries.get(name) for name in params["planned"]})
        run.update(ended=None, stopped=None, process=mine)
        if before is not None and (before.get("ended") or other != mine or stale):
            run["continued"] = run_state.now()
    elif before is not None:
        unknown = any(record["state"] == run_state.RUNNING for record in hosts.values())
        over = run_state.now() if params["reasons"] or not unknown else None
        run.update(ended=over, stopped="; ".join(params["reasons"]) or None, process=None)
    return run


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
    name = params["id"] or params["release"]
    if not NAME.fullmatch(name):
        module.fail_json(msg=f"{name!r} cannot name a run: letters, digits, '.', '_', '+', '-'")
    try:
        policy = run_state.limits(params["policy"])
        directory = place(params)
        before = run_state.read(run_state.run_file(directory))
        hosts = run_state.read_hosts(directory)
        run = wanted(module, directory, before, hosts)
        if params["state"] == "open":
            run["policy"] = policy
        if not module.check_mode:
            if params["state"] == "open" and before is not None:
                reopen(directory, hosts if before.get("ended") else lost(hosts))
            if run != before:
                run_state.write(run_state.run_file(directory), run)
        hosts = run_state.read_hosts(directory)
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    states: dict[str, int] = {}
    for record in hosts.values():
        states[record["state"]] = states.get(record["state"], 0) + 1
    module.exit_json(
        changed=run != before,
        id=run["id"],
        release=run["release"],
        directory=directory,
        continued=before is not None,
        canaries=[name for name in params["planned"] if run["hosts"][name] == run_state.CANARY],
        policy=run.get("policy", run_state.POLICY),
        states=states,
    )


if __name__ == "__main__":
    main()
