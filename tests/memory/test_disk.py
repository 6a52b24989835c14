"""The file of the disk tier: what is written is read, and what goes wrong is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from fastrlhf.memory import disk
from fastrlhf.memory.disk import DiskFile, TierError


@pytest.fixture
def file(tmp_path):
    made = DiskFile(tmp_path, 1 << 20)
    yield made
    made.close()


def test_what_is_written_is_read_in_the_order_asked_for(file):
    values = [torch.full((1000,), float(i)) for i in range(20)]
    read = torch.empty(1000)
    for each in values:
        file.write(each, 4096)
    file.read(read, 4096).result()
    assert torch.equal(read, values[-1])
    untouched = torch.ones(10)
    file.read(untouched, 0).result()
    assert not untouched.any(), "reserved space is zero"


def test_bytes_that_come_in_parts_are_put_together(file, monkeypatch):
    for name in ("preadv", "pwritev"):
        whole = getattr(os, name)
        monkeypatch.setattr(os, name, lambda fd, buffers, at, whole=whole: whole(fd, [buffers[0][:7]], at))
    values, read = torch.randn(50), torch.empty(50)
    file.write(values, 0)
    file.read(read, 0).result()
    assert torch.equal(read, values)


def test_nothing_is_to_be_seen_in_the_directory(tmp_path, file):
    assert list(tmp_path.iterdir()) == []


def test_the_space_is_given_back(tmp_path):
    def reserved():
        descriptors = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
        return [path for path in descriptors if os.path.realpath(path).startswith(str(tmp_path))]

    file = DiskFile(tmp_path, 1 << 20)
    assert len(reserved()) == 1
    file.close()
    file.close()
    assert not reserved()


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(TierError, match=r"disk='.*missing' cannot be used: No such file"):
        DiskFile(tmp_path / "missing", 100)


def test_space_that_is_not_there(tmp_path):
    with pytest.raises(TierError, match="cannot be reserved"):
        DiskFile(tmp_path, 1 << 60)


def test_a_file_that_was_cut_short(file):
    file.write(torch.ones(1000), 0).result()
    os.ftruncate(file._descriptor, 2000)
    with pytest.raises(TierError, match="ends 2000 bytes early"):
        file.read(torch.empty(1000), 0).result()


def test_after_a_failure_nothing_is_read_any_more(file, monkeypatch):
    file.write(torch.zeros(10), 0).result()

    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "pwritev", fails)
        writing = file.write(torch.ones(10), 0)
        with pytest.raises(TierError, match="40 bytes of the disk tier could not be written: No space left"):
            writing.result()
    stale = torch.empty(10)
    with pytest.raises(TierError, match="could not be written"):
        file.read(stale, 0).result()


def test_a_limit_on_the_size_of_files_is_met_before_training(tmp_path):
    """As a full disk: nothing larger than 1 MB can be written by this process."""
    program = """
        import resource, sys, torch, fastrlhf
        from tests.support.offloaded import net, adamw
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        model = net(width=256)
        try:
            fastrlhf.offload(model, adamw(model), device_memory="5MB", disk=sys.argv[1])
        except fastrlhf.memory.disk.TierError as error:
            assert not model.head.weight.isnan().any()
            print(error)
    """
    done = run(program, tmp_path)
    assert "cannot be reserved" in done.stdout and "File too large" in done.stdout


def test_a_killed_process_leaves_nothing_behind(tmp_path):
    program = """
        import os, sys, signal, torch
        from tests.support.offloaded import trained
        def kill():
            assert any(os.readlink(f"/proc/self/fd/{fd}").startswith(sys.argv[1]) for fd in os.listdir("/proc/self/fd")
                       if os.path.islink(f"/proc/self/fd/{fd}"))
            os.kill(os.getpid(), signal.SIGKILL)
        trained(device_memory=30_000, disk=sys.argv[1], chunk_size=2000, loop={"after_step": kill})
    """
    done = run(program, tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.iterdir()) == []


def run(program, folder, check=True):
    command = [sys.executable, "-c", textwrap.dedent(program), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, done.stderr
    return done
