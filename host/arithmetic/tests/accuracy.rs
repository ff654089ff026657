//! The functions of one element against f64.

use guesthouse_arithmetic::{Activation, Backend, Operands, Operation, Tail};

fn apply(activation: Activation, input: &[f32], backend: Backend) -> Vec<f32> {
    let operation = Operation::Unary(Tail { activation, scale: 1.0, shift: 0.0 });
    let call =
        operation.check(Operands { first: input, ..Operands::default() }).expect("any input fits");
    let mut output = vec![f32::NAN; call.output_len()];
    call.execute(backend, &mut output, &mut || false).expect("nobody stops it");
    output
}

/// The largest distance to the expected value, as a multiple of the distance between its
/// neighbouring numbers.
fn error(activation: Activation, range: [f32; 2], expected: fn(f64) -> f64) -> f64 {
    let steps = 40_000;
    let width = (range[1] - range[0]) / steps as f32;
    let input: Vec<f32> = (0..=steps).map(|step| range[0] + step as f32 * width).collect();
    let mut largest = 0.0_f64;
    for backend in Backend::available() {
        for (x, y) in input.iter().zip(apply(activation, &input, backend)) {
            let expected = expected(f64::from(*x));
            // The result is close enough to have the same neighbours.
            let unit = f64::from(y.abs().next_up()) - f64::from(y.abs());
            largest = largest.max((f64::from(y) - expected).abs() / unit);
        }
    }
    largest
}

/// The error function by its series, and by integration of its tail.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn exp_errs_by_two_units_at_most() {
    let error = error(Activation::Exp, [-86.0, 88.5], f64::exp);
    assert!(error <= 4.0, "{error}");
}

#[test]
fn erf_and_tanh_err_by_few_units() {
    let erf = error(Activation::Erf, [-3.9, 3.9], erf);
    let tanh = error(Activation::Tanh, [-8.5, 8.5], f64::tanh);
    assert!(erf <= 8.0 && tanh <= 8.0, "{erf} {tanh}");
}

#[test]
fn sigmoid_errs_by_few_units_for_all_signs() {
    let error = error(Activation::Sigmoid, [-80.0, 30.0], |x| 1.0 / (1.0 + (-x).exp()));
    assert!(error <= 8.0, "{error}");
}

#[test]
fn extreme_arguments_have_the_limits() {
    let input = [f32::NEG_INFINITY, -200.0, -103.0, 0.0, 200.0, f32::INFINITY, f32::NAN];
    for backend in Backend::available() {
        let exp = apply(Activation::Exp, &input, backend);
        assert_eq!(exp[..2], [0.0, 0.0]);
        assert_eq!(exp[2], f32::from_bits(1));
        assert_eq!(exp[3..6], [1.0, f32::INFINITY, f32::INFINITY]);
        let tanh = apply(Activation::Tanh, &input, backend);
        assert_eq!(tanh[..6], [-1.0, -1.0, -1.0, 0.0, 1.0, 1.0]);
        let erf = apply(Activation::Erf, &input, backend);
        assert_eq!(erf[..6], [-1.0, -1.0, -1.0, 0.0, 1.0, 1.0]);
        let sigmoid = apply(Activation::Sigmoid, &input, backend);
        assert_eq!([sigmoid[0], sigmoid[3], sigmoid[5]], [0.0, 0.5, 1.0]);
        for values in [exp, tanh, erf, sigmoid] {
            assert!(values[6].is_nan());
        }
    }
}
