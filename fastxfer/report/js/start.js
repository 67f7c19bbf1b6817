// ---- start ------------------------------------------------------------------------------------------------------------
function figures() {
  curves();
  methods();
  outcomes();
  learning();
  costsAgainst();
  drawWaiting();
}
function update() {
  fillFilters();
  tellSelection();
  figures();
  fillTable();
}
legends();
tableHead();
update();
performance.mark("figures");
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
byId("csv").addEventListener("click", saveCells);

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
matchMedia("print").addEventListener("change", () => { if (document.documentElement.dataset.sheet === undefined) { redraw(); drawAll(); } });
addEventListener("beforeprint", () => { drawAll(); document.querySelectorAll("details").forEach((d) => { d.dataset.was = d.open; d.open = true; }); });
addEventListener("afterprint", () => { document.querySelectorAll("details").forEach((d) => { d.open = d.dataset.was === "true"; }); });
let pageWidth = innerWidth, pause = 0;
addEventListener("resize", () => {
  if (innerWidth === pageWidth) return; // a phone's address bar comes and goes
  pageWidth = innerWidth;
  clearTimeout(pause);
  pause = setTimeout(redraw, 120);
});
