"""Asynchronous training on threads: whatever order chance makes, the log gives the same bits again."""

import threading
import time

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import distributed, optimizers
from fusedstep.distributed.shard import Options, Shard
from tests.distributed.runs import SIZES, first, gradient, same_bits, worker

NAMES = [name for name in optimizers.__all__ if name != "Optimizer"]


def run(make, workers=3, steps=6, dtype="float32", naps=0.0, **options):
    """Return the last parameters and the log of a run, after they have been found again by a replay."""
    params = first(dtype)
    opt = distributed.Asynchronous(make(), None, params, timeout=30, **options)
    assert sorted(opt.run(worker(steps, dtype, naps), workers)) == list(range(workers))
    again = first(dtype)
    distributed.replay(opt.log(), make(), again, gradient)
    assert same_bits(again, params)
    assert not same_bits(again, first(dtype))
    return params, opt.log()


@pytest.mark.parametrize("name", NAMES)
def test_every_class_is_replayed(name):
    run(getattr(fs, name), shards=2, workers=2)


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("staleness", [None, 0, 2])
@pytest.mark.parametrize("dampen", [False, True])
def test_every_run_is_replayed(shards, staleness, dampen):
    def make():
        return fs.AdamW(lr=fs.schedules.cosine(0.05, steps=15), weight_decay=0.1, ema=0.9, clip_norm=0.5)

    _, log = run(make, shards=shards, staleness=staleness, dampen=dampen, naps=2e-3)
    assert [len(some) for some in log.entries] == [3 * 6 * 2] * shards
    assert sorted(key for keys in log.keys for key in keys) == sorted(SIZES)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "complex64"])
def test_every_type_is_replayed(dtype):
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    run(lambda: fs.Momentum(rounding="stochastic", seed=5), dtype=dtype, shards=2)


def test_one_worker_has_the_bits_of_plain_steps():
    def make():
        overrides = {"b": {"lr": 0.5}, fs.where(lambda key, p: p.ndim > 2): {"beta1": 0.5}, "*a*": {"eps": 1e-3}}
        return fs.Adam(lr=fs.schedules.cosine(0.1, steps=9), overrides=overrides, clip_norm=0.1)

    params, _ = run(make, workers=1, shards=3)
    plain, opt = first(), make()
    for step in range(6):
        opt.step(plain, gradient(plain, 0, step))
    assert same_bits(params, plain)


def test_an_optimizer_that_has_made_steps_goes_on(tmp_path):
    before, opt = first(), fs.Adam(lr=0.1)
    opt.step(before, gradient(before, 0, 0))
    params = {key: p.copy() for key, p in before.items()}
    distributed.Asynchronous(opt, None, params, shards=2, path=tmp_path / "run").run(worker(3))
    for step in range(3):
        opt.step(before, gradient(before, 0, step))
    assert same_bits(params, before)


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_staleness_bounds_how_far_a_worker_is_ahead(bound):
    opt = distributed.Asynchronous(fs.SGD(), None, first(), shards=2, staleness=bound, timeout=30)
    slow, fast = opt.another(), opt.another()
    assert (slow.worker, fast.worker) == (0, 1)
    mine, done = first(), threading.Event()

    def run_ahead():
        own = first()
        for _ in range(bound + 2):
            fast.pull(own)
            fast.push(gradient(own, 1, fast.done))
        done.set()

    thread = threading.Thread(target=run_ahead)
    thread.start()
    assert not done.wait(0.3)
    assert fast.done == bound + 1
    slow.pull(mine)
    slow.push(gradient(mine, 0, 0))
    assert done.wait(30)
    thread.join()
    order = "".join(f"{number}" for kind, number in opt.log().entries[0] if kind == "push")
    assert order == "1" * (bound + 1) + "01"


