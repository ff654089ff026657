use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guesthouse_runtime::guest::Backend;
use guesthouse_tests::artifacts::{Arithmetic, run_host, temporary_folder, text_direction};
use guesthouse_tests::{HttpResponse, Server, Setup};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A product of matrices that takes minutes on any processor, of operands with one element.
const ENDLESS: &str = "matrix-product 1 1 64 64 4294967295 0 0 0 0 strided 0 0 0 0 4096 4096 64 1 \
                       identity 1 0";

fn setup(folder: &Path, arithmetic: &Arithmetic, config: &str) -> Setup {
    Setup {
        artifacts: vec![arithmetic.pack(folder)],
        config: config.to_owned(),
        state: Some(folder.join("state")),
        ..Setup::default()
    }
}

fn start(config: &str) -> (Server, TempDir) {
    let folder = temporary_folder();
    let server = Server::start(&setup(folder.path(), &Arithmetic::default(), config));
    (server, folder)
}

fn encode(numbers: &[f32]) -> String {
    STANDARD.encode(numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>())
}

/// Executes a call with these operands.
fn call(server: &Server, call: &str, operands: &[&[f32]]) -> HttpResponse {
    let mut body = json!({ "call": call });
    for (name, operand) in ["first", "second", "bias", "residual"].iter().zip(operands) {
        body[*name] = encode(operand).into();
    }
    server.post("/models/arithmetic/predict", &body)
}

fn words(answer: &HttpResponse) -> Vec<u32> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let bytes = STANDARD.decode(answer.body["result"].as_str().unwrap()).unwrap();
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

fn numbers(answer: &HttpResponse) -> Vec<f32> {
    words(answer).into_iter().map(f32::from_bits).collect()
}

/// Whether arithmetic was granted in `init`, and is now.
fn granted(server: &Server) -> [bool; 2] {
    let words = words(&call(server, "granted", &[]));
    [words[0] == 1, words[1] == 1]
}

fn faults(server: &Server, kind: &str) -> f64 {
    let metrics = server.metrics();
    let lines = metrics.lines().filter(|line| {
        line.starts_with("guesthouse_faults_total") && line.contains(&format!("kind=\"{kind}\""))
    });
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Asserts that a call traps in the host's function, and that the next call succeeds.
fn assert_traps(server: &Server, text: &str, operands: &[&[f32]]) {
    let before = faults(server, "trap");
    let answer = call(server, text, operands);
    assert_eq!((answer.status, answer.error_code()), (500, Some("model_failure")), "{text}");
    assert!(faults(server, "trap") > before, "{text}");
    assert_eq!(numbers(&call(server, "init", &[])), [1.0, 4.0, 9.0], "after {text}");
}

/// Numbers with different exponents, and none that rounds by accident to the same sum.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = 1e-5 * expected.abs().max(1.0);
        assert!((found - expected).abs() <= bound, "{what} {index}: {found} is not {expected}");
    }
}

/// Weights by output channel, packed in blocks of eight.
fn pack_weights(weights: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
    let mut packed = vec![0.0; outputs.div_ceil(8) * inputs * 8];
    for (output, row) in weights.chunks(inputs).enumerate() {
        for (input, weight) in row.iter().enumerate() {
            packed[(output / 8 * inputs + input) * 8 + output % 8] = *weight;
        }
    }
    packed
}

