// The page draws what the server answers, and works out nothing about optimizers itself.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const SVG = "http://www.w3.org/2000/svg";
const [LOW, HIGH] = data.rates.map(Math.log10);
const FLOOR = 1e-16; // heights below are drawn there

// What is asked for; runs have a slot, which gives them colour and dashes while they stay.
let state, surface, bands = [], box = 1;
// What was answered, by name, for so many steps; and the step that is shown.
let found = {}, ran = 1, shown = 0, playing = null;

// ----------------------------------------------------------------------------- small things

function element(kind, attributes = {}, ...children) {
  const drawn = kind.startsWith("svg:");
  const one = drawn ? document.createElementNS(SVG, kind.slice(4)) : document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
  one.append(...children);
  return one;
}

const digits = (x, n = 3) => (x === 0 ? "0" : Number(x.toPrecision(n)).toString().replace("-", "−"));
const look = (slot) => ({
  style: `stroke: var(--line-${slot % data.lines})`,
  "stroke-dasharray": data.dashes[slot % data.dashes.length],
});
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

// ------------------------------------------------------------------------- state and address

// What a query says that the server takes.
function parse(query) {
  const given = new URLSearchParams(query);
  return {
    surface: given.get("surface") ?? "beale",
    steps: Number(given.get("steps") ?? 200),
    noise: Number(given.get("noise") ?? 0),
    seed: Number(given.get("seed") ?? 0),
    tolerance: Number(given.get("tolerance") ?? data.tolerance),
    runs: given.getAll("run").map((text, slot) => {
      const [name, rate] = text.split(":");
      return { name, rate: rate === undefined ? null : Number(rate), slot };
    }),
  };
}

function query() {
  const runs = state.runs.map((r) => `run=${encodeURIComponent(r.name).replaceAll("%20", "+")}` +
    (r.rate === null ? "" : `:${r.rate}`));
  const noise = state.noise ? [`noise=${state.noise}`, `seed=${state.seed}`] : [];
  const near = state.tolerance === data.tolerance ? [] : [`tolerance=${state.tolerance}`];
  return [`surface=${state.surface}`, `steps=${state.steps}`, `start=${state.start.join(",")}`,
    ...noise, ...near, ...runs].join("&");
}

// A query that names no runs, with those that the page begins with.
function withRuns(query) {
  if (new URLSearchParams(query).has("run")) return query;
  return [query, ...data.begin.split("&").filter((part) => part.startsWith("run="))].join("&");
}

// --------------------------------------------------------------------------------- the server

let asking = false, waiting = null, pending = 0;

// One question at a time: of those that come up meanwhile, the last is asked next.
async function ask(replay = false) {
  if (asking) { waiting = { replay: replay || Boolean(waiting?.replay) }; return; }
  asking = true;
  busy(1);
  try {
    // Steps of a slider meanwhile keep the list of runs as it is; what keeps it fits the answer.
    const { runs } = state, answer = await get(`race?${query()}`);
    if (state.runs === runs) take(answer, replay);
    complain(null);
  } catch (error) {
    if (!waiting) complain(error.message);
  }
  asking = false;
  busy(-1);
  if (waiting) { const next = waiting; waiting = null; return ask(next.replay); }
}

// More or fewer things that are waited for.
function busy(more) {
  pending += more;
  document.body.setAttribute("aria-busy", pending > 0);
}

async function get(address) {
  let response;
  try {
    response = await fetch(address);
  } catch {
    throw new Error("The server does not answer; is `python -m fastgd race --serve` still running?");
  }
  const body = await response.json();
  if (!response.ok) throw new Error(body.error);
  return body;
}

function complain(text) {
  $("problem").hidden = text === null;
  $("problem").textContent = text ?? "";
}

function take(answer, replay) {
  const atEnd = shown >= (Number($("step").max) || 0);
  ran = answer.steps;
  found = Object.fromEntries(answer.runs.map((run) => [run.name, run]));
  for (const run of state.runs) run.rate ??= found[run.name].lr;
  history.replaceState(null, "", `#${query()}`);
  $("step").max = ran;
  rows();
  const outcome = ({ name }) => {
    const run = found[name];
    if (!run) return "";
    if (run.diverged !== null) return `${name} diverged at step ${run.diverged}`;
    return run.arrival === null ? `${name} did not arrive` : `${name} arrived at step ${run.arrival}`;
  };
  $("news").textContent = state.runs.map(outcome).join("; ");
  layOut();
  if (replay && !still.matches) play();
  else if (playing === null) show(atEnd || replay ? ran : Math.min(shown, ran));
}

async function change(wanted, replay = false) {
  const moved = wanted.surface !== undefined;
  Object.assign(state, wanted);
  busy(1);
  try {
    if (moved) await choose();
    controls();
    await ask(replay);
  } catch (error) {
    complain(error.message);
  }
  busy(-1);
}

