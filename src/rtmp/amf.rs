//! A look at AMF0 before `rml_amf0` reads it.
//!
//! The library reads nested values by recursion, so a few KiB of nested objects overflow the stack, which ends the
//! whole process; and it panics on a command of fewer than three values. This walk uses no recursion beyond
//! [`MAX_DEPTH`] and accepts only what the library understands.

/// Real commands nest twice.
pub const MAX_DEPTH: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmfError {
    #[error("an AMF0 value ends too early")]
    Short,
    #[error("AMF0 values nested more than {MAX_DEPTH} deep")]
    TooDeep,
    #[error("AMF0 type {0} is not allowed in a command")]
    Type(u8),
}

/// Counts the values at the top level of `payload` and checks all of them.
pub fn check(payload: &[u8]) -> Result<usize, AmfError> {
    let mut walk = Walk { rest: payload };
    let mut values = 0;
    while !walk.rest.is_empty() {
        walk.value(0)?;
        values += 1;
    }
    Ok(values)
}

struct Walk<'a> {
    rest: &'a [u8],
}

impl Walk<'_> {
    fn skip(&mut self, count: usize) -> Result<(), AmfError> {
        self.rest = self.rest.get(count..).ok_or(AmfError::Short)?;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], AmfError> {
        let bytes = *self.rest.first_chunk::<N>().ok_or(AmfError::Short)?;
        self.skip(N)?;
        Ok(bytes)
    }

    /// Types of AMF0 (specification of 2007, section 2.1).
    fn value(&mut self, depth: usize) -> Result<(), AmfError> {
        if depth > MAX_DEPTH {
            return Err(AmfError::TooDeep);
        }
        match self.take::<1>()?[0] {
            0 => self.skip(8),
            1 => self.skip(1),
            2 => self.string(),
            3 => self.properties(depth),
            5 | 6 => Ok(()),
            8 => {
                self.skip(4)?;
                self.properties(depth)
            }
            10 => {
                let count = u32::from_be_bytes(self.take()?);
                (0..count).try_for_each(|_| self.value(depth + 1))
            }
            other => Err(AmfError::Type(other)),
        }
    }

    fn string(&mut self) -> Result<(), AmfError> {
        let length = u16::from_be_bytes(self.take()?);
        self.skip(usize::from(length))
    }

    /// Names and values up to the empty name and the end marker 9.
    fn properties(&mut self, depth: usize) -> Result<(), AmfError> {
        loop {
            let length = u16::from_be_bytes(self.take()?);
            if length == 0 {
                return match self.take::<1>()?[0] {
                    9 => Ok(()),
                    other => Err(AmfError::Type(other)),
                };
            }
            self.skip(usize::from(length))?;
            self.value(depth + 1)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rml_amf0::Amf0Value;

    fn nested_objects(depth: usize) -> Vec<u8> {
        [3, 0, 1, b'a'].repeat(depth)
    }

    #[test]
    fn counts_what_a_real_command_holds() {
        let object = [("app".to_owned(), Amf0Value::Utf8String("live".to_owned()))].into_iter().collect();
        let values =
            vec![Amf0Value::Utf8String("connect".to_owned()), Amf0Value::Number(1.0), Amf0Value::Object(object)];
        assert_eq!(check(&rml_amf0::serialize(&values).unwrap()), Ok(3));
        assert_eq!(check(&[]), Ok(0));
    }

    #[test]
    fn deep_nesting_is_refused_before_it_can_use_the_stack() {
        assert_eq!(check(&nested_objects(4000)), Err(AmfError::TooDeep));
        assert_eq!(check(&[10, 0, 0, 0, 1].repeat(10_000)), Err(AmfError::TooDeep));
        assert_eq!(check(&nested_objects(MAX_DEPTH)), Err(AmfError::Short));
    }

    #[test]
    fn what_the_library_cannot_read_is_refused() {
        assert_eq!(check(&[2, 0, 9, b'x']), Err(AmfError::Short));
        assert_eq!(check(&[11, 0, 0]), Err(AmfError::Type(11)));
        assert_eq!(check(&[9]), Err(AmfError::Type(9)));
        assert_eq!(check(&[10, 255, 255, 255, 255]), Err(AmfError::Short));
    }
}