/// The name of a function, its operands, and the result of plain loops, where there is one.
type ExpectedCall = (&'static str, Vec<Vec<f32>>, Option<Vec<f32>>);

/// Calls of every function, with the results of plain loops where those are short.
fn calls() -> Vec<ExpectedCall> {
    let (input, other) = (values(2 * 5 * 7, 1), values(70, 2));
    let image = values(3 * 6 * 5, 3);
    let weights = values(10 * 3 * 9, 4);
    let bias = values(10, 5);
    let mut convolved = Vec::new();
    for output in 0..10 {
        for (row, column) in (0..6).flat_map(|row| (0..5).map(move |column| (row, column))) {
            let mut sum = 0.0;
            for (channel, y, x) in (0..27).map(|k| (k / 9, k / 3 % 3, k % 3)) {
                let (y_at, x_at) = (row + y, column + x);
                if (1..=6).contains(&y_at) && (1..=5).contains(&x_at) {
                    let value = image[channel * 30 + (y_at - 1) * 5 + x_at - 1];
                    sum += value * weights[output * 27 + channel * 9 + y * 3 + x];
                }
            }
            convolved.push((sum + bias[output]).max(0.0));
        }
    }
    let (left, right) = (values(5 * 7, 6), values(7 * 4, 7));
    let product = |m: usize, n: usize| (0..7).map(|k| left[m * 7 + k] * right[k * 4 + n]).sum();
    let product: Vec<f32> = (0..20).map(|at| product(at / 4, at % 4)).collect();
    let rows = |of: fn(&[f32]) -> Vec<f32>| Some(input.chunks(7).flat_map(of).collect());
    let softmax = rows(|row| {
        let most = row.iter().copied().fold(f32::MIN, f32::max);
        let powers: Vec<f32> = row.iter().map(|x| (x - most).exp()).collect();
        let sum: f32 = powers.iter().sum();
        powers.into_iter().map(|power| power / sum).collect()
    });
    let pair = || vec![input.clone(), other.clone()];
    vec![
        (
            "convolution 1 3 10 6 5 6 5 3 3 1 1 1 1 1 1 relu 1 0",
            vec![image.clone(), pack_weights(&weights, 10, 27), bias],
            Some(convolved),
        ),
        (
            "depthwise-convolution 1 3 3 6 5 6 5 3 3 1 1 1 1 1 1 hard-swish 0.16666667 0",
            vec![image.clone(), values(27, 8), values(3, 9)],
            None,
        ),
        ("pool maximum 1 3 3 6 5 3 2 2 2 2 2 0 0 1 1", vec![image], None),
        (
            "matrix-product 1 1 5 4 7 0 0 7 1 strided 0 0 4 1 0 0 4 1 identity 1 0",
            vec![left.clone(), right.clone()],
            Some(product),
        ),
        (
            "unary square 2 1",
            vec![input.clone()],
            Some(input.iter().map(|x| x * x * 2.0 + 1.0).collect()),
        ),
        ("unary gelu 1 0", vec![input.clone()], None),
        (
            "binary subtract 1 2 5 7 0 35 7 1 0 35 7 1 identity 1 0",
            pair(),
            Some(input.iter().zip(&other).map(|(left, right)| left - right).collect()),
        ),
        ("softmax 7", vec![input.clone()], softmax),
        ("layer-norm 7 0.00001", vec![input.clone(), values(7, 10), values(7, 11)], None),
        (
            "reduction sum 7 0.5",
            vec![input.clone()],
            rows(|row| vec![row.iter().sum::<f32>() / 2.0]),
        ),
    ]
}

#[test]
fn every_backend_of_the_processor_computes_the_same_bits() {
    let backends = Backend::ALL.into_iter().filter(|backend| backend.is_available());
    let mut by_scalar: Vec<Vec<u32>> = Vec::new();
    for backend in backends.collect::<Vec<_>>().into_iter().rev() {
        let config = format!("[arithmetic]\nbackend = \"{}\"\n", backend.name());
        let (server, _folder) = start(&config);
        for (index, (text, operands, expected)) in calls().into_iter().enumerate() {
            let operands: Vec<_> = operands.iter().map(Vec::as_slice).collect();
            let answer = call(&server, text, &operands);
            let found = words(&answer);
            if let Some(expected) = expected {
                assert_close(&numbers(&answer), &expected, text);
            }
            match by_scalar.get(index) {
                Some(scalar) => assert_eq!(&found, scalar, "{backend:?} {text}"),
                None => by_scalar.push(found),
            }
        }
    }
    assert_eq!(by_scalar.len(), calls().len());
}

/// An operand's name and its bytes.
type Bytes = (&'static str, Vec<u8>);

/// Executes a call on 8-bit integers.
fn call_quantised(server: &Server, call: &str, operands: &[Bytes]) -> HttpResponse {
    let mut body = json!({ "call": call });
    for (name, bytes) in operands {
        body[*name] = STANDARD.encode(bytes).into();
    }
    server.post("/models/arithmetic/predict", &body)
}

fn result_bytes(answer: &HttpResponse) -> Vec<u8> {
    assert_eq!(answer.status, 200, "{answer:?}");
    STANDARD.decode(answer.body["result"].as_str().unwrap()).unwrap()
}

fn float_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// A product of matrices of 8-bit integers, 3 by 5 with 5 by 2, and its sums.
fn quantised_product() -> (Vec<Bytes>, Vec<i32>) {
    let left: Vec<u8> = (0..15).map(|index: u8| index.wrapping_mul(67)).collect();
    let right: Vec<i8> = (0..10).map(|index: i8| index.wrapping_mul(53)).collect();
    let offsets = [100, -1000_i32];
    let sum = |m: usize, n: usize| {
        let terms = (0..5).map(|k| i32::from(left[m * 5 + k]) * i32::from(right[k * 2 + n]));
        terms.sum::<i32>() + offsets[n]
    };
    let sums = (0..6).map(|at| sum(at / 2, at % 2)).collect();
    // A panel of 48 columns, in groups of four rows.
    let mut packed = vec![0; 2 * 48 * 4];
    for (at, weight) in right.iter().enumerate() {
        let (k, n) = (at / 2, at % 2);
        packed[(k / 4 * 48 + n) * 4 + k % 4] = weight.cast_unsigned();
    }
    let offsets = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
    let multipliers = float_bytes(&[1.0 / 512.0, 1.0 / 256.0]);
    let operands =
        vec![("first", left), ("second", packed), ("offsets", offsets), ("residual", multipliers)];
    (operands, sums)
}

#[test]
fn sums_of_8_bit_integers_are_exact_on_every_backend() {
    let (mut operands, sums) = quantised_product();
    let reals = sums.iter().zip([512.0, 256.0].into_iter().cycle());
    let reals: Vec<f32> = reals.map(|(sum, divisor)| *sum as f32 / divisor).collect();
    let round = |real: &f32| (real.round_ties_even() + 7.0).clamp(3.0, 250.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is clamped")]
    let rounded: Vec<u8> = reals.iter().map(|real| round(real) as u8).collect();
    for backend in Backend::ALL.into_iter().filter(|backend| backend.is_available()) {
        let config = format!("[arithmetic]\nbackend = \"{}\"\n", backend.name());
        let (server, _folder) = start(&config);
        let answer = call_quantised(&server, "quantised-matrix-product 3 2 5 7 3 250", &operands);
        assert_eq!(result_bytes(&answer), rounded, "{backend:?}");
        operands.push(("bias", float_bytes(&[0.5, -0.5])));
        let text = "dequantised-matrix-product 3 2 5 identity 2 0";
        let answer = call_quantised(&server, text, &operands);
        let biases = [0.5, -0.5].into_iter().cycle();
        let expected = reals.iter().zip(biases).map(|(real, bias)| (real + bias) * 2.0);
        assert_eq!(numbers(&answer), expected.collect::<Vec<_>>(), "{backend:?}");
        operands.pop();
    }
}

#[test]
fn numbers_are_quantised_and_dequantised() {
    let (server, _folder) = start("");
    let given = [-1e9_f32, -0.25, 0.25, 0.75, 1.25, 1e9, f32::NAN];
    let operands = [("first", float_bytes(&given))];
    let answer = call_quantised(&server, "quantise 0.5 100 10 200", &operands);
    let integers = result_bytes(&answer);
    assert_eq!(integers, [10, 100, 100, 102, 102, 200, 10]);
    let operands = [("first", integers.clone())];
    let answer = call_quantised(&server, "dequantise 0.5 100", &operands);
    assert_eq!(numbers(&answer), [-45.0, 0.0, 0.0, 1.0, 1.0, 50.0, -45.0]);
    // A list of an odd number of bytes, which may begin anywhere.
    let operands = [("first", integers.clone()), ("second", integers)];
    let text = "quantised-sum 0.5 100 0.5 100 1 100 0 255";
    let answer = call_quantised(&server, text, &operands);
    assert_eq!(result_bytes(&answer), [10, 100, 100, 102, 102, 200, 10]);
}

#[test]
fn quantised_operation_that_does_not_fit_its_operands_traps() {
    let (server, _folder) = start("");
    let (mut operands, _sums) = quantised_product();
    operands[1].1.pop();
    let before = faults(&server, "trap");
    let answer = call_quantised(&server, "quantised-matrix-product 3 2 5 7 3 250", &operands);
    assert_eq!((answer.status, answer.error_code()), (500, Some("model_failure")), "{answer:?}");
    assert!(faults(&server, "trap") > before);
    assert_eq!(numbers(&call(&server, "init", &[])), [1.0, 4.0, 9.0]);
}

#[test]
fn arithmetic_is_reported_where_it_is_granted() {
    let (server, folder) = start("");
    assert_eq!(granted(&server), [true, true]);
    let before = server.metrics();
    assert_eq!(numbers(&call(&server, "unary square 1 0", &[&[3.0]])), [9.0]);
    let calls = |metrics: &str| {
        let name = "guesthouse_arithmetic_calls_total{model=\"arithmetic\",version=\"1.0.0\"} ";
        metrics.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok()).unwrap()
    };
    let after = server.metrics();
    assert_eq!(calls(&after), calls(&before) + 1);
    assert!(after.contains("guesthouse_arithmetic_seconds_total{model=\"arithmetic\""));
    assert_eq!(server.model("arithmetic")["versions"][0]["arithmetic"], "granted");

    let artifact = folder.path().join("arithmetic-1.0.0.wasm");
    let inspected = run_host(&["inspect", "--json", &artifact.to_string_lossy()]);
    let report: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(report["imports_arithmetic"], true);
}

#[test]
fn profile_shows_functions_of_the_host_and_of_the_guest() {
    let artifact = text_direction();
    let artifact = artifact.to_string_lossy();
    let measured = run_host(&["inspect", "--profile", "--rows", "2", "--json", &artifact]);
    let report: Value = serde_json::from_slice(&measured.stdout).unwrap();
    assert_eq!((report["model"].as_str(), &report["rows"]), (Some("text-direction"), &json!(2)));
    for (calls, with_arithmetic) in [("with_arithmetic", true), ("without_arithmetic", false)] {
        let calls = &report[calls];
        assert!(calls["calls"].as_u64() > Some(0), "{calls}");
        let mean = calls["mean_ms"].as_f64().unwrap();
        let arithmetic = calls["arithmetic"].as_array().unwrap();
        let in_host: f64 = arithmetic.iter().filter_map(|part| part["ms"].as_f64()).sum();
        let in_guest = calls["guest_ms"].as_f64().unwrap();
        assert!((in_host + in_guest - mean).abs() < 0.01 * mean, "{calls}");
        let convolutions = arithmetic.iter().find(|part| part["function"] == "convolution");
        let executions = convolutions.map(|part| part["executions"].as_f64().unwrap() >= 1.0);
        assert_eq!(executions, with_arithmetic.then_some(true), "{calls}");
        let shares = calls["guest"].as_array().unwrap();
        let shares: f64 = shares.iter().filter_map(|part| part["share"].as_f64()).sum();
        assert!((shares - 1.0).abs() < 1e-6, "{calls}");
    }
    // The guest was built without names.
    let functions = report["without_arithmetic"]["guest"].as_array().unwrap();
    let names = functions.iter().map(|part| part["function"].as_str().unwrap());
    assert!(names.into_iter().all(|name| name.starts_with("function ")), "{functions:?}");
}

#[test]
fn profile_of_more_rows_than_a_call_takes_is_rejected() {
    let folder = temporary_folder();
    let artifact = Arithmetic::default().pack(folder.path());
    for rows in ["0", "2", "18446744073709551615"] {
        let artifact = artifact.to_string_lossy();
        let rejected = run_host(&["inspect", "--profile", "--rows", rows, &artifact]);
        let error = String::from_utf8_lossy(&rejected.stderr);
        assert!(!rejected.status.success(), "{error}");
        assert!(error.contains("a call takes from 1 to 1 rows"), "{error}");
    }
}

#[test]
fn without_a_grant_a_guest_computes_by_itself() {
    let (server, _folder) = start("[models.arithmetic]\narithmetic = false\n");
    assert_eq!(granted(&server), [false, false]);
    assert_eq!(numbers(&call(&server, "init", &[])), [1.0, 4.0, 9.0]);
    assert_traps(&server, "unary square 1 0", &[&[3.0]]);
    assert_eq!(server.model("arithmetic")["versions"][0]["arithmetic"], "denied");
    assert!(!server.metrics().contains("guesthouse_arithmetic_calls_total{"));
}

#[test]
fn the_grant_of_a_model_precedes_that_of_the_server() {
    let (server, _folder) =
        start("[arithmetic]\ngranted = false\n[models.arithmetic]\narithmetic = true\n");
    assert_eq!(granted(&server), [true, true]);
    let (server, _folder) = start("[arithmetic]\ngranted = false\n");
    assert_eq!(granted(&server), [false, false]);
}

#[test]
fn a_changed_grant_is_answered_anew_after_a_restart() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path(), &Arithmetic::default(), "");
    for is_granted in [true, false, true] {
        setup.config = format!("[models.arithmetic]\narithmetic = {is_granted}\n");
        let server = Server::start(&setup);
        assert_eq!(granted(&server), [is_granted; 2]);
        assert_eq!(numbers(&call(&server, "init", &[])), [1.0, 4.0, 9.0]);
        let compiled = |line: &Value| line["message"] == "compiled";
        assert_eq!(server.lines().iter().filter(|line| compiled(line)).count(), 1);
        assert!(server.stop().0.success());
        let server = Server::start(&setup);
        assert_eq!(granted(&server), [is_granted; 2]);
        assert!(!server.lines().iter().any(compiled));
        assert!(server.stop().0.success());
    }
}

