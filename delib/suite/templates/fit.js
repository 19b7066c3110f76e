// A step fills its screen: what is longer is set smaller, and scrolls where it would become too small to read.
const fit = (step) => {
  for (let size = 100; size >= 60; size -= 4) {
    step.style.fontSize = `${size}%`;
    if (step.scrollHeight <= step.clientHeight + 1) return;
  }
};
