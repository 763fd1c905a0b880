"""Servers that die come back from their files with all that they had answered, and the run can still be replayed."""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import distributed
from fusedstep.distributed import journal
from fusedstep.distributed.journal import SavedShard
from fusedstep.distributed.shard import Options, Shard
from tests.distributed.runs import first, gradient, same_bits, worker


def make():
    return fs.Adam(lr=fs.schedules.cosine(0.1, steps=30), ema=0.9, clip_norm=1.0)


def known(shard):
    """Return all that a shard has to remember."""
    numbers = shard.version, shard.newcomer, shard.clock, shard._finished, shard._seen, shard._gone
    return copy.deepcopy((shard.digest(), shard.entries, dict(shard.optimizer.t), numbers))


def drive(shard, rng, steps):
    """Let random workers do what they may."""
    for _ in range(steps):
        here = sorted(shard.clock)
        action = rng.integers(10)
        if not here or (action == 0 and len(here) < 5):
            shard.admit()
        elif action == 1 and len(here) > 1:
            shard.leave(here[0])
        else:
            one = here[rng.integers(len(here))]
            if one in shard._seen and action < 7:
                shard.push(one, shard._finished[one], gradient(shard.params, one, shard.version))
            else:
                shard.pull(one)


@pytest.mark.parametrize("seed", range(5))
def test_a_shard_comes_back_at_any_moment(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(journal, "_LEAST", 40_000)  # so that checkpoints are made in between
    monkeypatch.setattr(journal, "_RATIO", 1)
    rng = np.random.default_rng(seed)
    options = Options(2, True)
    path = str(tmp_path / "shard")
    shard = SavedShard(make(), first(), options, path)
    for _ in range(12):
        drive(shard, rng, int(rng.integers(1, 12)))
        again = SavedShard(make(), first(), options, path)
        assert known(again) == known(shard)
        assert same_bits(again.params, shard.params)
        shard = again
    assert shard._records > len(list(journal._records(f"{path}.journal")))  # there was a checkpoint in between


def test_a_record_that_was_cut_off_has_not_been_answered(tmp_path):
    path = str(tmp_path / "shard")
    shard = SavedShard(make(), first(), Options(), path)
    shard.admit()
    shard.pull(0)
    before = os.path.getsize(f"{path}.journal")
    pulled = known(shard)
    shard.push(0, 0, gradient(shard.params, 0, 0))
    pushed = known(shard)
    data = Path(f"{path}.journal").read_bytes()
    for size in [*range(before, before + 40), len(data) - 1, len(data)]:
        Path(f"{path}.journal").write_bytes(data[:size])
        archive = Path(f"{path}.npz").read_bytes()
        assert known(SavedShard(make(), first(), Options(), path)) == (pushed if size == len(data) else pulled)
        Path(f"{path}.npz").write_bytes(archive)  # loading has made a new checkpoint


def test_a_crash_between_checkpoint_and_journal(tmp_path):
    path = str(tmp_path / "shard")
    shard = SavedShard(make(), first(), Options(), path)
    drive(shard, np.random.default_rng(0), 30)
    old = Path(f"{path}.journal").read_bytes()
    again = SavedShard(make(), first(), Options(), path)  # makes a checkpoint
    Path(f"{path}.journal").write_bytes(old)
    assert known(SavedShard(make(), first(), Options(), path)) == known(again) == known(shard)
    Path(f"{path}.journal").write_bytes(journal._HEAD.pack(journal._MAGIC, 10**6) + old[journal._HEAD.size :])
    with pytest.raises(ValueError, match="journal begins with record 1000000"):
        SavedShard(make(), first(), Options(), path)
    Path(f"{path}.journal").write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no journal of a shard"):
        SavedShard(make(), first(), Options(), path)


def test_a_push_that_is_sent_again_is_made_once(tmp_path):
    shard = SavedShard(make(), first(), Options(), str(tmp_path / "shard"))
    shard.admit()
    shard.pull(0)
    grads = gradient(shard.params, 0, 0)
    shard.push(0, 0, grads)
    once = known(shard)
    again = SavedShard(make(), first(), Options(), str(tmp_path / "shard"))
    again.push(0, 0, grads)
    assert known(again) == once
    with pytest.raises(RuntimeError, match="sends its push 3, expected push 1"):
        again.push(0, 3, grads)


def test_a_step_that_is_refused_is_not_written_down(tmp_path):
    def strange():
        return fs.SGD(lr=lambda t: 0.1 if t < 1 else -1.0)

    path = str(tmp_path / "shard")
    shard = SavedShard(strange(), first(), Options(), path)
    shard.admit()
    for number in range(2):
        shard.pull(0)
        if number == 0:
            shard.push(0, 0, gradient(shard.params, 0, 0))
    with pytest.raises(ValueError, match="lr"):
        shard.push(0, 1, gradient(shard.params, 0, 1))
    assert known(SavedShard(strange(), first(), Options(), path)) == known(shard)


def test_files_of_other_parameters_are_refused(tmp_path):
    path = tmp_path / "run"
    distributed.Asynchronous(make(), None, first(), shards=2, path=path).run(worker(2))
    for options in ({"shards": 1}, {"shards": 3}):
        with pytest.raises(ValueError, match="params has the keys"):
            distributed.Asynchronous(make(), None, first(), path=path, **options)


def test_a_later_run_goes_on(tmp_path):
    path = tmp_path / "run"
    for workers in (2, 3, 1):
        params = first()
        opt = distributed.Asynchronous(make(), None, params, shards=2, staleness=1, path=path, timeout=30)
        opt.run(worker(4), workers)
    assert {e.worker for e in opt.log().entries[0]} == {0, 1, 2, 3, 4, 5}
    again = first()
    distributed.replay(opt.log(), make(), again, gradient)
    assert same_bits(again, params)


PROGRAM = """
import os, sys
import fusedstep as fs
from fusedstep import distributed
from tests.distributed.runs import first, worker
from tests.distributed.test_journal import make

opt = distributed.Asynchronous(make(), None, first(), shards=2, staleness=1, path=sys.argv[1], timeout=30)
push = opt._servers.push

def told(worker, number, grads):
    push(worker, number, grads)
    os.write(1, b"%d %d\\n" % (worker, number))

opt._servers.push = told
opt.run(worker(10**6), 2)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_process_that_is_killed_loses_nothing_that_it_has_answered(tmp_path):
    answered = []
    for pause in (30, 55):
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
        with child:
            answered += [child.stdout.readline().split() for _ in range(pause)]
            child.send_signal(signal.SIGKILL)
            answered += [line.split() for line in child.stdout]
    params = first()
    opt = distributed.Asynchronous(make(), None, params, shards=2, staleness=1, path=tmp_path / "run")
    for entries in opt.log().entries:
        pushes = [entry.worker for entry in entries if entry.kind == "push"]
        for number in range(4):
            told = sum(int(worker) == number for worker, _ in answered)
            assert 0 < told <= pushes.count(number) <= told + 1
    opt.run(worker(1))
    again = first()
    distributed.replay(opt.log(), make(), again, gradient)
    assert same_bits(again, params)


def test_a_shard_without_a_path_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    distributed.Asynchronous(make(), None, first()).run(worker(2))
    assert not list(tmp_path.iterdir())
    assert type(journal.saved(make(), first(), Options(), None, 0)) is Shard
