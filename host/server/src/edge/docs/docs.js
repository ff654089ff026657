// The documentation page: fetches the server's description with the caller's key, and shows what
// stands there and nothing else. The key is held by its field alone.

import { element, inline, prose, section } from "./dom.js";
import { credentialOf, tryIt } from "./request.js";
import { exampleOf, json, limits, parse, resolve, show, typeOf } from "./schema.js";

const METHODS = ["get", "post", "put", "patch", "delete", "head", "options"];

/// Paths are relative to this page, which may be behind the prefix of a reverse proxy.
const WHOLE_SERVER = "openapi.json";

/// The catalogue, which the admin API does not have.
const MODELS = "models";

const find = (id) => document.getElementById(id);
const key = () => find("key").value;

/// Counts what was asked for, so that an answer that comes late does not replace a newer one.
let asked = 0;

find("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  await open(WHOLE_SERVER, true);
});
find("scope").addEventListener("change", () => open(find("scope").value, false));
find("filter").addEventListener("input", filter);
window.addEventListener("hashchange", reveal);

/// Fetch a document and show it; with the models there are, if they may be others now.
async function open(path, isNewCaller) {
  asked += 1;
  const mine = asked;
  say("Loading …");
  try {
    const root = await fetchJson(path);
    const hasModels = Object.keys(root.paths ?? {}).some((known) => known.slice(1) === MODELS);
    const models = isNewCaller && hasModels ? await fetchJson(MODELS) : undefined;
    if (mine !== asked) return;
    if (isNewCaller) offerModels(models?.models ?? []);
    render(root);
    say("");
    reveal();
  } catch (error) {
    if (mine === asked) say(error.message, true);
  }
}

async function fetchJson(path) {
  let response;
  try {
    // The header is in the document that is not there yet; every server of this kind has it.
    response = await fetch(path, { headers: { "X-API-Key": key() }, credentials: "omit", cache: "no-store" });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (response.ok) return parse(await response.text());
  if (response.status === 401) throw new Error("The server does not know this key.");
  if (response.status === 403) throw new Error("This key may not read the description.");
  throw new Error(`The server answered ${response.status} to ${path}.`);
}

function say(text, isError = false) {
  const status = find("status");
  status.textContent = text;
  status.classList.toggle("failure", isError);
}

/// The models to choose from, each of which has a document of its own.
function offerModels(models) {
  const options = models.map(({ model }) => element("option", { value: `models/${encodeURIComponent(model)}/openapi.json` }, `Model ${model}`));
  find("scope").replaceChildren(element("option", { value: WHOLE_SERVER }, "All endpoints"), ...options);
  shownModels = models;
}

let shownModels = [];

function render(root) {
  const info = root.info ?? {};
  find("title").textContent = info.title ?? "API";
  document.title = info.title ?? "API";
  find("version").textContent = info.version ?? "";
  find("version").hidden = !info.version;
  document.querySelector("nav").hidden = false;

  const groups = group(root);
  find("content").replaceChildren(
    overview(root, info),
    ...groups.map((tag) => element("section", { class: "group", "aria-label": tag.name }, element("h2", {}, tag.name), prose(tag.description), tag.operations.map((operation) => card(root, operation)))),
  );
  find("index").replaceChildren(...groups.map(indexOf));
  filter();
}

/// What the server says of itself, and the models that are there.
function overview(root, info) {
  const credential = credentialOf(root);
  const way = credential ? element("p", { class: "quiet" }, "Requests carry the key in the header ", element("code", {}, `${credential.header}: ${credential.prefix}$KEY`), ".") : undefined;
  const rows = shownModels.map((entry) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, entry.model),
      element("td", {}, (entry.versions ?? []).map((row) => element("span", { class: `badge state-${row.state === "ready" ? "ready" : "other"}` }, `${row.version} ${row.suspended ? "suspended" : row.state}${row.version === entry.stable ? ", stable" : ""}`))),
    ),
  );
  const head = element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Model"), element("th", { scope: "col" }, "Versions")));
  const table = rows.length ? element("table", { id: "models" }, head, element("tbody", {}, rows)) : undefined;
  return element("section", { class: "card" }, prose(info.summary), prose(info.description), way, table);
}

/// The operations by their first tag, in the document's order.
function group(root) {
  const groups = new Map();
  for (const { name, description } of root.tags ?? []) groups.set(name, { name, description, operations: [] });
  for (const [path, item] of Object.entries(root.paths ?? {})) {
    const shared = resolve(root, item) ?? {};
    for (const method of METHODS.filter((method) => shared[method])) {
      const operation = describe(root, path, method, shared);
      if (!groups.has(operation.tag)) groups.set(operation.tag, { name: operation.tag, operations: [] });
      groups.get(operation.tag).operations.push(operation);
    }
  }
  return [...groups.values()].filter(({ operations }) => operations.length);
}

function describe(root, path, method, item) {
  const operation = item[method];
  const parameters = new Map();
  for (const parameter of [...(item.parameters ?? []), ...(operation.parameters ?? [])].map((it) => resolve(root, it))) {
    if (parameter) parameters.set(`${parameter.in} ${parameter.name}`, parameter);
  }
  const security = operation.security ?? root.security ?? [];
  return {
    ...operation,
    path,
    method: method.toUpperCase(),
    id: `op-${operation.operationId ?? `${method}-${path}`}`,
    tag: operation.tags?.[0] ?? "Endpoints",
    parameters: [...parameters.values()],
    needsKey: security.some((way) => Object.keys(way).length),
  };
}