#[test]
fn an_init_that_insists_on_arithmetic_needs_the_grant() {
    let folder = temporary_folder();
    let insisting = Arithmetic { version: "1.1.0", insists: true, ..Arithmetic::default() };
    let insisting = insisting.pack(folder.path());
    for (is_granted, state) in [(false, "failed"), (true, "done")] {
        let config = format!("[models.arithmetic]\narithmetic = {is_granted}\n");
        let (server, _folder) = start(&config);
        let operation = server.deploy(&insisting);
        assert_eq!(operation["state"], state, "{operation}");
        assert_eq!(numbers(&call(&server, "init", &[])), [1.0, 4.0, 9.0]);
    }
}

#[test]
fn a_composed_component_passes_the_grant_on() {
    for is_granted in [true, false] {
        let folder = temporary_folder();
        let composed = Arithmetic { composed: true, ..Arithmetic::default() };
        let config = format!("[models.arithmetic]\narithmetic = {is_granted}\n");
        let server = Server::start(&setup(folder.path(), &composed, &config));
        assert_eq!(granted(&server), [is_granted; 2]);
        assert_eq!(numbers(&call(&server, "init", &[])), [1.0, 4.0, 9.0]);
        if is_granted {
            assert_eq!(numbers(&call(&server, "unary square 1 0", &[&[3.0]])), [9.0]);
        }
    }
}

