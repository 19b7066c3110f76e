(() => {
  const root = document.documentElement, all = (selector) => [...document.querySelectorAll(selector)];

  // Code is folded; one switch opens all of it, and remembers where the browser lets it.
  const stored = (value) => {
    try {
      return value === undefined ? localStorage.getItem("delib-code") : localStorage.setItem("delib-code", value);
    } catch { return null; }
  };
  const code = document.getElementById("code");
  const showCode = (open) => {
    code.setAttribute("aria-pressed", open);
    all("details.code").forEach((cell) => { cell.open = open; });
  };
  code.hidden = !document.querySelector("details.code");
  code.addEventListener("click", () => {
    const open = code.getAttribute("aria-pressed") !== "true";
    showCode(open);
    stored(open ? "open" : "folded");
  });
  if (stored() === "open") showCode(true);

  // The table of contents marks the section being read; on narrow screens it begins folded.
  const headings = all("h2[id]"), links = all(".contents a");
  const mark = () => {
    const passed = headings.filter((heading) => heading.getBoundingClientRect().top < innerHeight / 3).length;
    links.forEach((link, i) => {
      if (i === passed - 1) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
  const contents = document.querySelector(".contents details"), wide = matchMedia("(min-width: 60rem)");
  const unfold = () => { if (contents) contents.open = wide.matches; };
  wide.addEventListener("change", unfold);
  unfold();

  // Whatever scrolls sideways can be reached by the keyboard.
  const reachable = () => all("pre, .html, math[display=block], .scroll").forEach((element) => {
    if (element.scrollWidth > element.clientWidth || element.scrollHeight > element.clientHeight + 1) element.tabIndex = 0;
    else element.removeAttribute("tabindex");
  });
  addEventListener("resize", reachable);
  document.addEventListener("toggle", reachable, true);
  reachable();

  // Presenting: one step of one section a screen.
  const button = document.getElementById("present"), counter = document.querySelector(".counter");
  const steps = all(".step").filter((step) => step.querySelector(".prose, .outputs"));
  let at = -1;
  const show = (wanted) => {
    at = Math.max(0, Math.min(steps.length - 1, wanted));
    all(".part.now, .step.now").forEach((element) => element.classList.remove("now"));
    steps[at].classList.add("now");
    steps[at].closest(".part").classList.add("now");
    counter.textContent = `${at + 1} / ${steps.length}`;
    scrollTo(0, 0);
    fit(steps[at]);
    reachable();
  };
  const begin = () => {
    const first = scrollY < 1 ? 0 : steps.findIndex((step) => step.getBoundingClientRect().bottom > innerHeight / 3);
    root.classList.add("presenting");
    counter.hidden = false;
    showCode(false);
    show(first);
    root.requestFullscreen?.().catch(() => {});
  };
  const end = () => {
    const step = steps[at];
    root.classList.remove("presenting");
    counter.hidden = true;
    all(".step > *, .step math").forEach((part) => { part.style.fontSize = ""; });
    if (document.fullscreenElement) document.exitFullscreen();
    showCode(stored() === "open");
    step.closest(".part").scrollIntoView();
    at = -1;
    reachable();
  };
  const scrolls = (by) => {
    const step = steps[at], before = step.scrollTop;
    step.scrollTop += by * step.clientHeight * 0.8;
    return Math.abs(step.scrollTop - before) > 1;
  };
  const go = (by) => { if (!scrolls(by)) show(at + by); };
  const keys = {
    ArrowRight: () => go(1), PageDown: () => go(1), " ": () => go(1), ArrowLeft: () => go(-1), PageUp: () => go(-1),
    Home: () => show(0), End: () => show(steps.length - 1), Escape: end, p: end, c: () => showCode(!document.querySelector(".now details.code")?.open),
    f: () => (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen?.()),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length > 1 ? event.key : event.key.toLowerCase();
    if (at < 0) {
      if (key === "p" && !event.target.closest("input, button, select, textarea")) begin();
      return;
    }
    // A slider keeps its own keys, a button its space bar.
    if (event.target.matches("input") && key !== "Escape" && !key.startsWith("Page")) return;
    if (event.target.matches("button, summary, a") && key === " ") return;
    if (keys[key]) { event.preventDefault(); keys[key](); }
  });
  let filled = false;  // the browser's own Escape leaves the full screen without telling which key it was
  document.addEventListener("fullscreenchange", () => {
    const left = filled && !document.fullscreenElement;
    filled = !!document.fullscreenElement;
    if (left && at >= 0) end();
    else if (at >= 0) fit(steps[at]);
  });
  addEventListener("resize", () => { if (at >= 0) fit(steps[at]); });
  button.addEventListener("click", begin);
  button.hidden = steps.length < 2;
})();
