// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes PyTorch files as `torch.save` does, and malformed ones.

use std::{fs::File, io::Write, path::Path};

use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// A pickle, opcode by opcode.
#[derive(Default, Clone)]
pub struct Pickle(Vec<u8>);

/// A tensor in a pickle.
pub struct Tensor<'a> {
    pub kind: &'a str,
    pub storage: &'a str,
    pub length: usize,
    pub offset: usize,
    pub shape: &'a [usize],
    pub strides: &'a [usize],
}

impl Pickle {
    pub fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub fn raw(mut self, codes: &[u8]) -> Self {
        self.0.extend(codes);
        self
    }

    pub fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    pub fn text(self, text: &str) -> Self {
        let length = u32::try_from(text.len()).unwrap();
        self.raw(b"X").raw(&length.to_le_bytes()).raw(text.as_bytes())
    }

    pub fn int(self, number: usize) -> Self {
        match number {
            0..0x100 => self.raw(&[b'K', number as u8]),
            0x100..0x1_0000 => self.raw(b"M").raw(&(number as u16).to_le_bytes()),
            0x1_0000..0x8000_0000 => self.raw(b"J").raw(&(number as u32).to_le_bytes()),
            _ => self.raw(&[0x8a, 8]).raw(&(number as u64).to_le_bytes()),
        }
    }

    fn ints(self, numbers: &[usize]) -> Self {
        numbers.iter().fold(self.raw(b"("), |pickle, &n| pickle.int(n)).raw(b"t")
    }

    /// `OrderedDict()`.
    pub fn dict(self) -> Self {
        self.global("collections", "OrderedDict").raw(b")R")
    }

    pub fn tensor(self, tensor: &Tensor) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"((")
            .text("storage")
            .global("torch", tensor.kind)
            .text(tensor.storage)
            .text("cpu")
            .int(tensor.length)
            .raw(b"tQ")
            .int(tensor.offset)
            .ints(tensor.shape)
            .ints(tensor.strides)
            .raw(&[0x89])
            .dict()
            .raw(b"tR")
    }

    pub fn end(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// A state dict with its `_metadata` attribute.
pub fn state_dict(pickle: Pickle, tensors: &[(&str, Tensor)]) -> Pickle {
    let pickle = pickle.dict().raw(b"q\x01(");
    let items =
        tensors.iter().fold(pickle, |pickle, (name, tensor)| pickle.text(name).tensor(tensor));
    items.raw(b"u}").raw(b"q\x02").text("_metadata").dict().raw(b"sb")
}

/// Writes a PyTorch file with a pickle and storages.
pub fn write(path: &Path, pickle: &[u8], storages: &[(&str, &[u8])]) {
    let mut zip = ZipWriter::new(File::create(path).unwrap());
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut entry = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("archive/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    entry("data.pkl", pickle);
    entry("byteorder", b"little");
    for (name, bytes) in storages {
        entry(&format!("data/{name}"), bytes);
    }
    entry("version", b"3\n");
    zip.finish().unwrap();
}
