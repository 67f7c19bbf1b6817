// ---- for `fastxfer report --figures`: every figure as the page shows it when it opens ------------------------------------
window.figures = () => {
  while (unseen.length) unseen.shift()();
  return [...panels.values()].map((panel) => ({ name: panel.name, ...drawingOf(panel) }));
};
