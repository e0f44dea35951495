#!/usr/bin/python
# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""Records what became of a host in a run."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: run_host
short_description: Record, or read, what became of a host in a run of upgrades
version_added: 1.0.0
description:
  - Writes C(hosts/NAME.json) in the directory of a run, in one act. Without O(state) and O(result) it only reads it.
  - This module runs on the control node, with C(delegate_to=localhost).
options:
  directory:
    description:
      - The directory of the run, as M(ovs_hotswap.ovs_hotswap.run) returns it.
    type: path
    required: true
  host:
    description:
      - The name of the host in the inventory.
    type: str
    required: true
  wave:
    description:
      - V(canary), or the number of the wave.
    type: raw
  state:
    description:
      - What became of the host.
    type: str
    choices: [upgraded, unchanged, rolled_back, failed, unreachable, skipped, running]
  result:
    description:
      - The result of a task that failed, from which state, reason and report follow.
    type: dict
  unreachable:
    description:
      - Whether the host could not be reached, with O(result).
    type: bool
    default: false
  status:
    description:
      - The document of C(status) of a host in the state V(running), whose task was lost. What became of its upgrade to
        O(release) follows from its journal.
    type: dict
  release:
    description:
      - The release to which the host was to go, with O(status). If it is given, an upgrade to another release is not
        taken for the one of this run.
    type: str
  reason:
    description:
      - Why the host failed, or what is wrong with it although it was upgraded.
    type: str
  report:
    description:
      - The document of the upgrade, or of its error.
    type: dict
  check:
    description:
      - The document of the check.
    type: dict
  watch:
    description:
      - The document of C(watch status) afterwards.
    type: dict
  soaked:
    description:
      - Record that the soak of the host has ended now, so that a run that is continued does not repeat it.
    type: bool
    default: false
  baseline:
    description:
      - The newest ended upgrade of the host before this one began.
    type: dict
  job:
    description:
      - The name of the asynchronous task that does the upgrade on the host.
    type: str
attributes:
  check_mode:
    description: Returns what would be recorded, and records nothing.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
author:
  - The authors of ovs-hotswap (@ovs-hotswap)
"""

EXAMPLES = r"""
- name: Record that the upgrade of this host begins
  ovs_hotswap.ovs_hotswap.run_host:
    directory: "{{ run.directory }}"
    host: "{{ inventory_hostname }}"
    wave: canary
    state: running
  delegate_to: localhost
"""

RETURN = r"""
record:
  description: What the file has now. It is null if there is no file and nothing is to be recorded.
  returned: always
  type: dict
  sample: {"host": "hv12", "wave": 2, "state": "upgraded", "reason": null}
done:
  description: Whether the host was upgraded in this run, or needed no upgrade.
  returned: always
  type: bool
settled:
  description: Whether all is known that a run must know of the host, or the host is left out.
  returned: always
  type: bool
left_out:
  description: Whether the host failed, so that the rest of the run leaves it out.
  returned: always
  type: bool
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils import run_state

GIVEN = ("wave", "state", "reason", "report", "check", "watch", "baseline", "job")


def changes(params: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The fields that are to be recorded."""
    fields = {name: params[name] for name in GIVEN if params[name] is not None}
    if isinstance(fields.get("wave"), str) and fields["wave"].isdigit():
        fields["wave"] = int(fields["wave"])
    result = params["result"]
    if result is not None:
        state, fields["reason"] = run_state.classify(result, params["unreachable"])
        if result.get("watch"):
            fields["watch"] = result["watch"]
        if before.get("state") in run_state.LEFT_OUT:  # how the upgrade ended is known already
            return {}
        if before.get("state") not in run_state.DONE:  # else the upgrade is done, and something after it failed
            fields["state"] = state
            fields["report"] = result.get("document")
            if before.get("state") == run_state.RUNNING and state == run_state.UNREACHABLE:
                fields["begun"] = True
    elif params["status"] is not None:
        ended, reason, report = run_state.outcome_since(before.get("baseline"), params["status"], params["release"])
        if ended is not None:
            fields.update(state=ended, reason=reason, report=report)
            if params["status"]["unfinished"]:
                fields["begun"] = True
    if params["soaked"]:
        fields["soaked"] = run_state.now()
    return fields


def merged(before: dict[str, Any], fields: dict[str, Any], host: str) -> dict[str, Any]:
    record = dict.fromkeys(run_state.FIELDS)
    record.update(before)
    record["host"] = host
    if fields.get("state") == run_state.RUNNING:
        record.update(dict.fromkeys(run_state.FIELDS[4:]), host=host, started=run_state.now())
    record.update(fields)
    if record["started"] is None:
        record["started"] = run_state.now()
    if fields.get("state") not in (None, run_state.RUNNING):
        record["ended"] = run_state.now()
    return record


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            directory=dict(type="path", required=True),
            host=dict(type="str", required=True),
            wave=dict(type="raw"),
            state=dict(type="str", choices=list(run_state.STATES)),
            result=dict(type="dict"),
            unreachable=dict(type="bool", default=False),
            status=dict(type="dict"),
            reason=dict(type="str"),
            report=dict(type="dict"),
            check=dict(type="dict"),
            watch=dict(type="dict"),
            soaked=dict(type="bool", default=False),
            baseline=dict(type="dict"),
            job=dict(type="str"),
            release=dict(type="str"),
        ),
        mutually_exclusive=[("state", "result", "status")],
        supports_check_mode=True,
    )
    params = module.params
    path = run_state.host_file(params["directory"], params["host"])
    try:
        before = run_state.read(path)
        fields = changes(params, before or {})
        record = merged(before or {}, fields, params["host"]) if fields else before
        if record is not None and record != before and not module.check_mode:
            run_state.write(path, record)
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"the record of the host cannot be read or written: {error}")
    state = (record or {}).get("state")
    module.exit_json(
        changed=record != before,
        record=record,
        done=state in run_state.DONE,
        left_out=state in run_state.LEFT_OUT,
        settled=run_state.settled(record),
    )


if __name__ == "__main__":
    main()
