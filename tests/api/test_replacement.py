"""A checkpoint file is the old one or the new one at any moment."""

import errno
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from fusedstep.core import archive
from tests.api.archives import assert_same, read, run, save


def test_paths_that_are_no_regular_files(path):
    path.mkdir()
    for call in (read, save):
        with pytest.raises(ValueError, match=r"checkpoint\.\w+ is no regular file"):
            call(path)
    path.rmdir()
    os.mkfifo(path)
    for call in (read, save):
        with pytest.raises(ValueError, match=r"checkpoint\.\w+ is no regular file"):
            call(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        read(path)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*nowhere'$"):
        save(path.parent / "nowhere" / path.name)
    assert not os.listdir(path.parent)


def test_symbolic_links_stay(path):
    link, folder = path.with_name(f"latest{path.suffix}"), path.parent / "elsewhere"
    folder.mkdir()
    link.symlink_to(os.path.join("elsewhere", f"target{path.suffix}"))  # the link dangles at first
    for k in (1, 2):
        expected = save(link, k)
        assert link.is_symlink()
        assert_same(read(link)[0], expected)
        assert os.listdir(folder) == [f"target{path.suffix}"]


def test_modes(path):
    old = os.umask(0o027)
    try:
        save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o444, 0o666):
            path.chmod(mode)
            save(path)
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(old)


def test_path_relative_to_the_working_directory(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    expected = save(path.name)
    assert_same(read(path.name)[0], expected)


def test_the_order_of_events(path, monkeypatch):
    save(path, 1)
    events, seen, fsync, replace = [], [], os.fsync, os.replace

    def spy_fsync(descriptor):
        status = os.fstat(descriptor)
        events.append(("fsync", status.st_ino))
        if stat.S_ISREG(status.st_mode):
            seen.append(os.pread(descriptor, 1 << 20, 0))
        fsync(descriptor)

    def spy_replace(source, target):
        assert not seen or seen[-1] != path.read_bytes()
        events.append(("replace", os.stat(source).st_ino, target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    save(path, 2)
    file, folder = path.stat().st_ino, path.parent.stat().st_ino
    assert events == [("fsync", file), ("replace", file, os.path.realpath(path)), ("fsync", folder)]
    assert seen == [path.read_bytes()]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), MemoryError()], ids=repr
)
@pytest.mark.parametrize("where", ["write", "_seals", "fsync", "replace", "chmod"])
def test_a_write_that_fails(path, monkeypatch, where, error):
    owner = {"write": type(archive._locate(path)[1]), "_seals": archive}.get(where, os)
    written = getattr(owner, where)

    def fail(*args):
        if where == "write":
            written(*args)
        raise error

    for before in ([], [path.name]):
        with monkeypatch.context() as patch:
            patch.setattr(owner, where, fail)
            with pytest.raises(type(error)):
                save(path, 2)
        assert os.listdir(path.parent) == before
        if before:
            assert read(path)[1] == {"t": 1}
        save(path, 1)


DISK_FULL = """
import os, resource, sys
import numpy as np
from fusedstep.core import archive
from tests.api.archives import read

path = sys.argv[1]
archive.write(path, {"w": np.ones(100)}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for n in (12_000, 12_499, 50_000):
    try:
        archive.write(path, {"w": np.zeros(n)}, {})
    except OSError as error:
        assert n > 12_000 and "File too large" in str(error), error
    else:
        assert n == 12_000
assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
assert len(read(path)[0]["w"]) == 12_000
"""


def test_a_disk_that_is_full(path):
    """A limit on the size of files, 100 kB, stands for a disk that is full."""
    run(DISK_FULL, path)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("where", ["open", "fsync"])
def test_folders_that_cannot_be_flushed(path, monkeypatch, where, code):
    called = getattr(os, where)

    def fail(first, *args, **options):
        if first == str(path.parent) if where == "open" else stat.S_ISDIR(os.fstat(first).st_mode):
            raise OSError(code, os.strerror(code))
        return called(first, *args, **options)

    monkeypatch.setattr(os, where, fail)
    if code == errno.EIO:  # the disk is broken
        with pytest.raises(OSError, match="error"):
            save(path)
    else:
        save(path)
    monkeypatch.undo()
    read(path)


