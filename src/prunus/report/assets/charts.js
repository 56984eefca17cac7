"use strict";
// Charts name their colours by CSS variable; they are looked up when drawn, and drawn again when the theme changes.
(async () => {
  // Plotly comes compressed: a page has half its bytes.
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(unpacked).text();
  document.head.append(library);

  const PAPER = 880; // pixels of height that a chart may have to fit on a page
  const NUMBER = 26; // pixels that the number of an epoch takes
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const coloured = (value) => {
    if (typeof value === "string") return value.startsWith("--") ? css(value) : value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, coloured(entry)]));
    return value;
  };
  const axis = (own) => ({
    gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true, ...own,
    title: { standoff: 10, ...own?.title },
  });
  const drawInto = (place, { data, layout }) => {
    const own = coloured(layout);
    if ("print" in root.dataset) {
      Object.assign(own, { width: place.clientWidth, height: place.clientHeight });
      if (own.xaxis?.type === "category") delete own.xaxis.dtick; // there is no room for every name
    } else if (own.xaxis?.dtick && own.xaxis.range) {
      const room = Math.floor((place.clientWidth - 80) / NUMBER); // on a phone not every epoch has its number
      own.xaxis.dtick = Math.ceil((own.xaxis.range[1] - own.xaxis.range[0]) / room);
      own.xaxis.tick0 = own.xaxis.dtick;
    }
    Plotly.react(place, coloured(data), {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: css("--ink") },
      margin: { l: 56, r: 18, t: 34, b: 52 },
      hoverlabel: { bgcolor: css("--surface"), bordercolor: css("--line"), font: { color: css("--ink") } },
      ...own, legend: { orientation: "h", x: 1, xanchor: "right", bgcolor: "rgba(0,0,0,0)", ...own.legend },
      xaxis: axis(own.xaxis), yaxis: axis(own.yaxis),
    }, { responsive: true, displayModeBar: false });
  };
  // What lies in closed details is drawn when these open.
  const seen = (place) => !place.closest("details:not([open])");
  const draw = () => {
    let drawn = 0;
    for (const [name, chart] of Object.entries(charts)) {
      const place = document.getElementById(`chart-${name}`);
      if (!seen(place)) continue;
      const onPaper = "print" in root.dataset;
      place.style.minWidth = onPaper ? "" : `${chart.min_width}px`;
      if (chart.height) place.style.height = `${onPaper ? Math.min(chart.height, PAPER) : chart.height}px`;
      const chosen = document.querySelector(`.choices[data-for="${name}"] input:checked`);
      drawInto(place, chart.variants ? chart.variants[chosen.value] : chart);
      drawn += 1;
    }
    root.dataset.charts = drawn;
  };
  // The arrow keys walk through the points of a chart, or the cells of a map, as the pointer does.
  const walkCells = (place, curveNumber, key) => {
    const { x, y } = place.data[curveNumber];
    const [down, right] = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[key];
    const [row, column] = place.cell ?? [-Math.max(down, 0), -Math.max(right, 0)];
    const turned = (at, length) => (at + length) % length;
    place.cell = [turned(row + down, y.length), turned(column + right, x.length)];
    Plotly.Fx.hover(place, [{ curveNumber, xval: x[place.cell[1]], yval: y[place.cell[0]] }]);
  };
  const walk = (event) => {
    const place = event.currentTarget;
    const map = place.data?.findIndex(({ type }) => type === "heatmap") ?? -1;
    const step = { ArrowRight: 1, ArrowLeft: -1, ...(map >= 0 && { ArrowDown: 1, ArrowUp: -1 }) }[event.key];
    if (!step || !place.data) return;
    event.preventDefault();
    if (map >= 0) return walkCells(place, map, event.key);
    const points = [];
    place.data.forEach((trace, curveNumber) => {
      if (trace.hoverinfo === "skip") return;
      trace.x.forEach((x, pointNumber) => {
        if (x !== null && trace.y[pointNumber] !== null) points.push({ curveNumber, pointNumber, x });
      });
    });
    const together = String(place.layout.hovermode).startsWith("x");
    const stops = together ? points.filter((point, at) => points.findIndex(({ x }) => x === point.x) === at) : points;
    if (!stops.length) return;
    const at = ((place.stop ?? (step > 0 ? -1 : stops.length)) + step + stops.length) % stops.length;
    place.stop = at;
    const { curveNumber, pointNumber, x } = stops[at];
    Plotly.Fx.hover(place, together ? [{ xval: x, curveNumber, pointNumber }] : [{ curveNumber, pointNumber }]);
  };
  for (const place of document.querySelectorAll(".chart")) {
    place.addEventListener("keydown", walk);
    place.addEventListener("blur", () => { if (place.data) Plotly.Fx.unhover(place); });
  }
  for (const choices of document.querySelectorAll(".choices")) choices.addEventListener("change", draw);
  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", draw);
  const openTarget = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", openTarget);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // Paper is narrower than most screens, and nobody can open what is closed on it.
  addEventListener("beforeprint", () => {
    root.dataset.print = "";
    for (const details of document.querySelectorAll("details")) {
      details.dataset.was = details.open ? "open" : "";
      details.open = true;
    }
    draw();
  });
  addEventListener("afterprint", () => {
    delete root.dataset.print;
    for (const details of document.querySelectorAll("details")) details.open = details.dataset.was === "open";
    draw();
    for (const place of document.querySelectorAll(".chart")) if (place.data && seen(place)) Plotly.Plots.resize(place);
  });
  window.prunusCharts = { drawInto };
  openTarget();
  draw();
  document.dispatchEvent(new Event("prunus-charts"));
})();
