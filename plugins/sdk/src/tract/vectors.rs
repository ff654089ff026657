//! Support vector machines of `ai.onnx.ml`, which tract does not have. They compute in double
//! precision, as those of scikit-learn do.

use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_hir::internal::*;

use super::categories::Lookup;

/// Read the machines of ONNX files.
pub(super) fn register(onnx: &mut Onnx) {
    onnx.op_register.insert("SVMClassifier", classifier);
    onnx.op_register.insert("SVMRegressor", regressor);
}

type Parsed = (Box<dyn InferenceOp>, Vec<String>);

fn regressor(_context: &ParsingContext, node: &NodeProto) -> TractResult<Parsed> {
    let count = node.get_attr_opt::<usize>("n_supports")?.unwrap_or(0);
    let vectors = Vectors::parse(node, count)?;
    ensure!(node.get_attr_opt::<i64>("one_class")?.unwrap_or(0) == 0, "one class is not supported");
    ensure!(
        vectors.coefficients.len() == count && vectors.rho.len() == 1,
        "a coefficient is missing"
    );
    Ok((expand(Machine { vectors, classes: None }), vec![]))
}

fn classifier(_context: &ParsingContext, node: &NodeProto) -> TractResult<Parsed> {
    let labels = match node.get_attr_opt_vec::<String>("classlabels_strings")? {
        Some(labels) => tensor1(&labels),
        None => tensor1(&node.get_attr_vec::<i64>("classlabels_ints")?),
    };
    let sizes: Vec<usize> = node.get_attr_vec("vectors_per_class")?;
    let vectors = Vectors::parse(node, sizes.iter().sum())?;
    let count = sizes.len();
    let pairs = count * (count.max(1) - 1) / 2;
    ensure!(count >= 2 && labels.len() == count, "there are as many classes as labels, at least 2");
    ensure!(vectors.rho.len() == pairs, "there is a threshold for each pair of classes");
    let size = (count - 1) * sizes.iter().sum::<usize>();
    ensure!(vectors.coefficients.len() == size, "a coefficient is missing");
    let of = |name| node.get_attr_opt_vec::<f32>(name).map(Option::unwrap_or_default);
    let sigmoids: Vec<(f32, f32)> = of("prob_a")?.into_iter().zip(of("prob_b")?).collect();
    ensure!(sigmoids.is_empty() || sigmoids.len() == pairs, "a pair of classes has no sigmoid");
    let classes = Classes { sizes, sigmoids, labels: labels.into_arc_tensor() };
    Ok((expand(Machine { vectors, classes: Some(classes) }), vec![]))
}

#[derive(Debug, Clone, PartialEq)]
struct Vectors {
    kernel: Kernel,
    /// One after the other.
    vectors: Arc<[f32]>,
    features: usize,
    coefficients: Arc<[f32]>,
    rho: Arc<[f32]>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kernel {
    Linear,
    Polynomial { gamma: f64, constant: f64, degree: f64 },
    Radial { gamma: f64 },
    Sigmoid { gamma: f64, constant: f64 },
}

/// What a classifier has beside its vectors.
#[derive(Debug, Clone, PartialEq)]
struct Classes {
    /// The number of vectors of each class.
    sizes: Vec<usize>,
    /// The factor and the summand of each pair's sigmoid; empty if there are no probabilities.
    sigmoids: Vec<(f32, f32)>,
    labels: Arc<Tensor>,
}

#[derive(Debug, Clone, PartialEq)]
struct Machine {
    vectors: Vectors,
    /// `None` for a regression.
    classes: Option<Classes>,
}

/// Numbers are compared only for constants, which have been read from a model.
impl Eq for Machine {}

impl Vectors {
    fn parse(node: &NodeProto, count: usize) -> TractResult<Self> {
        let transform = node.get_attr_opt::<&str>("post_transform")?.unwrap_or("NONE");
        ensure!(transform == "NONE", "the transform {transform} of vectors is not supported");
        let vectors: Vec<f32> = node.get_attr_vec("support_vectors")?;
        ensure!(count > 0 && vectors.len().is_multiple_of(count), "vectors have different lengths");
        let parameters: Vec<f32> = node.get_attr_opt_vec("kernel_params")?.unwrap_or_default();
        let parameter = |index: usize| parameters.get(index).map_or(0.0, |value| f64::from(*value));
        let (gamma, constant, degree) = (parameter(0), parameter(1), parameter(2));
        let kernel = match node.get_attr_opt::<&str>("kernel_type")?.unwrap_or("LINEAR") {
            "LINEAR" => Kernel::Linear,
            "POLY" => Kernel::Polynomial { gamma, constant, degree },
            "RBF" => Kernel::Radial { gamma },
            "SIGMOID" => Kernel::Sigmoid { gamma, constant },
            other => bail!("the kernel {other} is not supported"),
        };
        let features = vectors.len() / count;
        let coefficients = node.get_attr_vec::<f32>("coefficients")?.into();
        let rho = node.get_attr_vec::<f32>("rho")?.into();
        Ok(Self { kernel, vectors: vectors.into(), features, coefficients, rho })
    }

