// Lines over time as SVG: drawn anew from rows, read by pointer, touch and arrow keys.

const NS = "http://www.w3.org/2000/svg";
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400];

function svg(name, attributes, ...children) {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// A step of 1, 2 or 5 times a power of ten that divides `span` into at most `count` parts.
function niceStep(span, count) {
  const raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= raw * 0.9999);
}

export function ago(seconds) {
  const s = Math.round(seconds);
  if (s < 120) return s === 0 ? "now" : `−${s} s`;
  return s < 7200 ? `−${+(s / 60).toFixed(1)} min` : `−${+(s / 3600).toFixed(1)} h`;
}

// options: lines [{key, name, kind}], unit, height, band [low key, high key], guide {value, text}, format, fromZero,
// what (words for those who do not see it). Returns draw(rows, guide); rows have t in seconds, oldest first.
export function plot(host, options) {
  const { lines, unit, height, band, format, what, fromZero = true } = options;
  const readout = document.createElement("output");
  const canvas = svg("svg", { role: "img", tabindex: "0", height });
  host.append(canvas, readout);
  let rows = [], guide = null, chosen = null, place = null;

  const valuesOf = (row) => lines.map(({ key }) => row[key]).filter(Number.isFinite);
  const words = (row) => lines.filter(({ key }) => Number.isFinite(row[key]))
    .map(({ key, name }) => `${name} ${format(row[key])} ${unit}`).join(", ");

  function path(points) { // null breaks the line; a lone point becomes a dot
    let d = "", pen = false;
    for (const point of points) {
      if (point) d += `${pen ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}${pen ? "" : "h.01"}`;
      pen = Boolean(point);
    }
    return d;
  }

  function paint() {
    const width = host.clientWidth;
    if (!width) return;
    canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const values = rows.flatMap(valuesOf);
    if (!values.length) {
      canvas.replaceChildren(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "Not measured yet"));
      canvas.setAttribute("aria-label", `${what}: not measured yet`);
      readout.textContent = "";
      return;
    }
    let low = fromZero ? 0 : Math.min(...values), high = Math.max(...values, guide?.value ?? -Infinity);
    if (!(high - low > 0)) high = low + Math.max(1, Math.abs(low) * 0.1);
    const step = niceStep((high - low) * 1.05, height > 150 ? 5 : 2);
    low = Math.floor(low / step + 1e-9) * step;
    high = Math.ceil(high / step - 1e-9) * step;
    const digits = Math.max(0, -Math.floor(Math.log10(step)));
    const left = 14 + 6.6 * Math.max(low.toFixed(digits).length, high.toFixed(digits).length);
    const right = width - 6, top = 18, bottom = height - 20;
    const last = rows[rows.length - 1].t, span = Math.max(last - rows[0].t, 10);
    const x = (t) => right - ((last - t) / span) * (right - left);
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    place = { left, right, last, span };

    const parts = [svg("text", { x: left - 6, y: 9, "text-anchor": "end" }, unit)];
    for (let value = low; value <= high + step / 2; value += step) {
      parts.push(svg("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }));
      parts.push(svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits)));
    }
    const every = STEPS.find((s) => span / s <= Math.max(2, width / 110)) ?? span;
    for (let back = 0; back <= span + 1e-6; back += every) {
      const at = x(last - back);
      const anchor = back === 0 ? "end" : at < left + 16 ? "start" : "middle";
      parts.push(svg("text", { x: at, y: height - 4, "text-anchor": anchor }, ago(back)));
    }
    const points = (key) => rows.map((row) => Number.isFinite(row[key]) ? [x(row.t), y(row[key])] : null);
    if (band) {
      const both = rows.filter((row) => band.every((key) => Number.isFinite(row[key])));
      const edge = (key) => both.map((row) => `${x(row.t).toFixed(1)},${y(row[key]).toFixed(1)}`);
      const points = [...edge(band[1]), ...edge(band[0]).reverse()].join(" ");
      parts.push(svg("polygon", { class: "band", points }));
    }
    if (guide) {
      parts.push(svg("line", { class: "guide", x1: left, x2: right, y1: y(guide.value), y2: y(guide.value) }));
      parts.push(svg("text", { class: "guide-text", x: left + 4, y: y(guide.value) - 4 }, guide.text));
    }
    for (const { key, kind } of [...lines].reverse()) {
      parts.push(svg("path", { class: `series ${kind}`, d: path(points(key)) }));
    }
    const row = chosen === null ? null : rows[Math.max(0, Math.min(rows.length - 1, chosen))];
    if (row) parts.push(svg("line", { class: "cursor", x1: x(row.t), x2: x(row.t), y1: top, y2: bottom }));
    canvas.replaceChildren(...parts);
    const now = words(rows[rows.length - 1]);
    canvas.setAttribute("aria-label", `${what}, the last ${Math.round(span)} seconds; now ${now}`);
    readout.textContent = row ? `${ago(last - row.t)}: ${words(row)}` : "";
  }

  function point(event) {
    if (!place) return;
    const box = canvas.getBoundingClientRect();
    const t = place.last - ((place.right - (event.clientX - box.left)) / (place.right - place.left)) * place.span;
    chosen = rows.reduce((best, row, i) => Math.abs(row.t - t) < Math.abs(rows[best].t - t) ? i : best, 0);
    paint();
  }
  function unpoint() { chosen = null; paint(); }
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", unpoint);
  canvas.addEventListener("blur", unpoint);
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || !rows.length) return;
    event.preventDefault();
    chosen = Math.max(0, Math.min(rows.length - 1, (chosen ?? rows.length - 1) + by));
    paint();
  });
  new ResizeObserver(paint).observe(host);
  return (newRows, newGuide = null) => { rows = newRows; guide = newGuide; paint(); };
}