def test_lateness_divides_lr():
    params = {"p": np.zeros(2)}
    opt = distributed.Asynchronous(fs.SGD(lr=1.0), None, params, dampen=True)
    slow, fast, mine = opt.another(), opt.another(), {"p": np.zeros(2)}
    slow.pull(mine)
    for _ in range(4):
        fast.pull(mine)
        fast.push({"p": np.zeros(2)})
    slow.push({"p": np.array([-1.0, 2.0])})
    fast.pull(mine)
    assert mine["p"].tolist() == [0.25, -0.5]


def test_a_log_tells_lateness():
    params = {"p": np.zeros(2), "q": np.zeros(1)}
    opt = distributed.Asynchronous(fs.SGD(lr=1.0), None, params, shards=2)
    slow, fast, mine = opt.another(), opt.another(), {"p": np.zeros(2), "q": np.zeros(1)}
    slow.pull(mine)
    for _ in range(3):
        fast.pull(mine)
        fast.push(mine)
    slow.push(mine)
    slow.pull(mine)
    fast.pull(mine)
    slow.push(mine)
    slow.pull(mine)
    fast.pull(mine)  # a pull before, without a push, does not count
    fast.push(mine)
    assert opt.log().lateness() == [[0, 0, 0, 3, 0, 0]] * 2


def test_lateness_divides_a_schedule():
    params = {"p": np.zeros(1)}
    opt = distributed.Asynchronous(fs.SGD(lr=lambda t: 10.0 + t), None, params, dampen=True)
    slow, fast, mine = opt.another(), opt.another(), {"p": np.zeros(1)}
    slow.pull(mine)
    for _ in range(2):
        fast.pull(mine)
        fast.push({"p": np.zeros(1)})
    slow.push({"p": np.ones(1)})
    slow.pull(mine)
    assert mine["p"].item() == -(12.0 / 2)
    slow.push({"p": np.ones(1)})
    slow.pull(mine)
    assert mine["p"].item() == -6.0 - 13.0


def test_whole_tensors_are_dealt_to_the_shard_with_the_fewest_bytes():
    params = {f"p{i}": np.zeros(n) for i, n in enumerate([5, 90, 40, 30, 20, 60])}
    log = distributed.Asynchronous(fs.SGD(), None, params, shards=2).log()
    assert log.keys == (("p0", "p1", "p3"), ("p2", "p4", "p5"))


# Workers come and go.


def test_a_worker_that_raises_holds_up_nobody():
    def work(opt):
        params = first()
        for step in range(10):
            opt.pull(params)
            if opt.worker == 1 and step == 3:
                raise ArithmeticError("no gradient")
            opt.push(gradient(params, opt.worker, step))
        return "done"

    params = first()
    opt = distributed.Asynchronous(fs.Adam(), None, params, shards=2, staleness=0, timeout=30)
    with pytest.raises(ArithmeticError, match="no gradient") as found:
        opt.run(work, 3)
    assert found.value.__notes__ == ["raised by worker 1; all others have come to their end"]
    results = distributed.Asynchronous(fs.Adam(), None, first(), staleness=0, timeout=30).run(work, 3, may_fail=1)
    assert sorted(map(str, results)) == ["done", "done", "no gradient"]
    again = first()
    assert opt.run(work, 3) == ["done"] * 3  # new workers, of which none has the number 1
    distributed.replay(opt.log(), fs.Adam(), again, gradient)
    assert same_bits(again, params)


def test_workers_join_and_leave():
    params = first()
    opt = distributed.Asynchronous(fs.Adam(), None, params, shards=3, staleness=1, timeout=30)

    def work(mine):
        own = first()
        for step in range(8):
            mine.pull(own)
            mine.push(gradient(own, mine.worker, step))
            if mine.worker == 0 and step == 4:
                mine.leave()
                threads.append(threading.Thread(target=later))
                threads[0].start()
                return

    def later():
        other = opt.another()
        work(other)
        other.leave()
        numbers.append(other.worker if not other._gone else 2)

    threads, numbers = [], []
    opt.run(work, 2)
    threads[0].join(30)
    assert numbers == [2]
    last = first()
    opt.another().pull(last)
    again = first()
    distributed.replay(opt.log(), fs.Adam(), again, gradient)
    assert same_bits(again, last)
    pushes = [sum(e == ("push", n) for e in opt.log().entries[0]) for n in range(3)]
    assert pushes == [5, 8, 8]


