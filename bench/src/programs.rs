//! The benchmark's BPF object, loaded: one set of maps for each [`Programs`].

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, MapData, PerCpuArray},
    programs::{Xdp, XdpMode},
};
use mh_bench_ebpf::{Seen, map};
use mh_tests::lab::Host;

/// The object as the build script left it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench.o"));

/// The programs with maps of their own. Whatever was attached ends with this value.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
}

impl Programs {
    /// Loads the object with room for so many flows; programs are loaded when they are needed.
    ///
    /// # Errors
    /// If the kernel refuses a map.
    pub fn load(flows: u32) -> Result<Self> {
        let ebpf = EbpfLoader::new().map_max_entries(map::LEARNED, flows.max(1)).load(OBJECT);
        Ok(Self { ebpf: ebpf.context("load the benchmark's BPF object")? })
    }

    /// A program, loaded.
    ///
    /// # Errors
    /// If there is none of that name, or the verifier refuses it.
    pub fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self.ebpf.program_mut(name).with_context(|| format!("no BPF program {name}"))?;
        let program: &mut Xdp = program.try_into()?;
        if program.fd().is_err() {
            program.load().with_context(|| format!("load the BPF program {name}"))?;
        }
        Ok(program)
    }

    /// A program that [`Programs::program`] has loaded.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn loaded(&self, name: &str) -> Result<&Xdp> {
        let program = self.ebpf.program(name).with_context(|| format!("no BPF program {name}"))?;
        Ok(program.try_into()?)
    }

    /// Attaches a program to an interface of a host, natively.
    ///
    /// # Errors
    /// If there is no such program or interface, or the kernel refuses.
    pub fn attach(&mut self, name: &str, host: &Host, interface: &str) -> Result<()> {
        let program = self.program(name)?;
        host.enter(|| program.attach(interface, XdpMode::Driver))?
            .with_context(|| format!("attach {name} to {interface} of {}", host.name()))?;
        Ok(())
    }

    /// Writes an entry of an array.
    ///
    /// # Errors
    /// If there is no such array or entry.
    pub fn set<T: Pod>(&mut self, map: &str, index: u32, value: T) -> Result<()> {
        let found = self.ebpf.map_mut(map).with_context(|| format!("no BPF map {map}"))?;
        let mut array: Array<&mut MapData, T> = found.try_into()?;
        array.set(index, value, 0).with_context(|| format!("write entry {index} of {map}"))
    }

    /// Reads an entry of an array.
    ///
    /// # Errors
    /// If there is no such array or entry.
    pub fn get<T: Pod>(&self, map: &str, index: u32) -> Result<T> {
        let found = self.ebpf.map(map).with_context(|| format!("no BPF map {map}"))?;
        let array: Array<&MapData, T> = found.try_into()?;
        array.get(&index, 0).with_context(|| format!("read entry {index} of {map}"))
    }

    /// What was seen at a port, on all cores together.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn seen(&self, port: u32) -> Result<Seen> {
        let found = self.ebpf.map(map::SEEN).with_context(|| format!("no BPF map {}", map::SEEN))?;
        let array: PerCpuArray<&MapData, Seen> = found.try_into()?;
        let cores = array.get(&port, 0).context("read what was seen")?;
        Ok(cores.iter().copied().fold(Seen::default(), Seen::plus))
    }
}
