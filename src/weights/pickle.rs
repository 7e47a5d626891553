// SPDX-License-Identifier: MIT OR Apache-2.0
//! A restricted unpickler for the state dict in a PyTorch file.
//!
//! A pickle is a program that may call any Python function. This unpickler knows only the functions that describe
//! tensors, and interprets them as data. It calls nothing: what other functions would return is an opaque
//! [`Value::Object`], which may be beside the state dict but not in it. It supports the opcodes of protocol 2 (Python's
//! `pickletools` documents them) that Python writes.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Error, Result};

use crate::engine::printable;

/// Maximum rank of a tensor.
const MAX_RANK: usize = 8;

/// Maximum size in bytes of everything that a pickle creates.
const MAX_MEMORY: usize = 64 << 20;

/// Upper bound of the bytes that an opcode allocates, but for tensors: a value and its place on the stack, or an entry
/// of the memo, in collections that are at most two thirds empty while they grow.
const OPCODE_MEMORY: usize = 112;
const _: () = assert!(3 * (size_of::<Value>() + size_of::<Id>()) <= OPCODE_MEMORY);

/// A strided view of a storage: a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorView<'a> {
    /// The name of the storage.
    pub(super) storage: &'a str,
    pub(super) dtype: DType,
    /// Offset of the first element, in elements.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Stride of each dimension, in elements.
    pub(super) strides: Vec<usize>,
}

/// Reads a state dict: the tensors by name. The pickle is the state dict, or a dictionary with it under the key
/// `state_dict`.
pub(super) fn state_dict(pickle: &[u8]) -> Result<BTreeMap<&str, TensorView<'_>>> {
    let mut unpickler = Unpickler { input: pickle, ..Unpickler::default() };
    let root = unpickler.run()?;
    let Value::Dict(root) = unpickler.value(root) else {
        candle_core::bail!(
            "the pickle contains {}, not a state dict",
            unpickler.value(root).kind()
        );
    };
    let wrapped = root.iter().rev().find_map(|&(key, value)| {
        match (unpickler.value(key), unpickler.value(value)) {
            (Value::Text("state_dict"), Value::Dict(dict)) => Some(dict),
            _ => None,
        }
    });
    let entries = wrapped.unwrap_or(root);
    let tensors =
        entries.iter().map(|&(key, value)| match (unpickler.value(key), unpickler.value(value)) {
            (&Value::Text(name), Value::Tensor(view)) => Ok((name, (**view).clone())),
            (Value::Text(name), other) => {
                candle_core::bail!("{} is {}, not a tensor", printable(name), other.kind())
            }
            (key, _) => candle_core::bail!("a tensor name is {}, not a string", key.kind()),
        });
    check_memory(unpickler.memory + entries.len() * TENSOR_MEMORY)?;
    tensors.collect()
}

/// Upper bound of the size of a [`TensorView`] with its shape and strides.
const TENSOR_MEMORY: usize = size_of::<TensorView>() + 2 * MAX_RANK * size_of::<usize>();

fn check_memory(bytes: usize) -> Result<()> {
    if bytes > MAX_MEMORY {
        candle_core::bail!("the pickle describes more than {} MiB of objects", MAX_MEMORY >> 20);
    }
    Ok(())
}

/// The element type of a storage, from the Python name of its class.
fn storage_dtype(class: &str) -> Option<DType> {
    Some(match class.strip_prefix("torch\n")? {
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "FloatStorage" => DType::F32,
        "DoubleStorage" => DType::F64,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        // All have one byte per element. They are never weights, so the type does not matter.
        "ByteStorage" | "CharStorage" | "BoolStorage" => DType::U8,
        _ => return None,
    })
}

/// Index into [`Unpickler::values`]. Values refer to each other by index, so that cycles are harmless and dropping them
/// does not recurse.
type Id = u32;

