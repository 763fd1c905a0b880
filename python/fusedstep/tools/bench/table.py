"""The table that the command prints: a line for each case, as soon as it has been measured."""

from .harness import Ratio
from .record import Measured, Record

__all__ = ["LEGEND", "OURS", "head", "line", "remarks", "titles"]

OURS = ("fusedstep", "limit")
CASE, WHERE, PEER = 36, 11, 11  # widths of columns
LEGEND = """\
where: threads and instruction set, or the GPU. B: bytes per parameter that a step must read and write. limit: the time
of a loop that moves the same bytes and computes next to nothing, over ours; in the cache, dividing takes longer than
moving. Under a peer: its time over ours, the median and the spread (interquartile range) of the rounds; "!" marks a
peer that did not do the same work. ulp, theirs: the largest difference of a parameter from the NumPy reference after
three steps, in units in the last place, of ours and of the peers.
"""


def head(peers: list[str]) -> str:
    """Return the titles of the columns, in two lines: the words of a peer stand below each other."""
    words = [name.rpartition(" ")[::2] for name in peers]
    first = " " * (CASE + WHERE + 29) + "".join(f"{upper:>{PEER}}" for upper, _ in words)
    second = f"{'case':{CASE}}{'where':{WHERE}}{'ns/param':>8}{'GB/s':>7}{'B':>4}{'limit':>10}"
    return (
        f"{first.rstrip()}\n{second}" + "".join(f"{lower:>{PEER}}" for _, lower in words) + f"{'ulp':>5}{'theirs':>9}"
    )


def line(measured: Measured, peers: list[str]) -> str:
    """Return the line of a case, with a column for each of `peers`."""
    case, ratios = measured.case, measured.ratios
    where = f"{case.threads} {case.isa}" if case.device == "cpu" else case.device
    text = f"{case!s:{CASE}}{where:{WHERE}}{measured.ns_per_parameter:>8.3g}{measured.gb_per_s:>7.1f}"
    text += f"{case.bytes_per_parameter:>4}{_cell(measured.share):>10}"
    for name in peers:
        row = measured.row(name)
        text += f"{_cell(ratios.get(name)) + '!' * bool(row and not row.agrees):>{PEER}}"
    ulps = [row.ulp for row in measured.rows if row.ulp is not None]
    if ulps:
        text += f"{ulps[0]:>5.3g}" + (f"{max(ulps[1:]):>9.3g}" if len(ulps) > 1 else "")
    return text


def _cell(ratio: Ratio | None) -> str:
    return f"{_short(ratio.median)}\N{PLUS-MINUS SIGN}{_short(ratio.iqr)}" if ratio else ""


def _short(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def titles(record: Record) -> str:
    """Return the machine and the versions of all packages, in two lines."""
    about = record.machine
    ours, affinity = about["fusedstep"], about["affinity"]
    cores = f"{len(affinity)} of {about['cores']}" if affinity else about["cores"]
    gpus = "".join(f", {gpu['name']}" for gpu in about["gpus"].values())
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return (
        f"{about['cpu']}, {cores} cores, load {about['load'][0]:.2f}{gpus}\n"
        f"fusedstep {ours['version']}, commit {ours['commit']}, {ours['compiler']}, {ours['isa']}; {packages}\n"
    )


def remarks(record: Record) -> list[str]:
    """Return sentences to print below the table: who was absent and why, what was disturbed, what was left out."""
    reasons: dict[str, dict[str, None]] = {}  # of each who is absent, in order
    present = {row.name for each in record.cases for row in each.rows}
    for each in record.cases:
        for name, reason in each.absent.items():
            if name not in present:
                reasons.setdefault(name, {})[reason] = None
    alike: dict[str, list[str]] = {}
    for name, some in sorted(reasons.items()):
        alike.setdefault("; ".join(some), []).append(name)
    disturbed = [f"{each.case} ({each.disturbed:.1f})" for each in record.cases if each.disturbed > 0.1]
    said = [f"Absent: {', '.join(names)}: {reason}." for reason, names in alike.items()]
    if disturbed:
        said.append(f"Meanwhile other processes kept so many processors busy: {', '.join(disturbed)}.")
    if different := [str(each.case) for each in record.cases if each.ours.ulp]:
        said.append(f"OURS DIFFERS FROM THE REFERENCE: {', '.join(different)}.")
    return [*said, *record.notes]
