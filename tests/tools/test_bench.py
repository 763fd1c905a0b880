"""The benchmark: how time is taken, what is measured, who takes part, and heats."""

import gc
from dataclasses import replace

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu, reference
from fusedstep.tools.bench import cases, expressions, heats, machine, peers, roofs
from fusedstep.tools.bench.cases import Case, crossed, rules, tour
from fusedstep.tools.bench.contestants import AbsentError, Contestant, Fusedstep, Job, Limit, disagreements
from fusedstep.tools.bench.harness import Entry, Timing, race, ratio
from fusedstep.tools.bench.record import Row

RULES = [rule for rule in _cpu.rules if rule.isidentifier() and not rule.startswith("limit")]


class FakeClock:
    """A clock for kernels that do nothing: each has a name, and takes the seconds of a script, round by round."""

    def __init__(self, **scripts):
        self.scripts = scripts
        self.turns = []
        self.prepared = []

    def entry(self, name, **options):
        def step():
            """Do nothing."""

        step.name = name
        return Entry(step, lambda: self.prepared.append(name), **options)

    def __call__(self, step, calls):
        step()
        self.turns.append((step.name, calls))
        script = self.scripts[step.name]
        done = sum(name == step.name for name, _ in self.turns)
        return calls * (script(done) if callable(script) else script)


# The harness.


def test_rounds_are_interleaved_and_every_other_one_goes_backwards():
    clock = FakeClock(a=1e-3, b=1e-3, c=1e-3)
    race([clock.entry(name) for name in "abc"], 4, inner=1e-3, clock=clock)
    turns = [name for name, _ in clock.turns][3:]  # turns after the calibration
    assert "".join(turns[::2]) == "".join(turns[1::2]) == "abccbaabccba"  # a turn is warming up, then timing
    assert "".join(clock.prepared) == "abc" + "abccbaabccba"


def test_calls_fill_the_inner_loop():
    clock = FakeClock(fast=1e-6, slow=0.2)
    fast, slow = race([clock.entry("fast"), clock.entry("slow")], 3, inner=0.01, clock=clock)
    counts = {name: [calls for who, calls in clock.turns if who == name] for name in ("fast", "slow")}
    n = counts["fast"][-1]
    assert 10_000 <= n <= 13_000
    assert counts["fast"][-6:] == [n // 10, n] * 3  # to warm up, then to count
    assert counts["slow"] == [1] * 4  # one call takes long enough: nothing to warm up
    assert fast.seconds == pytest.approx([1e-6] * 3)
    assert slow.seconds == [0.2] * 3


def test_warming_up_takes_as_long_as_the_rest():
    clock = FakeClock(a=1e-4)
    race([clock.entry("a")], 1, inner=0.01, rest=0.05, clock=clock)
    warm_up, timed = (calls for _, calls in clock.turns[-2:])
    assert timed >= 100
    assert warm_up * 1e-4 == pytest.approx(0.05, rel=0.02)


def test_steps_per_call_count():
    clock = FakeClock(twice=1e-2)
    (timing,) = race([clock.entry("twice", steps=2)], 3, inner=0.01, clock=clock)
    assert timing.seconds == [0.5e-2] * 3


def test_median_and_spread():
    timing = Timing([5.0, 1.0, 3.0, 2.0, 100.0])
    assert timing.median == 3.0
    assert timing.iqr == 3.0  # the quartiles are 2 and 5
    assert Timing([7.0]).iqr == 0.0


def test_ratios_pair_the_rounds():
    ours, others = Timing([1.0, 2.0, 4.0]), Timing([3.0, 6.0, 12.0])  # whatever slowed one of them slowed both
    assert ratio(others, ours).median == 3.0
    assert ratio(others, ours).iqr == 0.0
    with pytest.raises(ValueError, match="zip"):
        ratio(others, Timing([1.0]))


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_waits(enabled):
    seen = []

    def step():
        seen.append(gc.isenabled())
        if len(seen) > 3:
            raise KeyError("step")

    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyError):
            race([Entry(step)], 5, clock=lambda step, calls: step() or 1.0)
        assert gc.isenabled() == enabled
        assert seen[-1] is False
    finally:
        gc.enable()