def test_long_names(path):
    long = path.with_name("é" * 121 + "x" * (13 - len(path.suffix)) + path.suffix)
    assert len(os.fsencode(long.name)) == 255
    expected = save(long)
    assert_same(read(long)[0], expected)
    too_long = long.with_name(f"y{long.name}")
    with pytest.raises(OSError, match=f"File name too long: '{too_long}'"):
        save(too_long)
    assert os.listdir(path.parent) == [long.name]


def test_drafts_of_dead_processes_are_removed(path):
    def age(folder):
        os.utime(folder, (0, 0))
        return folder

    dead, alive, new = (path.with_name(f".{path.name}.{word:_<8}.tmp") for word in ("dead", "alive", "new"))
    others = [path.with_name(f".{path.name}.{word}") for word in ("other123", "shrt.tmp", "toolong___.tmp")]
    others.append(path.with_name(f".x{path.name}.dead____.tmp"))
    for folder in (dead, alive, new, *others):
        folder.mkdir()
        (folder / "draft").write_bytes(b"x")
    age(dead)
    with archive._lock(age(alive)) as locked:
        assert locked
        save(path)
    left = {other.name for other in (path, alive, new, *map(age, others))}
    assert set(os.listdir(path.parent)) == left
    save(path)
    assert set(os.listdir(path.parent)) == left - {alive.name}
    with archive._lock(path.parent / "missing") as locked:
        assert not locked


KILL = """
import os, random, shutil, signal, sys, time
import numpy as np
from fusedstep.core import archive
from tests.api.archives import read

path = sys.argv[1]
folder, name = os.path.split(path)
versions = [{"w": np.full((200, 100), k, np.float32), "m": np.full(15_000, -k)} for k in (0.0, 1.0)]
rng = random.Random(0)

def child():
    try:
        k = rng.randrange(2)
        while True:
            archive.write(path, versions[k], {"k": k})
            k = 1 - k
    finally:
        os._exit(1)

begin = time.perf_counter()
for k in (0, 1, 0, 1):
    archive.write(path, versions[k], {"k": k})
once = (time.perf_counter() - begin) / 4
rounds = max(20, min(300, int(8 / (2.5 * once))))  # hundreds, where the disk is not slow
seen, hits = set(), 0
for _ in range(rounds):
    rng.random()
    pid = os.fork()
    if not pid:
        child()
    time.sleep(rng.uniform(0, 5 * once))
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    arrays, meta = read(path)
    assert all((arrays[key] == array).all() for key, array in versions[meta["k"]].items())
    seen.add(meta["k"])
    left = [other for other in os.listdir(folder) if other != name]
    assert all(other.startswith(f".{name}.") and other.endswith(".tmp") for other in left)
    hits += len(left)
    for other in left:
        shutil.rmtree(os.path.join(folder, other))
assert seen == {0, 1}
assert rounds / 10 < hits <= rounds, hits
"""


@pytest.mark.sampled(2)
def test_kill_9(path):
    """Whenever a process is killed while it saves, the file is one of the two that it saves in turn."""
    run(KILL, path)


def test_a_file_that_is_replaced_while_it_is_read(path):
    expected = save(path, 1)
    with archive.opened(path) as (stored, meta):
        save(path, 2)
        found = {name: np.empty(each.shape, each.dtype) for name, each in stored.items()}
        for name, each in stored.items():
            each.read_into(found[name])
    assert meta == {"t": 1}
    assert_same(found, expected)


def test_a_file_that_is_cut_while_it_is_read(path):
    save(path, n=100_000)
    with archive.opened(path) as (stored, _):
        os.truncate(path, 100)
        each = stored["state/w/m"]
        with pytest.raises(OSError, match=r"checkpoint\.\w+ has become shorter while it was read, expected it to stay"):
            each.read_into(np.empty(each.shape, each.dtype))


def test_a_reader_beside_a_writer(path):
    code = f"""
import sys, numpy as np
from fusedstep.core import archive
for k in range(100):
    archive.write({str(path)!r}, {{"w": np.full(10_000, k)}}, {{"k": k}})
"""
    archive.write(path, {"w": np.zeros(10_000)}, {"k": 0})
    with subprocess.Popen([sys.executable, "-c", code]) as writer:
        while writer.poll() is None:
            arrays, meta = read(path)
            assert (arrays["w"] == meta["k"]).all()
    assert writer.returncode == 0
    assert read(path)[1] == {"k": 99}
