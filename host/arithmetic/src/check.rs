//! The check of a description against the lengths of its operands: the only place that decides
//! whether an operation is executed. All of its arithmetic is checked.

use crate::{
    Binary, Call, Convolution, Deconvolution, Invalid, MatrixProduct, Operands, Operation, PANEL,
    RightOperand, WEIGHT_BLOCK,
};

/// The most elements of an operand, of an output, and the longest extent of a window in a padded
/// input: so many f32 fill the address space of a guest.
pub(crate) const MAX_ELEMENTS: u64 = 1 << 30;

pub(crate) const TOO_LARGE: Invalid = Invalid("a size is too large");
const ZERO: Invalid = Invalid("a size is zero");
const LENGTH: Invalid = Invalid("an operand has another length than the description");
pub(crate) const UNEXPECTED: Invalid =
    Invalid("the operation does not have an operand of that kind");

impl Operation {
    /// Check that all indexes of the operation lie within its operands. Sizes are at least 1.
    ///
    /// # Errors
    /// The sizes are inconsistent, zero, or so large that an operand or the output would have more
    /// than 2^30 elements.
    pub fn check<'a>(&self, operands: Operands<'a>) -> Result<Call<'a>, Invalid> {
        let output_len = self.output_len(operands)?;
        Ok(Call { operation: *self, operands, output_len })
    }

    /// The number of elements of the output, from the description and the lengths of the operands
    /// alone. It succeeds exactly if [`Operation::check`] does.
    ///
    /// # Errors
    /// As for [`Operation::check`].
    pub fn output_len(&self, operands: Operands<'_>) -> Result<usize, Invalid> {
        for operand in [operands.first, operands.second, operands.bias, operands.residual] {
            if operand.len() as u64 > MAX_ELEMENTS {
                return Err(TOO_LARGE);
            }
        }
        match self {
            Self::Convolution(windows, _) => convolution(windows, operands, Channels::Mixed),
            Self::DepthwiseConvolution(windows, _) => {
                convolution(windows, operands, Channels::Separate)
            }
            Self::MatrixProduct(product, _) => matrix_product(product, operands),
            Self::Unary(_) => {
                absent(&[operands.second, operands.bias, operands.residual])?;
                Ok(operands.first.len())
            }
            Self::Binary(description, _) => binary(description, operands),
            Self::Softmax(softmax) => {
                absent(&[operands.second, operands.bias, operands.residual])?;
                rows(operands.first, softmax.columns)?;
                Ok(operands.first.len())
            }
            Self::LayerNorm(norm) => {
                absent(&[operands.residual])?;
                rows(operands.first, norm.columns)?;
                length(operands.second, norm.columns.into())?;
                length(operands.bias, norm.columns.into())?;
                Ok(operands.first.len())
            }
            Self::Reduction(reduction) => {
                absent(&[operands.second, operands.bias, operands.residual])?;
                rows(operands.first, reduction.columns)
            }
            Self::Pool(pool) => {
                absent(&[operands.second, operands.bias, operands.residual])?;
                let windows = &pool.geometry;
                if windows.input_channels != windows.output_channels {
                    return Err(Invalid("the channels of input and output differ"));
                }
                windows_in(windows.output, windows.input, windows)?;
                length(operands.first, input_len(windows)?)?;
                Ok(index(output_len(windows)?))
            }
            Self::Deconvolution(description, _) => deconvolution(description, operands),
        }
    }
}

/// Whether a convolution's kernels see all channels or their own.
pub(crate) enum Channels {
    Mixed,
    Separate,
}

fn convolution(
    windows: &Convolution,
    operands: Operands<'_>,
    channels: Channels,
) -> Result<usize, Invalid> {
    windows_in(windows.output, windows.input, windows)?;
    let [height, width] = windows.kernel;
    let weights = match channels {
        Channels::Mixed => product(&[
            windows.output_channels.div_ceil(block_size(WEIGHT_BLOCK)),
            windows.input_channels,
            height,
            width,
            block_size(WEIGHT_BLOCK),
        ])?,
        Channels::Separate if windows.input_channels != windows.output_channels => {
            return Err(Invalid("the channels of input and output differ"));
        }
        Channels::Separate => product(&[windows.output_channels, height, width])?,
    };
    let output = output_len(windows)?;
    length(operands.first, input_len(windows)?)?;
    length(operands.second, weights)?;
    optional(operands.bias, windows.output_channels.into())?;
    optional(operands.residual, output)?;
    Ok(index(output))
}

fn deconvolution(description: &Deconvolution, operands: Operands<'_>) -> Result<usize, Invalid> {
    let windows = &description.geometry;
    windows_in(windows.input, windows.output, windows)?;
    let [height, width] = windows.kernel;
    let columns = product(&[windows.output_channels, height, width])?;
    let panels = columns.div_ceil(PANEL as u64);
    let weights = product_of(&[panels, windows.input_channels.into(), PANEL as u64])?;
    let output = output_len(windows)?;
    absent(&[operands.residual])?;
    length(operands.first, input_len(windows)?)?;
    length(operands.second, weights)?;
    optional(operands.bias, windows.output_channels.into())?;
    Ok(index(output))
}

