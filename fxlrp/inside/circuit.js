(() => {
  const root = document.getElementById("ID"), svg = root.querySelector("svg");
  const edges = [...svg.querySelectorAll(".edge")], rows = [...root.querySelectorAll("tbody tr")];
  const slider = root.querySelector("input"), said = root.querySelector("output.count"), about = root.querySelector("output.about");
  let chosen = null;
  const touches = (e) => chosen !== null && (e.dataset.from === chosen || e.dataset.to === chosen);
  const show = () => {
    const most = Number(slider.value);
    said.textContent = `${most} of ${edges.length}`;
    edges.forEach((e) => { e.style.display = Number(e.dataset.rank) < most ? "" : "none"; e.classList.toggle("on", touches(e)); });
    rows.forEach((r) => { r.hidden = Number(r.dataset.rank) >= most || (chosen !== null && !touches(r)); });
    svg.classList.toggle("chosen", chosen !== null);
  };
  const choose = (node) => {
    chosen = node === null || chosen === node.dataset.node ? null : node.dataset.node;
    about.textContent = chosen === null ? "" : `${node.dataset.name}: relevance ${node.dataset.relevance}`;
    show();
  };
  svg.querySelectorAll(".node").forEach((node) => {
    node.addEventListener("click", (e) => { e.stopPropagation(); choose(node); });
    node.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); choose(node); } });
  });
  svg.addEventListener("click", () => { if (chosen !== null) choose(null); });
  slider.addEventListener("input", show);
  show();
})();
