// SPDX-License-Identifier: MIT OR Apache-2.0
//! A restricted unpickler for the state dict in a PyTorch file.
//!
//! A pickle is a program that may call any Python function. This unpickler knows only the functions that describe
//! tensors, and interprets them as data; any other name is an error. It supports the opcodes of protocol 2 (Python's
//! `pickletools` documents them) that PyTorch writes.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Error, Result};

/// Maximum rank of a tensor.
const MAX_RANK: usize = 8;

/// A strided view of a storage: a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorView {
    /// The name of the storage.
    pub(super) storage: String,
    pub(super) dtype: DType,
    /// Offset of the first element, in elements.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Stride of each dimension, in elements.
    pub(super) strides: Vec<usize>,
}

/// Reads a state dict: the tensors by name. The pickle is the state dict, or a dictionary with it under the key
/// `state_dict`.
pub(super) fn state_dict(pickle: &[u8]) -> Result<BTreeMap<String, TensorView>> {
    let mut unpickler = Unpickler { input: pickle, ..Unpickler::default() };
    let root = unpickler.run()?;
    let Value::Dict(root) = unpickler.value(root) else {
        candle_core::bail!("the pickle contains no state dict");
    };
    let wrapped = root.iter().rev().find_map(|&(key, value)| {
        match (unpickler.value(key), unpickler.value(value)) {
            (Value::Text("state_dict"), Value::Dict(dict)) => Some(dict),
            _ => None,
        }
    });
    let entries = wrapped.unwrap_or(root).iter();
    let tensor = |&(key, value): &(Id, Id)| match (unpickler.value(key), unpickler.value(value)) {
        (Value::Text(name), Value::Tensor(view)) => Ok(((*name).to_owned(), view.clone())),
        (Value::Text(name), _) => candle_core::bail!("{name} is not a tensor"),
        (key, _) => candle_core::bail!("a tensor name is {}, not a string", key.kind()),
    };
    entries.map(tensor).collect()
}

/// The Python names that a pickle may refer to.
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
            // All have one byte per element. They are never weights, so the type does not matter.
            ("torch", "ByteStorage" | "CharStorage" | "BoolStorage") => Self::Storage(DType::U8),
            _ => candle_core::bail!(
                "the pickle refers to {module}.{name}, which is not allowed; no code was executed"
            ),
        })
    }
}

/// Index into [`Unpickler::values`]. Values refer to each other by index, so that cycles are harmless and dropping them
/// does not recurse.
type Id = usize;

enum Value<'a> {
    /// None, a bool or a float: parsed and ignored.
    Other,
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(&'a str, DType),
    Tensor(TensorView),
}

