"use strict";
(() => {
  const figure = JSON.parse(document.getElementById("figure").textContent);
  // Plotly's own button would send the points to a server of Plotly's: it is gone, and so is the address.
  const options = {
    displaylogo: false,
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  Plotly.newPlot("plot", figure.data, figure.layout, options).then(() => {
    document.documentElement.dataset.ready = "";
  });
})();
