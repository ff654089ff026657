// JSON Schemas for people: a list of fields with their types and limits, and an example of a value.

import { element, inline } from "./dom.js";

/// How deep schemas are shown and examples are made; one that contains itself has no end.
const MAX_DEPTH = 8;

/// How many branches or values are listed.
const MAX_LISTED = 50;

const plain = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/// JSON with whole numbers as they were written, where the browser can tell.
export function parse(text) {
  return JSON.parse(text, (_key, value, context) => {
    const source = context?.source;
    const isExact = typeof value !== "number" || Number.isSafeInteger(value);
    return isExact || !source || !/^-?\d+$/.test(source) ? value : BigInt(source);
  });
}

/// A value as JSON.
export function json(value, indent) {
  const plainNumber = (_key, inner) => (typeof inner === "bigint" ? Number(inner) : inner);
  return typeof value === "bigint" ? String(value) : JSON.stringify(value, plainNumber, indent);
}

/// What a reference within the document means; anything else is itself.
export function resolve(root, value) {
  for (let hop = 0; hop < MAX_DEPTH && plain(value) && typeof value.$ref === "string"; hop += 1) {
    const { $ref: reference, ...beside } = value;
    if (!reference.startsWith("#/")) return beside;
    const keys = reference.slice(2).split("/").map(unescapeKey);
    const found = keys.reduce((at, key) => (at && Object.hasOwn(at, key) ? at[key] : undefined), root);
    value = plain(found) ? { ...found, ...beside } : found;
  }
  return value;
}

function unescapeKey(key) {
  try {
    key = decodeURIComponent(key);
  } catch {
    // It is meant as it is written.
  }
  return key.replaceAll("~1", "/").replaceAll("~0", "~");
}

/// The last part of a reference, as the name of what it means.
const nameOf = (schema) => (typeof schema?.$ref === "string" ? unescapeKey(schema.$ref.split("/").pop()) : undefined);

/// All of a schema's fields.
export function show(root, schema) {
  const shape = resolve(root, schema);
  const within = enter(schema, new Set());
  const rows = children(root, shape, within);
  // What is no object has no fields: its own line says everything.
  const head = rows.length && typeOf(root, shape) === "object" ? undefined : row(root, undefined, schema, false, new Set());
  return element("ul", { class: "schema" }, head ?? rows);
}

/// The names of the schemas that are being shown, so that one within itself is not shown again.
const enter = (schema, within) => new Set(within).add(schema?.$ref ?? schema);

/// What is inside of a schema, a line for each.
function children(root, schema, within) {
  if (!plain(schema) || within.size > MAX_DEPTH) return [];
  const rows = [];
  const required = new Set(Array.isArray(schema.required) ? schema.required : []);
  for (const [name, property] of Object.entries(schema.properties ?? {})) {
    rows.push(row(root, name, property, required.has(name), within));
  }
  if (plain(schema.additionalProperties) && Object.keys(schema.additionalProperties).length) {
    rows.push(row(root, "any other name", schema.additionalProperties, false, within));
  }
  if (plain(schema.items)) {
    const items = resolve(root, schema.items);
    if (isNested(items)) rows.push(row(root, "each item", schema.items, false, within));
  }
  for (const [index, item] of (schema.prefixItems ?? []).slice(0, MAX_LISTED).entries()) {
    rows.push(row(root, `item ${index}`, item, true, within));
  }
  for (const [word, label] of [["oneOf", "one of"], ["anyOf", "any of"], ["allOf", "all of"]]) {
    for (const [index, branch] of (schema[word] ?? []).slice(0, MAX_LISTED).entries()) {
      rows.push(row(root, `${label}: ${titleOf(root, branch) ?? index + 1}`, branch, false, within));
    }
  }
  return rows;
}

const titleOf = (root, schema) => resolve(root, schema)?.title ?? nameOf(schema);

const isNested = (schema) =>
  plain(schema) && ["properties", "items", "oneOf", "anyOf", "allOf", "prefixItems", "description"].some((word) => word in schema);

function row(root, name, schema, isRequired, within) {
  const shape = resolve(root, schema);
  const isAgain = within.has(schema?.$ref);
  const line = element(
    "div",
    { class: "field" },
    name === undefined ? undefined : element("code", { class: "name" }, name),
    element("span", { class: "type" }, typeOf(root, shape)),
    isRequired ? element("span", { class: "required" }, "required") : undefined,
    limits(shape).map((limit) => element("span", { class: "limit" }, limit)),
    isAgain ? element("span", { class: "limit" }, "as above") : undefined,
  );
  const text = plain(shape) ? shape.description : undefined;
  const description = text ? element("div", { class: "description" }, inline(text)) : undefined;
  const inner = isAgain ? [] : children(root, shape, enter(schema, within));
  const list = inner.length ? element("ul", {}, inner) : undefined;
  return element("li", {}, line, description, list);
}

/// A schema's type in a word or two.
export function typeOf(root, schema, depth = 0) {
  schema = resolve(root, schema);
  if (schema === true || schema === undefined) return "anything";
  if (schema === false || (plain(schema) && plain(schema.not) && !Object.keys(schema.not).length)) return "nothing";
  if (!plain(schema) || depth > MAX_DEPTH) return "…";
  const types = [schema.type ?? implied(schema)].flat().filter(Boolean);
  const words = types.map((type) => (type === "array" ? arrayOf(root, schema, depth) : formatted(type, schema)));
  return words.join(" or ") || "anything";
}

