"""How long does a step take on a GPU: its traffic, its launches, its calls? Runs with -m gpu."""

import json
import re
from collections import defaultdict
from contextlib import suppress
from functools import partial
from itertools import cycle

import pytest

import fusedstep
from fusedstep.tools.bench.cases import NORMAL, SUBNORMAL, Case, rules
from fusedstep.tools.bench.contestants import AbsentError, Fusedstep, Job
from fusedstep.tools.bench.gpu import call_time, cupy, gpu_time, loop_time
from fusedstep.tools.bench.harness import Entry, Timing, host_time
from fusedstep.tools.bench.peers import PEERS, Torch, TorchForeach

pytestmark = pytest.mark.gpu
GPU = "cuda:0"
MEDIUM, LARGE, HUGE = 10**6, 10**8, 10**9
SHARES = {"limit": ">= 0.95", "copy": ">= 0.95"}
MANY = Case(size=64, count=10_000, device=GPU)


@pytest.mark.parametrize("rule", rules())
def test_rules(run, tell_case, rule):
    (measured,) = run([Torch], rule=rule, size=LARGE, device=GPU)
    tell_case(measured, SHARES | {"torch fused": ">= 1.1"})


@pytest.mark.parametrize(("dtype", "size"), [("float64", LARGE), ("bfloat16", LARGE), ("float32", HUGE)])
def test_dtypes_and_a_billion(run, tell_case, dtype, size):
    (measured,) = run([Torch], dtype=dtype, size=size, device=GPU)
    tell_case(measured, SHARES | {"torch fused": ">= 1.1"})


@pytest.mark.parametrize("size", [MEDIUM, LARGE])
def test_adam_against_everybody(run, tell_case, size):
    (measured,) = run(PEERS, size=size, device=GPU)
    tell_case(measured, {"torch fused": ">= 1.1"} if size == LARGE else None)


@pytest.mark.parametrize(
    "options", [{"clip_global_norm": 1.0}, {"skip_nonfinite": True}, {"ema": 0.999}], ids=", ".join
)
def test_options_over_plain(timed, tell, options):
    cases = Case(size=LARGE, device=GPU), Case(size=LARGE, device=GPU, options=tuple(options.items()))
    times = timed({str(case): Entry(Fusedstep(Job(case)).step) for case in cases}, clock=gpu_time)
    plain, mine = (times[str(case)] for case in cases)
    by_bytes = cases[1].moved / cases[0].moved
    tell(mine, relative_to={"plain": plain}, goals={"plain": f"<= {1.05 * by_bytes:.3f}"}, moved=cases[1].moved)


def test_list_of_large_tensors(run, tell_case):
    aligned, _ = run([Torch, TorchForeach], size=MEDIUM, count=200, odd=[False, True], device=GPU)
    tell_case(aligned, SHARES | {"torch fused": ">= 1.1"})


def test_list_of_small_tensors(run, tell_case):
    (measured,) = run([Torch], size=MANY.size, count=MANY.count, device=GPU)
    tell_case(measured, {"ours": "<= 25 us", "torch fused": ">= 20"})


@pytest.mark.parametrize("size", [MEDIUM, LARGE])
def test_subnormal_states(run, tell, size):
    normal, tiny = run(size=size, states=[NORMAL, SUBNORMAL], device=GPU)
    tell(tiny.ours.timing, relative_to={"normal": normal.ours.timing}, goals={"normal": "<= 1.05"})


@pytest.mark.parametrize("count", [1, 100, 10_000])
@pytest.mark.parametrize("what", ["same arrays", "same memory", "other memory"])
def test_host(timed, tell, count, what):
    """The seconds until a call returns, which is before the GPU has begun."""
    job = Job(Case(size=64, count=count, device=GPU))
    step = Fusedstep(job).step if what == "same arrays" else _with_gradients(job, what == "other memory")
    entries = {"ours": Entry(step)}
    with suppress(AbsentError):
        entries["torch fused"] = Entry(Torch(job).step)
    times = timed(entries, clock=call_time)
    tell(times.pop("ours"), times)


def _with_gradients(job, elsewhere):
    """Return a step that gets new gradient arrays each time, in the same memory or, `elsewhere`, in two in turn."""
    sets = [job.grads, Job(job.case).grads if elsewhere else [g[:] for g in job.grads]]
    params, step = job.params(), job.case.optimizer().step
    turn = cycle([(params, [g[:] for g in grads]) for grads in sets])
    return lambda: step(*next(turn))


def test_host_functional(timed, tell):
    job = Job(Case(size=64, device=GPU))
    arrays = [*job.params(), *job.grads, *(cupy().zeros_like(job.grads[0]) for _ in "mv")]
    step = partial(fusedstep.functional.adam, *arrays, t=10, lr=1e-3)
    (mine,) = timed({"functional": Entry(step)}, clock=call_time).values()
    tell(mine)


@pytest.mark.parametrize("clock", [gpu_time, loop_time, call_time])
@pytest.mark.parametrize("case", [Case(device=GPU), MANY], ids=str)
def test_replay_of_a_graph(timed, tell, case, clock):
    stream = cupy().cuda.Stream(non_blocking=True)
    job = Job(case)
    plain, captured = Fusedstep(job), Fusedstep(job)
    cupy().cuda.Device().synchronize()
    with stream:
        for one in (plain, captured):
            one.step()
        stream.begin_capture()
        try:
            captured.step()
        finally:
            graph = stream.end_capture()
        times = timed({"replay": Entry(graph.launch), "step": Entry(plain.step)}, clock=clock)
    tell(times.pop("replay"), relative_to=times)


@pytest.mark.parametrize("options", [(), (("clip_global_norm", 1.0),)], ids=["plain", "clipped"])
@pytest.mark.parametrize("size", [MEDIUM, MANY.size])
def test_launches(tell, tmp_path, size, options):
    """The number of launches of a step, as the profiler of torch sees them."""
    profiler = pytest.importorskip("torch.profiler")
    step = Fusedstep(
        Job(Case(size=size, count=MANY.count if size == MANY.size else 1, device=GPU, options=options))
    ).step
    calls, trace = 4, tmp_path / "trace.json"
    host_time(step, 3)
    cupy().cuda.Device().synchronize()
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA], acc_events=True) as seen:
        host_time(step, calls)
        cupy().cuda.Device().synchronize()
    seen.export_chrome_trace(str(trace))
    found = defaultdict(list)
    for event in json.loads(trace.read_text())["traceEvents"]:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            found[_short(event["name"])].append(event["dur"])
    assert found
    each = {name: f"{len(us) / calls:g} launches, {sum(us) / len(us):.1f} us" for name, us in found.items()}
    tell(Timing([sum(map(sum, found.values())) * 1e-6 / calls]), launches=sum(map(len, found.values())) / calls, **each)


def _short(kernel):
    """Return the name of a kernel without namespaces and parameters."""
    found = re.search(r"(\w+)\s*[<(]", kernel.replace("(anonymous namespace)::", ""))
    return found[1] if found else kernel
