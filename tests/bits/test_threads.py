"""The pool: lazy, fork-safe, never in anybody's way; and where the number of threads comes from."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.core import settings
from fusedstep.tools import verify

N = 200_000


def run(code, **environment):
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", "import os, numpy as np, fusedstep as fs\n" + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def trained(threads, steps=3):
    fs.set_num_threads(threads)
    optimizer, p = fs.Adam(), np.ones(N, np.float32)
    for i in range(steps):
        optimizer.step(p, np.full(N, 1 + i, np.float32))
    return p


COUNT_THREADS = 'print(len(os.listdir("/proc/self/task")) - before)'


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_threads_start_when_first_needed():
    code = 'before = len(os.listdir("/proc/self/task")); fs.set_num_threads(4)\n'
    assert run(code + "fs.SGD().step(np.ones(9), np.ones(9))\n" + COUNT_THREADS) == "0"
    assert run(code + "fs.SGD().step(np.ones(10**6), np.ones(10**6))\n" + COUNT_THREADS) == "3"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_parameter_without_a_gradient_among_large_ones(threads):
    fs.set_num_threads(threads)
    for n in (0, 5, N):
        params = [np.ones(size, np.float32) for size in (N, n, 2 * N)]
        optimizer = fs.Adam(lr=0.5)
        for _ in range(2):
            optimizer.step(params, [np.ones_like(params[0]), None, np.ones_like(params[2])])
        assert [np.unique(p).round(3).tolist() for p in params] == [[0.0], [1.0] if n else [], [0.0]]


def test_the_number_may_change_between_steps():
    p, q = np.ones(N, np.float32), np.ones(N, np.float32)
    one, other = fs.Adam(), fs.Adam()
    for threads in (1, 2, 5, 1, 8, 3, 64, 2):
        g = np.full(N, threads, np.float32)
        fs.set_num_threads(threads)
        one.step(p, g)
        fs.set_num_threads(1)
        other.step(q, g)
    assert verify.difference([p], [q]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_after_a_threaded_step_then_steps_in_child_and_parent():
    expected = trained(4)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            same = (trained(4) == expected).all()
            started = len(os.listdir("/proc/self/task")) if Path("/proc/self/task").exists() else 4
            os._exit(0 if same and started == 4 else 1)  # the child has a pool of its own
        assert os.waitpid(child, 0)[1] == 0
        assert verify.difference([trained(4)], [expected]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_while_another_thread_is_in_a_step():
    fs.set_num_threads(3)
    stop = threading.Event()

    def work():
        optimizer, p, g = fs.Adam(), np.ones(10 * N, np.float32), np.ones(10 * N, np.float32)
        while not stop.is_set():
            optimizer.step(p, g)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                optimizer, p = fs.Adam(), np.ones(N, np.float32)
                optimizer.step(p, np.ones(N, np.float32))
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


def test_eight_threads_step_eight_optimizers():
    expected = trained(3, steps=20)
    results = [None] * 8
    start = threading.Barrier(8)

    def work(i):
        optimizer, p = fs.Adam(), np.ones(N, np.float32)
        start.wait()
        for k in range(20):
            optimizer.step(p, np.full(N, 1 + k, np.float32))
        results[i] = p

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify.difference(results, [expected] * 8) == 0


def test_exit_with_a_live_pool():
    assert run("fs.set_num_threads(4); fs.SGD().step(np.ones(10**6), np.ones(10**6)); print('done')") == "done"


def test_a_system_that_grants_no_threads():
    code = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
fs.set_num_threads(1024)
p = np.ones(70 * 10**6 // 4, np.float32)
fs.SGD(lr=1.0).step(p, np.ones_like(p))
print((p == 0).all())
"""
    assert run(code, OPENBLAS_NUM_THREADS="1") == "True"


def test_number_of_threads_from_the_environment():
    code = "i = fs.info(); print(i['threads'], i['threads_from'])"
    assert run(code, FUSEDSTEP_NUM_THREADS="3", OMP_NUM_THREADS="5") == "3 FUSEDSTEP_NUM_THREADS"
    environment = {k: v for k, v in os.environ.items() if k != "FUSEDSTEP_NUM_THREADS"}
    assert "FUSEDSTEP_NUM_THREADS" not in environment
    assert run(code, OMP_NUM_THREADS="5,2") == "5 OMP_NUM_THREADS"
    assert run(code, FUSEDSTEP_NUM_THREADS="", OMP_NUM_THREADS="5") == "5 OMP_NUM_THREADS"
    assert run(code, OMP_NUM_THREADS="many").endswith(("process", "group", "machine"))
    assert run(code + "; fs.set_num_threads(7); i = fs.info(); print(i['threads'], i['threads_from'])").endswith(
        "7 set_num_threads"
    )


