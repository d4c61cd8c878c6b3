// Figures of a page: each is drawn when it comes into view, as wide as its place.
"use strict";
(() => {
  const { kinds, tables, figures } = JSON.parse(document.getElementById("figures").textContent);
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);

  const rows = ({ columns, rows, grid }) => grid
    ? grid.flatMap((row, layer) => row.map((recall, head) => ({ layer, head, recall: recall / 100 })).filter((one, head) => row[head] !== null))
    : rows.map((row) => Object.fromEntries(columns.map((name, n) => [name, row[n]])));

  // Texts alone: a name that holds markup is shown as it is.
  function show(_, event, item, value) {
    tip.hidden = !value;
    if (!value) return;
    const lines = Object.entries(value).filter(([, text]) => !["", "null", "NaN", "undefined"].includes(`${text}`));
    const list = document.createElement("dl");
    for (const [name, text] of lines) {
      const [term, said] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      said.textContent = text;
      list.append(term, said);
    }
    tip.replaceChildren(list);
    const [x, y] = [event.clientX + 14, event.clientY + 14];
    tip.style.left = `${Math.max(4, Math.min(x, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${y + tip.offsetHeight > innerHeight ? Math.max(4, event.clientY - tip.offsetHeight - 10) : y}px`;
  }

  // A browser can keep names off the points too, which it draws unseen to know where they are.
  function clear(spec) {
    const dots = (spec.marks ?? []).filter((mark) => /(^|_)(dots|rulenames)(_|$)/.test(mark.name));
    for (const mark of spec.marks ?? [])
      for (const step of mark.transform ?? [])
        if (step.type === "label") step.avoidMarks = dots.map((dot) => dot.name);
  }

  async function draw(place) {
    const { kind, data, budget } = figures[place.dataset.figure];
    const spec = structuredClone(kinds[kind]);
    for (const source of spec.data) if (source.name in data) source.values = rows(tables[data[source.name]]);
    for (const signal of spec.signals ?? []) if (signal.name === "budget") signal.value = budget;
    spec.autosize = { type: "fit-x", contains: "padding" };
    spec.width = place.clientWidth;
    // Vega names a figure by its description.
    const words = (spec.description = place.getAttribute("aria-label"));
    clear(spec);
    const { view } = await vegaEmbed(place, spec, {
      mode: "vega", ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: show,
    });
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", words);
    place.dataset.state = "drawn";
    new ResizeObserver(() => {
      if (place.clientWidth && view.width() !== place.clientWidth) view.width(place.clientWidth).runAsync();
    }).observe(place);
  }

  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "400px" });
  const places = document.querySelectorAll(".drawn");
  for (const place of places) seen.observe(place);
  addEventListener("beforeprint", () => {
    for (const place of places) if (!place.dataset.state) draw(place);
  });
})();
