// Line charts and heat maps in SVG: axes with units, a cursor for pointer and keyboard, and a summary in words.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 168;
/** Between two points of a line. */
const PIXELS = 2.5;
const MARGIN = { top: 8, right: 10, bottom: 20, left: 52 };

function svg(name, attributes = {}, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Round values from nothing to at least `max`, about four of them. */
function linearTicks(max) {
  const rough = max / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const ticks = [];
  for (let tick = 0; tick < max + step; tick += step) ticks.push(tick);
  return ticks;
}

/** Powers of ten around all values. */
function logTicks(min, max) {
  const ticks = [];
  const last = Math.max(Math.ceil(Math.log10(max) - 1e-9), Math.floor(Math.log10(min)) + 2);
  for (let power = Math.floor(Math.log10(min) + 1e-9); power <= last; power += 1) ticks.push(10 ** power);
  return ticks;
}

/** A scale of values to heights: how to place one, and where its ticks are. */
function scaleOf(values, { log, least, bottom }) {
  const known = values.filter((value) => value !== null && (!log || value > 0));
  const span = bottom - MARGIN.top;
  if (log) {
    const ticks = logTicks(Math.min(...known, least), Math.max(...known, least * 10));
    const [low, high] = [Math.log10(ticks[0]), Math.log10(ticks.at(-1))];
    const y = (value) => bottom - (span * (Math.log10(Math.max(value, ticks[0])) - low)) / (high - low);
    return { ticks, y };
  }
  const ticks = linearTicks(Math.max(...known, least));
  return { ticks, y: (value) => bottom - (span * value) / ticks.at(-1) };
}

/** The figure around a plot: title, legend, and what the cursor does. */
function figureOf({ title, series, wide }) {
  const values = series.map(() => make("b", {}, "–"));
  const legend = make("ul", { class: "legend" }, ...series.map((one, index) => make("li", {},
    one.line ? make("i", { class: one.line }) : null, `${one.label} `, values[index])));
  const plot = svg("svg", { class: "plot", role: "img", tabindex: "0" });
  const caption = make("figcaption", {}, make("span", { class: "title" }, title), legend);
  const figure = make("figure", { class: wide ? "chart wide" : "chart" }, caption, plot);
  return { figure, plot, values };
}

/** Lets pointer and arrow keys choose a step back from now; `choose(null)` chooses none. */
function followCursor(plot, steps, choose, chosen) {
  const at = (event) => {
    const box = plot.getBoundingClientRect();
    const inside = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    choose(Math.min(steps - 1, Math.max(0, Math.round((1 - inside) * (steps - 1)))));
  };
  plot.addEventListener("pointermove", at);
  plot.addEventListener("pointerdown", at);
  plot.addEventListener("pointerleave", () => choose(null));
  plot.addEventListener("blur", () => choose(null));
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: 1, ArrowRight: -1, Home: steps, End: -steps };
    if (event.key === "Escape") choose(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    const stride = event.shiftKey || steps < 100 ? 1 : 5;
    const next = (chosen() ?? 0) + moves[event.key] * stride;
    choose(Math.min(steps - 1, Math.max(0, next)));
  });
}

/** Places times and draws the axis below; `steps` of `step` seconds end now. */
function timeAxis(plot, { width, bottom, steps, step }) {
  const right = width - MARGIN.right;
  const x = (back) => right - ((right - MARGIN.left) * back) / (steps - 1);
  const minutes = Math.round((steps * step) / 60);
  for (const at of [minutes, (minutes * 2) / 3, minutes / 3, 0]) {
    const back = Math.min(steps - 1, (at * 60) / step);
    const anchor = at === minutes ? "start" : at === 0 ? "end" : "middle";
    const label = at === 0 ? "now" : `−${Math.round(at)} min`;
    plot.append(svg("text", { x: x(back), y: bottom + 15, "text-anchor": anchor }, label));
  }
  return x;
}

