"use strict";
// Every chart's data stands beside it as JSON; nothing is fetched.
for (const holder of document.querySelectorAll("[data-chart]")) {
  const chart = JSON.parse(document.getElementById(holder.dataset.chart).textContent);
  Plotly.newPlot(holder, chart.data, chart.layout, {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  });
}