def test_real_time_is_taken():
    entry = Entry(lambda: sum(range(1000)))
    (timing,) = race([entry], 3, inner=1e-3)
    assert all(1e-7 < seconds < 1e-2 for seconds in timing.seconds)


def test_every_turn_is_reported():
    clock, turns = FakeClock(a=1e-2, b=1e-2), []
    race([clock.entry(name) for name in "ab"], 3, clock=clock, after_turn=lambda: turns.append(1))
    assert len(turns) == 6


# Cases.


@pytest.mark.parametrize(
    ("case", "moved", "held"),
    [
        (Case(), 28, 16),
        (Case("sgd"), 12, 8),
        (Case("amsgrad"), 36, 20),
        (Case(dtype="float64"), 56, 32),
        (Case(dtype="bfloat16"), 14, 8),
        (Case(dtype="float16", options=(("state_dtype", "float32"),)), 22, 12),
        (Case(grad_dtype="float16"), 26, 14),
        (Case(options=(("clip_global_norm", 1.0),)), 32, 16),
        (Case(options=(("ema", 0.9), ("zero_grad", True))), 40, 20),
        (Case(dtype="bfloat16", options=(("master_weights", "split"),)), 18, 10),
        (Case(dtype="bfloat16", options=(("master_weights", True), ("state_dtype", "float32"))), 30, 16),
    ],
    ids=str,
)
def test_bytes(case, moved, held):
    pytest.importorskip("ml_dtypes")
    assert case.bytes_per_parameter == moved
    assert case.held_per_parameter == held
    assert replace(case, size=10, count=3).moved == 30 * moved


def test_rules_are_those_of_the_engine():
    assert list(rules()) == RULES
    for rule in RULES:
        assert Case(rule).optimizer()._settings_with().rule == rule
        assert type(Case(rule).optimizer(reference)).__module__.startswith("fusedstep.reference")


def test_names():
    assert str(Case()) == "adam f32 1e6"
    assert str(Case("sgd", "bfloat16", 1234, count=7, odd=True)) == "sgd bf16 7 x 1234 odd"
    assert str(Case(states=1e-40, options=(("zero_grad", True), ("ema", 0.9)))) == (
        "adam f32 1e6 zero_grad ema=0.9 states 1e-40"
    )
    assert Case(threads=2, isa="avx2").where == "2 threads, avx2"
    assert Case(device="cuda:1").where == "cuda:1"
    assert [cases.short(n) for n in (1, 100, 1000, 102_400, 30_000_000)] == ["1", "100", "1e3", "102400", "3e7"]


def test_crossed_makes_heats_of_what_stands_beside_each_other():
    found = crossed(rule=["sgd", "adam"], size=[10, 20], threads=[1, 2], isa=["baseline", "avx2"])
    assert len(found) == 4
    for heat in found:
        assert {(case.threads, case.isa) for case in heat} == {(n, i) for n in (1, 2) for i in ("baseline", "avx2")}
        assert len({(case.rule, case.size) for case in heat}) == 1


def test_a_gpu_has_neither_threads_nor_instruction_sets():
    (heat,) = crossed(device=["cuda:0"], threads=[1, 2], isa=["avx2", "baseline"])
    assert heat == (Case(device="cuda:0", threads=0, isa=""),)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_tour_visits_every_axis(device, quick):
    every = [case for heat in tour(device, quick) for case in heat]
    assert {case.device for case in every} == {device}
    assert {case.dtype for case in every} == set(cases.dtypes())
    assert {True, False} == {case.odd for case in every}
    assert {0.0, 1e-3, 1e-40} == {case.states for case in every}
    assert {10**n for n in range(3, 8)} <= {case.size for case in every if case.count == 1}
    assert len({case.size for case in every if case.count == 1000}) >= 2
    if not quick:
        assert {case.rule for case in every} == set(RULES)
        assert 10**8 in {case.size for case in every}
    if device == "cpu":
        assert {case.isa for case in every} == set(_cpu.isas)
        assert {case.threads for case in every} >= set(cases.thread_counts())


# Jobs.


