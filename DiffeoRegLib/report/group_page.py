"""One self-contained HTML page with the pictures, plots and numbers of a registered group."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffeoRegLib.report.group import group_facts, group_rows
from DiffeoRegLib.report.pictures import read
from DiffeoRegLib.report.planes import Plane, planes
from DiffeoRegLib.report.png import grey, png_bytes
from DiffeoRegLib.report.style import STYLE
from DiffeoRegLib.volumes.volume import Volume

Values = NDArray[np.float64]
SHOWN = 12
"""Images of a large group that are drawn one by one."""
HOT = np.array([[0, 0, 0], [120, 20, 90], [230, 90, 30], [255, 220, 90], [255, 255, 255]], dtype=np.float64)
BAR = 16


def group_page(
    report: Mapping[str, Any],
    images: Sequence[Volume],
    aligned: Sequence[Volume],
    deviations: Sequence[Volume],
) -> str:
    """The page as text; entries of the lists in the order of the report."""
    view = aligned[0].grid
    cuts = planes(view, view.center_mm)
    before = [_stack(images, plane) for plane in cuts]
    after = [_stack(aligned, plane) for plane in cuts]
    window = _window(after)
    spreads = [[_over(stack)[1] for stack in stage] for stage in (before, after)]
    top = max(float(np.percentile(one, 99)) for one in spreads[0]) or 1.0
    means = [[_grey(_over(stack)[0], window) for stack in stage] for stage in (before, after)]
    maps = [[_hot(one / top) for one in stage] for stage in spreads]
    note = f"standard deviation over the group, white: {top:.3g}"
    rows = [
        _row("Mean, before", "as the images were given", cuts, means[0]),
        _row("Mean, registered", "sharper where the images agree", cuts, means[1]),
        _row("Spread, before", note, cuts, maps[0]),
        _row("Spread, registered", "same colours", cuts, maps[1]),
    ]
    title = f"{len(images)} images registered"
    body = [
        f"<h1>{title}</h1><p class='soft'>{escape(_subtitle(report))}</p>",
        _numbers(report),
        f"<section><h2>Agreement</h2>{''.join(rows)}</section>",
        _uncertainty(report, deviations, cuts),
        _frames(report, cuts[0], before[0], after[0], window),
        _plots(report),
        _details(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><main>{''.join(body)}</main></body></html>\n"
    )


def _subtitle(report: Mapping[str, Any]) -> str:
    settings, fixed = report["settings"], report["fixed"]
    place = (
        "to the middle of all" if fixed is None else f"to image {fixed}, {report['images'][fixed]['name']}"
    )
    return (
        f"DiffeoReg {report['versions']['diffeoreg']}, {place}, similarity {settings['similarity']}, preset "
        f"{settings['preset']}, effort {settings['effort']}, {report['created'].replace('T', ' ')[:16]} UTC"
    )


def _stack(volumes: Sequence[Volume], plane: Plane) -> Values:
    return np.stack([read(volume, plane.points_mm) for volume in volumes])


def _over(stack: Values) -> tuple[Values, Values]:
    """Mean and standard deviation over the images that show a place; 0 where none does."""
    count = np.maximum(np.isfinite(stack).sum(0), 1)
    mean = np.nansum(stack, 0) / count
    return mean, np.sqrt(np.nansum((stack - mean) ** 2, 0) / count)


def _window(stacks: Sequence[Values]) -> tuple[float, float]:
    values = np.concatenate([stack[np.isfinite(stack)] for stack in stacks])
    low, high = np.percentile(values, (0.5, 99.5)) if len(values) else (0.0, 1.0)
    return float(low), float(high if high > low else low + 1)


def _grey(values: Values, window: tuple[float, float]) -> bytes:
    return png_bytes(grey((values - window[0]) / (window[1] - window[0])))


def _hot(share: Values) -> bytes:
    """0 black, 1 white, by way of purple and orange."""
    position = np.clip(np.nan_to_num(share), 0, 1) * (len(HOT) - 1)
    low = np.minimum(position.astype(int), len(HOT) - 2)
    part = (position - low)[..., None]
    return png_bytes(np.round(HOT[low] * (1 - part) + HOT[low + 1] * part).astype(np.uint8))


def _numbers(report: Mapping[str, Any]) -> str:
    head, *rows = group_rows(report)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    facts = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in group_facts(report))
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    return (
        f"<section><h2>Numbers</h2><div class='wide'><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{lines}</tbody></table><table class='plain'><tbody>{facts}</tbody></table></div>"
        "<p class='note'>Numbers do not replace looking. Research software, not for diagnosis.</p></section>"
    )


def _uncertainty(report: Mapping[str, Any], deviations: Sequence[Volume], cuts: Sequence[Plane]) -> str:
    if not deviations:
        return ""
    top = max(one["p95"] for one in report["deviation_mm"]) or 1.0
    maps = [_over(_stack(deviations, plane))[0] / top for plane in cuts]
    note = f"standard deviation of the place of a point, mean over the images; white: {top:.2g} mm and more"
    return (
        f"<section><h2>Uncertainty</h2>{_row('Deviation', note, cuts, [_hot(one) for one in maps])}</section>"
    )


def _frames(
    report: Mapping[str, Any], plane: Plane, before: Values, after: Values, window: tuple[float, float]
) -> str:
    """Each image before and after in one plane; of a large group some, evenly."""
    chosen = np.unique(np.linspace(0, len(before) - 1, min(SHOWN, len(before))).round().astype(int))
    names = [one["name"] for one in report["images"]]
    tiles = []
    for kind, stack in (("before", before), ("registered", after)):
        tiles += [_tile(_grey(stack[k], window), f"{k}: {names[k]}, {kind}") for k in chosen]
    return (
        f"<section><h2>Image by image</h2><p class='note'>{escape(plane.name)} plane through the middle</p>"
        f"<div class='tiles' style='grid-template-columns:repeat({len(chosen)},minmax(60px,1fr))'>"
        f"{''.join(tiles)}"
        "</div></section>"
    )


def _plots(report: Mapping[str, Any]) -> str:
    names = [f"{k}: {one['name']}" for k, one in enumerate(report["images"])]
    charts = [_bars("SD of the log-Jacobian", names, [one["sd_log_jacobian"] for one in report["folds"]])]
    if report["deviation_mm"]:
        charts.append(
            _bars("Standard deviation, mean, mm", names, [one["mean"] for one in report["deviation_mm"]])
        )
    seconds = report["seconds"]
    charts.append(_bars("Seconds", list(seconds), list(seconds.values())))
    return f"<section><h2>Plots</h2>{''.join(charts)}</section>"


def _bars(title: str, names: Sequence[str], values: Sequence[float | None]) -> str:
    """Horizontal bars, as an inline drawing."""
    known = [value or 0.0 for value in values]
    top = max([*known, 1e-9])
    lines = []
    for row, (name, value) in enumerate(zip(names, known, strict=True)):
        y = row * (BAR + 4)
        width = 420 * value / top
        lines.append(
            f'<text x="0" y="{y + 12}" font-size="11" fill="currentColor">{escape(name[:28])}</text>'
            f'<rect x="190" y="{y + 2}" width="{width:.1f}" height="{BAR - 3}" fill="#0f6cbd"/>'
            f'<text x="{196 + width:.1f}" y="{y + 12}" font-size="11" fill="currentColor">{value:.3g}</text>'
        )
    height = len(known) * (BAR + 4) + 4
    return (
        f'<h3>{escape(title)}</h3><svg viewBox="0 0 680 {height}" width="100%" role="img" '
        f'aria-label="{escape(title)}">{"".join(lines)}</svg>'
    )


def _details(report: Mapping[str, Any]) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
    cite = "".join(f"<li>{escape(text)}</li>" for text in report["citations"])
    used = "".join(
        f"<tr><td>{k}: {escape(one['name'])}</td><td>{' x '.join(map(str, one['shape']))}</td></tr>"
        for k, one in enumerate(report["images"])
    )
    return (
        f"<section><h2>Details</h2><ul>{notes}</ul><div class='wide'><table class='plain'>"
        f"<tbody>{used}</tbody></table></div><h2 style='margin-top:18px'>Please cite what ran</h2>"
        f"<ol>{cite}</ol></section>"
    )


def _row(title: str, note: str, cuts: Sequence[Plane], pictures: Sequence[bytes]) -> str:
    single = " single" if len(cuts) == 1 else ""
    tiles = [_tile(data, plane.name, plane) for plane, data in zip(cuts, pictures, strict=True)]
    return (
        f'<div class="row"><div><h3>{escape(title)}</h3><div class="note">{escape(note)}</div></div>'
        f'<div class="tiles{single}">{"".join(tiles)}</div></div>'
    )


def _tile(data: bytes, caption: str, plane: Plane | None = None) -> str:
    text = base64.b64encode(data).decode("ascii")
    edges = (
        ""
        if plane is None
        else "".join(
            f'<i class="{side}">{letter}</i>'
            for side, letter in zip("wens", plane.edges, strict=True)
            if letter
        )
    )
    picture = f'<img alt="{escape(caption)}" src="data:image/png;base64,{text}">'
    return (
        f'<figure><div class="tile">{picture}{edges}</div><figcaption>{escape(caption)}</figcaption></figure>'
    )
