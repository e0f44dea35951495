"""How hosts are reached: ssh_config, the keys of hosts and of people, and a ProxyCommand."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paramiko import ECDSAKey, HostKeys, Message, PKey

from ovs_hotswap.errors import RemoteError
from ovs_hotswap.remote import known_hosts
from ovs_hotswap.remote.connection import Keys, Proxy
from ovs_hotswap.remote.hosts import Destination
from ovs_hotswap.remote.ssh_settings import SshFiles

# -- ssh_config


def written(tmp_path: Path, config: str, machine: str = "") -> SshFiles:
    files = SshFiles(tmp_path / "home/.ssh", tmp_path / "etc")
    files.user.mkdir(parents=True)
    files.machine.mkdir()
    (files.user / "config").write_text(config)
    (files.machine / "ssh_config").write_text(machine)
    return files


def test_the_settings_of_a_host(tmp_path: Path) -> None:
    host = f"HostName %h.example\nUser ann\nPort 2200\nIdentityFile {tmp_path}/fleet\nIdentitiesOnly yes\n"
    more = "ConnectTimeout 7\nProxyJump root@gate:22,inner\n"
    files = written(tmp_path, f"Host hv*\n{host}{more}", "User machine\n")
    found = files.settings(Destination("hv1"))
    assert (found.host, found.port, found.user, found.known_as) == ("hv1.example", 2200, "ann", "[hv1.example]:2200")
    assert found.key_files == (tmp_path / "fleet",)
    assert (found.keys_alone, found.timeout_s, found.proxy_command) == (True, 7, None)
    assert found.jumps == (Destination("gate", "root", 22), Destination("inner"))
    assert found.known_hosts == (
        tmp_path / "home/.ssh/known_hosts", tmp_path / "home/.ssh/known_hosts2", tmp_path / "etc/ssh_known_hosts",
        tmp_path / "etc/ssh_known_hosts2",
    )  # fmt: skip
    named = files.settings(Destination("hv1", "root", 22))
    assert (named.user, named.port, named.known_as) == ("root", 22, "hv1.example")
    assert files.settings(Destination("other")).user == "machine", "a Host of the user's file ends with the file"


def test_settings_in_other_files(tmp_path: Path) -> None:
    files = written(tmp_path, "Include parts/*.conf\nHost hv1\nProxyCommand none\nProxyJump none\n"
                    "UserKnownHostsFile /k1 %d/k2\nHostKeyAlias fleet\n", "Include ssh_config.d/*.conf\n")  # fmt: skip
    (files.user / "parts").mkdir()
    (files.user / "parts/a.conf").write_text("Host hv1\nPort 2201\nInclude deeper\n")
    (files.user / "deeper").write_text("User deep\n")
    (files.machine / "ssh_config.d").mkdir()
    (files.machine / "ssh_config.d/x.conf").write_text("Host *\nPort 9\nConnectTimeout 3\n")
    found = files.settings(Destination("hv1"))
    assert (found.port, found.user, found.timeout_s, found.known_as) == (2201, "deep", 3, "fleet")
    assert (found.jumps, found.proxy_command) == ((), None)
    assert found.known_hosts[:2] == (Path("/k1"), tmp_path / "home/k2")
    (files.user / "deeper").write_text("Include deeper\n")
    with pytest.raises(RemoteError, match="include one another"):
        files.settings(Destination("hv1"))


def test_an_include_does_not_change_the_block_that_it_is_in(tmp_path: Path) -> None:
    files = written(tmp_path, "Include parts/*\nUser ann\nHost gate\nInclude inner\nPort 2222\n")
    (files.user / "parts").mkdir()
    (files.user / "parts/rack").write_text("Host hv1  # a comment\nPort 22 # another\nProxyJump gate\n")
    (files.user / "inner").write_text("ConnectTimeout 4\nHost *\nIdentitiesOnly yes\n")
    found = files.settings(Destination("hv2"))
    assert (found.user, found.port, found.jumps, found.timeout_s, found.keys_alone) == ("ann", 22, (), 30, False)
    found = files.settings(Destination("hv1"))
    assert (found.user, found.port, found.jumps) == ("ann", 22, (Destination("gate"),))
    found = files.settings(Destination("gate"))
    assert (found.port, found.timeout_s, found.keys_alone) == (2222, 4, True)


def test_a_proxy_command_is_given_what_the_command_line_says(tmp_path: Path) -> None:
    files = written(tmp_path, "Host hv\nHostName hv.example\nUser ann\nProxyCommand nc # %n %r@%h:%p\n")
    assert files.settings(Destination("hv", "root", 2222)).proxy_command == "nc # hv root@hv.example:2222"
    assert files.settings(Destination("hv")).proxy_command == "nc # hv ann@hv.example:22"


@pytest.mark.parametrize(
    ("config", "direct"),
    [("", True), ("Port 2222", True), ("ProxyJump gate", False), ("ProxyCommand nc", False), ("HostKeyAlias x", False)],
)
def test_whether_ssh_keyscan_reaches_a_host(tmp_path: Path, config: str, direct: bool) -> None:
    assert written(tmp_path, f"{config}\n").settings(Destination("hv")).direct is direct


def test_a_faulty_list_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="is not a list of files"):
        written(tmp_path, 'UserKnownHostsFile a"b\n').settings(Destination("hv1"))


def test_a_faulty_number_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="'many' is not a number"):
        written(tmp_path, "Port many\n").settings(Destination("hv1"))


# -- keys of hosts

KEY, OTHER = ECDSAKey.generate(), ECDSAKey.generate()


def line(name: str, key: ECDSAKey = KEY) -> str:
    return f"{name} {key.get_name()} {key.get_base64()} comment\n"


@pytest.mark.parametrize(
    "text",
    [
        line("hv1"),
        line("10.0.0.1,hv1"),
        line(HostKeys.hash_host("hv1")),
        line("hv1", OTHER) + line("hv1"),
        line("*"),
        line("hv?"),
        "# a comment\n\nhv1 ssh-dss AAAA\n@cert-authority * ssh-rsa AAAA\nhv1\n" + line("hv1"),
        line("hv1") + "@revoked " + line("*", OTHER),
        line("HV1"),
        line("|1|damaged|hash") + line("|1|") + line("hv*,!hv2"),
        "hv1 ssh-ed25519 AAAA\n" + line("hv1"),
    ],
)
def test_a_known_key_is_accepted(tmp_path: Path, text: str) -> None:
    (tmp_path / "known").write_text(text)
    files = [tmp_path / "missing", tmp_path / "known"]
    known_hosts.verify("ann@hv1", "hv1", KEY, known_hosts.known_keys("hv1", files), files)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the key of ann@hv1 is not known: ecdsa-sha2-nistp256 SHA256:"),
        (line("hv2"), "is not known"),
        (line("[hv1]:2222"), "is not known"),
        (line("hv1x"), "is not known"),
        (line("*,!hv1"), "is not known"),
        (line("!hv*,hv1"), "is not known"),
        ("@cert-authority " + line("hv1"), "known is for certificates, which are not used here"),
        (line("hv2") + line("hv1", OTHER), "known, line 2: it is ecdsa-sha2-nistp256 SHA256:"),
        (line("hv1") + "@revoked " + line("*"), "has a key that is revoked"),
    ],
)
def test_another_key_is_refused(tmp_path: Path, text: str, said: str) -> None:
    files = [tmp_path / "known"]
    files[0].write_text(text)
    with pytest.raises(RemoteError) as error:
        known_hosts.verify("ann@hv1", "hv1", KEY, known_hosts.known_keys("hv1", files), files)
    assert said in error.value.message
    assert str(files[0]) in f"{error.value.message}{error.value.hint}"


def test_how_a_key_is_made_known_that_ssh_keyscan_cannot_get(tmp_path: Path) -> None:
    with pytest.raises(RemoteError) as error:
        known_hosts.verify("ann@hv1", "hv1", KEY, [], [tmp_path / "known"], accept="ssh hv1 true")
    assert "`ssh hv1 true`" in (error.value.hint or "")
    assert "ssh-keyscan" not in (error.value.hint or "")


def test_the_types_of_known_keys_are_asked_for_first(tmp_path: Path) -> None:
    (tmp_path / "known").write_text(line("hv1"))
    known = known_hosts.known_keys("hv1", [tmp_path / "known"])
    offered = ["ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512"]
    assert known_hosts.key_types(known, offered) == ["ecdsa-sha2-nistp256", "ssh-ed25519", "rsa-sha2-512"]


# -- our own keys


@contextlib.contextmanager
def agent(socket_path: Path, held: Sequence[PKey]) -> Iterator[None]:
    """An agent that holds keys, and signs nothing (draft-ietf-sshm-ssh-agent)."""
    answer = Message()
    answer.add_byte(b"\x0c")
    answer.add_int(len(held))
    for key in held:
        answer.add_string(key.asbytes())
        answer.add_string("comment")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(socket_path))
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                there, _ = listener.accept()
                with there:
                    there.recv(100)
                    there.sendall(struct.pack(">I", len(answer.asbytes())) + answer.asbytes())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def offered(tmp_path: Path, config: str) -> tuple[list[PKey], list[Path]]:
    """The keys that are tried, in order, and the files that are locked."""
    keys = Keys(written(tmp_path, config).settings(Destination("hv1")))
    return [cast(Any, source).pkey for source in keys.get_sources()], keys.locked


def test_configured_keys_of_the_agent_are_tried_first_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = KEY, OTHER
    (tmp_path / "mine.pub").write_text(f"{second.get_name()} {second.get_base64()} comment\n")
    second.write_private_key_file(str(tmp_path / "mine"))
    odd = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "odd").write_bytes(odd)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    with agent(tmp_path / "agent", [first, second]):
        both = f"IdentityFile {tmp_path}/odd\nIdentityFile {tmp_path}/mine\n"
        assert offered(tmp_path / "1", both) == ([second, first], [])
        assert offered(tmp_path / "2", f"{both}IdentitiesOnly yes\n") == ([second], [])
        assert offered(tmp_path / "3", f"IdentityFile {tmp_path}/mine.pub\nIdentitiesOnly yes\n") == ([second], [])
    second.write_private_key_file(str(tmp_path / "mine"), password="secret")
    assert offered(tmp_path / "4", both) == ([], [tmp_path / "mine"])


# -- a ProxyCommand


def test_a_proxy_command_is_run_by_a_shell_and_its_end_is_noticed() -> None:
    proxy = Proxy("sh -c 'echo hello; echo one >&2; echo gone >&2' 2>&2")
    proxy.settimeout(60)
    assert proxy.recv(100) == b"hello\n"
    assert proxy.recv(100) == b""
    assert proxy.last_words() == "gone"
    proxy.process.wait()
    proxy.close()


def test_ctrl_c_is_not_for_a_proxy_command() -> None:
    proxy = Proxy("grep SigIgn /proc/self/status")
    proxy.settimeout(60)
    ignored = int(proxy.recv(100).split()[1], 16)
    proxy.process.wait()
    assert ignored & 1 << (signal.SIGINT - 1)
