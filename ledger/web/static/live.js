"use strict";
/* What a page can do beyond being read: follow what changes, draw charts, copy lines.

   The server makes every page whole; this file only puts a newer one into the one that is open,
   element by element (idiomorph), so that focus, selection and scrolling stay where they are. */

const SLOW_MS = 30_000; // between two looks when the server has no room for another stream
const DARK = matchMedia("(prefers-color-scheme: dark)");
const plots = new Map(); // figure to its uPlot

document.documentElement.classList.add("js");

// --- following -------------------------------------------------------------------------------

let source = null;
let waiting = 0;

function say(words) {
  const place = document.getElementById("link");
  if (place && place.textContent !== words) place.textContent = words;
}

function follow() {
  clearTimeout(waiting);
  source?.close();
  source = new EventSource(document.body.dataset.stream);
  source.onmessage = (event) => {
    say("live");
    show(event.data);
  };
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED) return say("connecting …");
    say("every 30 s"); // refused: there are too many listeners, or the server is another one now
    waiting = setTimeout(look, SLOW_MS * (1 + Math.random() / 4));
  };
}

async function look() {
  try {
    const reply = await fetch(location.pathname);
    if (reply.ok) show(await reply.text());
  } catch {
    say("no connection");
  }
  follow();
}

function show(html) {
  const newest = new DOMParser().parseFromString(html, "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const next = newest.getElementById(part.id);
    if (next) Idiomorph.morph(part, next, { morphStyle: "outerHTML", ignoreActiveValue: true, callbacks });
  }
}

const callbacks = {
  beforeNodeMorphed(old, next) {
    if (old.dataset?.keep !== undefined) return false; // what the reader has chosen
    if (!plots.has(old) || !next.dataset?.chart) return true;
    if (old.dataset.chart !== next.dataset.chart) {
      old.dataset.chart = next.dataset.chart;
      draw(old);
    }
    return false;
  },
  beforeNodeAdded: (node) => void queueMicrotask(() => node.isConnected && drawIn(node.parentNode)),
  // Details that the reader has opened stay open.
  beforeAttributeUpdated: (name, node) => !(name === "open" && node.tagName === "DETAILS"),
};

// --- charts ----------------------------------------------------------------------------------

const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
const EXACT = new Intl.NumberFormat("en", { maximumSignificantDigits: 6 });

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function draw(figure) {
  const { axes, series } = JSON.parse(figure.dataset.chart);
  const chosen = document.querySelector("input[name=axis]:checked")?.value;
  const axis = chosen in axes ? chosen : Object.keys(axes)[0];
  // An axis may lack its first value (when a run began is not known); uPlot wants all, ascending.
  const kept = axes[axis].map((x, at) => [x, at]).filter(([x]) => x !== null);
  const data = [kept.map(([x]) => x), ...series.map((one) => kept.map(([, at]) => one.values[at]))];
  const key = axis + DARK.matches;
  const known = plots.get(figure);
  if (known?.key === key) return known.plot.setData(data);
  known?.plot.destroy();
  const [soft, line] = [colour("--soft"), colour("--line")];
  const look = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
  const short = (plot, values) => values.map((value) => SHORT.format(value));
  const options = {
    width: figure.clientWidth - 26,
    height: 240,
    scales: { x: { time: axis === "time" } },
    axes: [axis === "time" ? look : { ...look, values: short }, { ...look, size: 56, values: short }],
    series: [
      axis === "time" ? { label: "time" } : { label: axis, value: (_, x) => (x == null ? "–" : EXACT.format(x)) },
      ...series.map((one) => ({
        label: one.label,
        stroke: colour(one.colour),
        width: 2,
        spanGaps: true,
        value: (_, y) => (y == null ? "–" : EXACT.format(y)),
      })),
    ],
  };
  figure.classList.add("drawn");
  plots.set(figure, { key, plot: new uPlot(options, data, figure) });
}

function drawIn(place) {
  if (typeof uPlot === "undefined" || !place.querySelectorAll) return;
  for (const figure of place.querySelectorAll("figure[data-chart]")) if (!plots.has(figure)) draw(figure);
}

function drawAgain() {
  for (const figure of plots.keys()) draw(figure);
}

// --- what the reader does --------------------------------------------------------------------

async function copy(button) {
  const line = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(line.textContent);
  } catch {
    getSelection().selectAllChildren(line); // over plain http a page may not write there itself
    document.execCommand("copy");
  }
  button.firstChild.textContent = "Copied";
  setTimeout(() => (button.firstChild.textContent = "Copy"), 1500);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-copy]");
  if (button) copy(button);
});
document.addEventListener("change", (event) => {
  if (event.target.name === "axis") drawAgain();
});
DARK.addEventListener("change", drawAgain);
addEventListener("resize", () => {
  for (const [figure, { plot }] of plots) plot.setSize({ width: figure.clientWidth - 26, height: 240 });
});

drawIn(document);
if (document.body.dataset.stream) {
  follow();
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return follow(); // a tab that nobody looks at takes nobody's place
    clearTimeout(waiting);
    source?.close();
  });
}
