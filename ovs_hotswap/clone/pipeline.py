"""One bridge's pipeline, read and written with ovs-ofctl over the bridge's management socket.

That socket obeys ``protocols`` of the bridge as a controller's connection does, so the version of OpenFlow is
negotiated: the highest that both have. The new side has the versions that are needed in addition (``changes``). Both
sides are read in the active's version, so that equal things look equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ovs_hotswap.clone import dumps
from ovs_hotswap.clone.compare import Commands
from ovs_hotswap.clone.dumps import Flow, Key, Pipeline
from ovs_hotswap.errors import CommandError, SwitchError
from ovs_hotswap.switch.paths import InstancePaths
from ovs_hotswap.switch.rpc import quick_call
from ovs_hotswap.system import System

_VERSIONS = tuple(range(10, 16))
_METERS, _TABLES = 13, 14  # versions of OpenFlow that first have them
_TRIES = 5  # of reading a bridge whose groups and meters change all the time
_NO_VERSION = "version negotiation failed"  # lib/vconn.c, vcs_recv_hello


class BridgePipeline:
    """The pipeline of one bridge of the instance with these ``paths``. ``timeout`` is in seconds, and grows by one
    second for each thousand lines that are sent. Every method raises SwitchError."""

    def __init__(self, system: System, paths: InstancePaths, bridge: str, *, timeout: float = 10.0) -> None:
        self._system = system
        self.bridge = bridge
        self._target = f"unix:{paths.mgmt(bridge).absolute()}"
        self._control = paths.vswitchd_ctl
        self._timeout = timeout

    def read(self, version: int | None = None, ours: Callable[[int], bool] = dumps.is_ours) -> Pipeline:
        """Return the pipeline without the flows that are ``ours``, read in ``version`` of OpenFlow, or the highest.

        A dump of flows is of one moment: ovs-vswitchd collects them under one lock (ofproto/ofproto.c,
        handle_flow_stats_request). Groups, meters and tunnel options are read before and after it, and again if they
        have changed.
        """
        versions = _VERSIONS if version is None else (version,)
        around = self._around(versions)
        for _ in range(_TRIES):
            flows = self._run("dump-flows", options=("--no-names",), versions=versions)
            before, around = around, self._around(versions)
            if before == around:
                break
        else:
            raise SwitchError(f"{self._target}: its groups or meters changed each time that they were read",
                              hint="pause the controller, or try again")  # fmt: skip
        found = dumps.parse_version(flows)
        try:
            return Pipeline(
                version=found,
                tlvs=dumps.parse_tlvs(around[0]),
                groups=dumps.parse_groups(around[1]),
                meters=dumps.parse_meters(around[2]),
                flows=self._as_held(dumps.parse_flows(flows, ours), found),
                ports=dumps.parse_ports(self._ports(("dump-ports-desc",), versions)),
                tables=dumps.parse_tables(self._run("dump-table-desc", versions=versions) if found >= _TABLES else ""),
                fragments=self._run("get-frags", versions=versions).strip(),
            )
        except ValueError as error:
            raise SwitchError(f"{self._target}: {error}",
                              hint="use the ovs-ofctl of a release that knows it") from error  # fmt: skip

    def send(self, commands: Commands) -> None:
        """Carry out commands. The bundle is done as a whole or not at all."""
        for command, *arguments in commands.before:
            self._run(command, *arguments)
        if commands.bundle:
            self._run("bundle", "-", stdin=_lines(commands.bundle))
        if commands.legacy:
            self._run("add-flows", "-", stdin=_lines(commands.legacy), versions=(10,))
        for command, *arguments in commands.after:
            if command == "mod-port":
                self._ports((command, *arguments), _VERSIONS)
            else:
                self._run(command, *arguments)

    def _as_held(self, flows: Mapping[Key, Flow], version: int) -> Mapping[Key, Flow]:
        """Return flows with the actions that the switch holds, where the version they were read in cannot show them."""
        if version == 10 or not any(map(dumps.maybe_legacy, flows.values())):
            return flows
        held = quick_call(self._control, "bridge/dump-flows", [self.bridge], timeout=self._timeout)
        return dumps.as_held(flows, dumps.parse_internal(str(held)))

    def _around(self, versions: Sequence[int]) -> tuple[str, str, str]:
        groups = self._run("dump-groups", options=("--no-names",), versions=versions)
        meters = self._run("dump-meters", versions=versions) if dumps.parse_version(groups) >= _METERS else ""
        tlvs = self._run("dump-tlv-map", versions=versions)
        return tlvs, _without_id(groups), _without_id(meters)

    def _ports(self, command: tuple[str, ...], versions: Sequence[int]) -> str:
        """Carry out a command about ports in OpenFlow 1.0 if the bridge allows it: only there a port has the flags for
        floods and spanning tree (lib/ofp-port.c, OFPPC10_*)."""
        try:
            return self._run(command[0], *command[1:], options=("--no-names",), versions=(10,))
        except SwitchError as error:
            if _NO_VERSION not in error.message:
                raise
        return self._run(command[0], *command[1:], options=("--no-names",), versions=versions)

    def _run(
        self,
        command: str,
        *arguments: str,
        options: tuple[str, ...] = (),
        stdin: str | None = None,
        versions: Sequence[int] = _VERSIONS,
    ) -> str:
        allowed = ",".join(f"OpenFlow{version}" for version in versions)
        argv = ["ovs-ofctl", "-O", allowed, *options, command, self._target, *arguments]
        try:
            timeout = self._timeout + (0 if stdin is None else stdin.count("\n") // 1000)
            done = self._system.run(argv, timeout=timeout, check=False, stdin=stdin)
        except CommandError as error:
            raise SwitchError(error.message, hint=error.hint) from error
        if done.status != 0:
            output = (done.stderr or done.stdout).strip().splitlines()
            raise SwitchError(
                f"ovs-ofctl {command} {self._target}: {'; '.join(output[:3]) or f'exit {done.status}'}",
                hint="see whether the instance runs: `ovs-hotswap instance list`",
            )
        return done.stdout


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _without_id(reply: str) -> str:
    """Return a reply without its first line, in which the transaction id differs each time."""
    return reply.partition("\n")[2]
