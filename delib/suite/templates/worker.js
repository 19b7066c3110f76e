// Python in a thread of its own, so that the page stays awake while it works.
import { loadPyodide } from "./pyodide/pyodide.mjs";

const RUN = `
def run(code, sparsity, bits):
    own = {}
    exec(compile(code, "your code", "exec"), own)
    context = own["context"]
    grid, levels, error = quantised(weights, sparsity, bits)
    rows, columns = len(grid), len(grid[0])
    data = encode(grid, bits, context)
    same = decode(data, rows, columns, bits, context) == grid
    flat = [level for row in grid for level in row]
    counts = [flat.count(level) for level in range(len(levels) + 1)]
    bound = sum(-n * log2(n / len(flat)) for n in counts if n) / 8
    return json.dumps({"grid": grid, "levels": levels, "bytes": len(data), "bound": bound, "error": error, "same": same})
`;
let python;

self.onmessage = async ({ data }) => {
  if (data.coder) {
    python = await loadPyodide();
    python.runPython("import json");
    python.runPython(data.coder);
    python.runPython(RUN);
    python.globals.set("weights", python.runPython(`json.loads(${JSON.stringify(JSON.stringify(data.weights))})`));
    self.postMessage({ ready: true });
    return;
  }
  try {
    const run = python.globals.get("run");
    self.postMessage(JSON.parse(run(data.code, data.sparsity, data.bits)));
  } catch (error) {
    const lines = String(error.message || error).trim().split("\n");
    const where = lines.filter(line => line.includes('"your code"')).pop();
    const line = where && where.match(/line \d+/);
    self.postMessage({ wrong: lines.pop() + (line ? ` (${line[0]})` : "") });
  }
};