def test_who_waits_for_a_dead_worker_is_told():
    opt = distributed.Asynchronous(fs.SGD(), None, first(), shards=2, staleness=0, timeout=0.2)
    dead, alive, params = opt.another(), opt.another(), first()
    dead.pull(params)
    alive.pull(params)
    alive.push(gradient(params, 1, 0))
    before = time.monotonic()
    with pytest.raises(TimeoutError, match=r"worker 1 has waited 0.2 s for worker 0, at 0: .* update 1, .* is 0"):
        alive.pull(params)
    assert time.monotonic() - before < 5
    opt.leave(dead.worker)
    alive.pull(params)
    with pytest.raises(RuntimeError, match="worker 0 is not among the workers 1"):
        dead.push(gradient(params, 0, 0))


# What is refused.


def test_arguments_are_refused():
    def refused(kind, words, optimizer=None, params=None, **options):
        with pytest.raises(kind, match=words):
            distributed.Asynchronous(optimizer or fs.SGD(), None, first() if params is None else params, **options)

    refused(TypeError, "optimizer is of type str", "SGD")
    refused(ValueError, "shards is 7, expected 1 to 6", shards=7)
    refused(ValueError, "shards is 0", shards=0)
    refused(ValueError, "staleness is -1", staleness=-1)
    refused(TypeError, "dampen is 1", dampen=1)
    refused(ValueError, "engine is 'mpi'", engine="mpi")
    refused(ValueError, "timeout is inf", timeout=float("inf"))
    refused(ValueError, "clip_global_norm is 1.0 with 2 shards", fs.SGD(clip_global_norm=1.0), shards=2)
    refused(ValueError, "zero_grad is True", fs.SGD(zero_grad=True))
    refused(ValueError, "overrides sets lr beside dampen", fs.SGD(overrides={"b": {"lr": 1.0}}), dampen=True)
    refused(ValueError, "fits no parameter", fs.SGD(overrides={"nobody": {"lr": 1.0}}))
    distributed.Asynchronous(fs.SGD(clip_global_norm=1.0), None, first(), shards=1)


def test_the_norm_of_all_gradients_is_that_of_one_shard():
    run(lambda: fs.SGD(lr=0.1, clip_global_norm=0.01), shards=1)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda a: a.pop("b"), ValueError, "grads lacks the key 'b'"),
        (lambda a: a.update(more=np.ones(2)), ValueError, "grads has the key 'more'"),
        (lambda a: a.update(b=a["b"].astype(np.float64)), TypeError, r"grads\['b'\] is float64, expected float32"),
        (lambda a: a.update(b=a["b"][:-1]), ValueError, r"grads\['b'\] has shape \(32,\), expected \(33,\)"),
    ],
)
def test_gradients_are_refused_before_anything_is_written(change, kind, words):
    opt, params = distributed.Asynchronous(fs.SGD(), None, first(), shards=2), first()
    opt.pull(params)
    grads = gradient(params, 0, 0)
    change(grads)
    with pytest.raises(kind, match=words):
        opt.push(grads)
    assert all(len(some) == 1 for some in opt.log().entries)
    opt.push(gradient(params, 0, 0))  # the worker goes on


def test_order_of_calls():
    opt, params = distributed.Asynchronous(fs.SGD(), None, first()), first()
    with pytest.raises(RuntimeError, match="push comes before a pull"):
        opt.push(gradient(params, 0, 0))
    opt.pull(params)
    opt.push(gradient(params, 0, 0))
    with pytest.raises(RuntimeError, match="push comes before a pull"):
        opt.push(gradient(params, 0, 0))
    params["w"].flags.writeable = False
    with pytest.raises(ValueError, match=r"'w'.*read-only"):
        opt.pull(params)
    opt.leave()
    opt.leave()
    with pytest.raises(RuntimeError, match="has left"):
        opt.pull(first())
    with pytest.raises(ValueError, match="workers is 0"):
        opt.run(worker(1), 0)


