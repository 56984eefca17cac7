"use strict";
// The panel of a run's network: what a layer keeps, and the scores of its groups as a chart.
for (const section of document.querySelectorAll(".explored")) {
  const { nodes, groups } = JSON.parse(document.getElementById(section.dataset.from).textContent);
  const describeGroup = (number, count, charts) => {
    const group = groups[number];
    const title = prunusElement("h4");
    const dot = prunusElement("span", undefined, { className: "dot" });
    dot.style.setProperty("--h", group.hue);
    title.append(dot, prunusElement("span", `${count} of group ${group.name}`));
    const parts = [title];
    if (group.scores) {
      const place = prunusElement("div", undefined, { className: "scores" });
      place.setAttribute("role", "img");
      place.setAttribute("aria-label", `Scores of the channels of group ${group.name}, kept and removed`);
      charts.push([place, group.scores]);
      parts.push(place);
    }
    return [...parts, prunusPairs(group.facts)];
  };
  let last;
  const describe = (content, number) => {
    last = () => describe(content, number);
    const node = nodes[number];
    const charts = [];
    const parts = [prunusElement("h3", node.name), prunusElement("p", node.what, { className: "note" }), prunusPairs(node.facts)];
    for (const [group, count] of node.groups) parts.push(...describeGroup(group, count, charts));
    if (node.whole) parts.push(prunusElement("h4", "Stays whole"), prunusElement("p", node.whole, { className: "note" }));
    content.replaceChildren(...parts);
    if (window.prunusCharts) for (const [place, chart] of charts) window.prunusCharts.drawInto(place, chart);
  };
  prunusWalk(section, nodes, describe);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => last?.());
  document.addEventListener("prunus-charts", () => last?.());
}
