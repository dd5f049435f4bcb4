//! `cargo xtask bench profile`: where the time of a packet goes, as a flame graph.
//!
//! `perf` samples all of the machine while frames of established flows go through a contender, as in [`crate::forward`], or of new ones. Only stacks of the
//! generator's test run, and of the kernel's threads that receive for it, are drawn: what else the machine does, and setting up, is left
//! out. The whole chain is in the picture: generator, router, sink.
//!
//! Failure behaviour: without `perf` (Debian: linux-perf), or if it can't sample, the command ends with what `perf` said.

use std::{
    fs,
    io::{BufRead as _, BufReader, BufWriter},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use inferno::{
    collapse::{Collapse as _, perf::Folder},
    flamegraph::{self, color::BackgroundColor},
};
use mh_tests::lab::require_tools;

use crate::{
    bed::Bed,
    effort::Flags,
    far::{Direction, FrameLen, Load},
    forward, names,
    new_flows::room_for_new,
    report::facts::Facts,
    router::{Contender, room_for_connections},
};

/// Samples per second: no divisor of the kernel's ticks.
const FREQUENCY: &str = "1999";
/// Below this function is what the generator's run causes.
const ROOT: &str = "bpf_test_run_xdp_live";
/// Threads of the kernel that receive packets.
const RECEIVERS: [&str; 2] = ["ksoftirqd", "napi"];

/// Which packets are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Packets {
    /// From inside, of established flows.
    Out,
    /// From outside, of established flows.
    Back,
    /// Each the first of its flow.
    New,
}

/// What to profile.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The contender: a part of its name.
    #[arg(default_value = names::contender::MH_XDP)]
    contender: String,

    /// How many flows are visited in turn.
    #[arg(long, default_value_t = 1 << 16, value_parser = clap::value_parser!(u32).range(1..=1 << 22))]
    flows: u32,

    /// Which packets are sent.
    #[arg(long, value_enum, default_value_t = Packets::Out)]
    packets: Packets,

    /// For how long; new flows, as long as it takes to begin them.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,

    /// Where the picture goes.
    #[arg(long, value_name = "FILE", default_value = "bench/results/profile.svg")]
    svg: PathBuf,
}

/// Profiles, and draws the picture.
///
/// # Errors
/// If there is no such contender or it does not do its work, or `perf` fails.
pub fn profile(arguments: &Arguments) -> Result<()> {
    require_tools(&["perf"]).context("perf samples the machine (Debian: apt-get install linux-perf)")?;
    let wanted = arguments.contender.to_lowercase();
    let mut contenders = forward::CONTENDERS.into_iter();
    let contender = contenders
        .find(|contender| contender.name().to_lowercase().contains(&wanted))
        .with_context(|| format!("no contender has {:?} in its name", arguments.contender))?;
    let facts = Facts::gather(&Flags::default().effort());
    let directory = tempfile::tempdir().context("make a directory for samples")?;
    let samples = directory.path().join("perf.data");
    let rate = sample(arguments, contender, &samples)?;
    let stacks = stacks(&samples)?;
    ensure!(!stacks.is_empty(), "perf has no sample of the generator: is the event cpu-clock there?");
    let flows = names::flows(arguments.flows.into());
    let what = match arguments.packets {
        Packets::Out => "out",
        Packets::Back => "back",
        Packets::New => "all new",
    };
    let title = format!("Where the time goes: {}, {flows}, {what}, 64 B, {rate:.2} Mpps", contender.name());
    let about = format!("{}, Linux {}, {}", facts.cpu, facts.kernel, facts.date);
    draw(&stacks, title, about, &arguments.svg)?;
    println!("{}", arguments.svg.display());
    Ok(())
}

/// Has frames go through while `perf` looks; returns the rate in millions per second.
fn sample(arguments: &Arguments, contender: Contender, samples: &Path) -> Result<f64> {
    let (flows, frame) = (arguments.flows, FrameLen::SMALL);
    let room = if matches!(arguments.packets, Packets::New) { room_for_new(flows) } else { flows };
    let _room = room_for_connections(room)?;
    let direction = match arguments.packets {
        Packets::New => {
            ensure!(contender.translates(), "{} knows no flows that could be new", contender.name());
            let mut bed = Bed::with_room(contender, room, flows)?;
            let mut perf = Perf::start(samples)?;
            let begun = bed.far.begin(0, flows, &bed.expected)?;
            perf.finish()?;
            bed.stop()?;
            return Ok(begun.rate.received / 1e6);
        }
        Packets::Out => Direction::Forward,
        Packets::Back => Direction::Reverse,
    };
    let mut bed = Bed::with_flows(contender, flows, flows)?;
    let mut perf = Perf::start(samples)?;
    let rate = bed.rate(Load { direction, frame, first: 0, flows }, Duration::from_secs(arguments.seconds))?;
    perf.finish()?;
    bed.stop()?;
    Ok(rate.received / 1e6)
}

/// `perf record`, which ends with this value: it runs as long as a program that reads to the end of what this one writes.
// A signal would not do: the benchmark's own are blocked, and children inherit that.
struct Perf {
    perf: Child,
    hold: Option<ChildStdin>,
}

