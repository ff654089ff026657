//! Every backend computes the bits of plain loops for random operations on 8-bit tensors.

mod support;

use guesthouse_arithmetic::{
    Backend, ElementType, K_GROUP, PANEL, Quantisation, QuantisedEnding, QuantisedOperation,
    QuantisedProduct, Requantisation, Stopped,
};
use support::quantised::{QuantisedCase, Values, compute, execute};
use support::random::Random;
use support::random_quantised::{QUANTISED_KINDS, quantised_case};

/// Miri is slow.
const ROUNDS: u64 = if cfg!(miri) { 12 } else { 400 };

/// Whether an operation takes too long under Miri.
fn is_too_long(case: &QuantisedCase) -> bool {
    cfg!(miri) && case.call().work().max(case.first.len() as u64) > 3000
}

fn compare(kind: u32) {
    for round in 0..ROUNDS {
        let mut random = Random::new(round * u64::from(QUANTISED_KINDS) + u64::from(kind) + 1);
        let case = quantised_case(&mut random, kind);
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
        let case = quantised_case(&mut random, u32::try_from(round).unwrap() % QUANTISED_KINDS);
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

/// Whether the operation is accepted with other operands.
fn accepts(case: &QuantisedCase, change: impl Fn(&mut QuantisedCase)) -> bool {
    let mut changed = case.clone();
    change(&mut changed);
    changed.operation.check(changed.operands()).is_ok()
}

#[test]
fn quantised_operands_of_other_lengths_are_rejected() {
    for round in 0..600 {
        let mut random = Random::new(round + 9);
        let kind = u32::try_from(round).unwrap() % QUANTISED_KINDS;
        let case = quantised_case(&mut random, kind);
        assert!(accepts(&case, |_| {}));
        // Any number of elements can be converted.
        if kind < 4 {
            assert!(!accepts(&case, |case| case.first.push(0)));
            assert!(!accepts(&case, |case| case.second.push(0)));
            assert!(
                case.first.is_empty()
                    || !accepts(&case, |case| case.first.truncate(case.first.len() - 1))
            );
            assert!(
                case.second.is_empty()
                    || !accepts(&case, |case| case.second.truncate(case.second.len() - 1))
            );
        }
        if kind != 4 {
            assert!(!accepts(&case, |case| case.numbers.push(0.0)));
        }
        assert!(!accepts(&case, |case| case.offsets.push(0)));
        assert!(!accepts(&case, |case| case.multipliers.push(0.0)));
        let channels = case.offsets.len();
        assert!(!accepts(&case, |case| case.bias = vec![0.0; channels + 1]));
        if channels > 0 {
            assert!(!accepts(&case, |case| case.offsets.truncate(channels - 1)));
            assert!(!accepts(&case, |case| case.multipliers.truncate(channels - 1)));
        }
        if case.call().output_type() == ElementType::U8 {
            assert!(!accepts(&case, |case| case.bias = vec![0.0; channels.max(1)]));
        }
    }
}

fn product(size: [u32; 3], output: Requantisation) -> QuantisedCase {
    let [m, n, k] = size.map(|size| size as usize);
    let ending = QuantisedEnding::Requantise(output);
    let product = QuantisedOperation::MatrixProduct(QuantisedProduct { size, ending });
    QuantisedCase {
        first: vec![255; m * k],
        second: vec![0x80; n.div_ceil(PANEL) * k.div_ceil(K_GROUP) * PANEL * K_GROUP],
        offsets: vec![0; n],
        multipliers: vec![-255.0 / (k as f32 * 255.0 * 128.0); n],
        ..QuantisedCase::new(product)
    }
}

#[test]
fn sums_that_could_overflow_are_rejected() {
    let case = product([1, 2, 65_793], Requantisation::new(0));
    for backend in Backend::available() {
        assert_eq!(compute(&case.call(), backend).bits(), [255, 255]);
    }
    let case = product([1, 2, 65_794], Requantisation::new(0));
    assert!(!accepts(&case, |_| {}));
}

#[test]
fn clamps_without_values_are_rejected() {
    let clamp = |least, greatest| {
        let output = Requantisation { zero_point: 1, least, greatest };
        accepts(&product([1, 1, 4], output), |_| {})
    };
    assert!(clamp(3, 3) && !clamp(4, 3));
}

#[test]
fn long_quantised_calls_stop_when_they_are_told_to() {
    let long = product([600, 600, 600], Requantisation::new(0));
    let dequantise = QuantisedOperation::Dequantise(Quantisation { scale: 1.0, zero_point: 0 });
    let numbers = QuantisedCase { first: vec![1; 3 << 20], ..QuantisedCase::new(dequantise) };
    for case in [long, numbers] {
        let call = case.call();
        for backend in Backend::available() {
            let mut questions = 0;
            let mut stopped = || {
                questions += 1;
                questions == 3
            };
            let mut output = Values::new(&call);
            assert_eq!(call.execute(backend, output.output(), &mut stopped), Err(Stopped));
            assert_eq!(questions, 3);
        }
    }
}
