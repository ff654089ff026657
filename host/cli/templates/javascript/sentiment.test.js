import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { Sentiment } from "./sentiment.js";

const model = new Sentiment(readFileSync("assets/words.tsv", "utf8"), 0.5);

test("golden examples", () => {
  for (const line of readFileSync("golden.jsonl", "utf8").trimEnd().split("\n")) {
    const { inputs, outputs } = JSON.parse(line);
    const score = model.score(inputs.text);
    assert.ok(Math.abs(score - outputs.score) < 1e-6, line);
    assert.equal(model.label(score), outputs.label);
  }
});

test("a line without a weight is rejected", () => {
  assert.throws(() => new Sentiment("good\t1\nbad", 0.5), /line 2/);
});
