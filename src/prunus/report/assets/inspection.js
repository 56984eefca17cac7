"use strict";
// The rows are there without this script; it adds the panel, the walk by keyboard and the search.
(() => {
  const { nodes, groups } = JSON.parse(document.getElementById("data").textContent);
  const network = document.querySelector(".network");
  const rows = [...network.querySelectorAll("li")];
  const panel = document.getElementById("panel");
  const content = document.getElementById("panel-content");
  const search = document.getElementById("search");
  const narrow = matchMedia("(max-width: 60rem)");
  let hits = [];

  const element = (name, text, properties = {}) => {
    const made = Object.assign(document.createElement(name), properties);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const list = (entries) => {
    const pairs = element("dl");
    for (const [term, value] of entries) {
      if (value === "" || (Array.isArray(value) && !value.length)) continue;
      pairs.append(element("dt", term));
      const said = element("dd", Array.isArray(value) ? undefined : value);
      if (Array.isArray(value)) {
        const names = element("ul");
        for (const name of value) names.append(element("li", name));
        said.append(names);
      }
      pairs.append(said);
    }
    return pairs;
  };
  const describeGroup = (number, count) => {
    const group = groups[number];
    const title = element("h4");
    const dot = element("span", undefined, { className: "dot" });
    dot.style.setProperty("--h", group.hue);
    title.append(dot, element("span", count === undefined ? `Group ${group.name}` : `${count} of group ${group.name}`));
    return [title, list([
      ["channels", group.channels], ["may keep", group.constraint], ["coupled by", group.couplings],
      ["written by", group.producers], ["passes", group.passes], ["read by", group.consumers],
      ["touches", group.touches], ["half saves", group.half],
    ])];
  };
  const show = (number) => {
    const node = nodes[number];
    const parts = [element("h3", node.name), element("p", node.what, { className: "note" }), list(node.facts)];
    for (const [group, count] of node.groups) parts.push(...describeGroup(group, count));
    if (node.whole) parts.push(element("h4", "Stays whole"), element("p", node.whole, { className: "note" }));
    content.replaceChildren(...parts);
    panel.hidden = false;
    panel.scrollTop = 0;
  };
  const light = (mates) => rows.forEach((row, at) => row.classList.toggle("mate", mates.has(at)));
  const choose = (number, focus = true) => {
    rows.forEach((row, at) => {
      row.setAttribute("aria-selected", at === number);
      row.tabIndex = at === number ? 0 : -1;
    });
    const own = new Set(nodes[number].groups.map(([group]) => group));
    light(new Set(nodes.flatMap((node, at) => (node.groups.some(([group]) => own.has(group)) ? [at] : []))));
    if (focus) rows[number].focus({ preventScroll: true });
    rows[number].scrollIntoView({ block: "nearest" });
    show(number);
    // On a small screen the panel lies over the rows: what was chosen stays above it.
    if (narrow.matches) {
      const hidden = rows[number].getBoundingClientRect().bottom - panel.getBoundingClientRect().top;
      if (hidden > 0) scrollBy(0, hidden + 8);
    }
  };
  const chooseGroup = (number) => {
    const first = nodes.findIndex((node) => node.kind === "layer" && node.groups.some(([group]) => group === number));
    if (first >= 0) choose(first);
    rows[first]?.scrollIntoView({ block: "center" });
  };
  const close = () => {
    if (narrow.matches) panel.hidden = true;
    rows.forEach((row) => row.setAttribute("aria-selected", false));
    light(new Set());
  };
  const filter = () => {
    const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    hits = rows.flatMap((row, at) => (words.every((word) => nodes[at].text.includes(word)) ? [at] : []));
    network.classList.toggle("filtered", words.length > 0);
    rows.forEach((row, at) => row.classList.toggle("hit", words.length > 0 && hits.includes(at)));
    document.getElementById("found").textContent = words.length ? `${hits.length} of ${rows.length}` : "";
    if (words.length && hits.length) rows[hits[0]].scrollIntoView({ block: "nearest" });
  };

  network.addEventListener("click", (event) => {
    const row = event.target.closest("li");
    if (row) choose(Number(row.dataset.node));
  });
  network.addEventListener("keydown", (event) => {
    const at = rows.indexOf(event.target.closest("li"));
    if (at < 0) return;
    const page = 10;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: rows.length - 1,
      Enter: at, " ": at }[event.key];
    if (event.key === "Escape") close();
    if (to === undefined) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(rows.length - 1, to)));
  });
  search.addEventListener("input", filter);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { search.value = ""; filter(); }
    if (event.key !== "Enter" || !hits.length || !search.value.trim()) return;
    const chosen = rows.findIndex((row) => row.getAttribute("aria-selected") === "true");
    choose(hits.find((at) => at > chosen) ?? hits[0], false);
  });
  document.getElementById("close").addEventListener("click", close);
  for (const button of document.querySelectorAll(".to-group"))
    button.addEventListener("click", () => chooseGroup(Number(button.dataset.group)));
  panel.hidden = narrow.matches;
  narrow.addEventListener("change", () => { panel.hidden = false; });
})();
