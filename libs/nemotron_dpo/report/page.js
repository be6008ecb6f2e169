"use strict";
// The page is whole without this: it adds values at the pointer, the filter, and the choice of light or dark.
(() => {
  const short = (value) => Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4));

  function plot(element) {
    const { box: [left, top, width, height], edges: [x0, x1, y0, y1], log, curves } = JSON.parse(element.dataset.plot);
    const svg = element.querySelector("svg"), read = element.parentElement.querySelector(".read");
    const steps = [...new Set(curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
    const across = (x) => left + (x1 > x0 ? (x - x0) / (x1 - x0) : 0.5) * width;
    const up = (y) => top + height * (1 - (log ? Math.log(y / y0) / Math.log(y1 / y0) : (y - y0) / (y1 - y0)));
    const made = (name, attributes) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
      return node;
    };
    const cross = made("g", { class: "cross", "pointer-events": "none" });
    svg.append(cross);
    let at = -1;

    function nearest(curve, step) {
      let best = 0;
      curve.x.forEach((x, index) => { if (Math.abs(x - step) < Math.abs(curve.x[best] - step)) best = index; });
      return best;
    }
    function show(index) {
      at = Math.max(0, Math.min(steps.length - 1, index));
      const step = steps[at];
      cross.replaceChildren(made("line", { x1: across(step), x2: across(step), y1: top, y2: top + height, stroke: "var(--muted)", "stroke-width": 0.8 }));
      read.replaceChildren(document.createTextNode(`step ${short(step)}`));
      for (const curve of curves) {
        const place = nearest(curve, step), gap = steps.length > 1 ? (x1 - x0) / 40 : 1;
        if (Math.abs(curve.x[place] - step) > gap) continue;
        cross.append(made("circle", { cx: across(curve.x[place]), cy: up(curve.y[place]), r: 3.5, fill: `var(--${curve.ink})`, stroke: "var(--paper)", "stroke-width": 1 }));
        const dot = document.createElement("i");
        dot.style.background = `var(--${curve.ink})`;
        read.append(dot, document.createTextNode(`${curve.name} ${short(curve.y[place])}`));
      }
    }
    function hide() {
      cross.replaceChildren();
      read.replaceChildren();
    }
    element.addEventListener("pointermove", (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const step = x0 + ((point.x - left) / width) * (x1 - x0);
      let best = 0;
      steps.forEach((x, index) => { if (Math.abs(x - step) < Math.abs(steps[best] - step)) best = index; });
      show(best);
    });
    element.addEventListener("pointerleave", hide);
    element.addEventListener("focus", () => { if (element.matches(":focus-visible")) show(steps.length - 1); });
    element.addEventListener("blur", hide);
    element.addEventListener("keydown", (event) => {
      const jump = Math.max(1, Math.round(steps.length / 20));
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - jump, PageDown: at + jump, Home: 0, End: steps.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(to);
    });
  }

  function filter(form) {
    const search = form.querySelector("#search"), count = form.querySelector("#count");
    const pairs = [...document.querySelectorAll(".pairs > li")].map((item) => ({ item, kind: item.dataset.kind, text: `${item.dataset.search} ${item.textContent.toLowerCase()}` }));
    function apply() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean), kind = form.elements.kind.value;
      let shown = 0;
      for (const pair of pairs) {
        const fits = (!kind || pair.kind === kind) && words.every((word) => pair.text.includes(word));
        pair.item.hidden = !fits;
        shown += fits;
      }
      count.textContent = `${shown} of ${pairs.length} shown`;
    }
    form.hidden = false;
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    search.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { search.value = ""; apply(); }
    });
    apply();
  }

  function theme(button) {
    const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
    const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
    const label = () => { button.textContent = now() === "dark" ? "Light" : "Dark"; };
    button.hidden = false;
    button.addEventListener("click", () => { root.dataset.theme = now() === "dark" ? "light" : "dark"; label(); });
    dark.addEventListener("change", label);
    label();
  }

  document.querySelectorAll("[data-plot]").forEach(plot);
  document.querySelectorAll("form.filter").forEach(filter);
  theme(document.getElementById("theme"));
})();
