// The guest: `init` reads the assets, `predict` computes.
//
// What `init` leaves in memory is the snapshot from which every instance starts. There is no network, no file
// and no clock.
import { parameter, read, size } from "guesthouse:model/assets@0.2.2";
import { Sentiment } from "./sentiment.js";

// The bytes that one call of `read` returns at most.
const CHUNK = 8n << 20n;

let model;

export const lifecycle = {
  init() {
    try {
      model = new Sentiment(readText("words.tsv"), Number(parameter("threshold")));
    } catch (error) {
      // A string that is thrown is the error of `init`.
      throw error.message;
    }
    model.score("run once before the snapshot");
    const text = [
      { tag: "text" },
      { tag: "stripped" },
      { tag: "length", val: { minimum: 1, maximum: 2000 } },
    ];
    const label = [{ tag: "text" }, { tag: "one-of", val: ["negative", "positive"] }];
    const score = [{ tag: "range", val: { minimum: 0, maximum: 1 } }];
    return {
      inputs: [field("text", "the text to judge", "bytes", text)],
      outputs: [
        field("label", "positive from the threshold on", "bytes", label),
        field("score", "how positive the text is", "fp32", score),
      ],
      maxBatchSize: 64,
    };
  },
};

export const predict = {
  predict(inputs) {
    let scores;
    try {
      scores = texts(inputs[0]).map((text) => model.score(text));
    } catch (error) {
      // Anything else that is thrown traps, which costs the instance.
      throw { tag: "failed", val: String(error) };
    }
    const labels = scores.map((score) => new TextEncoder().encode(model.label(score)));
    const shape = [BigInt(scores.length)];
    return [
      { name: "label", datatype: "bytes", shape, data: byteStrings(labels) },
      { name: "score", datatype: "fp32", shape, data: new Uint8Array(Float32Array.from(scores).buffer) },
    ];
  },
};

function field(name, description, datatype, constraints) {
  return { name, description, datatype, rowShape: [], constraints, default: undefined };
}

/** An asset of the artifact. */
function readText(name) {
  const length = size(name);
  if (length === undefined) {
    throw new Error(`the artifact has no asset ${name}`);
  }
  const bytes = new Uint8Array(Number(length));
  for (let at = 0n; at < length; at += CHUNK) {
    bytes.set(read(name, at, CHUNK), Number(at));
  }
  return new TextDecoder().decode(bytes);
}

/** The elements of a tensor of byte strings: each is its length and its bytes. */
function texts({ data }) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const found = [];
  for (let at = 0; at < data.byteLength; ) {
    const length = view.getUint32(at, true);
    found.push(new TextDecoder().decode(data.subarray(at + 4, at + 4 + length)));
    at += 4 + length;
  }
  return found;
}

/** The data of a tensor of byte strings. */
function byteStrings(elements) {
  const data = new Uint8Array(elements.reduce((total, element) => total + 4 + element.length, 0));
  const view = new DataView(data.buffer);
  let at = 0;
  for (const element of elements) {
    view.setUint32(at, element.length, true);
    data.set(element, at + 4);
    at += 4 + element.length;
  }
  return data;
}