#[test]
fn an_operation_that_does_not_fit_its_operands_traps() {
    let (server, _folder) = start("");
    let one = &[1.0_f32][..];
    for (text, operands) in [
        // Too few values, or values of another operand.
        ("convolution 1 1 1 4 4 4 4 1 1 1 1 0 0 1 1 identity 1 0", vec![one, one]),
        ("matrix-product 1 1 2 2 2 0 0 2 1 strided 0 0 2 1 0 0 2 1 identity 1 0", vec![one, one]),
        ("softmax 3", vec![&[1.0, 2.0][..]]),
        ("layer-norm 1 0.00001", vec![one, &[], one]),
        ("binary add 1 1 1 2 0 0 0 1 0 0 0 1 identity 1 0", vec![one, &[1.0, 2.0]]),
        // Nothing at all.
        ("softmax 0", vec![one]),
        ("reduction sum 0 1", vec![one]),
        ("convolution 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 identity 1 0", vec![one, one]),
        // Sizes whose products overflow.
        (
            "convolution 4294967295 4294967295 4294967295 65535 65535 65535 65535 65535 65535 1 1 0 0 \
             1 1 identity 1 0",
            vec![one, one],
        ),
        (
            "matrix-product 4294967295 4294967295 4294967295 4294967295 4294967295 4294967295 \
             4294967295 4294967295 4294967295 packed 4294967295 4294967295 4294967295 1 identity 1 0",
            vec![one, one],
        ),
    ] {
        assert_traps(&server, text, &operands);
    }
}

