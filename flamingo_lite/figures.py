"""How figures look, and how one becomes PNG bytes. The colours are Okabe and Ito's, told apart by readers with any
colour vision.

No pyplot: figures are plain objects, without a global list of them or a display.
"""

import io
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d2530", "#66707d", "#e6e9ed"
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"

# DejaVu Sans comes with matplotlib, so a figure looks the same on every machine.
LOOK: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.labelcolor": MUTED,
    "axes.edgecolor": "#b6bec8", "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "xtick.color": "#b6bec8", "ytick.color": "#b6bec8", "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "xtick.major.size": 3, "ytick.major.size": 0, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 22, "lines.solid_capstyle": "round",
    "figure.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 100,
}  # fmt: skip


def png(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as PNG. Its bytes depend on the figure alone, not on the version that drew it."""
    buffer = io.BytesIO()
    with mpl.rc_context(LOOK):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