    /// How near a row is to each vector.
    fn kernels(&self, row: &[f32]) -> Vec<f64> {
        let product = |vector: &[f32]| -> f64 {
            vector.iter().zip(row).map(|(left, right)| f64::from(*left) * f64::from(*right)).sum()
        };
        let distance = |vector: &[f32]| -> f64 {
            let differences = vector.iter().zip(row).map(|(left, right)| f64::from(left - right));
            differences.map(|difference| difference * difference).sum()
        };
        let vectors = self.vectors.chunks_exact(self.features.max(1));
        let kernel = |vector: &[f32]| match self.kernel {
            Kernel::Linear => product(vector),
            Kernel::Polynomial { gamma, constant, degree } => {
                (gamma * product(vector) + constant).powf(degree)
            }
            Kernel::Radial { gamma } => (-gamma * distance(vector)).exp(),
            Kernel::Sigmoid { gamma, constant } => (gamma * product(vector) + constant).tanh(),
        };
        vectors.map(kernel).collect()
    }

    fn weighted(&self, coefficients: &[f32], kernels: &[f64]) -> f64 {
        coefficients.iter().zip(kernels).map(|(weight, kernel)| f64::from(*weight) * kernel).sum()
    }
}

impl Classes {
    /// The class of a row and its scores: probabilities, or what decides between each two classes.
    fn classify(&self, vectors: &Vectors, row: &[f32]) -> (usize, Vec<f64>) {
        let kernels = vectors.kernels(row);
        let count = self.sizes.len();
        let total: usize = self.sizes.iter().sum();
        let ends = self.sizes.iter().scan(0, |end, size| {
            *end += size;
            Some(*end)
        });
        let ranges: Vec<_> = ends.zip(&self.sizes).map(|(end, size)| end - size..end).collect();
        let part = |line: usize, class: usize| {
            let range = ranges[class].clone();
            let line = &vectors.coefficients[line * total..(line + 1) * total];
            vectors.weighted(&line[range.clone()], &kernels[range])
        };
        let mut votes = vec![0_usize; count];
        let mut decisions = Vec::new();
        let pairs = (0..count).flat_map(|left| (left + 1..count).map(move |right| (left, right)));
        for ((left, right), rho) in pairs.zip(&*vectors.rho) {
            let decision = part(right - 1, left) + part(left, right) + f64::from(*rho);
            votes[if decision > 0.0 { left } else { right }] += 1;
            decisions.push(decision);
        }
        if self.sigmoids.is_empty() {
            let most = votes.iter().max().copied().unwrap_or(0);
            let class = votes.iter().position(|votes| *votes == most).unwrap_or(0);
            let scores = match decisions[..] {
                [decision] => vec![-decision, decision],
                _ => decisions,
            };
            return (class, scores);
        }
        let probabilities = self.probabilities(&decisions);
        let best = |best: usize, (class, probability): (usize, &f64)| {
            if *probability > probabilities[best] { class } else { best }
        };
        (probabilities.iter().enumerate().fold(0, best), probabilities)
    }

