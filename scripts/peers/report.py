"""How figures are told: a list, Markdown, a picture. They are a dictionary of values by lane, measure and system."""

import os
import platform
import re
import statistics
from pathlib import Path


def figure(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def spread(values):
    if not values:
        return "failed"
    median = figure(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({figure(min(values))} to {figure(max(values))})"


def as_list(figures):
    """One object a figure."""
    listed = []
    for (lane, measure, system), values in figures.items():
        value, kernel = statistics.median(values), figures.get((lane, measure, "kernel"))
        ratio = round(value / statistics.median(kernel), 3) if kernel else None
        listed.append({
            "lane": lane, **measure._asdict(), "system": system, "value": round(value, 3),
            "least": round(min(values), 3), "most": round(max(values), 3), "ratio_to_kernel": ratio,
        })
        listed[-1]["measure"] = listed[-1].pop("name")
    return listed


def machine():
    """What it was measured on."""
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}"


def table(figures, seconds, rounds):
    """Markdown, a table a lane."""
    lines = [f"{machine()}. {rounds} rounds of {seconds} s in turns, every other one the other way but for outside and node-port; median",
             "(least to most), and the median beside the kernel's. Programs, switches and kernel share all cores; of requests and",
             "answers both programs and switches are where the row says."]
    for lane in dict.fromkeys(lane for lane, _, _ in figures):
        systems = list(dict.fromkeys(system for of, _, system in figures if of == lane))
        lines += ["", f"| {lane} | " + " | ".join(systems) + " |", "| --- " * (len(systems) + 1) + "|"]
        for measure in dict.fromkeys(measure for of, measure, _ in figures if of == lane):
            kernel = figures.get((lane, measure, "kernel"))
            cells = []
            for system in systems:
                values = figures.get((lane, measure, system), [])
                ratio = f" ×{statistics.median(values) / statistics.median(kernel):.2f}" if values and kernel else ""
                cells.append(spread(values) + (ratio if system != "kernel" else ""))
            name = " ".join(filter(None, measure[:3]))
            lines.append(f"| {name}, {measure.unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


COLORS = {
    "flatnet": "#0072b2", "flatnet-spinning": "#004b75", "flatnet-vxlan": "#56b4e9", "flatnet-hostgw": "#f0e442",
    "kernel-hostgw": "#999999", "bare": "#666666", "naive-tap": "#d55e00", "vde": "#cc79a7", "ovs": "#009e73", "flannel": "#e69f00",
}


def picture(figures):
    """Bars of all ratios to the kernel, as SVG: the line is the kernel's own."""
    rows = [figure for figure in as_list(figures) if figure["system"] != "kernel" and figure["ratio_to_kernel"]]
    left, width, height, limit = 330, 420, 18, 2.0
    bars, at, title = [], 30, None
    for row in sorted(rows, key=lambda row: (row["lane"], row["measure"], row["congestion"] or "", row["placement"] or "")):
        names = filter(None, [row["lane"], row["measure"], row["congestion"], row["placement"]])
        name = " ".join(names)
        if name != title:
            at, title = at + 8, name
            bars.append(f'<text x="{left - 110}" y="{at + 13}" text-anchor="end">{name}</text>')
        length = min(row["ratio_to_kernel"], limit) / limit * width
        bars.append(f'<rect x="{left}" y="{at}" width="{length:.1f}" height="{height - 4}" fill="{COLORS.get(row["system"], "#000")}"/>')
        bars.append(f'<text x="{left - 6}" y="{at + 12}" text-anchor="end">{row["system"]}</text>')
        bars.append(f'<text x="{left + length + 5:.1f}" y="{at + 12}">{row["ratio_to_kernel"]:.2f}</text>')
        at += height
    one = left + width / limit
    line = f'<line x1="{one}" y1="24" x2="{one}" y2="{at}" stroke="#000" stroke-dasharray="3 3"/>'
    head = f'<text x="{one}" y="18" text-anchor="middle">the kernel = 1</text>'
    size = f'width="{left + width + 60}" height="{at + 10}"'
    style = "<style>text { font: 12px sans-serif }</style>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{head}{line}{"".join(bars)}</svg>\n'
