//! Matrix products, as a sum of products over the axes of two tensors describes them.
//!
//! Neighbouring axes that play the same part are one axis in memory. What is then left must be at
//! most two batch axes and one axis each of `m`, `n` and `k`.

use guesthouse_arithmetic::{MatrixProduct, Operands, Operation, RightOperand, Tail, pack_matrix};
use tract_onnx::tract_core::internal::*;

use super::node::{Constant, Resolved, size};

/// A product of two tensors.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Product {
    axes: Axes,
    left: Operand,
    right: Operand,
    /// By column, or empty.
    pub(super) bias: Constant,
    /// The last input is added before the tail.
    pub(super) has_residual: bool,
    /// The factor of the sums.
    pub(super) scale: f32,
}

/// One of the two tensors.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    /// The next input of the node.
    Input,
    /// Values of this shape.
    Constant(Constant, TVec<usize>),
    /// The same, packed as a right operand.
    Packed(Constant, TVec<usize>),
}

/// What the axes of the tensors are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Axes {
    batch: [Group; 2],
    m: Group,
    n: Group,
    k: Group,
    /// For each axis of the output, an axis of the left and of the right operand that may have its
    /// size.
    output: TVec<[Option<usize>; 2]>,
    /// Whether the left operand is the second of the sum of products.
    pub(super) are_operands_swapped: bool,
}

/// Axes that are one in memory, outermost first. A tensor without them is repeated along them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Group {
    left: TVec<usize>,
    right: TVec<usize>,
    output: TVec<usize>,
}

impl Group {
    fn swapped(self) -> Self {
        Self { left: self.right, right: self.left, output: self.output }
    }

    /// What comes first is outer in memory, if these groups can be one.
    fn order(&self) -> (Option<usize>, Option<usize>) {
        (self.output.first().copied(), self.left.first().copied())
    }

    fn size(&self, left: &[usize], right: &[usize]) -> usize {
        let (axes, shape) =
            if self.left.is_empty() { (&self.right, right) } else { (&self.left, left) };
        axes.iter().map(|axis| shape[*axis]).product()
    }
}

/// The distance between neighbours along the innermost of these axes, or 0 without axes.
fn stride(axes: &[usize], shape: &[usize]) -> usize {
    axes.last().map_or(0, |axis| shape[axis + 1..].iter().product())
}

impl Axes {
    /// Find out what the axes of a sum of products are for, if it is a matrix product for all sizes
    /// of named dimensions.
    pub(super) fn new(mapping: &AxesMapping, shapes: [&ShapeFact; 3]) -> Option<Self> {
        let Roles { mut m, mut n, k, batch } = Roles::new(mapping, shapes)?;
        let innermost = shapes[2].iter().rposition(|size| !size.is_one());
        let ends_in = |groups: &[Group], axis: usize| {
            groups.last().is_some_and(|group| group.output.last() == Some(&axis))
        };
        let are_operands_swapped = innermost.is_some_and(|axis| ends_in(&m, axis));
        if are_operands_swapped {
            (m, n) = (n, m);
        } else if innermost.is_some_and(|axis| !ends_in(&n, axis)) {
            return None;
        }
        let [columns, rows] = [n.pop().unwrap_or_default(), m.pop().unwrap_or_default()];
        let [k] = <[Group; 1]>::try_from(k)
            .or_else(|groups| if groups.is_empty() { Ok([Group::default()]) } else { Err(()) })
            .ok()?;
        // What is left over repeats one of the operands.
        let mut outer: Vec<Group> = batch.into_iter().chain(m).chain(n).collect();
        outer.sort_by_key(Group::order);
        while outer.len() < 2 {
            outer.insert(0, Group::default());
        }
        let batch = <[Group; 2]>::try_from(outer).ok()?;
        let output = (0..shapes[2].rank()).map(|axis| {
            let axis = mapping.axis((InOut::Out(0), axis)).ok()?;
            Some([axis.inputs[0].first().copied(), axis.inputs[1].first().copied()])
        });
        let axes = Self {
            batch,
            m: rows,
            n: columns,
            k,
            output: output.collect::<Option<_>>()?,
            are_operands_swapped,
        };
        Some(if are_operands_swapped { axes.swapped() } else { axes })
    }

