"""What scripts/accuracy_table writes of one network: all tables, and which goals the figures meet."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from accuracy_methods import EXTRAS, METHODS, PARTS

from prunus.report import numbers

BUDGETS = (0.5, 0.35, 0.2)
ROWS = [name for name, method in METHODS.items() if method.kind != "dense"]
OURS, THEIRS = ("A", "B", "B-energy", "B-energy-dynamic", "B-widths"), ("tp_magnitude", "tp_group")
BESIDE = ("refit", "refit-dynamic", "refit-widths")  # Prunus' own coefficient: goals after training have a row for it
NOT_RUN = "not run"
WITHOUT_TRAINING = {0.5: 0.04, 0.35: 0.10}  # points that may be lost, in [0, 1]
TEST = "Test accuracy in %, read once, at the last epoch; Δ: points to the dense network."

Figures = dict[str, Any]


class Network:
    """All cells of one network, and what is written of them."""

    def __init__(self, name: str, cells: list[Figures], rate: Figures | None) -> None:
        self.name, self.rate = name, rate
        self.failed = [cell for cell in cells if "failed" in cell]
        self.cells = [cell for cell in cells if "failed" not in cell]

    def section(self) -> str:
        """Write the tables of this network."""
        if not self.cells:
            return f"## {self.name}\n\nNot run.\n"
        picture = f"![accuracy by MACs](results/accuracy-{self.name}.svg)\n\n" if self.points() else ""
        parts = [
            f"## {self.name}\n\n{self.about()}\n\n{picture}### Goals\n\n{self.goals()}",
            f"### 1. Right after removal\n\nHeld-out accuracy in %, before any training.\n\n{self.steps('removed')}",
            "### 2. Recalibrated and reconstructed, no training\n\nHeld-out accuracy in %: with BatchNorm "
            f"recalibrated, and after all of the method's recovery.\n\n{self.steps('recalibrated', 'recovered')}",
            f"### 3. After the fine-tune\n\n{TEST}\n\n{self.tested(distilled=False)}",
            f"### 4. After the fine-tune with distillation\n\n{TEST}\n\n{self.tested(distilled=True)}",
            f"### Size and speed, without distillation\n\n{self.sizes()}",
            f"### Ablation\n\n{self.ablation()}",
        ]
        if self.failed:
            lines = [
                f"- {cell['method']} at {cell['macs']}, seed {cell['seed']}: {cell['failed']}" for cell in self.failed
            ]
            parts.append("### Failed\n\n" + "\n".join(lines) + "\n")
        return "\n".join(parts)

    def about(self) -> str:
        """Write what the figures of this network rest on."""
        dense = next((cell for cell in self.cells if cell["method"] == "dense"), None)
        whole = NOT_RUN
        if dense:
            costs = f"{numbers.count(dense['macs_left'])} MACs, {numbers.count(dense['params'])} parameters"
            accuracy = (
                f"{percent(dense['test_accuracy'])} test, {percent(dense['held_out_accuracy']['dense'])} held out"
            )
            whole = f"{accuracy}; {costs}, {numbers.size(dense['size_bytes'])}"
        tuned = [cell for cell in self.cells if cell["method"] == "l1_norm" or cell["method"] == "dense_longer"]
        lines = [
            f"Data: {listed(cell['data'] for cell in self.cells)}. Dense network: {whole}.",
            f"Epochs of the fine-tune: {listed(sum(cell['epochs'].values()) for cell in tuned)}. "
            f"Seeds: {listed(cell['seed'] for cell in self.cells)}. "
            f"Images for the recovery: {listed(cell['calibration_images'] for cell in self.cells)}.",
            f"Device: {listed(cell['device'] for cell in self.cells)}, threads: "
            f"{listed(cell['threads'] for cell in self.cells)}. "
            f"Dates: {listed(cell['date'][:10] for cell in self.cells)}. "
            f"Commits: {listed(cell['commit'] or 'unknown' for cell in self.cells)}. Versions: "
            f"{listed(f'{name} {version}' for cell in self.cells for name, version in cell['versions'].items())}.",
        ]
        if self.rate:
            tried = ", ".join(f"{rate}: {percent(value)}" for rate, value in self.rate["held_out_accuracy"].items())
            chosen = f"{self.rate['chosen']:g} (l1_norm as removed, held out: {tried})"
            lines.append(f"Peak learning rate of all fine-tunes: {chosen}.")
        return "\n".join(lines)

    def goals(self) -> str:
        """Judge the goals by the figures."""
        rows = [
            self._above(macs, *who)
            for macs in BUDGETS
            for who in (("the best of A and B", OURS), ("refit error", BESIDE))
        ]
        if self.name == "resnet20":
            rows += [self._without_training(macs, points) for macs, points in WITHOUT_TRAINING.items()]
        return table(("goal", "found", "met"), rows)

    def _above(self, macs: float, who: str, rows: Sequence[str]) -> list[str]:
        margin = " by more than one standard deviation" if macs <= 0.35 else ""
        goal = f"table 3, {macs:g} of the MACs: {who} above Torch-Pruning{margin}"
        seeds = max(len(self.of(name, macs)) for name in rows)  # a row with fewer has no spread to be judged by
        held = {name: self.values(name, macs, "trained") for name in rows}
        ours = [(statistics.fmean(values), name) for name, values in held.items() if seeds and len(values) == seeds]
        theirs = [(found, name) for name in THEIRS if (found := mean(self.tests(name, macs))) is not None]
        if not ours or len(theirs) < len(THEIRS):
            return [goal, NOT_RUN, "–"]
        best, (peer, name) = max(ours)[1], max(theirs)
        mine, other = self.tests(best, macs), self.tests(name, macs)
        difference = statistics.fmean(mine) - peer
        text = (
            f"{METHODS[best].label} {spread(mine)}, {METHODS[name].label} {spread(other)}: {numbers.points(difference)}"
        )
        if not margin:
            return [goal, text, mark(difference > 0)]
        if min(len(mine), len(other)) < 2:
            return [goal, f"{text}; no spread from one seed", "–" if difference > 0 else mark(False)]
        return [goal, text, mark(difference > max(statistics.stdev(mine), statistics.stdev(other)))]

    def _without_training(self, macs: float, points: float) -> list[str]:
        goal = f"table 2, {macs:g} of the MACs: within {100 * points:g} points of dense"
        values = {name: mean(self.values(name, macs, "recovered")) for name in (*OURS, *BESIDE)}
        kept = [(value, name) for name, value in values.items() if value is not None]
        if not kept:
            return [goal, NOT_RUN, "–"]
        best, name = max(kept)
        lost = self.cells[0]["held_out_accuracy"]["dense"] - best
        return [goal, f"{METHODS[name].label} {percent(best)}: {numbers.points(-lost)}", mark(round(lost, 6) <= points)]

    def steps(self, *steps: str) -> str:
        """Write held-out accuracies before training, a row a method, a column a budget and step."""
        names = [name for name in ROWS if METHODS[name].kind != "scratch"]
        columns = [f"{macs:g}{f', {step}' if len(steps) > 1 else ''}" for macs in BUDGETS for step in steps]
        rows = [
            [METHODS[name].label, *(spread(self.values(name, macs, step)) for macs in BUDGETS for step in steps)]
            for name in names
        ]
        return table(("method", *columns), rows)

    def tested(self, *, distilled: bool) -> str:
        """Write test accuracies and their distance to the dense network, a row a method."""
        rows = [
            self._tested(name, BUDGETS, distilled)
            for name in ROWS
            if not (distilled and METHODS[name].kind == "scratch")
        ]
        longer = self.tests("dense_longer", None, distilled)
        rows.append([METHODS["dense_longer"].label, *[spread(longer), self.delta(longer)] * len(BUDGETS)])
        return table(("method", *(text for macs in BUDGETS for text in (f"{macs:g} of the MACs", "Δ"))), rows)

    def _tested(self, name: str, budgets: Iterable[float], distilled: bool) -> list[str]:
        found = [self.tests(name, macs, distilled) for macs in budgets]
        return [METHODS[name].label, *(text for values in found for text in (spread(values), self.delta(values)))]

    def sizes(self) -> str:
        """Write what each method's networks cost; of the first seed."""
        rows = []
        for name in ROWS:
            for macs in BUDGETS:
                cell = next(iter(self.of(name, macs)), None)
                if cell:
                    epochs = " + ".join(f"{count} {stage}" for stage, count in cell["epochs"].items())
                    seconds = sum(value for step, value in cell["seconds"].items() if not step.endswith("this time"))
                    costs = [
                        f"{cell['macs_share']:.3f}",
                        numbers.count(cell["params"]),
                        numbers.size(cell["size_bytes"]),
                    ]
                    timed = [f"{cell['latency_ratio']:.2f}", epochs, numbers.duration(seconds)]
                    rows.append([METHODS[name].label, f"{macs:g}", *costs, *timed])
        titles = ("method", "budget", "MACs", "parameters", "on disk", "latency, of dense", "epochs", "time")
        return table(titles, rows)

    def ablation(self) -> str:
        """Write what each part of a method brings, left out or added one at a time."""
        changed = [cell for cell in self.cells if cell["method"] not in METHODS]
        if not changed:
            return "Not run.\n"
        base, macs, distilled = (changed[0][key] for key in ("method", "macs", "distilled"))
        base = base.partition("-with")[0]
        names = {"as it is": base, **{f"without {part}": f"{base}-without-{part}" for part in PARTS}}
        names |= {f"with {extra}": f"{base}-with-{extra}" for extra in EXTRAS}
        rows = [[label, *self._ablated(name, macs, distilled)] for label, name in names.items()]
        if distilled:
            rows.append(["without distillation", *self._ablated(base, macs, False)])
        about = f"{METHODS[base].label} at {macs:g} of the MACs, {'with' if distilled else 'without'} distillation."
        return f"{about}\n\n{table(('', 'held out, no training', 'test, fine-tuned', 'Δ'), rows)}"

    def _ablated(self, name: str, macs: float, distilled: bool) -> list[str]:
        tests = self.tests(name, macs, distilled)
        return [spread(self.values(name, macs, "recovered", distilled)), spread(tests), self.delta(tests)]

    def of(self, name: str, macs: float | None, distilled: bool = False) -> list[Figures]:
        """Return the cells of a method at a budget, one a seed."""
        wanted = {"method": name, "macs": macs, "distilled": distilled}
        return [cell for cell in self.cells if all(cell[key] == value for key, value in wanted.items())]

    def values(self, name: str, macs: float, step: str, distilled: bool = False) -> list[float]:
        """Return held-out accuracies after a step, one a seed."""
        return [cell["held_out_accuracy"][step] for cell in self.of(name, macs, distilled)]

    def tests(self, name: str, macs: float | None, distilled: bool = False) -> list[float]:
        """Return test accuracies, one a seed."""
        return [cell["test_accuracy"] for cell in self.of(name, macs, distilled)]

    def dense_test(self) -> float | None:
        """Return the dense network's test accuracy."""
        return mean(self.tests("dense", None))

    def delta(self, values: list[float]) -> str:
        """Write the distance of a mean to the dense network."""
        dense = self.dense_test()
        return "–" if dense is None or not values else numbers.points(statistics.fmean(values) - dense)

    def points(self) -> dict[str, list[tuple[float, float]]]:
        """Return (share of the MACs, test accuracy) of every trained cell without distillation, by label."""
        found = {METHODS[name].label: [p for m in BUDGETS for p in self._points(name, m)] for name in ROWS}
        return {label: points for label, points in found.items() if points}

    def _points(self, name: str, macs: float) -> list[tuple[float, float]]:
        return [(cell["macs_share"], cell["test_accuracy"]) for cell in self.of(name, macs)]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; figures to the right."""
    bars = ["---", *("---:" for _ in columns[1:])]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in (columns, bars, *rows))


def spread(values: list[float]) -> str:
    """Write mean ± standard deviation in %, and of how many."""
    if not values:
        return NOT_RUN
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{deviation} ({len(values)})"


def mean(values: list[float]) -> float | None:
    """Return the mean, or None where there is nothing."""
    return statistics.fmean(values) if values else None


def percent(value: float) -> str:
    """Write a fraction in %."""
    return f"{100 * value:.2f} %"


def listed(values: Iterable[object]) -> str:
    """Write each value once."""
    return ", ".join(sorted({str(value) for value in values})) or NOT_RUN


def mark(met: bool) -> str:
    """Write whether a goal is met."""
    return "✓" if met else "✗"
