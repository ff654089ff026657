//! Held against `tests/data/onnx-manifest`: tokens of Hugging Face's own package for Python.

use serde_json::Value as Json;

use super::*;

const TOKENIZERS: [(&str, &[u8]); 3] = [
    ("wordpiece", include_bytes!("../../../../../tests/data/onnx-manifest/wordpiece.json")),
    ("bpe", include_bytes!("../../../../../tests/data/onnx-manifest/bpe.json")),
    ("unigram", include_bytes!("../../../../../tests/data/onnx-manifest/unigram.json")),
];

fn integers(value: &Json) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

#[test]
fn tokens_are_those_of_hugging_face() {
    let json = include_str!("../../../../../tests/data/onnx-manifest/tokens.json");
    let expected: Json = serde_json::from_str(json).unwrap();
    for (name, file) in TOKENIZERS {
        let tokenizer = Padded::new(file, 16, None).unwrap();
        let examples = expected["tokenizers"][name].as_array().unwrap();
        assert!(examples.len() >= 12);
        for example in examples {
            let ids = integers(&example["ids"]);
            let found = tokenizer.encode(&[example["text"].as_str().unwrap()]).unwrap();
            assert_eq!(found.ids[..ids.len()], ids, "{name}: {}", example["text"]);
            assert_eq!(found.length, ids.len().max(1));
        }
        let texts: Vec<_> =
            examples.iter().map(|example| example["text"].as_str().unwrap()).collect();
        let together = tokenizer.encode(&texts).unwrap();
        assert_eq!(together.length, 16);
        for ((row, mask), example) in
            together.ids.chunks(16).zip(together.mask.chunks(16)).zip(examples)
        {
            let ids = integers(&example["ids"]);
            assert_eq!(row[..ids.len()], ids);
            assert!(row[ids.len()..].iter().all(|id| *id == tokenizer.padding));
            let tokens = mask.iter().filter(|mask| **mask == 1).count();
            assert_eq!(tokens, ids.len());
        }
    }
}

fn value(name: &str, length: Dimension) -> GraphValue {
    let shape = vec![Dimension::Named("rows".to_owned()), length];
    GraphValue { name: name.to_owned(), datatype: Datatype::Int64, shape }
}

#[test]
fn tokenizers_that_do_not_fit_are_rejected() {
    let (_name, file) = TOKENIZERS[0];
    let tokenize = |max_length| Tokenize {
        input: "text".to_owned(),
        tokenizer: String::new(),
        max_length,
        ids: "input_ids".to_owned(),
        mask: "attention_mask".to_owned(),
        types: "token_type_ids".to_owned(),
    };
    let ids = |length| [value("input_ids", length)];
    let varies = || ids(Dimension::Named("n".to_owned()));
    for (max_length, file, values, expected) in [
        (16, &b"{}"[..], varies(), "is not valid"),
        (2, file, varies(), "adds 2 tokens"),
        (16, file, ids(Dimension::Fixed(8)), "set `max_length` to 8"),
        (16, file, [value("ids", Dimension::Fixed(8))], "no input \"input_ids\", but ids"),
    ] {
        let error = Texts::new(&tokenize(max_length), file, &values).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn texts_are_padded_to_the_length_that_a_graph_takes() {
    let (_name, file) = TOKENIZERS[0];
    let tokens =
        Padded::new(file, 4, Some(9)).unwrap().encode(&["a model", "the fox jumps"]).unwrap();
    assert_eq!(tokens.length, 9);
    assert_eq!(tokens.ids.len(), 18);
    assert_eq!(tokens.mask, [1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]);
}
