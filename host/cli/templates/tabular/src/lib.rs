//! The price of a house: a linear model of its columns.

use guesthouse_guest::{Assets, Batch, Error, Field, Guest, PredictError, Signature, Tensor};

/// The columns, in the order of the coefficients.
const COLUMNS: [&str; 3] = ["area", "rooms", "age"];

/// The number of rooms where a caller leaves it out.
const DEFAULT_ROOMS: f32 = 3.0;

struct Price {
    intercept: f32,
    coefficients: [f32; 3],
}

impl Guest for Price {
    fn init(assets: &Assets) -> Result<(Self, Signature), Error> {
        let price = Self::parse(&assets.read_text("coefficients.tsv")?).map_err(Error::new)?;
        let inputs = [
            Field::fp32("area", "the living area, in square metres").range(1.0, 2000.0),
            Field::fp32("rooms", "the number of rooms")
                .range(1.0, 50.0)
                .default_row(DEFAULT_ROOMS.to_le_bytes()),
            Field::fp32("age", "the age, in years").range(0.0, 1000.0),
        ];
        let output = Field::fp32("price", "the price, in euros");
        Ok((price, Signature::new(inputs, [output]).max_batch_size(256)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let [area, rooms, age] = COLUMNS.map(|column| batch.fp32(column));
        let (area, rooms, age) = (area?, rooms?, age?);
        let prices = (0..batch.rows()).map(|row| self.price([area[row], rooms[row], age[row]]));
        Ok(vec![Tensor::fp32("price", prices)])
    }
}

impl Price {
    fn price(&self, row: [f32; 3]) -> f32 {
        let terms = row.iter().zip(&self.coefficients).map(|(value, coefficient)| value * coefficient);
        self.intercept + terms.sum::<f32>()
    }

    /// Parse lines with a name and a number.
    fn parse(text: &str) -> Result<Self, String> {
        let coefficient = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
            let number = line.and_then(|number| number.trim().parse().ok());
            number.ok_or_else(|| format!("coefficients.tsv has no number for {name}"))
        };
        let [area, rooms, age] = COLUMNS.map(coefficient);
        Ok(Self { intercept: coefficient("intercept")?, coefficients: [area?, rooms?, age?] })
    }
}

guesthouse_guest::export!(Price);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_has_its_coefficient() {
        let price = Price::parse(include_str!("../assets/coefficients.tsv")).unwrap();
        assert_eq!(price.price([0.0, 0.0, 0.0]), 50_000.0);
        assert_eq!(price.price([80.0, 3.0, 10.0]), 275_000.0);
    }

    #[test]
    fn a_missing_coefficient_is_named() {
        let error = Price::parse("intercept\t1\narea\t2\nrooms\t3\n").err().unwrap();
        assert!(error.contains("age"), "{error}");
    }
}