@pytest.mark.parametrize("dtype", cases.dtypes())
@pytest.mark.parametrize("count", [1, 7])
def test_arrays_of_a_job(dtype, count):
    job = Job(Case("adam", dtype, size=1000, count=count))
    p, again, g = job.params(), job.params(), job.grads
    assert len(p) == len(g) == count
    for a, b, c in zip(p, again, g, strict=True):
        assert a.size == c.size == 1000
        assert a.dtype == c.dtype == cases.dtype_of(dtype)
        assert a.ctypes.data % 64 == c.ctypes.data % 64 == 0
        assert (a == b).all()
        assert not np.shares_memory(a, b)
        size = np.abs(a.astype(np.float64))
        assert 0.015 < size.min() <= size.max() < 0.063
        assert np.abs(c.astype(np.float64)).min() > 0.09
        assert (a.astype(np.float64) < 0).any()


def test_odd_arrays():
    job = Job(Case(size=1000, count=12, odd=True))
    assert len({g.size for g in job.grads}) == 6
    assert all(g.ctypes.data % 64 in (4, 8, 12) for g in job.grads)
    assert [p.size for p in job.params()] == [g.size for g in job.grads]
    assert all(p.ctypes.data % 16 for p in job.params())


def test_gradients_change_in_place():
    job = Job(Case(size=3 * 2**20 + 5))
    before = job.grads[0].copy()
    job.set_grads(-0.5)
    assert (job.grads[0] == -0.5 * before).all()
    assert (before[: 2**20] == before[2**20 : 2**21]).all()  # random numbers repeat in a longer array


def test_states_that_are_set_have_no_gradient():
    assert not Job(Case(size=100, states=1e-40)).grads[0].any()


def test_sample_holds_the_ends():
    job = Job(Case(size=10**6))
    (p,) = job.params()
    p[0], p[-1], p[-2] = 11, 12, 13
    sample = job.sample([p])
    assert {11, 12, 13} <= set(sample.tolist())
    assert sample.size < 100_000
    few = Job(Case(size=7, count=3))
    assert few.sample(few.params()).size == 21


# Contestants.


