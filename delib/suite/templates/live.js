{# ipywidgets' sliders tell a screen reader the number of a stop, not its name: here they say what stands beside them. #}
if (!window.delibTells) {
  const tell = () => document.querySelectorAll(".delib-live .widget-slider").forEach(box => {
    const handle = box.querySelector(".noUi-handle"), label = box.querySelector(".widget-label");
    const said = box.querySelector(".widget-readout")?.textContent;
    if (!handle || !said) return;
    if (label && handle.getAttribute("aria-label") !== label.textContent) handle.setAttribute("aria-label", label.textContent);
    if (handle.getAttribute("aria-valuetext") !== said) handle.setAttribute("aria-valuetext", said);
  });
  window.delibTells = new MutationObserver(tell);
  const watched = { subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ["aria-valuetext"] };
  window.delibTells.observe(document.body, watched);
}
