// "Try it": a form for a request, what came of it, and the same request as a command.

import { copyButton, element } from "./dom.js";
import { exampleOf, json, limits, resolve } from "./schema.js";

/// How much of an answer is shown, in characters: a browser with more in one element is slow.
const MAX_SHOWN = 200_000;

/// The form of an operation. `key` says the key at the time it is sent.
export function tryIt(root, operation, key) {
  const parameters = operation.parameters.map((parameter) => parameterField(root, parameter));
  const body = bodyField(root, operation.requestBody);
  const outcome = element("div", { class: "outcome", "aria-live": "polite" });
  const send = element("button", { type: "submit", class: "primary" }, "Send");
  const stop = element("button", { type: "button", hidden: true }, "Stop");
  const form = element("form", { class: "try" }, parameters.map(({ field }) => field), body?.field, element("div", { class: "buttons" }, send, stop), outcome);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const abort = new AbortController();
    stop.onclick = () => abort.abort();
    send.disabled = true;
    stop.hidden = false;
    try {
      const request = compose(root, operation, parameters, body, key());
      outcome.replaceChildren(curl(request));
      outcome.append(await perform(request, abort.signal));
    } catch (error) {
      const text = abort.signal.aborted ? "Stopped." : `The request could not be sent: ${error.message}`;
      outcome.append(element("p", { class: "failure" }, text));
    } finally {
      send.disabled = false;
      stop.hidden = true;
    }
  });
  return form;
}

let fields = 0;

/// A label with what it names.
function labelled(text, input, hint) {
  fields += 1;
  input.id = `field-${fields}`;
  const small = hint ? element("small", {}, hint) : undefined;
  return element("div", { class: "input" }, element("label", { for: input.id }, text, small), input);
}

function parameterField(root, parameter) {
  const schema = resolve(root, parameter.schema) ?? {};
  const given = parameter.example ?? Object.values(parameter.examples ?? {})[0]?.value ?? schema.examples?.[0];
  const isPath = parameter.in === "path";
  const known = Array.isArray(schema.enum) && isPath ? schema.enum : undefined;
  const value = known ? undefined : (given ?? (isPath ? schema.default : undefined));
  const input = known
    ? element("select", {}, known.map((option) => element("option", { value: option }, option)))
    : element("input", { type: "text", spellcheck: "false", autocomplete: "off", required: Boolean(parameter.required), value: value === undefined ? undefined : String(value) });
  // What is optional is offered, not sent.
  if (!parameter.required && value !== undefined) {
    input.removeAttribute("value");
    input.placeholder = String(value);
  }
  const hint = `${parameter.in}${parameter.required ? ", required" : ""}`;
  return { parameter, input, field: labelled(parameter.name, input, hint) };
}

/// A field for a body of any of the types that the operation takes.
function bodyField(root, described) {
  const content = Object.entries(resolve(root, described)?.content ?? {});
  if (!content.length) return undefined;
  const holder = element("div", {});
  let current;
  const choose = (type) => {
    current = { type, ...inputFor(root, type, content.find(([name]) => name === type)[1]) };
    holder.replaceChildren(...current.fields);
  };
  const select = element("select", {}, content.map(([type]) => element("option", { value: type }, type)));
  select.addEventListener("change", () => choose(select.value));
  choose(content[0][0]);
  const field = element("div", {}, labelled("Content-Type", select, "body"), holder);
  return { field, read: () => ({ type: current.type, ...current.read() }) };
}

/// The inputs for one type of body, and what they amount to: what is sent, and curl's words for it.
function inputFor(root, type, media) {
  if (/[/+]json$/.test(type.split(";")[0])) {
    const area = element("textarea", { rows: "8", spellcheck: "false", autocomplete: "off" });
    area.value = json(exampleOf(root, media), 2) ?? "";
    return { fields: [labelled("Body", area)], read: () => ({ body: area.value, curl: ["--data-binary", quote(area.value)] }) };
  }
  if (type === "multipart/form-data") return multipart(root, media);
  const file = element("input", { type: "file", required: true });
  return {
    fields: [labelled("File", file)],
    read: () => ({ body: file.files[0], curl: ["--data-binary", quote(`@${file.files[0].name}`)] }),
  };
}

function multipart(root, media) {
  const schema = resolve(root, media.schema) ?? {};
  const required = new Set(schema.required ?? []);
  const inputs = Object.entries(schema.properties ?? {}).map(([name, property]) => {
    const shape = resolve(root, property) ?? {};
    const isFile = shape.format === "binary" || shape.contentMediaType === "application/octet-stream" || !shape.type;
    const input = element("input", { type: isFile ? "file" : "text", required: required.has(name) });
    return { name, input, field: labelled(name, input, limits(shape).join(", ")) };
  });
  const read = () => {
    const [body, curl] = [new FormData(), []];
    for (const { name, input } of inputs) {
      const file = input.files?.[0];
      if (!file && !input.value) continue;
      body.append(name, file ?? input.value);
      // A value that begins with an at sign is no file.
      if (file) curl.push("-F", quote(`${name}=@${file.name}`));
      else curl.push("--form-string", quote(`${name}=${input.value}`));
    }
    return { body, curl };
  };
  return { fields: inputs.map(({ field }) => field), read };
}

