// The two pictures, drawn from the answers that page.js keeps.

// Of both pictures: from numbers to pixels.
let map, chart;

function layOut() {
  if ($("map").clientWidth < 100 || $("losses").clientHeight < 100) return;
  drawMap();
  drawLosses();
  show(shown);
}

const scale = (low, high, from, to) => (x) => from + ((x - low) / (high - low)) * (to - from);
const near = (x) => clamp(x, -1e5, 1e5);

function ticks(low, high) {
  const unit = [1, 2, 5].find((u) => (high - low) / u <= 6) ?? 10;
  const marks = [];
  for (let x = Math.ceil(low / unit) * unit; x <= high; x += unit) marks.push(x);
  return marks;
}

function drawMap() {
  const svg = $("map"), width = svg.clientWidth, height = svg.clientHeight || width;
  const left = 28, right = width - 8, top = 8, bottom = height - 22;
  const [[x0, x1], [y0, y1]] = surface.domain;
  const x = scale(x0, x1, left, right), y = scale(y0, y1, bottom, top);
  map = { x, y, left, right, top, bottom };
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const ground = element("svg:g", { transform:
    `translate(${left} ${top}) scale(${(right - left) / box} ${(bottom - top) / box})` });
  bands.forEach((band, k) => {
    const strength = (0.24 * k) / Math.max(1, bands.length - 1);
    ground.append(element("svg:path", { class: "band", d: band, "fill-rule": "evenodd",
      "fill-opacity": strength, "stroke-opacity": strength + 0.08 }));
  });
  const axes = element("svg:g", { "aria-hidden": "true" });
  for (const t of ticks(x0, x1)) {
    axes.append(element("svg:text", { x: x(t), y: bottom + 15, "text-anchor": "middle" }, digits(t)));
  }
  for (const t of ticks(y0, y1)) {
    axes.append(element("svg:text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, digits(t)));
  }
  axes.append(element("svg:rect", { class: "frame", x: left, y: top, width: right - left,
    height: bottom - top }));
  for (const [px, py] of surface.saddles) {
    axes.append(element("svg:path", { class: "cross",
      d: `M${x(px) - 4},${y(py) - 4}l8,8m0,-8l-8,8` }));
  }
  for (const [px, py] of surface.minima) axes.append(star(x(px), y(py)));
  const clip = element("svg:clipPath", { id: "inside" }, element("svg:rect", { x: left, y: top,
    width: right - left, height: bottom - top }));
  const paths = layers("inside");
  svg.replaceChildren(clip, ground, axes, ...paths);
  for (const run of state.runs) {
    if (!found[run.name]) continue;
    const at = found[run.name].path.map(([px, py]) => [near(x(px)), near(y(py))]);
    map[run.name] = line(paths, run, at);
  }
  map.start = element("svg:circle", { class: "start", r: 5.5, cx: x(state.start[0]),
    cy: y(state.start[1]) });
  svg.append(map.start);
  $("map-title").replaceChildren(surface.name.replaceAll("_", " ") + ": ",
    element("span", {}, surface.formula));
}

function star(x, y) {
  const corners = Array.from({ length: 10 }, (_, k) => {
    const r = k % 2 ? 3 : 7.5, angle = (Math.PI * k) / 5;
    return `${x + r * Math.sin(angle)},${y - r * Math.cos(angle)}`;
  });
  return element("svg:polygon", { class: "mark", points: corners.join(" ") });
}

// Outlines are under all lines: what a dashed line covers shows in its gaps.
const layers = (clip) =>
  [1, 2, 3].map(() => element("svg:g", { "clip-path": `url(#${clip})` }));

// A line with its outline and its head, of which `upTo` shows as much as wanted.
function line(into, run, at) {
  const halo = element("svg:polyline", { class: "halo" });
  const drawn = element("svg:polyline", { class: "line", "data-run": run.name, ...look(run.slot) });
  const head = element("svg:circle", { class: "head", r: 5,
    style: `fill: var(--line-${run.slot % data.lines})` });
  [halo, drawn, head].forEach((one, k) => into[k].append(one));
  const texts = at.map(([x, y]) => `${x.toFixed(2)},${y.toFixed(2)}`);
  return { upTo(step) {
    const points = texts.slice(0, step + 1).join(" ");
    halo.setAttribute("points", points);
    drawn.setAttribute("points", points);
    const end = at[Math.min(step, at.length - 1)];
    head.setAttribute("visibility", end ? "visible" : "hidden");
    if (end) { head.setAttribute("cx", end[0]); head.setAttribute("cy", end[1]); }
  } };
}

function drawLosses() {
  const svg = $("losses"), width = svg.clientWidth, height = svg.clientHeight;
  const left = 46, right = width - 8, top = 8, bottom = height - 22;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const gaps = state.runs.map((run) => found[run.name]?.gaps ?? []);
  const first = Math.max(FLOOR, ...gaps.map((g) => g[0] ?? 0)) || 1;
  let low = first, high = first;
  for (const g of gaps) for (const v of g) {
    low = Math.min(low, Math.max(v, FLOOR));
    high = Math.max(high, v);
  }
  high = Math.min(high, 1e4 * first); // what diverges leaves the picture
  low = Math.floor(Math.log10(low));
  high = Math.max(Math.ceil(Math.log10(high)), low + 1);
  const x = scale(0, ran, left, right), y = scale(low, high, bottom, top);
  const axes = element("svg:g", { "aria-hidden": "true" });
  const every = Math.max(1, Math.ceil((high - low) / Math.max(2, Math.floor((bottom - top) / 34))));
  for (let e = Math.ceil(low / every) * every; e <= high; e += every) {
    axes.append(element("svg:line", { class: "grid", x1: left, x2: right, y1: y(e), y2: y(e) }),
      power(left - 6, y(e) + 4, e));
  }
  const unit = 10 ** Math.floor(Math.log10(ran));
  const gap = [0.2, 0.5, 1, 2].map((u) => u * unit).find((u) => ran / u <= 6) ?? unit;
  for (let t = 0; t <= ran; t += Math.max(1, Math.round(gap))) {
    axes.append(element("svg:text", { x: x(t), y: bottom + 15, "text-anchor":
      x(t) > right - 12 ? "end" : "middle" }, String(t)));
  }
  axes.append(element("svg:path", { class: "frame", d: `M${left},${top}V${bottom}H${right}` }));
  const clip = element("svg:clipPath", { id: "within" }, element("svg:rect", { x: left, y: top - 3,
    width: right - left + 6, height: bottom - top + 6 }));
  const lines = layers("within");
  const now = element("svg:line", { class: "now", y1: top, y2: bottom });
  svg.replaceChildren(clip, axes, now, ...lines);
  chart = { x, now };
  state.runs.forEach((run, k) => {
    if (!gaps[k].length) return;
    const at = gaps[k].map((v, t) => [x(t), near(y(Math.log10(Math.max(v, FLOOR))))]);
    chart[run.name] = line(lines, run, at);
  });
}

function power(x, y, exponent) {
  const small = element("svg:tspan", { dy: -4, "font-size": "9" }, digits(exponent));
  return element("svg:text", { x, y, "text-anchor": "end" }, "10", small);
}
