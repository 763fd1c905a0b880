"""Pictures of a record, which `python -m fusedstep bench --json FILE` writes, or pytest-benchmark."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusedstep.tools.bench.cases import Case, rules, short
from fusedstep.tools.bench.harness import Timing
from fusedstep.tools.bench.peers import PEERS
from fusedstep.tools.bench.record import Measured, Record, ratios_of, tests
from fusedstep.tools.bench.roofs import operations

from .picture import blank, name_ends, style, write

__all__ = ["draw_ratios", "draw_roofline", "draw_rules", "draw_small", "draw_throughput"]

HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\", "++++", "oo", "**", "||||")
MARKERS = "osDv^<>PXhd*p8"  # markers of rules in the roofline; each rule has one of 12 colours, too
INTENSITIES = (0.1, 12)  # ends of the axis of the roofline, in operations per byte
BYTES = {"K": 2**10, "M": 2**20, "G": 2**30}
OWN = {
    "fusedstep": "built-in",
    "numpy": "NumPy statements",
    "torch eager": "torch, eager",
    "torch compiled": "torch, compiled",
    "machine": "own rule, machine",
    "code": "own rule, code",
    "limit": "limit of the memory",
}  # labels of the lines of the picture of rules, by the names in its record


def _look(name: str) -> dict[str, Any]:
    """Return the look of the line of a contestant, which is the same in every picture."""
    if name == "fusedstep":
        return style(0) | {"linewidth": 2.2, "zorder": 4}
    if name in ("limit", "copy"):
        return {"color": "0.5", "linewidth": 2.2, "linestyle": "-" if name == "limit" else ":", "zorder": 1.9}
    return style(1 + _place(name))


def _place(name: str) -> int:
    """Return the place of a peer in the list of all peers; "cupy", which is "numpy" on a GPU, has place 0 as well."""
    names = [cls.name for cls in PEERS]
    return names.index(name) if name in names else 0


def _caption(about: dict[str, Any], present: Iterable[str], threads: str = "") -> str:
    """Return machine, versions and date, with the packages of those who took part."""
    ours, gpus, names = about["fusedstep"], [gpu["name"] for gpu in about["gpus"].values()], " ".join(present)
    shown = {name: version for name, version in about["packages"].items() if name.partition("-")[0] in names}
    packages = ", ".join(f"{name} {version}" for name, version in shown.items())
    threads = threads or f"{ours['threads']} threads"
    machine = f"{', '.join([about['cpu'], *gpus])}: {threads}, {ours['isa']}. "
    return f"{machine}fusedstep at {ours['commit']}, {ours['compiler']}.\n{packages}. {about['date'][:10]}"


def _plain(record: Record) -> list[Measured]:
    """
    Return the cases without options, odd arrays, gradients of another dtype, or states that are set.

    Contestants that did not do the same work are left out.
    """
    return [
        replace(m, rows=[row for row in m.rows if row.agrees])
        for m in record.cases
        if not (m.case.odd or m.case.states or m.case.options or m.case.grad_dtype)
    ]


def _groups(found: Iterable[Measured], **free: Any) -> list[list[Measured]]:
    """Return lists of cases that differ in the fields `free` only, the longest list first."""
    groups: dict[Case, dict[Case, Measured]] = defaultdict(dict)
    for each in found:
        groups[replace(each.case, **free)].setdefault(each.case, each)
    return sorted((list(group.values()) for group in groups.values()), key=len, reverse=True)


def _longest(found: list[Measured], what: str, **free: Any) -> list[list[Measured]]:
    """
    Return the longest list of cases of each device that differ in the fields `free` only, sorted by size.

    A list of one case is no line, and is left out; if there is no other list, `what` is missing in the record.
    """
    best: dict[str, list[Measured]] = {}
    for group in _groups(found, **free):
        best.setdefault(group[0].case.device, group)
    if not best or max(map(len, best.values())) < 2:
        raise ValueError(f"the record has no cases of several {what}, expected what a run without axes measures")
    return [sorted(group, key=lambda m: m.case.size) for group in best.values() if len(group) > 1]


def _names(group: list[Measured]) -> list[str]:
    """Return the contestants, fusedstep first."""
    return list(dict.fromkeys(["fusedstep", *(row.name for each in group for row in each.rows)]))


def _line(axes: Any, group: list[Measured], name: str, value: Callable[[Case, Timing], float]) -> None:
    points = [(m.case.size, value(m.case, row.timing)) for m in group if (row := m.row(name))]
    axes.plot(*zip(*points, strict=True), label=name, **_look(name))


def _finish(figure: Any, record: Record, title: str, paths: Iterable[Path]) -> None:
    present = (row.name for each in record.cases for row in each.rows)
    _write(figure, title, _caption(record.machine, present), paths)


def _write(figure: Any, title: str, caption: str, paths: Iterable[Path]) -> None:
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.supxlabel(caption, fontsize=8, x=0.01, ha="left")
    write(figure, paths)


def _over_size(figure: Any, groups: list[list[Measured]], value: Callable[[Case, Timing], float]) -> dict[str, Any]:
    """Draw a panel for each device, with a line for each contestant over the size of a tensor."""
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        for name in _names(group):
            _line(axes, group, name, value)
        case = group[0].case
        _scale(axes, [m.case.size for m in group])
        axes.set_title(f"{case.rule}, {case.dtype}, {case.where}", fontsize=9, loc="left")
        axes.legend(fontsize=8, frameon=False, handlelength=3.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return {group[0].case.device: axes for axes, group in zip(panels, groups, strict=True)}


def _scale(axes: Any, sizes: list[int]) -> None:
    """Give both axes logarithms, and the horizontal one the sizes that were measured."""
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(sizes, list(map(short, sizes)))
    axes.set_xticks([], minor=True)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(alpha=0.3)


def draw_throughput(record: Record, *paths: Path) -> dict[str, Any]:
    """
    Draw GB/s over the number of elements: of fusedstep, the limit, and the peers.

    On each device the rule and dtype are drawn that were measured with most sizes.

    Parameters
    ----------
    record : Record
        What was measured.
    *paths : Path
        PNG or SVG files to write.

    Returns
    -------
    dict
        The axes, by device.

    Raises
    ------
    ValueError
        If only one size was measured.
    """
    single = [m for m in _plain(record) if m.case.count == 1]
    groups = _longest(single, "sizes", size=0)
    figure = blank(4.2)
    panels = _over_size(figure, groups, lambda case, timing: case.moved / timing.median / 1e9)
    for group in groups:
        case = group[0].case
        axes = panels[case.device]
        axes.set_xlabel("elements", fontsize=8)
        axes.set_ylabel(f"GB/s, at {case.bytes_per_parameter} bytes per element", fontsize=8)
        for name, size in _cache_bytes(record, case):
            elements = size / case.held_per_parameter
            if group[0].case.size < elements < group[-1].case.size:
                axes.axvline(elements, color="0.75", linewidth=0.8, zorder=1)
                place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
                axes.annotate(name, (elements, 0), xytext=(3, 4), fontsize=8, color="0.4", **place)
    _finish(figure, record, "Throughput of a step over the size of its tensor. Grey lines: what fits in a cache", paths)
    return panels


def _cache_bytes(record: Record, case: Case) -> list[tuple[str, int]]:
    """Return names and bytes of the caches that the threads of a case use together; a third level is shared by all."""
    gpu = record.machine["gpus"].get(case.device)
    if gpu:
        return [("L2", gpu["l2_bytes"])]
    found = []
    for name, size in record.machine["caches"].items():
        level, kind = name.split(" ", 1)
        number = re.fullmatch(r"(\d+)([KMG])", size)
        if number and kind != "Instruction":
            found.append((level, int(number[1]) * BYTES[number[2]] * (case.threads if level != "L3" else 1)))
    return found


def draw_small(record: Record, *paths: Path) -> dict[str, Any]:
    """
    Draw the nanoseconds that each tensor takes in a step of many tensors, over their size.

    Parameters
    ----------
    record : Record
        What was measured.
    *paths : Path
        PNG or SVG files to write.

    Returns
    -------
    dict
        The axes, by device.

    Raises
    ------
    ValueError
        If steps of many tensors were measured with fewer than two sizes.
    """
    lists = [m for m in _plain(record) if m.case.count > 1]
    groups = _longest(lists, "sizes in a list of tensors", size=0)
    figure = blank(4.2)
    panels = _over_size(figure, groups, lambda case, timing: 1e9 * timing.median / case.count)
    for group in groups:
        axes = panels[group[0].case.device]
        axes.set_xlabel("elements of each tensor", fontsize=8)
        axes.set_ylabel("ns per tensor", fontsize=8)
    _finish(figure, record, f"Cost of a tensor in a step of {groups[0][0].case.count} tensors", paths)
    return panels


def draw_rules(found: Any, *paths: Path) -> Any:
    """
    Draw the nanoseconds per element of a rule of one's own, and of other ways to have it, over the number of elements.

    Parameters
    ----------
    found : dict
        The record of pytest-benchmark of ``benchmarks/bench_rules.py``.
    *paths : Path
        PNG or SVG files to write.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    ValueError
        If fewer than two sizes were measured.
    """
    from matplotlib.ticker import LogLocator

    measured = sorted(tests(found, "test_against_others"), key=lambda each: each["params"]["size"])
    if len(measured) < 2:
        raise ValueError("the record has no test_against_others of several sizes, expected that of bench_rules.py")
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in OWN}
    for each in measured:
        size, seconds = each["params"]["size"], each["extra_info"]["seconds"]
        ratios = {"fusedstep": 1.0} | ratios_of(each)
        for name in OWN.keys() & ratios:
            points[name].append((size, 1e9 * ratios[name] * seconds / size))
    present = [name for name in OWN if points[name]]
    figure = blank(4.2)
    axes = figure.subplots()
    for name in present:
        look = _look(name) if name in ("fusedstep", "limit") else style([*OWN].index(name))
        axes.plot(*zip(*points[name], strict=True), label=OWN[name], **look)
    _scale(axes, [each["params"]["size"] for each in measured])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("elements", fontsize=8)
    axes.set_ylabel("ns per element", fontsize=8)
    name_ends(axes)
    title = "AdaBelief in float32 as a rule of one's own, beside the built-in one and other ways to have it"
    _write(figure, title, _caption(found["machine_info"], present, "1 thread"), paths)
    return axes


def draw_ratios(record: Record, *paths: Path) -> dict[str, Any]:
    """
    Draw how many times longer peers take than fusedstep: a bar for each rule and peer, with whiskers to the quartiles.

    Parameters
    ----------
    record : Record
        What was measured.
    *paths : Path
        PNG or SVG files to write.

    Returns
    -------
    dict
        The axes, by what their title says: device and size.

    Raises
    ------
    ValueError
        If no two rules were measured at the same size.
    """
    from matplotlib.ticker import LogLocator

    groups = _over_rules(record)
    rows = [rule for rule in rules() if any(m.case.rule == rule for group in groups for m in group)]
    figure = blank(1.2 + 0.42 * len(rows))
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    found = {}
    for axes, group in zip(panels, groups, strict=True):
        _draw_bars(axes, group, rows)
        title = f"{short(group[0].case.size)} elements, {group[0].case.where}"
        axes.axvline(1, color="black", linewidth=1)
        axes.set(xscale="log", yticks=range(len(rows)), yticklabels=rows)
        axes.margins(y=0.01)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}x")
        axes.xaxis.set_minor_formatter("")
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(which="both", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        found[title] = axes
    panels[0].invert_yaxis()
    handles = {label: bar for axes in panels for bar, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = sorted(handles, key=_place)
    figure.legend([handles[name] for name in shown], shown, loc="outside right center", fontsize=8, frameon=False)
    _finish(figure, record, "Time of other people's optimizers over ours: right of the line, ours is faster", paths)
    return found


def _draw_bars(axes: Any, group: list[Measured], rows: list[str]) -> None:
    """Draw the bars of a panel of `draw_ratios`: in the row of each rule, one for each peer that took part."""
    names = sorted({name for m in group for name in m.ratios if name != "copy"}, key=_place)
    for measured in group:
        row, present = rows.index(measured.case.rule), [name for name in names if name in measured.ratios]
        height = 0.84 / max(len(present), 3)
        for i, name in enumerate(present):
            ratio, look = measured.ratios[name], style(1 + _place(name))
            axes.barh(
                row + (i + 0.5 - len(present) / 2) * height,
                ratio.median - 1,
                height,
                left=1,
                xerr=[[ratio.median - ratio.low], [ratio.high - ratio.median]],
                color=look["color"],
                hatch=HATCHES[_place(name) % len(HATCHES)],
                edgecolor="white",
                linewidth=0.3,
                error_kw={"linewidth": 0.8, "ecolor": "0.3"},
                label=name,
            )


def _over_rules(record: Record) -> list[list[Measured]]:
    """Return lists of cases of different rules, in float32, at one size and place each; the smallest size first."""
    single = [m for m in _plain(record) if m.case.count == 1 and m.case.dtype == "float32"]
    groups = _groups(single, rule="")
    most = len(groups[0]) if groups else 0
    if most < 2:
        raise ValueError("the record has no size at which several rules were measured")
    many = [group for group in groups if len(group) > most / 2]
    return sorted(many, key=lambda group: (group[0].case.device, group[0].case.size))


def draw_roofline(record: Record, *paths: Path) -> dict[str, Any]:
    """
    Draw operations per second over operations per byte, for every rule, below what memory and arithmetic allow.

    Operations are counted in the reference; bytes are those that a step must move. One roof is the limit, a loop that
    moves the same bytes; the other one is the speed of a product of matrices.

    Parameters
    ----------
    record : Record
        What was measured.
    *paths : Path
        PNG or SVG files to write.

    Returns
    -------
    dict
        The axes, by device.

    Raises
    ------
    ValueError
        If no two rules were measured at the same size.
    """
    groups = _over_rules(record)
    devices = list(dict.fromkeys(group[0].case.device for group in groups))
    figure = blank(5)
    panels = dict(zip(devices, figure.subplots(1, len(devices), squeeze=False)[0], strict=True))
    for device, axes in panels.items():
        own = [group for group in groups if group[0].case.device == device]
        _draw_roofs(axes, own, record.machine["flop_per_s"].get(device))
        for group in own:
            _draw_rules(axes, group, is_last=group is own[-1])
        axes.set(xscale="log", yscale="log", xlim=INTENSITIES)
        where = dict.fromkeys((device, "float32", own[0][0].case.where))  # on a GPU, device and place are the same word
        axes.set_title(", ".join(where), fontsize=9, loc="left")
        axes.set_xlabel("operations per byte", fontsize=8)
        axes.set_ylabel("10\N{SUPERSCRIPT NINE} operations per second", fontsize=8)
        axes.tick_params(which="both", labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    sizes = " and ".join(dict.fromkeys(short(group[0].case.size) for group in groups))
    hollow = " (the first hollow)" if len(groups) > len(devices) else ""
    title = f"Every rule under its roof, {sizes} elements{hollow}"
    _finish(figure, record, title, paths)
    return panels


def _draw_rules(axes: Any, group: list[Measured], is_last: bool) -> None:
    """Draw a point for each rule; those of a list that is not the last one of its panel are hollow, without a label."""
    order = list(rules())
    for m in sorted(group, key=lambda m: order.index(m.case.rule)):
        place, count = order.index(m.case.rule), operations(m.case.rule)
        look = style(place) | {"linestyle": "", "markersize": 7, "zorder": 3}
        look["marker"] = MARKERS[place % len(MARKERS)]
        if not is_last:
            look |= {"markerfacecolor": "white", "markeredgecolor": look["color"], "markeredgewidth": 1.2}
        speed = count * m.case.parameters / m.ours.timing.median / 1e9
        label = m.case.rule if is_last else None
        axes.plot(count / m.case.bytes_per_parameter, speed, label=label, **look)


def _draw_roofs(axes: Any, groups: list[list[Measured]], flop_per_s: float | None) -> None:
    """Draw the speed that memory allows at each size, up to that of a product of matrices, where it was measured."""
    look: dict[str, Any] = {"color": "0.5", "linewidth": 2.2}
    note: dict[str, Any] = {"textcoords": "offset points", "color": "0.3", "fontsize": 8}
    low, high = INTENSITIES
    if flop_per_s:
        axes.axhline(flop_per_s / 1e9, **look)
        axes.annotate("product of matrices", (high, flop_per_s / 1e9), xytext=(-8, 3), ha="right", **note)
    for i, group in enumerate(groups):
        rates = [m.case.moved / row.timing.median / 1e9 for m in group if (row := m.row("limit"))]
        if rates:
            rate = max(rates)
            edge = min(high, flop_per_s / 1e9 / rate) if flop_per_s else high
            axes.plot([low, edge], [low * rate, edge * rate], linestyle="--" if i < len(groups) - 1 else "-", **look)
            text = f"limit, {short(group[0].case.size)} elements:\n{rate:.0f} GB/s"
            place: dict[str, Any] = {"xytext": (2, -16)} if edge < high / 3 else {"xytext": (-6, -60), "ha": "right"}
            axes.annotate(text, (edge, edge * rate), va="top", **place, **note)
