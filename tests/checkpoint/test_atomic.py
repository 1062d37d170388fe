"""Saving whatever happens meanwhile: the file is the old one or the new one, never less."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.helpers import SUPPORT

import fastgd
from fastgd.checkpoint import container as _container

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run_python(*arguments, before=()):
    command = [*before, sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


@pytest.fixture
def file(tmp_path):
    """An old checkpoint, with 1 in it."""
    path = tmp_path / "run.safetensors"
    fastgd.save(path, params=[np.ones(100)], metadata={"n": 1})
    return path


def holds(path):
    """The number that a checkpoint was saved with; nothing else may lie beside it."""
    back = np.zeros(100)
    n = fastgd.load(path, params=[back])["n"]
    assert (back == n).all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return n


def save(path, n):
    fastgd.save(path, params=[np.full(100, n, np.float64)], metadata={"n": n})


# --------------------------------------------------------------------------------------- faults


@pytest.mark.slow
def test_killed_two_hundred_times(tmp_path):
    done = run_python(str(SUPPORT / "kill_saves.py"), str(tmp_path), "200")
    assert done.returncode == 0, done.stderr
    counts = re.fullmatch(r"killed 200, in the middle (\d+), saved (\d+), lost 0\n", done.stdout)
    assert counts, done.stdout
    # Else this would show nothing.
    assert int(counts[1]) >= 20
    assert int(counts[2]) >= 20


FILL = """
import errno, os, resource, sys, numpy as np, fastgd
file, limit, expected = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fastgd.save(file, params=[np.ones(100)], metadata={"n": 1})
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    fastgd.save(file, params=[np.full(100_000, 2.0)], metadata={"n": 2})
except OSError as raised:
    error = raised
    assert (error.errno, error.filename) == (expected, file), repr(error)
else:
    raise AssertionError("there was room")
