//! Reads the AMF0 of commands that strangers send.
//!
//! What encoders mean is read, what nobody needs (dates, references, typed objects, AMF3) is read over, and what cannot
//! be read ends the values but not the connection. Nothing is nested deeper than [`MAX_DEPTH`] here, so a few KiB of
//! nested objects cannot overflow the stack, and only the properties of outermost objects are kept.

mod avm;

/// Real commands nest twice.
pub const MAX_DEPTH: usize = 16;
/// A command has a name, a transaction id, an object and a few arguments.
const MAX_VALUES: usize = 16;

/// Markers (AMF0 specification of 2007, section 2.1).
mod marker {
    pub const NUMBER: u8 = 0;
    pub const BOOLEAN: u8 = 1;
    pub const STRING: u8 = 2;
    pub const OBJECT: u8 = 3;
    pub const NULL: u8 = 5;
    pub const UNDEFINED: u8 = 6;
    pub const REFERENCE: u8 = 7;
    pub const ECMA_ARRAY: u8 = 8;
    pub const OBJECT_END: u8 = 9;
    pub const STRICT_ARRAY: u8 = 10;
    pub const DATE: u8 = 11;
    pub const LONG_STRING: u8 = 12;
    pub const UNSUPPORTED: u8 = 13;
    pub const RECORDSET: u8 = 14;
    pub const XML_DOCUMENT: u8 = 15;
    pub const TYPED_OBJECT: u8 = 16;
    pub const AVM_PLUS: u8 = 17;
}

/// A value, as far as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Number(f64),
    Text(String),
    /// In the order sent. An ECMA array is one, too.
    Object(Vec<(String, Value)>),
    Null,
    /// Read over.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmfError {
    #[error("AMF values nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// A command message (RTMP specification 7.2).
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    pub name: String,
    /// 0 asks for no answer.
    pub transaction: f64,
    /// Properties of the command object.
    pub object: Vec<(String, Value)>,
    pub arguments: Vec<Value>,
}

impl Command {
    /// `None`: it does not begin with a name.
    pub fn read(payload: &[u8]) -> Result<Option<Self>, AmfError> {
        let mut values = read(payload)?.into_iter().peekable();
        let Some(Value::Text(name)) = values.next() else { return Ok(None) };
        let transaction = values.next_if(|value| matches!(value, Value::Number(_)));
        let transaction = if let Some(Value::Number(id)) = transaction { id } else { 0.0 };
        // Some leave the object out where it would be null: then an argument is in its place.
        let object = values.next_if(|value| !matches!(value, Value::Text(_) | Value::Number(_)));
        let object = if let Some(Value::Object(properties)) = object { properties } else { Vec::new() };
        Ok(Some(Self { name, transaction, object, arguments: values.collect() }))
    }

    /// A text property of the command object.
    pub fn property(&self, wanted: &str) -> Option<&str> {
        self.object.iter().find_map(|(name, value)| match value {
            Value::Text(text) if name == wanted => Some(text.as_str()),
            _ => None,
        })
    }
}

/// The values at the top level, up to the first that cannot be read.
pub fn read(payload: &[u8]) -> Result<Vec<Value>, AmfError> {
    let mut walk = Walk { rest: payload };
    let mut values = Vec::new();
    while !walk.rest.is_empty() && values.len() < MAX_VALUES {
        match walk.value(0) {
            Ok(value) => values.push(value),
            Err(Stop::Unreadable) => break,
            Err(Stop::TooDeep) => return Err(AmfError::TooDeep),
        }
    }
    Ok(values)
}

/// Why a value ends before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Cut short, or of a type that has no form.
    Unreadable,
    TooDeep,
}

struct Walk<'a> {
    rest: &'a [u8],
}

impl<'a> Walk<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(Stop::Unreadable)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        self.bytes(N).map(|bytes| bytes.try_into().expect("as many as asked for"))
    }

    fn value(&mut self, depth: usize) -> Result<Value, Stop> {
        if depth > MAX_DEPTH {
            return Err(Stop::TooDeep);
        }
        let [kind] = self.take()?;
        match kind {
            marker::NUMBER => Ok(Value::Number(f64::from_be_bytes(self.take()?))),
            marker::BOOLEAN => self.over(1),
            marker::STRING => self.short_text().map(|text| keep_text(text, depth)),
            marker::OBJECT => self.object(depth, None),
            marker::NULL | marker::UNDEFINED => Ok(Value::Null),
            marker::REFERENCE => self.over(2),
            marker::ECMA_ARRAY => {
                let count = u32::from_be_bytes(self.take()?);
                self.object(depth, Some(count))
            }
            marker::STRICT_ARRAY => {
                let count = u32::from_be_bytes(self.take()?);
                (0..count).try_for_each(|_| self.value(depth + 1).map(drop))?;
                Ok(Value::Other)
            }
            marker::DATE => self.over(8 + 2),
            marker::LONG_STRING => self.long_text().map(|text| keep_text(text, depth)),
            marker::UNSUPPORTED | marker::RECORDSET | marker::OBJECT_END => Ok(Value::Other),
            marker::XML_DOCUMENT => self.long_text().map(|_| Value::Other),
            marker::TYPED_OBJECT => {
                self.short_text()?;
                self.object(depth, None)
            }
            marker::AVM_PLUS => avm::value(self, depth),
            _ => Err(Stop::Unreadable),
        }
    }

    fn over(&mut self, count: usize) -> Result<Value, Stop> {
        self.bytes(count).map(|_| Value::Other)
    }

    fn short_text(&mut self) -> Result<&'a [u8], Stop> {
        let length = u16::from_be_bytes(self.take()?);
        self.bytes(usize::from(length))
    }

    fn long_text(&mut self) -> Result<&'a [u8], Stop> {
        let length = u32::from_be_bytes(self.take()?);
        self.bytes(length as usize)
    }

    /// `count` is that of an ECMA array. It is wrong as often as its end marker is missing, so it counts only where no
    /// end marker is found.
    fn object(&mut self, depth: usize, count: Option<u32>) -> Result<Value, Stop> {
        let mut kept = Vec::new();
        let mut by_count = (count == Some(0)).then_some((self.rest, 0));
        let mut read = 0;
        loop {
            match self.property(depth, &mut kept) {
                Ok(true) => read += 1,
                Ok(false) => return Ok(Value::Object(kept)),
                // Only here, lest nested arrays be read again and again.
                Err(Stop::Unreadable) if depth == 0 => {
                    let (rest, properties) = by_count.unwrap_or((&[], kept.len()));
                    self.rest = rest;
                    kept.truncate(properties);
                    return Ok(Value::Object(kept));
                }
                Err(stop) => return Err(stop),
            }
            if count == Some(read) {
                by_count = Some((self.rest, kept.len()));
            }
        }
    }

    /// False at the end marker, which follows an empty name.
    fn property(&mut self, depth: usize, kept: &mut Vec<(String, Value)>) -> Result<bool, Stop> {
        let name = self.short_text()?;
        if name.is_empty() && self.rest.first() == Some(&marker::OBJECT_END) {
            self.bytes(1)?;
            return Ok(false);
        }
        let value = self.value(depth + 1)?;
        if depth == 0 {
            kept.push((String::from_utf8_lossy(name).into_owned(), value));
        }
        Ok(true)
    }
}

/// Of nested values nobody asks for more than those of an outermost object.
fn keep_text(text: &[u8], depth: usize) -> Value {
    if depth > 1 { Value::Other } else { Value::Text(String::from_utf8_lossy(text).into_owned()) }
}

#[cfg(test)]
mod tests;
