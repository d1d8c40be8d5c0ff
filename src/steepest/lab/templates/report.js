"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const narrow = window.matchMedia("(max-width: 620px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)");
  const view = { axis: "steps", split: null };
  let printing = false;

  // "@s3" or "@s3/0.15" under a key that ends in "color" -> the colour of the current theme.
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
    return typeof value === "string" && value[0] === "@" && /color$/.test(key) ? color(value) : value;
  }

  function applyView(figure, spec) {
    const split = view.split || Object.keys(spec.views)[0];
    for (const trace of figure.data) {
      trace.visible = trace.meta.split === split;
      trace.x = trace.meta.x[view.axis];
    }
    const { layout } = figure;
    layout.xaxis.title.text = spec.titles[view.axis];
    layout.yaxis.range = spec.views[split].range;
    layout.annotations = resolve(spec.views[split].annotations, "");
    layout.hovermode = view.axis === "seconds" || coarse.matches ? "closest" : "x unified";
  }

  // Where there is no room beside the lines, their labels move into a legend.
  function fit(layout, small) {
    const labelled = (layout.annotations || []).some((note) => note.name === "end");
    layout.font.family = getComputedStyle(document.body).fontFamily;
    layout.dragmode = coarse.matches ? false : "zoom";
    if (small) {
      layout.margin.l = 44;
      layout.margin.r = 8;
      layout.font.size = 12;
      layout.annotations = (layout.annotations || []).filter((note) => note.name !== "end");
      if (labelled) {
        layout.showlegend = true;
        layout.legend = { orientation: "h", y: -0.22, yanchor: "top", x: 0 };
        layout.height += 70;
      }
    }
  }

  function draw(element) {
    const spec = specs[element.dataset.chart];
    const figure = { data: resolve(spec.data, ""), layout: resolve(spec.layout, "") };
    if (spec.views) applyView(figure, spec);
    if (printing) Object.assign(figure.layout, { width: 640, height: 0.78 * figure.layout.height });
    fit(figure.layout, narrow.matches && !printing);
    Plotly.react(element, figure.data, figure.layout, {
      displayModeBar: false,
    });
  }
  const elements = [...document.querySelectorAll("[data-chart]")];
  const drawAll = () => elements.forEach(draw);

  for (const button of document.querySelectorAll("[data-axis], [data-split]")) {
    button.addEventListener("click", () => {
      Object.assign(view, button.dataset);
      for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
      draw(document.getElementById("chart-curves"));
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
