//! AMF3 values inside AMF0 (AMF3 specification of 2013, section 3), behind the marker "AVM+". Texts and numbers are
//! read; the rest is read over.

use super::{MAX_DEPTH, Stop, Value, Walk, keep_text};

/// Of one outermost value; a class may be told once and referred to later.
#[derive(Default)]
struct Classes(Vec<Class>);

#[derive(Clone, Copy)]
struct Class {
    sealed: u32,
    dynamic: bool,
}

/// A class has a handful of them.
const MAX_CLASSES: usize = 64;

pub(super) fn value(walk: &mut Walk, depth: usize) -> Result<Value, Stop> {
    read(walk, depth, &mut Classes::default())
}

fn read(walk: &mut Walk, depth: usize, classes: &mut Classes) -> Result<Value, Stop> {
    if depth > MAX_DEPTH {
        return Err(Stop::TooDeep);
    }
    let [kind] = walk.take()?;
    match kind {
        0 | 1 => Ok(Value::Null),
        2 | 3 => Ok(Value::Other),
        4 => number(walk).map(|n| Value::Number(f64::from((n << 3) as i32 >> 3))),
        5 => Ok(Value::Number(f64::from_be_bytes(walk.take()?))),
        6 => Ok(text(walk)?.map_or(Value::Other, |text| keep_text(text, depth))),
        // XML in two forms, byte array.
        7 | 11 | 12 => text(walk).map(|_| Value::Other),
        8 => {
            if number(walk)? & 1 == 1 {
                walk.bytes(8)?;
            }
            Ok(Value::Other)
        }
        9 => array(walk, depth, classes),
        10 => object(walk, depth, classes),
        _ => Err(Stop::Unreadable),
    }
}

/// U29: seven bits a byte, eight in the fourth.
fn number(walk: &mut Walk) -> Result<u32, Stop> {
    let mut value = 0;
    for _ in 0..3 {
        let [byte] = walk.take()?;
        value = value << 7 | u32::from(byte & 0x7F);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    let [byte] = walk.take()?;
    Ok(value << 8 | u32::from(byte))
}

/// `None`: it refers to an earlier one.
fn text<'a>(walk: &mut Walk<'a>) -> Result<Option<&'a [u8]>, Stop> {
    match number(walk)? {
        head if head & 1 == 1 => walk.bytes((head >> 1) as usize).map(Some),
        _ => Ok(None),
    }
}

fn array(walk: &mut Walk, depth: usize, classes: &mut Classes) -> Result<Value, Stop> {
    let head = number(walk)?;
    if head & 1 == 1 {
        named(walk, depth, classes)?;
        (0..head >> 1).try_for_each(|_| read(walk, depth + 1, classes).map(drop))?;
    }
    Ok(Value::Other)
}

fn object(walk: &mut Walk, depth: usize, classes: &mut Classes) -> Result<Value, Stop> {
    let head = number(walk)?;
    if head & 1 == 0 {
        return Ok(Value::Other);
    }
    let class = match head {
        _ if head & 0b10 == 0 => *classes.0.get((head >> 2) as usize).ok_or(Stop::Unreadable)?,
        // It has a form of its own that only its class knows.
        _ if head & 0b100 != 0 => return Err(Stop::Unreadable),
        _ => {
            let class = Class { sealed: head >> 4, dynamic: head & 0b1000 != 0 };
            text(walk)?;
            (0..class.sealed).try_for_each(|_| text(walk).map(drop))?;
            if classes.0.len() == MAX_CLASSES {
                return Err(Stop::Unreadable);
            }
            classes.0.push(class);
            class
        }
    };
    (0..class.sealed).try_for_each(|_| read(walk, depth + 1, classes).map(drop))?;
    if class.dynamic {
        named(walk, depth, classes)?;
    }
    Ok(Value::Other)
}

/// Names and values up to the empty name.
fn named(walk: &mut Walk, depth: usize, classes: &mut Classes) -> Result<(), Stop> {
    while text(walk)?.is_none_or(|name| !name.is_empty()) {
        read(walk, depth + 1, classes)?;
    }
    Ok(())
}