// The surface of the state: its contours, and rates anew unless they were given.
async function choose() {
  surface = data.surfaces.find((s) => s.name === state.surface);
  bands = [];
  const answer = await get(`contours?surface=${surface.name}`);
  if (surface.name !== state.surface) return;
  ({ bands, box } = answer);
  found = {};
  layOut();
}

// The race that an address describes; if the server refuses it, the page's own, and why.
async function begin(link) {
  let text = link ? withRuns(link) : data.begin;
  stop();
  busy(1);
  let answer, wrong = null;
  try {
    answer = await get(`race?${text}`).catch((error) => {
      wrong = error.message;
      text = data.begin;
      return get(`race?${text}`);
    });
    state = { ...parse(text), start: answer.start };
    await choose();
    controls();
    families();
    take(answer, true);
  } catch (error) {
    wrong ??= error.message;
  }
  complain(wrong);
  busy(-1);
}

// --------------------------------------------------------------------------------- play, step

function show(step) {
  shown = clamp(Math.round(step), 0, ran);
  for (const { name } of state.runs) {
    map[name]?.upTo(shown);
    chart[name]?.upTo(shown);
  }
  chart.now.setAttribute("x1", chart.x(shown));
  chart.now.setAttribute("x2", chart.x(shown));
  $("step").value = shown;
  $("step-now").textContent = `step ${shown} of ${ran}`;
  for (const { name } of state.runs) {
    const row = $("runs").querySelector(`tr[data-name="${CSS.escape(name)}"]`), run = found[name];
    if (!row || !run) continue;
    const end = Math.min(shown, run.path.length - 1);
    const gone = run.diverged !== null && shown >= run.diverged;
    row.querySelector(".number").textContent = gone ? "∞" : digits(run.gaps[end]);
    row.dataset.point = gone ? "" : run.path[end].join(",");
  }
}

function play() {
  stop();
  const from = shown >= ran ? 0 : shown;
  const whole = clamp(ran * 25, 1500, 6000), started = performance.now();
  $("play").textContent = "Pause";
  const frame = (now) => {
    show(from + ((now - started) / whole) * ran);
    if (shown >= ran) stop();
    else playing = requestAnimationFrame(frame);
  };
  shown = from;
  playing = requestAnimationFrame(frame);
}

function stop() {
  if (playing !== null) cancelAnimationFrame(playing);
  playing = null;
  $("play").textContent = "Play";
}

// ----------------------------------------------------------------------------------- controls

function controls() {
  $("surface").value = state.surface;
  ["x", "y"].forEach((axis, k) => {
    const input = $(`start-${axis}`), [low, high] = surface.domain[k];
    Object.assign(input, { min: low, max: high, value: Number(state.start[k].toPrecision(6)) });
  });
  $("steps").value = state.steps;
  $("steps").max = data.steps;
  $("noise").value = state.noise;
  $("noise-now").textContent = digits(state.noise);
  $("again").disabled = !state.noise;
  $("meaning").textContent = "Height is the value above the lowest minimum, at the step shown. Arrival, of " +
    `the whole run, is the step from which on it stays within ${digits(state.tolerance)} of a minimum (★; × is ` +
    "a saddle). Of optimizers that average, the average is shown.";
  rows();
}

// What a field of numbers has; null, and why in words, if that is none: a browser gives nothing then.
function entered(id, what) {
  const input = $(id), { min, max, value } = input;
  if (value !== "") return Number(value);
  controls();
  complain(`${what}: expected a number from ${min} to ${max}; it stays ${input.value}`);
  return null;
}

// The table's rows; one that is there already stays, so that a slider keeps the keyboard.
function rows() {
  const there = Object.fromEntries([...$("runs").children].map((row) => [row.dataset.name, row]));
  const wanted = state.runs.map((run) => there[run.name] ?? row(run));
  const same = wanted.length === $("runs").children.length &&
    wanted.every((one, k) => one === $("runs").children[k]);
  if (!same) $("runs").replaceChildren(...wanted);
  for (const [k, run] of state.runs.entries()) {
    const cells = wanted[k], result = found[run.name], slider = cells.querySelector("input");
    cells.querySelector("th .swatch").replaceWith(swatch(run));
    cells.querySelector("output").textContent = run.rate === null ? "…" : digits(run.rate);
    if (run.rate !== null) {
      if (document.activeElement !== slider || slider.dataset.rate !== String(run.rate)) {
        slider.value = Math.log10(run.rate);
      }
      slider.setAttribute("aria-valuetext", digits(run.rate));
    }
    cells.children[3].textContent = !result ? "…" : result.diverged !== null
      ? `diverged at step ${result.diverged}`
      : result.arrival === null ? `not in ${ran} steps` : `step ${result.arrival}`;
    cells.querySelector("button").disabled = state.runs.length === 1;
  }
  $("legend").replaceChildren(...state.runs.map((run) => element("li", {}, swatch(run), run.name)));
  $("count").textContent = `(${state.runs.length} of ${data.optimizers.length}, at most ${data.runs} at once)`;
  for (const box of document.querySelectorAll("#families input")) {
    box.checked = state.runs.some((run) => run.name === box.value);
    box.disabled = box.checked ? state.runs.length === 1 : state.runs.length >= data.runs;
  }
}

