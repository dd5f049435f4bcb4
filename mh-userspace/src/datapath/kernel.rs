//! What the programs have to know of the running kernel's own structures, read from its type information (BTF, 5.2).
//!
//! The kernel's BTF is scanned and not parsed: it has a hundred thousand types, of which one is wanted, and mhd starts within a second.
//! Format: the kernel's Documentation/bpf/btf.rst.

use std::{fs, io, path::Path};

/// Where the kernel shows its BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;

/// Why an offset is not known.
#[derive(Debug, thiserror::Error)]
pub enum UnknownOffset {
    /// The kernel was built without BTF, or it can't be read.
    #[error("cannot read {VMLINUX}: {0}")]
    Unreadable(#[from] io::Error),
    /// The BTF is not of the known format, or has no such member.
    #[error("{VMLINUX} has no member {member} of struct {structure} of the known form")]
    Missing {
        /// The structure.
        structure: &'static str,
        /// The member.
        member: &'static str,
    },
}

/// Offset in bits of `sk_userlocks` in `struct sock`.
///
/// # Errors
/// If the kernel does not tell, or has the bits elsewhere.
pub fn sock_userlocks_bit() -> Result<u32, UnknownOffset> {
    const STRUCTURE: &str = "sock";
    const MEMBER: &str = "sk_userlocks";
    let btf = fs::read(Path::new(VMLINUX))?;
    bit_offset(&btf, STRUCTURE, MEMBER)
        .filter(|bits| bits % 8 <= 4)
        .ok_or(UnknownOffset::Missing { structure: STRUCTURE, member: MEMBER })
}

/// Offset in bits of a direct member of a structure, if it has one of that name.
fn bit_offset(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    const KIND_STRUCT: u32 = 4;
    let word = |at: usize| Some(u32::from_le_bytes(btf.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let size = |at: usize| Some(usize::try_from(word(at)?).unwrap_or(usize::MAX));
    if u16::from_le_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    let header_len = size(4)?;
    let (types, types_len) = (header_len.checked_add(size(8)?)?, size(12)?);
    let strings = btf.get(header_len.checked_add(size(16)?)?..)?;
    let is_named = |name: usize, wanted: &str| {
        let end = name.saturating_add(wanted.len());
        strings.get(name..end) == Some(wanted.as_bytes()) && strings.get(end) == Some(&0)
    };
    let end = types.checked_add(types_len)?;
    let mut at = types;
    while at < end {
        let info = word(at + 4)?;
        let (kind, count) = (info >> 24 & 0x1f, usize::try_from(info & 0xffff).ok()?);
        let members = at + 12;
        if kind == KIND_STRUCT && is_named(size(at)?, structure) {
            for n in 0..count {
                let this = members + 12 * n;
                if is_named(size(this)?, member) {
                    // With bit fields in the structure, the upper byte is the field's width.
                    let bitfields = info >> 31 != 0;
                    return word(this + 8).map(|offset| if bitfields { offset & 0x00ff_ffff } else { offset });
                }
            }
        }
        at = members
            + match kind {
                // INT, VAR, DECL_TAG
                1 | 14 | 17 => 4,
                // ARRAY
                3 => 12,
                // STRUCT, UNION, DATASEC, ENUM64
                4 | 5 | 15 | 19 => 12 * count,
                // ENUM, FUNC_PROTO
                6 | 13 => 8 * count,
                // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
                2 | 7..=12 | 16 | 18 => 0,
                _ => return None,
            };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BTF with an array, and a structure `sock` of two bit fields.
    fn btf() -> Vec<u8> {
        let strings = b"\0sock\0first\0sk_userlocks\0socket\0";
        let words: [u32; 3 + 3 + 3 + 6] = [
            0,
            3 << 24,
            0, // an array: element, index, count
            1,
            1,
            4,
            1,
            1 << 31 | 4 << 24 | 2,
            8, // struct sock with two members
            6,
            0,
            4 << 24,
            12,
            0,
            4 << 24 | 28,
        ];
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let header = [24, 0, len(&types), len(&types), len(strings)];
        let header: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        [&MAGIC.to_le_bytes()[..], &[1, 0], &header, &types, strings].concat()
    }

    #[test]
    fn members_are_found_by_name() {
        assert_eq!(bit_offset(&btf(), "sock", "sk_userlocks"), Some(28));
        assert_eq!(bit_offset(&btf(), "sock", "first"), Some(0));
        assert_eq!(bit_offset(&btf(), "sock", "sk_user"), None);
        assert_eq!(bit_offset(&btf(), "socket", "first"), None);
    }

    #[test]
    fn what_is_cut_is_no_match_and_no_panic() {
        let whole = btf();
        for len in 0..whole.len() {
            let found = bit_offset(&whole[..len], "sock", "sk_userlocks");
            assert!(found.is_none() || found == Some(28), "{len}");
        }
    }

    #[test]
    fn this_kernel_tells() {
        if Path::new(VMLINUX).exists() {
            let offset = sock_userlocks_bit().unwrap() / 8;
            assert!((64..1536).contains(&offset), "{offset}");
        }
    }
}
