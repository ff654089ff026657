//! The wire format of protobuf: keys, varints, length-delimited fields, and skipping unknown fields.
//!
//! The service's messages are only known at run time, so there are no generated types for prost. Its module
//! `prost::encoding` has the same functions, but it is documented as internal to prost and hidden from its
//! documentation, and its errors do not distinguish what is wrong with a message. `prost-reflect` builds a
//! tree of values, which may be dozens of times as large as the message.

/// The most nested groups in unknown fields, as in other implementations.
const MAX_DEPTH: u32 = 100;

/// Why a message is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It ends in the middle of a field.
    #[error("it ends in the middle of a field")]
    Cut,
    /// A number takes more than 64 bits.
    #[error("a number takes more than 64 bits")]
    Varint,
    /// A key has an invalid field number or wire type.
    #[error("there is no such key")]
    Key,
    /// A known field has the wrong wire type.
    #[error("a field has another type")]
    Type,
    /// A group is not closed, or is closed without being open.
    #[error("a group is broken")]
    Group,
    /// Groups are nested too deeply.
    #[error("it is nested too deep")]
    Depth,
}

/// The wire types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WireType {
    Varint,
    Fixed64,
    Delimited,
    GroupStart,
    GroupEnd,
    Fixed32,
}

impl WireType {
    /// Check that this is the wanted wire type.
    pub(super) fn expect(self, wanted: Self) -> Result<(), WireError> {
        if self == wanted { Ok(()) } else { Err(WireError::Type) }
    }
}

/// The remaining bytes of a message.
#[derive(Clone, Copy)]
pub(super) struct WireReader<'a>(pub(super) &'a [u8]);

impl<'a> WireReader<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0;
        for (index, byte) in self.0.iter().take(10).enumerate() {
            let bits = u64::from(byte & 0x7f);
            let shifted = bits << (7 * index);
            if shifted >> (7 * index) != bits {
                return Err(WireError::Varint);
            }
            value |= shifted;
            if byte & 0x80 == 0 {
                self.0 = &self.0[index + 1..];
                return Ok(value);
            }
        }
        Err(if self.0.len() < 10 { WireError::Cut } else { WireError::Varint })
    }

    /// Read the key of the next field: its number and its wire type.
    pub(super) fn key(&mut self) -> Result<(u32, WireType), WireError> {
        let key = u32::try_from(self.varint()?).map_err(|_error| WireError::Key)?;
        let wire = match key & 7 {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::Delimited,
            3 => WireType::GroupStart,
            4 => WireType::GroupEnd,
            5 => WireType::Fixed32,
            _ => return Err(WireError::Key),
        };
        if key >> 3 == 0 { Err(WireError::Key) } else { Ok((key >> 3, wire)) }
    }

    pub(super) fn delimited(&mut self) -> Result<&'a [u8], WireError> {
        let length = usize::try_from(self.varint()?).map_err(|_error| WireError::Cut)?;
        let (inside, after) = self.0.split_at_checked(length).ok_or(WireError::Cut)?;
        self.0 = after;
        Ok(inside)
    }

    pub(super) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (bytes, after) = self.0.split_first_chunk().ok_or(WireError::Cut)?;
        self.0 = after;
        Ok(*bytes)
    }

    /// Skip the value of an unknown field.
    pub(super) fn skip(&mut self, number: u32, wire: WireType) -> Result<(), WireError> {
        self.skip_at(number, wire, 0)
    }

    fn skip_at(&mut self, number: u32, wire: WireType, depth: u32) -> Result<(), WireError> {
        match wire {
            WireType::Varint => self.varint().map(drop),
            WireType::Fixed64 => self.fixed::<8>().map(drop),
            WireType::Delimited => self.delimited().map(drop),
            WireType::Fixed32 => self.fixed::<4>().map(drop),
            WireType::GroupEnd => Err(WireError::Group),
            WireType::GroupStart if depth == MAX_DEPTH => Err(WireError::Depth),
            WireType::GroupStart => loop {
                match self.key()? {
                    (end, WireType::GroupEnd) if end == number => return Ok(()),
                    (inner, wire) => self.skip_at(inner, wire, depth + 1)?,
                }
            },
        }
    }
}

pub(super) fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

pub(super) fn put_key(number: u32, wire: WireType, out: &mut Vec<u8>) {
    let wire = match wire {
        WireType::Varint => 0,
        WireType::Fixed64 => 1,
        WireType::Delimited => 2,
        WireType::GroupStart => 3,
        WireType::GroupEnd => 4,
        WireType::Fixed32 => 5,
    };
    put_varint(u64::from(number) << 3 | wire, out);
}

pub(super) fn put_delimited(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_key(number, WireType::Delimited, out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_round_trip(value in any::<u64>(), shift in 0_u32..64) {
            let mut bytes = Vec::new();
            put_varint(value >> shift, &mut bytes);
            bytes.push(7);
            let mut reader = WireReader(&bytes);
            prop_assert_eq!(reader.varint(), Ok(value >> shift));
            prop_assert_eq!(reader.0, &[7]);
        }
    }

    #[test]
    fn malformed_messages_are_distinguished() {
        let varint = |bytes: &[u8]| WireReader(bytes).varint();
        assert_eq!(varint(&[]), Err(WireError::Cut));
        assert_eq!(varint(&[0xff]), Err(WireError::Cut));
        assert_eq!(varint(&[0xff; 10]), Err(WireError::Varint));
        assert_eq!(varint(&[&[0xff; 9][..], &[2]].concat()), Err(WireError::Varint));
        assert_eq!(varint(&[&[0xff; 9][..], &[1]].concat()), Ok(u64::MAX));
        // An overlong encoding is valid.
        assert_eq!(varint(&[0x81, 0x80, 0]), Ok(1));
        let key = |bytes: &[u8]| WireReader(bytes).key().map(|(number, _)| number);
        assert_eq!(key(&[0]), Err(WireError::Key));
        assert_eq!(key(&[0x0e]), Err(WireError::Key));
        assert_eq!(key(&[&[0xff; 9][..], &[1]].concat()), Err(WireError::Key));
        assert_eq!(key(&[0x0a]), Ok(1));
        assert_eq!(WireReader(&[2, 0]).delimited(), Err(WireError::Cut));
    }

    #[test]
    fn groups_are_skipped_as_a_whole() {
        let skip = |bytes: &[u8]| {
            let mut reader = WireReader(bytes);
            let (number, wire) = reader.key()?;
            reader.skip(number, wire).map(|()| reader.0.len())
        };
        // Field 9 as a group with a varint and an empty group in it.
        assert_eq!(skip(&[0x4b, 0x08, 1, 0x53, 0x54, 0x4c, 5]), Ok(1));
        assert_eq!(skip(&[0x4b, 0x54]), Err(WireError::Group));
        assert_eq!(skip(&[0x4c]), Err(WireError::Group));
        assert_eq!(skip(&[0x4b]), Err(WireError::Cut));
        assert_eq!(skip(&[0x4b; 1000]), Err(WireError::Depth));
    }
}
