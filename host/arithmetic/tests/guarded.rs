//! No operation touches memory beyond its operands and its output, not even to ignore it.
#![cfg(all(target_os = "linux", not(miri)))]

mod support;

use guesthouse_arithmetic::{Backend, Operands};
use support::guarded::Guarded;
use support::random::{KINDS, Random, case};

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