#[test]
fn a_list_outside_of_the_memory_or_on_the_result_traps() {
    let (server, _folder) = start("");
    for text in [
        "list 2 1",
        "list 0 1073741823",
        "list 4294967292 4294967295",
        "list-at-end 4 2",
        "list-at-end 0 1",
        // Its place is where the result is allocated.
        "freed-list 100000",
    ] {
        assert_traps(&server, text, &[]);
    }
    // What lies within the memory is valid.
    assert_eq!(words(&call(&server, "list-at-end 8 2", &[])), [2]);
}

#[test]
fn a_result_that_exceeds_the_memory_is_out_of_memory() {
    let (server, _folder) = start("[limits]\ninstance_memory_mib = 32\n");
    // Nearly the address space, more than the limit, and more than is left of the limit.
    for (rows, columns) in [(32768, 32767), (4096, 4096), (8192, 1023)] {
        let before = faults(&server, "out_of_memory");
        let text = format!("binary add 1 1 {rows} {columns} 0 0 0 0 0 0 0 0 identity 1 0");
        let answer = call(&server, &text, &[&[1.0], &[2.0]]);
        assert_eq!((answer.status, answer.error_code()), (500, Some("model_failure")), "{text}");
        assert!(faults(&server, "out_of_memory") > before, "{text}");
    }
    assert_eq!(numbers(&call(&server, "init", &[])), [1.0, 4.0, 9.0]);
}

