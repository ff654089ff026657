//! Every backend computes the bits of plain loops for random operations on 8-bit tensors.

mod support;

use guesthouse_arithmetic::Backend;
use support::quantised::{QUANTISED_KINDS, QuantisedCase, Values, case, compute, execute};
use support::random::Random;

/// Miri is slow.
const ROUNDS: u64 = if cfg!(miri) { 12 } else { 400 };

/// Whether an operation takes too long under Miri.
fn is_too_long(case: &QuantisedCase) -> bool {
    cfg!(miri) && case.call().work().max(case.first.len() as u64) > 3000
}

fn compare(kind: u32) {
    for round in 0..ROUNDS {
        let mut random = Random::new(round * u64::from(QUANTISED_KINDS) + u64::from(kind) + 1);
        let case = case(&mut random, kind);
        if is_too_long(&case) {
            continue;
        }
        let expected = execute(&case).bits();
        for backend in Backend::available() {
            let output = compute(&case.call(), backend).bits();
            let different = expected.iter().zip(&output).position(|(left, right)| left != right);
            if let Some(index) = different {
                let (expected, output) = (expected[index], output[index]);
                let operation = &case.operation;
                panic!(
                    "{backend} computes {output} at {index}, not {expected}: round {round}, \
                     {operation:?}"
                );
            }
        }
    }
}

#[test]
fn quantised_convolutions_equal_plain_loops() {
    compare(0);
}

#[test]
fn quantised_depthwise_convolutions_equal_plain_loops() {
    compare(1);
}

#[test]
fn quantised_products_equal_plain_loops() {
    compare(2);
}

#[test]
fn quantised_sums_equal_plain_loops() {
    compare(3);
}

#[test]
fn quantised_numbers_equal_plain_loops() {
    compare(4);
}

#[test]
fn dequantised_values_equal_plain_loops() {
    compare(5);
}

#[test]
fn parts_of_quantised_operations_compute_the_whole() {
    for round in 0..ROUNDS {
        let mut random = Random::new(round + 77);
        let case = case(&mut random, u32::try_from(round).unwrap() % QUANTISED_KINDS);
        if is_too_long(&case) {
            continue;
        }
        let call = case.call();
        let expected = compute(&call, Backend::fastest()).bits();
        let mut output = Vec::new();
        for part in call.split(random.between(1, 5) as usize) {
            for part in part.split(2) {
                let values: Values = compute(&part, Backend::fastest());
                output.extend(values.bits());
            }
        }
        assert_eq!(expected, output, "{:?}", case.operation);
    }
}
