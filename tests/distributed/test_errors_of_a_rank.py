"""What one rank of three does wrong in a step: all are told, have written nothing, and can make the step again."""

import re
from random import Random

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import distributed
from fusedstep.distributed.tree import parts_of
from tests.distributed.hostile import outcomes
from tests.distributed.lines import at_line
from tests.distributed.synchronous_runs import PARTS, Run, parameters, snapshot

RANKS, WRONG = 3, 1
SHAPES = {"W": (60, 70), "b": (70,), "scale": ()}
LR = 1e-2


class Rank:
    """A rank in the middle of a run: it has made one step, and may do something wrong in the second one."""

    def __init__(self, world, lr=lambda: LR):
        self.world, self.params = world, parameters(shapes=SHAPES)
        self.own = parts_of(PARTS, world.rank, world.size)
        self.opt = distributed.Synchronous(RUN.make(), world, parts=PARTS)
        self.opt.optimizer.lr = lr()
        limit, world.timeout = world.timeout, 60
        self.step()
        world.timeout = limit

    @property
    def is_wrong(self):
        return self.world.rank == WRONG

    def gradients(self, step):
        yield from (RUN.gradient(self.params, step, part) for part in self.own)

    def step(self, step=0, *, params=None, gradients=None, grad_scale=1 / PARTS):
        params, gradients = params or self.params, gradients or self.gradients(step)
        return self.opt.step(params, gradients, grad_scale=grad_scale)

    def bits(self):
        """Return the bits that this rank alone has: of all parameters, and of its pieces of the states."""
        return snapshot(self.params, self.opt.optimizer.state_dict())

    def end(self):
        """Make the other steps, and return the bits of the run."""
        for step in (1, 2):
            self.step(step)
        return snapshot(self.params, self.opt.state_dict(self.params))


RUN = Run(lambda: fs.AdamW(lr=LR, clip_global_norm=1.0, ema=0.9), lambda: parameters(shapes=SHAPES), steps=3)
ALONE = RUN.alone()[0]


def told(wrong, timeout=60.0, lr=lambda: LR):
    """
    Let one rank do something wrong in the second step, and return the errors of all ranks.

    All ranks must be told by a message, not by waiting; have written nothing; and be able to go on as if nothing had
    happened. `lr` makes the learning rate of a rank.
    """

    def act(world):
        rank = Rank(world, lr)
        before = rank.bits()
        error = None
        try:
            if rank.is_wrong:
                wrong(rank)
            else:
                rank.step(1)
        except Exception as raised:
            error = raised
        return error, rank.bits() == before, error and not isinstance(error, TimeoutError) and rank.end() == ALONE

    found = outcomes(RANKS, act, timeout)
    assert all(isinstance(outcome, tuple) for outcome in found), found
    errors = [error for error, *_ in found]
    assert not [error for error in errors if error is None or isinstance(error, TimeoutError)], errors
    for rank, (error, is_unchanged, is_equal) in enumerate(found):
        assert (is_unchanged, is_equal) == (True, True), (rank, error)
        if rank != WRONG:
            assert re.search(rf"rank {WRONG} has .*no rank has written anything", str(error)), error
    return errors


def changed(part, change):
    """Return what a rank does whose gradient of one of its parts is changed."""

    def wrong(rank):
        made = list(rank.gradients(1))
        change(made[part])
        rank.step(1, gradients=made)

    return wrong


def replaced(key, remade):
    return lambda grads: grads.update({key: remade(grads[key])})


@pytest.mark.parametrize("part", [0, 1, -1])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (replaced("W", lambda g: g.T), ValueError),
        (replaced("b", lambda g: g[:-1]), ValueError),
        (replaced("scale", lambda g: "1"), TypeError),
        (lambda grads: grads.update(other=grads["b"]), ValueError),
        (lambda grads: grads.pop("b"), ValueError),
    ],
    ids=["transposed", "length", "text", "another key", "no gradient"],
)
def test_a_gradient_of_the_wrong_kind(change, error, part):
    assert isinstance(told(changed(part, change))[WRONG], error)


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64", ">f4"])
def test_a_gradient_of_a_dtype_that_a_step_refuses(dtype):
    made = RUN.params()
    grads = {key: p.astype(dtype) for key, p in made.items()}
    with pytest.raises(TypeError):
        RUN.make().step(made, grads)
    assert isinstance(told(lambda rank: rank.step(1, gradients=[grads] * len(rank.own)))[WRONG], TypeError)


@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError, StopIteration])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_gradients_that_raise(error, part):
    """What is raised comes before the gradient of the first part, of another one, or when all are there."""

    def wrong(rank):
        def gradients():
            for number, grads in enumerate(rank.gradients(1)):
                if number == part:
                    raise error("by the program")
                yield grads

        class Gradients:  # a generator cannot raise StopIteration
            def __init__(self):
                self.made = gradients()

            def __iter__(self):
                return self

            def __next__(self):
                return next(self.made)

        rank.step(1, gradients=Gradients())

    told(wrong)


