"use strict";

const { rows, deciding, limit, colours } = JSON.parse(document.getElementById("data").textContent);
const hasOverlays = rows.some((row) => row.overlay), hasPeaks = rows.some((row) => row.peak !== null);
const hasLabels = rows.some((row) => row.label !== "unlabelled");
const byId = (id) => document.getElementById(id);
const filters = byId("filters"), table = byId("images"), viewer = byId("viewer"), picture = byId("picture"), plain = byId("plain"), map = byId("map"), contrast = byId("contrast"), legend = byId("legend");
const collator = new Intl.Collator("en", { numeric: true });

// What is looked at: the order, the rows that pass the filters, the first of them on this page, the one in the viewer.
// First come the images that are most anomalous by what decides: the maxima of their maps, or their scores.
const state = { key: deciding, direction: -1, chosen: [], first: 0, viewed: 0 };
const runLegend = [...legend.childNodes].map((node) => node.cloneNode(true));

// --- rows ---

function outcome(row) {
  if (row.decision === "reject" && row.label === "normal") return "false alarm";
  if (row.decision === "pass" && row.label === "anomalous") return "missed";
  return "";
}

function describeLabel(row) {
  return row.kind ? row.label + ": " + row.kind : row.label;
}

function describeDecision(row) {
  const mistake = outcome(row);
  return [row.decision || "none", mistake, row.fault].filter(Boolean).join(": ");
}

// A score or the maximum of a map as it is shown; pointed at, the value itself.
function number(row, key, className) {
  const cell = element("td", row.shown[key] ?? "", className);
  cell.title = `${key === "peak" ? "highest value of the map" : "anomaly score"} ${row[key]}`;
  return cell;
}

function pageLength() {
  return Number(filters.per_page.value);
}

function compare(a, b) {
  const [x, y] = [a[state.key], b[state.key]];
  return state.direction * (typeof x === "number" ? x - y : collator.compare(x, y));
}

function choose() {
  const text = filters.text.value.toLowerCase();
  const label = filters.label.value, decision = filters.decision.value;
  const low = filters.low.value === "" ? -Infinity : Number(filters.low.value);
  const high = filters.high.value === "" ? Infinity : Number(filters.high.value);
  state.chosen = rows.filter((row) =>
    row.name.toLowerCase().includes(text) &&
    (!label || row.label === label) &&
    (!decision || row.decision === decision || outcome(row) === decision) &&
    parseShown(row) >= low && parseShown(row) <= high).sort(compare);
  state.first = 0;
  show();
}

// The number that is shown of what decides, which may be "over 999".
function parseShown(row) {
  return Number(row.shown[deciding].replace("over ", ""));
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className || "";
  return made;
}

function smallPicture(jpeg) {
  const cell = element("td", "", "small-picture");
  if (jpeg) {
    const image = document.createElement("img");
    image.src = "data:image/jpeg;base64," + jpeg;
    image.alt = "";
    cell.append(image);
  }
  return cell;
}

function line(row, position) {
  const made = element("tr", "", outcome(row) ? "mistake" : "");
  const name = element("td", "", "name"), open = element("button", row.name);
  open.type = "button";
  name.append(open);
  made.append(smallPicture(row.image));
  if (hasOverlays) made.append(smallPicture(row.overlay));
  const cells = { Path: name };
  if (hasLabels) cells.Label = element("td", describeLabel(row), row.label);
  cells.Score = number(row, "score", "score");
  if (hasPeaks) cells.Map = number(row, "peak");
  cells.Decision = element("td", describeDecision(row), row.decision);
  for (const [title, cell] of Object.entries(cells)) cell.dataset.title = title;
  made.append(...Object.values(cells));
  made.addEventListener("click", () => view(position));  // Enter on the button in it is a click, too
  return made;
}

function show() {
  const end = Math.min(state.first + pageLength(), state.chosen.length);
  const page = state.chosen.slice(state.first, end);
  table.tBodies[0].replaceChildren(...page.map((row, n) => line(row, state.first + n)));
  byId("count").textContent = page.length
    ? `${state.first + 1} to ${end} of ${state.chosen.length} images` +
      (state.chosen.length < rows.length ? `, chosen from ${rows.length}` : "")
    : "no image passes these filters";
  byId("back").disabled = state.first === 0;
  byId("on").disabled = end === state.chosen.length;
  for (const button of table.tHead.querySelectorAll("button")) {
    const sorted = button.dataset.key === state.key;
    button.closest("th").ariaSort = sorted ? (state.direction > 0 ? "ascending" : "descending") : "none";
  }
}

