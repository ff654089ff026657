//! Floats of 16 bits, from and to those of 32.

/// What an FP16 stands for: every one is an FP32 as well.
pub(super) fn from_fp16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let (exponent, fraction) = (u32::from((bits >> 10) & 0x1f), u32::from(bits & 0x3ff));
    let magnitude = match (exponent, fraction) {
        (0, 0) => 0,
        (0, _) => {
            // The leading bit of the fraction is the one that FP32 does not write.
            let shift = fraction.leading_zeros() - 21;
            ((113 - shift) << 23) | ((fraction << (shift + 13)) & 0x007f_ffff)
        }
        (31, _) => 0x7f80_0000 | (fraction << 13),
        _ => ((exponent + 112) << 23) | (fraction << 13),
    };
    f32::from_bits(sign | magnitude)
}

/// What a BF16 stands for.
pub(super) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest FP16, of two the even one; none, if that would be infinite and the number is not.
pub(super) fn to_fp16(value: f32) -> Option<u16> {
    let bits = value.to_bits();
    let (sign, magnitude) = (upper_half(bits) & 0x8000, bits & 0x7fff_ffff);
    let half = if magnitude > 0x7f80_0000 {
        // No number: as much of it as fits, and never infinity.
        0x7e00 | ((magnitude >> 13) & 0x3ff)
    } else if magnitude == 0x7f80_0000 {
        0x7c00
    } else if magnitude >= 0x3880_0000 {
        // From 2^-14 on: another bias, ten bits of the fraction. Rounding up may carry into the exponent.
        let rounded = round(magnitude, 13).checked_sub(112 << 10)?;
        if rounded >= 0x7c00 {
            return None;
        }
        rounded
    } else {
        // In steps of 2^-24. What is less than half of one is zero.
        let shift = 126 - (magnitude >> 23);
        let fraction = (magnitude & 0x007f_ffff) | 0x0080_0000;
        if shift > 24 { 0 } else { round(fraction, shift) }
    };
    Some(sign | lower_half(half))
}

/// The nearest BF16, of two the even one; none, if that would be infinite and the number is not.
pub(super) fn to_bf16(value: f32) -> Option<u16> {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return Some(upper_half(bits) | 0x0040);
    }
    let rounded = lower_half(round(magnitude, 16));
    let overflows = rounded == 0x7f80 && magnitude != 0x7f80_0000;
    (!overflows).then_some((upper_half(bits) & 0x8000) | rounded)
}

/// Without so many bits at the end, to the nearest; of two, to the even one.
fn round(bits: u32, without: u32) -> u32 {
    let (kept, rest) = (bits >> without, bits & ((1 << without) - 1));
    let middle = 1 << (without - 1);
    kept + u32::from(rest > middle || (rest == middle && kept & 1 == 1))
}

fn upper_half(bits: u32) -> u16 {
    let [.., one, other] = bits.to_le_bytes();
    u16::from_le_bytes([one, other])
}

fn lower_half(bits: u32) -> u16 {
    let [one, other, ..] = bits.to_le_bytes();
    u16::from_le_bytes([one, other])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Datatype, Tensor};

    /// What the bits stand for by a way of its own.
    fn number(datatype: Datatype, bits: u16) -> f64 {
        let (name, data) = (String::new(), bits.to_le_bytes().to_vec());
        Tensor { name, datatype, shape: vec![1], data }.numbers().next().unwrap()
    }

    #[test]
    fn every_one_of_16_bits_goes_there_and_back() {
        for bits in 0..=u16::MAX {
            for (datatype, there, back) in [
                (Datatype::Fp16, from_fp16 as fn(u16) -> f32, to_fp16 as fn(f32) -> Option<u16>),
                (Datatype::Bf16, from_bf16, to_bf16),
            ] {
                let (wide, wanted) = (there(bits), number(datatype, bits));
                assert_eq!(f64::from(wide).is_nan(), wanted.is_nan(), "{bits:x}");
                if wanted.is_nan() {
                    assert!(number(datatype, back(wide).unwrap()).is_nan(), "{bits:x}");
                } else {
                    assert_eq!(f64::from(wide).to_bits(), wanted.to_bits(), "{bits:x}");
                    assert_eq!(back(wide), Some(bits), "{bits:x}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_none() {
        assert_eq!(to_fp16(65504.0), Some(0x7bff));
        assert_eq!(to_fp16(65519.996), Some(0x7bff));
        assert_eq!(to_fp16(65520.0), None);
        assert_eq!(to_fp16(-65520.0), None);
        assert_eq!(to_fp16(f32::INFINITY), Some(0x7c00));
        assert_eq!(to_fp16(f32::MIN_POSITIVE), Some(0));
        assert_eq!(to_fp16(-2_f32.powi(-25)), Some(0x8000));
        assert_eq!(to_fp16(1.000_000_1 * 2_f32.powi(-25)), Some(1));
        assert_eq!(to_bf16(f32::MAX), None);
        assert_eq!(to_bf16(f32::NEG_INFINITY), Some(0xff80));
    }

    proptest! {
        #[test]
        fn the_nearest_one_is_taken(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite());
            for (datatype, back) in [
                (Datatype::Fp16, to_fp16 as fn(f32) -> Option<u16>),
                (Datatype::Bf16, to_bf16),
            ] {
                let Some(half) = back(value) else { continue };
                let value = f64::from(value);
                let distance = |bits| (number(datatype, bits) - value).abs();
                for other in [half.wrapping_sub(1), half.wrapping_add(1)] {
                    let other_distance = distance(other);
                    if other_distance.is_finite() {
                        prop_assert!(distance(half) <= other_distance);
                        prop_assert!(distance(half) < other_distance || half & 1 == 0);
                    }
                }
            }
        }
    }
}
