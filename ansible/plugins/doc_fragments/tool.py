# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""What the modules that run the program have in common."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  program:
    description:
      - The program C(ovs-hotswap) on the host, as a name that is looked for in C(PATH) or as an absolute path.
    type: str
    default: ovs-hotswap
requirements:
  - ovs-hotswap on the host
notes:
  - The module runs C(ovs-hotswap --json) and nothing else. It needs root, as the program does.
  - The exit codes of the program, which the module returns as RV(ignore:rc) when it fails, are in the help of
    C(ovs-hotswap) and in its manual for operations, with what to do after each.
"""

    FILE = r"""
options:
  config_file:
    description:
      - The configuration file on the host. The program's own default is C(/etc/ovs-hotswap/config.toml).
    type: path
"""
