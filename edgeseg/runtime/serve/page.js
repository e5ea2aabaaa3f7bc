// The live page: listens to the state twice a second and shows it. Keys of the state may be missing.
import { plot } from "./plot.js";

const at = (id) => document.getElementById(id);
const known = Number.isFinite;
const DASH = "–";
const count = (value) => known(value) ? value.toLocaleString("en") : DASH;
const fixed = (value) => !known(value) ? DASH : value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
const ms = (value) => `${fixed(value)}\u00a0ms`;
const percent = (value) => !known(value) ? DASH : (100 * value).toFixed(value > 0 && value < 0.001 ? 2 : 1);
const of = (part, whole) => known(part) && whole > 0 ? `${percent(part / whole)} %` : "";

function make(name, className = "", ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}
// Writes only what differs, so that what is read aloud is not read again.
function say(element, text) { if (element.textContent !== text) element.textContent = text; }
function measure(element, value, unit) {
  const text = unit ? `${value} ${unit}` : `${value}`;
  if (element.dataset.shown !== text) {
    element.dataset.shown = text;
    element.replaceChildren(value, ...(unit && value !== DASH ? ["\u202f", make("small", "", unit)] : []));
  }
}
function duration(seconds) {
  if (!known(seconds)) return "";
  const s = Math.floor(seconds);
  const [d, h, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
}
// Children by key: made when first seen, kept in the order given, taken away when no longer there.
function list(host, items, build) {
  const old = new Map([...host.children].map((child) => [child.dataset.key, child]));
  items.forEach(({ key }, i) => {
    const child = old.get(String(key)) ?? build(items[i]);
    child.dataset.key = key;
    old.delete(String(key));
    if (host.children[i] !== child) host.insertBefore(child, host.children[i] ?? null);
  });
  for (const child of old.values()) child.remove();
  return [...host.children];
}

// --- The connection ---------------------------------------------------------------------------------------------
let events = null, heard = 0, wait = 1000, again = 0, state = null, lost = false;

function connect() {
  clearTimeout(again);
  events?.close();
  heard = performance.now();
  events = new EventSource("events");
  events.onmessage = (message) => {
    heard = performance.now();
    wait = 1000;
    const before = state, back = lost || !before || picture.dataset.failed;
    lost = false;
    state = JSON.parse(message.data);
    show(state);
    if (back || (before.ended && !state.ended)) watch();
  };
  events.onerror = () => lose();
}

async function lose() {
  events?.close();
  events = null;
  lost = true;
  clearTimeout(again);
  again = setTimeout(connect, wait);
  wait = Math.min(wait * 1.6, 8000);
  showLink();
  say(at("lost"), "The connection is lost. What you see is old. Trying to reconnect …");
  try {
    const answer = await fetch("state.json");
    if (answer.status === 401) {
      say(at("lost"), "The token is not valid any more. Open the address that edgeseg printed when it started.");
    } else if (answer.ok) {
      say(at("lost"), "There are too many viewers, or the connection broke. Trying again …");
    }
  } catch { /* no answer at all: the words above are right */ }
}

setInterval(() => {
  if (events && !document.hidden && performance.now() - heard > 5000) lose(); // silent, as after leaving a Wi-Fi
  else showBlank();
}, 1000);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { events?.close(); events = null; clearTimeout(again); unwatch(); } else { connect(); watch(); }
});

function showLink() {
  const ended = Boolean(state?.ended), link = at("link");
  link.dataset.state = ended ? "ended" : lost ? "lost" : state ? "live" : "waiting";
  say(link, ended ? "Ended" : lost ? "Reconnecting" : state ? "Live" : "Connecting");
  at("lost").hidden = !lost || ended;
  at("ended").hidden = !ended;
  showBlank();
}

// --- The picture ------------------------------------------------------------------------------------------------
const picture = at("live");
let chosen = Number(location.hash.slice(1)) || 0, paused = false, turn = 0;

