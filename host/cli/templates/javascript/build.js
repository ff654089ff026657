// Build the component `guest.wasm` of app.js and what it imports.
import { writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const { component } = await componentize({
  sourcePath: "app.js",
  witPath: "wit",
  worldName: "basic",
  // What a guest may not use: with any of them, no snapshot can be taken.
  disableFeatures: ["random", "stdio", "clocks", "http", "fetch-event"],
});
await writeFile("guest.wasm", component);
