// Copies what the playground uses of other packages, and their licences, from node_modules to static/lib (`make page`).
import { copyFileSync, mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** Each file that the page loads, and where its package has it. */
const FILES = {
  "preact.js": "htm/preact/standalone.module.js",
  "eventsource-parser.js": "eventsource-parser/dist/index.js",
  "uplot.js": "uplot/dist/uPlot.esm.js",
  "uplot.css": "uplot/dist/uPlot.min.css",
  "d3-hierarchy.js": "d3-hierarchy/dist/d3-hierarchy.min.mjs",
};
/** Packages of which a file holds something: htm's holds Preact, too. */
const LICENSED = ["d3-hierarchy", "eventsource-parser", "htm", "preact", "uplot"];
/** Where tsc finds the types of each; they are neither served nor shipped. */
const TYPES = {
  "preact.d.ts": 'export * from "htm/preact";\nexport { createContext } from "preact";\n',
  "eventsource-parser.d.ts": 'export * from "eventsource-parser";\n',
  "uplot.d.ts": 'export { default } from "uplot";\n',
  "d3-hierarchy.d.ts": 'export * from "d3-hierarchy";\n',
};

const packages = fileURLToPath(new URL("../node_modules/", import.meta.url));
const library = fileURLToPath(new URL("static/lib", import.meta.url));
const fresh = `${packages}.playground`;

rmSync(fresh, { recursive: true, force: true });
mkdirSync(fresh);
mkdirSync(new URL("static/", import.meta.url), { recursive: true });
for (const [name, source] of Object.entries(FILES)) copyFileSync(packages + source, `${fresh}/${name}`);
for (const name of LICENSED) copyFileSync(`${packages}${name}/LICENSE`, `${fresh}/LICENSE.${name}.txt`);
for (const [name, text] of Object.entries(TYPES)) writeFileSync(`${fresh}/${name}`, text);
// Only when all are there: a server that runs never sees some of them.
rmSync(library, { recursive: true, force: true });
renameSync(fresh, library);
