{# What moves an explorer, whose id is `name`; inlined, so that it works wherever the explorer is shown. #}
(() => {
const root = document.getElementById("{{ name }}"), slider = root.querySelector("input"), button = root.querySelector("button");
const frames = root.querySelectorAll(".frame"), shown = root.querySelector("output"), said = root.querySelector(".said");
let playing = 0;
const move = () => frames.forEach((frame, i) => {
  frame.hidden = i !== +slider.value;
  if (!frame.hidden) {
    shown.textContent = frame.dataset.label;
    if (said) said.textContent = `${frame.dataset.caption}.`;
    slider.setAttribute("aria-valuetext", frame.dataset.label);
  }
});
const stop = () => { playing = clearInterval(playing); button.textContent = "▶"; };
const step = () => { if (slider.value === slider.max) stop(); else { slider.stepUp(); move(); } };
slider.addEventListener("input", () => { stop(); move(); });
button.addEventListener("click", () => {
  if (playing) return stop();
  if (slider.value === slider.max) { slider.value = 0; move(); }
  button.textContent = "❚❚";
  playing = setInterval(step, 900);
});
button.hidden = frames.length < 2;
move();
})()
