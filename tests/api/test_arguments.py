"""Yours or an error: every refusal has its type and its message, and has changed nothing."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fusedstep as fs
from fusedstep import _cpu, functional
from fusedstep.tools import verify
from tests.api.arrays import F32, ones, read_only, unaligned


class Device:
    """Something on a GPU, as far as anybody can tell without one."""

    @property
    def __cuda_array_interface__(self):
        return {"shape": (8,), "typestr": "<f4", "data": (4096, False), "version": 3}


class DeviceWithDLPack:
    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **options):
        raise AssertionError("never asked for")


BAD_PARAM = [
    ([1.0, 2.0], TypeError, "params[0] is of type float, expected an array"),
    ("p", TypeError, "params is of type str, expected an array, or containers of arrays: dicts, lists"),
    (b"p", TypeError, "params is of type bytes"),
    (None, TypeError, "params is of type NoneType"),
    (3, TypeError, "params is of type int"),
    (np.float32(1), TypeError, "param is of type numpy.float32, expected an array"),
    ((x for x in ()), TypeError, "params is of type generator, which can be read only once, expected a list"),
    ({ones(1).tobytes()}, TypeError, "params is of type set, which has no order, expected a list"),
    (ones(dtype=np.longdouble), TypeError, "param is "),
    (ones(dtype=np.uint16), TypeError, "param is uint16, expected float32, float64, float16 or bfloat16"),
    (ones(dtype=ml_dtypes.float8_e5m2), TypeError, "param is float8_e5m2, expected float32"),
    (ones(dtype=">f2"), TypeError, "param is >f2, expected float32, float64, float16 or bfloat16 in native byte order"),
    (np.zeros(8, [("x", ml_dtypes.bfloat16)]), TypeError, "param is [('x', "),
    (ones(dtype=np.int64), TypeError, "param is int64, expected float32, float64, float16 or bfloat16"),
    (ones(dtype=np.clongdouble), TypeError, "param is complex256, expected float32, float64, float16 or bfloat16"),
    (ones(dtype=object), TypeError, "param is object, expected float32, float64, float16 or bfloat16"),
    (np.zeros(8, "V2"), TypeError, "param is |V2, expected float32, float64, float16 or bfloat16"),
    (np.zeros(8, [("x", "f4")]), TypeError, "param is [('x', '<f4')], expected float32, float64, float16 or bfloat16"),
    (ones(dtype=">f4"), TypeError, "param is >f4, expected float32, float64, float16 or bfloat16 in native byte order"),
    (np.ma.ones(8, F32), TypeError, "param is a masked array, expected a plain one"),
    (read_only(), ValueError, "param is read-only, expected a writable array"),
    (np.ones((4, 4), F32).T[:2], ValueError, "param has gaps or negative strides, expected dense memory"),
    (np.lib.stride_tricks.as_strided(ones(9), (4, 4), (8, 4)), ValueError, "param has gaps or negative strides"),
    (ones(16)[::2], ValueError, "param has gaps or negative strides, expected dense memory"),
    (ones()[::-1], ValueError, "param has gaps or negative strides, expected dense memory"),
    (np.broadcast_to(F32(1), (8,)), ValueError, "param has gaps or negative strides, expected dense memory"),
    (unaligned(), ValueError, "param is unaligned, expected an address that is a multiple of 4 bytes"),
    (unaligned(dtype=np.float64), ValueError, "param is unaligned, expected an address that is a multiple of 8 bytes"),
    (Device(), RuntimeError, "param is on a GPU, "),
    (DeviceWithDLPack(), (RuntimeError, TypeError), "param is of type "),  # CuPy, which is not here, might view it
]


@pytest.mark.parametrize(("param", "error", "message"), BAD_PARAM, ids=range(len(BAD_PARAM)))
def test_bad_params(param, error, message):
    grads = param if isinstance(param, (list, np.ndarray)) else ones()
    optimizer = fs.Adam()
    with pytest.raises(error) as caught:
        optimizer.step(param, grads)
    assert str(caught.value).startswith(message)
    assert not optimizer.state
    assert not optimizer.t


BAD_GRAD = [
    (ones(dtype=np.int64), TypeError, "is int64, expected float32, float64, float16 or bfloat16"),
    (ones(dtype=np.complex64), TypeError, "is complex64, expected real numbers like "),
    (ones(dtype=">f4"), TypeError, "is >f4, expected float32, float64, float16 or bfloat16 in native byte order"),
    (ones(9), ValueError, "has shape (9,), expected (8,) like "),
    (ones(8).reshape(2, 4), ValueError, "has shape (2, 4), expected (8,) like "),
    (np.ones((), F32), ValueError, "has shape (), expected (8,) like "),
    (np.ma.ones(8, F32), TypeError, "is a masked array"),
    (7, TypeError, "is of type int, expected an array"),
    (True, TypeError, "is of type bool, expected an array"),
    ([1.0] * 8, TypeError, "is of type list, expected an array"),
    (Device(), RuntimeError, "is on a GPU, "),
]


@pytest.mark.parametrize(("grad", "error", "message"), BAD_GRAD, ids=range(len(BAD_GRAD)))
@pytest.mark.parametrize("steps", [0, 1])
def test_a_bad_gradient_at_the_end_of_a_long_list_changes_nothing(grad, error, message, steps):
    keys = [f"w{i}" for i in range(200)]
    params = {key: ones() for key in keys}
    good = {key: ones() for key in keys}
    optimizer = fs.Adam(weight_decay=0.1)
    for _ in range(steps):
        optimizer.step(params, good)
    before = {key: p.copy() for key, p in params.items()}
    state = {key: {n: s.copy() for n, s in some.items()} for key, some in optimizer.state.items()}
    counts = dict(optimizer.t)
    with pytest.raises(error) as caught:
        optimizer.step(params, good | {"w199": grad})
    assert str(caught.value).startswith("grads['w199'] " + message)
    assert "like " not in message or str(caught.value).endswith("like params['w199']")
    assert verify.difference(list(params.values()), list(before.values())) == 0
    assert dict(optimizer.t) == counts
    assert optimizer.state.keys() == state.keys()
    for key, some in state.items():
        assert verify.difference(list(optimizer.state[key].values()), list(some.values())) == 0
    optimizer.step(params, good)  # the optimizer is still of use
    assert set(optimizer.t.values()) == {steps + 1}


def test_names_in_messages():
    for params, grads, name in (
        (ones(), ones(3), "grad has shape (3,), expected (8,) like param"),
        ([ones(), ones()], [ones(), ones(3)], "grads[1] has shape (3,), expected (8,) like params[1]"),
        (
            {("a", 1): ones()},
            {("a", 1): ones(3)},
            "grads[('a', 1)] has shape (3,), expected (8,) like params[('a', 1)]",
        ),
    ):
        with pytest.raises(ValueError, match="has shape") as caught:
            fs.SGD().step(params, grads)
        assert str(caught.value) == name


def test_containers_must_agree():
    optimizer = fs.SGD()
    with pytest.raises(TypeError, match=r"^grads is a mapping, expected a sequence like params$"):
        optimizer.step([ones()], {0: ones()})
    with pytest.raises(TypeError, match=r"^grads is one array, expected a mapping like params$"):
        optimizer.step({"a": ones()}, ones())
    with pytest.raises(ValueError, match=r"^grads has 1 items, expected 2 like params$"):
        optimizer.step([ones(), ones()], [ones()])
    with pytest.raises(ValueError, match=r"^grads\['b'\] belongs to no parameter"):
        optimizer.step({"a": ones()}, {"a": ones(), "b": ones()})
    assert not optimizer.t


def test_overlap_with_an_array_that_is_written_is_refused():
    whole = np.zeros(32, F32)
    p, q, g = whole[:8], whole[8:16], ones()
    cases = [
        ([p, p], [ones(), ones()], r"^params\[1\] overlaps params\[0\] in memory"),
        ([p, whole[7:15]], [ones(), ones()], r"^params\[1\] overlaps params\[0\]"),
        ([p, whole[:8].view()], [ones(), ones()], "overlaps"),
        ([p, q], [ones(), whole[15:23]], r"^grads\[1\] overlaps params\[1\]"),
        ([p, q], [ones(), p], r"^grads\[1\] overlaps params\[0\]"),
        (p, p, r"^grad overlaps param"),
    ]
    for params, grads, message in cases:
        optimizer = fs.Momentum()
        with pytest.raises(ValueError, match=message):
            optimizer.step(params, grads)
        assert not optimizer.state
    fs.Momentum().step([p, q], [whole[16:24], whole[24:]])  # neighbours are no overlap
    fs.Momentum().step([p, q], [g, g])  # gradients are only read
    with pytest.raises(ValueError, match=r"^grads\[1\] overlaps grads\[0\]"):
        fs.Momentum(zero_grad=True).step([p, q], [g, g])


def test_overlap_with_a_state_is_refused():
    p, g = ones(), ones()
    optimizer = fs.Adam()
    optimizer.step(p, g)
    m = optimizer.state[0]["m"]
    before = p.copy(), m.copy()
    with pytest.raises(ValueError, match=r"^state\[0\]\['m'\] overlaps grad in memory"):
        optimizer.step(p, m)
    with pytest.raises(ValueError, match=r"^state\[0\]\['m'\] overlaps param in memory"):
        optimizer.step(m, g)
    # A later parameter must not be the state of an earlier one either, and the refused step leaves no trace.
    with pytest.raises(ValueError, match="overlaps"):
        optimizer.step([p, m], [g, ones()])
    assert verify.difference([p, m], list(before)) == 0
    assert dict(optimizer.t) == {0: 1}
    assert list(optimizer.state) == [0]


def test_overlap_that_appears_in_a_later_step():
    params, grads = [ones() for _ in range(5)], [ones() for _ in range(5)]
    optimizer = fs.Adam()
    for _ in range(2):
        optimizer.step(params, grads)
    for bad in ([*grads[:4], params[4]], [*grads[:4], params[2]], [params[0], *grads[1:]]):
        for _ in range(2):  # twice, since a refusal must not make the plan know the arrays
            with pytest.raises(ValueError, match="overlaps"):
                optimizer.step(params, bad)
    optimizer.step(params, [*reversed(grads)])
    optimizer.step([*reversed(params)], grads)


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")  # it still is possible
def test_the_plan_notices_every_change():
    """A plan recognises arrays that it has checked before, so it has to see whatever has changed since."""
    optimizer, p, g = fs.Adam(), ones(), ones()
    optimizer.step([p], [g])
    p.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        optimizer.step([p], [g])
    p.flags.writeable = True
    g.shape = (2, 4)
    with pytest.raises(ValueError, match=r"grads\[0\] has shape \(2, 4\)"):
        optimizer.step([p], [g])
    g.shape = (8,)
    optimizer.step([p], [g])
    with pytest.raises(ValueError, match=r"^params\[0\] has shape \(9,\), expected \(8,\) like state\[0\]\['m'\]"):
        optimizer.step([ones(9)], [ones(9)])
    with pytest.raises(TypeError, match=r"^params\[0\] is float64, expected float32 like state\[0\]\['m'\]"):
        optimizer.step([ones(dtype=np.float64)], [ones(dtype=np.float64)])
    p.resize(4, refcheck=False)
    g.resize(4, refcheck=False)
    with pytest.raises(ValueError, match=r"^params\[0\] has shape \(4,\)"):
        optimizer.step([p], [g])
    q = ones()
    optimizer.step([q], [ones()])
    assert optimizer.t[0] == 3
    assert (q != 1).all()


def test_a_parameter_of_another_dtype_at_the_same_address():
    buffer = np.zeros(8, F32)
    a, b = buffer[:4], buffer[4:]
    optimizer = fs.SGD()
    optimizer.step([a, b], [ones(4), ones(4)])
    with pytest.raises(ValueError, match=r"^params\[1\] overlaps params\[0\]"):
        optimizer.step([buffer.view(np.float64), b], [np.ones(4), ones(4)])


def test_the_memory_of_a_state_cannot_be_resized():
    optimizer = fs.Adam()
    optimizer.step(ones(), ones())
    with pytest.raises(ValueError, match="resize"):
        optimizer.state[0]["m"].base.resize(1)


def test_new_arrays_at_the_same_address():
    optimizer, specification = fs.SGD(lr=1.0), []
    for n in (8, 4, 16, 8):
        p = ones(n)
        optimizer.step(p, ones(n))
        specification.append((p == 0).all())
    assert all(specification)


@pytest.mark.parametrize("name", functional.__all__)
def test_functional_refuses_by_name(name, own_state):
    function = getattr(functional, name)

    def call(p, g, changes=(), **more):
        clock = dict.fromkeys(_cpu.rules[name].memory, 0.0) | ({"t": 1} if _cpu.rules[name].counts else {})
        states = own_state(function, 8, F32) | dict(changes)
        function(p, g, *states.values(), **({"lr": 0.1} | clock | more))
        return states

    call(ones(), ones())
    with pytest.raises(TypeError, match=r"^p is int64, expected float32, float64, float16 or bfloat16"):
        call(ones(dtype=np.int64), ones())
    with pytest.raises(ValueError, match=r"^g has shape \(3,\), expected \(8,\) like p$"):
        call(ones(), ones(3))
    with pytest.raises(TypeError, match=r"^g is of type list, expected an array"):
        call(ones(), [ones()])
    with pytest.raises(ValueError, match=r"^lr is -1, expected 0 <= lr < inf"):
        call(ones(), ones(), lr=-1)
    with pytest.raises(TypeError, match=r"^lr is True, expected a number"):
        call(ones(), ones(), lr=True)
    with pytest.raises(TypeError, match=r"^weight_decay is 'x', expected a number"):
        call(ones(), ones(), weight_decay="x")
    if "t" in function.__annotations__:
        for t in (0, -1, -(2**63), -(2**70), 2**63 - 1, 2**70):
            with pytest.raises(ValueError, match=r"^t is -?\d+, expected the number of this update"):
                call(ones(), ones(), t=t)
        for t in (1.0, "1", None, True):
            with pytest.raises(TypeError, match=r"^t is .*, expected the number of this update"):
                call(ones(), ones(), t=t)
    for state in own_state(function, 1, F32):
        with pytest.raises(ValueError, match=rf"^{state} is read-only, expected a writable array"):
            call(ones(), ones(), {state: read_only()})
        p = ones()
        with pytest.raises(ValueError, match=rf"^{state} overlaps p in memory"):
            call(p, ones(), {state: p})


def test_functional_lists():
    with pytest.raises(ValueError, match=r"^g has 1 arrays, expected 2 like p$"):
        functional.sgd([ones(), ones()], [ones()], lr=0.1)
    with pytest.raises(TypeError, match=r"^g is no list, expected a list of arrays like p$"):
        functional.sgd([ones(), ones()], ones(), lr=0.1)
    with pytest.raises(ValueError, match=r"^g\[1\] has shape"):
        functional.sgd([ones(), ones()], [ones(), ones(3)], lr=0.1)
    p = ones()
    with pytest.raises(ValueError, match=r"^p\[1\] overlaps p\[0\]"):
        functional.sgd([p, p], [ones(), ones()], lr=0.1)
    functional.sgd([], [], lr=0.1)


HYPERPARAMETERS = [
    ("lr", -0.1, ValueError, "lr is -0.1, expected 0 <= lr < inf"),
    ("lr", float("nan"), ValueError, "lr is nan, expected 0 <= lr < inf"),
    ("lr", float("inf"), ValueError, "lr is inf"),
    ("lr", "0.1", TypeError, "lr is '0.1', expected a number"),
    ("lr", 10**400, ValueError, "lr is 1000"),
    ("lr", None, TypeError, "lr is None, expected a number"),
    ("lr", np.ones(2), TypeError, "lr is an array of dtype float64 and shape (2,), expected a number"),
    ("lr", 1j, TypeError, "lr is 1j, expected a number"),
    ("beta1", 1.0, ValueError, "beta1 is 1.0, expected 0 <= beta1 < 1"),
    ("beta2", -1e-9, ValueError, "beta2 is -1e-09, expected 0 <= beta2 < 1"),
    ("eps", -1, ValueError, "eps is -1, expected 0 <= eps < inf"),
    ("eps_mode", "beside", ValueError, "eps_mode is 'beside', expected one of 'outside', 'hat', 'inside'"),
    ("eps_mode", 1, TypeError, "eps_mode is 1, expected one of"),
    ("amsgrad", 1, TypeError, "amsgrad is 1, expected True or False"),
    ("weight_decay", -0.01, ValueError, "weight_decay is -0.01, expected 0 <= weight_decay < inf"),
    ("maximize", None, TypeError, "maximize is None, expected True or False"),
    ("overrides", [], TypeError, "overrides is of type list, expected a mapping"),
    ("overrides", {"a": 1}, TypeError, "overrides['a'] is 1, expected a mapping"),
    ("overrides", {"a": {"lr": -1}}, ValueError, "overrides['a']['lr'] is -1, expected 0 <= lr < inf"),
    (
        "overrides",
        {"a": {"rate": 1}},
        TypeError,
        "overrides['a']['rate'] is no hyperparameter of Adam, expected",
    ),
    ("overrides", {"a": {"overrides": {}}}, TypeError, "overrides['a']['overrides'] is no hyperparameter of Adam"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), HYPERPARAMETERS, ids=range(len(HYPERPARAMETERS)))
def test_bad_hyperparameters_at_construction_and_later(name, value, error, message):
    with pytest.raises(error) as caught:
        fs.Adam(**{name: value})
    assert str(caught.value).startswith(message)
    optimizer = fs.Adam()
    kept = getattr(optimizer, name)
    with pytest.raises(error) as caught:
        setattr(optimizer, name, value)
    assert str(caught.value).startswith(message)
    assert getattr(optimizer, name) == kept
    optimizer.step(ones(), ones())


@pytest.mark.parametrize("cls", fs.optimizers.classes())
def test_an_option_that_is_not_there_is_never_ignored(cls):
    for option in ("nesterov", "learning_rate", "betas", "clip"):
        with pytest.raises(TypeError, match=option):
            cls(**{option: 1.0})
        with pytest.raises(TypeError, match=rf"^{option} is no hyperparameter of {cls.__name__}, expected "):
            setattr(cls(), option, 1.0)
        with pytest.raises(TypeError, match=option):
            cls().step(ones(), ones(), **{option: 1.0})


def test_decay_that_is_always_decoupled():
    with pytest.raises(TypeError, match="decoupled"):
        fs.AdamW(decoupled=True)
    with pytest.raises(TypeError, match=r"^decoupled is no hyperparameter of AdamW"):
        fs.AdamW().decoupled = False
    assert fs.AdamW().decoupled is True


def test_a_schedule_that_fails_changes_nothing():
    def crash(done):
        raise KeyError(done)

    for rate, error, message in (
        (lambda done: -1.0, ValueError, r"^lr\(0\) is -1.0, expected 0 <= lr < inf"),
        (lambda done: "x", TypeError, r"^lr\(0\) is 'x', expected a number"),
        (crash, KeyError, "0"),
    ):
        optimizer, p = fs.Adam(lr=rate), ones()
        with pytest.raises(error, match=message):
            optimizer.step(p, ones())
        assert (p == 1).all()
        assert not optimizer.state
        assert not optimizer.t


def test_overrides_that_fit_nothing_or_ask_for_another_rule():
    optimizer, p = fs.Adam(overrides={"bias*": {"lr": 0.1}}), ones()
    with pytest.raises(ValueError, match=r"^overrides\['bias\*'\] fits no parameter"):
        optimizer.step({"w": p}, {"w": ones()})
    with pytest.raises(ValueError, match=r"^overrides\['b'\] asks for the rule amsgrad, expected .* adam"):
        fs.Adam(overrides={"b": {"amsgrad": True}})
    with pytest.raises(ValueError, match=r"asks for the rule rmsprop, expected .* rmsprop_momentum"):
        fs.RMSprop(momentum=0.9, overrides={"b": {"momentum": 0.0}})
    assert (p == 1).all()


def test_empty_and_scalar_arrays():
    empty, scalar, nothing = np.zeros((0, 3), F32), np.ones((), F32), np.zeros(0)
    optimizer = fs.Adam(lr=0.5)
    for _ in range(2):
        optimizer.step([empty, scalar, nothing], [empty.copy(), np.ones((), F32), nothing.copy()])
    assert abs(scalar - 0.0) < 1e-6
    assert optimizer.state[0]["m"].shape == (0, 3)
    assert optimizer.state[1]["m"].shape == ()
    fs.Adam().step([], [])
    fs.Adam().step({}, {})
    with pytest.raises(ValueError, match=r"^grads\[0\] has shape \(3, 0\)"):
        fs.Adam().step([empty], [np.zeros((3, 0), F32)])


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")  # it still is possible
def test_dtypes_that_are_equal_but_not_the_same_object():
    p, optimizer = np.ones(8, np.dtype("f4", metadata={"unit": "m"})), fs.SGD(lr=1.0)
    for _ in range(2):
        optimizer.step(p, ones())
    assert (p == -1).all()
    p.dtype = ">f4"
    with pytest.raises(TypeError, match="native byte order"):
        optimizer.step(p, ones())


BF16 = np.dtype(ml_dtypes.bfloat16)
ANY = st.sampled_from([np.float32, np.float64, np.float16, BF16, np.int32, ">f4", ">f8", ">f2"])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_pair_of_arrays_is_stepped_or_refused_whole(data):
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    p = data.draw(hnp.arrays(np.int8, data.draw(shapes), elements=st.integers(-4, 4)), "p").astype(data.draw(ANY))
    same = shapes | st.just(p.shape)
    g = data.draw(hnp.arrays(np.int8, data.draw(same), elements=st.integers(1, 4)), "g").astype(data.draw(ANY))
    if data.draw(st.booleans(), "transposed"):
        p, g = p.T, g.T
    if data.draw(st.booleans(), "strided") and p.ndim and g.ndim:
        p, g = p[::2], g[::2]
    p.flags.writeable = data.draw(st.booleans(), "writable")
    floats = (np.float32, np.float64, np.float16, BF16)
    fine = (
        p.dtype in floats
        and g.dtype in floats
        and p.dtype.isnative
        and g.dtype.isnative
        and p.shape == g.shape
        and (p.flags.c_contiguous or p.flags.f_contiguous)
        and p.flags.writeable
    )
    before = p.copy()
    if fine:
        fs.SGD(lr=1.0).step(p, g)
        assert (p == (before - g.astype(p.dtype)).astype(p.dtype)).all()
    else:
        with pytest.raises((TypeError, ValueError), match=r"^(param|grad) "):
            fs.SGD(lr=1.0).step(p, g)
        assert (p == before).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), min_size=2, max_size=12))
def test_overlap_is_found_exactly_when_there_is_one(stretches):
    """Parameters and gradients are random stretches of one buffer, and each parameter is compared with all others."""
    buffer = np.zeros(64, F32)
    parts = [buffer[start : start + n] for start, n in stretches]
    half = len(parts) // 2
    pairs = [(parts[i], ones(parts[i].size)) for i in range(half)]
    pairs += [(ones(part.size), part) for part in parts[half:]]
    used = [set(range(start, start + n)) for start, n in stretches]
    overlap = any(used[i] & used[j] for i in range(len(used)) for j in range(min(i, half)))
    optimizer = fs.SGD()
    params, grads = [p for p, _ in pairs], [g for _, g in pairs]
    for _ in range(2):
        if overlap:
            with pytest.raises(ValueError, match="overlaps"):
                optimizer.step(params, grads)
        else:
            optimizer.step(params, grads)


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    n = 2**31 + 11
    p, g = np.zeros(n, F32), np.ones(n, F32)
    fs.set_num_threads(2)
    fs.SGD(lr=1.0).step(p, g)
    assert p[0] == p[-1] == p[2**31] == p[2**31 - 1] == -1
    assert p.min() == p.max() == -1
