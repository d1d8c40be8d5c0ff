"""Static figures of costs: Pareto fronts, optimizer state by role, diagnostics."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from steepest.lab.figures import MUTED
from steepest.lab.report.measures import Cost, Findings
from steepest.lab.report.static.parts import compact_axis, label_ends, method_axis, tall
from steepest.lab.series import ROLE_PALETTE, bytes_by_role, front, padded, roles_in_order
from steepest.lab.wording import byte_unit, short


def draw_pareto(figure: Figure, f: Findings, cost: Cost) -> bool:
    """Loss against one cost; what another method beats on both is grey."""
    rows = [row for row in f.rows if row.loss.n and row.method.label in cost.values]
    figure.set_size_inches(6.6, tall(len(rows)))
    ax = figure.add_subplot()
    points = [(cost.values[row.method.label], row.loss.mean) for row in rows]
    kept = front(points)
    xs, ys = ([points[i][axis] for i in kept] for axis in (0, 1))
    ax.plot(xs, ys, color="#b4bac3", linewidth=1.2, linestyle="--", zorder=1)
    ends = []
    for i, row in enumerate(rows):
        s = f.styles[row.method.label]
        color = s.color if i in kept else MUTED
        ax.plot(*points[i], s.marker, color=color, markersize=9, markerfacecolor=color if i in kept else "white")
        ends.append((*points[i], short(row.method.label), color))
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    near = 0.15 * (right - left or right)
    ax.set_xlim(left - near if left > 0.5 * right else 0, right + near)
    ax.set_ylim(*padded(min(y for _, y in points), max(y for _, y in points), 0.12))
    label_ends(ax, ends)
    if cost.key == "flops":
        compact_axis(ax)
    ax.set_xlabel(cost.title)
    ax.set_ylabel("final validation loss (nats per token)")
    ax.set_title("Loss against cost: hollow = another method is better on both")
    return True


def draw_state_bytes(figure: Figure, f: Findings) -> bool:
    """Optimizer state by role of the parameters."""
    table = bytes_by_role(f.study)
    roles = roles_in_order(table)
    if not roles:
        return False
    figure.set_size_inches(6.6, 1.5 + (0.4 if len(table) <= 8 else 0.28) * len(table))
    ax = figure.add_subplot()
    unit, name = byte_unit(max(sum(sums.values()) for sums in table.values()))
    left = np.zeros(len(table))
    for i, role in enumerate(roles):
        width = np.asarray([sums.get(role, 0.0) for sums in table.values()]) / unit
        color = ROLE_PALETTE[i % len(ROLE_PALETTE)][0]
        ax.barh(
            range(len(table)), width, left=left, height=0.62, color=color, label=role, edgecolor="white", linewidth=0.6
        )
        left += width
    method_axis(ax, list(table))
    ax.set_xlabel(f"optimizer state ({name})")
    ax.set_title("Where the optimizer state is")
    figure.legend(loc="outside lower center", ncols=min(len(roles), 6), handlelength=1.0, columnspacing=1.4)
    return True


def draw_diagnostic(figure: Figure, f: Findings, name: str) -> bool:
    """One quantity along the runs, a panel per role."""
    roles = [role for quantity, role in f.diagnostics if quantity == name]
    columns = min(3, len(roles))
    lines = -(-len(roles) // columns)
    figure.set_size_inches(max(6.6, 3.1 * columns), 2.5 * lines + 0.6)
    for i, role in enumerate(roles):
        ax = figure.add_subplot(lines, columns, i + 1)
        for trace in f.diagnostics[name, role]:
            s = f.styles[trace.label]
            label = short(trace.label) if i == 0 else None
            ax.plot(trace.steps, trace.values, color=s.color, linestyle=s.line, linewidth=1.3, label=label)
        ax.set_title(role if role != "all" else name.replace("_", " "))
        ax.set_xlabel("steps")
    figure.suptitle(name.replace("_", " "), x=0.01, ha="left")
    figure.legend(loc="outside lower center", ncols=5, handlelength=1.6, columnspacing=1.4)
    return True
