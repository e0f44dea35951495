from __future__ import annotations

import ast
import errno
import io
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from pyroute2.netlink.exceptions import NetlinkError

from ovs_hotswap import __version__
from ovs_hotswap.backends import BackendMode
from ovs_hotswap.cli import main
from ovs_hotswap.cli.app import App, Command
from ovs_hotswap.cli.config_cmd import EXAMPLE
from ovs_hotswap.cli.lab_cmd import back_end_mode
from ovs_hotswap.cli.output import Output
from ovs_hotswap.cli.overlay_cmd import EXAMPLE as OVERLAY_EXAMPLE
from ovs_hotswap.errors import ConfigError, HostError, HotswapError, PrecheckFailed, RolledBack
from ovs_hotswap.model import Finding, Severity, Side
from ovs_hotswap.plan.executor import Event, EventKind
from ovs_hotswap.process_exit import start_time
from tests.support.shortage import fill_pipe
from tests.unit.fake_system import FakeSystem

OLD = "road"  # the earlier name of the back-end mode


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Shell:
    """Runs command lines in this process with a configuration of its own."""

    def __init__(self, directory: Path) -> None:
        self.overlay = directory / "overlay.toml"
        self.overlay.write_text(OVERLAY_EXAMPLE)
        self.config = directory / "config.toml"
        self.config.write_text(
            f'state_dir = "{directory}/state"\nrun_dir = "{directory}/run"\n'
            + EXAMPLE.replace("/etc/ovs-hotswap/overlay.toml", str(self.overlay))
        )
        self.out, self.err = io.StringIO(), io.StringIO()

    def __call__(self, *arguments: str) -> int:
        self.out, self.err = io.StringIO(), io.StringIO()
        return main.run(["--config", str(self.config), *arguments], App(Output(out=self.out, err=self.err)))

    @property
    def document(self) -> Any:
        assert self.err.getvalue() == ""
        return json.loads(self.out.getvalue())


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.delenv("OVS_HOTSWAP_CONFIG", raising=False)
    return Shell(tmp_path)


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from walk(inner, (*path, name))


def leaves(name: str) -> dict[tuple[str, ...], click.Command]:
    tree = dict(walk(main.COMMANDS[name].load(), (name,)))
    return {path: command for path, command in tree.items() if not isinstance(command, click.Group)}


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_shows_an_example_of_itself(name: str, shell: Shell, capsys: Any) -> None:
    for path in leaves(name):
        assert shell(*path, "--help") == 0
        text = capsys.readouterr().out
        example = text.partition("Example:\n")[2]
        assert re.search(rf"^    ovs-hotswap (--\S+ (\S+ )?)*{' '.join(path)}\b", example, re.MULTILINE), text


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_the_common_options_and_documents_its_json(name: str) -> None:
    for path, command in leaves(name).items():
        assert isinstance(command, Command), path
        assert "With --json" in (command.help or ""), path