function valueAxis(plot, { ticks, y }, width, format) {
  for (const tick of ticks) {
    const at = Math.round(y(tick)) + 0.5;
    plot.append(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
    plot.append(svg("text", { x: MARGIN.left - 6, y: at + 3.5, "text-anchor": "end" }, format(tick)));
  }
}

/**
 * What is drawn where there are more points than pixels: the mean, or the worst, of a few at a time. Which few is
 * decided by the number of the last point, so that nothing shimmers as time goes by.
 */
function thinned(points, newest, size, worst) {
  if (size <= 1) return points.map((value, index) => [points.length - 1 - index, value]);
  const groups = new Map();
  points.forEach((value, index) => {
    const back = points.length - 1 - index;
    const group = Math.floor((newest - back) / size);
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push([back, value]);
  });
  return [...groups.values()].map((group) => {
    const values = group.map(([, value]) => value).filter((value) => value !== null);
    const middle = (group[0][0] + group.at(-1)[0]) / 2;
    if (values.length === 0) return [middle, null];
    return [middle, worst ? Math.max(...values) : values.reduce((sum, value) => sum + value, 0) / values.length];
  });
}

function pathOf(points, x, y) {
  let path = "";
  let broken = true;
  for (const [back, value] of points) {
    if (value === null) {
      broken = true;
    } else {
      path += `${broken ? "M" : "L"}${x(back).toFixed(1)} ${y(value).toFixed(1)}`;
      broken = false;
    }
  }
  return path;
}

/**
 * A chart of `series`: `{name, label, line, worst, pixels, format}`. `steps` of `step` seconds fit in; `least` is the smallest value
 * that the axis reaches in any case.
 */
function lineChart(options) {
  const { title, series, format, tick, steps, step, log = false, least } = options;
  const { figure, plot, values } = figureOf(options);
  const shared = options.cursor ?? { chosen: null, charts: [] };
  let data = null;
  shared.charts.push(read);
  followCursor(plot, steps, (back) => {
    shared.chosen = back;
    shared.charts.forEach((chart) => chart());
  }, () => shared.chosen);
  new ResizeObserver(() => draw()).observe(plot);

  /** Shows values at the cursor, or the newest. */
  function read() {
    if (!data) return;
    const back = shared.chosen ?? 0;
    series.forEach((one, index) => {
      const points = data.series[one.name];
      say(values[index], (one.format ?? format)(points[points.length - 1 - back] ?? null));
    });
    plot.querySelectorAll(".cursor").forEach((old) => old.remove());
    if (shared.chosen === null || !data.x) return;
    const [at, bottom] = [Math.round(data.x(back)) + 0.5, HEIGHT - MARGIN.bottom];
    plot.append(svg("line", { class: "cursor", x1: at, x2: at, y1: MARGIN.top, y2: bottom }));
    const label = `${clock(data.time - back * step * 1000)}, ${longTime(back * step)} ago`;
    const anchor = at > plot.clientWidth / 2 ? "end" : "start";
    const text = { class: "cursor-time", x: at + (anchor === "end" ? -5 : 5), y: MARGIN.top + 9, "text-anchor": anchor };
    plot.append(svg("text", { ...text, class: "cursor" }, label));
  }

  function draw() {
    const width = plot.clientWidth;
    if (!data || width === 0) return;
    plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    plot.replaceChildren();
    const bottom = HEIGHT - MARGIN.bottom;
    const span = width - MARGIN.left - MARGIN.right;
    const drawn = series.map((one) =>
      thinned(data.series[one.name], data.newest, Math.ceil((steps * (one.pixels ?? PIXELS)) / span), one.worst));
    const scale = scaleOf(drawn.flat().map(([, value]) => value), { log, least, bottom });
    valueAxis(plot, scale, width, tick);
    data.x = timeAxis(plot, { width, bottom, steps, step });
    const count = data.series[series[0].name].length;
    if (data.x(count) - MARGIN.left > 130) {
      const middle = (MARGIN.left + data.x(count)) / 2;
      plot.append(svg("text", { x: middle, y: HEIGHT / 2, "text-anchor": "middle" }, "not watched yet"));
    }
    drawn.forEach((points, index) => {
      plot.append(svg("path", { class: `line ${series[index].line}`, d: pathOf(points, data.x, scale.y) }));
    });
    mark(plot, "aria-label", summary());
    read();
  }

  function summary() {
    const parts = series.map((one) => {
      const known = data.series[one.name].filter((value) => value !== null);
      if (known.length === 0) return `${one.label}: nothing yet`;
      const [low, high] = [Math.min(...known), Math.max(...known)];
      const show = one.format ?? format;
      return `${one.label}: now ${show(known.at(-1))}, between ${show(low)} and ${show(high)}`;
    });
    return `${title}. ${parts.join(". ")}. Arrow keys move through time.`;
  }

  return {
    figure,
    /** Lists of values, oldest first, up to `time`; `newest` is the number of the last. */
    show(lists, newest, time) {
      data = { series: lists, newest, time };
      draw();
    },
  };
}

/** Calls by how long they took, over time. `columns` hold pairs of an exponent of two, in nanoseconds, and a count. */
function heatMap({ title, steps, step }) {
  const series = [{ label: "most in one cell" }];
  const { figure, plot, values } = figureOf({ title, series, wide: true });
  let data = null;
  let chosen = null;
  const height = 208;
  plot.classList.add("heat");
  followCursor(plot, steps, (back) => {
    chosen = back;
    read();
  }, () => chosen);
  new ResizeObserver(() => draw()).observe(plot);

  function read() {
    plot.querySelectorAll(".cursor").forEach((old) => old.remove());
    if (!data?.x || chosen === null) return;
    const column = data.columns[data.columns.length - 1 - chosen];
    const at = Math.round(data.x(chosen)) + 0.5;
    plot.append(svg("line", { class: "cursor", x1: at, x2: at, y1: MARGIN.top, y2: height - MARGIN.bottom }));
    const label = column
      ? `${longTime(chosen * step)} ago: ${plural(column.calls, "call")}, p50 ${time(column.p50)}, p95 ${time(column.p95)}`
      : "not watched yet";
    const anchor = at > plot.clientWidth / 2 ? "end" : "start";
    plot.append(svg("text", { class: "cursor", x: at + (anchor === "end" ? -5 : 5), y: MARGIN.top + 9,
      "text-anchor": anchor }, label));
  }

  function draw() {
    const width = plot.clientWidth;
    if (!data || width === 0) return;
    plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    plot.replaceChildren();
    const cells = data.columns.flatMap((column, index) =>
      column.octaves.map(([octave, calls]) => ({ back: data.columns.length - 1 - index, octave, calls })));
    const most = Math.max(1, ...cells.map((cell) => cell.calls));
    const low = Math.min(...cells.map((cell) => cell.octave), 19);
    const high = Math.max(...cells.map((cell) => cell.octave), low + 5) + 1;
    const bottom = height - MARGIN.bottom;
    const row = (bottom - MARGIN.top) / (high - low);
    const y = (nanoseconds) => bottom - row * (Math.log2(nanoseconds) - low);
    const powers = [];
    for (let power = Math.ceil(low * Math.log10(2)); 10 ** power <= 2 ** high; power += 1) powers.push(10 ** power);
    valueAxis(plot, { ticks: powers, y }, width, (nanoseconds) => timeTick(nanoseconds / 1e9));
    data.x = timeAxis(plot, { width, bottom, steps, step });
    const wide = data.x(0) - data.x(1);
    for (const { back, octave, calls } of cells) {
      const cell = svg("rect", { x: data.x(back) - wide + 1, width: Math.max(1, wide - 1),
        y: bottom - row * (octave + 1 - low), height: Math.max(1, row - 1) });
      cell.style.fill = `rgb(var(--heat) / ${(0.15 + 0.85 * Math.sqrt(calls / most)).toFixed(3)})`;
      plot.append(cell);
    }
    say(values[0], plural(most, "call"));
    const total = cells.reduce((sum, cell) => sum + cell.calls, 0);
    mark(plot, "aria-label", total === 0
      ? `${title}: no calls.`
      : `${title}: ${plural(total, "call")}, from ${time(2 ** low / 1e9)} to ${time(2 ** high / 1e9)}. Arrow keys move through time.`);
    read();
  }

  return {
    figure,
    show(columns) {
      data = { columns };
      draw();
    },
  };
}
