//! The kernel proper inside of a bzImage.
//!
//! Purpose: QEMU boots an ELF kernel by its PVH entry, which saves the kernel's own unpacking: seconds under emulation.
//!
//! Invariant: [`payload`] is pure; offsets are those of the x86 boot protocol's header.
//!
//! Failure behaviour: an image of a form not known here is an error that says what is unexpected; it could still be
//! booted as it is, so the caller may go on with the image itself.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Offset of the number of 512-byte sectors of the real-mode part, without the first.
const SETUP_SECTS: usize = 0x1f1;
/// Offset of the header's magic.
const MAGIC: usize = 0x202;
/// Offset of where the payload is, counted from the end of the real-mode part.
const PAYLOAD_OFFSET: usize = 0x248;
/// Offset of the payload's length.
const PAYLOAD_LENGTH: usize = 0x24c;

/// A compressed kernel in an image.
#[derive(Debug, PartialEq, Eq)]
struct Payload<'a> {
    /// What the decompressor gets.
    data: &'a [u8],
    /// The decompressor, which reads stdin and writes stdout.
    program: &'static [&'static str],
    /// How much comes out, in bytes.
    size: u32,
}

/// Finds the payload.
fn payload(image: &[u8]) -> Result<Payload<'_>> {
    ensure!(image.get(MAGIC..MAGIC + 4) == Some(b"HdrS"), "no boot protocol header");
    // The protocol's way to say 4, which is from times before it.
    let sectors = match image.get(SETUP_SECTS) {
        Some(0) => 4,
        Some(count) => usize::from(*count),
        None => bail!("it is cut off"),
    };
    let start = (sectors + 1) * 512 + number(image, PAYLOAD_OFFSET)?;
    let length = number(image, PAYLOAD_LENGTH)?;
    let end = start.checked_add(length).context("its payload's length makes no sense")?;
    let whole = image.get(start..end).context("its payload is outside of it")?;
    let (stream, size) = whole.split_last_chunk::<4>().context("its payload is empty")?;
    // The kernel's build appends the size, but for gzip, whose own last field it is.
    let (data, program): (_, &'static [&'static str]) = match stream {
        [0xfd, b'7', b'z', b'X', ..] => (stream, &["xz", "-dc", "--single-stream"]),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => (stream, &["zstd", "-qdc"]),
        [0x02, 0x21, 0x4c, 0x18, ..] => (stream, &["lz4", "-dc"]),
        [0x1f, 0x8b, ..] => (whole, &["gzip", "-dc"]),
        _ => bail!("its payload is compressed in a way that is not known"),
    };
    Ok(Payload { data, program, size: u32::from_le_bytes(*size) })
}

fn number(image: &[u8], offset: usize) -> Result<usize> {
    let bytes = image.get(offset..).and_then(<[u8]>::first_chunk::<4>).context("it is cut off")?;
    Ok(usize::try_from(u32::from_le_bytes(*bytes))?)
}

/// Unpacks the kernel from `image` into the file `to`.
pub fn unpack(image: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(image).with_context(|| format!("can't read {}", image.display()))?;
    let payload = payload(&bytes).with_context(|| image.display().to_string())?;
    let compressed = to.with_extension("compressed");
    fs::write(&compressed, payload.data)?;
    decompress(payload.program, &compressed, to)?;
    fs::remove_file(&compressed)?;
    let size = to.metadata()?.len();
    ensure!(size == u64::from(payload.size), "{} unpacks to {size} bytes, not {}", image.display(), payload.size);
    Ok(())
}

/// Decompresses a module if it is compressed; its name tells how.
pub fn read_module(file: &Path) -> Result<Vec<u8>> {
    let program: &[&str] = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => &["xz", "-dc"],
        Some("zst") => &["zstd", "-qdc"],
        Some("gz") => &["gzip", "-dc"],
        _ => return fs::read(file).with_context(|| format!("can't read {}", file.display())),
    };
    let mut command = decompressor(program, file)?;
    let output = command.stderr(Stdio::inherit()).output().with_context(|| cannot_start(program))?;
    ensure!(output.status.success(), "can't unpack {}: {}", file.display(), output.status);
    Ok(output.stdout)
}

fn decompress(program: &[&str], from: &Path, to: &Path) -> Result<()> {
    let mut command = decompressor(program, from)?;
    let status = command.stdout(File::create(to)?).stderr(Stdio::null()).status();
    let status = status.with_context(|| cannot_start(program))?;
    ensure!(status.success(), "can't unpack {}: {status}", from.display());
    Ok(())
}

fn decompressor(program: &[&str], from: &Path) -> Result<Command> {
    let (name, arguments) = program.split_first().context("no decompressor")?;
    let mut command = Command::new(name);
    command.args(arguments).stdin(File::open(from).with_context(|| format!("can't read {}", from.display()))?);
    Ok(command)
}

fn cannot_start(program: &[&str]) -> String {
    let name = program.first().copied().unwrap_or_default();
    let package = if name == "xz" { "xz-utils" } else { name };
    format!("can't start {name}, which unpacks kernels: install the package {package}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// An image with two sectors of real-mode code, and `payload` 16 bytes into the rest.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512 + 16];
        image[SETUP_SECTS] = 2;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET] = 16;
        image[PAYLOAD_LENGTH] = u8::try_from(payload.len()).unwrap();
        image.extend(payload);
        image.extend([0xee; 100]);
        image
    }

    #[test]
    fn the_payload_is_found_without_the_size_behind_it() {
        let image = image(b"\xfd7zXZ\0stream\x01\x02\0\0");
        let found = payload(&image).unwrap();
        assert_eq!(found.data, b"\xfd7zXZ\0stream");
        assert_eq!((found.program[0], found.size), ("xz", 0x201));
    }

    #[test]
    fn gzip_keeps_its_last_field() {
        let image = image(b"\x1f\x8bstream\x05\0\0\0");
        let found = payload(&image).unwrap();
        assert_eq!((found.data, found.program[0], found.size), (&b"\x1f\x8bstream\x05\0\0\0"[..], "gzip", 5));
    }

    #[test]
    fn other_programs_are_told_by_their_magic() {
        assert_eq!(payload(&image(b"\x28\xb5\x2f\xfd....")).unwrap().program[0], "zstd");
        assert_eq!(payload(&image(b"\x02\x21\x4c\x18....")).unwrap().program[0], "lz4");
        assert!(payload(&image(b"BZh9....")).is_err());
    }

    #[test]
    fn no_sectors_mean_four() {
        let mut image = image(b"");
        image[SETUP_SECTS] = 0;
        image.resize(5 * 512 + 16, 0);
        image.extend(b"\x28\xb5\x2f\xfd\x09\0\0\0");
        image[PAYLOAD_LENGTH] = 8;
        assert_eq!(payload(&image).unwrap().size, 9);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert!(payload(b"\x7fELF").is_err());
        let mut cut = image(b"\xfd7zX....");
        cut.truncate(3 * 512 + 18);
        assert!(payload(&cut).is_err());
        cut.truncate(PAYLOAD_LENGTH);
        assert!(payload(&cut).is_err());
    }
}
