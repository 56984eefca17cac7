"use strict";
(() => {
  const { nodes, groups } = JSON.parse(document.getElementById("data").textContent);
  const describeGroup = (number, count) => {
    const group = groups[number];
    const title = prunusElement("h4");
    const dot = prunusElement("span", undefined, { className: "dot" });
    dot.style.setProperty("--h", group.hue);
    title.append(dot, prunusElement("span", `${count} of group ${group.name}`));
    return [title, prunusPairs([
      ["channels", group.channels], ["may keep", group.constraint], ["coupled by", group.couplings],
      ["written by", group.producers], ["passes", group.passes], ["read by", group.consumers],
      ["touches", group.touches], ["half saves", group.half],
    ])];
  };
  const describe = (content, number) => {
    const node = nodes[number];
    const parts = [prunusElement("h3", node.name), prunusElement("p", node.what, { className: "note" }), prunusPairs(node.facts)];
    for (const [group, count] of node.groups) parts.push(...describeGroup(group, count));
    if (node.whole) parts.push(prunusElement("h4", "Stays whole"), prunusElement("p", node.whole, { className: "note" }));
    content.replaceChildren(...parts);
  };
  const { rows, choose } = prunusWalk(document, nodes, describe);
  const chooseGroup = (number) => {
    const first = nodes.findIndex((node) => node.kind === "layer" && node.groups.some(([group]) => group === number));
    if (first >= 0) choose(first);
    rows[first]?.scrollIntoView({ block: "center" });
  };
  for (const button of document.querySelectorAll(".to-group"))
    button.addEventListener("click", () => chooseGroup(Number(button.dataset.group)));
})();
