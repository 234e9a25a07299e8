"""One self-contained HTML page with the pictures and numbers of a registration."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from DiffeoRegLib.report.pictures import FIXED_COLOUR, FOLD_COLOUR, MOVING_COLOUR, Gallery
from DiffeoRegLib.report.planes import Plane
from DiffeoRegLib.report.style import STYLE
from DiffeoRegLib.report.text import (
    REGION_COLUMNS,
    STAGES,
    deformation_rows,
    millimetres,
    number,
    region_rows,
    stage_rows,
    verdict,
)

PHASE_COLOURS = (
    "#0f6cbd", "#2a9d8f", "#e9a23b", "#b5588f", "#7a6fd0", "#8a97a5", "#c8553d", "#4c9f38", "#6b4f3a",
)  # fmt: skip
SHOWN_LABELS = 12
REMARKS = "Remarks of the run"


def html_page(report: Mapping[str, Any], gallery: Gallery) -> str:
    """The page as text; pictures are embedded, nothing is loaded from elsewhere."""
    inputs = report["inputs"]
    names = escape(inputs["moving"]["name"]), escape(inputs["fixed"]["name"])
    body = [
        f'<h1>{names[0]} registered to {names[1]}</h1><p class="soft">{_subtitle(report)}</p>',
        _verdict(report),
        _cards(report),
        _images(report, gallery),
        _agreement(gallery),
        _labels(report, gallery),
        _regions(report),
        _deformation(gallery),
        _numbers(report),
        _time(report),
        _details(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{names[0]} registered to {names[1]}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _subtitle(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    text = (
        f"DiffeoReg {report['versions']['diffeoreg']}, method {settings['method']}, "
        f"preset {settings['preset']}, effort {settings['effort']}, "
        f"{report['created'].replace('T', ' ')[:16]} UTC"
    )
    return escape(text)


def _verdict(report: Mapping[str, Any]) -> str:
    found = verdict(report)
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in found.sentences)
    return (
        f'<section class="verdict {found.level}"><h2>{escape(found.headline)}</h2><ul>{sentences}</ul>'
        '<p class="note" style="margin:10px 0 0">Numbers do not replace looking: check the pictures at the '
        "structures that matter. Research software, not for diagnosis.</p></section>"
    )


def _cards(report: Mapping[str, Any]) -> str:
    cards = []
    before, after = report["similarity"].get("initial"), report["similarity"].get("final")
    if after:
        text = f"{after['lncc']:.2f}" if not before else f"{before['lncc']:.2f} → {after['lncc']:.2f}"
        cards.append((text, "local correlation"))
    if report.get("labels"):
        means = report["labels"]["mean"]
        cards.append((_change(means, "dice", "{:.2f}"), "Dice of the labels"))
    if report.get("landmarks"):
        cards.append((_change(report["landmarks"], "mean", "{:.1f}"), "landmark error, mm"))
    cards.append((f"{report['folds']['folded_percent']:.3g} %", "folded"))
    cards.append((millimetres(report["inverse_consistency_mm"]["mean"]), "inverse error, mean"))
    cards.append((number(report["displacement_mm"]["deformation"]["mean"], "{:.2f} mm"), "deformation, mean"))
    inner = "".join(f'<div class="card"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in cards)
    return f'<div class="cards">{inner}</div>'


def _change(stages: Mapping[str, Any], key: str, form: str) -> str:
    values = [number(stages[stage][key], form) for stage in ("initial", "final") if stages.get(stage)]
    return " → ".join(values)


def _images(report: Mapping[str, Any], gallery: Gallery) -> str:
    rows = [
        _row("Fixed", escape(report["inputs"]["fixed"]["name"]), gallery, "fixed"),
        _row("Moving, before", "after the first alignment only", gallery, "before"),
        _row("Moving, registered", escape(report["inputs"]["moving"]["name"]), gallery, "after"),
        _frame("Swipe", "drag over the picture: fixed left, registered right", _swipes(gallery)),
    ]
    side = "The patient's right is on the left side of the picture." if len(gallery.planes) == 3 else ""
    return f'<section><h2>Images</h2><p class="note">{side}</p>{"".join(rows)}</section>'


def _agreement(gallery: Gallery) -> str:
    scale = _colour_scale("darker", "equal", "brighter", " dark") + "the registered image, compared"
    rows = [
        _row("Checkerboard", "squares of both images: edges should continue", gallery, "checkerboard"),
        _row("Difference, before", "intensities matched by a straight line", gallery, "difference_before"),
        _row("Difference, registered", scale, gallery, "difference_after"),
    ]
    return f"<section><h2>Agreement</h2>{''.join(rows)}</section>"


def _labels(report: Mapping[str, Any], gallery: Gallery) -> str:
    if "labels_before" not in gallery.files and not report.get("labels"):
        return ""
    rows = ""
    if "labels_before" in gallery.files:
        key = f"{_key(FIXED_COLOUR, 'fixed')}<br>{_key(MOVING_COLOUR, 'moving')}"
        rows = _row("Outlines, before", key, gallery, "labels_before")
        rows += _row("Outlines, registered", key, gallery, "labels_after")
    return f"<section><h2>Segmentations</h2>{rows}{_label_table(report)}</section>"


def _label_table(report: Mapping[str, Any]) -> str:
    if not report.get("labels"):
        return ""
    head = "".join(
        f"<th>{name}</th>"
        for name in ("Label", "Dice before", "registered", "HD95 before (mm)", "registered")
    )
    lines = []
    for label, stages in report["labels"]["per_label"].items():
        cells = [
            number(stages[s][k], f)
            for k, f in (("dice", "{:.3f}"), ("hd95_mm", "{:.2f}"))
            for s in ("initial", "final")
        ]
        lines.append(f"<tr><td>{escape(label)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    table = _table(head, "".join(lines))
    if len(lines) <= SHOWN_LABELS:
        return table
    return f"<details><summary>All {len(lines)} labels</summary>{table}</details>"


def _regions(report: Mapping[str, Any]) -> str:
    rows = region_rows(report)
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in REGION_COLUMNS)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    words = "Of the moving image, where it lies after registration; by the deformation alone."
    table = _table(head, "".join(f"<tr>{line}</tr>" for line in lines))
    return f'<section><h2>Regions</h2><p class="note">{words}</p>{table}</section>'


def _deformation(gallery: Gallery) -> str:
    if "grid" not in gallery.files:
        words = "None: the transform is affine, the same change everywhere."
        return f"<section><h2>Deformation</h2><p>{words}</p></section>"
    top = gallery.volume_scale
    scale = (
        _colour_scale(f"1/{top:g}", "1", f"{top:g}")
        + "<p style='margin:6px 0 0'>red: larger in the moving image than in the fixed one; blue: smaller</p>"
        + _key(FOLD_COLOUR, "folded")
    )
    rows = [
        _row("Deformed grid", "straight lines laid on the moving image, bent with it", gallery, "grid"),
        _row("Volume change", f"Jacobian determinant{scale}", gallery, "volume_change"),
    ]
    return f"<section><h2>Deformation</h2>{''.join(rows)}</section>"


def _numbers(report: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{escape(stage)}</th>" for stage in STAGES.values())
    lines = "".join(
        f"<tr><td>{escape(row.name)}{_better(row.better)}</td><td>{row.given}</td><td>{row.initial}</td>"
        f'<td class="last">{row.final}</td></tr>'
        for row in stage_rows(report)
    )
    facts = _plain_table(deformation_rows(report))
    return (
        "<section><h2>Numbers</h2>"
        f"{_table('<th></th>' + head, lines)}"
        f"<h2 style='margin-top:18px'>Transform</h2>{facts}</section>"
    )


def _better(word: str) -> str:
    arrow = {"higher": "↑", "lower": "↓"}.get(word)
    return f' <span class="soft" title="{word} is better">{arrow}</span>' if arrow else ""


def _time(report: Mapping[str, Any]) -> str:
    phases = [(name, float(value)) for name, value in report["seconds"].items() if value and name != "total"]
    total = sum(value for _, value in phases)
    memory = number(report.get("peak_memory_mb"), "Peak memory {:.0f} MB")
    device = report.get("device")
    place = f", computed on {escape(device['name'])} ({escape(device['device'])})" if device else ""
    if not phases:
        return f"<section><h2>Time and memory</h2><p>{memory}{place}.</p></section>"
    bar = legend = ""
    for i, (name, value) in enumerate(phases):
        colour = PHASE_COLOURS[i % len(PHASE_COLOURS)]
        share = 100 * value / total
        bar += (
            f'<span style="flex:{share:.3f};background:{colour}" title="{escape(name)} {value:.1f} s"></span>'
        )
        legend += f'<span class="key" style="--c:{colour}">{escape(name)} {value:.1f} s</span>'
    return (
        f'<section><h2>Time and memory</h2><div class="time">{bar}</div><div class="legend">{legend}</div>'
        f'<p class="note" style="margin:10px 0 0">{total:.1f} s in all. {memory}{place}.</p></section>'
    )


def _details(report: Mapping[str, Any]) -> str:
    settings = [
        (name, _shown(value)) for name, value in report["settings"].items() if value not in (None, {}, [])
    ]
    inputs = [(name.replace("_", " "), _shown(value)) for name, value in report["inputs"].items()]
    versions = [(name, str(value)) for name, value in report["versions"].items()]
    device = report.get("device")
    if device:
        versions.append(("device", " ".join([device["why"], *device["notes"]])))
    transform = [
        (name.replace("_", " "), _shown(value))
        for name, value in report.get("transform", {}).items()
        if value is not None
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
    citations = "".join(f"<li>{escape(text)}</li>" for text in report["citations"])
    blocks = [
        (REMARKS, f"<ul>{notes}</ul>" if notes else ""),
        ("Inputs", _plain_table(inputs)),
        ("Written transform", _plain_table(transform) if transform else ""),
        ("Settings", _plain_table(settings)),
        ("Versions and device", _plain_table(versions)),
    ]
    folded = "".join(
        f"<details{' open' if title == REMARKS else ''}><summary>{title}</summary>{content}</details>"
        for title, content in blocks
        if content
    )
    cite = f"<h2 style='margin-top:18px'>Please cite what ran</h2><ol>{citations}</ol>" if citations else ""
    return f"<section><h2>Details</h2>{folded}{cite}</section>"


def _shown(value: object) -> str:
    """A setting or input as a reader writes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " x ".join(_shown(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _table(head: str, lines: str) -> str:
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _plain_table(rows: Sequence[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<div class="wide"><table class="plain"><tbody>{lines}</tbody></table></div>'


def _row(title: str, note: str, gallery: Gallery, kind: str) -> str:
    """A line of pictures, one per plane; `note` is HTML."""
    tiles = [
        f'<figure><div class="tile">{_image(data, title, plane)}{_edges(plane)}</div>'
        f"<figcaption>{plane.name}</figcaption></figure>"
        for plane, data in zip(gallery.planes, gallery.files[kind], strict=True)
    ]
    return _frame(title, note, tiles)


def _frame(title: str, note: str, tiles: Sequence[str]) -> str:
    single = " single" if len(tiles) == 1 else ""
    return (
        f'<div class="row"><div><h3>{title}</h3><div class="note">{note}</div></div>'
        f'<div class="tiles{single}">{"".join(tiles)}</div></div>'
    )


def _swipes(gallery: Gallery) -> list[str]:
    tiles = []
    for plane, below, above in zip(
        gallery.planes, gallery.files["fixed"], gallery.files["after"], strict=True
    ):
        over = _image(above, "registered", plane).replace("<img", '<img class="top"')
        slider = (
            '<input type="range" min="0" max="100" value="50" aria-label="swipe" '
            "oninput=\"this.closest('.swipe').style.setProperty('--x', this.value + '%')\">"
        )
        tiles.append(
            f'<figure class="swipe"><div class="tile">{_image(below, "fixed", plane)}{over}'
            f'<span class="bar"></span>{_edges(plane)}{slider}</div>'
            f"<figcaption>{plane.name}</figcaption></figure>"
        )
    return tiles


def _image(data: bytes, title: str, plane: Plane) -> str:
    text = base64.b64encode(data).decode("ascii")
    return f'<img alt="{title}, {plane.name.lower()}" src="data:image/png;base64,{text}">'


def _edges(plane: Plane) -> str:
    return "".join(
        f'<i class="{side}">{letter}</i>' for side, letter in zip("wens", plane.edges, strict=True) if letter
    )


def _colour_scale(low: str, middle: str, high: str, dark: str = "") -> str:
    ticks = "".join(f"<span>{text}</span>" for text in (low, middle, high))
    return f'<div class="scale{dark}"></div><div class="ticks">{ticks}</div>'


def _key(colour: Sequence[int], text: str) -> str:
    return f'<span class="key" style="--c:rgb({",".join(str(c) for c in colour)})">{text}</span>'
