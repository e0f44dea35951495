#!/usr/bin/python
# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""Decides whether a run may continue."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: run_gate
short_description: Decide whether a run of upgrades over a fleet may continue
version_added: 1.0.0
description:
  - Compares what became of all hosts of the run so far, not only of the last wave, with the thresholds of the run.
  - A host counts as failed if it was rolled back, failed in any other way, or could not be reached. A host that was
    upgraded counts as unhealthy if its standby was not restored, a VM was without a switch for too long, frames were
    lost, or the check afterwards found an error.
  - This module runs on the control node, with C(delegate_to=localhost) and C(run_once=true). It decides and does not
    fail.
options:
  directory:
    description:
      - The directory of the run.
    type: path
    required: true
  policy:
    description:
      - The thresholds. C(max_failed_canaries), which holds for canaries that are unhealthy as well.
        C(max_failed_hosts) and C(max_failed_percent) of the hosts that were begun.
        C(max_unhealthy_hosts). C(max_gap_us), the microseconds that a VM may be without a switch (V(10000)), or null
        for any. C(max_lost), the frames that one host may report as lost. C(max_check_errors) of one host.
        C(min_canaries) that must be upgraded before the waves.
      - If it is not given, the policy that C(run.json) has is in force.
    type: dict
  batch:
    description:
      - The hosts of the wave that is about to begin. If it is given, enough canaries must have been upgraded, and it
        must be known what became of every host of the waves before.
    type: list
    elements: str
  ended:
    description:
      - The hosts of the wave that has ended. It must be known what became of each of them, and how those are that run
        the release.
    type: list
    elements: str
    default: []
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
- name: Decide whether the next wave may begin
  ovs_hotswap.ovs_hotswap.run_gate:
    directory: "{{ run.directory }}"
  delegate_to: localhost
  run_once: true
  register: gate

- name: Stop here
  ansible.builtin.assert:
    that: not gate.stop
    fail_msg: "{{ gate.reasons | join('; ') }}"
"""

RETURN = r"""
stop:
  description: Whether the run must stop.
  returned: always
  type: bool
reasons:
  description: Why it must stop.
  returned: always
  type: list
  elements: str
wave:
  description: The number of the wave that is about to begin.
  returned: if O(batch) is given
  type: int
paused:
  description: Whether there is a file C(pause) in the directory of the run.
  returned: always
  type: bool
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils import run_state


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            directory=dict(type="path", required=True),
            policy=dict(type="dict"),
            batch=dict(type="list", elements="str"),
            ended=dict(type="list", elements="str", default=[]),
        ),
        supports_check_mode=True,
    )
    directory, batch = module.params["directory"], module.params["batch"]
    try:
        run = run_state.read(run_state.run_file(directory))
        if run is None and not module.check_mode:
            raise ValueError(f"{directory} has no run.json")
        run = run or {}
        policy = run_state.limits(module.params["policy"] or run.get("policy", {}))
        hosts = run_state.read_hosts(directory)
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"the run cannot be judged, so it must not continue: {error}")
    wave = None if batch is None else run_state.next_wave(hosts, batch)
    act = not module.check_mode  # in check mode no host leaves a record
    reasons = run_state.judge(
        hosts,
        policy,
        waves_begin=act and batch is not None,
        ended=module.params["ended"] if act else (),
        begins=wave if act else None,
        batch=batch or (),
    )
    result = {"stop": bool(reasons), "reasons": reasons, "paused": os.path.exists(os.path.join(directory, "pause"))}
    if batch is not None:
        result["wave"] = wave
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