function watch() {
  delete picture.dataset.failed;
  picture.src = paused ? `frame/${chosen}.jpg?${++turn}` : `stream/${chosen}.mjpg?${++turn}`;
}
function unwatch() { picture.removeAttribute("src"); }
picture.addEventListener("error", () => { if (picture.hasAttribute("src")) picture.dataset.failed = "yes"; });

function showBlank() {
  picture.hidden = !(picture.naturalWidth > 0); // some browsers drop it when its connection breaks
  at("screen").classList.toggle("stale", lost && !state?.ended && !picture.hidden);
  const row = state?.sources?.find(({ stream }) => stream === chosen);
  const blank = at("blank");
  blank.hidden = !picture.hidden && !at("screen").classList.contains("stale");
  say(blank, lost && !state?.ended ? "Connection lost" : state?.ended ? "No picture: the stream has ended"
    : row?.state === "reopening" ? "The source is gone; it is being opened again" : "Waiting for the first picture");
}
function choose(stream) {
  chosen = stream;
  history.replaceState(null, "", `#${stream}`);
  picture.hidden = true;
  unwatch(); // else the old stream's picture stays until the new one's is there
  watch();
  if (state) show(state);
}
at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", paused);
  say(at("pause"), paused ? "Go on" : "Pause");
  watch();
});
if (document.fullscreenEnabled) {
  at("full").hidden = false;
  at("full").addEventListener("click", () => at("screen").requestFullscreen());
}

// --- The numbers ------------------------------------------------------------------------------------------------
const lines = [
  { key: "age_p50", name: "p50", kind: "p50" },
  { key: "age_p99", name: "p99", kind: "p99" },
  { key: "age_max", name: "max", kind: "max" },
];
const ageOptions = { unit: "ms", height: 200, band: ["age_p50", "age_p99"], format: fixed, what: "Age of a mask" };
const drawAge = plot(at("age"), { lines, ...ageOptions });
function small(id, what, key, unit, kind = "p50", more = {}) {
  const name = what.toLowerCase();
  return plot(at(id), { lines: [{ key, name, kind }], unit, height: 104, format: fixed, what, ...more });
}
const drawRate = small("rate", "Rate", "fps", "fps");
const drawHeat = small("heat", "Temperature", "temperature_c", "°C", "p99", { fromZero: false });
const drawClock = small("clock", "Clock", "clock_mhz", "MHz", "p50", { format: count });
const NS = "http://www.w3.org/2000/svg";
for (const { name, kind } of lines) {
  const mark = document.createElementNS(NS, "svg"), line = document.createElementNS(NS, "line");
  mark.setAttribute("viewBox", "0 0 18 8");
  mark.setAttribute("aria-hidden", "true");
  const where = { class: kind, x1: 0, x2: 18, y1: 4, y2: 4 };
  for (const [key, value] of Object.entries(where)) line.setAttribute(key, value);
  mark.append(line);
  at("age-key").append(make("li", "", mark, `${name} `, make("b")));
}

