//! Known sources: see [`mh_common::known`]. The controller notes those that it gives a port itself, and forgets those of which nothing is left.

use std::{
    ops::Range,
    path::Path,
    sync::atomic::{AtomicU8, Ordering},
};

use mh_common::{
    abi::map,
    address::Ipv4,
    binding::End,
    flow::Key,
    known::{FRESH, Line, OLD, PORTS, Place, UNKNOWN},
};

use super::{DatapathError, memory::Memory};

/// Lines are looked through by words of eight bytes.
const WORDS_PER_LINE: usize = PORTS / 8;

/// All bytes, shared with the programs.
pub struct Known {
    memory: Memory,
}

/// Sources of which something is left.
pub struct Kept {
    seed: [u64; 2],
    lines: u32,
    bits: Vec<u64>,
}

impl Known {
    /// Maps what is pinned in the directory.
    pub fn open(dir: &Path) -> Result<Self, DatapathError> {
        let memory = Memory::map::<Line>(dir, map::KNOWN4, libc::PROT_READ | libc::PROT_WRITE)?;
        Ok(Self { memory })
    }

    /// How many lines there are.
    pub const fn lines(&self) -> u32 {
        self.memory.entries
    }

    fn bytes(&self) -> &[AtomicU8] {
        let length = self.lines() as usize * PORTS;
        // SAFETY: the mapping has so many bytes, which are written as such by programs, too, and lives as long as this.
        unsafe { std::slice::from_raw_parts(self.memory.start().cast(), length) }
    }

    /// Notes an end of a binding, once that is entered.
    pub fn note(&self, seed: [u64; 2], end: &End<Ipv4>) {
        let place = Place::of(seed, self.lines(), end.address, end.port, end.protocol);
        if let Some(byte) = self.bytes().get(place.number()) {
            byte.store(FRESH, Ordering::SeqCst);
        }
    }

    /// Whether nothing is known of the source of packets with this key.
    pub fn is_unknown(&self, seed: [u64; 2], key: &Key<Ipv4>) -> bool {
        let byte = self.bytes().get(Place::of(seed, self.lines(), key.src, key.sport, key.protocol).number());
        byte.is_some_and(|byte| byte.load(Ordering::SeqCst) == UNKNOWN)
    }

    /// All lines, so many at a time.
    pub fn spans(&self, at_a_time: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let lines = self.lines() as usize;
        (0..lines).step_by(at_a_time).map(move |first| first..lines.min(first + at_a_time))
    }

    /// Begins a round for some lines: what is known now is old.
    pub fn age(&self, lines: Range<usize>) {
        for (_, byte) in self.set(lines) {
            // A program may set it at the same time; then it is fresh.
            let _ = byte.compare_exchange(FRESH, OLD, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// The bytes of some lines that are not zero, with their numbers: nearly all lines have none.
    fn set(&self, lines: Range<usize>) -> impl Iterator<Item = (usize, &AtomicU8)> {
        let all = self.bytes();
        let lines = lines.start..lines.end.min(all.len() / PORTS);
        let words = self.memory.start().cast::<u64>();
        // SAFETY: within the mapping, which begins on a page.
        let is_set = move |word: &usize| unsafe { words.add(*word).read_volatile() } != 0;
        let words = (lines.start * WORDS_PER_LINE..lines.end * WORDS_PER_LINE).filter(is_set);
        let bytes = words.flat_map(move |word| (word * 8..word * 8 + 8).zip(&all[word * 8..word * 8 + 8]));
        bytes.filter(|(_, byte)| byte.load(Ordering::Relaxed) != UNKNOWN)
    }

    /// Ends a round for some lines: what is old and not kept is forgotten.
    pub fn forget(&self, lines: Range<usize>, kept: &Kept) {
        for (_, byte) in self.set(lines).filter(|(number, _)| !kept.has(*number)) {
            let _ = byte.compare_exchange(OLD, UNKNOWN, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// Forgets all: for whoever has emptied the tables while no program ran.
    pub fn reset(&self) {
        self.bytes().iter().for_each(|byte| byte.store(UNKNOWN, Ordering::SeqCst));
    }
}

impl Kept {
    /// None so far, of so many lines.
    pub fn none(seed: [u64; 2], lines: u32) -> Self {
        Self { seed, lines, bits: vec![0; lines as usize * PORTS / u64::BITS as usize] }
    }

    /// Keeps an end of a binding.
    pub fn end(&mut self, end: &End<Ipv4>) {
        self.keep(self.place(end.address, end.port, end.protocol));
    }

    /// Keeps the source of packets with this key.
    pub fn key(&mut self, key: &Key<Ipv4>) {
        self.keep(self.place(key.src, key.sport, key.protocol));
    }

    /// Keeps the source that packets with this key answer to.
    pub fn answers_to(&mut self, key: &Key<Ipv4>) {
        self.keep(self.place(key.dst, key.dport, key.protocol));
    }

    const fn place(&self, address: Ipv4, port: u16, protocol: u8) -> Place {
        Place::of(self.seed, self.lines, address, port, protocol)
    }

    fn keep(&mut self, place: Place) {
        let number = place.number();
        self.bits[number / 64] |= 1 << (number % 64);
    }

    fn has(&self, number: usize) -> bool {
        self.bits[number / 64] >> (number % 64) & 1 != 0
    }
}
