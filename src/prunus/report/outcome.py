"""What the networks made of the test images: confusion before and after, classes that lost, images that changed."""

from __future__ import annotations

from typing import Any

from prunus.report.details import Outcome

_WORST = 10
_NAMED = 30  # classes; the names of more would run into each other


def confusion_chart(test: Outcome) -> dict[str, Any] | None:
    """Draw which share of every class is taken for which, before, after, and the difference; None for many classes."""
    if not test.confusion:
        return None
    shares = {
        name: [[100 * count / (total or 1) for count in row] for row, total in zip(rows, test.images, strict=True)]
        for name, rows in test.confusion.items()
    }
    labels = {"pruned": "after", "dense": "before"}
    variants = [{"label": labels[name], **_heat(test, shares[name])} for name in ("pruned", "dense") if name in shares]
    if len(shares) == 2:
        pairs = zip(shares["pruned"], shares["dense"], strict=True)
        change = [[after - before for after, before in zip(new, old, strict=True)] for new, old in pairs]
        variants.insert(0, {"label": "what changed", **_heat(test, change, change=True)})
    return {"variants": variants, "legend": "Show", "min_width": 0}


def _heat(test: Outcome, values: list[list[float]], change: bool = False) -> dict[str, Any]:
    """Draw a matrix: rows are true classes, from the top, columns what they were taken for.

    In that of a change, what got worse has one colour and what got better another: more on the diagonal is better,
    more elsewhere is worse.
    """
    limit = max(2.0, max(abs(value) for row in values for value in row)) if change else 100.0
    colours = [[0, "--band"], [1, "--pruned"]]
    bar: dict[str, Any] = {"ticksuffix": " %", "nticks": 5}
    shown = values
    if change:
        colours = [[0, "--bad"], [0.5, "--band"], [1, "--good"]]
        bar = {"tickvals": [-limit, 0, limit], "ticktext": ["worse", "same", "better"]}
        shown = [[z if at == true else -z for at, z in enumerate(row)] for true, row in enumerate(values)]
    few = len(test.classes) <= _NAMED
    names = [name if len(name) <= 14 else name[:13] + "…" for name in test.classes]
    ticks: dict[str, Any] = {"showticklabels": False, "showgrid": False}
    if few:
        ticks = {"tickvals": list(range(len(names))), "ticktext": names, "showgrid": False}
    trace = {
        "type": "heatmap",
        "z": [[round(value, 2) for value in row] for row in shown],
        "x": list(range(len(names))),
        "y": list(range(len(names))),
        "customdata": [[f"{value:+.1f} points" if change else f"{value:.1f} %" for value in row] for row in values],
        "text": [[f"{true} taken for {said}" for said in test.classes] for true in test.classes] if few else None,
        "colorscale": colours,
        "zmin": -limit if change else 0,
        "zmax": limit,
        "xgap": 1 if few else 0,
        "ygap": 1 if few else 0,
        "colorbar": {"thickness": 10, "outlinewidth": 0, **bar},
        "hovertemplate": ("%{text}" if few else "class %{y} taken for %{x}") + ": %{customdata}<extra></extra>",
    }
    slant = {"tickangle": -45} if max(map(len, names)) > 3 else {}
    layout = {
        "xaxis": {"title": {"text": "taken for"}, **slant, **ticks},
        "yaxis": {"title": {"text": "true class"}, "autorange": "reversed", **ticks},
        "margin": {"l": 60, "r": 8, "t": 16, "b": 50},
    }
    return {"data": [{key: value for key, value in trace.items() if value is not None}], "layout": layout}


def worst_classes(test: Outcome) -> list[dict[str, str]]:
    """List the classes that lost most, in points, and what their images are now taken for more often than before."""
    if "dense" not in test.right:
        return []
    shares = []
    for number, images in enumerate(test.images):
        before, after = test.right["dense"][number], test.right["pruned"][number]
        if images and after < before:
            shares.append((100 * (before - after) / images, number))
    shares.sort(key=lambda found: (-found[0], found[1]))
    return [
        {
            "class": test.classes[number],
            "images": str(test.images[number]),
            "before": f"{100 * test.right['dense'][number] / test.images[number]:.1f} %",
            "after": f"{100 * test.right['pruned'][number] / test.images[number]:.1f} %",
            "lost": f"−{lost:.1f} points",
            "taken": _taken_for(test, number),
        }
        for lost, number in shares[:_WORST]
    ]


def _taken_for(test: Outcome, true: int) -> str:
    """Name the class that images of `true` are taken for more often than before."""
    if len(test.confusion) < 2:
        return "–"
    pairs = zip(test.confusion["pruned"][true], test.confusion["dense"][true], strict=True)
    more = {said: new - old for said, (new, old) in enumerate(pairs) if said != true and new > old}
    if not more:
        return "–"
    said = max(more, key=lambda number: more[number])
    return f"{test.classes[said]} (+{more[said]})"


def changed_images(test: Outcome) -> dict[str, Any] | None:
    """Return the images that the networks take for different classes; None where nothing was compared."""
    if not test.changed:
        return None
    titles = {
        "lost": "Right before, wrong after",
        "gained": "Wrong before, right after",
        "otherwise wrong": "Wrong both times",
    }
    kinds = []
    for kind, title in titles.items():
        images = [image for image in test.shown if image.kind == kind]
        if images:
            kinds.append(
                {
                    "title": title,
                    "count": test.changed.get(kind, len(images)),
                    "images": [
                        {
                            "source": f"data:image/png;base64,{image.png}",
                            "number": image.number,
                            "label": test.classes[image.label],
                            "dense": test.classes[image.dense],
                            "pruned": test.classes[image.pruned],
                            "dense_confidence": f"{100 * image.dense_confidence:.0f}\u00a0%",
                            "pruned_confidence": f"{100 * image.pruned_confidence:.0f}\u00a0%",
                        }
                        for image in images
                    ],
                }
            )
    return {"total": sum(test.changed.values()), "of": sum(test.images), "kinds": kinds}
