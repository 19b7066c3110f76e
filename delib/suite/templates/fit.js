// A step fills its screen. Prose and what stands beside it are sized apart: short text is set larger, long text
// smaller; what would be too small to read scrolls.
const fit = (step) => {
  const wide = (element) => element.scrollWidth > element.clientWidth + 1;
  const fitting = (parts) =>
    parts.reduce((height, part) => height + part.offsetHeight + 24, 0) <= step.clientHeight + 24 &&
    !parts.some((part) => [...part.querySelectorAll(".html")].some(wide));
  const size = (parts, most, least) => {
    for (let percent = most; percent >= least; percent -= 4) {
      parts.forEach((part) => { part.style.fontSize = `${percent}%`; });
      if (fitting(parts)) return;
    }
  };
  const beside = step.querySelector(".outputs");
  size([...step.querySelectorAll(":scope > .prose")], beside ? 115 : 150, 68);
  size([...step.querySelectorAll(":scope > .seen")], 130, 54);
  step.querySelectorAll("math[display=block]").forEach((formula) => {
    formula.style.fontSize = "";
    for (let percent = 100; percent >= 52 && wide(formula); percent -= 4) formula.style.fontSize = `${percent}%`;
  });
};