impl Value<'_> {
    /// The type, for error messages.
    fn kind(&self) -> &'static str {
        match self {
            Self::Other => "None, a bool or a float",
            Self::Int(_) => "an integer",
            Self::Text(_) => "a string",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Global(_) => "a function or type",
            Self::Storage(..) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// The pickle virtual machine.
#[derive(Default)]
struct Unpickler<'a> {
    /// The input that is not yet read.
    input: &'a [u8],
    /// All values created so far.
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Stack heights at the open MARKs.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Unpickler<'a> {
    /// Runs the pickle to its STOP opcode and returns the top of the stack.
    fn run(&mut self) -> Result<Id> {
        loop {
            let [opcode] = self.array()?;
            match opcode {
                b'.' => return self.pop(),
                // PROTO
                0x80 => {
                    let [version] = self.array()?;
                    if version != 2 {
                        candle_core::bail!(
                            "the pickle has protocol {version}; only protocol 2 is supported"
                        );
                    }
                }
                b'}' => self.push(Value::Dict(Vec::new())),
                b']' => self.push(Value::List(Vec::new())),
                b')' | b'(' | b't' | 0x85..=0x87 => self.run_tuple(opcode)?,
                // NONE, NEWTRUE, NEWFALSE, BINFLOAT, BININT, BININT1, BININT2, LONG1, BINUNICODE
                b'N' | 0x88 | 0x89 | b'G' | b'J' | b'K' | b'M' | 0x8a | b'X' => {
                    let value = self.read_scalar(opcode)?;
                    self.push(value);
                }
                // GLOBAL
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Value::Global(Global::parse(module, name)?));
                }
                // BINPUT, LONG_BINPUT, BINGET, LONG_BINGET
                b'q' | b'r' | b'h' | b'j' => self.run_memo(opcode)?,
                // APPEND, APPENDS, SETITEM, SETITEMS
                b'a' => {
                    let item = self.pop()?;
                    self.append(&[item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(&items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(&items)?;
                }
                // BINPERSID
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.push(storage);
                }
                // REDUCE
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let result = self.reduce(function, arguments)?;
                    self.push(result);
                }
                b'b' => self.run_build()?,
                other => candle_core::bail!("the pickle has the unsupported opcode {other:#04x}"),
            }
        }
    }

    /// EMPTY_TUPLE, MARK, TUPLE, TUPLE1, TUPLE2, TUPLE3.
    fn run_tuple(&mut self, opcode: u8) -> Result<()> {
        let items = match opcode {
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(());
            }
            b't' => self.pop_to_mark()?,
            0x85..=0x87 => match self.stack.len().checked_sub(usize::from(opcode - 0x84)) {
                Some(first) => self.stack.split_off(first),
                None => return stack_underflow(),
            },
            _ => Vec::new(),
        };
        self.push(Value::Tuple(items));
        Ok(())
    }

    /// Reads the argument of an opcode that pushes a scalar or a string.
    fn read_scalar(&mut self, opcode: u8) -> Result<Value<'a>> {
        Ok(match opcode {
            b'G' => {
                self.take(8)?;
                Value::Other
            }
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Value::Int(u8::from_le_bytes(self.array()?).into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => {
                let [length] = self.array()?;
                Value::Int(long(self.take(length.into())?)?)
            }
            b'X' => {
                let length = u32::from_le_bytes(self.array()?);
                Value::Text(utf8(self.take(length as usize)?)?)
            }
            _ => Value::Other,
        })
    }

    /// The opcodes of the memo.
    fn run_memo(&mut self, opcode: u8) -> Result<()> {
        let key = match opcode {
            b'q' | b'h' => u8::from_le_bytes(self.array()?).into(),
            _ => u32::from_le_bytes(self.array()?),
        };
        match opcode {
            b'q' | b'r' => self.put(key),
            _ => self.get(key),
        }
    }

    /// BUILD: sets attributes. A state dict has some, such as the versions of modules; they are ignored.
    fn run_build(&mut self) -> Result<()> {
        self.pop()?;
        match self.stack.last().map(|&id| self.value(id)) {
            Some(Value::Dict(_)) => Ok(()),
            _ => candle_core::bail!(
                "the pickle sets attributes of something other than a dictionary"
            ),
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
        self.stack.pop().map_or_else(stack_underflow, Ok)
    }

    /// Pops everything above the last MARK.
    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => stack_underflow(),
        }
    }

    fn put(&mut self, key: u32) -> Result<()> {
        let Some(&id) = self.stack.last() else { return stack_underflow() };
        self.memo.insert(key, id);
        Ok(())
    }

    fn get(&mut self, key: u32) -> Result<()> {
        let Some(&id) = self.memo.get(&key) else {
            candle_core::bail!("the memo of the pickle has no entry {key}");
        };
        self.stack.push(id);
        Ok(())
    }

    /// Appends to the list on the top of the stack.
    fn append(&mut self, items: &[Id]) -> Result<()> {
        let Some(&id) = self.stack.last() else { return stack_underflow() };
        match &mut self.values[id] {
            Value::List(list) => list.extend(items),
            other => candle_core::bail!("the pickle appends to {}", other.kind()),
        }
        Ok(())
    }

    /// Sets the items of the dictionary on the top of the stack; `items` alternates keys and values.
    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let Some(&id) = self.stack.last() else { return stack_underflow() };
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

    /// Resolves a persistent id: the tuple ("storage", type, name, device, length).
    fn storage(&self, id: Id) -> Result<Value<'a>> {
        let Value::Tuple(items) = self.value(id) else {
            candle_core::bail!("a persistent id is {}, not a tuple", self.value(id).kind());
        };
        let items: Vec<_> = items.iter().map(|&id| self.value(id)).collect();
        match items.as_slice() {
            [
                Value::Text("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Text(name),
                ..,
            ] => Ok(Value::Storage(name, *dtype)),
            _ => candle_core::bail!("the pickle has an unsupported storage descriptor"),
        }
    }

    /// The result of a call, for the known functions.
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
                    candle_core::bail!("a tensor of shape {shape:?} has strides {strides:?}");
                }
                let (storage, offset) = ((*name).to_owned(), size(offset)?);
                Ok(Value::Tensor(TensorView { storage, dtype: *dtype, offset, shape, strides }))
            }
            (function, arguments) => {
                candle_core::bail!(
                    "the pickle calls {function:?} with {} unsupported arguments",
                    arguments.len()
                )
            }
        }
    }

    /// A tuple of sizes: a shape or strides.
    fn sizes(&self, value: &Value) -> Result<Vec<usize>> {
        match value {
            Value::Tuple(items) if items.len() <= MAX_RANK => {
                items.iter().map(|&id| size(self.value(id))).collect()
            }
            other => candle_core::bail!("a tensor has {} as its shape", other.kind()),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        match self.input.split_at_checked(count) {
            Some((taken, rest)) => {
                self.input = rest;
                Ok(taken)
            }
            None => candle_core::bail!("the pickle is truncated"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn line(&mut self) -> Result<&'a str> {
        let end = self.input.iter().position(|&byte| byte == b'\n').unwrap_or(self.input.len());
        let line = utf8(self.take(end)?)?;
        self.take(1)?;
        Ok(line)
    }
}

fn stack_underflow<T>() -> Result<T> {
    candle_core::bail!("the pickle pops from an empty stack")
}

fn size(value: &Value) -> Result<usize> {
    match value {
        Value::Int(number) if *number >= 0 => Ok(*number as usize),
        other => candle_core::bail!("a tensor has {} as a size", other.kind()),
    }
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(Error::wrap)
}

/// A signed little-endian integer of up to eight bytes.
fn long(bytes: &[u8]) -> Result<i64> {
    let mut wide = [match bytes.last() {
        Some(last) if last & 0x80 != 0 => 0xff,
        _ => 0,
    }; 8];
    match wide.get_mut(..bytes.len()) {
        Some(low) => low.copy_from_slice(bytes),
        None => candle_core::bail!(
            "the pickle has an integer of {} bytes; at most 8 are supported",
            bytes.len()
        ),
    }
    Ok(i64::from_le_bytes(wide))
}
