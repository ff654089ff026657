//! No operation touches memory beyond its operands and its output, not even to ignore it.
#![cfg(all(target_os = "linux", not(miri)))]

mod support;

use guesthouse_arithmetic::{
    Backend, ElementType, Operands, QuantisedCall, QuantisedOperands, QuantisedOutput,
};
use support::guarded::Guarded;
use support::quantised::{Values, compute};
use support::random::{KINDS, Random, case};
use support::random_quantised::{QUANTISED_KINDS, quantised_case};

#[test]
fn operations_stay_within_pages_of_their_operands() {
    for round in 0..1200 {
        let mut random = Random::new(round + 5);
        let case = case(&mut random, u32::try_from(round).unwrap() % KINDS, false);
        let call = case.operation.check(case.operands()).unwrap();
        let mut expected = vec![0.0; call.output_len()];
        call.execute(Backend::Scalar, &mut expected, &mut || false).unwrap();
        for at_end in [true, false] {
            let operands = case.operands();
            let guarded = [operands.first, operands.second, operands.bias, operands.residual]
                .map(|numbers| Guarded::new(numbers, at_end));
            let [first, second, bias, residual] =
                [0, 1, 2, 3].map(|place| guarded[place].numbers());
            let operands = Operands { first, second, bias, residual };
            let call = case.operation.check(operands).unwrap();
            for backend in Backend::available() {
                let mut output = Guarded::new(&vec![0.0; expected.len()], at_end);
                call.execute(backend, output.numbers_mut(), &mut || false).unwrap();
                let same = |(left, right): (&f32, &f32)| {
                    left.to_bits() == right.to_bits() || left.is_nan() && right.is_nan()
                };
                let equal = output.numbers().iter().zip(&expected).all(same);
                assert!(equal, "{backend}, {:?}", case.operation);
            }
        }
    }
}

/// Compute a call to guarded memory.
fn compute_guarded(call: &QuantisedCall<'_>, backend: Backend, at_end: bool) -> Values {
    match call.output_type() {
        ElementType::U8 => {
            let mut output = Guarded::new(&vec![0_u8; call.output_len()], at_end);
            let numbers = QuantisedOutput::U8(output.numbers_mut());
            call.execute(backend, numbers, &mut || false).expect("nobody stops it");
            Values::U8(output.numbers().to_vec())
        }
        ElementType::F32 => {
            let mut output = Guarded::new(&vec![0_f32; call.output_len()], at_end);
            let numbers = QuantisedOutput::F32(output.numbers_mut());
            call.execute(backend, numbers, &mut || false).expect("nobody stops it");
            Values::F32(output.numbers().to_vec())
        }
    }
}

#[test]
fn quantised_operations_stay_within_pages_of_their_operands() {
    for round in 0..1200 {
        let mut random = Random::new(round + 5);
        let case = quantised_case(&mut random, u32::try_from(round).unwrap() % QUANTISED_KINDS);
        let expected = compute(&case.call(), Backend::Scalar).bits();
        for at_end in [true, false] {
            let bytes = [&case.first, &case.second].map(|bytes| Guarded::new(bytes, at_end));
            let offsets = Guarded::new(&case.offsets, at_end);
            let numbers = [&case.numbers, &case.multipliers, &case.bias]
                .map(|numbers| Guarded::new(numbers, at_end));
            let operands = QuantisedOperands {
                first: bytes[0].numbers(),
                second: bytes[1].numbers(),
                numbers: numbers[0].numbers(),
                offsets: offsets.numbers(),
                multipliers: numbers[1].numbers(),
                bias: numbers[2].numbers(),
            };
            let call = case.operation.check(operands).unwrap();
            for backend in Backend::available() {
                let output = compute_guarded(&call, backend, at_end).bits();
                assert_eq!(output, expected, "{backend}, {:?}", case.operation);
            }
        }
    }
}