/// The request that the fields amount to.
function compose(root, operation, parameters, body, key) {
  let path = operation.path;
  const [query, headers, shown] = [new URLSearchParams(), new Headers(), []];
  for (const { parameter, input } of parameters) {
    if (input.value === "") continue;
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (parameter.in === "query") query.append(parameter.name, input.value);
    else if (parameter.in === "header") {
      headers.set(parameter.name, input.value);
      shown.push("-H", quote(`${parameter.name}: ${input.value}`));
    }
  }
  const credential = operation.needsKey ? credentialOf(root) : undefined;
  if (credential && key) {
    headers.set(credential.header, `${credential.prefix}${key}`);
    shown.push("-H", `"${credential.header}: ${credential.prefix}$KEY"`);
  }
  const sent = body?.read();
  // A browser writes the boundary of a form itself.
  if (sent && sent.type !== "multipart/form-data") {
    headers.set("Content-Type", sent.type);
    shown.push("-H", quote(`Content-Type: ${sent.type}`));
  }
  const search = query.size ? `?${query}` : "";
  // The page stands beside the paths, wherever that is.
  const url = new URL(`.${path}${search}`, document.baseURI).href;
  return { method: operation.method, url, headers, body: sent?.body, shown: [...shown, ...(sent?.curl ?? [])] };
}

/// The header that carries the key, as the document has it.
export function credentialOf(root) {
  const schemes = Object.values(root.components?.securitySchemes ?? {}).map((scheme) => resolve(root, scheme));
  const header = schemes.find((scheme) => scheme?.type === "apiKey" && scheme.in === "header");
  if (header) return { header: header.name, prefix: "" };
  const bearer = schemes.some((scheme) => scheme?.type === "http" && scheme.scheme?.toLowerCase() === "bearer");
  return bearer ? { header: "Authorization", prefix: "Bearer " } : undefined;
}

/// A word for a shell, whatever stands in it.
const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function curl({ method, url, shown }) {
  const words = ["curl", "-sS", "-i", ...(method === "GET" ? [] : ["-X", method]), quote(url)];
  let command = words.join(" ");
  for (let index = 0; index < shown.length; index += 2) command += ` \\\n  ${shown[index]} ${shown[index + 1]}`;
  const bar = element("div", { class: "bar" }, element("h5", {}, "Command"), copyButton(() => command));
  return element("div", { class: "command" }, bar, element("pre", {}, element("code", {}, command)));
}

async function perform({ method, url, headers, body }, signal) {
  const start = performance.now();
  const response = await fetch(url, { method, headers, body, signal, credentials: "omit", cache: "no-store", redirect: "manual" });
  const text = await response.text();
  const took = performance.now() - start;
  const kind = response.ok ? "good" : "bad";
  const size = new Blob([text]).size;
  const rows = [...response.headers].map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)));
  return element(
    "div",
    { class: "response" },
    element(
      "div",
      { class: "bar" },
      element("h5", {}, "Answer"),
      element("span", { class: `status ${kind}` }, `${response.status} ${response.statusText}`.trim()),
      element("span", { class: "quiet" }, `${took.toFixed(1)} ms`),
      element("span", { class: "quiet" }, `${size} bytes`),
      copyButton(() => text),
    ),
    element("pre", { class: "body", tabindex: "0" }, element("code", {}, shorten(readable(text, response.headers.get("content-type") ?? "")))),
    element("details", {}, element("summary", {}, `${rows.length} headers`), element("table", {}, element("tbody", {}, rows))),
  );
}

const shorten = (text) => (text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}\n… and ${text.length - MAX_SHOWN} characters more` : text);

/// JSON in lines. It is not parsed and written again: that would change large numbers.
function readable(text, type) {
  if (!/[/+]json/.test(type) || text.length > MAX_SHOWN) return text;
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  let [result, depth] = ["", 0];
  const line = () => `\n${"  ".repeat(depth)}`;
  // Strings, brackets, separators, and everything else that is no white space.
  for (const token of text.match(/"(?:[^"\\]|\\.)*"|\{\s*\}|\[\s*\]|[{}[\],:]|[^\s{}[\],:"]+/g) ?? []) {
    if (token === "{" || token === "[") {
      depth += 1;
      result += token + line();
    } else if (token === "}" || token === "]") {
      depth -= 1;
      result += line() + token;
    } else if (token === ",") result += token + line();
    else result += token === ":" ? ": " : token;
  }
  return result;
}