    fn swapped(self) -> Self {
        Self {
            batch: self.batch.map(Group::swapped),
            m: self.m.swapped(),
            n: self.n.swapped(),
            k: self.k.swapped(),
            output: self.output.into_iter().map(|[left, right]| [right, left]).collect(),
            are_operands_swapped: self.are_operands_swapped,
        }
    }

    /// Whether a constant right operand is the same for the whole batch.
    fn is_right_shared(&self) -> bool {
        self.batch.iter().all(|group| group.right.is_empty())
    }
}

/// The groups of axes by what they are for.
struct Roles {
    m: Vec<Group>,
    n: Vec<Group>,
    k: Vec<Group>,
    batch: Vec<Group>,
}

impl Roles {
    fn new(mapping: &AxesMapping, shapes: [&ShapeFact; 3]) -> Option<Self> {
        let mut roles = Self { m: vec![], n: vec![], k: vec![], batch: vec![] };
        for axis in mapping.iter_all_axes() {
            let [left, right, output] =
                [&axis.inputs[0], &axis.inputs[1], &axis.outputs[0]].map(|axes| &axes[..]);
            if left.len().max(right.len()).max(output.len()) > 1 {
                return None;
            }
            let larger = |axes: &[usize], shape: &ShapeFact| -> TVec<usize> {
                axes.iter().copied().filter(|axis| !shape[*axis].is_one()).collect()
            };
            let group = Group {
                left: larger(left, shapes[0]),
                right: larger(right, shapes[1]),
                output: larger(output, shapes[2]),
            };
            if let ([left], [right]) = (&group.left[..], &group.right[..])
                && shapes[0][*left] != shapes[1][*right]
            {
                return None;
            }
            match [&group.left, &group.right, &group.output].map(|axes| !axes.is_empty()) {
                [false, false, false] => {}
                [true, false, true] => roles.m.push(group),
                [false, true, true] => roles.n.push(group),
                [true, true, false] => roles.k.push(group),
                [true, true, true] => roles.batch.push(group),
                [true, false, false] | [false, true, false] | [false, false, true] => return None,
            }
        }
        let Self { m, n, k, batch } = roles;
        let [m, n, k, batch] = [m, n, k, batch].map(|groups| joined(groups, shapes));
        Some(Self { m, n, k, batch })
    }
}

/// Join groups that are neighbours in every tensor.
fn joined(mut groups: Vec<Group>, shapes: [&ShapeFact; 3]) -> Vec<Group> {
    groups.sort_by_key(Group::order);
    let mut joined: Vec<Group> = Vec::new();
    for group in groups {
        match joined.last_mut() {
            Some(last)
                if are_neighbours(&last.left, &group.left, shapes[0])
                    && are_neighbours(&last.right, &group.right, shapes[1])
                    && are_neighbours(&last.output, &group.output, shapes[2]) =>
            {
                last.left.extend(group.left);
                last.right.extend(group.right);
                last.output.extend(group.output);
            }
            _ => joined.push(group),
        }
    }
    joined
}

fn are_neighbours(outer: &[usize], inner: &[usize], shape: &ShapeFact) -> bool {
    match (outer.last(), inner.first()) {
        (None, None) => true,
        (Some(outer), Some(inner)) => {
            outer < inner && (outer + 1..*inner).all(|axis| shape[axis].is_one())
        }
        _ => false,
    }
}

impl Product {
    pub(super) fn new(axes: Axes, [left, right]: [Operand; 2]) -> Self {
        let bias = Constant::default();
        Self { axes, left, right, bias, has_residual: false, scale: 1.0 }
    }

    /// The number of operands that are not constant.
    pub(super) fn input_count(&self) -> usize {
        [&self.left, &self.right].into_iter().filter(|operand| **operand == Operand::Input).count()
    }