def read_only(params):
    made = dict(params)
    made["W"] = made["W"].view()
    made["W"].flags.writeable = False
    return made


@pytest.mark.parametrize(
    "params",
    [
        lambda params: {key: p for key, p in params.items() if key != "b"},
        lambda params: params | {"other": params["b"].copy()},
        lambda params: params | {"W": params["W"].copy().T},
        lambda params: params | {"b": params["b"].astype(np.float64)},
        lambda params: params | {"b": None},
        lambda params: params | {"b": np.zeros(140, np.float32)[::2]},
        read_only,
    ],
    ids=["fewer", "more", "transposed", "dtype", "None", "gaps", "read-only"],
)
def test_parameters_of_the_wrong_kind(params):
    def wrong(rank):
        rank.step(1, params=params(rank.params))

    assert isinstance(told(wrong, timeout=1)[WRONG], ValueError)


def test_a_grad_scale_that_is_no_number():
    told(lambda rank: rank.step(1, grad_scale="much"))


@pytest.mark.parametrize("scale", [0.5, float("nan")])
def test_another_grad_scale(scale):
    told(lambda rank: rank.step(1, grad_scale=scale))


class Constant:
    """A schedule that raises once if it is told to."""

    error = None

    def __call__(self, t):
        if self.error:
            error, self.error = self.error, None
            raise error("by the schedule")
        return LR


@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError])
def test_a_schedule_that_raises_on_one_rank(error):
    def wrong(rank):
        rank.opt.optimizer.lr.error = error
        rank.step(1)

    told(wrong, timeout=1, lr=Constant)


def test_another_schedule():
    def act(world):
        return Rank(world, lambda: fs.schedules.cosine(0.5 if world.rank == WRONG else 0.1, 100))

    for outcome in outcomes(RANKS, act, 60):
        assert isinstance(outcome, ValueError), outcome


def test_another_call_than_a_step():
    told(lambda rank: distributed.same(rank.params, rank.world))


def test_a_rank_that_does_not_come():
    """A rank that has ended early is named by all others when their time is over, and nothing has been written."""

    def act(world):
        rank = Rank(world)
        before = rank.bits()
        if not rank.is_wrong:
            with pytest.raises(TimeoutError, match=rf"rank {world.rank} has waited 0\.3 s for rank {WRONG}"):
                rank.step(1)
        return rank.bits() == before

    assert outcomes(RANKS, act, 0.3) == [True] * RANKS


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_of_one_rank(error):
    """It ends the rank at once, without a word to the others, whose time gets over. Nothing has been written."""

    def act(world):
        rank = Rank(world)
        before = rank.bits()

        def gradients():
            yield from list(rank.gradients(1))[:1]
            raise error

        try:
            rank.step(1, gradients=gradients() if rank.is_wrong else None)
        except BaseException as raised:
            return type(raised), rank.is_wrong or f"for rank {WRONG}" in str(raised), rank.bits() == before

    expected = [(error if rank == WRONG else TimeoutError, True, True) for rank in range(RANKS)]
    assert outcomes(RANKS, act, 0.3) == expected


LINES = 2000  # of the package, in a step


def no_memory_at(line):
    """Let one rank have no memory at a line of a step, and return how each rank has ended, in this step or the next."""

    def act(world):
        rank, place = Rank(world), []
        names, errors = ({WRONG}, []) if world.rank != WRONG else (set(range(RANKS)), [])

        def fail():
            place.append(line)
            raise MemoryError("none is left")

        for step in (1, 2):
            try:
                if rank.is_wrong and step == 1:
                    at_line(line, fail, rank.step, step)
                else:
                    rank.step(step)
            except Exception as error:
                errors.append(error)
                break
        if not place and rank.is_wrong:
            return "too few lines"
        assert errors, "no error"
        told = str(errors[0])
        assert isinstance(errors[0], MemoryError) or any(f"rank {k}" in told for k in names), told
        return "an error"

    return outcomes(RANKS, act, 0.3)


@pytest.mark.parametrize("part", range(4))
def test_no_memory_at_any_line(part):
    """No rank waits for ever, and each is told who is at fault, whether by a message or by the end of its time."""
    line = 1 + int(LINES * (part + Random().random()) / 4)
    found = no_memory_at(line)
    assert found[WRONG] == "too few lines" or found == ["an error"] * RANKS, (line, found)


@pytest.mark.exhaustive
def test_no_memory_at_many_lines():
    for line in range(Random().randrange(1, 8), 4 * LINES, 7):
        found = no_memory_at(line)
        if found[WRONG] == "too few lines":
            break
        assert found == ["an error"] * RANKS, (line, found)
    assert LINES / 2 < line < 2 * LINES, line
