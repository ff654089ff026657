//! Comparing two versions' outputs, element by element. Pure.
//!
//! A row of an output has at most one difference, the gravest: a number on one side only, another label,
//! or two numbers that are too far apart. Floating-point numbers have a tolerance; integers, booleans and
//! byte strings must be equal.

use serde::Serialize;

use guesthouse_model::{Datatype, Tensor, bytes_elements};

/// How two outputs differ, the least grave kind first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DifferenceKind {
    /// Two numbers are further apart than the tolerance.
    Score,
    /// Another text, byte string or boolean.
    Label,
    /// A number on one side; NaN, or another infinity, on the other.
    Nan,
    /// The output is missing, or has another datatype or shape.
    Shape,
    /// The candidate gave no output at all.
    Error,
}

impl DifferenceKind {
    /// The name in metrics and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::Label => "label",
            Self::Nan => "nan",
            Self::Shape => "shape",
            Self::Error => "error",
        }
    }
}

/// The number of rows in which one output differed, by the gravest difference of each row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct OutputCounts {
    /// Rows with [`DifferenceKind::Score`].
    pub score: u64,
    /// Rows with [`DifferenceKind::Label`].
    pub label: u64,
    /// Rows with [`DifferenceKind::Nan`].
    pub nan: u64,
    /// Rows with [`DifferenceKind::Shape`]: all rows of a batch at once.
    pub shape: u64,
    /// The largest distance of two numbers, within the tolerance or not.
    pub largest_difference: f64,
}

impl OutputCounts {
    /// Whether any row differs.
    pub fn differs(&self) -> bool {
        self.score + self.label + self.nan + self.shape > 0
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.score += other.score;
        self.label += other.label;
        self.nan += other.nan;
        self.shape += other.shape;
        self.largest_difference = self.largest_difference.max(other.largest_difference);
    }
}

/// A difference in one row of an output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Difference {
    /// The gravest kind in the row.
    pub(super) kind: DifferenceKind,
    /// None if the difference concerns all rows.
    pub(super) row: Option<usize>,
    /// The index of the first element with this difference, counted through all rows.
    pub(super) element: usize,
    /// The distance for [`DifferenceKind::Score`], 0 for others.
    pub(super) distance: f64,
}

/// Compare one output; `candidate` is none if it has no such output. `found` is called with the
/// difference of each row that has one. Both tensors have passed [`Tensor::check`].
pub(super) fn compare(
    primary: &Tensor,
    candidate: Option<&Tensor>,
    tolerance: f64,
    mut found: impl FnMut(Difference),
) -> OutputCounts {
    let mut counts = OutputCounts::default();
    let same_form =
        |other: &&Tensor| other.datatype == primary.datatype && other.shape == primary.shape;
    let Some(candidate) = candidate.filter(same_form) else {
        counts.shape = primary.rows();
        found(Difference { kind: DifferenceKind::Shape, row: None, element: 0, distance: 0.0 });
        return counts;
    };
    // From here on there are elements, so that no dimension is 0 and their product is known to fit.
    if primary.data == candidate.data {
        return counts;
    }
    let per_row: u64 = primary.shape.iter().skip(1).product();
    let mut differences = element_differences(primary, candidate);
    for row in 0..usize::try_from(primary.rows()).unwrap_or(usize::MAX) {
        let mut worst: Option<Difference> = None;
        for index in 0..usize::try_from(per_row).unwrap_or(usize::MAX) {
            let (kind, distance) = match differences.next() {
                None => return counts,
                Some(ElementDifference::None) => continue,
                Some(ElementDifference::Number(distance)) => {
                    counts.largest_difference = counts.largest_difference.max(distance);
                    if distance <= tolerance {
                        continue;
                    }
                    (DifferenceKind::Score, distance)
                }
                Some(ElementDifference::Integer(distance)) => {
                    counts.largest_difference = counts.largest_difference.max(distance);
                    (DifferenceKind::Score, distance)
                }
                Some(ElementDifference::Label) => (DifferenceKind::Label, 0.0),
                Some(ElementDifference::NotFinite) => (DifferenceKind::Nan, 0.0),
            };
            if worst.is_none_or(|worst| (kind, distance) > (worst.kind, worst.distance)) {
                let element = row * usize::try_from(per_row).unwrap_or(usize::MAX) + index;
                worst = Some(Difference { kind, row: Some(row), element, distance });
            }
        }
        if let Some(worst) = worst {
            match worst.kind {
                DifferenceKind::Score => counts.score += 1,
                DifferenceKind::Label => counts.label += 1,
                DifferenceKind::Nan => counts.nan += 1,
                DifferenceKind::Shape | DifferenceKind::Error => {
                    unreachable!("elements have neither")
                }
            }
            found(worst);
        }
    }
    counts
}

