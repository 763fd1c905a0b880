"""Schedules as plain values, as checkpoints keep them."""

import copy
import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedstep import schedules as s
from fusedstep.schedules.description import Found, differences, rebuild, remember
from fusedstep.schedules.description import describe as describe_all
from tests.formulas.schedules import EXAMPLES, INF, NAMES, describe, memories, observed, rebuilt, some


def test_description():
    schedule = s.warmup(0, s.product(s.multistep(1, 0.5, [2, 3]), 0.25), 4)
    assert describe(schedule) == {
        "schedule": "warmup",
        "start": 0.0,
        "inner": {
            "schedule": "product",
            "schedules": [
                {"schedule": "multistep", "lr": 1.0, "factor": 0.5, "boundaries": [2, 3], "boundary": "first"},
                {"schedule": "constant", "lr": 0.25},
            ],
        },
        "steps": 4,
    }
    assert describe(s.plateau(0.1))["memory"] == {"rate": 0.1, "best": INF, "bad": 0, "cooldown_left": 0}


class Other(s.Schedule):
    def _at(self, done):
        return 1.0


class Disguised(s.cosine):
    pass


FOREIGN = [
    some,
    s.warmup(0, some, 3),
    s.product(1, some),
    s.sequential([1, s.product(some)], [3]),
    dataclasses.make_dataclass("Mine", [], bases=(Other,))(),
    Disguised(1, 3),
]


@pytest.mark.parametrize("schedule", FOREIGN, ids=repr)
def test_what_is_not_ours_is_noted_and_stays(schedule):
    description = json.loads(json.dumps(describe(schedule)))
    assert '{"schedule": null}' in json.dumps(description)
    assert rebuilt(description, schedule) is schedule
    with pytest.raises(ValueError, match=r"^schedule was a function that cannot be saved, expected the same function"):
        rebuilt(description)


COSINE = describe(s.cosine(1, 10))
PLATEAU = describe(s.plateau(1))
WARMUP = describe(s.warmup(0, 1, 3))
PRODUCT = describe(s.product(1, 2))
MEMORY = PLATEAU["memory"]


@pytest.mark.parametrize(
    ("description", "error", "message"),
    [
        (3, TypeError, "description is 3, expected a dictionary"),
        ([COSINE], TypeError, "description is "),
        ({}, ValueError, "schedule is '', expected one of constant, warmup,"),
        ({"schedule": "Schedule"}, ValueError, "schedule is 'Schedule', expected one of constant,"),
        ({"schedule": "os.system", "lr": 1}, ValueError, "schedule is 'os.system', expected one of constant,"),
        ({"schedule": ["cosine"]}, ValueError, "schedule is ['cosine'], expected one of constant,"),
        ({"schedule": "cosine"}, ValueError, "cosine has nothing, expected lr, steps, alpha, after"),
        (
            COSINE | {"rate": 1},
            ValueError,
            "cosine has lr, steps, alpha, after, rate, expected lr, steps, alpha, after",
        ),
        (COSINE | {"memory": MEMORY}, ValueError, "cosine has lr, steps, alpha, after, memory, expected lr, steps,"),
        (COSINE | {"steps": "10"}, TypeError, "steps is '10', expected an integer >= 1"),
        (COSINE | {"steps": 0}, ValueError, "steps is 0, expected an integer >= 1"),
        (
            COSINE | {"lr": COSINE},
            TypeError,
            "lr is cosine(lr=1.0, steps=10, alpha=0.0, after='hold'), expected a number",
        ),
        (WARMUP | {"inner": "print"}, TypeError, "inner is 'print', expected a schedule, a function or a number"),
        (WARMUP | {"inner": {"lr": 1}}, ValueError, "schedule is '', expected one of"),
        (PRODUCT | {"schedules": 3}, TypeError, "schedules is 3, expected a sequence"),
        (PRODUCT | {"schedules": []}, ValueError, "schedules has 0 elements, expected at least 1"),
        (
            PRODUCT | {"schedules": [1, [2]]},
            TypeError,
            "schedules[1] is of type list, expected a schedule, a function or a number",
        ),
        ({k: PLATEAU[k] for k in PLATEAU if k != "memory"}, ValueError, "plateau has lr, factor,"),
        (PLATEAU | {"memory": None}, TypeError, "memory is None, expected a dictionary"),
        (PLATEAU | {"memory": {}}, ValueError, "memory has nothing, expected rate, best, bad, cooldown_left"),
        (PLATEAU | {"memory": MEMORY | {"x": 1}}, ValueError, "memory has rate, best, bad, cooldown_left, x, expected"),
        (PLATEAU | {"memory": MEMORY | {"rate": "1"}}, TypeError, "rate is '1', expected a number"),
        (PLATEAU | {"memory": MEMORY | {"rate": INF}}, ValueError, "rate is inf, expected a finite number >= 0"),
        (PLATEAU | {"memory": MEMORY | {"best": None}}, TypeError, "best is None, expected a number"),
        (PLATEAU | {"memory": MEMORY | {"best": math.nan}}, ValueError, "best is nan, expected a number"),
        (PLATEAU | {"memory": MEMORY | {"bad": -1}}, ValueError, "bad is -1, expected an integer >= 0"),
        (PLATEAU | {"memory": MEMORY | {"bad": 1.0}}, TypeError, "bad is 1.0, expected an integer >= 0"),
        (
            PLATEAU | {"memory": MEMORY | {"cooldown_left": True}},
            TypeError,
            "cooldown_left is True, expected an integer",
        ),
    ],
)
def test_bad_descriptions(description, error, message):
    with pytest.raises(error) as caught:
        rebuilt(description)
    assert str(caught.value).startswith(message)


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.sampled_from([*NAMES, "hold", "first"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["schedule", "schedules", "lr", "inner", "steps", "start", "memory"]), inner),
    max_leaves=8,
))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_any_description_is_rebuilt_or_refused(description):
    try:
        schedule = rebuilt(description)
    except (TypeError, ValueError):
        return
    assert rebuilt(describe(schedule)) == schedule


