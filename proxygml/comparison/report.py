"""The page of a comparison, and its table as Markdown and CSV."""

from pathlib import Path

from proxygml.comparison.settings import short_key
from proxygml.comparison.tables import Summary, Sweep, metric_name
from proxygml.errors import counted
from proxygml.files import atomic_write
from proxygml.reports import figures
from proxygml.reports.html import Picture, Section, write_page


def write_comparison(folder: Path, title: str, summary: Summary) -> None:
    """Write what the cells of a comparison show: comparison.html, table.md, table.csv and figures/, all in `folder`."""
    tables = summary.tables()
    markdown = "\n".join([f"# {title}\n", *(table.markdown() for table in tables)])
    for name, text in (("table.md", markdown), ("table.csv", summary.table().to_csv(index=False))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    pictures = _pictures(summary)
    sections = [Section("Side by side", "", pictures)]
    sections += [Section(table.title, table.note, (), table.head, table.rows) for table in tables]
    count = sum(summary.mean(method, "map_at_r").count for method in summary.methods)
    lead = f"{counted(len(summary.methods), 'method')}, {counted(count, 'trained network')}"
    write_page(folder / "comparison.html", title, lead, sections)


def _pictures(summary: Summary) -> tuple[Picture, ...]:
    shown = [method for method in summary.methods if summary.mean(method, "map_at_r").count]
    if not shown:
        return ()
    panels = {
        metric_name(metric): [_spread(summary, method, metric) for method in shown]
        for metric in (summary.metrics[0], "map_at_r", "nmi")
    }
    alt = f"The mean of every method and its interval: {', '.join(panels)}"
    points = Picture("methods", alt, figures.png(figures.method_points(shown, panels)))
    curves = {method: list(summary.curves(method)) for method in shown}
    curves = {method: runs for method, runs in curves.items() if runs}
    pictures = [points, *(_sweep_picture(summary, sweep) for sweep in summary.sweeps())]
    if curves:
        drawn = figures.png(figures.method_curves(curves))
        pictures.append(Picture("convergence", "Recall@1 on validation classes by epoch, for every method", drawn))
    return tuple(pictures)


def _sweep_picture(summary: Summary, sweep: Sweep) -> Picture:
    panels = {
        metric_name(metric): {
            name: {
                value: _spread(summary, method, metric)
                for value, method in line.items()
                if summary.mean(method, metric).count
            }
            for name, line in sweep.lines.items()
        }
        for metric in (summary.metrics[0], "map_at_r")
    }
    alt = f"{' and '.join(panels)} by {sweep.key}"
    name = f"sweep_{sweep.key.replace('.', '_')}"
    return Picture(name, alt, figures.png(figures.sweep(short_key(sweep.key), panels)))


def _spread(summary: Summary, method: str, metric: str) -> figures.Spread:
    mean = summary.mean(method, metric)
    single = [100 * value for value in summary.values(method, metric).values()]
    return figures.Spread(mean.value, mean.low, mean.high, single)