@pytest.mark.parametrize("value", ["0", "-1", "two", " ", "1.5", "99999999999"])
def test_a_wrong_number_in_the_environment_is_an_error(value):
    with pytest.raises(AssertionError, match=r"FUSEDSTEP_NUM_THREADS is '.*', expected 1 to 1024 threads"):
        run("", FUSEDSTEP_NUM_THREADS=value)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
def test_affinity_limits_the_threads():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        code = "i = fs.info(); print(i['threads'], i['threads_from'])"
        assert run(code, OMP_NUM_THREADS="") == "1 affinity of this process"
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("allowed", "quota", "expected"),
    [
        (4, None, (4, "processors of this machine")),
        (4, 9, (4, "processors of this machine")),
        (3, 3, (3, "affinity of this process")),
        (4, 2, (2, "quota of the control group")),
    ],
)
def test_what_limits_the_processors(monkeypatch, allowed, quota, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    monkeypatch.setattr(settings, "_cgroup_quota", lambda: quota)
    assert settings.processors() == expected


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {}, None),
        ("4:cpu:/d\n1:memory:/d", {"cpu/d/cpu.cfs_quota_us": "300000", "cpu/d/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu:/d", {"cpu/d/cpu.cfs_quota_us": "-1", "cpu/d/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_quota_of_the_control_group(tmp_path, membership, files, expected):
    (tmp_path / "membership").write_text(membership + "\n")
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert settings._cgroup_quota(str(tmp_path / "root"), str(tmp_path / "membership")) == expected


@pytest.mark.parametrize("n", [0, -1, 1025, 2**70])
def test_set_num_threads_refuses(n):
    with pytest.raises(ValueError, match=r"^n is -?\d+, expected 1 to 1024 threads$"):
        fs.set_num_threads(n)


@pytest.mark.parametrize("n", [1.0, "2", None, True])
def test_set_num_threads_refuses_other_things(n):
    with pytest.raises(TypeError, match=r"^n is .*, expected a number of threads$"):
        fs.set_num_threads(n)


def test_use_isa():
    for name in fs.info()["isas"]:
        fs.use_isa(name)
        assert fs.info()["isa"] == name
        assert fs.info()["isa_from"] == "use_isa"
    fs.use_isa("auto")
    assert fs.info()["isa"] == fs.info()["isas"][-1]
    assert "widest" in fs.info()["isa_from"]
    for wrong in (None, 5, b"avx2"):
        with pytest.raises(TypeError, match=r"^name is .*, expected the name of an instruction set$"):
            fs.use_isa(wrong)
    for wrong in ("sse9", "", "AVX2"):
        with pytest.raises(ValueError, match=r"^name is .*, expected one of auto, "):
            fs.use_isa(wrong)


def test_isa_from_the_environment():
    code = "i = fs.info(); print(i['isa'], i['isa_from'])"
    first = fs.info()["isas"][0]
    assert run(code, FUSEDSTEP_ISA=first) == f"{first} FUSEDSTEP_ISA"
    assert run(code, FUSEDSTEP_ISA="").endswith("the widest that this processor runs")
    with pytest.raises(AssertionError, match="FUSEDSTEP_ISA is 'sse9', expected one of auto, "):
        run(code, FUSEDSTEP_ISA="sse9")


EXIT = """
import threading

begun = threading.Barrier(4)

def step():
    opt, p, g = fs.Adam(), np.ones(200_000, np.float32), np.ones(200_000, np.float32)
    opt.step(p, g)
    begun.wait()
    while True:
        opt.step(p, g)

def call():
    p, g = np.ones(500_000), np.ones(500_000)
    begun.wait()
    while True:
        fs.functional.sgd(p, g, lr=0.1)

for work in (step, step, call):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
"""


def test_a_process_ends_while_daemon_threads_step():
    """The interpreter ends such a thread when it takes back the lock that it has released."""
    for _ in range(5):
        run(EXIT)