function sortBy(key) {
  state.direction = key === state.key ? -state.direction : key === "score" || key === "peak" ? -1 : 1;
  state.key = key;
  choose();
}

function turn(step) {
  state.first = Math.max(0, state.first + step * pageLength());
  show();
  table.scrollIntoView();
}

// --- viewer ---

function view(position) {
  if (position < 0 || position >= state.chosen.length) return;
  state.viewed = position;
  const row = state.chosen[position];
  byId("viewed").textContent = row.name;
  byId("facts").textContent = `score ${row.shown.score}, ${describeLabel(row)}, decision ${describeDecision(row)}`
    + (row.peak === null ? "" : `, map up to ${row.shown.peak}`);
  byId("shares").textContent = `In scores.csv: anomaly score ${row.score}` +
    (row.peak === null ? "" : `, highest value of the map ${row.peak}`) + ". Votes for the correct transformation, coarsest scale first: " +
    row.shares.map((share) => share === 0 || share >= 1e-3 ? share.toFixed(3) : share.toExponential(1)).join(", ");
  byId("lost").hidden = true;
  legend.hidden = contrast.hidden = !row.link;
  load(plain, row.plain || thumbnail(row));
  showMap(row);
  byId("previous").disabled = position === 0;
  byId("next").disabled = position === state.chosen.length - 1;
  if (!viewer.open) viewer.showModal();
}

// The map in the colours of the run, or in those that its own values span; these are made by the filter of the page.
function showMap(row) {
  const isOwn = contrast.ariaPressed === "true" && row.link !== null, span = Math.max(row.peak - row.floor, 1e-3);
  load(picture, isOwn ? row.plain : row.link);
  load(map, isOwn ? row.map : null);
  legend.replaceChildren(...runLegend.map((node) => node.cloneNode(true)));
  if (!isOwn) return;
  for (const part of document.querySelectorAll("#own [type=linear]")) {
    part.setAttribute("slope", 1 / span);
    part.setAttribute("intercept", -row.floor / span);
  }
  const [low, high] = legend.querySelectorAll(":scope > span:not(.scale)"), mark = legend.querySelector("i");
  low.textContent = "its lowest";
  high.textContent = "its highest, " + row.shown.peak;
  const place = (limit - row.floor) / span;
  if (mark) [mark.hidden, mark.style.left] = [place > 1 || place < 0, `${100 * place}%`];
}

function thumbnail(row) {
  return row.image && "data:image/jpeg;base64," + row.image;
}

function load(image, address) {
  image.hidden = !address;
  if (address) image.src = address;
}

function backToRow() {
  state.first = state.viewed - state.viewed % pageLength();
  show();
  table.tBodies[0].rows[state.viewed - state.first].querySelector("button").focus();
}

const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
viewer.addEventListener("keydown", (event) => {
  if (!(event.key in STEPS)) return;
  event.preventDefault();
  view(state.viewed + STEPS[event.key]);
});
viewer.addEventListener("close", backToRow);
for (const image of [picture, map]) {
  image.addEventListener("error", () => { image.hidden = true; byId("lost").hidden = false; });
}
plain.addEventListener("error", () => {
  const small = thumbnail(state.chosen[state.viewed]);
  load(plain, plain.src === small ? null : small);
});
for (const image of [plain, picture]) {
  image.addEventListener("load", () => {
    image.className = image.naturalWidth < image.clientWidth ? "enlarged" : "";
  });
}
contrast.addEventListener("click", () => {
  contrast.ariaPressed = contrast.ariaPressed !== "true";
  showMap(state.chosen[state.viewed]);
});
byId("previous").addEventListener("click", () => view(state.viewed - 1));
byId("next").addEventListener("click", () => view(state.viewed + 1));
byId("close").addEventListener("click", () => viewer.close());

// --- controls ---

for (const button of table.tHead.querySelectorAll("button")) {
  button.addEventListener("click", () => sortBy(button.dataset.key));
}
filters.addEventListener("input", choose);
filters.addEventListener("reset", () => setTimeout(choose));  // the fields are cleared after this event
filters.addEventListener("submit", (event) => event.preventDefault());
byId("back").addEventListener("click", () => turn(-1));
byId("on").addEventListener("click", () => turn(1));
for (const part of document.querySelectorAll(".warnings, #filtering")) part.open = !matchMedia("(max-width: 40rem)").matches;
if (!hasLabels) for (const part of document.querySelectorAll(".labelled")) part.hidden = true;
if (!hasOverlays) table.querySelector("th.overlay").remove();
if (!hasPeaks) table.querySelector("th.peak").remove();
choose();
