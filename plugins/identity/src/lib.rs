//! Returns its input unchanged, for tests of everything between a client and a guest.
//!
//! The manifest's parameters configure it:
//!
//! | parameter | what it is |
//! |---|---|
//! | `datatype` | a name of the Open Inference Protocol; `TEXT` for `BYTES` that are UTF-8 |
//! | `row_shape` | the dimensions of a row with commas between them, `-1` for any size; may be empty |
//! | `max_batch_size` | the most rows of a call |

use guesthouse_guest::{
    Assets, Batch, Datatype, Error, Field, Guest, PredictError, Signature, Tensor,
};

struct Identity {
    datatype: Datatype,
}

impl Guest for Identity {
    fn init(assets: &Assets) -> Result<(Self, Signature), Error> {
        let kind: String = assets.parameter("datatype")?;
        let row_shape = row_shape(&assets.parameter::<String>("row_shape")?)?;
        let field = |name, description| match kind.as_str() {
            "TEXT" => Ok((Datatype::Bytes, Field::text(name, description))),
            kind => {
                datatype(kind).map(|datatype| (datatype, Field::new(name, description, datatype)))
            }
        };
        let (datatype, input) = field("INPUT0", "anything")?;
        let (_, output) = field("OUTPUT0", "the same")?;
        let input = input.row_shape(row_shape.iter().copied());
        let output = output.row_shape(row_shape.iter().copied());
        let rows = assets.parameter("max_batch_size")?;
        Ok((Self { datatype }, Signature::new([input], [output]).max_batch_size(rows)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let (shape, data) = (batch.shape("INPUT0")?, batch.data("INPUT0", self.datatype)?);
        Ok(vec![Tensor::raw("OUTPUT0", self.datatype, shape.to_vec(), data.to_vec())])
    }
}

fn datatype(name: &str) -> Result<Datatype, Error> {
    Ok(match name {
        "BOOL" => Datatype::Bool,
        "UINT8" => Datatype::Uint8,
        "UINT16" => Datatype::Uint16,
        "UINT32" => Datatype::Uint32,
        "UINT64" => Datatype::Uint64,
        "INT8" => Datatype::Int8,
        "INT16" => Datatype::Int16,
        "INT32" => Datatype::Int32,
        "INT64" => Datatype::Int64,
        "FP16" => Datatype::Fp16,
        "FP32" => Datatype::Fp32,
        "FP64" => Datatype::Fp64,
        "BYTES" => Datatype::Bytes,
        "BF16" => Datatype::Bf16,
        _ => return Err(Error::new(format!("{name:?} is no datatype"))),
    })
}

fn row_shape(text: &str) -> Result<Vec<Option<u32>>, Error> {
    let dimension = |size: &str| match size {
        "-1" => Ok(None),
        size => size.parse().map(Some).map_err(|_error| {
            Error::new(format!("a dimension of a row is {size:?}, and neither -1 nor a size"))
        }),
    };
    if text.is_empty() { Ok(Vec::new()) } else { text.split(',').map(dimension).collect() }
}

guesthouse_guest::export!(Identity);
