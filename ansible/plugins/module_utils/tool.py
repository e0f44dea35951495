# Copyright: The authors of ovs-hotswap
# SPDX-License-Identifier: Apache-2.0
"""Runs the program ``ovs-hotswap --json`` and reads the document that it prints."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

TOOL_ARGUMENTS = {
    "program": {"type": "str", "default": "ovs-hotswap"},
}
FILE_ARGUMENTS = {
    "config_file": {"type": "path"},
}

PRECHECK_FAILED, ROLLED_BACK, STATE_UNKNOWN, BUSY, UNFINISHED = 4, 5, 6, 10, 15
OUTCOMES = {
    PRECHECK_FAILED: "precheck_failed",
    ROLLED_BACK: "rolled_back",
    STATE_UNKNOWN: "unknown",
    BUSY: "busy",
    UNFINISHED: "unfinished",
}
"""What an exit code says about the host. Any other one is ``failed``."""
MEANINGS = {
    PRECHECK_FAILED: "a precheck refuses, and nothing was changed",
    ROLLED_BACK: "the upgrade failed and was put back",
    STATE_UNKNOWN: "a state could not be proven",
    BUSY: "other work on the instances is under way or unfinished",
    UNFINISHED: "the upgrade was committed, but a later step failed",
}
HINTS = {
    PRECHECK_FAILED: "`ovs-hotswap check --release NAME` shows all findings",
    ROLLED_BACK: "remove the cause, then upgrade again",
    STATE_UNKNOWN: "`ovs-hotswap status` and `ovs-hotswap vm list` show what is known",
    BUSY: "`ovs-hotswap status`; wait, or `ovs-hotswap resume` or `ovs-hotswap rollback`",
    UNFINISHED: "remove the cause, then `ovs-hotswap resume`",
}

KILLED = "`ovs-hotswap status` shows an unfinished upgrade, `ovs-hotswap resume` or `ovs-hotswap rollback` ends it"


def message(code: int, document: Mapping[str, Any], text: str = "") -> str:
    """One line about a failed command: what its exit code means, the program's own words, and the command that helps.

    ``text`` is what the program printed if that was no document."""
    error = document.get("error") or {}
    ended = f"exit code {code}" if code >= 0 else f"the program was killed by signal {-code}"
    words = error.get("message") or refused(document) or text.strip() or ended
    hint = error.get("hint") or HINTS.get(code) or (KILLED if code < 0 else None)
    meaning = MEANINGS.get(code)
    line = f"{meaning}: {words}" if meaning else words
    return f"{line} ({hint})" if hint else line


def refused(document: Mapping[str, Any]) -> str:
    """The errors among the findings of a check, each with its hint; empty if there is none."""
    errors = [each for each in document.get("findings") or [] if each.get("severity") == "error"]
    return "; ".join(
        "{}: {}".format(each["text"], each["hint"]) if each.get("hint") else each["text"] for each in errors
    )


class Tool:
    """The program on this host, for one module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        wanted = module.params["program"]
        self._program = module.get_bin_path(wanted)
        if self._program is None:
            module.fail_json(
                msg=f"{wanted} is not installed on this host (the role ovs_hotswap.ovs_hotswap.host installs it)",
                outcome="failed",
            )

    def ask(self, *words: str, codes: Collection[int] = (0,), config: str | None = None) -> dict[str, Any]:
        """Run a command and return its document. ``codes``: exit codes with which it prints its own document; with any
        other one, or with a document of an error, the module fails. ``config``: a configuration file in place of the
        module's."""
        code, document, text = self.run(*words, config=config)
        if code not in codes or "error" in document:
            self.fail(words, code, document, text)
        return document

    def run(self, *words: str, config: str | None = None) -> tuple[int, dict[str, Any], str]:
        """Run a command. Returns its exit code, its document (empty if it printed none), and what it printed."""
        argv = [self._program]
        file = config or self.module.params.get("config_file")
        if file:
            argv += ["--config", file]
        code, out, err = self.module.run_command([*argv, "--json", *list(words)])
        try:
            document = json.loads(out)
        except ValueError:
            document = {}
        if not isinstance(document, dict):
            document = {}
        if code == 0 and not document:
            self.module.fail_json(
                msg="`{}` printed no JSON document: {}".format(" ".join(words), (out + err).strip()[:1000]), rc=code
            )
        return code, document, err or out

    def fail(self, words: Sequence[str], code: int, document: Mapping[str, Any], text: str = "") -> None:
        """End the module with what the program has said. It does not return."""
        error = document.get("error") or {}
        self.module.fail_json(
            msg=message(code, document, text),
            rc=code,
            outcome=OUTCOMES.get(code, "failed"),
            error=error,
            hint=error.get("hint") or HINTS.get(code),
            document=document,
            command=" ".join(words),
        )

    def status(self) -> dict[str, Any]:
        """The document of `status`, also if something on the host is unknown."""
        return self.ask("status", codes=(0, STATE_UNKNOWN))


def running_release(status: Mapping[str, Any]) -> str | None:
    """The name of the release that the active instance runs; ``None`` if that is not known."""
    for each in status["instances"]:
        if each["side"] == status["active"] and each.get("release"):
            return each["release"]["name"]
    return None


def difference(before: tuple[str | None, str | None], after: tuple[str | None, str | None]) -> dict[str, str]:
    """What ``--diff`` shows of an upgrade: the active instance and its release, before and after."""
    return {
        "before": "active instance {}, release {}\n".format(*before),
        "after": "active instance {}, release {}\n".format(*after),
    }
