"use strict";
// Rows of a network that can be clicked, walked through by keyboard and searched. They are there without this script.
const prunusElement = (name, text, properties = {}) => {
  const made = Object.assign(document.createElement(name), properties);
  if (text !== undefined) made.textContent = text;
  return made;
};
const prunusPairs = (entries) => {
  const pairs = prunusElement("dl");
  for (const [term, value] of entries) {
    if (value === "" || (Array.isArray(value) && !value.length)) continue;
    pairs.append(prunusElement("dt", term));
    const said = prunusElement("dd", Array.isArray(value) ? undefined : value);
    if (Array.isArray(value)) {
      const names = prunusElement("ul");
      for (const name of value) names.append(prunusElement("li", name));
      said.append(names);
    }
    pairs.append(said);
  }
  return pairs;
};
// A sheet of paper ends between two rows and pushes the next one down: there every row has its own piece of the drawing.
const prunusSlice = (network) => {
  const whole = network.querySelector("svg");
  const parts = [...whole.children].map((part) => {
    const [first, last] = (part.dataset.rows ?? `${part.dataset.node} ${part.dataset.node}`).split(" ").map(Number);
    return { part, first, last };
  });
  const [width, height] = ["width", "height"].map((name) => Number(whole.getAttribute(name)));
  const rows = network.querySelectorAll("li");
  rows.forEach((row, at) => {
    const piece = whole.cloneNode(false);
    piece.setAttribute("height", height / rows.length);
    piece.setAttribute("viewBox", `0 ${(at * height) / rows.length} ${width} ${height / rows.length}`);
    for (const { part, first, last } of parts) if (first <= at && at <= last) piece.append(part.cloneNode(true));
    row.append(piece);
  });
  network.classList.add("sliced");
};
addEventListener("beforeprint", () => document.querySelectorAll(".network:not(.sliced)").forEach(prunusSlice));
addEventListener("afterprint", () => {
  for (const piece of document.querySelectorAll(".network li svg")) piece.remove();
  for (const network of document.querySelectorAll(".sliced")) network.classList.remove("sliced");
});
// `nodes` have `groups`, pairs of number and count, and `text` to search in; `describe` gives the elements of a panel.
const prunusWalk = (root, nodes, describe) => {
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const network = root.querySelector(".network");
  const rows = [...network.querySelectorAll("li")];
  const [panel, content, search, found, close] = ["panel", "content", "search", "found", "close"].map(part);
  const narrow = matchMedia("(max-width: 60rem)");
  let hits = [];
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
    panel.hidden = false;
    describe(content, number);
    panel.scrollTop = 0;
    // On a small screen the panel lies over the rows: what was chosen stays above it.
    if (narrow.matches) {
      const hidden = rows[number].getBoundingClientRect().bottom - panel.getBoundingClientRect().top;
      if (hidden > 0) scrollBy(0, hidden + 8);
    }
  };
  const leave = () => {
    if (narrow.matches) panel.hidden = true;
    rows.forEach((row) => row.setAttribute("aria-selected", false));
    light(new Set());
  };
  const filter = () => {
    const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    hits = rows.flatMap((row, at) => (words.every((word) => nodes[at].text.includes(word)) ? [at] : []));
    network.classList.toggle("filtered", words.length > 0);
    rows.forEach((row, at) => row.classList.toggle("hit", words.length > 0 && hits.includes(at)));
    found.textContent = words.length ? `${hits.length} of ${rows.length}` : "";
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
    if (event.key === "Escape") leave();
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
  close.addEventListener("click", leave);
  panel.hidden = narrow.matches;
  narrow.addEventListener("change", () => { panel.hidden = false; });
  return { rows, choose };
};
