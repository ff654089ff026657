// Makes elements. Text is only ever set as text: descriptions are written by strangers, and nothing
// of theirs may become markup.

/// An element with attributes, and with children that are elements or texts.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (attribute.startsWith("on")) made.addEventListener(attribute.slice(2), value);
    else made.setAttribute(attribute, value === true ? "" : value);
  }
  append(made, children);
  return made;
}

function append(parent, children) {
  for (const child of children.flat()) {
    if (child === undefined || child === null || child === "") continue;
    parent.append(child instanceof Node ? child : String(child));
  }
}

/// Paragraphs of a description, in which words between backticks are code. No other markup is read.
export function prose(text) {
  if (typeof text !== "string" || !text.trim()) return [];
  const paragraphs = text.trim().split(/\n\s*\n/);
  return paragraphs.map((paragraph) => element("p", { class: "prose" }, inline(paragraph)));
}

/// The same in one line.
export function inline(text) {
  if (typeof text !== "string") return [];
  const parts = text.split("`");
  // An odd number of backticks: the last one is only itself.
  if (parts.length % 2 === 0) parts.push(`${parts.splice(-2, 1)}\`${parts.pop()}`);
  return parts.map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

/// A heading for what follows, unless nothing does.
export function section(title, ...children) {
  const content = children.flat().filter((child) => child);
  if (!content.length) return undefined;
  return element("section", { class: "part" }, element("h4", {}, title), content);
}

/// A button that puts a text where it can be pasted from.
export function copyButton(text) {
  const button = element("button", { type: "button", class: "small" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      // There is no clipboard on pages that came without TLS from another machine.
      button.textContent = "Select and copy";
    }
  });
  return button;
}