function show(now) {
  const age = now.stages_ms?.age ?? {}, deadline = now.deadline ?? {}, frames = now.frames ?? {};
  say(at("name"), now.name ?? "edgeseg");
  document.title = now.name ? `${now.name} · edgeseg` : "edgeseg";
  say(at("what"), [now.variant, now.precision, duration(now.seconds)].filter(Boolean).join(" · "));
  showLink();
  const warnings = (now.warnings ?? []).map((key) => ({ key }));
  list(at("warnings"), warnings, ({ key }) => make("li", "", make("span", "", key)));
  showStreams(now);
  const late = known(deadline.ms) ? `${of(deadline.missed, deadline.of)} over ${ms(deadline.ms)}` : "no deadline";
  const dropped = now.policy === "every" ? "none may be" : `${of(frames.dropped, frames.captured)} for fresher ones`;
  const broken = of(frames.failed, frames.captured);
  const camera = known(now.camera_fps) ? `camera ${fixed(now.camera_fps)}` : "";
  const tail = `p99 ${fixed(age.p99)} · max ${ms(age.max)}`;
  tiles([ // name, label, value as it is, its text, unit, what stands below it, whether it is alarming
    ["fps", "Frames per second", now.fps, fixed(now.fps), "", camera],
    ["age", "Age, p50", age.p50, fixed(age.p50), "ms", tail],
    ["missed", "Late masks", deadline.missed, known(deadline.ms) ? count(deadline.missed) : DASH, "", late.trim()],
    ["processed", "Processed", frames.processed, count(frames.processed), "", `of ${count(frames.captured)} captured`],
    ["dropped", "Dropped", frames.dropped, count(frames.dropped), "", dropped.trim()],
    ["failed", "Failed", frames.failed, count(frames.failed), "", broken, frames.failed > 0],
  ]);
  const guide = known(deadline.ms) ? { value: deadline.ms, text: `deadline ${ms(deadline.ms)}` } : null;
  drawAge(now.history ?? [], guide);
  lines.forEach(({ name }, i) => measure(at("age-key").children[i].lastChild, fixed(age[name])));
  drawRate(now.history ?? []);
  for (const [part, key, draw] of [["heat-part", "temperature_c", drawHeat], ["clock-part", "clock_mhz", drawClock]]) {
    const measured = (now.history ?? []).some((row) => known(row[key]));
    at(part).hidden = !measured;
    if (measured) draw(now.history);
  }
  showStages(now.stages_ms ?? {});
  showClasses(now);
  const q = now.quality ?? {}, m = now.machine ?? {};
  const memory = known(m.rss_mb) ? Math.round(m.rss_mb) : null;
  facts("quality", [
    ["miou", "mIoU", percent(q.miou), "%"],
    ["streaming_miou", "Streaming mIoU", percent(q.streaming_miou), "%"],
    ["agreement", "Agreement", percent(q.agreement), "%"],
    ["flicker", "Flicker", percent(q.flicker), "%"],
    ["confidence", "Confidence", percent(q.confidence), "%"],
  ]);
  facts("machine", [
    ["cpu_percent", "CPU", fixed(m.cpu_percent), "%"],
    ["rss_mb", "Memory", count(memory), "MB"],
    ["temperature_c", "Temperature", fixed(m.temperature_c), "°C"],
    ["gpu_percent", "GPU", fixed(m.gpu_percent), "%"],
    ["gpu_clock_mhz", "GPU clock", count(m.gpu_clock_mhz), "MHz"],
    ["power_w", "Power", fixed(m.power_w), "W"],
    ["throttled", "Throttled", m.throttled == null ? DASH : m.throttled ? "yes" : "no", "", m.throttled],
  ]);
}

function showStreams(now) {
  const sources = now.sources ?? [];
  if (sources.length && !sources.some(({ stream }) => stream === chosen)) choose(sources[0].stream);
  at("streams").hidden = sources.length < 2;
  const tabs = list(at("streams"), sources.map((row) => ({ key: row.stream, row })), ({ row }) => {
    const tab = make("button", "", make("span"));
    tab.type = "button";
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", "screen");
    tab.addEventListener("click", () => choose(row.stream));
    return tab;
  });
  tabs.forEach((tab, i) => {
    say(tab.firstChild, sources[i].name || `stream ${sources[i].stream}`);
    tab.dataset.state = sources[i].state ?? "";
    tab.setAttribute("aria-selected", sources[i].stream === chosen);
    tab.tabIndex = sources[i].stream === chosen ? 0 : -1;
  });
  const row = sources.find(({ stream }) => stream === chosen) ?? {};
  say(at("source"), [
    sources.length > 1 ? "" : row.name,
    row.state,
    known(row.fps) ? `${fixed(row.fps)} fps` : "",
    sources.length > 1 && known(row.processed) ? `${count(row.processed)} of ${count(row.captured)} processed` : "",
    row.outages > 0 ? `${count(row.outages)} outage${row.outages > 1 ? "s" : ""}` : "",
  ].filter(Boolean).join(" · "));
  const most = Object.entries(now.shares ?? {}).sort((a, b) => b[1] - a[1]).slice(0, 3);
  const names = most.map(([name, share]) => `${name} ${percent(share)} %`);
  picture.alt = `Live overlay of ${row.name ?? "the stream"}` + (names.length ? `: mostly ${names.join(", ")}` : "");
}
at("streams").addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const tabs = [...at("streams").children], next = tabs[tabs.indexOf(document.activeElement) + by];
  if (next) { next.focus(); next.click(); }
});

