"""
Model the time of a step with more parameters than this machine has room for: python benchmarks/scale.py RECORD.json.

The model is fitted to a record of smaller sizes. With ``--ranks RANKS.json``, the synchronous step of many machines is
modelled too, from a record of benchmarks/ranks. See scale.md.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fusedstep.tools.bench.cases import dtype_of
from fusedstep.tools.bench.ranks import Ranks, ranks
from fusedstep.tools.bench.record import Measured, Record, read

__all__ = ["Machine", "Placement", "Rank", "check", "check_shared", "measured", "placements", "shared", "table"]

PARAMETERS = (10**9, 10**11, 10**13)
EXCHANGES = {"float32": (4, 4), "gradients bfloat16": (2, 4), "both bfloat16": (2, 2)}  # bytes of gradient, parameter


@dataclass(frozen=True)
class Machine:
    """
    A machine among equal ones.

    Parameters
    ----------
    call : float
        Seconds of a step that has next to nothing to do.
    rate : float
        Bytes per second of a step far beyond the cache.
    moved, held : int
        Bytes per parameter that a step moves, and that parameter, gradient and states take.
    param, grad : int
        Bytes of a parameter, and of its gradient.
    network, latency : float
        Bytes per second that the machine sends while it receives as many, and seconds until a message arrives.
    """

    call: float
    rate: float
    moved: int = 28
    held: int = 16
    param: int = 4
    grad: int = 4
    network: float = 12.5e9
    latency: float = 10e-6

    def update(self, n: float) -> float:
        """Return the seconds of a step over n parameters."""
        return self.call + n * self.moved / self.rate

    def ring(self, size: float, machines: int) -> float:
        """Return the seconds in which a ring sums or gathers `size` bytes: each machine sends all parts but one."""
        return (machines - 1) * (size / machines / self.network + self.latency)


@dataclass(frozen=True)
class Placement:
    """A way to place parameters, gradients and states: seconds of update and of network, and bytes on each machine."""

    update: Callable[[Machine, float, int], float]
    network: Callable[[Machine, float, int], float]
    memory: Callable[[Machine, float, int], float]


def placements() -> dict[str, Placement]:
    """Return the ways to place n parameters on some machines."""
    return {
        "replicas": Placement(  # gradients are summed and gathered; each machine updates all parameters
            lambda m, n, _: m.update(n),
            lambda m, n, machines: 2 * m.ring(n * m.grad, machines),
            lambda m, n, _: n * m.held,
        ),
        "sharded states": Placement(  # each machine sums gradients of a share and updates it; parameters are gathered
            lambda m, n, machines: m.update(n / machines),
            lambda m, n, machines: m.ring(n * m.grad, machines) + m.ring(n * m.param, machines),
            lambda m, n, machines: n * (m.param + m.grad) + n / machines * (m.held - m.param - m.grad),
        ),
        "all sharded": Placement(  # the forward pass gathers parameters layer by layer, which is not counted
            lambda m, n, machines: m.update(n / machines),
            lambda m, n, machines: m.ring(n * m.grad, machines),
            lambda m, n, machines: n / machines * m.held,
        ),
    }


def measured(record: Record, rule: str = "adam", dtype: str = "float32", device: str = "cpu") -> list[Measured]:
    """Return the cases of a rule in a record, by size: of one tensor, without options, on all threads."""
    found = [
        each
        for each in record.cases
        if (each.case.rule, each.case.dtype, each.case.device) == (rule, dtype, device)
        and each.case.count == 1
        and not (each.case.odd or each.case.states or each.case.options or each.case.grad_dtype)
    ]
    most = max((each.case.threads for each in found), default=0)
    isa = record.machine["fusedstep"]["isa"] if device == "cpu" else ""
    by_size = {each.case.size: each for each in reversed(found) if (each.case.threads, each.case.isa) == (most, isa)}
    return [by_size[size] for size in sorted(by_size)]


def fitted(some: list[Measured], **network: float) -> Machine:
    """Return the machine whose times lie on the line through the smallest and the largest measured size."""
    small, large = some[0], some[-1]
    case, seconds = large.case, large.ours.timing.median - small.ours.timing.median
    if seconds <= 0:
        raise ValueError(f"{case} took no longer than {small.case}, expected more time for more parameters")
    rate = (case.moved - small.case.moved) / seconds
    call = max(0.0, small.ours.timing.median - small.case.moved / rate)
    size = dtype_of(case.dtype).itemsize
    return Machine(call, rate, case.bytes_per_parameter, case.held_per_parameter, size, size, **network)


def check(some: list[Measured]) -> list[str]:
    """
    Return how close the model comes to sizes that it was not fitted to: lines of a table.

    For each size, the model is fitted to the others. Sizes that fit into a cache are faster than the model says.
    """
    lines = ["| parameters | measured | modelled | modelled/measured |", "|---|---|---|---|"]
    for each in some[1:]:
        others = [other for other in some if other is not each]
        model = fitted(others).update(each.case.size)
        seconds = each.ours.timing.median
        lines.append(f"| {each.case.size:.0e} | {_time(seconds)} | {_time(model)} | {model / seconds:.2f} |")
    return lines


def table(machine: Machine, counts: list[int], memory: float) -> list[str]:
    """Return times for each number of parameters and machines, and which do not fit into memory: lines of a table."""
    lines = [
        "| parameters | placement | machines | memory each | update | network | step |",
        "|---|---|---|---|---|---|---|",
    ]
    for n in PARAMETERS:
        rows = [("one machine", 1, placements()["replicas"])]
        rows += [(name, count, each) for name, each in placements().items() for count in counts]
        for name, count, placement in rows:
            held = placement.memory(machine, n, count)
            update, network = placement.update(machine, n, count), placement.network(machine, n, count)
            fits = "" if held <= memory else " (does not fit)"
            cells = [f"{n:.0e}", name, str(count), f"{_size(held)}{fits}", _time(update), _time(network)]
            lines.append("| " + " | ".join([*cells, _time(update + network)]) + " |")
    return lines


@dataclass(frozen=True)
class Rank:
    """
    A rank of a synchronous step, among equal ones.

    Parameters
    ----------
    update, add, square, fold : float
        Bytes per second of the update, of the sum of gradients in their order, of sums of squares, and of the sum of
        these.
    network, latency : float
        Bytes per second that the rank sends while it receives as many, and seconds that each message costs.
    """

    update: float
    add: float
    square: float
    fold: float
    network: float
    latency: float

    def step(self, n: float, count: int, grad: int = 4, param: int = 4) -> dict[str, float]:
        """
        Return the seconds of the pieces of a step, in which nothing overlaps.

        Parameters
        ----------
        n : float
            Parameters of Adam, whose states are float32.
        count : int
            Ranks, each with one part.
        grad, param : int
            Bytes that a gradient, and a new parameter, take on their way. With 2 for a parameter, the 16 bits that it
            lacks stay with its owner.
        """
        own, most = n / count, (count - 1) / count
        turns = (count - 1) * self.latency  # a message to each of the others
        sums = 8 * min(n / 2**10, n / 2**20 + 2 * 1023 * count)  # of 1024 blocks, but for those at the cuts
        return {
            "agreement": turns,
            "wire": most * n * (grad + param) / self.network + 2 * turns,
            "sum": own * (count * grad + 4) / self.add if count > 1 else 0.0,
            "update": own * 28 / self.update,
            "norm": own * 4 / self.square + (8 * own / 2**10 + sums) / self.fold + most * sums / self.network + turns,
        }


def check_shared(found: Ranks) -> list[str]:
    """Return how close the model comes to steps of as many ranks as there are processors: lines of a table."""
    count = max(found.computing)
    rates = found.computing[count]
    constants = (rates["adam"], rates["sum of 2"], rates["squares"], rates["fold"])
    rank = Rank(*constants, found.messages["bandwidth"], found.messages["latency"])
    lines = ["| parameters | ranks | measured | modelled | modelled/measured |", "|---|---|---|---|---|"]
    for race in found.races:
        if race.ranks == count > 1 and race.size >= 10**6:
            seconds = race.sides["Synchronous"].least
            pieces = rank.step(race.size, count)
            model = sum(pieces.values()) - pieces["norm"]
            cells = (f"{race.size:.0e}", str(count), _time(seconds), _time(model), f"{model / seconds:.2f}")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def shared(rank: Rank, counts: list[int]) -> list[str]:
    """Return the pieces of a synchronous step: lines of a table."""
    lines = [
        "| parameters | ranks | exchange | sent by each | wire | sum | update | step | norm |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for n in PARAMETERS:
        for count in counts:
            for name, widths in EXCHANGES.items():
                pieces = rank.step(n, count, *widths)
                sent = sum(widths) * n * (count - 1) / count
                whole = sum(pieces.values()) - pieces["norm"]
                times = (pieces["wire"], pieces["sum"], pieces["update"], whole, pieces["norm"])
                cells = (f"{n:.0e}", str(count), name, _size(sent), *map(_time, times))
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _time(seconds: float) -> str:
    for unit, scale in (("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if seconds < 1000 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 60:.0f} min"


def _size(size: float) -> str:
    for unit, scale in (("MB", 1e6), ("GB", 1e9)):
        if size < 1000 * scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e12:.3g} TB"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path, help="what `python -m fusedstep bench --json` has written")
    parser.add_argument("--ranks", type=Path, metavar="RANKS.json", help="what benchmarks/ranks has written")
    parser.add_argument("--rule", default="adam")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--machines", type=int, nargs="+", default=[8, 64, 1024], metavar="N")
    parser.add_argument("--memory", type=float, default=1e12, metavar="BYTES", help="of a machine (%(default)g)")
    parser.add_argument("--network", type=float, default=100, metavar="GBIT", help="Gbit/s of a machine (%(default)g)")
    parser.add_argument("--latency", type=float, default=10, metavar="US", help="us of a message (%(default)g)")
    options = parser.parse_args()
    if min(options.machines) < 1:
        parser.error(f"--machines is {min(options.machines)}, expected at least 1")
    try:
        some = measured(read(options.record), options.rule, options.dtype, options.device)
        if len(some) < 3:
            parser.error(f"{options.record} has {len(some)} sizes of {options.rule}, expected 3 at least")
        machine = fitted(some, network=options.network * 1e9 / 8, latency=options.latency * 1e-6)
        found = ranks(options.ranks) if options.ranks else None
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(check(some)))
    print(f"\nMoving {machine.moved} bytes per parameter at {machine.rate / 1e9:.1f} GB/s.\n")
    print("\n".join(table(machine, options.machines, options.memory)))
    if found:
        rates = found.computing[1]
        constants = (rates["adam, all threads"], rates["sum of 8"], rates["squares"], rates["fold"])
        print()
        print("\n".join(check_shared(found)))
        said = zip(("Update", "sum", "squares", "fold"), constants, strict=True)
        print("\n" + ", ".join(f"{name} {rate / 1e9:.1f} GB/s" for name, rate in said) + ".\n")
        print("\n".join(shared(Rank(*constants, machine.network, machine.latency), options.machines)))


if __name__ == "__main__":
    main()