/// The difference of two elements.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ElementDifference {
    None,
    /// The distance of two floating-point numbers, which may be within the tolerance.
    Number(f64),
    /// The distance of two integers.
    Integer(f64),
    NotFinite,
    Label,
}

/// The differences of all pairs of elements. The tensors have the same datatype and shape.
fn element_differences<'a>(
    one: &'a Tensor,
    other: &'a Tensor,
) -> Box<dyn Iterator<Item = ElementDifference> + 'a> {
    macro_rules! pairs {
        ($type:ty, $difference:expr) => {{
            let (one, other) = (one.data.as_chunks().0.iter(), other.data.as_chunks().0.iter());
            Box::new(one.zip(other).map(|(one, other)| {
                let difference = $difference;
                difference(<$type>::from_le_bytes(*one), <$type>::from_le_bytes(*other))
            }))
        }};
    }
    macro_rules! integer {
        ($type:ty) => {
            pairs!($type, |one, other| integer(i128::from(one), i128::from(other)))
        };
    }
    match one.datatype {
        Datatype::Bool => pairs!(u8, |one, other| label((one != 0) == (other != 0))),
        Datatype::Bytes => {
            let elements = bytes_elements(&one.data).zip(bytes_elements(&other.data));
            Box::new(elements.map(|(one, other)| label(one == other)))
        }
        Datatype::Uint8 => integer!(u8),
        Datatype::Uint16 => integer!(u16),
        Datatype::Uint32 => integer!(u32),
        Datatype::Uint64 => integer!(u64),
        Datatype::Int8 => integer!(i8),
        Datatype::Int16 => integer!(i16),
        Datatype::Int32 => integer!(i32),
        Datatype::Int64 => integer!(i64),
        Datatype::Fp16 => pairs!(u16, |one, other| number(fp16_to_f64(one), fp16_to_f64(other))),
        Datatype::Bf16 => pairs!(u16, |one, other| number(bf16_to_f64(one), bf16_to_f64(other))),
        Datatype::Fp32 => pairs!(f32, |one, other| number(f64::from(one), f64::from(other))),
        Datatype::Fp64 => pairs!(f64, number),
    }
}

fn label(same: bool) -> ElementDifference {
    if same { ElementDifference::None } else { ElementDifference::Label }
}

fn integer(one: i128, other: i128) -> ElementDifference {
    if one == other {
        ElementDifference::None
    } else {
        ElementDifference::Integer(one.abs_diff(other) as f64)
    }
}

fn number(one: f64, other: f64) -> ElementDifference {
    if one == other || (one.is_nan() && other.is_nan()) {
        ElementDifference::None
    } else if one.is_finite() && other.is_finite() {
        // The largest numbers of both signs are infinitely far apart.
        ElementDifference::Number((one - other).abs().min(f64::MAX))
    } else {
        ElementDifference::NotFinite
    }
}

/// The value of an IEEE 754 half-precision number.
fn fp16_to_f64(bits: u16) -> f64 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = ((bits >> 10) & 0x1f, f64::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2.0_f64.powi(-24),
        0x1f if fraction == 0.0 => f64::INFINITY,
        0x1f => f64::NAN,
        _ => (fraction + 1024.0) * 2.0_f64.powi(i32::from(exponent) - 25),
    }
}

