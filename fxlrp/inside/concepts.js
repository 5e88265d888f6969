(() => {
  const root = document.getElementById("ID");
  const heat = root.querySelector("input[name=heat]"), active = root.querySelector("input[name=active]");
  const show = () => {
    if (heat) root.classList.toggle("heat", heat.checked);
    root.querySelectorAll(".by-activation").forEach((row) => { row.hidden = !active.checked; });
  };
  [heat, active].forEach((box) => box && box.addEventListener("change", show));
  show();
})();
