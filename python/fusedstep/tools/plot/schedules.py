"""The picture of all schedules: the value of each over the finished updates."""

from pathlib import Path
from typing import Any, NamedTuple

from fusedstep import schedules as s

from .picture import blank, write

__all__ = ["Panel", "draw_schedules", "panels", "values"]

STYLES = ({"color": "black", "linewidth": 1.4}, {"color": "C0", "linewidth": 1.8, "linestyle": (0, (4, 2))})
# What a plateau observes: a metric that gets no better after 40 updates.
METRIC = [max(0.97**done, 0.3) for done in range(240)]


class Panel(NamedTuple):
    """A schedule in the picture: its arguments in short, the updates on the axis, and a line for each variant."""

    arguments: str
    updates: int
    lines: dict[str, s.Schedule]


def panels() -> dict[str, Panel]:
    """Return the panel of each schedule by its name, with a learning rate of 1."""
    return {
        "constant": Panel("lr", 240, {"": s.constant(1)}),
        "exponential": Panel(
            "lr, rate=0.5, steps=48",
            240,
            {"staircase=False": s.exponential(1, 0.5, 48), "staircase=True": s.exponential(1, 0.5, 48, True)},
        ),
        "inverse_time": Panel(
            "lr, rate=1, steps=48",
            240,
            {"staircase=False": s.inverse_time(1, 1, 48), "staircase=True": s.inverse_time(1, 1, 48, True)},
        ),
        "inverse_sqrt": Panel("lr, steps=48", 240, {"": s.inverse_sqrt(1, 48)}),
        "step": Panel("lr, factor=0.5, every=5", 16, {"": s.step(1, 0.5, 5)}),
        "multistep": Panel(
            "lr, factor=0.5, boundaries=[5, 10]",
            16,
            {
                'boundary="first"': s.multistep(1, 0.5, [5, 10]),
                'boundary="last"': s.multistep(1, 0.5, [5, 10], "last"),
            },
        ),
        "piecewise": Panel(
            "boundaries=[5, 10], values=[...]",
            16,
            {
                'boundary="first"': s.piecewise([5, 10], [0.6, 1, 0.2]),
                'boundary="last"': s.piecewise([5, 10], [0.6, 1, 0.2], "last"),
            },
        ),
        "polynomial": Panel(
            "lr, end=0.1*lr, steps=90, power=2",
            240,
            {"cycle=False": s.polynomial(1, 0.1, 90, 2), "cycle=True": s.polynomial(1, 0.1, 90, 2, True)},
        ),
        "cosine": Panel(
            "lr, steps=90, alpha=0.1",
            240,
            {'after="hold"': s.cosine(1, 90, 0.1), 'after="periodic"': s.cosine(1, 90, 0.1, "periodic")},
        ),
        "cosine_restarts": Panel(
            "lr, steps=80, ...",
            240,
            {"t_mul=1, m_mul=1": s.cosine_restarts(1, 80), "t_mul=2, m_mul=0.6": s.cosine_restarts(1, 80, 2, 0.6)},
        ),
        "warmup": Panel("0, cosine(lr, 180), steps=60", 240, {"": s.warmup(0, s.cosine(1, 180), 60)}),
        "product": Panel(
            "cosine(lr, 240), step(1, 0.6, 80)", 240, {"": s.product(s.cosine(1, 240), s.step(1, 0.6, 80))}
        ),
        "sequential": Panel(
            "[lr/2, cosine(lr, 160)], milestones=[80]", 240, {"": s.sequential([0.5, s.cosine(1, 160)], [80])}
        ),
        "plateau": Panel("lr, factor=0.5, patience=40", 240, {"value": s.plateau(1, 0.5, 40)}),
    }


def values(schedule: s.Schedule, updates: int) -> list[float]:
    """Return the values for the first updates. After each, a plateau observes the next number of `METRIC`."""
    found = []
    for done in range(updates):
        found.append(schedule(done))
        if isinstance(schedule, s.plateau):
            schedule.observe(METRIC[done])
    return found


def _draw(axes: Any, name: str, panel: Panel) -> None:
    for style, (label, schedule) in zip(STYLES, panel.lines.items(), strict=False):
        axes.plot(values(schedule, panel.updates), drawstyle="steps-post", label=label or None, **style)
    if name == "plateau":
        axes.plot(METRIC, ":", color="0.4", linewidth=1.8, label="metric observed")
    axes.set_title(name, fontsize=10, fontweight="bold", loc="left", pad=16)
    axes.text(0, 1.03, panel.arguments, fontsize=8, transform=axes.transAxes)
    axes.set(xlim=(0, panel.updates - 1), ylim=(0, 1.45), yticks=(0, 0.5, 1), yticklabels=("0", "lr/2", "lr"))
    axes.locator_params(axis="x", integer=True, nbins=5)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper right", fontsize=8, frameon=False, handlelength=2.6, borderpad=0, labelspacing=0.3)


def draw_schedules(*paths: Path) -> dict[str, Any]:
    """Draw every schedule in a panel of its own, write the picture to each path, and return the axes by name."""
    names = list(panels())
    rows: list[Any] = [names[i : i + 3] for i in range(0, len(names), 3)]
    rows[-1] += rows[-1][-1:] * (3 - len(rows[-1]))  # the last panel fills its row
    figure = blank(12)
    axes: dict[str, Any] = figure.subplot_mosaic(rows)
    for name, panel in panels().items():
        _draw(axes[name], name, panel)
    figure.supxlabel("finished updates", fontsize=10)
    write(figure, paths)
    return axes
