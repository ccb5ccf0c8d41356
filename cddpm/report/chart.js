"use strict";
// Draws the figures of the page, in its colours, light or dark.
const places = document.querySelectorAll(".chart");
function tone(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
function template() {
  const axis = {
    gridcolor: tone("line"), linecolor: tone("line"), tickfont: { color: tone("soft") }, title: { standoff: 10 },
    showline: true, zeroline: false, automargin: true, nticks: 7, exponentformat: "power", minexponent: 5,
  };
  const legend = { orientation: "h", x: 0, y: 1, yanchor: "bottom", itemsizing: "constant" };
  const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: tone("ink") };
  const hoverlabel = { bgcolor: tone("panel"), bordercolor: tone("soft"), font, align: "left" };
  const layout = {
    font,
    paper_bgcolor: "rgba(0, 0, 0, 0)", plot_bgcolor: "rgba(0, 0, 0, 0)",
    margin: { l: 10, r: 12, t: 10, b: 10 }, xaxis: axis, yaxis: axis, legend, hoverlabel, hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  };
  return { layout };
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const place of places) if (place.layout) Plotly.relayout(place, { template: template() });
});
async function draw() {
  for (const place of places) {
    const { data, layout } = JSON.parse(place.nextElementSibling.textContent);
    await Plotly.newPlot(place, data, { ...layout, template: template() }, { displayModeBar: false, responsive: true });
    await new Promise((resume) => setTimeout(resume)); // the page answers in between
  }
}
draw();
