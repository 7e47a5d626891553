// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads the pickle of a PyTorch file as data. A pickle is a program that may call anything; this one
//! knows how to describe tensors, and a name of anything else ends it. Nothing is ever called.
//!
//! The language is that of Python's `pickletools`, protocol 2, as far as PyTorch writes it.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Error, Result};

/// The most dimensions that a tensor has.
const MOST_DIMENSIONS: usize = 8;

/// Numbers of a storage, as a tensor sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    /// The name of the storage.
    pub(super) storage: String,
    pub(super) dtype: DType,
    /// Position of the first number, in numbers.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Numbers from one to the next, along each dimension.
    pub(super) strides: Vec<usize>,
}

/// The tensors by name, of a dictionary of them or of one under the key `state_dict`.
pub(super) fn state_dict(pickle: &[u8]) -> Result<BTreeMap<String, View>> {
    let mut machine = Machine { rest: pickle, ..Machine::default() };
    let root = machine.run()?;
    let Value::Dict(root) = machine.value(root) else {
        candle_core::bail!("the pickle holds no dictionary");
    };
    let wrapped = root.iter().rev().find_map(|&(key, value)| {
        match (machine.value(key), machine.value(value)) {
            (Value::Text("state_dict"), Value::Dict(dict)) => Some(dict),
            _ => None,
        }
    });
    let entries = wrapped.unwrap_or(root).iter();
    let tensor = |&(key, value): &(Id, Id)| match (machine.value(key), machine.value(value)) {
        (Value::Text(name), Value::Tensor(view)) => Ok(((*name).to_owned(), view.clone())),
        (Value::Text(name), _) => candle_core::bail!("{name} is no tensor"),
        (key, _) => candle_core::bail!("a tensor's name is {}", key.kind()),
    };
    entries.map(tensor).collect()
}

/// The names that a pickle may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(DType),
}

impl Global {
    fn parse(module: &str, name: &str) -> Result<Self> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "HalfStorage") => Self::Storage(DType::F16),
            ("torch", "BFloat16Storage") => Self::Storage(DType::BF16),
            ("torch", "FloatStorage") => Self::Storage(DType::F32),
            ("torch", "DoubleStorage") => Self::Storage(DType::F64),
            ("torch", "LongStorage") => Self::Storage(DType::I64),
            ("torch", "IntStorage") => Self::Storage(DType::I32),
            ("torch", "ShortStorage") => Self::Storage(DType::I16),
            // Of a byte each: no weight is made of them, so which of the three does not matter.
            ("torch", "ByteStorage" | "CharStorage" | "BoolStorage") => Self::Storage(DType::U8),
            _ => candle_core::bail!(
                "the pickle names {module}.{name}, which is nothing of a tensor; none of it was run"
            ),
        })
    }
}

/// Place of a value in [`Machine::values`]: values refer to each other as they like, and are freed
/// without recursion.
type Id = usize;

enum Value<'a> {
    /// None, a truth value or a float.
    Other,
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(&'a str, DType),
    Tensor(View),
}