    /// Whether a constant of this shape differs along the columns of an output only, and has as many
    /// elements.
    pub(super) fn is_by_column(&self, constant: &[usize], output: &ShapeFact) -> bool {
        let columns = &self.axes.n.output;
        constant.len() == output.rank()
            && constant.iter().enumerate().all(|(axis, size)| {
                if columns.contains(&axis) { output[axis] == size.to_dim() } else { *size == 1 }
            })
    }

    pub(super) fn pack(&mut self) {
        let Operand::Constant(values, shape) = &self.right else { return };
        if !self.axes.is_right_shared() {
            return;
        }
        let axes = &self.axes;
        let count = |axes: &[usize]| axes.iter().map(|axis| shape[*axis]).product::<usize>();
        let size = [&axes.k, &axes.n].map(|group| count(&group.right));
        let strides = [&axes.k, &axes.n].map(|group| stride(&group.right, shape));
        self.right = Operand::Packed(pack_matrix(size, strides, values).into(), shape.clone());
    }

    pub(super) fn resolve(&self, inputs: &[&[usize]], tail: Tail) -> TractResult<Resolved> {
        let mut inputs = inputs.iter().copied();
        let mut shape_of = |operand| match operand {
            &Operand::Input => inputs.next().context("an operand is missing"),
            Operand::Constant(_, shape) | Operand::Packed(_, shape) => Ok(&**shape),
        };
        let left = shape_of(&self.left)?;
        let right = shape_of(&self.right)?;
        let axes = &self.axes;
        let shape: TVec<usize> = axes
            .output
            .iter()
            .map(|sources| {
                let sizes = [(sources[0], left), (sources[1], right)];
                let sizes = sizes.map(|(axis, shape)| axis.map_or(1, |axis| shape[axis]));
                if sizes[0] == 1 { sizes[1] } else { sizes[0] }
            })
            .collect();
        let [batch0, batch1] = &axes.batch;
        let groups = [batch0, batch1, &axes.m, &axes.n, &axes.k];
        let sizes = groups.map(|group| group.size(left, right));
        let [batch0_size, batch1_size, m, n, k] = sizes;
        let strides = |shape: &[usize], axes: [&[usize]; 4]| -> TractResult<[u32; 4]> {
            let mut strides = [0; 4];
            for (target, axes) in strides.iter_mut().zip(axes) {
                *target = size(stride(axes, shape))?;
            }
            Ok(strides)
        };
        let left = strides(left, [&batch0.left, &batch1.left, &axes.m.left, &axes.k.left])?;
        let right = match &self.right {
            Operand::Packed(..) => RightOperand::Packed,
            Operand::Input | Operand::Constant(..) => RightOperand::Strided(strides(
                right,
                [&batch0.right, &batch1.right, &axes.k.right, &axes.n.right],
            )?),
        };
        let [batch0, batch1, rows, _] =
            strides(&shape, [&batch0.output, &batch1.output, &axes.m.output, &[]])?;
        let product = MatrixProduct {
            batch: [size(batch0_size)?, size(batch1_size)?],
            size: [size(m)?, size(n)?, size(k)?],
            left,
            right,
            output: [batch0, batch1, rows],
            scale: self.scale,
        };
        Ok(Resolved::new(Operation::MatrixProduct(product, tail), shape))
    }

    pub(super) fn operands<'a>(&'a self, inputs: &[&'a [f32]]) -> TractResult<Operands<'a>> {
        let mut inputs = inputs.iter().copied();
        let mut values = |operand: &'a Operand| match operand {
            Operand::Input => inputs.next().context("an operand is missing"),
            Operand::Constant(values, _) | Operand::Packed(values, _) => Ok(&**values),
        };
        let (first, second) = (values(&self.left)?, values(&self.right)?);
        let residual = match self.has_residual {
            true => inputs.next().context("the residual is missing")?,
            false => &[],
        };
        Ok(Operands { first, second, bias: &self.bias, residual })
    }
}
