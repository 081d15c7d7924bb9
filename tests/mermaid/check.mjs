// Reads the golden diagrams with Mermaid and Graphviz themselves, and compares what these understood with the JSON
// form of the same diagram: every node once, with its label as text, its link and its colour; every edge once.
// Called by `.ci/run` where npm is: `npm install` here, then `node check.mjs`.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { JSDOM } from "jsdom";
import { Graphviz } from "@hpcc-js/wasm-graphviz";

// Mermaid looks for a page while it is loaded.
const { window } = new JSDOM("");
Object.assign(globalThis, { window, document: window.document });
const { default: mermaid } = await import("mermaid");
mermaid.initialize({ startOnLoad: false, securityLevel: "strict" });
const graphviz = await Graphviz.load();

// The text that a label shows: Mermaid keeps entities as marks until it draws, as HTML.
function shown(label) {
  const html = label.replace(/ﬂ°°/g, "&#").replace(/ﬂ°/g, "&").replace(/¶ß/g, ";");
  const page = new JSDOM(`<p>${html}</p>`).window.document.querySelector("p");
  page.querySelectorAll("br").forEach((end) => end.replaceWith("\n"));
  assert.equal(page.children.length, 0, `a label has elements: ${html}`);
  return page.textContent;
}

// What of a text reaches a label: quotes are single ones in Mermaid, and what has no width or turns the text is a mark.
function seen(label, single) {
  const hidden = /[\u0000-\u0008\u000b-\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
  const text = label.replace(/\t/g, " ").replace(/\r/g, "\n").replace(hidden, "\ufffd");
  return single ? text.replace(/"/g, "'") : text;
}

// Lines lose the spaces at their ends on the way, and empty ones are not drawn.
const trimmed = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean).join("\n");

function compare(name, wanted, found, single) {
  assert.equal(found.nodes.size, wanted.nodes.length, `${name}: nodes`);
  for (const node of wanted.nodes) {
    const is = found.nodes.get(node.id);
    assert.ok(is, `${name}: ${node.id}`);
    assert.equal(trimmed(is.label), trimmed(seen(node.label, single)), `${name}: label of ${node.id}`);
    assert.equal(is.url, node.url, `${name}: link of ${node.id}`);
    assert.equal(is.style, node.style, `${name}: colour of ${node.id}`);
  }
  const ends = (edges) => edges.map((e) => `${e.source_id} ${e.target_id} ${e.label ?? ""}`).sort();
  assert.deepEqual(ends(found.edges), ends(wanted.edges), `${name}: edges`);
}

async function byMermaid(text) {
  const parsed = await mermaid.parse(text);
  assert.equal(parsed.diagramType, "flowchart-v2");
  assert.deepEqual(parsed.config, {}, "a diagram sets nothing");
  const { db } = await mermaid.mermaidAPI.getDiagramFromText(text);
  assert.equal(db.getSubGraphs().length, 1);
  const nodes = new Map();
  for (const [id, vertex] of db.getVertices()) {
    assert.equal(vertex.haveCallback ?? false, false, `${id} calls a function`);
    const style = vertex.styles.length ? `${vertex.styles.join(";")};` : undefined;
    nodes.set(id, { label: shown(vertex.text), url: vertex.link, style });
  }
  const edges = db.getEdges().map((e) => ({ source_id: e.start, target_id: e.end, label: e.text || undefined }));
  return { nodes, edges, title: shown(db.getSubGraphs()[0].title), direction: db.getDirection() };
}

function byGraphviz(text) {
  const drawn = graphviz.layout(text, "svg", "dot");
  const page = new window.DOMParser().parseFromString(drawn, "image/svg+xml");
  assert.equal(page.querySelector("script, parsererror"), null);
  const texts = (of) => [...of].filter((e) => e.localName === "text").map((e) => e.textContent).join("\n");
  const nodes = new Map();
  for (const node of page.querySelectorAll("g.node")) {
    const fill = node.querySelector("polygon").getAttribute("fill");
    nodes.set(node.querySelector("title").textContent, {
      label: texts(node.querySelectorAll("text")),
      url: node.querySelector("a")?.getAttribute("xlink:href") ?? undefined,
      style: fill === "none" ? undefined : `fill:${fill};`,
    });
  }
  const edges = [...page.querySelectorAll("g.edge")].map((edge) => {
    const [source_id, target_id] = edge.querySelector("title").textContent.split("->");
    return { source_id, target_id, label: texts(edge.querySelectorAll("text")) || undefined };
  });
  const title = texts(page.querySelector("g.graph").children);
  const { rankdir } = JSON.parse(graphviz.layout(text, "json", "dot"));
  return { nodes, edges, title, direction: rankdir };
}

const folder = join(dirname(fileURLToPath(import.meta.url)), "golden");
const names = readdirSync(folder).filter((file) => file.endsWith(".json")).map((file) => file.slice(0, -5));
assert.ok(names.length >= 4, "the golden files are gone");
for (const name of names) {
  const read = (end) => readFileSync(join(folder, `${name}.${end}`), "utf8");
  const wanted = JSON.parse(read("json"));
  for (const [language, found, single] of [
    ["mermaid", await byMermaid(read("mmd")), true],
    ["graphviz", byGraphviz(read("dot")), false],
  ]) {
    compare(`${name} (${language})`, wanted, found, single);
    assert.equal(found.title, wanted.title);
    assert.equal(found.direction === "TB" ? "TD" : found.direction, wanted.direction);
  }
}
// And it notices what is not a diagram.
await assert.rejects(mermaid.parse('graph TD\n  a["x"]"]'));
assert.throws(() => graphviz.layout('digraph { a [label="q"x"] }', "svg", "dot"));
console.log(`${names.length} diagrams are read as they are meant, by Mermaid and by Graphviz ${graphviz.version()}`);
