"""The loss of every optimizer on handwritten digits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusedstep import optimizers
from fusedstep.optimizers import classes
from fusedstep.tools.digits import EPOCHS, load, rate, train

from .families import FAMILIES, family, legend, line
from .picture import blank, write

__all__ = ["draw_losses", "losses"]


def losses(epochs: int) -> dict[str, list[float]]:
    """Return the losses of each optimizer before and after each epoch, trained with the kernels in float32."""
    digits = load()
    names = [cls.__name__ for cls in classes()]
    return {name: train(getattr(optimizers, name)(lr=rate(name)), digits, epochs).losses for name in names}


def draw_losses(*paths: Path, curves: Mapping[str, Sequence[float]] | None = None) -> dict[str, Any]:
    """
    Draw the losses of each optimizer over the epochs, in a panel for each family, with all others in grey behind.

    Parameters
    ----------
    *paths : Path
        PNG or SVG files to write.
    curves : mapping, optional
        Losses before and after each epoch, by the name of the optimizer; by default, every one is trained.

    Returns
    -------
    dict
        The axes, by the name of the family.
    """
    curves = losses(EPOCHS["float32"]) if curves is None else curves
    figure = blank(5.2)
    panels = dict(zip(FAMILIES, figure.subplots(1, len(FAMILIES), sharey=True), strict=True))
    for kind, axes in panels.items():
        for name in sorted(curves, key=lambda name: -curves[name][-1]):  # legends list the highest curve first
            axes.semilogy(curves[name], color="0.85", linewidth=1, zorder=1)
            if family(name) == kind:
                axes.semilogy(curves[name], **line(axes, name, rate(name), len(curves[name])))
        axes.set_title(kind, fontsize=9, loc="left")
        axes.margins(x=0)
        axes.grid(alpha=0.3)
        axes.tick_params(which="both", labelsize=8)
        axes.locator_params(axis="x", integer=True)
        legend(axes)
    figure.suptitle(
        "Handwritten digits, 64-64-10 network: mean loss on the training images", fontsize=10, x=0.01, ha="left"
    )
    figure.supxlabel("Epochs. Beside each name: the learning rate.", fontsize=8)
    write(figure, paths)
    return panels
