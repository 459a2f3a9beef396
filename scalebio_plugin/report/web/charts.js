// The charts of report.html, drawn by uPlot from the JSON beside it. Where this fails, the picture and the tables stay.
(() => {
  "use strict";
  const root = document.documentElement;
  const place = document.getElementById("charts");
  const { steps, charts } = JSON.parse(document.getElementById("history").textContent);
  const BANDS = 3; // sources whose bands are drawn unasked: more lie on each other
  const drawn = [];
  let onPaper = false;

  const ink = (name, paper) => (onPaper ? paper : getComputedStyle(root).getPropertyValue(name).trim());
  const make = (tag, kind, parent) => {
    const made = document.createElement(tag);
    made.className = kind;
    parent.append(made);
    return made;
  };
  const shown = (value, digits) => (value == null ? "–" : value.toFixed(digits));

  function axis(label) {
    const line = () => ink("--line", "#e5e5e5");
    return { label, stroke: () => ink("--ink", "#222"), grid: { stroke: line, width: 1 }, ticks: { stroke: line }, labelSize: 20,
             labelFont: "12px system-ui, sans-serif", font: "12px system-ui, sans-serif" };
  }

  // One source or set: its lines (the second one dashed), and the ends of its band, as series of uPlot.
  function seriesOf(one, number, scale, all, bands) {
    const unscaled = (values) => values.map((value) => (value == null ? null : value / scale));
    const stroke = one.colour ? one.colour : () => ink("--pale", "#bbb");
    const of = { ...one, lines: [], ends: [], byDefault: number < BANDS };
    one.lines.forEach((values, dashed) => {
      of.lines.push(all.length);
      all.push({ values: unscaled(values), series: { stroke, width: one.colour ? 1.8 : 0.8, dash: dashed ? [4, 4] : [], spanGaps: true, points: { show: steps.length < 3 } } });
    });
    (one.band || []).forEach((values) => {
      of.ends.push(all.length);
      all.push({ values: unscaled(values), series: { show: of.byDefault, points: { show: false } } });
    });
    if (one.band) bands.push({ series: [of.ends[1], of.ends[0]], fill: one.colour + "22" });
    return of;
  }

  function draw(chart) {
    const figure = make("figure", "chart", place);
    const caption = make("figcaption", "", figure);
    make("b", "", caption).textContent = chart.title;
    make("span", "grey", caption).textContent = " " + chart.about;
    const plot = make("div", "plot", figure);
    const legend = make("div", "legend", figure);
    const at = make("span", "at", legend);
    const all = [{ values: steps, series: {} }];
    const bands = [];
    const of = ([one, number]) => seriesOf(one, number, chart.scale, all, bands);
    const sources = chart.series.map((one, number) => [one, number]).reverse().map(of).reverse(); // the largest on top
    plot.tabIndex = 0;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", `${chart.title} over the optimiser steps; the arrow keys move along them`);

    function tell(u) {
      const last = steps.length - 1;
      const index = u.cursor.idx == null ? last : u.cursor.idx;
      at.textContent = "step " + steps[index];
      sources.forEach((one) => {
        one.value.textContent = one.lines.map((line) => shown(u.data[line][index], chart.digits)).join(" / ");
      });
    }

    const range = chart.zero ? (u, low, high) => [0, high > 0 ? 1.05 * high : 1] : (u, low, high) => uPlot.rangeNum(low, high, 0.1, true);
    const u = new uPlot(
      {
        width: Math.max(280, place.clientWidth), height: chart.zero ? 340 : 260, legend: { show: false }, focus: { alpha: 0.15 },
        cursor: { sync: { key: "scalebio" }, y: false }, scales: { x: { time: false }, y: { range } },
        axes: [{ ...axis("optimiser step"), size: 34 }, { ...axis(""), size: 56 }],
        series: all.map((one) => one.series), bands, hooks: { setCursor: [tell] },
      },
      all.map((one) => one.values),
      plot,
    );

    sources.forEach((one) => {
      const button = make("button", "", legend);
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      make("i", one.colour ? "" : "plain", button).style.background = one.colour || "";
      make("span", "", button).textContent = one.name;
      one.value = make("b", "", button);
      const light = (on) => {
        one.ends.forEach((end) => u.setSeries(end, { show: (on || one.byDefault) && u.series[one.lines[0]].show }));
        u.setSeries(on ? one.lines[0] : null, { focus: true });
      };
      button.addEventListener("click", () => {
        const show = !u.series[one.lines[0]].show;
        [...one.lines, ...one.ends].forEach((line) => u.setSeries(line, { show }));
        button.setAttribute("aria-pressed", String(show));
      });
      for (const [event, on] of [["mouseenter", true], ["mouseleave", false], ["focus", true], ["blur", false]])
        button.addEventListener(event, () => light(on));
    });

    plot.addEventListener("keydown", (event) => {
      const last = steps.length - 1;
      const now = u.cursor.idx == null ? last : u.cursor.idx;
      const by = event.shiftKey ? 10 : 1;
      const to = { ArrowLeft: now - by, ArrowRight: now + by, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const step = steps[Math.min(last, Math.max(0, to))];
      drawn.forEach((other) => other.setCursor({ left: other.valToPos(step, "x"), top: 0 }));
    });
    tell(u);
    drawn.push(u);
  }

  function again() {
    drawn.forEach((u) => u.redraw(false, true));
  }

  for (const block of document.querySelectorAll("pre")) {
    const button = make("button", "copy", block);
    const command = block.firstChild.textContent;
    button.type = "button";
    button.textContent = "copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(block.firstChild.parentNode); // the keyboard can copy what is selected
      }
    });
  }

  root.classList.add("live");
  try {
    charts.forEach(draw);
  } catch (error) {
    root.classList.remove("live");
    throw error;
  }
  new ResizeObserver(() => {
    drawn.forEach((u) => u.setSize({ width: Math.max(280, place.clientWidth), height: u.height }));
  }).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  for (const [event, paper] of [["beforeprint", true], ["afterprint", false]])
    addEventListener(event, () => { onPaper = paper; again(); });
})();