enum Value<'a> {
    /// A value that is parsed and ignored, described for error messages.
    Other(&'static str),
    Int(i64),
    Text(&'a str),
    Tuple(Box<[Id]>),
    /// A list, without its items.
    List,
    Dict(Vec<(Id, Id)>),
    /// A Python function or class: its module and its name, separated by a line feed.
    Global(&'a str),
    /// What a function or class that is not known would have made.
    Object(&'a str),
    Storage(&'a str, DType),
    Tensor(Box<TensorView<'a>>),
}

impl Value<'_> {
    /// The type, for error messages.
    fn kind(&self) -> String {
        let python = |name: &str| printable(&name.replacen('\n', ".", 1));
        match self {
            Self::Other(kind) => (*kind).into(),
            Self::Int(number) => format!("the integer {number}"),
            Self::Text(_) => "a string".into(),
            Self::Tuple(_) => "a tuple".into(),
            Self::List => "a list".into(),
            Self::Dict(_) => "a dictionary".into(),
            Self::Global(name) => format!("{}, which was not called", python(name)),
            Self::Object(name) => format!("an object of {}, which was not called", python(name)),
            Self::Storage(..) => "a storage".into(),
            Self::Tensor(_) => "a tensor".into(),
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
    marks: Vec<Id>,
    memo: HashMap<u32, Id>,
    /// Upper bound of the bytes in the fields above.
    memory: usize,
}

impl<'a> Unpickler<'a> {
    /// Runs the pickle to its STOP opcode and returns the top of the stack.
    fn run(&mut self) -> Result<Id> {
        loop {
            self.allocate(OPCODE_MEMORY)?;
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
                b']' => self.push(Value::List),
                b')' | b'(' | b't' | 0x85..=0x87 => self.run_tuple(opcode)?,
                // POP, POP_MARK, DUP
                b'0' | b'1' | b'2' => self.run_stack(opcode)?,
                // NONE, NEWTRUE, NEWFALSE, BINFLOAT, BININT, BININT1, BININT2, LONG1, LONG4, BINUNICODE
                b'N' | 0x88 | 0x89 | b'G' | b'J' | b'K' | b'M' | 0x8a | 0x8b | b'X' => {
                    let value = self.read_scalar(opcode)?;
                    self.push(value);
                }
                // GLOBAL
                b'c' => {
                    let name = self.lines()?;
                    self.push(Value::Global(name));
                }
                // BINPUT, LONG_BINPUT, BINGET, LONG_BINGET
                b'q' | b'r' | b'h' | b'j' => self.run_memo(opcode)?,
                // APPEND, APPENDS, SETITEM, SETITEMS
                b'a' => {
                    self.pop()?;
                    self.append()?;
                }
                b'e' => {
                    self.pop_to_mark()?;
                    self.append()?;
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
                // REDUCE, NEWOBJ
                b'R' | 0x81 => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let result = self.call(function, arguments)?;
                    self.push(result);
                }
                // BUILD: sets attributes. A state dict has some, such as the versions of modules; they are ignored.
                b'b' => {
                    self.pop()?;
                    self.top()?;
                }
                other => candle_core::bail!("the pickle has the unsupported opcode {other:#04x}"),
            }
        }
    }

    fn allocate(&mut self, bytes: usize) -> Result<()> {
        self.memory += bytes;
        check_memory(self.memory)
    }

    /// EMPTY_TUPLE, MARK, TUPLE, TUPLE1, TUPLE2, TUPLE3.
    fn run_tuple(&mut self, opcode: u8) -> Result<()> {
        let items = match opcode {
            b'(' => {
                self.marks.push(self.stack.len() as Id);
                return Ok(());
            }
            b't' => self.pop_to_mark()?,
            0x85..=0x87 => match self.stack.len().checked_sub(usize::from(opcode - 0x84)) {
                Some(first) => self.stack.split_off(first),
                None => return stack_underflow(),
            },
            _ => Vec::new(),
        };
        self.push(Value::Tuple(items.into()));
        Ok(())
    }

    /// POP, POP_MARK, DUP. They are in pickles of recursive objects.
    fn run_stack(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            b'0' if self.marks.last() == Some(&(self.stack.len() as Id)) => {
                self.marks.pop();
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_to_mark()?;
            }
            _ => {
                let top = self.top()?;
                self.stack.push(top);
            }
        }
        Ok(())
    }

    /// Reads the argument of an opcode that pushes a scalar or a string.
    fn read_scalar(&mut self, opcode: u8) -> Result<Value<'a>> {
        Ok(match opcode {
            b'G' => {
                self.take(8)?;
                Value::Other("a float")
            }
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Value::Int(u8::from_le_bytes(self.array()?).into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => {
                let [length] = self.array()?;
                long(self.take(length.into())?)
            }
            0x8b => {
                let length = u32::from_le_bytes(self.array()?);
                long(self.take(length as usize)?)
            }
            b'X' => {
                let length = u32::from_le_bytes(self.array()?);
                Value::Text(utf8(self.take(length as usize)?)?)
            }
            b'N' => Value::Other("None"),
            _ => Value::Other("a bool"),
        })
    }

    /// The opcodes of the memo.
    fn run_memo(&mut self, opcode: u8) -> Result<()> {
        let key = match opcode {
            b'q' | b'h' => u8::from_le_bytes(self.array()?).into(),
            _ => u32::from_le_bytes(self.array()?),
        };
        match opcode {
            b'q' | b'r' => {
                let top = self.top()?;
                self.memo.insert(key, top);
            }
            _ => {
                let Some(&id) = self.memo.get(&key) else {
                    candle_core::bail!("the memo of the pickle has no entry {key}");
                };
                self.stack.push(id);
            }
        }
        Ok(())
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id> {
        self.stack.pop().map_or_else(stack_underflow, Ok)
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().map_or_else(stack_underflow, Ok)
    }

    /// Pops everything above the last MARK.
    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop().map(|mark| mark as usize) {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => stack_underflow(),
        }
    }

    /// Appends to the list on the top of the stack. The items are ignored.
    fn append(&self) -> Result<()> {
        match self.value(self.top()?) {
            Value::List | Value::Object(_) => Ok(()),
            other => candle_core::bail!("the pickle appends to {}", other.kind()),
        }
    }

    /// Sets the items of the dictionary on the top of the stack; `items` alternates keys and values.
    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let id = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.values[id as usize] {
            Value::Dict(dict) if rest.is_empty() => {
                dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
            }
            Value::Object(_) => (),
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
        let items: Vec<_> = items.iter().take(3).map(|&id| self.value(id)).collect();
        match items.as_slice() {
            &[&Value::Text("storage"), &Value::Global(class), &Value::Text(name)] => {
                Ok(match storage_dtype(class) {
                    Some(dtype) => Value::Storage(name, dtype),
                    None => Value::Object(class),
                })
            }
            _ => candle_core::bail!("the pickle has an unsupported storage descriptor"),
        }
    }

    /// The result of a call, for the known functions.
    fn call(&mut self, function: Id, arguments: Id) -> Result<Value<'a>> {
        let (function, arguments) = (self.value(function), self.value(arguments));
        let (&(Value::Global(name) | Value::Object(name)), Value::Tuple(arguments)) =
            (function, arguments)
        else {
            candle_core::bail!("the pickle calls {}", function.kind());
        };
        // More are not used.
        let arguments: Vec<_> = arguments.iter().take(4).map(|&id| self.value(id)).collect();
        let view = match (name, arguments.as_slice()) {
            ("collections\nOrderedDict", []) => return Ok(Value::Dict(Vec::new())),
            (
                "torch._utils\n_rebuild_parameter" | "torch._utils\n_rebuild_parameter_with_state",
                [Value::Tensor(view), ..],
            ) => (**view).clone(),
            (
                "torch._utils\n_rebuild_tensor_v2",
                &[&Value::Storage(storage, dtype), offset, shape, strides],
            ) => {
                let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
                if shape.len() != strides.len() {
                    candle_core::bail!("a tensor of shape {shape:?} has strides {strides:?}");
                }
                TensorView { storage, dtype, offset: size(offset)?, shape, strides }
            }
            _ => return Ok(Value::Object(name)),
        };
        self.allocate(TENSOR_MEMORY)?;
        Ok(Value::Tensor(Box::new(view)))
    }

    /// A tuple of sizes: a shape or strides.
    fn sizes(&self, value: &Value) -> Result<Vec<usize>> {
        match value {
            Value::Tuple(items) if items.len() <= MAX_RANK => {
                items.iter().map(|&id| size(self.value(id))).collect()
            }
            Value::Tuple(items) => candle_core::bail!(
                "a tensor has rank {}; at most {MAX_RANK} is supported",
                items.len()
            ),
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

    /// Two lines, without the last line feed.
    fn lines(&mut self) -> Result<&'a str> {
        let mut ends = self.input.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let end = ends.nth(1).map_or(self.input.len(), |(end, _)| end);
        let lines = utf8(self.take(end)?)?;
        self.take(1)?;
        Ok(lines)
    }
}

fn stack_underflow<T>() -> Result<T> {
    candle_core::bail!("the pickle pops from an empty stack")
}

fn size(value: &Value) -> Result<usize> {
    match value {
        Value::Int(number @ ..0) => candle_core::bail!("a tensor has the negative size {number}"),
        Value::Int(number) => Ok(*number as usize),
        other => candle_core::bail!("a tensor has {} as a size", other.kind()),
    }
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(Error::wrap)
}

/// A signed little-endian integer. Those of more than eight bytes are never sizes.
fn long<'a>(bytes: &[u8]) -> Value<'a> {
    let mut wide = [match bytes.last() {
        Some(last) if last & 0x80 != 0 => 0xff,
        _ => 0,
    }; 8];
    match wide.get_mut(..bytes.len()) {
        Some(low) => low.copy_from_slice(bytes),
        None => return Value::Other("an integer of more than 8 bytes"),
    }
    Value::Int(i64::from_le_bytes(wide))
}