function implied(schema) {
  if (schema.properties) return "object";
  if (schema.items || schema.prefixItems) return "array";
  if ("const" in schema) return schema.const === null ? "null" : typeof schema.const;
  if (schema.enum?.length) return typeof schema.enum[0];
  const branch = ["oneOf", "anyOf", "allOf"].find((word) => Array.isArray(schema[word]));
  return branch && { oneOf: "one of", anyOf: "any of", allOf: "all of" }[branch];
}

const arrayOf = (root, schema, depth) => `array of ${schema.items ? typeOf(root, schema.items, depth + 1) : "anything"}`;

function formatted(type, schema) {
  const form = schema.format ?? schema.contentEncoding ?? schema.contentMediaType;
  return type === "string" && form ? `${type} (${form})` : type;
}

/// Everything that narrows a type, in words.
export function limits(schema) {
  if (!plain(schema)) return [];
  const found = [];
  const range = (low, high, unit) => {
    if (low === undefined && high === undefined) return;
    if (low === high) found.push(`exactly ${low}${unit}`);
    else if (high === undefined) found.push(`at least ${low}${unit}`);
    else if (low === undefined) found.push(`at most ${high}${unit}`);
    else found.push(`${low} to ${high}${unit}`);
  };
  range(schema.minimum, schema.maximum, "");
  if (schema.exclusiveMinimum !== undefined) found.push(`more than ${schema.exclusiveMinimum}`);
  if (schema.exclusiveMaximum !== undefined) found.push(`less than ${schema.exclusiveMaximum}`);
  if (schema.multipleOf !== undefined) found.push(`a multiple of ${schema.multipleOf}`);
  range(schema.minLength, schema.maxLength, " characters");
  range(schema.minItems, schema.maxItems, " items");
  range(schema.minProperties, schema.maxProperties, " fields");
  if (schema.uniqueItems === true) found.push("no item twice");
  if (schema.const !== undefined) found.push(`always ${json(schema.const)}`);
  if (Array.isArray(schema.enum)) {
    const values = schema.enum.slice(0, MAX_LISTED).map((value) => json(value));
    found.push(`${values.join(" | ")}${schema.enum.length > MAX_LISTED ? " | …" : ""}`);
  }
  if (typeof schema.pattern === "string") found.push(`matches ${schema.pattern}`);
  if (schema.default !== undefined) found.push(`default ${json(schema.default)}`);
  if (schema.readOnly === true) found.push("read only");
  if (schema.deprecated === true) found.push("deprecated");
  return found;
}

/// A value that a media type or a parameter shows, or one that is made from its schema.
export function exampleOf(root, described) {
  if (described?.example !== undefined) return described.example;
  const named = Object.values(described?.examples ?? {})[0];
  const value = resolve(root, named)?.value;
  return value !== undefined ? value : make(root, described?.schema, 0);
}

function make(root, schema, depth) {
  schema = resolve(root, schema);
  if (!plain(schema) || depth > MAX_DEPTH) return null;
  for (const value of [schema.examples?.[0], schema.example, schema.const, schema.default, schema.enum?.[0]]) {
    if (value !== undefined) return value;
  }
  const type = [schema.type ?? implied(schema)].flat()[0];
  switch (type) {
    case "object": return makeObject(root, schema, depth);
    case "array": return makeArray(root, schema, depth);
    case "string": return makeString(schema);
    case "integer":
    case "number": return makeNumber(schema);
    case "boolean": return false;
    case "one of":
    case "any of": return make(root, (schema.oneOf ?? schema.anyOf)[0], depth + 1);
    case "all of": return makeAll(root, schema.allOf, depth);
    default: return null;
  }
}

function makeObject(root, schema, depth) {
  const required = new Set(schema.required ?? []);
  // What may be left out is left out: the least that will do is the clearest.
  const names = Object.keys(schema.properties ?? {}).filter((name) => required.has(name));
  return Object.fromEntries(names.map((name) => [name, make(root, schema.properties[name], depth + 1)]));
}

function makeArray(root, schema, depth) {
  if (schema.prefixItems) return schema.prefixItems.map((item) => make(root, item, depth + 1));
  const count = Math.min(Math.max(schema.minItems ?? 1, 1), schema.maxItems ?? 1000, 1000);
  return Array.from({ length: count }, () => make(root, schema.items, depth + 1));
}

function makeString(schema) {
  if (schema.contentEncoding === "base64") return "AAAA".repeat(Math.max(1, Math.ceil((schema.minLength ?? 4) / 4)));
  return "text".padEnd(Math.min(schema.minLength ?? 0, 1000), "text").slice(0, schema.maxLength ?? Infinity);
}

function makeNumber(schema) {
  const low = Number(schema.minimum ?? schema.exclusiveMinimum ?? -Infinity);
  const high = Number(schema.maximum ?? schema.exclusiveMaximum ?? Infinity);
  return low <= 0 && high >= 0 ? 0 : low > 0 ? low : high;
}

const makeAll = (root, branches, depth) => Object.assign({}, ...branches.map((branch) => make(root, branch, depth + 1)));
