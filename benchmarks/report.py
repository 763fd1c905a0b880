"""The table of a benchmark, printed as it grows, and the record behind it, with the machine that it was made on."""

import argparse
import datetime
import json
import operator
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness import Timing, ratio

import fusedstep

__all__ = ["Question", "Report", "ask", "machine"]

OPERATORS = {">=": operator.ge, "<=": operator.le}
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}

Question = Callable[["Report", bool], None]  # takes the report and whether to be quick


class Report:
    """The table, printed as it grows, and the record behind it."""

    LAYOUT = "{:<58} {:>20} {:>21} {:>7} {:>6}  {:<9} {}"

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._print("question", "ours", "other", "ratio", "+-", "goal", "verdict")

    def _print(self, *cells: str) -> None:
        print(self.LAYOUT.format(*cells).rstrip(), flush=True)

    def note(self, text: str) -> None:
        """Say something beside the table."""
        self.notes.append(text)
        print(f"  ({text})", flush=True)

    def add(
        self,
        question: str,
        ours: Timing,
        other: Timing | None = None,
        name: str = "",
        *,
        inverse: bool = False,
        goal: str = "",
        moved: int = 0,
    ) -> None:
        """
        Add a row.

        The ratio tells how many times faster ours is than the other, or, `inverse`, how many times slower. The goal
        is about that ratio, or, if it has a unit, about our time. `moved` is the bytes that a step reads and writes.
        """
        found = None
        if other:
            found = ratio(ours, other) if inverse else ratio(other, ours)
        verdict = ""
        if goal:
            sign, number, *unit = goal.split()
            value = ours.median / UNITS[unit[0]] if unit else found.median
            verdict = "met" if OPERATORS[sign](value, float(number)) else "missed"
        self.rows.append(
            {
                "question": question,
                "ours": ours.summary(moved),
                "other": {"name": name} | other.summary(moved) if other else None,
                "ratio": asdict(found) | {"is": "ours / other" if inverse else "other / ours"} if found else None,
                "goal": goal,
                "verdict": verdict,
            }
        )
        self._print(
            question,
            _seconds(ours.median) + (f" {moved / ours.median / 1e9:5.1f} GB/s" if moved else ""),
            f"{name} {_seconds(other.median)}" if other else "",
            _short(found.median) if found else "",
            _short(found.iqr) if found else "",
            goal,
            verdict,
        )


def _seconds(seconds: float) -> str:
    unit = next((u for u, scale in UNITS.items() if abs(seconds) < 1000 * scale), "s")
    return f"{seconds / UNITS[unit]:.3g} {unit}"


def _short(x: float) -> str:
    return f"{x:.3f}" if x < 10 else f"{x:.1f}"


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    packages = ("numpy", "torch", "deepspeed", "jax", "optax", "thinc")
    cpu, caches = platform.processor(), {}
    if (about := Path("/proc/cpuinfo")).exists():
        names = [line.split(":", 1)[1].strip() for line in about.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        caches[f"L{level} {kind}"] = size
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu,
        "caches": caches,
        "cores": os.cpu_count(),
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "huge_pages": huge.read_text().strip() if huge.exists() else None,
        "load": os.getloadavg(),
        "os": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("FUSEDSTEP_", "OMP_", "GOMP_", "MKL_"))},
        "fusedstep": fusedstep.info(),
    }


def _busy() -> tuple[float, float, float]:
    """Return seconds so far: of the clock, of all processors at work, and of those the ones that worked for us."""
    times = os.times()
    ours = times.user + times.system + times.children_user + times.children_system
    if not (stat := Path("/proc/stat")).exists():
        return time.perf_counter(), ours, ours
    ticks = [int(each) for each in stat.read_text().split("\n", 1)[0].split()[1:]]
    return time.perf_counter(), (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK"), ours


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def ask(about_all: str, questions: dict[str, Question], unless_named: tuple[str, ...] = ()) -> None:
    """Run the questions that the command line asks for, print the table, write the record."""
    parser = argparse.ArgumentParser(description=about_all)
    parser.add_argument("--quick", action="store_true", help="few rounds, fewer peers: about a minute")
    parser.add_argument("--only", nargs="+", choices=questions, metavar="QUESTION", help=", ".join(questions))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    args = parser.parse_args()
    wanted = args.only or [name for name in questions if name not in unless_named]

    about = machine()
    ours = about["fusedstep"]
    print(f"{about['cpu']}, {about['affinity']} of {about['cores']} cores, load {about['load'][0]:.2f}")
    print(f"{ours['isa']}, {ours['threads']} threads, {ours['compiler']}, commit {ours['commit']}\n")
    start = time.perf_counter()
    report = Report()
    others: dict[str, float] = {}
    for name in wanted:
        before = _busy()
        questions[name](report, args.quick)
        clock, busy, own = (b - a for a, b in zip(before, _busy(), strict=True))
        others[name] = max(0.0, busy - own) / clock
        if others[name] > 0.1:
            report.note(f"disturbed: meanwhile, other processes kept {others[name]:.1f} processors busy")
    verdicts = [row["verdict"] for row in report.rows]
    about |= {"seconds": time.perf_counter() - start, "disturbed_by": others, "quick": args.quick}
    print(f"\n{verdicts.count('met')} goals met, {verdicts.count('missed')} missed, {about['seconds']:.0f} s")
    if args.json:
        rows = ",\n".join(json.dumps(row) for row in report.rows)
        head = json.dumps({"machine": about, "notes": report.notes}, indent=1)
        args.json.write_text(f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n')
