"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);

// Charts: plotly's JSON, in the page's own colours.
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { ground: read("--ground"), ink: read("--ink"), line: read("--line"),
    accent: read("--accent"), bar: read("--bar"), pale: read("--pale") };
}

function colourLayout(layout, colours) {
  const axis = { gridcolor: colours.line, linecolor: colours.line, zeroline: false };
  return { ...layout, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { family: "system-ui, sans-serif", size: 13, color: colours.ink },
    hoverlabel: { bgcolor: colours.ground, bordercolor: colours.line,
      font: { color: colours.ink } },
    xaxis: { ...layout.xaxis, ...axis }, yaxis: { ...layout.yaxis, ...axis },
    shapes: (layout.shapes || []).map((shape) => (
      { ...shape, line: { ...shape.line, color: colours.ink } })),
  };
}

function drawCharts() {
  const colours = readColours();
  // Without a delay, so that two quick clicks are two clicks.
  const config = { displayModeBar: false, responsive: true, doubleClick: false, doubleClickDelay: 0 };
  const { classes, confusion } = data.charts;
  const bar = { ...classes.data[0], marker: { color: colours.bar } };
  const bounds = (values) => values.map((value) => value ?? NaN); // null would be a bar of 0
  bar.error_x = { ...bar.error_x, color: colours.ink, array: bounds(bar.error_x.array),
    arrayminus: bounds(bar.error_x.arrayminus) };
  Plotly.react("chart-classes", [bar], colourLayout(classes.layout, colours), config);
  const map = { ...confusion.data[0], colorscale: [[0, colours.pale], [1, colours.accent]] };
  const layout = colourLayout(confusion.layout, colours);
  for (const axis of [layout.xaxis, layout.yaxis]) axis.showgrid = false;
  return Plotly.react("chart-confusion", [map], layout, config);
}

// Cards: an image under its layers, with a slider between prediction and truth.
function makeCard(name, note, explained = false) {
  const image = data.images[name];
  const card = find("card").content.cloneNode(true).firstElementChild;
  const stage = card.querySelector(".stage");
  stage.classList.toggle("small", Math.max(...image.size) < 300);
  stage.style.aspectRatio = image.size.join(" / ");
  for (const layer of ["photo", "prediction", "truth", "errors"]) {
    const picture = card.querySelector("." + layer);
    picture.src = image[layer];
    picture.alt = image.texts[layer];
  }
  const slider = card.querySelector("input");
  const move = () => {
    stage.style.setProperty("--at", slider.value + "%");
    slider.setAttribute("aria-valuetext", `prediction on the left ${slider.value} %`);
  };
  slider.setAttribute("aria-label", `${name}: border between prediction and truth`);
  slider.addEventListener("input", move);
  move();
  card.querySelector("b").textContent = name;
  const iou = image.iou === null ? "" : `mIoU\u00a0${(100 * image.iou).toFixed(0)}\u00a0%`;
  card.querySelector("figcaption span").textContent = [iou, note].filter(Boolean).join(", ");
  for (const index of image.classes) {
    if (index === 0) continue;
    const entry = document.createElement("li");
    const square = document.createElement("i");
    square.style.background = data.colours[index];
    entry.append(square, data.names[index]);
    card.querySelector(".legend").append(entry);
  }
  const explain = card.querySelector(".explain");
  if (explained && image.command) {
    const [truth, prediction] = image.mistake.map((index) => data.names[index]);
    explain.querySelector("p").textContent = `Largest mistake: ${truth} named ${prediction}`;
    explain.querySelector("code").textContent = image.command;
  } else explain.remove();
  return card;
}

function showCell(truth, prediction) {
  const key = `${truth},${prediction}`;
  const found = data.cells[key] || [];
  const [from, to] = [data.names[truth], data.names[prediction]];
  const what = truth === prediction ? `${from}, named rightly` : `${from} named ${to}`;
  find("cell-title").textContent = found.length ? what : `${what}: never`;
  const shown = found.filter(([name]) => name in data.images);
  const cards = shown.map(([name, pixels]) => makeCard(name, `${pixels.toLocaleString("en")}\u00a0pixels`));
  find("cell-cards").replaceChildren(...cards);
  const rest = found.filter(([name]) => !(name in data.images));
  find("cell-rest").textContent = rest.length
    ? "Not among this page's pictures: "
      + rest.map(([name, pixels]) => `${name} (${pixels.toLocaleString("en")} pixels)`).join(", ")
    : "";
  for (const button of document.querySelectorAll("[data-cell]")) {
    button.setAttribute("aria-pressed", String(button.dataset.cell === key));
  }
}

drawCharts().then((chart) => chart.on("plotly_click", (event) => {
  const [row, column] = event.points[0].pointIndex;
  const start = data.names.length - event.points[0].data.y.length; // without a background, 1
  showCell(start + row, column);
}));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);

for (const button of document.querySelectorAll("[data-cell]")) {
  button.addEventListener("click", () => showCell(...button.dataset.cell.split(",").map(Number)));
}
for (const choice of document.querySelectorAll(".views input")) {
  choice.addEventListener("change", () => {
    document.body.dataset.view = choice.value;
    for (const other of document.querySelectorAll(".views input")) {
      other.checked = other.value === choice.value;
    }
  });
}
for (const list of ["worst", "best"]) {
  if (find(list)) find(list).replaceChildren(...data[list].map((name) => makeCard(name, "", list === "worst")));
}
if (data.first.length) showCell(...data.first);