def spoken(path: Path) -> Iterator[str]:
    """The commands in the messages and hints of a module; what is filled in is ``x``."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings name commands only
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(each.value) if isinstance(each, ast.Constant) else "x" for each in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (prose | parts):
            text = node.value
        yield from re.findall("`(ovs-hotswap [^`]*)`", text)


def wrong(words: list[str]) -> str:
    """Why a command line is wrong; empty if it is not. A placeholder may stand for a value."""
    if words[0] == "--host":
        words = words[2:]
    name, *rest = [word for word in words if word != "--json"]
    if name == "--help":
        return ""
    if name not in main.COMMANDS:
        return f"no command {name}"
    command = main.COMMANDS[name].load()
    while isinstance(command, click.Group) and rest:
        inner = command.get_command(click.Context(command), rest.pop(0))
        if inner is None:
            return f"no such command: {words}"
        command = inner
    try:
        if not isinstance(command, click.Group) and "--help" not in rest:
            command.make_context("", list(rest))
    except (click.MissingParameter, click.NoSuchOption) as error:
        return error.format_message()
    except click.UsageError:
        return ""  # a value that a placeholder stands for
    return ""


def test_commands_in_messages_and_hints_are_complete() -> None:
    """A command that the reader cannot type as it is sends a person who is paged to the manual."""
    found = {
        f"{path.name}: {command}: {fault}"
        for path in Path(main.__file__).parents[1].rglob("*.py")
        for command in spoken(path)
        if (fault := wrong(command.split()[1:]))
    }
    assert found == set()


@pytest.mark.parametrize("command", ["upgrade", "overlay diff", "vm shows x", "nothing", "upgrade --relaese x"])
def test_a_command_that_is_not_complete_is_seen(command: str) -> None:
    assert wrong(command.split())


def test_help_gives_each_command_one_line(shell: Shell, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert shell("--help") == 0
    text = capsys.readouterr().out
    for name, lazy in main.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(lazy.help)}$", text, re.MULTILINE), name


@pytest.mark.parametrize("name", [name for name, lazy in main.COMMANDS.items() if isinstance(lazy.load(), click.Group)])
def test_the_help_of_a_group_gives_each_command_one_whole_line(
    name: str, shell: Shell, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert shell(name, "--help") == 0
    lines = capsys.readouterr().out.partition("\nCommands:\n")[2].splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"  [a-z-]+ +[A-Z].*[^.]\.", line), line


def test_what_is_not_for_people_is_not_listed_and_works(shell: Shell, capsys: Any) -> None:
    for group, name in (("instance", "bring-up"), ("instance", "mend"), ("broker", "supervise")):
        assert shell(group, "--help") == 0
        assert f"\n  {name} " not in capsys.readouterr().out
        assert shell(group, name, "--help") == 0
        capsys.readouterr()


def test_help_lists_commands_by_what_they_are_for(shell: Shell, capsys: Any) -> None:
    assert shell("--help") == 0
    text = capsys.readouterr().out
    places = [
        text.index(f"\n{section}:\n") for section in dict.fromkeys(each.section for each in main.COMMANDS.values())
    ]
    assert len(places) == 4
    assert text.index("\n  upgrade ") < places[1] < text.index("\n  status ")
    assert places[3] < text.index("\n  lab ")


def test_help_keeps_what_json_prints_apart_from_the_text(shell: Shell, capsys: Any) -> None:
    assert shell("overlay", "apply", "--help") == 0
    assert "\n\n  With --json: {" in capsys.readouterr().out


def test_help_says_everything_that_exit_code_1_stands_for(shell: Shell, capsys: Any) -> None:
    assert shell("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1 Any other error. `overlay diff`: something differs" in text
    assert "`watch status`: no standby is ready" in text


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("chekc",), "Did you mean 'check'?"),
        (("vm", "shwo"), "Did you mean 'show'?"),
        (("instance", "bringup"), None),  # not for people
        (("xyzzy",), None),
    ],
)
def test_a_wrong_command_names_what_may_be_meant(shell: Shell, arguments: tuple[str, ...], meant: str | None) -> None:
    assert shell(*arguments) == 2
    error, hint = shell.err.getvalue().splitlines()
    assert error.startswith(f"error: No such command {arguments[-1]!r}.")
    assert ("Did you mean" in error) is (meant is not None)
    assert meant is None or meant in error
    assert hint == f"hint: `{' '.join(['ovs-hotswap', *arguments[:-1]])} --help`"


def errors_module_classes() -> list[type[HotswapError]]:
    return [kind for kind in HotswapError.__subclasses__() if kind.__module__ == "ovs_hotswap.errors"]


def test_help_lists_every_exit_code_of_the_error_tree(shell: Shell, capsys: Any) -> None:
    assert shell("--help") == 0
    text = capsys.readouterr().out
    for kind in errors_module_classes():
        assert re.search(rf"^  {kind.exit_code} +{kind.__name__}: ", text, re.MULTILINE), text


def test_help_imports_no_heavy_module() -> None:
    program = (
        "import sys\n"
        "from ovs_hotswap.cli.main import App, run\n"
        "run(['--help'], App())\n"
        "print('imported', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = done.stdout.splitlines()[-1].split()
    assert "click" in imported
    assert not {"pydantic", "rich", "pyroute2", "ovs", "ovsdbapp", "asyncio"} & set(imported)


def test_exit_codes_are_unique() -> None:
    kinds: list[type[HotswapError]] = [HotswapError, *errors_module_classes()]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert not {0, 2, main.INTERRUPTED} & set(codes)


def test_version(shell: Shell, capsys: Any) -> None:
    assert shell("--version") == 0
    assert __version__ in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- earlier names


def test_the_earlier_key_of_the_back_end_mode_is_read_with_a_warning(shell: Shell) -> None:
    shell.config.write_text(f'{OLD} = "broker"\n{shell.config.read_text()}')
    assert shell("--json", "config", "check") == 0
    assert shell.err.getvalue().startswith(f"warning: {shell.config}: {OLD}: the name of this key is backend;")
    found = json.loads(shell.out.getvalue())["config"]
    assert found["backend"] == found[OLD] == "broker"


def test_the_earlier_option_of_the_back_end_mode_is_read_with_a_warning() -> None:
    warnings = io.StringIO()
    app = App(Output(err=warnings))
    assert back_end_mode(app, None, "qemu-dual") is BackendMode.QEMU_DUAL
    assert back_end_mode(app, "qemu-dual", "qemu-dual") is BackendMode.QEMU_DUAL
    assert warnings.getvalue().count(f"warning: `--{OLD}`: ") == 2
    assert back_end_mode(App(), None, None) is BackendMode.BROKER
    assert back_end_mode(App(), "qemu-dual", None) is BackendMode.QEMU_DUAL


def test_two_names_of_the_option_with_two_values(shell: Shell) -> None:
    assert shell("lab", "demo", f"--{OLD}", "qemu-dual", "--backend", "broker") == 2
    assert f"`--{OLD}` is the earlier name of `--backend`, and their values differ" in shell.err.getvalue()


def test_help_does_not_show_the_earlier_option(shell: Shell, capsys: Any) -> None:
    assert shell("lab", "demo", "--help") == 0
    text = capsys.readouterr().out
    assert "--backend [broker|qemu-dual]" in text
    assert OLD not in text


# ------------------------------------------------------------------------------------------------------------ errors


NO_FILE = (
    "write one from `ovs-hotswap config example`; `ovs-hotswap config init` writes one for a host whose bridges others "
    "program"
)


def test_an_error_is_a_line_and_a_hint(shell: Shell) -> None:
    shell.config.unlink()
    assert shell("config", "check") == ConfigError.exit_code
    assert shell.out.getvalue() == ""
    assert shell.err.getvalue() == (f"error: {shell.config}: no such file\nhint: {NO_FILE}\n")


def test_each_fault_is_a_line(shell: Shell) -> None:
    shell.config.write_text("bridge = 5\ncolour = 'red'\n")
    assert shell("config", "check") == 3
    lines = shell.err.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["error"] * 4 + ["hint"]
    assert "Traceback" not in shell.err.getvalue()


@pytest.mark.parametrize("arguments", [("--debug", "config", "check"), ("config", "check", "--debug")])
def test_debug_adds_the_traceback(shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.config.unlink()
    assert shell(*arguments) == 3
    assert "Traceback" in shell.err.getvalue()
    assert "FileNotFoundError" in shell.err.getvalue(), "with the cause"
    assert "\nerror: " in shell.err.getvalue()


@pytest.mark.parametrize("arguments", [("--json", "config", "check"), ("config", "check", "--json")])
def test_an_error_as_json(shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.config.unlink()
    assert shell(*arguments) == 3
    assert shell.document == {
        "error": {
            "class": "ConfigError",
            "message": f"{shell.config}: no such file",
            "hint": NO_FILE,
            "exit_code": 3,
        }
    }


@pytest.mark.parametrize("arguments", [("no-such",), ("config", "no-such"), ("config", "check", "--no-such")])
def test_a_wrong_command_line(shell: Shell, arguments: tuple[str, ...]) -> None:
    assert shell(*arguments) == 2
    assert "no-such" in shell.err.getvalue()
    assert shell("--json", *arguments) == 2
    assert shell.document["error"]["class"] == "UsageError"


def run_with(error: BaseException, *arguments: str) -> tuple[int, str, str]:
    """What the command line makes of an error that a command raises."""

    @click.command(cls=Command)
    def broken() -> None:
        raise error

    class OneCommand(main.Root):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            return broken

    out, err = io.StringIO(), io.StringIO()
    root = OneCommand(name="x", lazy={}, params=list(main.cli.params))
    status = main.run(["broken", *arguments], App(Output(out=out, err=err)), root)
    return status, out.getvalue(), err.getvalue()


def test_an_unforeseen_error_is_a_line_too() -> None:
    status, out, err = run_with(KeyError("ofport"))
    assert (status, out) == (1, "")
    assert err == "error: internal error: KeyError: 'ofport'\nhint: repeat it with --debug and report what it prints\n"
    assert "Traceback" in run_with(KeyError("ofport"), "--debug")[2]


def test_an_interrupt() -> None:
    assert run_with(KeyboardInterrupt()) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize(
    ("status", "arguments"), [(1, ["config", "example"]), (1, ["--help"]), (2, ["--json", "release", "no-such"])]
)
def test_a_reader_that_went_away(arguments: list[str], status: int) -> None:
    program = "from ovs_hotswap.cli.main import main; main()"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        argv = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(argv, stdout=out, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (status, b"")


class FullDisk(io.StringIO):
    """/dev/full, or a pipe whose reader went away."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, _text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("json", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE, errno.EIO])
