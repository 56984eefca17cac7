"use strict";
// Charts name their colours by CSS variable; they are looked up when drawn, and drawn again when the theme changes.
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const coloured = (value) => {
    if (typeof value === "string") return value.startsWith("--") ? css(value) : value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, coloured(entry)]));
    return value;
  };
  const axis = (own) => ({
    gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true, fixedrange: false, ...own,
  });
  // Where the curves leave room: below the rising one, above the falling one, outside of the bars.
  const LEGENDS = {
    accuracy: { y: 0.02, yanchor: "bottom" }, loss: { y: 0.98, yanchor: "top" },
    search: { y: 1.02, yanchor: "bottom", x: 0, xanchor: "left" },
    sparsity: { y: 1.02, yanchor: "bottom", x: 0, xanchor: "left" },
    widths: { y: 1.02, yanchor: "bottom", x: 0, xanchor: "left" },
  };
  const draw = () => {
    for (const [name, chart] of Object.entries(charts)) {
      const place = document.getElementById(`chart-${name}`);
      place.style.minWidth = `${chart.min_width}px`;
      const own = coloured(chart.layout);
      const layout = {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: "system-ui, sans-serif", size: 12, color: css("--ink") },
        margin: { l: 56, r: 18, t: 34, b: 44 },
        legend: { orientation: "h", x: 1, xanchor: "right", bgcolor: "rgba(0,0,0,0)", ...LEGENDS[name] },
        hoverlabel: { bgcolor: css("--surface"), bordercolor: css("--line"), font: { color: css("--ink") } },
        ...own, xaxis: axis(own.xaxis), yaxis: axis(own.yaxis),
      };
      Plotly.react(place, coloured(chart.data), layout, { responsive: true, displayModeBar: false });
    }
    document.documentElement.dataset.charts = Object.keys(charts).length;
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