function tiles(rows) {
  const build = () => make("div", "", make("dt"), make("dd", "value"), make("dd", "more"));
  const made = list(at("counters"), rows.map(([key]) => ({ key })), build);
  rows.forEach(([key, label, raw, value, unit, more, bad], i) => {
    const [term, figure, below] = made[i].children;
    say(term, label);
    measure(figure, value, unit);
    figure.id = `count-${key}`;
    figure.dataset.value = raw ?? "";
    say(below, more);
    made[i].classList.toggle("bad", Boolean(bad));
  });
}
function facts(id, rows) {
  const there = rows.filter(([, , value]) => value !== DASH);
  at(`${id}-card`).hidden = !there.length;
  const made = list(at(id), there.map(([key]) => ({ key })), () => make("div", "", make("dt"), make("dd")));
  there.forEach(([, label, value, unit, bad], i) => {
    say(made[i].firstChild, label);
    measure(made[i].lastChild, value, unit);
    made[i].classList.toggle("bad", Boolean(bad));
  });
}
function bar(kinds, ...label) {
  const figure = make("span", "figure", make("span"), make("small"));
  const track = make("span", "track", ...kinds.map((kind) => make("i", kind)));
  return make("li", "", make("span", "label", ...label), figure, track);
}
function showStages(stages) {
  const rows = ["capture", "prepare", "infer", "deliver"].filter((name) => stages[name]);
  const top = Math.max(1e-9, ...rows.map((name) => stages[name].p99 ?? stages[name].p50 ?? 0));
  const made = list(at("stages"), rows.map((key) => ({ key })), ({ key }) => bar(["wide", "fill"], key));
  rows.forEach((name, i) => {
    const { p50, p99, max } = stages[name], [wide, fill] = made[i].lastChild.children;
    fill.style.width = `${100 * Math.min(1, (p50 ?? 0) / top)}%`;
    wide.style.width = `${100 * Math.min(1, (p99 ?? 0) / top)}%`;
    say(made[i].children[1].firstChild, `${fixed(p50)} ms`);
    say(made[i].children[1].lastChild, ` · p99 ${fixed(p99)} · max ${fixed(max)}`);
  });
}

const MANY = 20; // classes; of more only those that were seen, so that the list does not jump
const seen = new Set();
function showClasses(now) {
  const classes = now.classes ?? [], shares = now.shares ?? {}, expected = now.calibration_shares ?? null;
  for (const name of classes) {
    if (classes.length <= MANY || shares[name] >= 0.001 || expected?.[name] >= 0.01) seen.add(name);
  }
  const rows = classes.map((name, key) => ({ key, name })).filter(({ name }) => seen.has(name));
  const build = ({ name }) => bar(["fill", "tick"], make("i", "swatch"), make("span", "", name));
  const made = list(at("classes"), rows, build);
  rows.forEach(({ key, name }, i) => {
    const [label, figure, track] = made[i].children, share = shares[name], usual = expected?.[name];
    const colour = `rgb(${(now.palette?.[key] ?? [128, 128, 128]).join(" ")})`;
    label.firstChild.style.background = track.firstChild.style.background = colour;
    say(label.lastChild, name);
    track.firstChild.style.width = `${100 * (share ?? 0)}%`;
    track.lastChild.hidden = !known(usual);
    if (known(usual)) track.lastChild.style.left = `${100 * usual}%`;
    say(figure.firstChild, known(share) ? `${percent(share)} %` : DASH);
    say(figure.lastChild, known(usual) ? ` · usually ${percent(usual)} %` : "");
  });
  say(at("classes-note"), expected ? "share of pixels · | in the calibration set" : "share of pixels");
  say(at("unseen"), classes.length > rows.length ? `and ${classes.length - rows.length} classes not seen so far` : "");
}

// After loading, or the endless picture would be a part of it and the browser show it as loading for ever.
if (document.readyState === "complete") connect(); else addEventListener("load", connect);