@pytest.mark.parametrize(("does", "status"), [(True, 0), (False, 1)])
def test_what_is_done_is_done_though_it_cannot_be_printed(json: bool, number: int, does: bool, status: int) -> None:
    @click.command(cls=Command)
    @click.pass_obj
    def act(app: App) -> None:
        app.output.line("begun")
        app.output.done = does
        app.output.table(("VM",), [("vm1",)])
        app.output.document({"committed": True})

    root = click.Group(name="x", commands={"act": act})
    err = io.StringIO()
    assert main.run(["act", *(["--json"] if json else [])], App(Output(out=FullDisk(number), err=err)), root) == status
    assert ("standard output cannot be written" in err.getvalue()) is (number != errno.EPIPE)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [("instance restore", 0), ("release list", 1), ("watch status", 1)],
)
def test_a_command_that_did_something_has_not_failed_because_nobody_could_read_it(
    shell: Shell, arguments: str, status: int
) -> None:
    err = io.StringIO()
    app = App(Output(out=FullDisk(errno.ENOSPC), err=err))
    assert main.run(["--config", str(shell.config), *arguments.split()], app) == status
    assert "standard output cannot be written" in err.getvalue()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), HostError("/run: no"), KeyError("x"), OSError(5, "EIO")])
@pytest.mark.parametrize("done", [True, False])
def test_what_comes_when_all_is_done_makes_no_failure_of_it(error: BaseException, done: bool) -> None:
    @click.command(cls=Command)
    @click.pass_obj
    def act(app: App) -> None:
        app.output.done = done
        raise error

    err = io.StringIO()
    root = click.Group(name="x", commands={"act": act})
    status = main.run(["act"], App(Output(out=io.StringIO(), err=err)), root)
    assert (status == 0) is done
    assert ("what was asked for is done" in err.getvalue()) is done


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """Its reading end, and one for writing that is full and would block."""
    reader, writer = os.pipe()
    fill_pipe(writer)
    yield reader, writer
    os.close(reader)


