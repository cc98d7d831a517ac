"""training.png: success, mu, entropy, gradient norms and cosine over steps."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from recipe.amft.reporting.reading import series

PANELS = (
    ("Success", (("val/success", "held-out success"), ("rl/reward", "training reward"))),
    ("Weight of imitation", (("controller/mu", "mu"),)),
    ("Entropy (nats per token)", (("controller/entropy", "H"), ("controller/target_entropy", "H*"))),
    ("Losses", (("sft/loss", "L_SFT"), ("rl/loss", "L_RL"))),
    ("Gradient norms", (("sft/norm", "|g_SFT|"), ("rl/norm", "|g_RL|"), ("actor/grad_norm", "|mixed|"))),
    ("Cosines", (("rl/cosine", "cos(g_SFT, g_RL)"), ("meta/cosine", "cos(grad U, d theta/d mu)"))),
)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the figure of a run's metrics."""
    figure = training_figure(rows)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def training_figure(rows: list[dict[str, Any]]) -> Figure:
    """Six panels; the end of the warm-up is a dashed line."""
    warm_up_end = max((row["step"] for row in rows if row.get("phase") == "warm-up"), default=0)
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), constrained_layout=True)
    for axis, (title, curves) in zip(axes.flat, PANELS, strict=True):
        for name, label in curves:
            steps, values = series(rows, name)
            if steps:
                sparse = len(steps) <= 40
                axis.plot(steps, values, label=label, marker="o" if sparse else None, markersize=3, linewidth=1.4)
        if warm_up_end:
            axis.axvline(warm_up_end, color="grey", linestyle="--", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8)
    axes.flat[0].set_ylim(0, 1)
    axes.flat[1].set_ylim(0, 1)
    return figure