const methodBadge = (method) => element("span", { class: `method ${method.toLowerCase()}` }, method);

/// A path that may be broken where a person would.
const breakable = (path) => path.split(/(?=\/)/).flatMap((part) => [element("wbr"), part]);

/// One operation, which is filled when it is opened for the first time.
function card(root, operation) {
  const title = element("summary", {}, methodBadge(operation.method), element("code", { class: "path" }, breakable(operation.path)), element("span", { class: "what" }, inline(operation.summary ?? "")));
  const made = element("details", { class: `operation${operation.deprecated ? " deprecated" : ""}`, id: operation.id }, title);
  made.dataset.words = `${operation.method} ${operation.path} ${operation.summary ?? ""} ${operation.tag}`.toLowerCase();
  made.addEventListener("toggle", () => {
    if (made.open && made.childElementCount === 1) made.append(content(root, operation));
  });
  return made;
}

function content(root, operation) {
  const body = resolve(root, operation.requestBody);
  return element(
    "div",
    { class: "content" },
    prose(operation.description),
    operation.needsKey ? undefined : element("p", { class: "quiet" }, "Needs no key."),
    section("Parameters", parameterTable(root, operation.parameters)),
    section("Request", prose(body?.description), body ? media(root, body.content) : []),
    section("Responses", Object.entries(operation.responses ?? {}).map(([status, response]) => answer(root, status, resolve(root, response) ?? {}))),
    section("Try it", tryIt(root, operation, key)),
  );
}

function parameterTable(root, parameters) {
  if (!parameters.length) return [];
  const rows = parameters.map((parameter) => named(root, parameter.name, parameter, parameter.in));
  return [element("ul", { class: "schema" }, rows)];
}

/// A parameter or a header.
function named(root, name, described, place) {
  const schema = resolve(root, described.schema);
  const about = described.description ?? schema?.description;
  return element(
    "li",
    {},
    element(
      "div",
      { class: "field" },
      element("code", { class: "name" }, name),
      place ? element("span", { class: "place" }, place) : undefined,
      element("span", { class: "type" }, typeOf(root, schema)),
      described.required ? element("span", { class: "required" }, "required") : undefined,
      limits(schema).map((limit) => element("span", { class: "limit" }, limit)),
    ),
    about ? element("div", { class: "description" }, inline(about)) : undefined,
  );
}

/// What a body looks like, for each of its types.
function media(root, content) {
  return Object.entries(content ?? {}).map(([type, described], index) => {
    const example = described.schema || described.example ? json(exampleOf(root, described), 2) : undefined;
    const isText = /[/+]json$/.test(type.split(";")[0]);
    return element(
      "details",
      { class: "media", open: index === 0 },
      element("summary", {}, element("code", {}, type)),
      described.schema ? show(root, described.schema) : undefined,
      isText && example ? element("details", { class: "example" }, element("summary", {}, "Example"), element("pre", {}, element("code", {}, example))) : undefined,
    );
  });
}

function answer(root, status, response) {
  const headers = Object.entries(response.headers ?? {}).map(([name, header]) => named(root, name, resolve(root, header) ?? {}));
  const kind = status.startsWith("2") ? "good" : "bad";
  return element(
    "details",
    { class: "answer", open: status.startsWith("2") },
    element("summary", {}, element("span", { class: `status ${kind}` }, status), element("span", { class: "what" }, inline(response.description ?? ""))),
    media(root, response.content),
    headers.length ? element("details", { class: "media" }, element("summary", {}, "Headers"), element("ul", { class: "schema" }, headers)) : undefined,
  );
}

function indexOf({ name, operations }) {
  const links = operations.map((operation) => {
    const link = element("a", { href: `#${encodeURIComponent(operation.id)}` }, methodBadge(operation.method), element("span", {}, breakable(operation.path)));
    const entry = element("li", {}, link);
    entry.dataset.words = `${operation.method} ${operation.path} ${operation.summary ?? ""} ${name}`.toLowerCase();
    return entry;
  });
  return element("section", {}, element("h3", {}, name), element("ul", {}, links));
}

/// Leave only what has all the words that were typed.
function filter() {
  const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const entry of document.querySelectorAll("[data-words]")) {
    entry.hidden = !words.every((word) => entry.dataset.words.includes(word));
  }
  for (const holder of document.querySelectorAll("#index section, #content .group")) {
    holder.hidden = ![...holder.querySelectorAll("[data-words]")].some((entry) => !entry.hidden);
  }
}

/// Open what the address names.
function reveal() {
  let id = window.location.hash.slice(1);
  try {
    id = decodeURIComponent(id);
  } catch {
    return;
  }
  const target = id.startsWith("op-") ? find(id) : undefined;
  if (!target) return;
  target.open = true;
  target.scrollIntoView({ block: "start" });
  target.querySelector("summary").focus({ preventScroll: true });
}
