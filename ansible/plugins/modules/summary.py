#!/usr/bin/python
# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""Sums up a run over a fleet."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: summary
short_description: Sum up a run over a fleet as text, JSON and HTML
version_added: 1.0.0
description:
  - Reads the record of a run and the documents of its hosts from a directory, and writes C(summary.txt),
    C(summary.json) and C(summary.html) to it. A file is written only if its content changes.
  - The page is one file that loads nothing. It can be attached to a ticket.
  - The module runs on the control node, where the directory is. It asks no host.
  - A figure that no document holds is absent from the summary. Lost frames are those that the hosts' own reports name.
author:
  - The authors of ovs-hotswap (@ovs-hotswap)
options:
  directory:
    description:
      - The directory of the run. It has a file C(run.json), and a file C(hosts/NAME.json) for each host that was begun.
    type: path
    required: true
  final:
    description:
      - Whether the run is over. A host that was planned and not begun is then counted against the run. In the summary
        of a run that is under way such a host is waiting.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reports what would change and writes nothing.
    support: full
  diff_mode:
    description: Shows the difference of C(summary.txt).
    support: full
requirements:
  - jinja2, which ansible-core brings
seealso:
  - module: ovs_hotswap.ovs_hotswap.upgrade
"""

EXAMPLES = r"""
- name: Sum up the wave
  ovs_hotswap.ovs_hotswap.summary:
    directory: "{{ run_directory }}"
  delegate_to: localhost
  run_once: true

- name: Sum up the whole run
  ovs_hotswap.ovs_hotswap.summary:
    directory: "{{ run_directory }}"
    final: true
  delegate_to: localhost
  run_once: true
  register: run

- name: Show the headline
  ansible.builtin.debug:
    msg: "{{ run.totals.headline }}: {{ run.files.html }}"
"""

RETURN = r"""
totals:
  description:
    - The document of C(summary.json), without the list of all hosts.
    - C(verdict) is V(running), V(stopped), V(incomplete), V(attention) or V(complete).
  returned: always
  type: dict
  sample:
    verdict: complete
    headline: "Complete: all 6 hosts run trixie"
    states: {upgraded: 6}
    moves: 240
    worst_us: 203.4
    worst_vm: web1
    worst_host: hv3
    lost: 0
    problems: []
files:
  description: The paths of the three files, by their kind.
  returned: always
  type: dict
  sample: {text: /var/runs/1/summary.txt, json: /var/runs/1/summary.json, html: /var/runs/1/summary.html}
text:
  description: The content of C(summary.txt).
  returned: always
  type: str
"""

import json
import os
import tempfile
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.ovs_hotswap.ovs_hotswap.plugins.module_utils import summary, summary_page, summary_text

NAMES = {"text": "summary.txt", "json": "summary.json", "html": "summary.html"}


def read_json(path: str) -> dict[str, Any]:
    """Raises OSError and ValueError."""
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found


def read_hosts(directory: str, release: str) -> Iterator[summary.Host]:
    folder = os.path.join(directory, "hosts")
    for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        name, extension = os.path.splitext(entry)
        if extension != ".json" or entry.startswith("."):
            continue
        try:
            yield summary.host(read_json(os.path.join(folder, entry)), release, name)
        except (OSError, ValueError) as error:
            yield summary.unreadable(unquote(name), str(error))


def contents(totals: summary.Totals) -> dict[str, str]:
    document = json.dumps(summary_text.document(totals), indent=2, sort_keys=True) + "\n"
    made = {"text": summary_text.text(totals), "json": document, "html": summary_page.page(totals)}
    # JSON can hold half a surrogate pair, which no file can.
    return {kind: content.encode("utf-8", "replace").decode("utf-8") for kind, content in made.items()}


def present(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def write(module: AnsibleModule, path: str, content: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)
    os.chmod(temporary, 0o644)
    module.atomic_move(temporary, path)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "final": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    if not summary_page.HAS_JINJA2:
        module.fail_json(msg=missing_required_lib("jinja2"), exception=summary_page.JINJA2_ERROR)
    directory = module.params["directory"]
    try:
        run = read_json(os.path.join(directory, "run.json"))
        hosts = list(read_hosts(directory, str(run.get("release") or "?")))
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"{directory} has no record of a run: {error}", exception=traceback.format_exc())
    totals = summary.totals(run, hosts, module.params["final"])
    paths = {kind: os.path.join(directory, name) for kind, name in NAMES.items()}
    new = contents(totals)
    old = {kind: present(path) for kind, path in paths.items()}
    changed = [kind for kind in NAMES if old[kind] != new[kind]]
    if not module.check_mode:
        for kind in changed:
            write(module, paths[kind], new[kind])
    document = summary_text.document(totals)
    document.pop("hosts")
    module.exit_json(
        changed=bool(changed),
        totals=document,
        files=paths,
        text=new["text"],
        diff={"before": old["text"] or "", "after": new["text"], "before_header": paths["text"],
              "after_header": paths["text"]},
    )  # fmt: skip


if __name__ == "__main__":
    main()
