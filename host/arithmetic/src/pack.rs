//! The packed layouts of weights. They do not depend on the machine: a guest packs its weights
//! once, in `init`.

use crate::{K_GROUP, PANEL, WEIGHT_BLOCK};

/// Pack the weights `[output_channels][inner]` of a convolution, where `inner` is the product of
/// the input channels and the sizes of the kernel, as
/// `[ceil(output_channels / WEIGHT_BLOCK)][inner][WEIGHT_BLOCK]`, padded with zeros.
///
/// # Panics
/// The weights have another length.
pub fn pack_convolution_weights(output_channels: usize, inner: usize, weights: &[f32]) -> Vec<f32> {
    assert_eq!(weights.len(), output_channels * inner, "the weights have another length");
    let mut packed = vec![0.0; output_channels.div_ceil(WEIGHT_BLOCK) * inner * WEIGHT_BLOCK];
    for channel in 0..output_channels {
        let block = channel / WEIGHT_BLOCK * inner * WEIGHT_BLOCK + channel % WEIGHT_BLOCK;
        for position in 0..inner {
            packed[block + position * WEIGHT_BLOCK] = weights[channel * inner + position];
        }
    }
    packed
}

/// Pack a matrix `[k][n]` with the given strides of `k` and `n` as the right operand of a matrix
/// product, `[ceil(n / PANEL)][k][PANEL]`, padded with zeros. The weights of a deconvolution are
/// the matrix `[input_channels][output_channels * kernel]`.
///
/// # Panics
/// An index lies outside of the matrix.
pub fn pack_matrix(size: [usize; 2], strides: [usize; 2], matrix: &[f32]) -> Vec<f32> {
    let [k, n] = size;
    let mut packed = vec![0.0; n.div_ceil(PANEL) * k * PANEL];
    for column in 0..n {
        let panel = column / PANEL * k * PANEL + column % PANEL;
        for row in 0..k {
            packed[panel + row * PANEL] = matrix[row * strides[0] + column * strides[1]];
        }
    }
    packed
}

/// Pack the i8 weights `[output_channels][input_channels][taps]` of a convolution, where `taps` is
/// the product of the sizes of the kernel, as `[ceil(output_channels / WEIGHT_BLOCK)]
/// [ceil(input_channels / K_GROUP)][taps][WEIGHT_BLOCK][K_GROUP]`, padded with zeros.
///
/// # Panics
/// The weights have another length.
pub fn pack_quantised_weights(channels: [usize; 2], taps: usize, weights: &[i8]) -> Vec<u8> {
    let [outputs, inputs] = channels;
    assert_eq!(weights.len(), outputs * inputs * taps, "the weights have another length");
    let groups = inputs.div_ceil(K_GROUP);
    let blocks = outputs.div_ceil(WEIGHT_BLOCK);
    let mut packed = vec![0; blocks * groups * taps * WEIGHT_BLOCK * K_GROUP];
    for (place, weight) in weights.iter().enumerate() {
        let (tap, input, output) = (place % taps, place / taps % inputs, place / taps / inputs);
        let group = output / WEIGHT_BLOCK * groups + input / K_GROUP;
        let row = (group * taps + tap) * WEIGHT_BLOCK + output % WEIGHT_BLOCK;
        packed[row * K_GROUP + input % K_GROUP] = weight.cast_unsigned();
    }
    packed
}

/// Pack an i8 matrix `[k][n]` with the given strides of `k` and `n` as the right operand of a
/// matrix product, `[ceil(n / PANEL)][ceil(k / K_GROUP)][PANEL][K_GROUP]`, padded with zeros.
///
/// # Panics
/// An index lies outside of the matrix.
pub fn pack_quantised_matrix(size: [usize; 2], strides: [usize; 2], matrix: &[i8]) -> Vec<u8> {
    let [k, n] = size;
    let groups = k.div_ceil(K_GROUP);
    let mut packed = vec![0; n.div_ceil(PANEL) * groups * PANEL * K_GROUP];
    for row in 0..k {
        for column in 0..n {
            let group = column / PANEL * groups + row / K_GROUP;
            let place = (group * PANEL + column % PANEL) * K_GROUP + row % K_GROUP;
            packed[place] = matrix[row * strides[0] + column * strides[1]].cast_unsigned();
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_weights_are_blocks_of_channels() {
        let weights: Vec<f32> = (0..20_u8).map(f32::from).collect();
        let packed = pack_convolution_weights(10, 2, &weights);
        assert_eq!(packed.len(), 2 * 2 * WEIGHT_BLOCK);
        assert_eq!(packed[..8], [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]);
        assert_eq!(packed[16..19], [16.0, 18.0, 0.0]);
        assert_eq!(packed[24..27], [17.0, 19.0, 0.0]);
    }

    #[test]
    fn packed_matrix_is_the_same_from_its_transpose() {
        let rows: Vec<f32> = (0..150_u8).map(f32::from).collect();
        let mut columns = vec![0.0; 150];
        for (position, value) in rows.iter().enumerate() {
            columns[position % 50 * 3 + position / 50] = *value;
        }
        let packed = pack_matrix([3, 50], [50, 1], &rows);
        assert_eq!(packed, pack_matrix([3, 50], [1, 3], &columns));
        assert_eq!(packed[PANEL], 50.0);
        assert_eq!(packed[3 * PANEL..3 * PANEL + 3], [48.0, 49.0, 0.0]);
    }

    #[test]
    fn packed_quantised_weights_are_groups_of_input_channels() {
        let weights: Vec<i8> = (0..90).collect();
        let packed = pack_quantised_weights([9, 5], 2, &weights);
        assert_eq!(packed.len(), 2 * 2 * 2 * WEIGHT_BLOCK * K_GROUP);
        assert_eq!(packed[..8], [0, 2, 4, 6, 10, 12, 14, 16]);
        assert_eq!(packed[32..40], [1, 3, 5, 7, 11, 13, 15, 17]);
        assert_eq!(packed[64..72], [8, 0, 0, 0, 18, 0, 0, 0]);
        assert_eq!(packed[128..136], [80, 82, 84, 86, 0, 0, 0, 0]);
    }

    #[test]
    fn packed_quantised_matrix_is_groups_of_rows() {
        let matrix: Vec<i8> = (0..50).chain(-2..48).collect();
        let packed = pack_quantised_matrix([2, 50], [50, 1], &matrix);
        assert_eq!(packed.len(), 2 * PANEL * K_GROUP);
        assert_eq!(packed[..8], [0, 254, 0, 0, 1, 255, 0, 0]);
        assert_eq!(packed[PANEL * K_GROUP..][..8], [48, 46, 0, 0, 49, 47, 0, 0]);
    }
}