const swatch = ({ slot }) => element("svg:svg",
  { class: "swatch", viewBox: "0 0 34 12", "aria-hidden": "true" },
  element("svg:line", { class: "line", x1: 1, x2: 33, y1: 6, y2: 6, ...look(slot) }));

function row(run) {
  const slider = element("input", { type: "range", min: LOW, max: HIGH, step: "0.025",
    "aria-label": `learning rate of ${run.name}` });
  const remove = element("button", { type: "button", "aria-label": `Remove ${run.name}` }, "×");
  slider.addEventListener("input", () => {
    const mine = state.runs.find((r) => r.name === run.name);
    mine.rate = Number((10 ** slider.value).toPrecision(4));
    slider.dataset.rate = mine.rate;
    rows();
    ask();
  });
  remove.addEventListener("click", () => toggle(run.name));
  return element("tr", { "data-name": run.name },
    element("th", { scope: "row" }, swatch(run), run.name),
    element("td", {}, element("div", { class: "rate" }, slider, element("output"))),
    element("td", { class: "number" }), element("td"), element("td", {}, remove));
}

function toggle(name) {
  if (state.runs.some((run) => run.name === name)) {
    if (state.runs.length > 1) state.runs = state.runs.filter((run) => run.name !== name);
  } else if (state.runs.length < data.runs) {
    const used = new Set(state.runs.map((run) => run.slot));
    const slot = [...Array(data.runs).keys()].find((k) => !used.has(k));
    state.runs = [...state.runs, { name, rate: null, slot }];
  }
  rows();
  ask();
}

function families() {
  const groups = Object.groupBy
    ? Object.groupBy(data.optimizers, (o) => o.family)
    : data.optimizers.reduce((all, o) => ({ ...all, [o.family]: [...(all[o.family] ?? []), o] }), {});
  $("families").replaceChildren(...Object.entries(groups).map(([family, members]) => {
    const boxes = members.map(({ name }) => {
      const box = element("input", { type: "checkbox", value: name });
      box.addEventListener("change", () => toggle(name));
      return element("label", {}, box, name);
    });
    return element("fieldset", {}, element("legend", {}, `Steps follow from ${family}`),
      element("div", {}, ...boxes));
  }));
  rows();
}

function startAt(x, y, replay) {
  const inside = [x, y].map((v, k) => Number(clamp(v, ...surface.domain[k]).toPrecision(6)));
  change({ start: inside }, replay);
}

function wire() {
  $("surface").replaceChildren(...data.surfaces.map(({ name }) =>
    element("option", { value: name }, name.replaceAll("_", " "))));
  $("setup").addEventListener("submit", (event) => event.preventDefault());
  $("surface").addEventListener("change", () => {
    const next = data.surfaces.find((s) => s.name === $("surface").value);
    change({ surface: next.name, start: next.start,
      runs: state.runs.map((run) => ({ ...run, rate: null })) }, true);
  });
  ["x", "y"].forEach((axis, k) => $(`start-${axis}`).addEventListener("change", () => {
    const value = entered(`start-${axis}`, `start, ${axis}`);
    if (value !== null) change({ start: state.start.map((old, j) => (j === k ? value : old)) }, true);
  }));
  $("steps").addEventListener("change", () => {
    const steps = entered("steps", "steps");
    if (steps !== null) change({ steps });
  });
  $("noise").addEventListener("input", () => change({ noise: Number($("noise").value) }));
  $("again").addEventListener("click", () => change({ seed: state.seed + 1 }));
  $("tune").addEventListener("click", () =>
    change({ runs: state.runs.map((run) => ({ ...run, rate: null })) }, true));
  $("home").addEventListener("click", () => change({ start: surface.start }, true));
  $("play").addEventListener("click", () => (playing === null ? play() : stop()));
  $("step").addEventListener("input", () => { stop(); show(Number($("step").value)); });
  $("map").addEventListener("click", (event) => {
    const box = $("map").getBoundingClientRect(), [[x0, x1], [y0, y1]] = surface.domain;
    startAt(scale(map.left, map.right, x0, x1)(event.clientX - box.left),
      scale(map.bottom, map.top, y0, y1)(event.clientY - box.top), true);
  });
  $("map").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] }[event.key];
    if (event.key === " ") $("play").click();
    else if (!by) return;
    event.preventDefault();
    if (!by) return;
    const part = event.shiftKey ? 0.1 : 0.01;
    startAt(...by.map((d, k) =>
      state.start[k] + d * part * (surface.domain[k][1] - surface.domain[k][0])), false);
  });
  addEventListener("hashchange", () => begin(location.hash.slice(1)));
  new ResizeObserver(() => { if (map) layOut(); }).observe($("pictures"));
}