/// The value of a bfloat16 number: the upper half of a single-precision one.
fn bf16_to_f64(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tensor(datatype: Datatype, shape: &[u64], data: Vec<u8>) -> Tensor {
        let tensor =
            Tensor { name: "y".to_owned(), datatype, shape: shape.to_vec(), data: data.into() };
        assert_eq!(tensor.check(), Ok(()));
        tensor
    }

    fn differences(
        primary: &Tensor,
        candidate: Option<&Tensor>,
        tolerance: f64,
    ) -> (OutputCounts, Vec<Difference>) {
        let mut found = Vec::new();
        let counts = compare(primary, candidate, tolerance, |difference| found.push(difference));
        (counts, found)
    }

    fn singles(shape: &[u64], values: &[f32]) -> Tensor {
        tensor(Datatype::Fp32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn texts(values: &[&str]) -> Tensor {
        let mut data = Vec::new();
        for value in values {
            data.extend_from_slice(&u32::try_from(value.len()).unwrap().to_le_bytes());
            data.extend_from_slice(value.as_bytes());
        }
        tensor(Datatype::Bytes, &[values.len() as u64], data)
    }

    type Apart = (DifferenceKind, f64);

    /// One element of each datatype, another one, and how far they are apart.
    fn pairs() -> Vec<(Datatype, Vec<u8>, Vec<u8>, Apart)> {
        let bytes = |text: &str| [&1_u32.to_le_bytes()[..], text.as_bytes()].concat();
        vec![
            (Datatype::Bool, vec![0], vec![1], (DifferenceKind::Label, 0.0)),
            (Datatype::Uint8, vec![255], vec![0], (DifferenceKind::Score, 255.0)),
            (Datatype::Uint16, vec![1, 1], vec![0, 0], (DifferenceKind::Score, 257.0)),
            (Datatype::Uint32, vec![0xff; 4], vec![0; 4], (DifferenceKind::Score, 4_294_967_295.0)),
            (Datatype::Uint64, vec![0xff; 8], vec![0; 8], (DifferenceKind::Score, u64::MAX as f64)),
            (Datatype::Int8, vec![0x80], vec![0x7f], (DifferenceKind::Score, 255.0)),
            (Datatype::Int16, vec![0xff; 2], vec![0; 2], (DifferenceKind::Score, 1.0)),
            (Datatype::Int32, vec![0xff; 4], vec![0; 4], (DifferenceKind::Score, 1.0)),
            (
                Datatype::Int64,
                i64::MIN.to_le_bytes().to_vec(),
                i64::MAX.to_le_bytes().to_vec(),
                (DifferenceKind::Score, u64::MAX as f64),
            ),
            // 1 and 1.5; 1 and -2.
            (Datatype::Fp16, vec![0, 0x3c], vec![0, 0x3e], (DifferenceKind::Score, 0.5)),
            (Datatype::Bf16, vec![0x80, 0x3f], vec![0, 0xc0], (DifferenceKind::Score, 3.0)),
            (
                Datatype::Fp32,
                0.25_f32.to_le_bytes().to_vec(),
                1_f32.to_le_bytes().to_vec(),
                (DifferenceKind::Score, 0.75),
            ),
            (
                Datatype::Fp64,
                f64::MAX.to_le_bytes().to_vec(),
                f64::MIN.to_le_bytes().to_vec(),
                (DifferenceKind::Score, f64::MAX),
            ),
            (Datatype::Bytes, bytes("a"), bytes("b"), (DifferenceKind::Label, 0.0)),
        ]
    }

    #[test]
    fn every_datatype_is_compared_by_value() {
        for (datatype, one, other, (kind, distance)) in pairs() {
            let (one, other) = (tensor(datatype, &[1], one), tensor(datatype, &[1], other));
            let (counts, found) = differences(&one, Some(&one.clone()), 0.0);
            assert!(!counts.differs() && found.is_empty(), "{datatype:?}");
            let (counts, found) = differences(&one, Some(&other), 0.0);
            assert!(counts.differs(), "{datatype:?}");
            let wanted = Difference { kind, row: Some(0), element: 0, distance };
            assert_eq!(found, [wanted], "{datatype:?}");
            assert_eq!(counts.largest_difference, distance, "{datatype:?}");
        }
    }

    #[test]
    fn tolerances_apply_to_floats_only() {
        for (datatype, one, other, ..) in pairs() {
            let (one, other) = (tensor(datatype, &[1], one), tensor(datatype, &[1], other));
            let (counts, _) = differences(&one, Some(&other), f64::MAX);
            let float = matches!(
                datatype,
                Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64
            );
            assert_eq!(counts.differs(), !float, "{datatype:?}");
        }
    }

    #[test]
    fn a_tolerance_is_inclusive_and_differences_are_measured() {
        let (one, other) = (singles(&[3], &[0.0, 0.5, 1.0]), singles(&[3], &[0.25, 0.5, 0.0]));
        let (counts, found) = differences(&one, Some(&other), 0.25);
        assert_eq!((counts.score, counts.largest_difference), (1, 1.0));
        assert_eq!(found.iter().map(|found| found.row).collect::<Vec<_>>(), [Some(2)]);
        let (counts, _) = differences(&one, Some(&other), 1.0);
        assert_eq!((counts.differs(), counts.largest_difference), (false, 1.0));
    }

    #[test]
    fn a_row_reports_its_worst_difference() {
        let one = singles(&[2, 3], &[1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
        let other = singles(&[2, 3], &[1.0, 9.0, f32::NAN, 4.0, 2.0, 8.0]);
        let (counts, found) = differences(&one, Some(&other), 0.0);
        assert_eq!((counts.nan, counts.score), (1, 1));
        let places: Vec<_> =
            found.iter().map(|found| (found.kind, found.element, found.distance)).collect();
        assert_eq!(places, [(DifferenceKind::Nan, 2, 0.0), (DifferenceKind::Score, 5, 5.0)]);
    }

    #[test]
    fn non_finite_values_equal_only_themselves() {
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0];
        for (at, one) in odd.iter().enumerate() {
            for (other_at, other) in odd.iter().enumerate() {
                let (one, other) = (singles(&[1], &[*one]), singles(&[1], &[*other]));
                let (counts, _) = differences(&one, Some(&other), f64::MAX);
                assert_eq!(counts.nan, u64::from(at != other_at));
            }
        }
        // Another NaN is one as well, and there are two zeros.
        let (one, other) = (singles(&[2], &[f32::NAN, 0.0]), singles(&[2], &[-f32::NAN, -0.0]));
        assert!(!differences(&one, Some(&other), 0.0).0.differs());
    }

    #[test]
    fn another_shape_is_one_difference_of_all_rows() {
        let one = singles(&[2, 1], &[1.0, 2.0]);
        let others = [
            None,
            Some(singles(&[2], &[1.0, 2.0])),
            Some(singles(&[1, 2], &[1.0, 2.0])),
            Some(tensor(Datatype::Int32, &[2, 1], one.data.to_vec())),
        ];
        for other in &others {
            let (counts, found) = differences(&one, other.as_ref(), f64::MAX);
            assert_eq!((counts.shape, found.len()), (2, 1), "{other:?}");
            assert_eq!((found[0].kind, found[0].row), (DifferenceKind::Shape, None));
        }
    }

    #[test]
    fn labels_of_any_length_are_compared() {
        let (one, other) = (texts(&["a", "", "long"]), texts(&["a", "b", "longer"]));
        let (counts, found) = differences(&one, Some(&other), 1.0);
        assert_eq!(counts.label, 2);
        assert_eq!(found.iter().map(|found| found.element).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn half_precision_floats_are_decoded() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x0001, 5.960_464_477_539_063e-8),
            (0x03ff, 6.097_555_160_522_461e-5),
            (0x0400, 6.103_515_625e-5),
            (0x3555, 0.333_251_953_125),
            (0x7bff, 65504.0),
            (0xc000, -2.0),
            (0x7c00, f64::INFINITY),
            (0xfc00, f64::NEG_INFINITY),
        ] {
            assert_eq!(fp16_to_f64(bits), value, "{bits:x}");
        }
        assert!(fp16_to_f64(0x7e00).is_nan());
    }

    proptest! {
        /// Each row is judged by itself, as arithmetic on its values says.
        #[test]
        fn float_rows_differ_like_their_values(
            rows in prop::collection::vec((-10_i8..10, -10_i8..10), 1..30),
            tolerance in 0_u8..5,
        ) {
            let side = |side: fn(&(i8, i8)) -> i8| {
                let data = rows.iter().flat_map(|row| f64::from(side(row)).to_le_bytes()).collect();
                tensor(Datatype::Fp64, &[rows.len() as u64], data)
            };
            let (one, other) = (side(|row| row.0), side(|row| row.1));
            let (counts, found) = differences(&one, Some(&other), f64::from(tolerance));
            let distances: Vec<_> = rows.iter().map(|row| row.0.abs_diff(row.1)).collect();
            let wanted: Vec<_> = (0..rows.len()).filter(|row| distances[*row] > tolerance).collect();
            prop_assert_eq!(found.iter().filter_map(|found| found.row).collect::<Vec<_>>(), wanted);
            prop_assert_eq!(counts.score, found.len() as u64);
            let largest = distances.iter().max().copied().unwrap_or_default();
            prop_assert_eq!(counts.largest_difference, f64::from(largest));
        }

        /// Whatever two checked tensors hold, comparing them ends and finds at most each row.
        #[test]
        fn arbitrary_elements_never_panic(
            one in prop::collection::vec(any::<u8>(), 16),
            other in prop::collection::vec(any::<u8>(), 16),
        ) {
            for datatype in [
                Datatype::Bool, Datatype::Fp16, Datatype::Bf16, Datatype::Fp32, Datatype::Fp64,
                Datatype::Int64, Datatype::Uint64,
            ] {
                let rows = 16 / datatype.element_size().unwrap() as u64 / 2;
                let (one, other) = (
                    tensor(datatype, &[rows, 2], one.clone()),
                    tensor(datatype, &[rows, 2], other.clone()),
                );
                let (counts, found) = differences(&one, Some(&other), 0.0);
                prop_assert!(found.len() as u64 <= rows);
                prop_assert!(counts.largest_difference.is_finite());
            }
        }
    }
}
