"""What a run leaves for a reader: curves.png, the experiment's own figures, and report.md that shows them."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.config import flat, plain
from experiments.experiment import Experiment, Trained
from experiments.logs import replace_file

PANELS = 11  # metrics that are drawn; the report's table has all
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
LINES = ("-", "--", "-.", ":")


def write_report(
    folder: pathlib.Path,
    experiment: Experiment,
    config: Any,
    trained: Mapping[str, Trained],
    verdict: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    """Writes curves.png, figures/ and report.md into ``folder``."""
    curves(trained, f"{experiment.name}, preset {verdict['preset']}, seed {verdict['seed']}").savefig(
        folder / "curves.png", dpi=130
    )
    names = []
    if experiment.figures is not None:
        (folder / "figures").mkdir(exist_ok=True)
        for name, figure in experiment.figures(config, trained, verdict["metrics"]).items():
            name = name if name.endswith(".png") else f"{name}.png"
            figure.savefig(folder / "figures" / name, dpi=130, bbox_inches="tight")
            names.append(name)
    replace_file(folder / "report.md", _markdown(experiment, config, trained, verdict, record, names))


def curves(trained: Mapping[str, Trained], title: str) -> Any:
    """A matplotlib figure: training loss of every arm, and the metrics of the evaluations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = _evaluated(trained)[:PANELS]
    panels = 1 + len(metrics)
    columns = min(panels, 2 if panels <= 4 else 3)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(5.6 * columns, 3.6 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.suptitle(title, fontsize=11)

    lows = []
    for (name, result), style in zip(trained.items(), _styles(len(trained))):
        rows_with_loss = [r for r in result.history if "loss" in r]
        if rows_with_loss:
            axes[0].plot([r["step"] for r in rows_with_loss], [r["loss"] for r in rows_with_loss], label=name, **style)
            lows += [r["loss"] for r in rows_with_loss]
    if lows and min(lows) > 0 and max(lows) > 20 * min(lows):
        axes[0].set_yscale("log")
    axes[0].set(title="training loss", xlabel="step", ylabel="loss (mean over a call)")

    for axis, metric in zip(axes[1:], metrics):
        _draw_metric(axis, trained, metric)
    for axis in axes[panels:]:
        axis.set_axis_off()
    for axis in axes[:panels]:
        axis.grid(True, color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=9)
    return figure


def _draw_metric(axis: Any, trained: Mapping[str, Trained], metric: str) -> None:
    """Evaluations over steps; bars when every arm was evaluated only once."""
    series = {}
    for name, result in trained.items():
        points = [(r["step"], r[f"evaluation/{metric}"]) for r in result.history if f"evaluation/{metric}" in r]
        if points:
            series[name] = points
    styles = dict(zip(trained, _styles(len(trained))))
    axis.set_title(f"evaluation: {metric}")
    if all(len(points) == 1 for points in series.values()):
        positions = range(len(series))
        values = [points[0][1] for points in series.values()]
        axis.barh(positions, values, color=[styles[n]["color"] for n in series], height=0.6)
        axis.set_yticks(positions, series)
        axis.invert_yaxis()
        axis.bar_label(axis.containers[0], fmt="%.3g", padding=3, fontsize=8)
        axis.margins(x=0.12)
    else:
        for name, points in series.items():
            axis.plot(*zip(*points), label=name, marker="o", markersize=3, **styles[name])
        axis.set(xlabel="step", ylabel=metric)


def _evaluated(trained: Mapping[str, Trained]) -> list[str]:
    """Names of the evaluation metrics, in the order in which they first appear."""
    names: dict[str, None] = {}
    for result in trained.values():
        names.update(dict.fromkeys(result.metrics))
    return list(names)


def _styles(count: int) -> list[dict[str, Any]]:
    return [
        {"color": COLORS[i % len(COLORS)], "linestyle": LINES[i // len(COLORS) % len(LINES)], "linewidth": 1.6}
        for i in range(count)
    ]


def _markdown(experiment, config, trained, verdict, record, figures) -> str:
    command = f"python -m experiments.launch --experiment={verdict['experiment']} --preset={verdict['preset']}"
    command += f" --seed={verdict['seed']}"
    command += "".join(f" '--set={k}={_setting(v)}'" for k, v in record["overrides"].items())
    parts = [
        f"# {experiment.name}: {'passed' if verdict['passed'] else 'FAILED'}",
        f"**Claim.** {experiment.claim}",
        f"**Paper.** {experiment.paper}",
        f"Preset `{verdict['preset']}`, seed {verdict['seed']}, {verdict['seconds']} s on {record['devices']['count']} "
        f"{record['devices']['platform']} device(s) ({record['devices']['kind']}).",
        "## Checks",
        _table(
            ["check", "value", "wanted", "result"],
            [
                [
                    c["name"],
                    _text(c["value"]),
                    f"{c['op']} {_text(c['threshold'])}".removesuffix(" -"),
                    "passed" if c["passed"] else "**failed**",
                ]
                for c in verdict["checks"]
            ],
        ),
        "## Arms",
        _arms_table(trained, verdict["metrics"]),
    ]
    others = {k: v for k, v in verdict["metrics"].items() if k.split("/")[0] not in trained}
    if others:
        parts += ["## Measured", _table(["quantity", "value"], [[k, _text(v)] for k, v in others.items()])]
    parts += ["## Curves", "![training and evaluation curves](curves.png)"]
    parts += [f"![{name}](figures/{name})" for name in figures]
    for title, text in verdict["texts"].items():
        parts += [f"## {title}", f"```text\n{text}\n```"]
    if experiment.notes:
        parts += ["## Notes", experiment.notes.strip()]
    models = {name: _description(result.arm.model) for name, result in trained.items()}
    parts += [
        "## Run it again",
        f"```\n{command}\n```",
        "## Configuration",
        _table(["field", "value"], [[k, f"`{json.dumps(v)}`"] for k, v in flat(plain(config)).items()]),
    ]
    if any(models.values()):
        parts += ["## Models", _table(["arm", "model"], [[n, f"`{json.dumps(m)}`"] for n, m in models.items() if m])]
    parts += ["## Versions", ", ".join(f"{k} {v}" for k, v in verdict["versions"].items())]
    return "\n\n".join(parts) + "\n"


def _arms_table(trained: Mapping[str, Trained], metrics: Mapping[str, float]) -> str:
    columns = ["train_loss", *_evaluated(trained), "parameters", "seconds"]
    return _table(
        ["arm", *columns], [[name, *(_text(metrics.get(f"{name}/{c}")) for c in columns)] for name in trained]
    )


def _description(model: Any) -> Any:
    """``zoo.describe(model)``, or the name of a class that is not registered."""
    import zoo

    if model is None:
        return None
    try:
        return zoo.describe(model)
    except ValueError:
        return type(model).__name__


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
