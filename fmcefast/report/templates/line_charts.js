"use strict";
// Curves of several runs in one chart.

document.querySelectorAll(".line-chart").forEach((root) => {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const lines = (panel) => panel.lines.map(({name, values}, number) => ({name, y: decodeNumbers(values), kind: `line-${number % 5}`}));
  const panels = data.panels.map((panel) => ({...panel, lines: lines(panel)}));
  const longest = Math.max(...panels.flatMap((panel) => panel.lines.map((line) => line.y.length)));
  new Chart(root.querySelector(".chart"), {x: Float64Array.from({length: longest}, (_, i) => i + 1), xName: data.axis, panels, panelHeight: 240});
});