impl Value<'_> {
    /// For errors.
    fn kind(&self) -> &'static str {
        match self {
            Self::Other => "no number or text",
            Self::Int(_) => "a number",
            Self::Text(_) => "a text",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Global(_) => "a function or type",
            Self::Storage(..) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Runs to the end; gives what is on top of the stack.
    fn run(&mut self) -> Result<Id> {
        loop {
            let [code] = self.array()?;
            match code {
                // PROTO
                0x80 => {
                    let [version] = self.array()?;
                    if version != 2 {
                        candle_core::bail!("the pickle is of protocol {version}, not 2");
                    }
                }
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'}' => self.push(Value::Dict(Vec::new())),
                b']' => self.push(Value::List(Vec::new())),
                b')' => self.push(Value::Tuple(Vec::new())),
                // NONE, NEWTRUE, NEWFALSE
                b'N' | 0x88 | 0x89 => self.push(Value::Other),
                // BINFLOAT
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Other);
                }
                // BININT, BININT1, BININT2, LONG1
                b'J' => {
                    let number = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(number.into()));
                }
                b'K' => {
                    let [number] = self.array()?;
                    self.push(Value::Int(number.into()));
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(number.into()));
                }
                0x8a => {
                    let [length] = self.array()?;
                    let number = long(self.take(length.into())?)?;
                    self.push(Value::Int(number));
                }
                // BINUNICODE
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?);
                    let text = text(self.take(length as usize)?)?;
                    self.push(Value::Text(text));
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Value::Global(Global::parse(module, name)?));
                }
                // TUPLE, TUPLE1, TUPLE2, TUPLE3
                b't' => {
                    let items = self.pop_marked()?;
                    self.push(Value::Tuple(items));
                }
                0x85..=0x87 => {
                    let count = usize::from(code - 0x84);
                    let Some(first) = self.stack.len().checked_sub(count) else {
                        return empty();
                    };
                    let items = self.stack.split_off(first);
                    self.push(Value::Tuple(items));
                }
                // BINPUT, LONG_BINPUT, BINGET, LONG_BINGET
                b'q' => {
                    let [key] = self.array()?;
                    self.put(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.put(key)?;
                }
                b'h' => {
                    let [key] = self.array()?;
                    self.get(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.get(key)?;
                }
                // APPEND, APPENDS, SETITEM, SETITEMS
                b'a' => {
                    let item = self.pop()?;
                    self.append(&[item])?;
                }
                b'e' => {
                    let items = self.pop_marked()?;
                    self.append(&items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_marked()?;
                    self.set(&items)?;
                }
                // BINPERSID, REDUCE
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.push(storage);
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let made = self.reduce(function, arguments)?;
                    self.push(made);
                }
                // BUILD: attributes of a dictionary, such as the versions of a network's modules.
                b'b' => {
                    self.pop()?;
                    match self.stack.last().map(|&id| self.value(id)) {
                        Some(Value::Dict(_)) => (),
                        _ => {
                            candle_core::bail!("the pickle builds something else than a dictionary")
                        }
                    }
                }
                other => candle_core::bail!("the pickle has the unknown code {other:#04x}"),
            }
        }
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id]
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id> {
        self.stack.pop().map_or_else(empty, Ok)
    }

    /// What was pushed since the last mark.
    fn pop_marked(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => empty(),
        }
    }

    fn put(&mut self, key: u32) -> Result<()> {
        let Some(&id) = self.stack.last() else { return empty() };
        self.memo.insert(key, id);
        Ok(())
    }

    fn get(&mut self, key: u32) -> Result<()> {
        let Some(&id) = self.memo.get(&key) else {
            candle_core::bail!("the pickle remembers nothing as {key}");
        };
        self.stack.push(id);
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Result<()> {
        let Some(&id) = self.stack.last() else { return empty() };
        match &mut self.values[id] {
            Value::List(list) => list.extend(items),
            other => candle_core::bail!("the pickle appends to {}", other.kind()),
        }
        Ok(())
    }

    /// Keys and values, by turns.
    fn set(&mut self, items: &[Id]) -> Result<()> {
        let Some(&id) = self.stack.last() else { return empty() };
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.values[id] {
            Value::Dict(dict) if rest.is_empty() => {
                dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
            }
            other => {
                candle_core::bail!("the pickle sets {} items of {}", items.len(), other.kind())
            }
        }
        Ok(())
    }

    /// Of ("storage", type, name, device, length).
    fn storage(&self, id: Id) -> Result<Value<'a>> {
        let Value::Tuple(items) = self.value(id) else {
            candle_core::bail!("the pickle stores {}", self.value(id).kind());
        };
        let items: Vec<_> = items.iter().map(|&id| self.value(id)).collect();
        match items.as_slice() {
            [
                Value::Text("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Text(name),
                ..,
            ] => Ok(Value::Storage(name, *dtype)),
            _ => candle_core::bail!("the pickle describes a storage in an unknown way"),
        }
    }

    fn reduce(&self, function: Id, arguments: Id) -> Result<Value<'a>> {
        let (Value::Global(function), Value::Tuple(arguments)) =
            (self.value(function), self.value(arguments))
        else {
            candle_core::bail!("the pickle calls {}", self.value(function).kind());
        };
        let arguments: Vec<_> = arguments.iter().map(|&id| self.value(id)).collect();
        match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => Ok(Value::Dict(Vec::new())),
            (Global::RebuildParameter, [Value::Tensor(view), ..]) => {
                Ok(Value::Tensor(view.clone()))
            }
            (Global::RebuildTensor, [Value::Storage(name, dtype), offset, shape, strides, ..]) => {
                let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
                if shape.len() != strides.len() {
                    candle_core::bail!("a tensor of {shape:?} has the strides {strides:?}");
                }
                let (storage, offset) = ((*name).to_owned(), size(offset)?);
                Ok(Value::Tensor(View { storage, dtype: *dtype, offset, shape, strides }))
            }
            (function, arguments) => {
                candle_core::bail!(
                    "the pickle calls {function:?} with {} arguments",
                    arguments.len()
                )
            }
        }
    }

    fn sizes(&self, value: &Value) -> Result<Vec<usize>> {
        match value {
            Value::Tuple(items) if items.len() <= MOST_DIMENSIONS => {
                items.iter().map(|&id| size(self.value(id))).collect()
            }
            other => candle_core::bail!("a tensor's shape is {}", other.kind()),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => candle_core::bail!("the pickle ends too early"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn line(&mut self) -> Result<&'a str> {
        let end = self.rest.iter().position(|&byte| byte == b'\n').unwrap_or(self.rest.len());
        let line = text(self.take(end)?)?;
        self.take(1)?;
        Ok(line)
    }
}

fn empty<T>() -> Result<T> {
    candle_core::bail!("the pickle takes from an empty stack")
}

fn size(value: &Value) -> Result<usize> {
    match value {
        Value::Int(number) if *number >= 0 => Ok(*number as usize),
        other => candle_core::bail!("a tensor's size is {}", other.kind()),
    }
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(Error::wrap)
}

/// A signed number of up to eight bytes, least first.
fn long(bytes: &[u8]) -> Result<i64> {
    let mut wide = [match bytes.last() {
        Some(last) if last & 0x80 != 0 => 0xff,
        _ => 0,
    }; 8];
    match wide.get_mut(..bytes.len()) {
        Some(low) => low.copy_from_slice(bytes),
        None => candle_core::bail!("the pickle has a number of {} bytes", bytes.len()),
    }
    Ok(i64::from_le_bytes(wide))
}
