//! Every backend computes the bits of plain loops, for random operations and numbers.

mod support;

use guesthouse_arithmetic::{Backend, Operation};
use support::plain;
use support::random::{Case, KINDS, Random, case};

/// Whether two results are the same bits, or both no numbers.
fn same(left: f32, right: f32) -> bool {
    left.to_bits() == right.to_bits() || left.is_nan() && right.is_nan()
}

fn compute(case: &Case, backend: Backend) -> Vec<f32> {
    let call = case.operation.check(case.operands()).unwrap_or_else(|error| {
        panic!("{error}: {:?}", case.operation);
    });
    let mut output = vec![123.0; call.output_len()];
    call.execute(backend, &mut output, &mut || false).expect("nobody stops it");
    output
}

fn compare(kind: u32, rounds: u64) {
    for round in 0..rounds {
        let mut random = Random::new(round * u64::from(KINDS) + u64::from(kind) + 1);
        let case = case(&mut random, kind, round % 4 == 3);
        if is_too_long(&case) {
            continue;
        }
        let mut expected =
            vec![0.0; case.operation.output_len(case.operands()).expect("the operands fit")];
        if matches!(case.operation, Operation::Unary(_)) {
            expected = compute(&case, Backend::Scalar);
        } else {
            plain::execute(&case.operation, case.operands(), &mut expected);
        }
        for backend in Backend::available() {
            let output = compute(&case, backend);
            for (index, (expected, output)) in expected.iter().zip(output).enumerate() {
                let (operation, output_bits) = (&case.operation, output.to_bits());
                assert!(
                    same(*expected, output),
                    "{backend} computes {output:e} ({output_bits:x}) at {index} instead of \
                     {expected:e} ({:x}): round {round}, {operation:?}, bias {}, residual {}",
                    expected.to_bits(),
                    case.bias.len(),
                    case.residual.len(),
                );
            }
        }
    }
}

/// Miri is slow.
const ROUNDS: u64 = if cfg!(miri) { 12 } else { 400 };

/// Whether an operation takes too long under Miri.
fn is_too_long(case: &Case) -> bool {
    let call = case.operation.check(case.operands()).expect("the operands fit");
    cfg!(miri) && call.work().max(case.first.len() as u64) > 3000
}

#[test]
fn convolutions_equal_plain_loops() {
    compare(0, ROUNDS);
}

#[test]
fn depthwise_convolutions_equal_plain_loops() {
    compare(1, ROUNDS);
}

#[test]
fn matrix_products_equal_plain_loops() {
    compare(2, ROUNDS);
}

#[test]
fn functions_of_one_element_are_equal_on_all_backends() {
    compare(3, 2 * ROUNDS);
}

#[test]
fn functions_of_two_elements_equal_plain_loops() {
    compare(4, ROUNDS);
}

#[test]
fn softmax_equals_plain_loops() {
    compare(5, ROUNDS);
}

#[test]
fn layer_norm_equals_plain_loops() {
    compare(6, ROUNDS);
}

#[test]
fn reductions_equal_plain_loops() {
    compare(7, ROUNDS);
}

#[test]
fn pools_equal_plain_loops() {
    compare(8, ROUNDS);
}

#[test]
fn deconvolutions_equal_plain_loops() {
    compare(9, ROUNDS);
}

/// The parts of a call compute its bits, also those that are split once more.
fn compare_parts(kind: u32, rounds: u64) {
    for round in 0..rounds {
        let mut random = Random::new(round * u64::from(KINDS) + u64::from(kind) + 77);
        let case = case(&mut random, kind, false);
        if is_too_long(&case) {
            continue;
        }
        let call = case.operation.check(case.operands()).expect("the operands fit");
        let expected = compute(&case, Backend::fastest());
        let parts = random.between(1, 5) as usize;
        let mut output = vec![f32::NAN; expected.len()];
        let mut rest = output.as_mut_slice();
        for part in call.split(parts) {
            for part in part.split(2) {
                let (piece, behind) = rest.split_at_mut(part.output_len());
                part.execute(Backend::fastest(), piece, &mut || false).expect("nobody stops it");
                rest = behind;
            }
        }
        assert!(rest.is_empty(), "{:?} is split", case.operation);
        for (expected, output) in expected.iter().zip(output) {
            assert!(same(*expected, output), "{parts} parts of {:?}", case.operation);
        }
    }
}

#[test]
fn parts_of_every_operation_compute_the_whole() {
    for kind in 0..KINDS {
        compare_parts(kind, ROUNDS);
    }
}