@given(
    st.floats(0, exclude_max=True, allow_infinity=False, max_value=1e308), st.floats(allow_nan=False), st.integers(0)
)
@settings(max_examples=50, deadline=None)
def test_json_keeps_the_memory(lr, best, bad):
    p = s.plateau(lr)
    p._remember(lr, best, bad, 3)
    assert memories(rebuilt(json.loads(json.dumps(describe(p))))) == [(lr, best, bad, 3)]


@pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda x: type(x).__name__)
def test_an_equal_schedule_stays_and_remembers(schedule):
    present, saved = copy.deepcopy(schedule), observed(schedule)
    assert rebuilt(describe(saved), present) is present
    assert memories(present) == memories(saved)


@pytest.mark.parametrize(
    ("present", "saved"),
    [
        (s.plateau(1.0), s.constant(1.0)),
        (0.1, s.plateau(1.0)),
        (some, s.plateau(1.0)),
        (s.product(s.plateau(1.0)), s.product(s.plateau(1.0), 1)),
    ],
)
def test_a_schedule_that_is_not_equal_is_replaced(present, saved):
    found = rebuilt(describe(saved), present)
    assert found == saved
    assert found is not present


@pytest.mark.parametrize("change", [{"lr": 2.0}, {"patience": 0}, {"mode": "max"}, {"factor": 0.25, "min_lr": 0.5}])
def test_a_plateau_with_other_arguments_stays_and_remembers(change):
    saved = observed(s.plateau(1.0, 0.5, 2))
    mine = s.plateau(**{"lr": 1.0, "factor": 0.5, "patience": 2} | change)
    outer, made = s.warmup(0.0, mine, 3), {}
    assert rebuild(describe(s.warmup(0.0, saved, 3)), outer, made) is outer
    remember(made)
    assert mine.rate == saved.rate
    assert mine.best == (saved.best if mine.mode == "min" else -INF)
    (told,) = differences(made)
    assert told.startswith(repr(mine))
    assert repr(saved) in told
    assert differences({0: Found(mine, mine, {})}) == []


def test_a_plateau_that_the_caller_holds_goes_on_in_another_schedule():
    mine = s.plateau(1.0, 0.5, 0)
    saved = observed(s.product(s.plateau(1.0, 0.5, 0), 1))
    found = rebuilt(describe(saved), s.product(mine))
    assert found.schedules[0] is mine
    assert memories(found) == memories(saved)


def test_plateaus_are_shared_as_they_were_saved():
    one, other = s.plateau(1.0, 0.5, 0), s.plateau(1.0, 0.5, 0)
    other.observe(3.0)
    made, seen = {}, []
    descriptions = [describe_all(schedule, seen) for schedule in (one, s.product(one, other), other)]
    assert [d.get("number") for d in descriptions] == [0, None, 1]
    present = s.plateau(1.0, 0.5, 0)  # the present schedule in all three places
    first, product, third = (rebuild(d, present, made) for d in descriptions)
    remember(made)
    assert first is present
    assert product.schedules == (first, third)
    assert product.schedules[0] is first
    assert product.schedules[1] is third
    assert third is not first
    assert (first.best, third.best) == (INF, 3.0)
    for change in ({"lr": 2.0}, {"memory": descriptions[2]["memory"]}):
        with pytest.raises(ValueError, match=r"^number is 0, which is another plateau"):
            rebuild(descriptions[0] | change, None, dict(made))
    with pytest.raises(TypeError, match=r"^number is None"):
        rebuild(descriptions[0] | {"number": None}, None, {})