/// Check that `count` windows in each dimension have small enough extents in a plane of the given
/// size with its padding.
pub(crate) fn windows_in(
    count: [u32; 2],
    plane: [u32; 2],
    windows: &Convolution,
) -> Result<(), Invalid> {
    for axis in 0..2 {
        product(&[count[axis], plane[axis], 1])?;
        let (stride, dilation) = (windows.stride[axis], windows.dilation[axis]);
        if stride == 0 || dilation == 0 || windows.kernel[axis] == 0 {
            return Err(ZERO);
        }
        let start = u64::from(count[axis] - 1) * u64::from(stride);
        let reach = u64::from(windows.kernel[axis] - 1) * u64::from(dilation);
        let padded = u64::from(plane[axis]) + u64::from(windows.padding[axis]);
        if start.checked_add(reach).is_none_or(|end| end >= MAX_ELEMENTS) || padded > MAX_ELEMENTS {
            return Err(TOO_LARGE);
        }
    }
    Ok(())
}

pub(crate) fn input_len(windows: &Convolution) -> Result<u64, Invalid> {
    let [height, width] = windows.input;
    product(&[windows.batch, windows.input_channels, height, width])
}

pub(crate) fn output_len(windows: &Convolution) -> Result<u64, Invalid> {
    let [height, width] = windows.output;
    product(&[windows.batch, windows.output_channels, height, width])
}

fn matrix_product(description: &MatrixProduct, operands: Operands<'_>) -> Result<usize, Invalid> {
    let [first, second] = description.batch;
    let [m, n, k] = description.size;
    let output = product(&[first, second, m, n])?;
    within(operands.first, [first, second, m, k], description.left)?;
    match description.right {
        RightOperand::Strided(strides) => within(operands.second, [first, second, k, n], strides)?,
        RightOperand::Packed => {
            let panels = u64::from(n).div_ceil(PANEL as u64);
            length(operands.second, product_of(&[panels, k.into(), PANEL as u64])?)?;
        }
    }
    dense([first, second, m], description.output, n)?;
    optional(operands.bias, n.into())?;
    optional(operands.residual, output)?;
    Ok(index(output))
}

/// Check that dimensions with the given strides fill a tensor whose rows have `row` elements, each
/// element once.
fn dense(sizes: [u32; 3], strides: [u32; 3], row: u32) -> Result<(), Invalid> {
    let mut dimensions = [0, 1, 2].map(|axis| (u64::from(strides[axis]), u64::from(sizes[axis])));
    dimensions.sort_unstable();
    let mut filled = u64::from(row);
    for (stride, size) in dimensions {
        if size > 1 {
            if stride != filled {
                return Err(Invalid("the strides of the output leave gaps or overlap"));
            }
            filled = filled.checked_mul(size).ok_or(TOO_LARGE)?;
        }
    }
    Ok(())
}

fn binary(description: &Binary, operands: Operands<'_>) -> Result<usize, Invalid> {
    absent(&[operands.bias, operands.residual])?;
    let output = product(&description.shape)?;
    within(operands.first, description.shape, description.left)?;
    within(operands.second, description.shape, description.right)?;
    Ok(index(output))
}

/// The number of rows of the given columns.
fn rows(values: &[f32], columns: u32) -> Result<usize, Invalid> {
    let columns = index(product(&[columns])?);
    if !values.len().is_multiple_of(columns) {
        return Err(LENGTH);
    }
    Ok(values.len() / columns)
}

/// Check that the last element of a strided tensor lies in the operand.
fn within(operand: &[f32], sizes: [u32; 4], strides: [u32; 4]) -> Result<(), Invalid> {
    let mut last = 0_u64;
    for (size, stride) in sizes.into_iter().zip(strides) {
        let steps = u64::from(size.checked_sub(1).ok_or(ZERO)?);
        let distance = steps * u64::from(stride);
        last = last.checked_add(distance).ok_or(TOO_LARGE)?;
    }
    if last < operand.len() as u64 { Ok(()) } else { Err(LENGTH) }
}

pub(crate) fn length<T>(operand: &[T], expected: u64) -> Result<(), Invalid> {
    if operand.len() as u64 == expected { Ok(()) } else { Err(LENGTH) }
}

pub(crate) fn optional<T>(operand: &[T], expected: u64) -> Result<(), Invalid> {
    if operand.is_empty() { Ok(()) } else { length(operand, expected) }
}

pub(crate) fn absent<T>(operands: &[&[T]]) -> Result<(), Invalid> {
    if operands.iter().all(|operand| operand.is_empty()) { Ok(()) } else { Err(UNEXPECTED) }
}

/// The product of sizes that are not zero; at most [`MAX_ELEMENTS`].
pub(crate) fn product(sizes: &[u32]) -> Result<u64, Invalid> {
    sizes.iter().try_fold(1, |product, size| bounded_product(product, u64::from(*size)))
}

fn product_of(sizes: &[u64]) -> Result<u64, Invalid> {
    sizes.iter().try_fold(1, |product, size| bounded_product(product, *size))
}

fn bounded_product(left: u64, right: u64) -> Result<u64, Invalid> {
    if right == 0 {
        return Err(ZERO);
    }
    left.checked_mul(right).filter(|product| *product <= MAX_ELEMENTS).ok_or(TOO_LARGE)
}

/// A number of at most [`MAX_ELEMENTS`] as an index.
pub(crate) fn index(elements: u64) -> usize {
    usize::try_from(elements).expect("2^30 fits into an index")
}

pub(crate) fn block_size(size: usize) -> u32 {
    u32::try_from(size).expect("blocks are small")
}