impl Perf {
    fn start(samples: &Path) -> Result<Self> {
        let mut command = Command::new("perf");
        command.args(["record", "--quiet", "-e", "cpu-clock", "-F", FREQUENCY, "-a", "-g", "-o"]).arg(samples);
        // What it runs speaks first when perf samples already.
        command.args(["--", "sh", "-c", "echo; exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start perf")?;
        let (hold, begun) = (child.stdin.take(), child.stdout.take());
        let perf = Self { perf: child, hold };
        let mut begun = BufReader::new(begun.context("perf has no output")?);
        ensure!(begun.read_line(&mut String::new())? > 0, "perf could not begin; what it said is above");
        Ok(perf)
    }

    /// Ends it, and waits until all samples are written.
    fn finish(&mut self) -> Result<()> {
        ensure!(self.perf.try_wait()?.is_none(), "perf ended before the measurement did");
        drop(self.hold.take());
        let status = self.perf.wait().context("wait for perf")?;
        ensure!(status.success(), "perf record: {status}");
        Ok(())
    }
}

impl Drop for Perf {
    fn drop(&mut self) {
        // It has ended already, unless something failed.
        drop(self.hold.take());
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

/// The stacks that belong to the packets' way, each with its count of samples.
fn stacks(samples: &Path) -> Result<Vec<String>> {
    let script = Command::new("perf").args(["script", "-i"]).arg(samples).stderr(Stdio::null()).output();
    let script = script.context("start perf script")?;
    ensure!(script.status.success(), "perf script: {}", script.status);
    let mut folded = Vec::new();
    Folder::default().collapse(BufReader::new(&script.stdout[..]), &mut folded).context("read perf's samples")?;
    let folded = String::from_utf8(folded).context("perf's symbols")?;
    Ok(folded.lines().filter_map(of_packets).collect())
}

/// A folded stack as it is drawn: from the generator's run on, or from the kernel's thread that receives. None for others.
fn of_packets(line: &str) -> Option<String> {
    let (stack, count) = line.rsplit_once(' ')?;
    let frames: Vec<&str> = stack.split(';').collect();
    let begin = match frames.iter().position(|frame| *frame == ROOT) {
        Some(begin) => begin,
        None if frames.first().is_some_and(|thread| RECEIVERS.iter().any(|name| thread.starts_with(name))) => 0,
        None => return None,
    };
    let frames: Vec<String> = frames.iter().skip(begin).map(|frame| readable(frame)).collect();
    Some(format!("{} {count}", frames.join(";")))
}

/// A program's name without its tag: `bpf_prog_0123456789abcdef_mh_xdp` is `BPF mh_xdp`. Threads lose their number.
fn readable(frame: &str) -> String {
    const TAG: usize = 16;
    let program = frame.strip_prefix("bpf_prog_").and_then(|rest| {
        let (tag, name) = rest.split_at_checked(TAG)?;
        tag.chars().all(|c| c.is_ascii_hexdigit()).then(|| name.trim_start_matches('_'))
    });
    match program {
        Some("") => "BPF".to_owned(),
        Some(name) => format!("BPF {name}"),
        None => frame.split('/').next().unwrap_or(frame).to_owned(),
    }
}

fn draw(stacks: &[String], title: String, about: String, file: &Path) -> Result<()> {
    let mut options = flamegraph::Options::default();
    options.title = title;
    options.subtitle = Some(about);
    options.bgcolors = Some(BackgroundColor::Flat((255, 255, 255).into()));
    options.font_type = "\"sans-serif\"".to_owned();
    options.image_width = Some(1200);
    options.min_width = 0.3;
    options.deterministic = true;
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
    }
    let out = fs::File::create(file).with_context(|| format!("can't write {}", file.display()))?;
    let lines = stacks.iter().map(String::as_str);
    flamegraph::from_lines(&mut options, lines, BufWriter::new(out)).with_context(|| format!("draw {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_packets_way_is_drawn() {
        let generated =
            "rig;entry_SYSCALL_64;bpf_prog_test_run_xdp;bpf_test_run_xdp_live;bpf_prog_0123456789abcdef_mh_xdp 12";
        assert_eq!(of_packets(generated).as_deref(), Some("bpf_test_run_xdp_live;BPF mh_xdp 12"));
        assert_eq!(of_packets("ksoftirqd/1;run_ksoftirqd 3").as_deref(), Some("ksoftirqd;run_ksoftirqd 3"));
        assert_eq!(of_packets("rustc;main 100"), None);
        assert_eq!(of_packets("no count"), None);
    }

    #[test]
    fn programs_lose_their_tags() {
        assert_eq!(readable("bpf_prog_0123456789abcdef_mh_tc"), "BPF mh_tc");
        assert_eq!(readable("bpf_prog_test_run_xdp"), "bpf_prog_test_run_xdp");
        assert_eq!(readable("bpf_prog_0123456789abcdef"), "BPF");
    }

    #[test]
    fn a_picture_is_drawn() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("deep/profile.svg");
        draw(&["a;b 3".to_owned(), "a;c <d> 1".to_owned()], "t".to_owned(), "s".to_owned(), &file)?;
        let text = fs::read_to_string(file)?;
        assert!(text.contains("c &lt;d&gt; (1 samples, 25.00%)"), "{text}");
        Ok(())
    }
}
