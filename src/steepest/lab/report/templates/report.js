"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const narrow = window.matchMedia("(max-width: 620px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)");
  let printing = false;

  // What is chosen in each figure: {curves: {axis: "steps", split: "validation"}}.
  const chosen = {};
  for (const [name, spec] of Object.entries(specs)) {
    chosen[name] = Object.fromEntries((spec.controls || []).map((c) => [c.name, c.options[0][0]]));
  }

  // "@s3" or "@s3/0.15" under a key that ends in "color" or "colorscale" -> the colour of the current theme.
  function color(name) {
    const [variable, alpha] = name.slice(1).split("/");
    const hex = getComputedStyle(root).getPropertyValue("--" + variable).trim();
    if (!alpha) return hex;
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return `rgba(${r},${g},${b},${alpha})`;
  }
  function resolve(value, key) {
    if (Array.isArray(value)) return value.map((item) => resolve(item, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, k)]));
    }
    return typeof value === "string" && value[0] === "@" && /color(scale)?$/.test(key) ? color(value) : value;
  }

  function merge(target, patch) {
    for (const [key, value] of Object.entries(patch)) {
      const nested = value && typeof value === "object" && !Array.isArray(value);
      target[key] = nested ? merge({ ...target[key] }, value) : value;
    }
    return target;
  }

  const only = (trace) => (trace.meta || {}).only || {};
  // Whether a trace is among what is chosen.
  function shown(trace, view) {
    return Object.entries(only(trace)).every(([name, value]) => !(name in view) || view[name] === value);
  }

  // Not every choice goes with every one before it: what leads to nothing cannot be pressed, and is not left chosen.
  function available(name) {
    const spec = specs[name];
    const before = {};
    for (const { name: control, options } of spec.controls || []) {
      const narrowing = spec.data.filter((trace) => control in only(trace));
      const there = new Set(narrowing.filter((trace) => shown(trace, before)).map((trace) => only(trace)[control]));
      before[control] = chosen[name][control];
      if (!narrowing.length) continue;
      if (there.size && !there.has(chosen[name][control])) chosen[name][control] = options.find(([value]) => there.has(value))[0];
      for (const button of document.querySelectorAll(`[data-chart-of="${name}"][data-control="${control}"]`)) {
        button.disabled = !there.has(button.dataset.value);
        button.setAttribute("aria-pressed", String(chosen[name][control] === button.dataset.value));
      }
      before[control] = chosen[name][control];
    }
  }

  // The traces and the layout of what is chosen.
  function compose(spec, view) {
    const data = spec.data
      .filter((trace) => shown(trace, view))
      .map((trace) => {
        const { meta, ...rest } = resolve(trace, "");
        return meta && meta.x ? { ...rest, x: meta.x[view.axis] || rest.x } : rest;
      });
    const layout = { ...spec.layout };
    for (const [name, patches] of Object.entries(spec.layouts || {})) {
      merge(layout, patches[view[name]] || Object.values(patches)[0]);
    }
    return { data, layout: resolve(layout, "") };
  }

  // Where there is no room beside the lines, their labels move into a legend.
  function fit(layout, small) {
    const labelled = (layout.annotations || []).some((note) => note.name === "end");
    layout.font.family = getComputedStyle(document.body).fontFamily;
    layout.dragmode = coarse.matches ? false : "zoom";
    if (coarse.matches) layout.hovermode = "closest";
    if (small) {
      layout.margin = { ...layout.margin, l: 44, r: 8 };
      layout.font.size = 12;
      if (labelled) {
        const lines = layout.annotations.length;
        layout.annotations = layout.annotations.filter((note) => note.name !== "end");
        layout.showlegend = true;
        layout.legend = { orientation: "h", y: -0.22, yanchor: "top", x: 0 };
        layout.height += 30 + 13 * lines;
      }
    }
  }

  function draw(element) {
    const name = element.dataset.chart;
    const figure = compose(specs[name], chosen[name]);
    if (printing) Object.assign(figure.layout, { width: 640, height: Math.min(0.78 * figure.layout.height, 620) });
    fit(figure.layout, narrow.matches && !printing);
    Plotly.react(element, figure.data, figure.layout, { displayModeBar: false });
  }
  const elements = [...document.querySelectorAll("[data-chart]")];
  const drawAll = () => elements.forEach(draw);
  Object.keys(specs).forEach(available);

  for (const button of document.querySelectorAll("[data-control]")) {
    button.addEventListener("click", () => {
      const { chartOf, control, value } = button.dataset;
      chosen[chartOf][control] = value;
      for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
      available(chartOf);
      draw(document.getElementById("chart-" + chartOf));
    });
  }
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        // Pages opened as files may not use the clipboard in every browser: select the text and copy that.
        getSelection().selectAllChildren(code);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
  // A link to a table opens what the table is folded in.
  for (const link of document.querySelectorAll('a[href^="#table-"]')) {
    link.addEventListener("click", () => {
      for (let e = document.querySelector(link.hash); e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
    });
  }

  const follow = new ResizeObserver((entries) => {
    for (const { target } of entries) if (target.data && !printing) Plotly.Plots.resize(target);
  });
  elements.forEach((element) => follow.observe(element));
  narrow.addEventListener("change", drawAll);
  dark.addEventListener("change", drawAll);
  // Paper is white: print in the light colours and at the width of a page.
  window.addEventListener("beforeprint", () => { printing = true; root.dataset.theme = "light"; drawAll(); });
  window.addEventListener("afterprint", () => { printing = false; delete root.dataset.theme; drawAll(); });
  drawAll();
})();
