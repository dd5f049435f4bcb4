//! Runs a program on one packet again and again, see [`mh_bench_ebpf::case`]: what is measured is the run less what the driver itself costs.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, TestRunResult, Xdp},
};
use mh_bench_ebpf::case::{Case, LONG, MOST_RUNS, SHORT, map, program};
use mh_common::abi;
use mh_tests::rig::Rig;
use mh_userspace::datapath::load::program_of;

use crate::{programs::OBJECT, report::as_f64};

/// Size of the kernel's `struct xdp_md`, and where in it the packet's end and the interface are.
const XDP_MD: (usize, usize, usize) = (24, 4, 12);
/// Size of the kernel's `struct __sk_buff`, and where in it the interface is.
const SK_BUFF: (usize, usize) = (192, 40);

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `mh_xdp`.
    Xdp,
    /// `mh_tc`, with what it tail-calls.
    Tc,
}

/// What to run a program on.
#[derive(Clone, Debug)]
pub struct Drive<'a> {
    /// The packet.
    pub packet: &'a [u8],
    /// The interface by which it comes in.
    pub interface: &'a str,
    /// Whether each run's packet is of another flow; at most [`MOST_RUNS`] runs then.
    pub vary: bool,
    /// How often.
    pub runs: u32,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Cost {
    /// Nanoseconds of a run, without the driver.
    pub ns: f64,
    /// What the last run returned.
    pub code: i32,
    /// The packet after the last run.
    pub packet: Vec<u8>,
}

/// The drivers, with mh's programs as those under test.
#[derive(Debug)]
pub struct Driver {
    ebpf: Ebpf,
    under_test: [ProgramFd; 2],
    nothing: [ProgramFd; 2],
}

impl Driver {
    /// Loads the drivers. To be called in the rig's namespace, as everything else.
    ///
    /// # Errors
    /// If the kernel refuses them.
    pub fn load(rig: &mut Rig) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(OBJECT).context("load the benchmark's BPF object")?;
        for name in [program::DRIVE_XDP, program::NOTHING_XDP] {
            xdp(&mut ebpf, name)?.load().with_context(|| format!("load {name}"))?;
        }
        for name in [program::DRIVE_TC, program::NOTHING_TC] {
            tc(&mut ebpf, name)?.load().with_context(|| format!("load {name}"))?;
        }
        let nothing = [
            xdp(&mut ebpf, program::NOTHING_XDP)?.fd()?.try_clone()?,
            tc(&mut ebpf, program::NOTHING_TC)?.fd()?.try_clone()?,
        ];
        let under_test = [
            program_of::<Xdp>(rig.ebpf(), abi::program::XDP)?.fd()?.try_clone()?,
            program_of::<SchedClassifier>(rig.ebpf(), abi::program::TC)?.fd()?.try_clone()?,
        ];
        Ok(Self { ebpf, under_test, nothing })
    }

    /// What a run of mh's program costs.
    ///
    /// # Errors
    /// If the packet or the number of runs are not such as the driver can take, or the kernel refuses the run.
    pub fn cost(&mut self, rig: &Rig, hook: Hook, drive: &Drive<'_>) -> Result<Cost> {
        ensure!(!drive.vary || drive.runs <= MOST_RUNS, "{} runs are more than there are flows", drive.runs);
        ensure!(drive.packet.len() >= SHORT, "a packet of {} bytes is too short to be driven", drive.packet.len());
        let (with, packet) = self.run(rig, hook, drive, true)?;
        let (without, _) = self.run(rig, hook, drive, false)?;
        let ns = |result: &TestRunResult| u64::try_from(result.duration.as_nanos()).map(as_f64);
        // A difference below nothing is the clock's grain.
        let ns = (ns(&with)? - ns(&without)?).max(0.0);
        Ok(Cost { ns, code: with.return_value.cast_signed(), packet })
    }

    fn run(&mut self, rig: &Rig, hook: Hook, drive: &Drive<'_>, under_test: bool) -> Result<(TestRunResult, Vec<u8>)> {
        let (slot, array) = match hook {
            Hook::Xdp => (0, map::UNDER_TEST_XDP),
            Hook::Tc => (1, map::UNDER_TEST_TC),
        };
        let target = if under_test { &self.under_test[slot] } else { &self.nothing[slot] };
        let found = self.ebpf.map_mut(array).with_context(|| format!("no BPF map {array}"))?;
        let mut programs: ProgramArray<&mut MapData> = found.try_into()?;
        programs.set(0, target, 0).with_context(|| format!("put a program into {array}"))?;
        let found = self.ebpf.map_mut(map::CASE).with_context(|| format!("no BPF map {}", map::CASE))?;
        let mut cases: Array<&mut MapData, Case> = found.try_into()?;
        cases.set(0, case(drive), 0).context("write the packet to restore")?;

        let ifindex = rig.index(drive.interface)?.to_ne_bytes();
        let context = match hook {
            Hook::Xdp => {
                let (size, data_end, at) = XDP_MD;
                let mut context = vec![0; size];
                context[data_end..data_end + 4].copy_from_slice(&u32::try_from(drive.packet.len())?.to_ne_bytes());
                context[at..at + 4].copy_from_slice(&ifindex);
                context
            }
            Hook::Tc => {
                let (size, at) = SK_BUFF;
                let mut context = vec![0; size];
                context[at..at + 4].copy_from_slice(&ifindex);
                context
            }
        };
        let mut packet = vec![0; drive.packet.len() + SHORT];
        let options = TestRunOptions {
            data_in: Some(drive.packet),
            data_out: Some(&mut packet),
            ctx_in: Some(&context),
            repeat: drive.runs,
            ..TestRunOptions::new()
        };
        let result = match hook {
            Hook::Xdp => xdp(&mut self.ebpf, program::DRIVE_XDP)?.test_run(options)?,
            Hook::Tc => tc(&mut self.ebpf, program::DRIVE_TC)?.test_run(options)?,
        };
        packet.truncate(usize::try_from(result.data_size_out)?);
        Ok((result, packet))
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no BPF program {name}"))?.try_into()?)
}

fn tc<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no BPF program {name}"))?.try_into()?)
}

/// What the driver restores.
fn case(drive: &Drive<'_>) -> Case {
    let long = drive.packet.len() >= LONG;
    let mut bytes = [0u8; LONG];
    let len = if long { LONG } else { SHORT };
    for (to, from) in bytes.iter_mut().zip(drive.packet.iter().take(len)) {
        *to = *from;
    }
    let mut head = [0u64; LONG / 8];
    for (word, bytes) in head.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    Case { head, long: u32::from(long), vary: u32::from(drive.vary), next: 0, reserved: 0 }
}