def test_who_does_not_read_holds_no_upgrade_up(full_pipe: tuple[int, int]) -> None:
    reader, writer = full_pipe
    with os.fdopen(writer, "w") as out:
        output = Output(out=out)
        with output.progress(STEPS) as progress:
            for event in STORY:
                progress.observe(event)
        assert ended(threading.Thread(target=output.catch_up, daemon=True)) is False
        text = b""
        while b"everything was put back" not in text:
            text += os.read(reader, 1 << 16)
    assert text.lstrip(b".").decode().splitlines()[0] == "[1/3] check: Look at the host"
    assert len(text.lstrip(b".").decode().splitlines()) == len(STORY)


def ended(thread: threading.Thread) -> bool:
    thread.start()
    thread.join(0.1)
    return not thread.is_alive()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_any_locale_will_do(encoding: str) -> None:
    raw = io.BytesIO()
    output = Output(out=io.TextIOWrapper(raw, encoding=encoding))
    with output.progress([("move", "VM \u2192 b")]) as progress:
        progress.observe(Event(EventKind.STARTED, "move"))
        progress.observe(Event(EventKind.FAILED, "move", text="\udcff \u2717"))
    output.table(("VM",), [("\u2713",)])
    output.console().print("\u2713")
    output.out.flush()
    assert output.unprinted is None
    assert b"move" in raw.getvalue()


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "<&- >&- 2>&-", "2>&-"])
def test_a_program_without_its_standard_streams(redirection: str) -> None:
    program = "from ovs_hotswap.cli.main import main; main()"
    command = f'exec "{sys.executable}" -c "{program}" config example {redirection}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert done.returncode == (0 if redirection == "2>&-" else 1)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/run/x"), "error: /run/x: Permission denied\nhint: "),
        (OSError(errno.ENOSPC, "No space left on device", "/run/x"), "No space left on device\nhint: make room"),
        (OSError(errno.EROFS, "Read-only file system", "/run/x"), "read-only"),
        (NetlinkError(errno.EPERM, "x"), "error: netlink: Operation not permitted\nhint: "),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "error: Connection refused\n"),
    ],
)
def test_what_the_machine_refuses_is_no_internal_error(error: Exception, text: str) -> None:
    status, _, err = run_with(error)
    assert status == HostError.exit_code
    assert text in err
    assert "internal error" not in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    "arguments",
    [
        "upgrade --release host", "rollback", "resume", "check --release host", "status", "instance start a",
        "instance stop a --force", "instance list", "overlay apply", "broker start", "broker take-over", "watch run",
        "release list", "vm list", "config init --force",
    ],
)  # fmt: skip
def test_no_command_ends_with_an_internal_error_for_lack_of_privilege(arguments: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ovsh-cli-") as directory:
        Path(directory).chmod(0o755)
        shell = Shell(Path(directory))
        program = "import os, sys; from ovs_hotswap.cli.main import main; os.setuid(65534); sys.argv[1:] = %r; main()"
        argv = [sys.executable, "-c", program % (["--config", str(shell.config), *arguments.split()],)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert "internal error" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------------------- commands


def test_config_check(shell: Shell) -> None:
    assert shell("config", "check") == 0
    assert f"{shell.config}: valid\n" in shell.out.getvalue()
    assert shell("config", "check", "--json") == 0
    assert shell.document["valid"] is True
    assert shell.document["config"]["instances"]["a"]["pmd_cores"] == [2]


def test_config_example_needs_no_configuration(shell: Shell) -> None:
    shell.config.unlink()
    assert shell("config", "example") == 0
    assert shell.out.getvalue() == EXAMPLE
    assert shell("overlay", "example") == 0
    assert shell.out.getvalue() == OVERLAY_EXAMPLE


def test_overlay_check(shell: Shell) -> None:
    assert shell("overlay", "check") == 0
    assert "valid: 2 vms, 2 remotes, 2 neighbours, 1 routes" in shell.out.getvalue()
    shell.overlay.write_text(OVERLAY_EXAMPLE.replace("52:54:00:00:00:02", "52:54:00:00:00:01"))
    assert shell("overlay", "check") == 3
    assert "52:54:00:00:00:01" in shell.err.getvalue()


def test_overlay_show(shell: Shell) -> None:
    assert shell("overlay", "show") == 0
    final = shell.out.getvalue()
    assert "# Table 0, classify" in final
    assert shell("overlay", "show", "--form", "window") == 0
    assert shell.out.getvalue() != final
    assert shell("overlay", "show", "--json") == 0
    tables = shell.document["tables"]
    assert [table["number"] for table in tables] == [0, 1, 2, 3, 4]
    flow = tables[0]["flows"][0]
    assert sorted(flow) == ["actions", "comment", "cookie", "match", "priority"]
    assert f"cookie={flow['cookie']}" in final


def test_overlay_diff_without_an_instance(shell: Shell) -> None:
    assert shell("overlay", "diff", "--side", "a") == 8
    assert shell.err.getvalue().count("\nhint: ") == 1


def test_release_commands_report_what_is_wrong(shell: Shell) -> None:
    assert shell("release", "remove", "nowhere", "--json") == 11
    assert shell.document["error"]["class"] == "ReleaseError"
    assert shell("release", "add", "x") == 2
    assert "--suite or --from-directory" in shell.err.getvalue()
    assert shell("release", "list", "--json") == 0
    assert [entry["name"] for entry in shell.document["releases"]] == ["host"]


# ------------------------------------------------------------------------------------------------------------ output


def test_a_table_elsewhere_than_on_a_terminal_is_aligned() -> None:
    out = io.StringIO()
    Output(out=out).table(("vm", "moved in"), [("web1", 212), ("a-long-name", None)], title="VMs")
    assert out.getvalue() == "VMs\nVM           MOVED IN\nweb1         212\na-long-name  -\n"


def test_a_table_on_a_terminal_takes_no_markup_from_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    Output(out=out).table(("vm",), [("[red]web1[/red]",)])
    assert "[red]web1[/red]" in out.getvalue()


def test_human_output_and_documents_exclude_each_other() -> None:
    for as_json in (False, True):
        out = io.StringIO()
        output = Output(json=as_json, out=out)
        output.line("text")
        output.table(("a",), [("b",)])
        output.findings([Finding("flows", Severity.ERROR, "bad")])
        output.document({"side": Side.A, "path": Path("/x"), "finding": Finding("c", Severity.OK, "t"), "set": {2, 1}})
        if as_json:
            assert json.loads(out.getvalue()) == {
                "side": "a",
                "path": "/x",
                "finding": {"check": "c", "severity": "ok", "text": "t", "hint": None, "item": None},
                "set": [1, 2],
            }
        else:
            assert out.getvalue().splitlines()[0] == "text"
            assert "FAIL" in out.getvalue()
            assert "{" not in out.getvalue()


STEPS = [("check", "Look at the host"), ("move", "Move the VMs"), ("retire", "Stop the old instance")]
STORY = [
    Event(EventKind.STARTED, "check"),
    Event(EventKind.DONE, "check", 0.25),
    Event(EventKind.STARTED, "move"),
    Event(EventKind.PROGRESS, "move", None, "moved in 212 us", "web1", 1, 2),
    Event(EventKind.FAILED, "move", 1.5, "no answer"),
    Event(EventKind.UNDOING, "move"),
    Event(EventKind.UNDONE, "move", 0.5),
    Event(EventKind.ROLLED_BACK),
]


def test_progress_as_plain_lines() -> None:
    out = io.StringIO()
    with Output(out=out).progress(STEPS) as progress:
        for event in STORY:
            progress.observe(event)
    assert out.getvalue().splitlines() == [
        "[1/3] check: Look at the host",
        "[1/3] check: done (0.25 s)",
        "[2/3] move: Move the VMs",
        "      web1: moved in 212 us (1/2)",
        "[2/3] move: failed (1.50 s): no answer",
        "[2/3] move: being put back",
        "[2/3] move: put back (0.50 s)",
        "everything was put back",
    ]


def test_progress_in_json_mode_is_part_of_the_error() -> None:
    out = io.StringIO()
    output = Output(json=True, out=out)
    with output.progress(STEPS) as progress:
        for event in STORY[:5]:
            progress.observe(event)
    assert out.getvalue() == ""
    output.error(RolledBack("step move failed"))
    steps = json.loads(out.getvalue())["steps"]
    assert [(step["name"], step["state"], step["seconds"]) for step in steps] == [
        ("check", "done", 0.25), ("move", "failed", 1.5), ("retire", "pending", None),
    ]  # fmt: skip
    assert steps[1]["items"] == {"web1": "moved in 212 us"}
    assert steps[1]["text"] == "no answer"


def test_a_resume_with_nothing_to_resume_shows_no_steps(shell: Shell) -> None:
    assert shell("--json", "resume") == PrecheckFailed.exit_code
    assert shell.document["error"]["message"] == "there is no unfinished upgrade"
    assert shell.document["steps"] == []


@pytest.mark.parametrize("command", [["check"], ["upgrade", "--dry-run"]])
def test_a_check_with_errors_has_the_exit_code_of_an_upgrade_that_it_refuses(shell: Shell, command: list[str]) -> None:
    assert shell("--json", *command, "--release", "host") == PrecheckFailed.exit_code
    assert shell.document["ready"] is False
    assert shell.document.get("changed") is None
    assert "error" in [each["severity"] for each in shell.document["findings"]]
    assert shell(*command, "--release", "host") == PrecheckFailed.exit_code


def test_progress_on_a_terminal_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    with Output(out=out).progress(STEPS) as progress:
        for event in STORY:
            progress.observe(event)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).rsplit("check", 1)[-1]
    assert "↶  move    Move the VMs  no answer" in last
    assert "web1: moved in 212 us" in last
    assert "everything was put back" in last


def test_the_program_on_a_real_terminal(shell: Shell) -> None:
    """The console script, its standard streams a pseudo-terminal."""
    leader, follower = pty.openpty()
    program = "from ovs_hotswap.cli.main import main; main()"
    arguments = [sys.executable, "-c", program, "--config", str(shell.config), "config", "check"]
    with subprocess.Popen(arguments, stdin=follower, stdout=follower, stderr=follower) as child:
        os.close(follower)
        chunks = []
        try:
            while chunk := os.read(leader, 4096):
                chunks.append(chunk)
        except OSError:  # the other end is closed
            pass
        finally:
            os.close(leader)
    assert child.returncode == 0
    assert b"valid" in b"".join(chunks)
    assert b"\x1b[1m" in b"".join(chunks), "a bold heading"


# ------------------------------------------------------------------------------------------------------------- watch


def test_watch_status_without_a_watchdog(shell: Shell) -> None:
    assert shell("watch", "status", "--json") == 0
    document = shell.document
    assert (document["mode"], document["running"], document["ready"]) == ("automatic", False, False)
    assert document["events"] == []


def test_a_required_watchdog_that_is_not_there_is_an_error(shell: Shell) -> None:
    shell.config.write_text(shell.config.read_text().replace("[watch]", '[watch]\nmode = "required"'))
    assert shell("watch", "status") == 1
    assert "does not run, mode required" in shell.out.getvalue()


def test_watch_status_shows_the_newest_events(shell: Shell, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "events.jsonl").write_text("".join(f'{{"time": {n}, "event": "standby", "side": "b"}}\n' for n in (1, 2)))
    assert shell("watch", "status", "--events", "1", "--json") == 0
    assert [event["time"] for event in shell.document["events"]] == [2]
    assert shell("watch", "status") == 0
    assert shell.out.getvalue().count("standby  side b") == 2


@pytest.mark.parametrize(
    "text",
    [
        "[]", "null", "[" * 20000, '"x"', '{"pid": "x"}', '{"pid": [1], "unprotected": 5, "uplinks": 7}',
        '{"pid": PID, "unprotected": 5, "not_parked": "x", "quarantined": [1], "uplinks": [2], "gave_up": "y"}',
        '{"pid": PID, "unprotected": [1, null], "uplinks": {"a": 5, "b": {"text": 1}}, "problem": {}, "health": []}',
        '{"pid": PID, "health": {}, "reason": [2], "active": 5, "failures": "many"}',
    ],
)  # fmt: skip
def test_a_state_of_the_watchdog_of_any_shape_is_shown(shell: Shell, tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    with subprocess.Popen(["sleep", "1000"]) as child:
        (tmp_path / "run" / "watch.json").write_text(text.replace("PID", str(child.pid)))
        system = FakeSystem()
        system.processes[child.pid] = ["ovs-hotswap", "watch", "run"]
        for arguments in (["watch", "status"], ["watch", "status", "--json"]):
            app = App(Output(out=shell.out, err=shell.err))
            app.__dict__["system"] = system
            assert main.run(["--config", str(shell.config), *arguments], app) == 0
        child.kill()
    assert shell.err.getvalue() == ""


@pytest.mark.parametrize("event", ['{"time": "x"}', '{"time": 1e300}', '{"time": null}', "[1]", '{"time": {}}', "{}"])
def test_an_event_of_any_shape_is_shown(shell: Shell, tmp_path: Path, event: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "events.jsonl").write_text(f"{event}\n")
    assert shell("watch", "status") == 0
    assert shell.err.getvalue() == ""


def test_another_process_with_the_watchdog_s_number_is_none(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    system = FakeSystem()
    system.processes[os.getpid()] = ["watch", "-n1", "date"]
    for born, runs in ((start_time(os.getpid()), True), (1, False)):
        (tmp_path / "run" / "watch.json").write_text(json.dumps({"pid": os.getpid(), "born": born}))
        app = App(Output(json=True, out=io.StringIO(), err=io.StringIO()))
        app.__dict__["system"] = system
        assert main.run(["--config", str(shell.config), "watch", "status"], app) == 0
        assert json.loads(app.output._given[0].getvalue())["running"] is runs  # type: ignore[union-attr]


# ----------------------------------------------------------------------------------------------------------- metrics


def test_the_metrics_of_a_host_on_which_nothing_runs(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert shell("metrics", "write", "-", "--host-label", "hv1") == 0
    assert 'ovs_hotswap_broker_up{host="hv1"} 0.0\n' in shell.out.getvalue()
    assert shell("metrics", "write", str(tmp_path / "x.prom"), "--json") == 0
    written = (tmp_path / "x.prom").read_text()
    assert shell.document == {"file": str(tmp_path / "x.prom"), "bytes": len(written)}
    assert written.startswith("# HELP ovs_hotswap_info ")


def test_metrics_list_has_every_metric(shell: Shell) -> None:
    from ovs_hotswap.metrics.catalogue import METRICS

    assert shell("metrics", "list", "--json") == 0
    assert [each["name"] for each in shell.document] == [metric.full_name for metric in METRICS.values()]
    assert shell("metrics", "list") == 0
    assert "ovs_hotswap_active  gauge  {host, side}\n" in shell.out.getvalue()


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1:http", "127.0.0.1:99999"])
def test_an_address_for_metrics_that_is_none(shell: Shell, listen: str) -> None:
    assert shell("metrics", "serve", "--listen", listen) == 2
    assert "is no ADDRESS:PORT, such as" in shell.err.getvalue()


# ----------------------------------------------------------------------------------------------------------- flow log


def with_flow_log(shell: Shell, line: str) -> None:
    shell.config.write_text(shell.config.read_text() + f"\n{line}\n")


def test_a_flow_log_that_is_off_is_shown_as_such(shell: Shell) -> None:
    assert shell("flowlog", "show") == 0
    assert "the flow log is off" in shell.out.getvalue()
    assert shell("flowlog", "show", "--json") == 0
    assert json.loads(shell.out.getvalue())["on"] is False


def test_a_flow_log_without_a_relay_is_a_problem(shell: Shell) -> None:
    with_flow_log(shell, 'collectors = ["192.0.2.20:4739"]\nvms = ["db1"]')
    assert shell("flowlog", "show") == 1
    text = shell.out.getvalue()
    assert re.search(r"^domain +2887712769$", text, re.MULTILINE)  # 172.31.0.1
    assert "1 of 100, of 1 of 2 VMs, exported after 10 s" in text
    assert "problem    the relay does not run: nothing reaches the collectors; `systemctl" in text
    assert re.search(r"^db1 +12$", text, re.MULTILINE)
    assert "web1" not in text


def test_what_a_relay_and_the_watchdog_said_is_shown(shell: Shell, tmp_path: Path) -> None:
    with_flow_log(shell, 'collectors = ["192.0.2.20:4739"]')
    for name in ("run", "state"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "flowlog.json").write_text(json.dumps({
        "pid": os.getpid(), "born": start_time(os.getpid()), "time": 5.0, "listening": ["a"],
        "sources": {"a": {"records": 40, "unknown": 2}},
        "collectors": {"192.0.2.20:4739": {"sent": 41, "refused": 0, "fault": None}},
    }))  # fmt: skip
    event = {"event": "failover", "from": "a", "to": "b", "detected": 1_700_000_000.0}
    (tmp_path / "state" / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert shell("flowlog", "show") == 0
    text = shell.out.getvalue()
    assert "hears instance a; a: 40 records, 2 lost" in text
    assert "collector  192.0.2.20:4739: 41 messages sent, 0 refused" in text
    assert re.search(r"^missing    2023-11-1\d .* to 2023-11-1\d .*: instance a died with what", text, re.MULTILINE)
