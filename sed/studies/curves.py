"""AP and losses of two runs against the step, as one picture of a report."""

from __future__ import annotations

import io

from sed.studies.run_results import MODELS, RunResults

_TERMS = {"scale": "scale consistency", "distill": "distillation", "pseudo": "pseudo-labels"}
_BASELINE_COLOUR, _TREATED_COLOUR = "#8a94a6", "#3454d1"
_TERM_COLOURS = ("#3454d1", "#e07a1f", "#1a936f", "#8a4fbf")


def curves_svg(baseline: RunResults, treated: RunResults) -> str:
    """AP on the validation set, supervised and unsupervised losses against the step, as one inline SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {
        "svg.fonttype": "none",  # text stays text, in the page's own font
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#9aa3b2",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.grid": True,
        "grid.color": "#e6e9ef",
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    with plt.rc_context(style):
        figure, (ap, sup, unsup) = plt.subplots(1, 3, figsize=(13, 3.7), layout="constrained")
        for run, colour in ((baseline, _BASELINE_COLOUR), (treated, _TREATED_COLOUR)):
            for model, line in (("student", "--"), ("teacher", "-")):
                label = f"{run.label}, {MODELS[model]}"
                ap.plot(*run.series(f"{model}/AP"), line, color=colour, marker="o", ms=3.5, label=label)
            sup.plot(*run.term("sup"), color=colour, lw=1.4, label=run.label)
        terms = [name for name in _TERMS if treated.term(name)[0]]
        for name, colour in zip(terms, _TERM_COLOURS, strict=False):
            unsup.plot(*treated.term(name), color=colour, lw=1.4, label=_TERMS[name])
        ap.set_title(f"AP on {' '.join(map(str, treated.config.get('DATASETS.TEST', ())))} while training")
        sup.set_title("Supervised loss")
        unsup.set_title(f"{treated.label}: weighted unsupervised losses")
        burn_in = treated.config.get("SEMI.BURN_IN", 0)
        for axis in (ap, sup, unsup):
            axis.set_xlabel("step")
            axis.set_ylim(bottom=0)
            if 0 < burn_in < treated.config.get("SOLVER.MAX_ITER", 0):
                axis.axvline(burn_in, color="#c3c9d4", lw=1, ls=":", label="end of burn-in" if axis is ap else None)
            axis.set_xlim(0, treated.config.get("SOLVER.MAX_ITER"))
            if axis.get_legend_handles_labels()[0]:
                axis.legend()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
        plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
