from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastrlhf.bench import peers
from fastrlhf.bench.peers import Peer, PeerError, install

PEER = Peer("moon", "1.2.3")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRLHF_PEERS", str(tmp_path))
    return tmp_path


def pip(monkeypatch, returncode=0, stderr=""):
    """Pretends pip; returns the commands that it is given."""
    commands = []

    def run(command, **options):
        commands.append(command)
        target = command[command.index("--target") + 1]
        (peers.Path(target) / "moon.py").write_text("")
        return SimpleNamespace(returncode=returncode, stderr=stderr, stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_a_peer_is_installed_once_without_its_dependencies(folder, monkeypatch):
    commands = pip(monkeypatch)
    assert install(PEER) == install(PEER) == folder / "moon-1.2.3"
    assert (folder / "moon-1.2.3" / "moon.py").exists()
    (command,) = commands
    assert command[0] == sys.executable
    assert {"--no-deps", "moon==1.2.3"} <= set(command)


def test_one_that_cannot_be_installed_says_why_and_leaves_nothing(folder, monkeypatch):
    pip(monkeypatch, returncode=1, stderr="WARNING: slow\nERROR: No matching distribution\n")
    with pytest.raises(
        PeerError, match=r"moon==1\.2\.3 cannot be installed .*: ERROR: No matching distribution"
    ):
        install(PEER)
    assert list(folder.iterdir()) == []


def test_the_folder_is_in_the_cache_unless_it_is_named(tmp_path, monkeypatch):
    assert peers.peers_dir() == tmp_path
    monkeypatch.delenv("FASTRLHF_PEERS")
    monkeypatch.setenv("FASTRLHF_CACHE", str(tmp_path / "cache"))
    assert peers.peers_dir() == tmp_path / "cache" / "peers"
