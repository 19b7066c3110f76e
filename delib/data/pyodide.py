"""Python for the browser: Pyodide's core, with the standard library and nothing else, for the page that runs it."""

from __future__ import annotations

from delib.data.download import FileSet, npm_package, web

VERSION = "314.0.7"
CHECKSUMS = {
    "pyodide.mjs": "6f1d60f7bf529beb300f0f47983c921d3982363640ba20af0e38efdddbc66109",
    "pyodide.asm.mjs": "f7cdc8ece80678ceb712f8e65ebe6d3a83203a180c399865f49612a051693635",
    "pyodide.asm.wasm": "cc36e3cab04fdfc9a63ff13eb52eae2b911bf46c025cc7b281f394bd3de1d5e6",
    "python_stdlib.zip": "fa1957e5777068fc4f7437f96d860ae2fbe9c19732ba06c84e004ec16dd7dd7a",
    "pyodide-lock.json": "5dc2fc119108bc148c7457dc86e7675b5c87e1cafd420b9c34c1eaef7b36c010",
}
PYODIDE_FILES = FileSet(
    "pyodide",
    CHECKSUMS,
    {
        f"npm package pyodide@{VERSION}": npm_package(
            f"pyodide@{VERSION}", "66b7949e5a0cba2250b586d7e368bf12fb482800748d182c4618254b685ffaa0", "package/"
        ),
        "Pyodide's CDN": web({name: f"https://cdn.jsdelivr.net/npm/pyodide@{VERSION}/{name}" for name in CHECKSUMS}),
    },
    optional=True,
)
FILE_SETS = {PYODIDE_FILES.name: PYODIDE_FILES}
