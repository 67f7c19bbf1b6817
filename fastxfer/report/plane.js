"use strict";
(() => {
  const figure = JSON.parse(document.getElementById("figure").textContent);
  const options = { displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  Plotly.newPlot("plot", figure.data, figure.layout, options).then(() => {
    document.documentElement.dataset.ready = "";
  });
})();