#[test]
fn operands_may_be_larger_than_the_limit_of_outputs() {
    let (server, _folder) = start("[models.arithmetic]\noutput_mib = 1\n");
    let ones = vec![1.0; 1 << 20];
    let answer = call(&server, &format!("reduction sum {} 1", ones.len()), &[&ones]);
    assert_eq!(numbers(&answer), [(1 << 20) as f32]);
}

#[test]
fn a_long_operation_is_interrupted_at_its_deadline() {
    let (server, _folder) = start("[limits]\npredict_milliseconds = 300\n");
    let answer = call(&server, ENDLESS, &[&[1.0], &[2.0]]);
    assert_eq!(
        (answer.status, answer.error_code()),
        (504, Some("deadline_exceeded")),
        "{answer:?}"
    );
    // On a busy machine, the response may be sent before the guest's thread runs again.
    let is_interruption = |kind: &Value| kind == "deadline" || kind == "cancelled";
    server
        .wait_for("the fault", |line| line["target"] == "fault" && is_interruption(&line["kind"]));
    assert_eq!(numbers(&call(&server, "init", &[])), [1.0, 4.0, 9.0]);
}

#[test]
fn a_long_operation_is_interrupted_when_its_caller_leaves() {
    let (server, _folder) = start("[limits]\npredict_milliseconds = 30000\n");
    let body = json!({"call": ENDLESS, "first": encode(&[1.0]), "second": encode(&[2.0])});
    server.disconnect_while_running("/models/arithmetic/predict", &body);
    let fault = server.wait_for("the fault", |line| line["target"] == "fault");
    assert_eq!(fault["kind"], "cancelled", "{fault}");
    assert_eq!(numbers(&call(&server, "init", &[])), [1.0, 4.0, 9.0]);
}