back = np.zeros(100)
assert fastgd.load(file, params=[back]) == {"n": 1}
assert back.all()
assert os.listdir(os.path.dirname(file)) == ["run.safetensors"]
print(error)
"""


@pytest.mark.parametrize("limit", [4096, 100_000])
def test_a_file_that_may_not_grow(limit, tmp_path):
    file = str(tmp_path / "run.safetensors")
    done = run_python("-c", FILL, file, str(limit), str(errno.EFBIG))
    assert done.returncode == 0, done.stderr
    assert f"File too large: '{file}'" in done.stdout


def test_a_full_disk(tmp_path):
    """A file system of 256 KiB, mounted where nobody else sees it."""
    mount = 'mount -t tmpfs -o size=256k none "$0" && exec "$@"'
    enter = ("unshare", "--mount", *(() if os.getuid() == 0 else ("--map-root-user",)))
    enter = (*enter, "sh", "-c", mount, str(tmp_path))
    if subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("this process may not mount")
    file = str(tmp_path / "run.safetensors")
    done = run_python("-c", FILL, file, "0", str(errno.ENOSPC), before=enter)
    assert done.returncode == 0, done.stderr
    assert f"No space left on device: '{file}'" in done.stdout


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("call", ["fsync", "fchmod", "replace"])
def test_whatever_fails_the_old_file_stays(call, error, file, monkeypatch):
    def fail(*_):
        raise error(errno.EIO, "broken")

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        with pytest.raises(error, match="broken") as raised:
            save(file, 2)
    if error is OSError:
        assert raised.value.filename == str(file)
    assert holds(file) == 1


@pytest.mark.slow
def test_what_could_not_be_opened_again_is_not_kept(file):
    with pytest.raises(ValueError, match=f"^{file}: expected a file that safetensors can open"):
        fastgd.save(file, params=[np.zeros(100)], metadata={"n": 2, "long": "x" * 100_000_000})
    assert holds(file) == 1


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_after(file, monkeypatch):
    calls = []

    def noted(name, call):
        def wrapper(*args):
            where = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else args[0]
            size = os.path.getsize(where) if os.path.isfile(where) else None
            calls.append((name, size))
            return call(*args)

        return wrapper

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    save(file, 2)
    size = file.stat().st_size
    assert calls == [("fsync", size), ("replace", size), ("fsync", None)]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_flushed(code, file, monkeypatch):
    """Some file systems have no such thing; anything else the caller has to know."""
    sync = os.fsync

    def fail(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fail)
    if code == errno.EINVAL:
        save(file, 2)
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            save(file, 2)
    assert holds(file) == 2


# ------------------------------------------------------------------------- files and folders


def test_permissions_are_kept_and_new_files_follow_the_umask(file):
    old = os.umask(0o027)
    try:
        new = file.with_name("new")
        save(new, 1)
        assert stat.S_IMODE(new.stat().st_mode) == 0o640
        new.unlink()
        for mode in (0o600, 0o664, 0o400):
            file.chmod(mode)
            save(file, mode)
            assert stat.S_IMODE(file.stat().st_mode) == mode
            assert holds(file) == mode
    finally:
        os.umask(old)


def test_while_it_is_written_nobody_new_may_read(file, monkeypatch):
    write, modes = _container.write, []

    def noted(new, *args):
        modes.append(stat.S_IMODE(os.stat(new.name).st_mode))
        write(new, *args)

    monkeypatch.setattr(_container, "write", noted)
    file.chmod(0o600)
    save(file, 2)
    assert modes == [0o600]


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_stays_one(exists, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").mkdir()
    link, target = tmp_path / "here" / "link", tmp_path / "disk" / "run"
    if exists:
        save(target, 1)
    link.symlink_to("../disk/run")
    save(link, 2)
    assert link.is_symlink()
    assert holds(target) == holds(link) == 2


def test_paths_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, path in enumerate(["run", Path("run"), b"run", "ü\udcff", "x" * 255]):
        fastgd.save(path, params=np.full(1, k))
        back = np.zeros(1, int)
        fastgd.load(path, params=back)
        assert back[0] == k


def test_what_is_no_file_is_not_replaced(tmp_path):
    fifo, folder = tmp_path / "fifo", tmp_path / "folder"
    os.mkfifo(fifo)
    folder.mkdir()
    for path, found in ((fifo, "something else"), (folder, "a directory"), ("/dev/null", "someth")):
        with pytest.raises(ValueError, match=f"^{path}: expected a file to replace, found {found}"):
            save(path, 1)
        with pytest.raises(
            fastgd.CheckpointError, match=f"^{path}: expected a file, found {found}"
        ):
            fastgd.load(path)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "folder"]


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save(tmp_path / "nowhere" / "run", 1)
    with pytest.raises(FileNotFoundError, match="run"):
        fastgd.load(tmp_path / "run")


# --------------------------------------------------------------------- what the killed leave


def test_left_files_are_removed_and_nothing_else(file):
    dead = [file.with_name(f".fastgd-{k:016x}.tmp") for k in range(3)]
    for path in dead:
        path.write_bytes(b"half a file")
    folder, fifo = file.with_name(f".fastgd-{3:016x}.tmp"), file.with_name(f".fastgd-{4:016x}.tmp")
    link = file.with_name(f".fastgd-{5:016x}.tmp")
    folder.mkdir()
    os.mkfifo(fifo)
    link.symlink_to(file.name)
    others = [file.with_name(name) for name in (".fastgd-1.tmp", "x.tmp", ".run.safetensors.tmp")]
    for path in others:
        path.write_bytes(b"somebody's")
    save(file, 2)
    assert not any(path.exists() for path in dead)
    for path in [folder, fifo, link, *others]:
        assert path.exists()
        path.rmdir() if path == folder else path.unlink()
    assert holds(file) == 2


def test_files_that_are_being_written_stay(file):
    busy = file.with_name(f".fastgd-{1:016x}.tmp")
    with open(busy, "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        save(file, 2)
        assert busy.exists()
    save(file, 3)
    assert holds(file) == 3


def test_a_file_taken_for_left_behind_is_made_again(file, monkeypatch):
    """Between its creation and its lock, another save may remove it."""
    lock, removed = fcntl.flock, []

    def slow(fd, how):
        if not removed:
            removed.append(os.readlink(f"/proc/self/fd/{fd}"))
            os.unlink(removed[0])
        return lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    save(file, 2)
    assert removed
    assert holds(file) == 2


def test_a_file_system_without_locks(file, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    left = file.with_name(f".fastgd-{1:016x}.tmp")
    left.write_bytes(b"")
    monkeypatch.setattr(fcntl, "flock", none)
    save(file, 2)
    assert left.exists()  # nobody knows whose it is
    left.unlink()
    assert holds(file) == 2


def test_many_threads_save_to_one_file(file):
    errors = []

    def work(k):
        try:
            for n in range(20):
                save(file, 100 * k + n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        fastgd.load(file)
        seen += 1
    assert not errors
    assert seen
    assert holds(file) % 100 == 19