def test_a_step_that_a_server_refuses_ends_the_worker():
    opt = distributed.Asynchronous(fs.SGD(lr=lambda t: 0.1 if t < 2 else -1.0), None, first(), shards=2)
    with pytest.raises(ValueError, match="lr"):
        opt.run(worker(5))
    assert [e.kind for e in opt.log().entries[0]] == ["pull", "push"] * 2 + ["pull"]
    assert not any(shard.clock for shard in opt._servers._shards)  # nobody waits for it
    distributed.replay(opt.log(), fs.SGD(lr=0.1), first(), gradient)


# Logs.


def test_a_replay_finds_other_gradients():
    _, log = run(fs.Adam, shards=2)
    params = first()
    with pytest.raises(ValueError, match=r"shard . ends with other bits"):
        distributed.replay(log, fs.Adam(), params, lambda p, w, step: gradient(p, w, step + (w == 1 and step == 3)))
    assert same_bits(params, first())
    with pytest.raises(ValueError, match="params has the keys"):
        distributed.replay(log, fs.Adam(), first(keys=["w", "b"]), gradient)


def test_a_log_that_ends_in_the_middle_is_refused():
    _, log = run(fs.Adam, shards=2)
    cut = distributed.Log(log.keys, (log.entries[0][:4], log.entries[1]), log.digests, log.options)
    with pytest.raises(ValueError, match="middle of a step for shard"):
        distributed.replay(cut, fs.Adam(), first(), gradient)


def test_the_last_of_several_pulls_counts():
    opt, params = distributed.Asynchronous(fs.Adam(), None, first(), shards=2), first()
    mine, other = opt.another(), opt.another()
    for step in range(4):
        mine.pull(params)
        other.pull(params)
        other.push(gradient(params, 1, step))
        mine.pull(params)
        mine.push(gradient(params, 0, step))
    mine.pull(params)
    mine.pull(params)
    again = first()
    distributed.replay(opt.log(), fs.Adam(), again, gradient)
    assert same_bits(again, params)


def test_gradients_may_share_the_memory_of_parameters():
    params = first()
    opt = distributed.Asynchronous(fs.SGD(lr=0.1), None, params, shards=3)

    def work(mine):
        own = first()
        for _ in range(5):
            mine.pull(own)
            mine.push(own)

    opt.run(work, 3)
    again = first()
    distributed.replay(opt.log(), fs.SGD(lr=0.1), again, lambda p, worker, step: p)
    assert same_bits(again, params)


def test_a_gradient_function_may_use_its_arrays_again():
    """Here worker 1 computes before worker 0, and one shard is told so much later than the other."""
    keys, orders = (("a",), ("b",)), ([0, 1], [1, 0])
    shards = [Shard(fs.SGD(lr=0.5), {key: np.ones(3)}, Options()) for (key,) in keys]
    buffers = {"a": np.empty(3), "b": np.empty(3)}

    def compute(params, number, step):
        for key, g in buffers.items():
            g[...] = params[key] * (number + 1)
        return buffers

    for shard, order, (key,) in zip(shards, orders, keys, strict=True):
        for number in (0, 1):
            shard.join(number, 0)
            shard.pull(number)
        for number in order:
            shard.push(number, 0, {key: np.full(3, number + 1.0)})
    entries = tuple(tuple(shard.entries) for shard in shards)
    log = distributed.Log(keys, entries, tuple(shard.digest() for shard in shards), Options())
    params = {"a": np.ones(3), "b": np.ones(3)}
    distributed.replay(log, fs.SGD(lr=0.5), params, compute)
    assert same_bits(params, {key: shard.params[key] for shard, (key,) in zip(shards, keys, strict=True)})
