"""Asynchronous training on actors of Ray: workers that die leave, and servers that die come back."""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

import fusedstep as fs
from fusedstep import distributed
from tests.distributed.runs import first, gradient, same_bits, worker

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings are many

CORES = 4  # as Ray counts them; the largest test has so many workers


@pytest.fixture(scope="module", autouse=True)
def cluster():
    variables = {"RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    os.environ |= variables
    # Paths of sockets are short, so the folder is not one of pytest's; Ray itself never removes what it writes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=CORES,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
            runtime_env={"env_vars": {"PYTHONPATH": paths, "FUSEDSTEP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}},
        )
        yield
        ray.shutdown()
    for name in variables:
        os.environ.pop(name)


def make():
    return fs.Adam(lr=fs.schedules.cosine(0.05, steps=60), ema=0.9, clip_norm=1.0)


def check(opt, params):
    """Check that the run is repeated from its log."""
    again = first()
    distributed.replay(opt.log(), make(), again, gradient)
    assert same_bits(again, params)


@pytest.mark.parametrize(("shards", "staleness", "dampen"), [(1, None, False), (2, 0, False), (3, 2, True)])
def test_every_run_is_replayed(shards, staleness, dampen):
    params = first()
    opt = distributed.Asynchronous(
        make(), None, params, shards=shards, staleness=staleness, dampen=dampen, engine="ray", timeout=60
    )
    assert sorted(opt.run(worker(8), 3)) == [0, 1, 2]
    check(opt, params)
    assert opt.run(worker(2), 1) == [3]  # another worker, later
    check(opt, params)


def test_more_workers_than_cores_come_one_after_the_other():
    params = first()
    opt = distributed.Asynchronous(make(), None, params, engine="ray", timeout=60)
    assert sorted(opt.run(worker(2), CORES + 1)) == list(range(CORES + 1))
    check(opt, params)


def test_the_program_itself_and_others_may_be_workers():
    params, mine = first(), first()
    opt = distributed.Asynchronous(make(), None, params, shards=2, engine="ray", timeout=60)

    @ray.remote
    def elsewhere(other):
        numbers = worker(5)(other)
        other.leave()
        return numbers

    reference = elsewhere.remote(opt)
    for step in range(5):
        opt.pull(mine)
        opt.push(gradient(mine, opt.worker, step))
    assert {ray.get(reference), opt.worker} == {0, 1}
    opt.pull(params)
    check(opt, params)


def test_a_worker_that_dies_leaves_by_itself():
    def work(mine):
        own = first()
        for step in range(10):
            mine.pull(own)
            if mine.worker == 1 and step == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            if mine.worker == 2 and step == 6:
                raise ArithmeticError("no gradient")
            mine.push(gradient(own, mine.worker, step))
        return mine.worker

    params = first()
    opt = distributed.Asynchronous(make(), None, params, shards=2, staleness=1, engine="ray", timeout=60)
    results = opt.run(work, 4, may_fail=2)
    kinds = sorted(type(some).__name__ for some in results)
    assert kinds.count("int") == 2
    assert "ArithmeticError" in kinds
    check(opt, params)
    with pytest.raises(ArithmeticError, match="no gradient"):
        opt.run(_raise, 2)


def _raise(mine):
    raise ArithmeticError("no gradient")


def test_a_server_that_dies_comes_back(tmp_path):
    params = first()
    opt = distributed.Asynchronous(
        make(), None, params, shards=2, staleness=2, path=tmp_path / "run", engine="ray", timeout=60
    )

    def work(mine):
        own = first()
        for step in range(60):
            mine.pull(own)
            time.sleep(0.01)
            mine.push(gradient(own, mine.worker, step))
        return mine.worker

    pids = [ray.get(server.__ray_call__.remote(_pid)) for server in opt._servers._servers]
    mine, own = opt.another(), first()
    mine.pull(own)
    for step in range(3):
        mine.push(gradient(own, mine.worker, step))
        os.kill(pids[step % 2], signal.SIGKILL)
        mine.pull(own)  # which waits for the server, and finds what was pushed
        pids = [ray.get(server.__ray_call__.remote(_pid)) for server in opt._servers._servers]
    mine.leave()
    assert sorted(opt.run(work, 2)) == [1, 2]
    assert [len([e for e in entries if e.kind == "push"]) for entries in opt.log().entries] == [123, 123]
    check(opt, params)


def _pid(server):
    return os.getpid()


def test_a_server_without_files_is_gone():
    opt = distributed.Asynchronous(make(), None, first(), shards=2, engine="ray", timeout=60)
    mine, own = opt.another(), first()
    mine.pull(own)
    ray.kill(opt._servers._servers[1])
    with pytest.raises(RuntimeError, match=r"server 1 is gone, expected one that comes back: with path="):
        mine.push(gradient(own, 0, 0))


def test_who_waits_for_a_silent_worker_is_told():
    opt = distributed.Asynchronous(make(), None, first(), shards=2, staleness=0, engine="ray", timeout=10)
    silent, other, own = opt.another(), opt.another(), first()
    silent.pull(own)
    other.pull(own)
    other.push(gradient(own, 1, 0))
    with pytest.raises(TimeoutError, match="worker 1 has waited 10 s for worker 0"):
        other.pull(own)
