//! Descriptions that do not fit their operands are rejected, whatever they say.

mod support;

use guesthouse_arithmetic::{
    Backend, Binary, BinaryFunction, Convolution, MatrixProduct, Operands, Operation, Reduction,
    ReductionFunction, RightOperand, Softmax, Stopped, Tail,
};
use support::fuzz::arithmetic;
use support::fuzz_quantised::quantised;
use support::random::{Case, KINDS, Random, case};

/// Whether the operation is accepted with other operands.
fn accepts(case: &Case, change: impl Fn(&mut [Vec<f32>; 4])) -> bool {
    let mut vectors =
        [case.first.clone(), case.second.clone(), case.bias.clone(), case.residual.clone()];
    change(&mut vectors);
    let [first, second, bias, residual] = &vectors;
    case.operation.check(Operands { first, second, bias, residual }).is_ok()
}

#[test]
fn operands_that_are_too_short_are_rejected() {
    let mut rejected = 0;
    for round in 0..2000 {
        let mut random = Random::new(round + 9);
        let kind = u32::try_from(round).unwrap() % KINDS;
        let case = case(&mut random, kind, false);
        // An input of any length fits a function of each element.
        if kind == 3 || case.first.is_empty() {
            continue;
        }
        // Strided operands may be longer than they need to be.
        let slack = if matches!(case.operation, Operation::Binary(..)) { 3 } else { 1 };
        for operand in 0..4 {
            let cut = |vectors: &mut [Vec<f32>; 4]| {
                let length = vectors[operand].len();
                vectors[operand].truncate(length.saturating_sub(slack));
            };
            let length = [&case.first, &case.second, &case.bias, &case.residual][operand].len();
            // Without its only element, an operand is left out.
            let optional = operand >= 2 && length == 1;
            let strided = matches!(case.operation, Operation::MatrixProduct(..)) && operand < 2;
            let rows = matches!(
                case.operation,
                Operation::Softmax(Softmax { columns: 1 })
                    | Operation::Reduction(Reduction { columns: 1, .. })
            );
            let norm = matches!(case.operation, Operation::LayerNorm(norm) if norm.columns == 1);
            if length == 0 || optional || strided || rows || norm {
                continue;
            }
            assert!(!accepts(&case, cut), "operand {operand} of {:?}", case.operation);
            rejected += 1;
        }
    }
    assert!(rejected > 1000, "{rejected}");
}

#[test]
fn operands_that_an_operation_does_not_have_are_rejected() {
    for kind in [3, 4, 5, 7, 8] {
        let case = case(&mut Random::new(3), kind, false);
        assert!(!accepts(&case, |vectors| vectors[2] = vec![0.0]));
        assert!(!accepts(&case, |vectors| vectors[3] = vec![0.0]));
    }
}

fn windows() -> Convolution {
    Convolution {
        batch: 1,
        input_channels: 1,
        output_channels: 1,
        input: [1, 1],
        output: [1, 1],
        kernel: [1, 1],
        stride: [1, 1],
        padding: [0, 0],
        dilation: [1, 1],
    }
}

/// The result of the check of a convolution with one input element and weights for it.
fn convolves(windows: Convolution) -> bool {
    let operands = Operands { first: &[1.0], second: &[1.0; 8], ..Operands::default() };
    Operation::Convolution(windows, Tail::NONE).check(operands).is_ok()
}

#[test]
fn convolutions_of_zero_or_huge_sizes_are_rejected() {
    assert!(convolves(windows()));
    let most = u32::MAX;
    for size in [0, most] {
        assert!(!convolves(Convolution { batch: size, ..windows() }));
        assert!(!convolves(Convolution { input_channels: size, ..windows() }));
        assert!(!convolves(Convolution { output_channels: size, ..windows() }));
        assert!(!convolves(Convolution { input: [size, 1], ..windows() }));
        assert!(!convolves(Convolution { output: [1, size], ..windows() }));
        assert!(!convolves(Convolution { kernel: [size, 1], ..windows() }));
        assert!(!convolves(Convolution { output: [2, 1], stride: [size, 1], ..windows() }));
    }
    assert!(!convolves(Convolution { stride: [0, 1], ..windows() }));
    assert!(!convolves(Convolution { dilation: [1, 0], ..windows() }));
    assert!(!convolves(Convolution { padding: [most, 0], ..windows() }));
    assert!(!convolves(Convolution { output: [most, most], stride: [most; 2], ..windows() }));
}

#[test]
fn outputs_of_repeated_operands_are_bounded() {
    let binary = Binary {
        function: BinaryFunction::Add,
        shape: [1 << 20, 1 << 20, 1 << 20, 1 << 20],
        left: [0; 4],
        right: [0; 4],
    };
    let operands = Operands { first: &[1.0], second: &[1.0], ..Operands::default() };
    assert!(Operation::Binary(binary, Tail::NONE).check(operands).is_err());
}

#[test]
fn product_whose_output_overlaps_is_rejected() {
    let product = |output| MatrixProduct {
        batch: [1, 2],
        size: [2, 2, 1],
        left: [0, 0, 1, 1],
        right: RightOperand::Strided([0, 0, 1, 1]),
        output,
        scale: 1.0,
    };
    let operands = Operands { first: &[1.0; 2], second: &[1.0; 2], ..Operands::default() };
    let checks =
        |output| Operation::MatrixProduct(product(output), Tail::NONE).check(operands).is_ok();
    assert!(checks([0, 4, 2]) && checks([7, 2, 4]));
    for output in [[0, 2, 2], [0, 3, 2], [0, 8, 2], [0, 0, 2], [0, u32::MAX, 2]] {
        assert!(!checks(output), "{output:?}");
    }
}

#[test]
fn long_calls_stop_when_they_are_told_to() {
    let input = vec![1.0; 3 << 20];
    let columns = u32::try_from(input.len()).unwrap();
    let sum = Reduction { function: ReductionFunction::Sum, columns, scale: 1.0 };
    for operation in [Operation::Softmax(Softmax { columns }), Operation::Reduction(sum)] {
        let operands = Operands { first: &input, ..Operands::default() };
        let call = operation.check(operands).unwrap();
        for backend in Backend::available() {
            let mut output = vec![0.0; call.output_len()];
            let mut questions = 0;
            let mut stopped = || {
                questions += 1;
                questions == 3
            };
            assert_eq!(call.execute(backend, &mut output, &mut stopped), Err(Stopped));
            assert_eq!(questions, 3);
        }
    }
}

#[test]
fn described_operations_are_computed_or_rejected() {
    let rounds = if cfg!(miri) { 40 } else { 20_000 };
    for round in 0..rounds {
        let mut random = Random::new(round + 1);
        let bytes: Vec<u8> =
            (0..80).map(|_| u8::try_from(random.between(0, 255)).unwrap()).collect();
        arithmetic(&bytes);
    }
}

#[test]
fn described_quantised_operations_are_computed_or_rejected() {
    let rounds = if cfg!(miri) { 40 } else { 20_000 };
    for round in 0..rounds {
        let mut random = Random::new(round + 1);
        let bytes: Vec<u8> =
            (0..120).map(|_| u8::try_from(random.between(0, 255)).unwrap()).collect();
        quantised(&bytes);
    }
}