@pytest.mark.parametrize("dtype", cases.dtypes())
@pytest.mark.parametrize("rule", RULES)
def test_ours_does_not_differ_from_the_reference(rule, dtype):
    job = Job(Case(rule, dtype, size=4099))
    assert disagreements(job, [Fusedstep(job)]) == [(0.0, 0.0)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", expressions.__all__)
def test_expressions_do_the_same_work(rule, dtype):
    job = Job(Case(rule, dtype, size=4099, count=2))
    ours, other = disagreements(job, [Fusedstep(job), peers.Expression(job)])
    assert ours == (0.0, 0.0)
    assert other[1] < 1e-3  # as a share of the largest change: expressions round in another order
    assert Row("numpy", [1.0], *other).agrees


def test_a_rule_that_nobody_wrote_down_has_no_expression(monkeypatch):
    assert set(expressions.__all__) <= set(RULES)
    monkeypatch.delattr(expressions, "lion")
    with pytest.raises(AbsentError, match="nobody wrote down lion f32 10"):
        peers.Expression(Job(Case("lion", size=10)))


class Lazy(Fusedstep):
    """A contestant that leaves out the last element."""

    name = "lazy"

    def __init__(self, job):
        super().__init__(job)
        (p,) = self._params
        self.step = lambda: self.optimizer.step(p[:-1], job.grads[0][:-1])


class Careless(Fusedstep):
    """A contestant with another learning rate."""

    name = "careless"

    def __init__(self, job):
        super().__init__(job)
        self.optimizer.lr *= 1.1


class Exact(Fusedstep):
    """A contestant that does the same as fusedstep."""

    name = "exact"

    def set_states(self, value):
        super().set_states(value)
        self.was_set = value


class Missing(Contestant):
    name = "missing"

    def __init__(self, job):
        raise AbsentError("not here")


class Broken(Exact):
    """A contestant that says at its first step that it lacks a kernel."""

    name = "broken"

    def __init__(self, job):
        super().__init__(job)
        self.step = lambda: {}["no kernel"]


class Stateless(Exact):
    name = "stateless"
    set_states = Contestant.set_states


@pytest.mark.parametrize("dtype", cases.dtypes())
@pytest.mark.parametrize("cheat", [Lazy, Careless])
def test_who_does_less_is_found_out(cheat, dtype):
    job = Job(Case(dtype=dtype, size=1000))
    ours, other = disagreements(job, [Fusedstep(job), cheat(job)])
    assert not Row("cheat", [1.0], *other).agrees
    assert ours == (0.0, 0.0)


def test_compared_steps_leave_the_gradients_as_they_were():
    job = Job(Case(size=100))
    before = job.grads[0].copy()
    disagreements(job, [Fusedstep(job)])
    assert (job.grads[0] == before).all()


def test_norms_are_compared_with_ours():
    job = Job(Case(size=1000, options=(("clip_global_norm", 1.0),)))
    assert job.expected() is None
    assert disagreements(job, [Fusedstep(job), Exact(job)]) == [(None, None), (0.0, 0.0)]


@pytest.mark.parametrize("rule", RULES)
def test_limit_leaves_gradients_and_states_as_they_were(rule):
    job = Job(Case(rule, size=1000, count=2))
    ours = Fusedstep(job)
    limit = Limit(ours)
    states = [a for each in ours.optimizer.state.values() for a in each.values()]
    expected = [a.copy() for a in (*job.grads, *states)] + [
        p - g - g for p, g in zip(ours.params(), job.grads, strict=True)
    ]
    limit.step()
    for a, b in zip((*job.grads, *states, *ours.params()), expected, strict=True):
        assert a.tobytes() == b.tobytes()


def test_another_optimizer_takes_the_place_of_that_of_the_case():
    job = Job(Case("sgd", size=100))
    (before,), one = job.params(), Fusedstep(job, optimizer=fs.SGD(lr=0.5))
    one.step()
    assert (one.params()[0] == before - np.float32(0.5) * job.grads[0]).all()


def test_a_dict_is_stepped_too():
    job = Job(Case(size=10, count=3))
    listed, mapped = Fusedstep(job), Fusedstep(job, mapping=True)
    for one in (listed, mapped):
        one.step()
    assert list(mapped.optimizer.t) == ["layer0.weight", "layer1.weight", "layer2.weight"]
    assert all((a == b).all() for a, b in zip(listed.params(), mapped.params(), strict=True))


def test_states_are_set_by_their_bits():
    job = Job(Case(size=10, states=1e-40))
    ours = Fusedstep(job)
    ours.step()
    ours.set_states(1e-40)
    assert all(a.view(np.uint32).tolist() == [71362] * 10 for a in ours.optimizer.state[0].values())


@pytest.mark.parametrize("cls", peers.PEERS, ids=lambda cls: cls.name)
@pytest.mark.parametrize("dtype", cases.dtypes())
@pytest.mark.parametrize("rule", RULES)
def test_peers_that_are_installed_agree(rule, dtype, cls):
    if "cpu" not in cls.kinds:
        pytest.skip("runs on a GPU")
    if cls.name == "deepspeed":
        pytest.skip("compiles for a minute")
    job = Job(Case(rule, dtype, size=4099, threads=machine.processors()))
    try:
        peer = cls(job)
    except AbsentError as error:
        pytest.skip(str(error))
    apart = disagreements(job, [Fusedstep(job), peer])[1]
    broken = cls is peers.Torch and rule in ("sgd", "momentum", "nag") and dtype in ("float16", "bfloat16")
    assert Row(cls.name, [1.0], *apart).agrees != broken  # a defect of torch 2.13: it skips whole vectors


def test_operations_are_counted():
    assert roofs.operations("sgd") == 2  # lr * g, p - u
    assert roofs.operations("momentum") == 5
    assert roofs.operations("adam") == 13
    assert all(roofs.operations(rule) > 1 for rule in RULES)


# Heats.


def fake_run(heat, wanted, seconds, **options):
    """Run a heat whose entries take `seconds`, in the order of the entries, whatever they do."""
    known, order = {}, iter(seconds)

    def clock(step, calls):
        step()
        if step not in known:
            known[step] = next(order)
        return calls * known[step]

    return heats.run(heat, wanted, 3, rest=0.0, clock=clock, **options)


def test_heat(monkeypatch):
    # Seconds of the clock, of work on all processors, and of work for this process.
    before, clock = fs.info(), iter([(10.0, 20.0, 5.0), (12.0, 25.0, 7.0)])
    monkeypatch.setattr(heats, "busy", lambda: next(clock))
    (found,) = fake_run(
        (Case(size=1000, isa=_cpu.isas[-1]),), [Exact, Missing, Broken, Careless], [0.01, 0.016, 0.03, 0.02]
    )
    assert [row.name for row in found.rows] == ["fusedstep", "limit", "exact", "careless"]
    # A call of the limit makes two steps.
    assert [row.timing.median for row in found.rows] == pytest.approx([0.01, 0.008, 0.03, 0.02])
    assert [row.agrees for row in found.rows] == [True, True, True, False]
    assert found.absent == {"missing": "not here", "broken": "fails: KeyError: 'no kernel'"}
    assert found.share.median == pytest.approx(0.8)
    assert {name: each.median for name, each in found.ratios.items()} == pytest.approx({"exact": 3, "careless": 2})
    assert found.ns_per_parameter == pytest.approx(1e4)
    assert found.gb_per_s == pytest.approx(28e3 / 0.01 / 1e9)
    assert found.disturbed == 1.5
    assert fs.info() | {"isa_from": "", "threads_from": ""} == before | {"isa_from": "", "threads_from": ""}


def test_heat_sets_threads_and_instruction_set_before_each_turn():
    seen = set()

    class Spy(Exact):
        def __init__(self, job):
            super().__init__(job)
            mine = job.case.threads, job.case.isa
            step = self.step
            if job.case.size == 100:  # smaller cases are only trials
                self.step = lambda: seen.add((mine, (_cpu.num_threads(), _cpu.isa()))) or step()

    (heat,) = crossed(size=[100], threads=[1, 3], isa=[_cpu.isas[-1]])
    fake_run(heat, [Spy], [0.1] * 6)
    assert seen == {((n, _cpu.isas[-1]),) * 2 for n in (1, 3)}


def test_a_contestant_prepares_each_of_its_turns():
    chosen, seen = [], set()

    class Chooser(Exact):
        def __init__(self, job):
            super().__init__(job)
            step = self.step
            if job.case.size == 100:  # smaller cases are only trials
                self.step = lambda: seen.add((self.name, *chosen)) or step()

        def prepare(self):
            chosen[:] = [self.name]

    other = type("Other", (Chooser,), {"name": "other"})
    fake_run((Case(size=100, isa=_cpu.isas[-1]),), [Chooser, other], [0.1] * 4)
    assert seen == {("exact", "exact"), ("other", "other")}


@pytest.mark.skipif(len(_cpu.isas) < 2, reason="one instruction set")
def test_peers_do_not_depend_on_our_instruction_set():
    (heat,) = crossed(size=[100], isa=_cpu.isas)
    found = fake_run(heat, [Exact], [0.1] * 9)
    assert [len(each.rows) for each in found] == [2] * (len(_cpu.isas) - 1) + [3]


def test_states_are_set_before_each_step():
    (heat,) = crossed(rule=["momentum"], size=[100], states=[1e-3, 1e-40], isa=[_cpu.isas[-1]])
    normal, tiny = fake_run(heat, [Exact, Stateless], [0.1, 0.2, 0.3, 0.4])
    for each in (normal, tiny):
        # There is no limit, as it would be timed together with the setting of states.
        assert [row.name for row in each.rows] == ["fusedstep", "exact"]
        assert each.absent == {"stateless": "its states cannot be set"}
        assert {row.ulp for row in each.rows} == {None}


def test_estimates_grow_with_the_work():
    small, large = ((Case(size=size),) for size in (10**3, 10**8))
    assert heats.estimate(small, [], 5) < heats.estimate(large, [], 5) < heats.estimate(large, [Exact], 5)
    assert heats.entries((Case(), Case()), [Exact]) == 6


def test_what_does_not_fit_is_not_begun(monkeypatch):
    assert heats.fits((Case(size=1000),), [])
    monkeypatch.setattr(heats, "available_bytes", lambda device: 10**6)
    assert heats.fits((Case(size=1000),), [])
    assert not heats.fits((Case(size=10**6),), [])
