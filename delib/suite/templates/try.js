const given = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const PATIENCE = 15000;  // milliseconds: whoever writes a loop without end gets the page back
let worker, ready = false, busy = false, wanted = false, timer;

function start() {
  ready = busy = false;
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => data.ready ? (ready = true, go()) : done(data);
  worker.onerror = event => { at("state").textContent = `Python could not be loaded: ${event.message || "a file is missing"}`; };
  worker.postMessage(given);
}

function go() {
  wanted = true;
  if (!ready || busy) return;
  wanted = false, busy = true;
  at("state").textContent = "Encoding …";
  timer = setTimeout(stop, PATIENCE);
  worker.postMessage({ code: at("code").value, sparsity: at("sparsity").value / 100, bits: Number(at("bits").value) });
}

function stop() {
  worker.terminate();
  at("wrong").textContent = "It took more than 15 seconds and was stopped: change the function, then run it.";
  at("state").textContent = "Python is being loaded again …";
  start();
}

function done(result) {
  clearTimeout(timer);
  busy = false;
  at("wrong").textContent = result.wrong || "";
  at("state").textContent = result.wrong ? "" : "Done.";
  if (!result.wrong) show(result);
  if (wanted) go();
}

function show({ grid, levels, bytes, bound, error, same }) {
  const rows = grid.length, columns = grid[0].length, whole = 4 * rows * columns, kept = grid.flat().filter(Boolean).length;
  const number = (x, digits = 0) => x.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  at("dense").textContent = number(whole);
  at("bound").textContent = number(bound);
  at("coded").textContent = number(bytes);
  at("ratio").textContent = `${number(whole / bytes, 1)}×`;
  at("error").textContent = `${number(100 * error, 1)}%`;
  at("same").textContent = same ? "yes" : "no";
  at("seen").textContent = `${number(kept)} survivors at ${levels.length} levels: blue raises, red lowers an output; zeros are blank.`;
  const pen = at("weights").getContext("2d"), picture = pen.createImageData(columns, rows);
  const largest = Math.max(...levels.map(Math.abs));
  grid.flat().forEach((k, i) => {
    const value = k ? levels[k - 1] / largest : 0, pale = k ? 200 * (1 - Math.sqrt(Math.abs(value))) : 255;
    picture.data.set(!k ? [255, 255, 255, 255] : value > 0 ? [pale, 60 + 0.7 * pale, 178, 255] : [213, 30 + 0.7 * pale, pale, 255], 4 * i);
  });
  pen.putImageData(picture, 0, 0);
}

for (const [id, unit] of [["sparsity", "%"], ["bits", " bits"]]) {
  at(id).addEventListener("input", () => {
    const said = id === "bits" && at(id).value === "1" ? "1 bit" : at(id).value + unit;
    at(id).setAttribute("aria-valuetext", said);
    at(id).nextElementSibling.textContent = said;
    go();
  });
}
for (const preset of document.querySelectorAll("[data-code]")) {
  preset.addEventListener("click", () => { at("code").value = preset.dataset.code; go(); });
}
at("run").addEventListener("click", go);
at("code").addEventListener("keydown", event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) go(); });
start();
