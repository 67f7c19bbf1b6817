// ---- start ------------------------------------------------------------------------------------------------------------
const FIGURES = [curves, matrices, rankings, crossingFigures, methods, nearness, gainFigures, paperFigure, agreementFigure, outcomes, learning, costsAgainst]; // as they stand on the page
function update() {
  fillFilters();
  tellSelection();
  FIGURES.forEach((figure) => figure());
  drawWaiting();
  fillTable();
}
const unseen = FIGURES.slice(1);
/** At first what is in sight, the rest figure by figure while the reader reads. */
function begin() {
  legends();
  tableHead();
  fillFilters();
  tellSelection();
  FIGURES[0]();
  drawInSight();
  fillTable();
  performance.mark("figures");
  const next = () => {
    const figure = unseen.shift();
    if (figure) { figure(); later(next); } else drawWaiting();
  };
  later(next);
}
/** Paper shows all of it. */
function complete() {
  while (unseen.length) unseen.shift()();
  drawAll();
}
begin();
for (const controls of document.querySelectorAll("form.controls")) {
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("change", (event) => {
    state[event.target.id.slice(2)] = event.target.value;
    update();
  });
}
byId("all").addEventListener("click", showAll);
document.addEventListener("click", ({ target }) => { if (target.matches(".name") && data.labels.includes(target.textContent)) only(target.textContent); });
byId("table-filter").addEventListener("input", () => { limit = PAGE; fillTable(); });
byId("more").addEventListener("click", () => { limit = Infinity; fillTable(); });
for (const button of document.querySelectorAll("[data-save]")) {
  button.addEventListener("click", () => download(button.dataset.save, "text/plain", button.closest("p").nextElementSibling.textContent));
}
byId("csv").addEventListener("click", saveCells);

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
matchMedia("print").addEventListener("change", () => { if (document.documentElement.dataset.sheet === undefined) { redraw(); complete(); } });
addEventListener("beforeprint", () => { complete(); document.querySelectorAll("details").forEach((d) => { d.dataset.was = d.open; d.open = true; }); });
addEventListener("afterprint", () => { document.querySelectorAll("details").forEach((d) => { d.open = d.dataset.was === "true"; }); });
let pageWidth = innerWidth, pause = 0;
addEventListener("resize", () => {
  if (innerWidth === pageWidth) return; // a phone's address bar comes and goes
  pageWidth = innerWidth;
  clearTimeout(pause);
  pause = setTimeout(redraw, 120);
});