    /// Probabilities of all classes from those of each two, by the method of Wu, Lin and Weng (2004)
    /// as LIBSVM has it.
    fn probabilities(&self, decisions: &[f64]) -> Vec<f64> {
        let count = self.sizes.len();
        let mut pairs = vec![vec![0.0; count]; count];
        let indexes = (0..count).flat_map(|left| (left + 1..count).map(move |right| (left, right)));
        for ((left, right), (decision, (factor, summand))) in
            indexes.zip(decisions.iter().zip(&self.sigmoids))
        {
            let exponent = decision * f64::from(*factor) + f64::from(*summand);
            let probability = (1.0 + exponent.exp()).recip().clamp(1e-7, 1.0 - 1e-7);
            pairs[left][right] = probability;
            pairs[right][left] = 1.0 - probability;
        }
        let matrix = |row: usize, column: usize| -> f64 {
            if row == column {
                (0..count)
                    .filter(|other| *other != row)
                    .map(|other| pairs[other][row].powi(2))
                    .sum()
            } else {
                -pairs[column][row] * pairs[row][column]
            }
        };
        let mut found = vec![(count as f64).recip(); count];
        for _ in 0..count.max(100) {
            let product = |row: usize| -> f64 {
                (0..count).map(|column| matrix(row, column) * found[column]).sum()
            };
            let mut products: Vec<f64> = (0..count).map(product).collect();
            let mut whole: f64 =
                products.iter().zip(&found).map(|(left, right)| left * right).sum();
            let error = products.iter().map(|product| (product - whole).abs()).fold(0.0, f64::max);
            if error < 0.005 / count as f64 {
                break;
            }
            for row in 0..count {
                let step = (whole - products[row]) / matrix(row, row);
                found[row] += step;
                let scale = 1.0 + step;
                whole = (whole + step * (step * matrix(row, row) + 2.0 * products[row]))
                    / scale
                    / scale;
                for column in 0..count {
                    products[column] = (products[column] + step * matrix(row, column)) / scale;
                    found[column] /= scale;
                }
            }
        }
        found
    }

    /// The columns of the scores.
    fn columns(&self) -> usize {
        let count = self.sizes.len();
        if self.sigmoids.is_empty() { (count * (count - 1) / 2).max(2) } else { count }
    }
}

impl Expansion for Machine {
    fn name(&self) -> StaticName {
        "SVM".into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(if self.classes.is_some() { 2 } else { 1 })
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        let (scores, columns) = match &self.classes {
            Some(classes) => {
                check_output_arity(outputs, 2)?;
                solver.equals(&outputs[0].datum_type, classes.labels.datum_type())?;
                solver.equals(&outputs[0].rank, 1)?;
                solver.equals(&outputs[0].shape[0], &inputs[0].shape[0])?;
                (&outputs[1], classes.columns())
            }
            None => (&outputs[0], 1),
        };
        solver.equals(&scores.datum_type, f32::datum_type())?;
        solver.equals(&scores.rank, 2)?;
        solver.equals(&scores.shape[0], &inputs[0].shape[0])?;
        solver.equals(&scores.shape[1], columns.to_dim())
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let Some(classes) = &self.classes else {
            return model.wire_node(prefix, self.clone(), inputs);
        };
        let found = model.wire_node(format!("{prefix}.classes"), self.clone(), inputs)?;
        let lookup = Lookup::of_indexes(&classes.labels)?;
        let label = model.wire_node(prefix, lookup, &found[..1])?[0];
        Ok(tvec!(label, found[1]))
    }
}

impl Op for Machine {
    fn name(&self) -> StaticName {
        "SupportVectors".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Machine {
    op_out_of_plan!();

    #[expect(clippy::cast_possible_truncation, reason = "scores are in single precision")]
    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let [rows, columns] = *input.shape() else { bail!("vectors take rows of features") };
        ensure!(columns == self.vectors.features, "vectors have another number of features");
        let input = input.cast_to::<f32>()?;
        let view = input.try_as_plain_ram()?;
        let all = view.as_slice::<f32>()?.chunks_exact(columns.max(1));
        let Some(classes) = &self.classes else {
            let sum = |row: &[f32]| {
                let kernels = self.vectors.kernels(row);
                let sum = self.vectors.weighted(&self.vectors.coefficients, &kernels);
                (sum + f64::from(self.vectors.rho[0])) as f32
            };
            let sums: Vec<f32> = all.map(sum).collect();
            return Ok(tvec!(Tensor::from_shape(&[rows, 1], &sums)?.into_tvalue()));
        };
        let (mut indexes, mut scores) = (Vec::with_capacity(rows), Vec::new());
        for row in all {
            let (class, found) = classes.classify(&self.vectors, row);
            indexes.push(class as i64);
            scores.extend(found.into_iter().map(|score| score as f32));
        }
        let scores = Tensor::from_shape(&[rows, classes.columns()], &scores)?;
        Ok(tvec!(tensor1(&indexes).into_tvalue(), scores.into_tvalue()))
    }
}

impl TypedOp for Machine {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let rows = inputs[0].shape[0].clone();
        Ok(match &self.classes {
            None => tvec!(f32::fact([rows, 1.to_dim()])),
            Some(classes) => {
                tvec!(i64::fact([rows.clone()]), f32::fact([rows, classes.columns().to_dim()]))
            }
        })
    }

    as_op!();
}
